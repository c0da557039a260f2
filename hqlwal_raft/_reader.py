"""The reading half of the async face: ``RaftLogReader``, under asyncio and trio.

Reads what is in memory at once and has the rest read by a thread: the event loop never waits
for the disk. How a log is read, ``_reading`` knows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import anyio.lowlevel

from ._answers import Answer
from ._arguments import (
    check_budget,
    check_index,
    check_range,
    check_truth,
    check_vote,
    index_of,
)
from ._core import Core
from ._following import Follower
from ._format import U64_MAX
from ._reading import (
    Reading,
    check_overtaken,
    find_leaders,
    read,
    read_now,
    read_some,
)
from ._types import Entry, LogId, LogState, Vote

__all__ = ["RaftLogReader"]

T = TypeVar("T")

# How much work, about a microsecond each, is done without waiting before other tasks, and the
# threads that need the interpreter too, get their turn.
_WORK_PER_TURN = 400
_NAP_SECONDS = 20e-6
_BEYOND = U64_MAX + 1


class Turns:
    """Lets others run: shared by all readers of a store."""

    __slots__ = ("_core", "checkpoint", "work")

    def __init__(self, core: Core) -> None:
        self._core = core
        self.checkpoint = core.loop.checkpoint or anyio.lowlevel.checkpoint
        #: what may still be done in this turn
        self.work = _WORK_PER_TURN

    async def did(self, work: int) -> None:
        """Called where nothing was waited for: a busy task must not starve the others."""
        self.work -= work
        if self.work < 0:
            await self.yield_now()

    async def yield_now(self) -> None:
        self.work = _WORK_PER_TURN
        core = self._core
        if core.committer.is_awaited:
            # The disk thread needs the interpreter to hear of its sync. A loop that is never
            # idle hands it over only every 5 ms (sys.getswitchinterval), unless it naps.
            core.log.directory.environment.sleep(_NAP_SECONDS)
        await self.checkpoint()


class RaftLogReader:
    """The reading half of a store; may be used by any task, as long as the store is open.

    It never shows stale data: after a truncation or a purge returned, every read sees its
    effect. Reads are atomic with respect to the other calls, except the streams, which read
    chunk by chunk. Cancelling a read has no effect but to end it. After the store was closed
    every method raises WalClosedError.
    """

    __slots__ = ("_core", "_turns")

    def __init__(self, core: Core, turns: Turns | None = None) -> None:
        self._core = core
        self._turns = turns or Turns(core)

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """Every entry that the log holds in ``[start, stop)``; to its end where stop is None.

        What is purged or not there yet is missing at the ends of the list. Sees an append as
        soon as that append is readable. Raises CorruptionError where a checksum is wrong,
        never gives a shortened list; OSError where the disk fails.
        """
        core, turns = self._core, self._turns
        log = core.log
        if core.is_closed or core.running() is not core.identity:  # type: ignore[misc]
            core.check_open()
        entries: list[Entry] | None = None
        if type(start) is not int or type(stop) is not int or not 0 <= start <= stop <= _BEYOND:
            check_range(start, stop)
        elif log.recent.newest is not None and start >= log.first_index:
            entries = log.recent.read(start, stop)  # none of them comes behind the log's end
        if entries is not None:
            turns.work -= 1
        else:
            entries = read_now(log, start, stop)
            if entries is None:
                return await self._drive(read(core, start, stop, None))
            turns.work -= 4 + len(entries)
        if turns.work < 0:
            await turns.yield_now()
        return entries

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        """The first entries of ``[start, stop)``, with ``max_bytes`` of payload at the most.

        At least one, however large, if there is any. Raises as ``try_get_log_entries`` does.
        """
        self._core.check_open()
        check_range(start, stop)
        check_budget(max_bytes)
        return await self._drive(read(self._core, start, stop, max_bytes))

    async def try_get_log_entry(self, index: int) -> Entry | None:
        """The entry; None where the log does not hold it."""
        check_index("index", index)
        found = await self.try_get_log_entries(index, index + 1)
        return found[0] if found else None

    async def log_id_at(self, index: int) -> LogId | None:
        """The entry's log id; None where the log does not hold it, the purge frontier included."""
        entry = await self.try_get_log_entry(index)
        return None if entry is None else entry.log_id

    def entries_stream(self, start: int, stop: int | None = None) -> AsyncGenerator[Entry]:
        """The entries of ``[start, stop)`` one by one, in bounded memory.

        With ``stop=None`` it ends at the last entry that there is when it gets there. Raises
        LogRangeError if a purge overtakes it, and as ``try_get_log_entries`` does.
        """
        self._core.check_open()
        check_range(start, stop)
        return self._stream(start, stop)

    async def _stream(self, start: int, stop: int | None) -> AsyncGenerator[Entry]:
        core, log = self._core, self._core.log
        position: int | None = None  # the entry to come, once one was given
        while True:
            core.check_open()
            chunk = await self._drive(
                read_some(core, start if position is None else position, stop)
            )
            epoch = log.epoch
            if position is not None:
                check_overtaken(position, log.first_index, stop)
            for entry in chunk:
                position = entry[1] + 1
                yield entry
                # anything may have happened while the one who reads was busy
                if log.epoch != epoch:
                    break
                if core.is_closed:
                    core.check_open()
                if log.first_index > position:
                    check_overtaken(position, log.first_index, stop)
            if not chunk:
                return
            del chunk, entry  # before the next one is made
            await self._turns.checkpoint()

    def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry]:
        """``entries_stream`` for as long as the saved vote equals ``vote``, a committed one.

        Raises LeaderChangedError as soon as it does not, and where ``vote`` is not committed.
        """
        self._core.check_open()
        check_vote(vote)
        check_range(start, stop)
        return self._bounded_stream(vote, start, stop)

    async def _bounded_stream(
        self, vote: Vote, start: int, stop: int | None
    ) -> AsyncGenerator[Entry]:
        core = self._core
        core.check_leader(vote)
        async with aclosing(self._stream(start, stop)) as entries:
            async for entry in entries:
                core.check_leader(vote)
                yield entry
        core.check_leader(vote)

    def follow(self, start: int, *, durable: bool = True) -> AsyncGenerator[list[Entry]]:
        """Batches of entries from ``start`` on, without an end: what there is, then what comes.

        It is woken by the commits. With ``durable=False`` it gives entries as soon as they are
        readable; a crash, or a full disk, can take those back. No batch is empty; one holds 256
        entries and 256 KiB of payload at the most, or one entry.

        Raises LogRangeError where a purge overtakes it, LogTruncatedError where what it gave is
        truncated, and WalClosedError or WalPoisonedError where no more will come.
        """
        self._core.check_open()
        check_index("start", start)
        check_truth("durable", durable)
        return self._follow(Follower(self._core, start, is_durable=durable))

    async def _follow(self, follower: Follower) -> AsyncGenerator[list[Entry]]:
        while True:
            yield await self._drive(follower.next_batch())

    async def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        """The last log id of each leader (term and node id) whose entries the log holds, one for
        each, ascending: what a follower needs to step back by a leader at a time.

        ``first`` and ``last``, log ids or indexes, both included, say among which entries; None:
        from the first, to the last one. The last log id in the range is always there.
        """
        self._core.check_open()
        low, high = index_of("first", first, 0), index_of("last", last, U64_MAX)
        return await self._drive(find_leaders(self._core, low, high))

    async def get_log_state(self) -> LogState:
        """Both ends of the log; the last is the purge frontier where the log is empty.

        Never reads the disk.
        """
        self._core.check_open()
        state = self._core.log.state
        await self._turns.did(1)
        return state

    async def read_vote(self) -> Vote | None:
        """The vote that was saved last."""
        self._core.check_open()
        vote = self._core.log.meta.state.vote
        await self._turns.did(1)
        return vote

    async def _drive(self, reading: Reading[T]) -> T:
        """Runs a read: its jobs in a thread, the rest here."""
        turns = self._turns
        run_in_thread = self._core.log.directory.environment.run_in_thread
        watch = self._core.committer.watch
        try:
            request = next(reading)
            while True:
                try:
                    result = None
                    if isinstance(request, int):
                        await turns.did(request)
                    elif isinstance(request, Answer):
                        await request.wait()
                    else:
                        # One that is abandoned does no harm: the files it reads stay open.
                        result = await run_in_thread(partial(watch.timed, request, "read"))
                except Exception as error:
                    request = reading.throw(error)
                else:
                    request = reading.send(result)
        except StopIteration as end:
            value: T = end.value
        finally:
            reading.close()
        await turns.did(1)  # however little there was to read
        return value
