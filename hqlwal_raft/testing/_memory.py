"""The reference model: a log storage in memory, as simple as the contract allows.

It must not know the engine: what it does is what the contract says, so that the two can be
held against each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Self

import anyio.lowlevel

from hqlwal_raft._arguments import (
    check_budget,
    check_callback,
    check_log_id,
    check_range,
    check_vote,
)
from hqlwal_raft._records import plain, refusal
from hqlwal_raft._types import Entry, LogId, LogState, Vote
from hqlwal_raft.errors import (
    LeaderChangedError,
    LogRangeError,
    WalClosedError,
)
from hqlwal_raft.protocols import AppendCallback, LogReader

__all__ = ["MemoryDisk", "MemoryLogReader", "MemoryLogStorage"]


@dataclasses.dataclass
class MemoryDisk:
    """What outlives a :class:`MemoryLogStorage`: open another one on it, and all is there."""

    entries: list[Entry] = dataclasses.field(default_factory=list)
    last_purged: LogId | None = None
    vote: Vote | None = None
    committed: LogId | None = None

    @property
    def last_log_id(self) -> LogId | None:
        return self.entries[-1].log_id if self.entries else self.last_purged

    def copy(self) -> MemoryDisk:
        """A disk that holds the same and is changed on its own."""
        return dataclasses.replace(self, entries=list(self.entries))


class MemoryLogReader:
    """The reading half of :class:`MemoryLogStorage`."""

    def __init__(self, disk: MemoryDisk, open_flag: list[bool]) -> None:
        self._disk = disk
        #: shared by the storage and its readers; emptied by the close
        self._open_flag = open_flag

    def _check_open(self) -> None:
        if not self._open_flag:
            raise WalClosedError("the memory storage is closed: open it again on its disk")

    def _held(self, start: int, stop: int | None) -> list[Entry]:
        """What the log holds in ``[start, stop)``."""
        entries = self._disk.entries
        if not entries:
            return []
        first = entries[0].index
        end = len(entries) if stop is None else max(stop - first, 0)
        return entries[max(start - first, 0) : end]

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """See :class:`hqlwal_raft.protocols.LogReader`, as for every method here."""
        self._check_open()
        check_range(start, stop)
        entries = self._held(start, stop)
        await anyio.lowlevel.checkpoint()
        return entries

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        self._check_open()
        check_range(start, stop)
        check_budget(max_bytes)
        entries: list[Entry] = []
        for entry in self._held(start, stop):
            max_bytes -= len(entry.payload)
            if entries and max_bytes < 0:
                break
            entries.append(entry)
        await anyio.lowlevel.checkpoint()
        return entries

    async def entries_stream(
        self, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        self._check_open()
        held = self._held(start, stop)
        while held:
            yield held[0]
            start = held[0].index + 1
            await anyio.lowlevel.checkpoint()
            self._check_open()
            held = self._held(start, stop)
            if held and held[0].index > start:
                raise LogRangeError(
                    f"index {start} was purged while the stream was about to read it: "
                    f"begin a new one at {held[0].index}"
                )

    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        check_vote(vote)
        self._check_leader(vote)
        async with contextlib.aclosing(self.entries_stream(start, stop)) as stream:
            async for entry in stream:
                self._check_leader(vote)
                yield entry
        self._check_leader(vote)

    def _check_leader(self, vote: Vote) -> None:
        self._check_open()
        if not vote.committed or self._disk.vote != vote:
            raise LeaderChangedError(
                f"the stream is bound to {vote}, but the saved vote is {self._disk.vote}: "
                "ask the present leader"
            )

    async def get_key_log_ids(self) -> list[LogId]:
        self._check_open()
        entries = self._disk.entries
        keys = [
            entry.log_id
            for before, entry in zip([None, *entries], entries, strict=False)
            if before is None or (before.term, before.node_id) != (entry.term, entry.node_id)
        ]
        if entries and keys[-1] != entries[-1].log_id:
            keys.append(entries[-1].log_id)
        await anyio.lowlevel.checkpoint()
        return keys

    async def get_log_state(self) -> LogState:
        self._check_open()
        state = LogState(self._disk.last_purged, self._disk.last_log_id)
        await anyio.lowlevel.checkpoint()
        return state

    async def read_vote(self) -> Vote | None:
        self._check_open()
        vote = self._disk.vote
        await anyio.lowlevel.checkpoint()
        return vote


class MemoryLogStorage(MemoryLogReader):
    """A log storage in memory that keeps the whole contract, durability within the process.

    Everything is "durable" at once: callbacks are called before ``append`` returns. Two that
    are opened one after the other on the same :class:`MemoryDisk` are one storage, reopened::

        disk = MemoryDisk()
        async with MemoryLogStorage.open(disk) as storage:
            await storage.append([Entry(term=1, index=1, payload=b"x = 1")])
    """

    def __init__(self, disk: MemoryDisk, *, max_entry_size: int = 64 << 20) -> None:
        super().__init__(disk, [True])
        self._max_entry_size = max_entry_size

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, disk: MemoryDisk | None = None, *, max_entry_size: int = 64 << 20
    ) -> AsyncIterator[Self]:
        """Opens the storage on ``disk``, a new one by default, and closes it on leaving.

        ``max_entry_size`` (bytes) bounds the payloads: larger ones raise EntryTooLargeError.
        """
        storage = cls(disk or MemoryDisk(), max_entry_size=max_entry_size)
        await anyio.lowlevel.checkpoint()
        try:
            yield storage
        finally:
            await storage.aclose()

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        """See :class:`hqlwal_raft.protocols.LogStorage`, as for every method here.

        Cancelled or not, the entries are in the log once the call has begun.
        """
        self._check_open()
        check_callback(callback)
        self._disk.entries += self._accepted(entries)
        if callback is not None:
            callback(None)
        await anyio.lowlevel.checkpoint()

    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries as the log keeps them; raises where it must not take all of them."""
        last = self._disk.last_log_id
        expected = None if last is None else last.index + 1
        accepted = []
        for entry in map(plain, entries):
            if expected is None:
                expected = entry.index
            if (error := refusal(entry, expected, self._max_entry_size)) is not None:
                raise error
            accepted.append(entry)
            expected = entry.index + 1
        return accepted

    async def truncate(self, log_id: LogId) -> None:
        self._check_open()
        check_log_id(log_id)
        self._truncate(log_id.index)
        await anyio.lowlevel.checkpoint()

    async def truncate_after(self, log_id: LogId | None) -> None:
        self._check_open()
        check_log_id(log_id, is_none_allowed=True)
        frontier = self._disk.last_purged
        if log_id is not None:
            self._truncate(log_id.index + 1)
        else:
            self._truncate(0 if frontier is None else frontier.index + 1)
        await anyio.lowlevel.checkpoint()

    def _truncate(self, start: int) -> None:
        frontier = self._disk.last_purged
        if frontier is not None and start <= frontier.index:
            raise LogRangeError(
                f"cannot truncate from {start}: the log is purged up to {frontier.index}"
            )
        disk = self._disk
        kept = [entry for entry in disk.entries if entry.index < start]
        if len(kept) == len(disk.entries):
            return
        cut = disk.entries[len(kept)].index
        disk.entries = kept
        if disk.committed is not None and disk.committed.index >= cut:
            disk.committed = disk.last_log_id

    async def purge(self, log_id: LogId) -> None:
        self._check_open()
        check_log_id(log_id)
        frontier = self._disk.last_purged
        if frontier is None or log_id.index > frontier.index:
            self._disk.last_purged = log_id
            self._disk.entries = self._held(log_id.index + 1, None)
        await anyio.lowlevel.checkpoint()

    async def save_vote(self, vote: Vote) -> None:
        self._check_open()
        check_vote(vote)
        self._disk.vote = vote
        await anyio.lowlevel.checkpoint()

    async def save_committed(self, log_id: LogId | None) -> None:
        self._check_open()
        check_log_id(log_id, is_none_allowed=True)
        self._disk.committed = log_id
        await anyio.lowlevel.checkpoint()

    async def read_committed(self) -> LogId | None:
        self._check_open()
        committed = self._disk.committed
        await anyio.lowlevel.checkpoint()
        return committed

    async def get_log_reader(self) -> LogReader:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        return MemoryLogReader(self._disk, self._open_flag)

    async def flush(self) -> None:
        """Everything accepted so far is durable, as it always is here."""
        self._check_open()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._open_flag.clear()
