"""A durable Raft log for Python.

``RaftLogStorage`` is an asyncio (and trio) log storage with openraft's method names, kept in
WAL segments of one size. What it acknowledged survives a crash at any instant::

    from hqlwal_raft import Entry, RaftLogStorage

    async with RaftLogStorage.open("node-1/log") as store:
        await store.append([Entry(term=1, index=1, payload=b"x = 1")])  # durable on return

How it is built, ``docs/design/architecture.md`` says. ``hqlwal_raft.blocking`` is the same store
for threads, ``hqlwal_raft.snapshots`` keeps the snapshots that a purge goes by,
``hqlwal_raft.pysyncobj`` is the journal adapter for pysyncobj clusters,
``hqlwal_raft.testing`` the conformance suite and the faulty systems.
"""

from ._reader import RaftLogReader
from ._store import RaftLogStorage
from ._types import (
    AppendOutcome,
    Entry,
    LogId,
    LogState,
    LogSync,
    MendOutcome,
    SnapshotInfo,
    StorageStatistics,
    Vote,
)
from .errors import (
    CorruptionError,
    EntryTooLargeError,
    LeaderChangedError,
    LogGapError,
    LogRangeError,
    LogTruncatedError,
    RaftRuleError,
    SnapshotError,
    SnapshotOrderError,
    UnknownVersionError,
    UnsupportedPlatformError,
    WalClosedError,
    WalCopyError,
    WalError,
    WalLockedError,
    WalPoisonedError,
    WrongLoopError,
)

__all__ = [
    "AppendOutcome",
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
    "MendOutcome",
    "RaftLogReader",
    "RaftLogStorage",
    "RaftRuleError",
    "SnapshotError",
    "SnapshotInfo",
    "SnapshotOrderError",
    "StorageStatistics",
    "UnknownVersionError",
    "UnsupportedPlatformError",
    "Vote",
    "WalClosedError",
    "WalCopyError",
    "WalError",
    "WalLockedError",
    "WalPoisonedError",
    "WrongLoopError",
]

__version__ = "0.1.0"
