"""Drives the log of a journal, for callers in any thread, without an event loop between them.

What is to be done is put in a queue and carried out in order, by whoever takes the turn: the
calling thread; or, where that is the main thread, which any signal may interrupt with an
exception, another that does it in its place. Knows entries and indexes, but not what pysyncobj
does with them, nor what is visible of the log.

An operation that others wait for has a number; ``done`` is the number up to which all are
durable. The calling thread reads ``done`` and ``failure`` as plain attributes; only who has
the turn writes them.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal

from .._log import Log, Work, drive
from .._reader import open_cores
from .._store import Opening, RaftLogStorage
from .._types import Entry, LogId, LogSync, StorageStatistics, Vote
from .._worker import Ticket, Worker
from ..errors import WalClosedError, WalPoisonedError
from ._dump import sync_dump
from ._entries import PlainEntry, to_batch, to_plain
from ._turn import Disk, Portal, Told, Turn

__all__ = ["Driver", "Opened"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

#: how many entries one read gives at the most
_READ_ENTRIES = 8192


@dataclass(frozen=True, slots=True)
class Opened:
    """What the storage held when it was opened."""

    head: PlainEntry | None
    tail: PlainEntry | None
    #: nothing at or below it can be appended; -1 where nothing was ever purged
    frontier: int
    vote: Vote | None
    committed: int | None


#: Open drivers, so that a process that ends without closing them still does it cleanly.
_open_drivers: set[Driver] = set()


class Driver:
    """The log, its writer and its threads. Methods may be called from any thread."""

    def __init__(
        self, path: str, opening: Opening, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.path = path
        #: the dump that replaces what is purged; synced before every purge
        self.dump_file: str | None = None
        #: the number of the operation handed over last
        self.last_number = 0
        #: every operation up to this number is durable
        self.done = 0
        #: why nothing more will become durable
        self.failure: BaseException | None = None
        self.is_closing = False
        self.storage: RaftLogStorage
        self._opening = opening
        self._is_durable_when_done = opening.policy == LogSync.IMMEDIATE
        self._on_failure = on_failure
        self._environment = opening.ground
        self._turn = Turn(self._environment)
        self._log: Log
        self._disk: Disk
        #: syncs dumps, which takes long, and purges then; at last, closes
        self._background: Worker
        #: carries out what the main thread asks for
        self._proxy: Worker
        self._queue: deque[Callable[[], None]] = deque()
        self._waiters: list[tuple[int, threading.Lock]] = []
        self._pid = self._environment.getpid()
        self._closed: Future[None] = Future()
        self._may_close = threading.Lock()  # taken by the first who wants to
        self._portal_lock = threading.Lock()
        self._portal: Portal | None = None

    # --- opening and closing --------------------------------------------------------------

    def open(self) -> Opened:
        """Opens the log and starts its threads; raises what opening raises."""
        loop = self._turn.loop
        self._log, lock = self._opening.open_log(self.path)
        try:
            opened = self._read_state()
            self._disk = Disk("hqlwal-disk", self._turn, self._environment)
            self._background = self._environment.start_worker("hqlwal-background", loop)
            self._proxy = self._environment.start_worker("hqlwal-proxy", loop)
            with self._turn.lock:
                core = self._opening.start(self.path, self._log, lock, self._disk, loop)
        except BaseException:
            drive(self._log.close())
            lock.release(remove=True)
            raise
        self._core, self._writer = core, core.writer
        self.storage = RaftLogStorage(core, self._opening.policy)
        _open_drivers.add(self)
        return opened

    @property
    def portal(self) -> BlockingPortal:
        """Starts an event loop, in a thread of its own, on which ``storage`` may be used."""
        with self._portal_lock:
            self._check_open()
            if self._portal is None:
                name = f"hqlwal {os.path.basename(self.path)}"
                self._portal = Portal(self._turn, name)
            return self._portal.portal

    def close(self) -> None:
        """Carries out what is queued, closes the log, ends its threads. Idempotent."""
        if self._environment.getpid() != self._pid:
            return  # a forked child has neither the threads nor the lock
        self.abandon()
        self._closed.result()

    def abandon(self) -> None:
        """Has the log closed without waiting for it: also right in a garbage collection."""
        if self._environment.getpid() == self._pid and self._may_close.acquire(blocking=False):
            self.is_closing = True
            self._background.submit(self._close, self._set_closed)

    def _close(self) -> None:
        self.wait(self.last_number)
        with self._portal_lock:
            if self._portal is not None:
                self._portal.close()
        try:
            self._wait_for(self._writer.close)
        except Exception:
            # A poisoned log may say so again when it is closed: it was said already.
            if self.failure is None:
                raise
        finally:
            self._core.close(f"the log in {self.path} is closed")
            open_cores.discard(self._core)

    def _set_closed(self, _result: object, error: BaseException | None) -> None:
        if self.failure is None:
            self.failure = WalClosedError(f"the log in {self.path} is closed")
        self._wake_waiters()
        self._background.stop()
        self._proxy.stop()
        _open_drivers.discard(self)
        if error is None:
            self._closed.set_result(None)
        else:
            self._closed.set_exception(error)

    def _check_open(self) -> None:
        if self.is_closing:
            raise WalClosedError(f"the log in {self.path} is closed")
        self._core.check_open()

    # --- what is asked for ----------------------------------------------------------------

    def append(self, entries: list[PlainEntry]) -> int:
        """Queues entries that follow the last queued one; the operation's number."""
        return self._put(self._append, entries)

    def truncate(self, index: int) -> int:
        """Queues the removal of ``[index, ∞)``."""
        return self._put(self._truncate, index)

    def restart_at(self, index: int, term: int) -> int:
        """Queues the removal of everything, so that ``index`` can be appended next.

        The dump file, which replaces it, is made durable first.
        """
        return self._put(self._restart, index, term)

    def save_vote(self, vote: Vote) -> int:
        return self._put(self._save_vote, vote)

    def save_committed(self, index: int) -> None:
        self._queue.append(partial(self._save_committed, index))
        self.begin()

    def purge(self, index: int) -> None:
        """Has ``[.., index]`` removed in the background, the dump file synced before."""
        self.begin()
        self._background.submit(partial(self._purge, index), _ignore)

    def _put(self, carry_out: Callable[..., None], *arguments: Any) -> int:
        self.last_number = number = self.last_number + 1
        self._queue.append(partial(carry_out, number, *arguments))
        return number

    def begin(self) -> None:
        """Has carried out what is queued; nothing is waited for but the writing of entries."""
        if self._queue and not self._core.is_closed:
            if _is_main_thread():
                self._carry_out_elsewhere()
            else:
                with self._turn.lock:
                    self._carry_out()

    def _carry_out_elsewhere(self) -> None:
        self._proxy.submit(_nothing, lambda _result, _error: self._carry_out())

    def wait(self, number: int) -> bool:
        """Waits until the operations up to ``number`` are durable; False after a failure."""
        if self.done >= number or self._core.is_closed:
            return self.done >= number
        if self._queue:
            if _is_main_thread():
                self._carry_out_elsewhere()
            else:
                self._disk.do_here(self._carry_out)
                if self.done >= number:
                    return True
        lock = threading.Lock()
        lock.acquire()
        waiter = (number, lock)
        self._waiters.append(waiter)
        # Who has the turn sets ``done`` first and looks for waiters then: either it sees this
        # waiter, or this thread sees what it set.
        if self.done >= number or self.failure is not None:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        else:
            lock.acquire()
        return self.done >= number

    def statistics(self) -> StorageStatistics:
        self._core.check_open()
        with self._turn.lock:
            return self.storage.statistics()

    def read(self, start: int, stop: int, max_bytes: int) -> list[PlainEntry]:
        """The first entries of ``[start, stop)``, at least one; waits for the disk."""
        self._check_open()
        return [(e.payload, e.index, e.term) for e in self._read(start, stop, max_bytes)]

    def _read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        reads = self._log.reads
        while True:
            with self._turn.lock:
                start, stop = self._log.clip(start, stop)
                if start >= stop:
                    return []
                pieces = reads.pieces(start, stop, _READ_ENTRIES, max_bytes)
                if pieces[0].segment.offsets is not None:
                    for piece in pieces:
                        reads.touch(piece.segment)
                    break
            reads.load(pieces[0].segment)
        return reads.read(pieces)

    def _log_id(self, index: int) -> LogId | None:
        entries = self._read(index, index + 1, 1) if index >= 0 else []
        return entries[0].log_id if entries else None

    def _read_state(self) -> Opened:
        log = self._log
        purged, state = log.last_purged_log_id, log.meta.state
        frontier = -1 if purged is None else purged.index
        head = tail = None
        if log.count:
            assert log.next_index is not None
            last = log.next_index - 1
            head = to_plain(self._read(frontier + 1, last + 1, 1)[0])
            tail = to_plain(self._read(last, last + 1, 1)[0])
        committed = log.meta.committed
        return Opened(
            head, tail, frontier, state.vote, None if committed is None else committed.index
        )

    # --- with the turn --------------------------------------------------------------------

    def _carry_out(self) -> None:
        queue = self._queue
        while queue:
            operation = queue.popleft()
            if self.failure is None:  # nothing is written after a failure
                try:
                    operation()
                except Exception as error:
                    self._fail(error)

    def _append(self, number: int, entries: list[PlainEntry]) -> None:
        writer, append = self._writer, self._log.append_plain
        if self._is_durable_when_done:
            durable = partial(self._told, number, None)
            if writer.append_now(entries, durable, append) is None:
                writer.append_soon(to_batch(entries), durable, Told(self._fail_if_refused))
        elif writer.append_now(entries, None, append) is not None:
            # The weaker policies promise less: written is all that can be waited for.
            self._finish(number)
        else:
            writer.append_soon(to_batch(entries), None, Told(partial(self._told, number)))

    def _truncate(self, number: int, index: int) -> None:
        self._run(number, partial(self._log.truncate, index))

    def _restart(self, number: int, index: int, term: int) -> None:
        self._run(number, partial(self._remove_all, index, term))

    def _save_vote(self, number: int, vote: Vote) -> None:
        self._run(number, partial(self._log.save_vote, vote))

    def _run(self, number: int, begin: Callable[[], Work[Any]]) -> None:
        self._writer.run(begin, Told(partial(self._told, number)))

    def _remove_all(self, index: int, term: int) -> Work[None]:
        if self.dump_file is not None:
            yield partial(sync_dump, self._environment, self.dump_file)
        yield from self._log.truncate(index)
        if index > 0:
            previous = yield partial(self._log_id, index - 1)
            # the files go before the next operation, lest that one be done first
            yield (yield from self._log.purge(previous or LogId(term, index - 1)))

    def _save_committed(self, index: int) -> None:
        self._writer.call(partial(self._save_committed_now, index))

    def _save_committed_now(self, index: int) -> None:
        try:
            if (committed := self._log_id(index)) is not None:
                self._log.meta.save_committed(committed)
        except Exception as error:
            self._fail(error)

    def _told(self, number: int, _result: object, error: BaseException | None) -> None:
        if error is None:
            self._finish(number)
        else:
            self._fail(error)

    def _fail_if_refused(self, _result: object, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)

    def _finish(self, number: int) -> None:
        # Operations become durable in order: the writer sees to that.
        if self.failure is None:
            self.done = number
            self._wake_waiters()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            if isinstance(error, WalPoisonedError) and error.__cause__ is not None:
                error = error.__cause__
            self.failure = error
            self._on_failure(error)
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        done, failure = self.done, self.failure
        for waiter in list(self._waiters):
            if waiter[0] <= done or failure is not None:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
                waiter[1].release()

    # --- in the background ----------------------------------------------------------------

    def _purge(self, index: int) -> None:
        if self.failure is not None:
            return
        try:
            if self.dump_file is not None:
                sync_dump(self._environment, self.dump_file)
        except OSError as error:
            # Without a durable dump nothing may go; the next compaction tries again.
            logger.warning(
                "the log in %s is not purged: %s could not be synced: %s",
                self.path,
                self.dump_file,
                error,
            )
            return
        try:
            self._wait_for(partial(self._writer.run, partial(self._purge_to, index)))
        except Exception as error:
            with self._turn.lock:
                self._fail(error)

    def _purge_to(self, index: int) -> Work[Callable[[], None]]:
        log_id = yield partial(self._log_id, index)
        return _nothing if log_id is None else (yield from self._log.purge(log_id))

    def _wait_for(self, start: Callable[[Ticket], Any]) -> None:
        """Starts something that settles a ticket, after what is queued, and waits for it."""
        settled: Future[None] = Future()

        def tell(_result: object, error: BaseException | None) -> None:
            if error is None:
                settled.set_result(None)
            else:
                settled.set_exception(error)

        with self._turn.lock:
            self._carry_out()
            start(Told(tell))
        settled.result()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _nothing() -> None:
    pass


def _ignore(_result: object, _error: BaseException | None) -> None:
    pass


@atexit.register
def _close_all() -> None:
    for driver in list(_open_drivers):
        with contextlib.suppress(Exception):
            driver.close()
