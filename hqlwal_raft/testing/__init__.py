"""For those who write a Raft log storage, and for those who doubt one.

``check_log_storage`` runs the conformance suite, ``MemoryLogStorage`` is the reference model.
``MemoryKernel`` stands in for the operating system and shows what a power cut could leave of its
disk, ``FailingEnvironment`` makes chosen calls fail. Needs no test framework.
"""

from ._case import Case, StorageFactory
from ._conformance import CASES, check_log_storage
from ._faults import CALLS, FailingEnvironment
from ._kernel import Image, MemoryKernel, NeverReturns, Snapshot
from ._memory import MemoryLogStorage
from ._memory_reader import MemoryDisk, MemoryLogReader
from ._passing import PassingEnvironment

__all__ = [
    "CALLS",
    "CASES",
    "Case",
    "FailingEnvironment",
    "Image",
    "MemoryDisk",
    "MemoryKernel",
    "MemoryLogReader",
    "MemoryLogStorage",
    "NeverReturns",
    "PassingEnvironment",
    "Snapshot",
    "StorageFactory",
    "check_log_storage",
]
