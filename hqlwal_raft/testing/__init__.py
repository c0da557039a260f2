"""For those who write a Raft log storage, and for those who doubt one.

``check_log_storage`` runs the conformance suite, ``MemoryLogStorage`` is the reference model.
``ForgetfulDisk`` stands in for the file system and shows what a power cut could leave of it,
``FailingFiles`` makes chosen calls fail. Needs no test framework.
"""

from ._case import Case, StorageFactory
from ._conformance import CASES, check_log_storage
from ._disk import ForgetfulDisk, ForgetfulFile, Snapshot
from ._faults import CALLS, FailingFiles
from ._memory import MemoryDisk, MemoryLogReader, MemoryLogStorage

__all__ = [
    "CALLS",
    "CASES",
    "Case",
    "FailingFiles",
    "ForgetfulDisk",
    "ForgetfulFile",
    "MemoryDisk",
    "MemoryLogReader",
    "MemoryLogStorage",
    "Snapshot",
    "StorageFactory",
    "check_log_storage",
]
