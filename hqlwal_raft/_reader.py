"""The reading half of the async face: ``RaftLogReader``, under asyncio and trio.

Reads what is in memory at once and has the rest read by a thread: the event loop never waits
for the disk.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio.lowlevel

from ._environment import Environment
from ._format import RECORD_OVERHEAD_BYTES
from ._log import Log
from ._types import Entry, LogId, LogState, Vote
from ._writer import Writer
from .errors import LeaderChangedError, LogRangeError, WalClosedError

__all__ = ["Core", "RaftLogReader", "open_cores"]

# How much one step of a long read takes before others get their turn.
_CHUNK_ENTRIES = 1024
_CHUNK_BYTES = 256 << 10
# How much work, about a microsecond each, is done without waiting before other tasks, and the
# threads that need the interpreter too, get their turn.
_WORK_PER_TURN = 128
_NAP_SECONDS = 20e-6


class Core:
    """What a store and its readers share."""

    __slots__ = (
        "__weakref__",
        "environment",
        "is_closed",
        "log",
        "path",
        "why_closed",
        "work",
        "writer",
    )

    def __init__(self, path: str, log: Log, writer: Writer, environment: Environment) -> None:
        self.environment = environment
        self.path = path
        self.log = log
        self.writer = writer
        self.is_closed = False
        self.why_closed = ""
        #: what may still be done in this turn
        self.work = _WORK_PER_TURN

    def check_open(self) -> None:
        if self.is_closed:
            raise WalClosedError(self.why_closed)

    def close(self, why: str) -> None:
        self.is_closed = True
        self.why_closed = why

    async def did(self, work: int) -> None:
        """Called where nothing was waited for: a busy task must not starve the others."""
        self.work -= work
        if self.work < 0:
            await self.take_turn()

    async def take_turn(self) -> None:
        self.work = _WORK_PER_TURN
        if self.writer.is_awaited:
            # The disk thread needs the interpreter to hear of its sync. A loop that is never
            # idle hands it over only every 5 ms (sys.getswitchinterval), unless it naps.
            self.environment.sleep(_NAP_SECONDS)
        await anyio.lowlevel.checkpoint()

    async def in_thread(self, job: Callable[[], Any]) -> Any:
        # A read that is abandoned does no harm: its file stays open until it is done.
        return await self.environment.run_in_thread(job)


open_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    # The child shares the maps but has neither the threads nor the lock.
    for core in list(open_cores):
        core.close(f"{core.path} is open in the parent process: a forked child cannot use it")


Environment().call_in_forked_child(_close_in_forked_child)


class RaftLogReader:
    """The reading half of a store; may be used by any task, as long as the store is open.

    It never shows stale data: after a truncation or a purge returned, every read sees its
    effect. Reads are atomic with respect to the other calls, except the streams, which read
    chunk by chunk. Cancelling a read has no effect but to end it. After the store was closed
    every method raises WalClosedError.
    """

    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        self._core = core

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """Every entry that the log holds in ``[start, stop)``; to its end where stop is None.

        What is purged or not there yet is missing at the ends of the list. Sees an append as
        soon as that append is readable. Raises CorruptionError where a checksum is wrong,
        never gives a shortened list; OSError where the disk fails.
        """
        core, log = self._core, self._core.log
        if core.is_closed:
            core.check_open()
        first, end = log.clip(start, stop)
        if first >= end:
            await core.did(1)
            return []
        entries = log.reads.read_recent(first, end)
        if entries is not None:
            await core.did(1)
            return entries
        entries = log.reads.read_loaded(first, end, _CHUNK_ENTRIES, _CHUNK_BYTES)
        if entries is not None:
            core.work -= 4 + end - first
            if core.work < 0:
                await core.take_turn()
            return entries
        return await self._read(start, stop, None)

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        """The first entries of ``[start, stop)``, with ``max_bytes`` of payload at the most.

        At least one, however large, if there is any. Raises as ``try_get_log_entries`` does.
        """
        self._core.check_open()
        return await self._read(start, stop, max_bytes)

    async def entries_stream(self, start: int, stop: int | None = None) -> AsyncGenerator[Entry]:
        """The entries of ``[start, stop)`` one by one, in bounded memory.

        With ``stop=None`` it ends at the last entry that there is when it gets there. Raises
        LogRangeError if a purge overtakes it, and as ``try_get_log_entries`` does.
        """
        core, log = self._core, self._core.log
        position: int | None = None  # the entry to come, once one was given
        while True:
            chunk = await self.limited_get_log_entries(
                start if position is None else position, stop, _CHUNK_BYTES
            )
            epoch = log.epoch
            if chunk and position is not None and chunk[0].index != position:
                raise _overtaken(position, chunk[0].index)
            for entry in chunk:
                position = entry[1] + 1
                yield entry
                # anything may have happened while the one who reads was busy
                if log.epoch != epoch:
                    break
                if core.is_closed:
                    core.check_open()
                if log.first_index > position:
                    raise _overtaken(position, log.first_index)
            if not chunk:
                return
            await anyio.lowlevel.checkpoint()

    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry]:
        """``entries_stream`` for as long as the saved vote equals ``vote``, a committed one.

        Raises LeaderChangedError as soon as it does not, and where ``vote`` is not committed.
        """
        self._check_leader(vote)
        async with aclosing(self.entries_stream(start, stop)) as entries:
            async for entry in entries:
                self._check_leader(vote)
                yield entry
        self._check_leader(vote)

    def _check_leader(self, vote: Vote) -> None:
        saved = self._core.log.meta.state.vote
        if saved != vote or not vote.committed:
            raise LeaderChangedError(f"the read was bound to {vote}, the saved vote is {saved}")

    async def get_key_log_ids(self) -> list[LogId]:
        """The first entry's log id, the first of each leader's, and the last; no repeats.

        The entries of one leader are contiguous in Raft, so it reads a number of them that
        grows with the leaders and only with the logarithm of the log.
        """
        core = self._core
        while True:
            core.check_open()
            log = core.log
            epoch, first, end = log.epoch, log.first_index, log.next_index
            if end is None or first >= end:
                await core.did(1)
                return []
            ids = await self._find_leaders(first, end - 1)
            if ids is not None and log.epoch == epoch and log.first_index == first:
                return ids

    async def _find_leaders(self, first: int, last: int) -> list[LogId] | None:
        """As ``get_key_log_ids``; None where the log changed meanwhile."""

        async def at(index: int) -> LogId | None:
            entries = await self.try_get_log_entries(index, index + 1)
            return entries[0].log_id if entries else None

        current, final = await at(first), await at(last)
        if current is None or final is None:
            return None
        ids = [current]
        while (current.term, current.node_id) != (final.term, final.node_id):
            # the first entry after `low` that the leader of `low` did not propose
            low, high = current.index, last
            while high - low > 1:
                middle = await at((low + high) // 2)
                if middle is None:
                    return None
                if (middle.term, middle.node_id) == (current.term, current.node_id):
                    low = middle.index
                else:
                    high = middle.index
            found = await at(high)
            if found is None:
                return None
            current = found
            ids.append(current)
        if ids[-1] != final:
            ids.append(final)
        return ids

    async def get_log_state(self) -> LogState:
        """Both ends of the log; the last is the purge frontier where the log is empty.

        Never reads the disk.
        """
        self._core.check_open()
        return self._core.log.state

    async def read_vote(self) -> Vote | None:
        """The vote that was saved last."""
        self._core.check_open()
        return self._core.log.meta.state.vote

    # --- how it is read --------------------------------------------------------------------

    async def _read(self, start: int, stop: int | None, max_bytes: int | None) -> list[Entry]:
        """Reads in chunks, and begins anew where a truncation or a purge came in between."""
        core, log = self._core, self._core.log
        while True:
            epoch = log.epoch
            first, end = log.clip(start, stop)
            result: list[Entry] = []
            budget = max_bytes
            while first < end:
                try:
                    chunk = await self._read_chunk(first, end, budget)
                except Exception:
                    core.check_open()
                    if log.epoch == epoch and log.first_index <= first:
                        raise
                    break  # what was being read is gone: that is no damage
                if log.epoch != epoch:
                    break
                is_enough = False
                if budget is not None:
                    count, budget = _fitting(chunk, budget, is_first=not result)
                    is_enough = count < len(chunk)
                    del chunk[count:]
                result += chunk
                first += len(chunk)
                if is_enough:
                    return result
            else:
                if log.epoch == epoch:
                    return result

    async def _read_chunk(self, first: int, end: int, max_bytes: int | None) -> list[Entry]:
        """The first few of the entries ``[first, end)``, at least one."""
        core, log = self._core, self._core.log
        end = min(end, first + _CHUNK_ENTRIES)
        recent = log.reads.read_recent(first, end)
        if recent is not None:
            await core.did(1)
            return recent
        limit = _CHUNK_BYTES
        if max_bytes is not None:
            limit = min(limit, max_bytes + _CHUNK_ENTRIES * RECORD_OVERHEAD_BYTES)
        while True:
            pieces = log.reads.pieces(first, end, _CHUNK_ENTRIES, limit)
            segment = pieces[0].segment
            if segment.offsets is not None:
                break
            await core.in_thread(partial(log.reads.load, segment))
            core.check_open()
            if not log.clip(first, end)[0] == first < log.clip(first, end)[1]:
                raise LogRangeError(f"entry {first} was removed while it was read")
        for piece in pieces:
            log.reads.touch(piece.segment)
        entries = log.reads.read_cached(pieces) if pieces[0].size_is_modest(_CHUNK_BYTES) else None
        if entries is None:
            entries = await core.in_thread(partial(log.reads.read, pieces))
            core.check_open()
        else:
            await core.did(4 + len(entries))
        return entries


def _fitting(entries: list[Entry], budget: int, *, is_first: bool) -> tuple[int, int]:
    """How many of the entries fit into the budget of payload bytes, and what then remains."""
    for position, entry in enumerate(entries):
        size = len(entry.payload)
        if size > budget and not (is_first and position == 0):
            return position, budget
        budget -= size  # below 0 when the first alone was too much: not even an empty one fits
    return len(entries), budget


def _overtaken(position: int, first: int) -> LogRangeError:
    return LogRangeError(
        f"entries {position} to {first - 1} were purged while they were about to be streamed"
    )
