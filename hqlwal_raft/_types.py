"""The values of the public API, all immutable. Knows no file and no event loop."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

__all__ = [
    "AppendOutcome",
    "Entry",
    "Finding",
    "FindingKind",
    "LogId",
    "LogState",
    "LogSync",
    "MendOutcome",
    "SnapshotInfo",
    "StorageStatistics",
    "Vote",
]


@final
@dataclass(frozen=True, slots=True)
class LogId:
    """Names one entry: the leader that proposed it (term, node id) and its index; u64 each.

    Ordered as openraft orders log ids: by (term, node_id), then by index.
    """

    term: int
    index: int
    node_id: int = 0

    def _key(self) -> tuple[int, int, int]:
        return (self.term, self.node_id, self.index)

    def __lt__(self, other: object) -> bool:
        return self._key() < other._key() if isinstance(other, LogId) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._key() <= other._key() if isinstance(other, LogId) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._key() > other._key() if isinstance(other, LogId) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._key() >= other._key() if isinstance(other, LogId) else NotImplemented


class Entry(NamedTuple):
    """One entry of the log. Numbers are u64; the payload may be empty.

    Any bytes-like payload may be appended; what is read back is always ``bytes``.
    """

    # A named tuple, because reading builds millions of these: a frozen dataclass costs
    # four times as much to make.

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    payload: bytes = b""
    node_id: int = 0

    @property
    def log_id(self) -> LogId:
        return LogId(self.term, self.index, self.node_id)


@final
@dataclass(frozen=True, slots=True)
class Vote:
    """What a node promised: the term, the candidate voted for, and whether it won.

    ``node_id`` is an int (u64), a str (UTF-8, at most 1024 bytes) or None.
    """

    term: int
    node_id: int | str | None = None
    committed: bool = False


@final
@dataclass(frozen=True, slots=True)
class LogState:
    """Both ends of the log, as openraft's ``get_log_state`` gives them."""

    last_purged_log_id: LogId | None
    last_log_id: LogId | None


@final
@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """What ``append_after`` found and did: what a follower answers its leader with.

    Where ``matched``, the log holds the leader's entries up to the last one given (the previous
    log id, where none was given). Not more: entries behind it, which did not conflict, stay.
    """

    #: whether the log holds the previous log id; where it does not, nothing was changed
    matched: bool
    #: the log's last log id, as the call left it; the purge frontier where the log is empty
    last_log_id: LogId | None
    #: where not matched, where the leader should go on: the last log id that this log has at or
    #: before the previous one's index and of no later leader than that one's (the leader has no
    #: entry of a later one there); at the least the purge frontier. None: from the very start
    hint: LogId | None = None
    #: the index of the first conflict, from which on the log was truncated; None: nothing was
    truncated_from: int | None = None
    #: how many entries were new; the others, from the first on, were there already
    appended: int = 0


@final
@dataclass(frozen=True, slots=True)
class MendOutcome:
    """What ``mend`` did; indexes, ascending."""

    #: records that are healthy again, durably
    mended: tuple[int, ...] = ()
    #: damaged ones for which no copy was proven: they are as they were
    refused: tuple[int, ...] = ()


#: of milliseconds: longer ones are no policy but a mistake
_INTERVAL_MAXIMUM = 86_400_000


@final
@dataclass(frozen=True, slots=True)
class LogSync:
    """When appended entries are made durable; see the table at ``RaftLogStorage.open``.

    One of ``LogSync.IMMEDIATE``, ``LogSync.IMMEDIATE_ASYNC``, ``LogSync.interval(ms)``; as
    strings: ``"immediate"``, ``"immediate_async"``, ``"interval_200"``.
    """

    name: str
    #: seconds between two syncs; 0 where the policy is not an interval
    interval_seconds: float = 0.0

    IMMEDIATE: ClassVar[LogSync]
    IMMEDIATE_ASYNC: ClassVar[LogSync]

    def __post_init__(self) -> None:
        name = f"interval_{round(self.interval_seconds * 1000)}"
        if self.interval_seconds == 0:
            is_known = self.name in ("immediate", "immediate_async")
        else:
            is_known = self.name == name and self.interval_seconds >= 0.001
        if not is_known:
            raise ValueError(
                f"{self.name!r} is no sync policy: take LogSync.IMMEDIATE, "
                "LogSync.IMMEDIATE_ASYNC or LogSync.interval(milliseconds)"
            )

    @classmethod
    def interval(cls, milliseconds: int) -> LogSync:
        """One sync every ``milliseconds``: a whole number, from 1 to a day's."""
        if isinstance(milliseconds, bool) or not hasattr(milliseconds, "bit_length"):
            kind = type(milliseconds).__name__
            raise TypeError(
                f"the milliseconds of a sync interval are of the type {kind}: give an int"
            )
        if not 1 <= milliseconds <= _INTERVAL_MAXIMUM:
            raise ValueError(
                f"a sync interval has at least 1 ms, and at most {_INTERVAL_MAXIMUM} (a day)"
            )
        return cls(f"interval_{milliseconds}", milliseconds / 1000)

    @classmethod
    def parse(cls, value: LogSync | str) -> LogSync:
        """The policy that ``value`` names; ValueError where it names none."""
        if isinstance(value, LogSync):
            return value
        if not isinstance(value, str):
            raise TypeError(
                f"sync is of the type {type(value).__name__}: give a hqlwal_raft.LogSync, or "
                "'immediate', 'immediate_async' or 'interval_N' (N milliseconds)"
            )
        if value == "immediate":
            return cls.IMMEDIATE
        if value == "immediate_async":
            return cls.IMMEDIATE_ASYNC
        prefix, _, milliseconds = value.partition("_")
        if prefix == "interval" and milliseconds.isascii() and milliseconds.isdigit():
            # no more digits than any that is allowed has
            return cls.interval(int(milliseconds[:20]))
        raise ValueError(
            f"unknown sync policy {value[:40]!r}: give 'immediate', 'immediate_async' or "
            "'interval_N' (N milliseconds)"
        )

    def __str__(self) -> str:
        return self.name


LogSync.IMMEDIATE = LogSync("immediate")
LogSync.IMMEDIATE_ASYNC = LogSync("immediate_async")


class FindingKind(enum.Enum):
    """What a finding is; ``is_obstacle`` says whether it keeps a store from opening."""

    #: bytes past the durable mark that are no record: what a crash leaves; dropped at open
    TORN_TAIL = "torn tail"
    #: something durable is not as it was written
    DAMAGE = "damage"
    #: a directory, a link, a pipe or a device in the place of a file of the store
    IRREGULAR = "irregular file"
    #: a file of a format version that this release does not write
    UNKNOWN_VERSION = "unknown version"
    #: a backup: opening it as the node that it was made of is refused
    COPY = "copy"
    #: the log breaks a rule of Raft's, as one that was written unchecked may: it opens
    RAFT_RULE = "Raft's rules"
    #: what a crash left behind and the next open removes or completes
    LEFTOVER = "leftover"
    #: the store is in use; this was in the making, or changed while it was looked at
    IN_USE = "in use"
    #: was not checked, so nothing is said of it
    UNCHECKED = "unchecked"

    @property
    def is_obstacle(self) -> bool:
        return self in (
            FindingKind.DAMAGE,
            FindingKind.IRREGULAR,
            FindingKind.UNKNOWN_VERSION,
            FindingKind.COPY,
        )


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something noteworthy in a store's directory, as data."""

    kind: FindingKind
    path: str
    message: str
    #: where in the file it begins, in bytes
    offset: int | None = None
    #: the indexes concerned, both included, where they are known
    first_id: int | None = None
    last_id: int | None = None
    #: the version found, for UNKNOWN_VERSION
    version: int | None = None


@final
@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot in a directory of ``hqlwal_raft.snapshots``."""

    #: the last entry whose effect it holds
    log_id: LogId
    #: how many bytes were written to it; the file has some more
    size_bytes: int
    #: its file
    path: str


@final
@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """What a store has done since it was opened, and how it stands now."""

    #: segment files, prepared ones not counted
    segments: int
    #: the sum of their lengths on disk
    segment_bytes: int
    #: entries in the log now
    entries: int
    #: calls of append that were accepted, and what they brought
    appends: int
    appended_entries: int
    appended_bytes: int
    #: syncs of log data (votes, purges and truncations sync besides)
    syncs: int
    #: entries that those syncs made durable, divided by the syncs
    entries_per_sync: float
    sync_last_seconds: float
    sync_p50_seconds: float
    sync_p99_seconds: float
    sync_max_seconds: float
    #: how many syncs took less than so many seconds, and not less than the bound before; the last
    #: bound is infinite
    sync_histogram: tuple[tuple[float, int], ...]
    #: the age of the oldest disk step (a sync, say) under way; 0.0 where there is none
    under_way_seconds: float
    #: steps that took longer than ``stall_seconds``, and the longest of them so far
    stalls: int
    stall_max_seconds: float
    #: operations waiting for their turn
    queue_depth: int
    #: record bytes accepted but not yet durable
    unsynced_bytes: int
    last_log_id: LogId | None
    last_durable_log_id: LogId | None
    last_purged_log_id: LogId | None
    #: what the cache of recent entries holds
    cached_entries: int
    cached_bytes: int
    #: how often records were begun in a new segment
    rollovers: int
    #: appends that had to wait until a segment was there
    segment_waits: int
    #: what the file system had left when the store was opened, or when somebody asked for these
    #: statistics some 10 seconds ago or earlier; None where it does not say
    free_bytes: int | None
    is_poisoned: bool
