"""The same store for threads: :class:`BlockingRaftLogStorage`, with plain calls for awaits.

Any thread may call, and as many as like at once: appends that wait at the same time share one
sync. A thread that has to wait for the disk carries out the disk's work itself; for the main
thread, in which a signal's handler may raise at any instant, another thread does it (``_lane``
says how). What the store is, ``RaftLogStorage`` says; here stands only what differs.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self

from . import _mending, _operations, _truncating
from ._answers import Answer, call_back
from ._arguments import (
    check_callback,
    check_log_id,
    check_path,
    check_truth,
    check_vote,
    copied_state,
    listed,
)
from ._blocking_reader import BlockingRaftLogReader
from ._core import Core
from ._entry_rules import NotPlainError, plain
from ._environment import Empty, Environment, Queue
from ._lane import Lane
from ._options import PATIENCE_SECONDS, Opening, close_unused
from ._plans import Work
from ._reading import Reading
from ._stand_ins import Callbacks, StandIns, end_store
from ._statistics import statistics_of
from ._types import AppendOutcome, Entry, LogId, LogSync, MendOutcome, StorageStatistics, Vote
from ._waiting import begin_waiting
from .errors import WalClosedError
from .protocols import AppendCallback

__all__ = ["BlockingRaftLogReader", "BlockingRaftLogStorage"]


class BlockingRaftLogStorage(BlockingRaftLogReader):
    """A durable Raft log for threads; see :meth:`open`. As :class:`hqlwal_raft.RaftLogStorage`.

    Any thread may call any method. A signal's handler that raises while the main thread waits
    in one ends the waiting and nothing else: the call is made all the same. At the interpreter's
    end stores that are still open are closed. A forked child is refused with WalClosedError.
    """

    __slots__ = ("__weakref__", "_callbacks", "_entries_wait")

    def __init__(self, core: Core, lane: Lane, stand_ins: StandIns, *, entries_wait: bool) -> None:
        super().__init__(core, lane, stand_ins)
        self._entries_wait = entries_wait
        self._callbacks = Callbacks(core.log.directory.environment)
        end = core.committer.abandon
        abandon = partial(end_store, lane, end, end, self._callbacks, stand_ins)
        # where it is called somebody may hold the lock, even the caller
        core.abandon = partial(stand_ins.submit, partial(abandon, is_waiting=False))
        _open_stores.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: LogSync | str = Opening.sync,
        segment_size: int = Opening.segment_size,
        max_entry_size: int = Opening.max_entry_size,
        auto_heal: bool = Opening.auto_heal,
        check_integrity: bool | None = Opening.check_integrity,
        check_raft: bool = Opening.check_raft,
        max_unsynced_bytes: int = Opening.max_unsynced_bytes,
        cache_bytes: int = Opening.cache_bytes,
        fill_segments: bool = Opening.fill_segments,
        stall_seconds: float = Opening.stall_seconds,
        on_stall: Callable[[float], object] | None = Opening.on_stall,
        environment: Environment | None = Opening.environment,
    ) -> BlockingRaftLogStorage:
        """Opens the log in the directory ``path``: for ``with``, or until :meth:`close`.

        The options are those of :meth:`hqlwal_raft.RaftLogStorage.open`, which says what they
        mean, and what is raised. ``on_stall`` is called by a thread of the store's.
        """
        opening = Opening(
            sync=sync,
            segment_size=segment_size,
            max_entry_size=max_entry_size,
            auto_heal=auto_heal,
            check_integrity=check_integrity,
            check_raft=check_raft,
            max_unsynced_bytes=max_unsynced_bytes,
            cache_bytes=cache_bytes,
            fill_segments=fill_segments,
            stall_seconds=stall_seconds,
            on_stall=on_stall,
            environment=environment,
        )
        return cls.open_with(opening, path)

    @classmethod
    def open_with(cls, opening: Opening, path: str | os.PathLike[str]) -> BlockingRaftLogStorage:
        """As :meth:`open`, with options that were checked already."""
        path = check_path(path)
        environment = opening.ground
        stand_ins = StandIns(environment, path)
        interruptions: list[BaseException] = []

        def open_here() -> BlockingRaftLogStorage:
            try:
                store = cls._open_here(opening, path, stand_ins)
            except BaseException:
                stand_ins.stop()
                raise
            if interruptions:  # nobody waits for it any more
                store.close()
            return store

        if not environment.is_main_thread():
            return open_here()
        try:
            opened: BlockingRaftLogStorage = stand_ins.run(open_here)
        except BaseException as error:
            interruptions.append(error)
            raise
        return opened

    @classmethod
    def _open_here(cls, opening: Opening, path: str, stand_ins: StandIns) -> BlockingRaftLogStorage:
        watch = opening.watch(path, stand_ins.submit)
        lane = None
        try:
            lane = Lane("hqlwal-disk", opening.ground)
            log = opening.open_log(path, watch)
            try:
                core = lane.call(partial(opening.start, path, log, lane, lane.loop, watch))
            except BaseException:
                with contextlib.suppress(Exception):
                    close_unused(log)
                raise
        except BaseException:
            watch.end()
            if lane is not None:
                lane.post(lane.stop)
            raise
        entries_wait = opening.policy == LogSync.IMMEDIATE
        return cls(core, lane, stand_ins, entries_wait=entries_wait)

    # --- writing ---------------------------------------------------------------------------

    def append(
        self,
        entries: Iterable[Entry],
        callback: AppendCallback | None = None,
        *,
        wait: bool = True,
    ) -> LogId | None:
        """Appends entries with consecutive indexes, the first being the last index + 1.

        Returns the last one's log id, None where there is none: as soon as the sync policy says,
        as :meth:`hqlwal_raft.RaftLogStorage.append` has it; without ``wait``, or with a callback,
        as soon as the entries are readable (:meth:`wait_durable` waits for them). The callback is
        called exactly once, one callback after the other, by a thread of the store's; it may
        call the store.
        """
        check_callback(callback)
        check_truth("wait", wait)
        self._core.check_open()
        batch = listed(entries)
        if not batch:
            self._core.check_open()
            if callback is not None:
                call_back(callback, None)
            return None
        waits = wait and callback is None and self._entries_wait
        if callback is not None:
            callback = partial(self._callbacks.submit, callback)
        finish = self._wait if waits else None
        try:
            self._call(partial(self._append, batch, callback, waits=waits), finish)
        except NotPlainError:
            batch = plain(batch)
            self._call(partial(self._append, batch, callback, waits=waits), finish)
        last = batch[-1]
        return LogId(last[0], last[1], last[3])

    def _append(
        self, batch: list[Entry], callback: AppendCallback | None, *, waits: bool
    ) -> Answer | None:
        """As the owner. What it gives is waited for once, so it gives no more than is wanted."""
        committer = self._core.committer
        if callback is not None:
            self._callbacks.start()
        group = committer.append_now(batch, callback)
        if group is None:
            # it waits for its place in the order: from here on the batch is ours
            return committer.append_later(plain(batch), callback).answer
        return group if waits else None

    def _wait(self, group: Answer | None) -> None:
        """The second waiting of an append that had to queue: for its commit."""
        if group is not None:
            self._lane.wait(group)

    def append_after(self, prev_log_id: LogId | None, entries: Iterable[Entry]) -> AppendOutcome:
        """Raft's receiver rule, in one step, as :meth:`hqlwal_raft.RaftLogStorage.append_after`.

        After WalClosedError (closed meanwhile) the log is as after a crash: the old one, or cut
        from the first conflict on, never a mixture.
        """
        self._core.check_open()
        check_log_id(prev_log_id, is_none_allowed=True, name="prev_log_id")
        batch = plain(listed(entries))
        receive = self._core.committer.append_after
        return self._call(lambda: receive(prev_log_id, batch).answer, self._wait_after)  # type: ignore[no-any-return]

    def _wait_after(self, result: tuple[AppendOutcome, Answer | None]) -> AppendOutcome:
        outcome, group = result
        self._wait(group if self._entries_wait else None)
        return outcome

    def truncate(self, log_id: LogId) -> None:
        """Removes ``[log_id.index, ∞)``; durable on return. Past the end nothing happens."""
        self._core.check_open()
        check_log_id(log_id)
        self._run(partial(_truncating.truncate, self._core.log, log_id.index), is_quiet=True)

    def truncate_after(self, log_id: LogId | None) -> None:
        """Keeps the entries up to and including ``log_id``, None of them for None."""
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        self._run(partial(_truncating.truncate_after, self._core.log, log_id), is_quiet=True)

    def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        """Removes ``[.., log_id.index]``; durable on return, and the space is free."""
        self._core.check_open()
        check_log_id(log_id)
        data = None if state is None else copied_state("state", state)
        self._run(partial(_operations.purge, self._core.log, log_id, data), is_quiet=True)

    def save_vote(self, vote: Vote) -> None:
        """Saves the vote; durable on return, as is everything that was called before."""
        self._core.check_open()
        check_vote(vote)
        self._run(partial(_operations.save_vote, self._core.log, vote))

    def save_state(self, data: bytes) -> None:
        """Saves a small state of the node's own, at most 2048 bytes; durable on return."""
        self._core.check_open()
        own = copied_state("data", data)
        self._run(partial(_operations.save_state, self._core.log, own))

    def read_state(self) -> bytes | None:
        """The state that was saved last; None where none ever was."""
        state: bytes | None = self._call(lambda: self._core.log.meta.state.state)
        return state

    def save_committed(self, log_id: LogId | None) -> None:
        """Saves the committed log id, without a sync: a crash can bring an older one back."""
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        self._call(partial(self._core.committer.save_committed, log_id))

    def read_committed(self) -> LogId | None:
        """The committed log id saved last; after a crash possibly an older one."""
        committed: LogId | None = self._call(lambda: self._core.log.meta.committed)
        return committed

    def mend(self, entries: Iterable[Entry]) -> MendOutcome:
        """As :meth:`hqlwal_raft.RaftLogStorage.mend`."""
        self._core.check_open()
        begin = partial(_mending.mend, self._core.log, plain(listed(entries)))
        return self._call(partial(self._core.committer.run, begin, is_quiet=True))  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Everything that was accepted before is durable on return."""
        self._call(self._core.committer.flush)

    def wait_durable(self, log_id: LogId) -> None:
        """As :meth:`hqlwal_raft.RaftLogStorage.wait_durable`."""
        self._core.check_open()
        check_log_id(log_id)
        self._call(partial(begin_waiting, self._core, log_id), self._go_on_waiting)

    def _go_on_waiting(self, waiting: Reading[None] | None) -> None:
        if waiting is not None:
            self._read(waiting)

    @property
    def poison(self) -> BaseException | None:
        """Why nothing is written any more; None while all is well. Needs no lock."""
        return self._core.committer.poison

    def get_log_reader(self) -> BlockingRaftLogReader:
        """A reader, for those who only read; it lives as long as the store is open."""
        self._core.check_open()
        return BlockingRaftLogReader(self._core, self._lane, self._stand_ins)

    def statistics(self) -> StorageStatistics:
        """What the store has done since it was opened, and how it stands now."""
        found: StorageStatistics = self._call(partial(statistics_of, self._core))
        return found

    def _run(self, begin: Callable[[], Work[Any]], *, is_quiet: bool = False) -> None:
        self._call(partial(self._core.committer.run, begin, is_quiet=is_quiet))

    def answer_in_forked_child(self) -> None:
        """Answers the main thread, which waits for a thread that is not in this process."""
        self._stand_ins.answer_all(WalClosedError(self._core.why_closed, path=self._core.path))

    # --- the end ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed or abandoned, or is another process's, which forked this one."""
        return self._core.is_closed

    def close(self) -> None:
        """Makes durable what was accepted and closes the log. Idempotent.

        Calls that still wait for their place in the order get WalClosedError; those that were
        accepted get their answer. Callbacks have been called on return, unless one of them
        closes it. Raises WalPoisonedError where the last sync failed, unless an earlier one had.
        Where it is abandoned meanwhile it returns, and what was accepted may be lost.
        """
        core = self._core
        if core.is_forked:
            return  # a forked child has neither the threads nor the lock
        if not core.is_closed:
            core.close(f"{core.path} was closed")
        begin = core.committer.close
        rest = begin, self._callbacks, self._stand_ins
        if self._is_main_thread():
            begin = self._stand_ins.in_order(begin)
            with contextlib.suppress(WalClosedError):  # it is closed already, or abandoned
                self._stand_ins.run(partial(end_store, self._lane, begin, *rest, is_waiting=True))
        else:
            end_store(self._lane, begin, *rest, is_waiting=True)

    def close_at_exit(self) -> None:
        """Closes it, as long as the disk answers: the interpreter must be able to end."""
        core = self._core
        if self._stand_ins.is_stopped or core.is_forked:
            return  # it was closed, and is only kept; or it is the process's that forked this one
        closed: Queue[None] = self._core.log.directory.environment.queue()

        def close() -> None:
            try:
                self.close()
            finally:
                closed.put(None)

        self._stand_ins.submit(close)
        with contextlib.suppress(Empty):  # the lock goes with the process
            closed.get(timeout=PATIENCE_SECONDS)

    def abandon(self) -> None:
        """Answers every caller at once with WalClosedError, and lets go without waiting for a
        disk that does not answer: what is not durable may be lost, as after a kill. Idempotent.

        Any thread may call it, a callback, ``on_stall`` and a signal's handler too; it waits for
        nothing. A thread of the store's answers all others, but for those that are inside of a
        system's call, to read or to carry out the disk's work (the main thread never is), and,
        under a buffered policy, while a write hangs: they are answered when the disk answers. Then
        go the directory's lock, the threads and the descriptors. In a forked child it does nothing.
        """
        core = self._core
        if core.is_forked:
            return
        # By a thread of the store's: under a buffered policy a write may hang with the lock held,
        # and this may be called in a garbage collection, in the thread that holds it.
        core.end(core.abandon)
        self._stand_ins.answer_all(WalClosedError(core.why_closed, path=core.path))


# --- the end of the process, and forked children ------------------------------------------

_open_stores: weakref.WeakSet[BlockingRaftLogStorage] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_open_stores):
        with contextlib.suppress(Exception):
            store.close_at_exit()


def _answer_in_forked_child() -> None:
    # A handler that forked in the middle of a call: in the child nobody else will answer it.
    for store in list(_open_stores):
        store.answer_in_forked_child()


Environment().call_at_exit(_close_all)
Environment().call_in_forked_child(_answer_in_forked_child)
