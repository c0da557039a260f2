"""The reading half of the blocking face: ``BlockingRaftLogReader``, and how its calls are made.

For every thread; see ``_lane`` for who is the owner, and ``_reading`` for how a log is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

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
from ._lane import Lane
from ._reading import (
    Reading,
    check_overtaken,
    find_leaders,
    read,
    read_now,
    read_some,
)
from ._stand_ins import StandIns
from ._types import Entry, LogId, LogState, Vote

__all__ = ["BlockingRaftLogReader"]


class BlockingRaftLogReader:
    """The reading half of a store; may be used by any thread, as long as the store is open.

    As :class:`hqlwal_raft.RaftLogReader`.
    """

    __slots__ = ("_core", "_is_main_thread", "_lane", "_stand_ins")

    def __init__(self, core: Core, lane: Lane, stand_ins: StandIns) -> None:
        self._core = core
        self._lane = lane
        self._stand_ins = stand_ins
        self._is_main_thread = core.log.directory.environment.is_main_thread

    def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """Every entry that the log holds in ``[start, stop)``; to its end where stop is None."""
        check_range(start, stop)
        found: list[Entry] = self._call(partial(self._read_now, start, stop), self._read)
        return found

    def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        """The first entries of ``[start, stop)``, with ``max_bytes`` of payload at the most."""
        check_range(start, stop)
        check_budget(max_bytes)
        reading = read(self._core, start, stop, max_bytes)
        found: list[Entry] = self._call(lambda: reading, self._read)
        return found

    def try_get_log_entry(self, index: int) -> Entry | None:
        """The entry; None where the log does not hold it."""
        check_index("index", index)
        found = self.try_get_log_entries(index, index + 1)
        return found[0] if found else None

    def log_id_at(self, index: int) -> LogId | None:
        """The entry's log id; None where the log does not hold it."""
        entry = self.try_get_log_entry(index)
        return None if entry is None else entry.log_id

    def entries_stream(self, start: int, stop: int | None = None) -> Generator[Entry]:
        """The entries of ``[start, stop)`` one by one, in bounded memory."""
        self._core.check_open()
        check_range(start, stop)
        return self._stream(start, stop)

    def _stream(self, start: int, stop: int | None) -> Generator[Entry]:
        core, log = self._core, self._core.log
        position: int | None = None  # the entry to come, once one was given
        while True:
            # Plain attributes, read without the lock: each alone is true for the moment. This
            # one first: what is removed once the chunk was read must be noticed.
            epoch = log.epoch
            some = partial(read_some, core, start if position is None else position, stop)
            chunk: list[Entry] = self._call(some, self._read)
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

    def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> Generator[Entry]:
        """``entries_stream`` for as long as the saved vote equals ``vote``, a committed one."""
        self._core.check_open()
        check_vote(vote)
        check_range(start, stop)
        return self._bounded_stream(vote, start, stop)

    def _bounded_stream(self, vote: Vote, start: int, stop: int | None) -> Generator[Entry]:
        core = self._core
        core.check_leader(vote)
        for entry in self._stream(start, stop):
            core.check_leader(vote)
            yield entry
        core.check_leader(vote)

    def follow(self, start: int, *, durable: bool = True) -> Generator[list[Entry]]:
        """Batches of entries from ``start`` on, without an end. A thread that waits for the next
        one waits until there is one, or the store is closed.
        """
        self._core.check_open()
        check_index("start", start)
        check_truth("durable", durable)
        return self._follow(Follower(self._core, start, is_durable=durable))

    def _follow(self, follower: Follower) -> Generator[list[Entry]]:
        while True:
            yield self._call(follower.next_batch, self._read)

    def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        """The last log id of each leader in the range, one for each, ascending."""
        low, high = index_of("first", first, 0), index_of("last", last, U64_MAX)
        reading = find_leaders(self._core, low, high)
        found: list[LogId] = self._call(lambda: reading, self._read)
        return found

    def get_log_state(self) -> LogState:
        """Both ends of the log; the last is the purge frontier where the log is empty."""
        state: LogState = self._call(lambda: self._core.log.state)
        return state

    def read_vote(self) -> Vote | None:
        """The vote that was saved last."""
        vote: Vote | None = self._call(lambda: self._core.log.meta.state.vote)
        return vote

    # --- how calls are made ----------------------------------------------------------------

    def _call(self, begin: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> Any:
        """Calls ``begin`` as the owner, waits if it gives an Answer, and calls ``finish`` with
        what came of it.
        """
        core = self._core
        if core.is_closed:
            # Before any lock: in a forked child another thread may have held it for ever.
            core.check_open()
        if self._is_main_thread():
            return self._stand_ins.call(self._lane, begin, finish)
        result = self._lane.call(begin)
        return result if finish is None else finish(result)

    def _read_now(self, start: int, stop: int | None) -> list[Entry] | Reading[list[Entry]]:
        entries = read_now(self._core.log, start, stop)
        return entries if entries is not None else read(self._core, start, stop, None)

    def _read(self, reading: list[Entry] | Reading[Any]) -> Any:
        """Runs a read: its jobs in this thread, the rest of it as the owner, step by step."""
        if isinstance(reading, list):
            return reading
        lane, step = self._lane, partial(next, reading)
        try:
            while True:
                (request,) = lane.call(partial(_in_tuple, step))
                try:
                    result = None
                    if isinstance(request, Answer):
                        lane.wait(request)
                    elif not isinstance(request, int):
                        result = self._core.committer.watch.timed(request, "read")
                except Exception as error:
                    step = partial(reading.throw, error)
                else:
                    step = partial(reading.send, result)
        except StopIteration as end:
            return end.value
        finally:
            reading.close()


def _in_tuple(step: Callable[[], Any]) -> tuple[Any]:
    return (step(),)  # which is no Answer, and so is not waited for
