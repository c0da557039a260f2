"""The reading half of the reference model, and the disk that outlives it.

As simple as the contract allows. It must not know the engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator

import anyio
import anyio.lowlevel

from hqlwal_raft._arguments import (
    check_budget,
    check_index,
    check_range,
    check_truth,
    check_vote,
    index_of,
)
from hqlwal_raft._format import U64_MAX
from hqlwal_raft._types import Entry, LogId, LogState, Vote
from hqlwal_raft.errors import LeaderChangedError, LogRangeError, LogTruncatedError, WalClosedError

__all__ = ["MemoryDisk", "MemoryLife", "MemoryLogReader"]

#: of a batch for those who follow
_BATCH_BYTES = 256 << 10


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


class MemoryLife:
    """What a :class:`MemoryLogStorage` and its readers share while it is open."""

    def __init__(self) -> None:
        self.is_open = True
        self._changed = anyio.Event()

    def change(self) -> None:
        """Wakes those who follow the log."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class MemoryLogReader:
    """The reading half of :class:`MemoryLogStorage`."""

    def __init__(self, disk: MemoryDisk, life: MemoryLife) -> None:
        self._disk = disk
        self._life = life

    def _check_open(self) -> None:
        if not self._life.is_open:
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
        entries = self._few(start, stop, max_bytes)
        await anyio.lowlevel.checkpoint()
        return entries

    def _few(self, start: int, stop: int | None, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        for entry in self._held(start, stop):
            max_bytes -= len(entry.payload)
            if entries and max_bytes < 0:
                break
            entries.append(entry)
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

    def follow(self, start: int, *, durable: bool = True) -> AsyncGenerator[list[Entry], None]:
        self._check_open()
        check_index("start", start)
        check_truth("durable", durable)
        return self._follow(start)

    async def _follow(self, start: int) -> AsyncGenerator[list[Entry], None]:
        given: LogId | None = None
        while True:
            self._check_open()
            frontier = self._disk.last_purged
            if frontier is not None and frontier.index >= start:
                raise LogRangeError(
                    f"entry {start} was purged before it was given: begin behind the snapshot",
                    index=start,
                    first_index=frontier.index + 1,
                )
            if given is not None and (frontier is None or given.index > frontier.index):
                held = self._held(given.index, given.index + 1)
                found = held[0].log_id if held else None
                if found != given:
                    raise LogTruncatedError(
                        f"{given} was given and truncated then", log_id=given, found=found
                    )
            if batch := self._few(start, None, _BATCH_BYTES):
                given = batch[-1].log_id
                start = given.index + 1
                await anyio.lowlevel.checkpoint()
                yield batch
            else:
                await self._life.wait()

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
