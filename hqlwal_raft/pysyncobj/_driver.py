"""Drives a RaftLogStorage on an event loop in a thread of its own, for callers in other threads.

Work is handed over as operations in a queue and carried out in order. Knows entries and
indexes, but not what pysyncobj does with them, nor what is visible of the log.

An operation that others wait for has a number; ``done`` is the number up to which all are
durable. The calling thread reads ``done`` and ``failure`` as plain attributes; only the loop's
thread writes them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc
from anyio.from_thread import BlockingPortal, start_blocking_portal

from .._store import RaftLogStorage
from .._types import LogId, LogSync, Vote
from ..errors import WalClosedError, WalPoisonedError
from ._dump import sync_dump
from ._operations import (
    Append,
    Operation,
    PlainEntry,
    Purge,
    Restart,
    SaveCommitted,
    SaveVote,
    Truncate,
    to_batch,
    to_plain,
)

__all__ = ["Driver", "Opened"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

_WATCH_SECONDS = 0.2
#: appends that wait become one write, up to about so many entries
_MERGED_ENTRIES = 4096


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
    """The storage, its loop and its thread. Methods may be called from any other thread."""

    def __init__(
        self,
        path: str,
        *,
        sync: LogSync | str,
        options: dict[str, Any],
        on_failure: Callable[[BaseException], None],
        is_in_use: Callable[[], bool],
    ) -> None:
        self.path = path
        #: the dump that replaces what is purged; synced before every purge
        self.dump_file: str | None = None
        #: every operation up to this number is durable
        self.done = 0
        #: why nothing more will become durable
        self.failure: BaseException | None = None
        self.is_closing = False
        self.storage: RaftLogStorage
        self.portal: BlockingPortal
        self._sync = LogSync.parse(sync)
        self._options = options
        self._on_failure = on_failure
        self._is_in_use = is_in_use
        #: the number of the operation handed over last
        self.last_number = 0
        self._queue: deque[Operation] = deque()
        self._is_awake = False
        self._waiters: list[tuple[int, threading.Lock]] = []
        self._purge_index = -1
        #: the pump has ended: what is purged now is all that will be
        self._is_drained = False
        self._pid = os.getpid()
        self._close_lock = threading.Lock()
        self._thread_stack = contextlib.ExitStack()
        self._loop: asyncio.AbstractEventLoop
        self._wake: asyncio.Event
        self._purge_wanted: asyncio.Event
        self._finished: Future[None]

    # --- opening and closing --------------------------------------------------------------

    def open(self) -> Opened:
        """Starts the thread and opens the storage; raises what opening raises."""
        portal = self._thread_stack.enter_context(
            start_blocking_portal("asyncio", name=f"hqlwal {os.path.basename(self.path)}")
        )
        self.portal = portal
        try:
            finished, opened = portal.start_task(self._run)
        except BaseException:
            self._thread_stack.close()
            raise
        self._finished = finished
        assert isinstance(opened, Opened)
        return opened

    def close(self) -> None:
        """Carries out what is queued, closes the storage, ends the thread. Idempotent."""
        if os.getpid() != self._pid:
            return  # a forked child has neither the thread nor the lock
        with self._close_lock:
            self.abandon()
            try:
                self._finished.result()
            finally:
                self._thread_stack.close()

    def abandon(self) -> None:
        """Has the storage closed without waiting for it: also right in a garbage collection."""
        if os.getpid() != self._pid:
            return
        self.is_closing = True
        with contextlib.suppress(RuntimeError):  # the loop is gone already
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[Opened]) -> None:
        try:
            async with RaftLogStorage.open(
                self.path, sync=self._sync, **self._options
            ) as self.storage:
                self._loop = asyncio.get_running_loop()
                self._wake = asyncio.Event()
                self._purge_wanted = asyncio.Event()
                opened = await self._read_state()
                _open_drivers.add(self)
                task_status.started(opened)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch_main_thread)
                    async with anyio.create_task_group() as purging:
                        purging.start_soon(self._purge_in_background)
                        await self._pump()
                    tasks.cancel_scope.cancel()
        except Exception:
            # A poisoned store may say so again when it is closed: it was said already.
            if self.failure is None:
                raise
        finally:
            self.is_closing = True
            if self.failure is None:
                self.failure = WalClosedError(f"the log in {self.path} is closed")
            self._wake_waiters()
            _open_drivers.discard(self)
            await self.portal.stop()

    async def _watch_main_thread(self) -> None:
        # A program may end without a word to its nodes: pysyncobj's thread then just stops.
        # Closing here, rather than when the interpreter has finished with the threads, is what
        # lets it finish: the threads that read files are joined by then.
        while threading.main_thread().is_alive():  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(_WATCH_SECONDS)
        while self._is_in_use():  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(_WATCH_SECONDS / 10)
        self.is_closing = True
        self._wake.set()

    async def _read_state(self) -> Opened:
        storage = self.storage
        state = await storage.get_log_state()
        vote = await storage.read_vote()
        committed = await storage.read_committed()
        purged = state.last_purged_log_id
        frontier = -1 if purged is None else purged.index
        head = tail = None
        first = await storage.limited_get_log_entries(frontier + 1, None, 1)
        if first:
            assert state.last_log_id is not None
            last = state.last_log_id.index
            head = to_plain(first[0])
            tail = to_plain((await storage.try_get_log_entries(last, last + 1))[0])
        return Opened(head, tail, frontier, vote, None if committed is None else committed.index)

    # --- handing work over ----------------------------------------------------------------

    def append(self, entries: list[PlainEntry]) -> int:
        """Queues entries that follow the last queued one; the operation's number."""
        return self._submit_numbered(Append, entries)

    def truncate(self, index: int) -> int:
        """Queues the removal of ``[index, ∞)``."""
        return self._submit_numbered(Truncate, index)

    def restart_at(self, index: int, term: int) -> int:
        """Queues the removal of everything, so that ``index`` can be appended next.

        The dump file, which replaces it, is made durable first.
        """
        return self._submit_numbered(Restart, index, term)

    def save_vote(self, vote: Vote) -> int:
        return self._submit_numbered(SaveVote, vote)

    def save_committed(self, index: int) -> None:
        self._submit(SaveCommitted(index))

    def purge(self, index: int) -> None:
        """Has ``[.., index]`` removed in the background, the dump file synced before."""
        self._submit(Purge(index))

    def _submit_numbered(self, kind: Callable[..., Operation], *arguments: Any) -> int:
        self.last_number = number = self.last_number + 1
        self._submit(kind(number, *arguments))
        return number

    def _submit(self, operation: Operation) -> None:
        self._queue.append(operation)
        # The pump clears the flag before it empties the queue, so nothing is left lying.
        if not self._is_awake:
            self._is_awake = True
            with contextlib.suppress(RuntimeError):  # closed: whoever waits is told
                self._loop.call_soon_threadsafe(self._wake.set)

    def wait(self, number: int) -> bool:
        """Waits until the operations up to ``number`` are durable; False after a failure."""
        if self.done >= number:
            return True
        lock = threading.Lock()
        lock.acquire()
        waiter = (number, lock)
        self._waiters.append(waiter)
        # The loop's thread sets ``done`` first and looks for waiters then: either it sees
        # this waiter, or this thread sees what it set.
        if self.done >= number or self.failure is not None:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        else:
            lock.acquire()
        return self.done >= number

    def read(self, start: int, stop: int, max_bytes: int) -> list[PlainEntry]:
        """The first entries of ``[start, stop)``, at least one; waits for the loop."""
        if self.is_closing:
            raise WalClosedError(f"the log in {self.path} is closed")
        return self.portal.call(self._read, start, stop, max_bytes)

    async def _read(self, start: int, stop: int, max_bytes: int) -> list[PlainEntry]:
        entries = await self.storage.limited_get_log_entries(start, stop, max_bytes)
        return [(payload, index, term) for term, index, payload, _ in entries]

    # --- on the loop ----------------------------------------------------------------------

    async def _pump(self) -> None:
        queue = self._queue
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._is_awake = False
            while queue:
                operation = queue.popleft()
                if self.failure is not None:
                    continue  # nothing is written after a failure
                try:
                    await self._carry_out(operation)
                except Exception as error:
                    self._fail(error)
            if self.is_closing:
                self._is_drained = True
                self._purge_wanted.set()
                return

    async def _carry_out(self, operation: Operation) -> None:
        storage = self.storage
        match operation:
            case Append(number, entries):
                batch = to_batch(entries)
                while (
                    len(batch) < _MERGED_ENTRIES
                    and self._queue
                    and isinstance(following := self._queue[0], Append)
                ):
                    self._queue.popleft()
                    number = following.number
                    batch += to_batch(following.entries)
                if self._sync == LogSync.IMMEDIATE:
                    await storage.append(batch, functools.partial(self._appended, number))
                else:
                    # The weaker policies promise less: written is all that can be waited for.
                    await storage.append(batch)
                    self._finish(number)
            case Truncate(number, index):
                await storage.truncate(LogId(0, index))
                self._finish(number)
            case Restart(number, index, term):
                if self.dump_file is not None:
                    await anyio.to_thread.run_sync(sync_dump, self.dump_file)
                state = await storage.get_log_state()
                if state.last_log_id is not None and state.last_log_id.index >= index:
                    await storage.truncate(LogId(0, index))
                purged = await self._log_id(index - 1) or LogId(term, index - 1)
                if index > 0:
                    await storage.purge(purged)
                self._finish(number)
            case SaveVote(number, vote):
                await storage.save_vote(vote)
                self._finish(number)
            case SaveCommitted(index):
                if (committed := await self._log_id(index)) is not None:
                    await storage.save_committed(committed)
            case Purge(index):
                self._purge_index = max(self._purge_index, index)
                self._purge_wanted.set()

    async def _log_id(self, index: int) -> LogId | None:
        entries = await self.storage.try_get_log_entries(index, index + 1) if index >= 0 else []
        return entries[0].log_id if entries else None

    async def _purge_in_background(self) -> None:
        while True:
            await self._purge_wanted.wait()
            self._purge_wanted.clear()
            index, self._purge_index = self._purge_index, -1
            if index >= 0 and self.failure is None:
                try:
                    if self.dump_file is not None:
                        await anyio.to_thread.run_sync(sync_dump, self.dump_file)
                except OSError as error:
                    # Without a durable dump nothing may go; the next compaction tries again.
                    logger.warning(
                        "the log in %s is not purged: %s could not be synced: %s",
                        self.path,
                        self.dump_file,
                        error,
                    )
                else:
                    try:
                        if (log_id := await self._log_id(index)) is not None:
                            await self.storage.purge(log_id)
                    except Exception as error:
                        self._fail(error)
            if self._is_drained and self._purge_index < 0:
                return

    def _appended(self, number: int, error: BaseException | None) -> None:
        if error is None:
            self._finish(number)
        else:
            self._fail(error)

    def _finish(self, number: int) -> None:
        # Operations become durable in order: what the pump waits for is durable with all that
        # was called before it, and appends share their syncs in order.
        self.done = number
        if self._waiters:
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


@atexit.register
def _close_all() -> None:
    for driver in list(_open_drivers):
        with contextlib.suppress(Exception):
            driver.close()
