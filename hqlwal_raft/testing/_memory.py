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

from hqlwal_raft._answers import call_back
from hqlwal_raft._arguments import (
    check_budget,
    check_callback,
    check_index,
    check_log_id,
    check_range,
    check_vote,
    copied_state,
    index_of,
    listed,
)
from hqlwal_raft._entry_rules import plain, refusal
from hqlwal_raft._format import U64_MAX
from hqlwal_raft._types import Entry, LogId, LogState, Vote
from hqlwal_raft.errors import (
    LeaderChangedError,
    LogRangeError,
    LogTruncatedError,
    RaftRuleError,
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
    state: bytes | None = None

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

    async def try_get_log_entry(self, index: int) -> Entry | None:
        check_index("index", index)
        found = await self.try_get_log_entries(index, index + 1)
        return found[0] if found else None

    async def log_id_at(self, index: int) -> LogId | None:
        entry = await self.try_get_log_entry(index)
        return None if entry is None else entry.log_id

    def entries_stream(self, start: int, stop: int | None = None) -> AsyncGenerator[Entry, None]:
        self._check_open()
        check_range(start, stop)
        return self._stream(start, stop)

    async def _stream(self, start: int, stop: int | None) -> AsyncGenerator[Entry, None]:
        self._check_open()
        held = self._held(start, stop)
        while held:
            yield held[0]
            start = held[0].index + 1
            await anyio.lowlevel.checkpoint()
            self._check_open()
            frontier = self._disk.last_purged
            is_at_end = stop is not None and start >= stop
            if frontier is not None and frontier.index >= start and not is_at_end:
                raise LogRangeError(
                    f"index {start} was purged while the stream was about to read it: "
                    f"begin a new one at {frontier.index + 1}",
                    index=start,
                    first_index=frontier.index + 1,
                )
            held = self._held(start, stop)
        await anyio.lowlevel.checkpoint()

    def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        self._check_open()
        check_vote(vote)
        check_range(start, stop)
        return self._bounded_stream(vote, start, stop)

    async def _bounded_stream(
        self, vote: Vote, start: int, stop: int | None
    ) -> AsyncGenerator[Entry, None]:
        self._check_leader(vote)
        async with contextlib.aclosing(self._stream(start, stop)) as stream:
            async for entry in stream:
                self._check_leader(vote)
                yield entry
        self._check_leader(vote)

    def _check_leader(self, vote: Vote) -> None:
        self._check_open()
        if not vote.committed or self._disk.vote != vote:
            raise LeaderChangedError(
                f"the stream is bound to {vote}, but the saved vote is {self._disk.vote}: "
                "ask the present leader",
                vote=vote,
                saved=self._disk.vote,
            )

    async def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        self._check_open()
        low, high = index_of("first", first, 0), index_of("last", last, U64_MAX)
        lasts = {(entry.term, entry.node_id): entry.log_id for entry in self._held(low, high + 1)}
        await anyio.lowlevel.checkpoint()
        return list(lasts.values())

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

    def __init__(
        self, disk: MemoryDisk, *, max_entry_size: int = 64 << 20, check_raft: bool = True
    ) -> None:
        super().__init__(disk, [True])
        self._max_entry_size = max_entry_size
        self._check_raft = check_raft
        #: the indexes that were ever appended, since it was opened at least
        self._ever = {entry.index for entry in disk.entries}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        disk: MemoryDisk | None = None,
        *,
        max_entry_size: int = 64 << 20,
        check_raft: bool = True,
    ) -> AsyncIterator[Self]:
        """Opens the storage on ``disk``, a new one by default, and closes it on leaving.

        ``max_entry_size`` (bytes) bounds the payloads: larger ones raise EntryTooLargeError.
        ``check_raft``: as for :meth:`hqlwal_raft.RaftLogStorage.open`.
        """
        storage = cls(disk or MemoryDisk(), max_entry_size=max_entry_size, check_raft=check_raft)
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
        accepted = self._accepted(entries)
        self._disk.entries += accepted
        self._ever.update(entry.index for entry in accepted)
        if callback is not None:
            call_back(callback, None)
        await anyio.lowlevel.checkpoint()

    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries as the log keeps them; raises where it must not take all of them."""
        accepted = plain(listed(entries))
        last = self._disk.last_log_id
        term = 0 if last is None else last.term
        for number, entry in enumerate(accepted):
            expected = number + (accepted[0].index if last is None else last.index + 1)
            least_term = term if self._check_raft else None
            if (error := refusal(entry, expected, self._max_entry_size, least_term)) is not None:
                raise error
            term = entry.term
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

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        self._check_open()
        check_log_id(log_id)
        data = self._disk.state if state is None else copied_state("state", state)
        frontier = self._disk.last_purged
        if frontier is None or log_id.index > frontier.index:
            for held in self._held(log_id.index, log_id.index + 1):
                if self._check_raft and held.term != log_id.term:
                    raise self._broken("purge", log_id, held.log_id)
            self._disk.last_purged = log_id
            self._disk.entries = self._held(log_id.index + 1, None)
        self._disk.state = data
        await anyio.lowlevel.checkpoint()

    async def save_vote(self, vote: Vote) -> None:
        self._check_open()
        check_vote(vote)
        saved = self._disk.vote
        if self._check_raft and saved is not None and not _may_follow(saved, vote):
            raise self._broken("vote", vote, saved)
        self._disk.vote = vote
        await anyio.lowlevel.checkpoint()

    async def save_state(self, data: bytes) -> None:
        self._check_open()
        self._disk.state = copied_state("data", data)
        await anyio.lowlevel.checkpoint()

    async def read_state(self) -> bytes | None:
        self._check_open()
        state = self._disk.state
        await anyio.lowlevel.checkpoint()
        return state

    async def save_committed(self, log_id: LogId | None) -> None:
        self._check_open()
        check_log_id(log_id, is_none_allowed=True)
        if self._check_raft and log_id is not None and log_id != self._disk.last_purged:
            held = self._held(log_id.index, log_id.index + 1)
            if not held or held[0].log_id != log_id:
                raise self._broken("committed", log_id, held[0].log_id if held else None)
        self._disk.committed = log_id
        await anyio.lowlevel.checkpoint()

    async def read_committed(self) -> LogId | None:
        self._check_open()
        committed = self._disk.committed
        await anyio.lowlevel.checkpoint()
        return committed

    async def wait_durable(self, log_id: LogId) -> None:
        self._check_open()
        check_log_id(log_id)
        frontier, index = self._disk.last_purged, log_id.index
        held = self._held(index, index + 1)
        await anyio.lowlevel.checkpoint()
        found = held[0].log_id if held else None
        if found is None and frontier is not None and index <= frontier.index:
            if index < frontier.index or log_id.term == frontier.term:
                return
            found = frontier
        if found is None and index not in self._ever:
            raise LogRangeError(f"no entry {index} was appended: append it first", index=index)
        if found != log_id:
            raise LogTruncatedError(
                f"{log_id} is not in the log any more", log_id=log_id, found=found
            )

    @staticmethod
    def _broken(rule: str, given: object, held: object) -> RaftRuleError:
        return RaftRuleError(
            f"{given} breaks a rule of Raft's ({rule}), beside {held}: mend the caller",
            rule=rule,
            given=given,
            held=held,
        )

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
        await anyio.lowlevel.checkpoint()


def _may_follow(saved: Vote, vote: Vote) -> bool:
    if vote.term != saved.term:
        return vote.term > saved.term
    return saved.node_id in (None, vote.node_id) and vote.committed >= saved.committed
