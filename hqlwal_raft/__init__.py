"""A durable Raft log for Python.

``RaftLogStorage`` is an asyncio (and trio) log storage with openraft's method names, kept in
memory-mapped WAL segments. What it acknowledged survives a crash at any instant::

    from hqlwal_raft import Entry, RaftLogStorage

    async with RaftLogStorage.open("node-1/log") as store:
        await store.append([Entry(term=1, index=1, payload=b"x = 1")])  # durable on return

How it is built, from the ground up: ``_format`` has the bytes, ``_environment`` the operating
system, ``_files`` the order in which it is called, ``_scan`` the decoder, ``_segment`` one file,
``_meta`` the vote and the purge frontier, ``audit`` the read-only examination, ``_reads`` what is
at hand for reading, ``_log`` the ordered segments, ``_recovery`` what happens at open, ``_worker``
the threads, ``_writer`` the background writer, ``_reader`` and ``_store`` the async face. Each
imports only from those before it. ``hqlwal_raft.pysyncobj`` is the journal adapter for pysyncobj
clusters, ``hqlwal_raft.testing`` the conformance suite and the faulty systems.
"""

from ._reader import RaftLogReader
from ._store import RaftLogStorage
from ._types import Entry, LogId, LogState, LogSync, StorageStatistics, Vote
from .errors import (
    CorruptionError,
    EntryTooLargeError,
    LeaderChangedError,
    LogGapError,
    LogRangeError,
    LogTruncatedError,
    UnknownVersionError,
    UnsupportedPlatformError,
    WalClosedError,
    WalError,
    WalLockedError,
    WalPoisonedError,
    WrongLoopError,
)

__all__ = [
    "CorruptionError",
    "Entry",
    "EntryTooLargeError",
    "LeaderChangedError",
    "LogGapError",
    "LogId",
    "LogRangeError",
    "LogState",
    "LogSync",
    "LogTruncatedError",
    "RaftLogReader",
    "RaftLogStorage",
    "StorageStatistics",
    "UnknownVersionError",
    "UnsupportedPlatformError",
    "Vote",
    "WalClosedError",
    "WalError",
    "WalLockedError",
    "WalPoisonedError",
    "WrongLoopError",
]

__version__ = "0.1.0"
