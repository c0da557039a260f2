"""The background writer: order, group commit, sync policy, back-pressure, poisoning.

It owns the log. Memory is changed on the event loop only; what blocks runs on two long-lived
threads: *disk* syncs, truncates, purges and saves votes, one after the other; *housekeeping*
prepares the next segments and unlinks purged ones. While a sync runs, whatever is appended
goes into the map and waits, as one group, for the next sync.

Everything here is called on the event loop, except what is handed to a :class:`Worker`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ._environment import Environment, Loop
from ._files import Lock, SyncError
from ._log import Lacking, Log, Work
from ._types import Entry, LogId, LogSync
from ._worker import Done, Group, Ticket, Worker, poisoned, tell
from .errors import WalClosedError
from .protocols import AppendCallback

__all__ = ["Writer"]


class _Append:
    """An append that must wait for its turn, for room, or for a segment."""

    __slots__ = ("callback", "entries", "is_abandoned", "ticket")

    def __init__(
        self, ticket: Ticket, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> None:
        self.entries = entries
        self.callback = callback
        #: nobody waits any more: an error is the callback's to hear
        self.is_abandoned = False
        #: settled with the Group to wait for
        self.ticket = ticket


class _Exclusive:
    """An operation that runs alone, on a log with nothing unsynced."""

    __slots__ = ("begin", "is_closing", "ticket")

    def __init__(
        self, ticket: Ticket, begin: Callable[[], Work[Any]], *, is_closing: bool = False
    ) -> None:
        self.begin = begin
        self.is_closing = is_closing
        self.ticket = ticket


class _Call:
    """Something quick that must only keep its turn."""

    __slots__ = ("call", "ticket")

    def __init__(self, ticket: Ticket, call: Callable[[Ticket], None]) -> None:
        self.call = call
        self.ticket = ticket


class Writer:
    """See the module."""

    def __init__(
        self,
        log: Log,
        lock: Lock,
        policy: LogSync,
        max_unsynced_bytes: int,
        disk: Worker,
        loop: Loop,
        environment: Environment,
    ) -> None:
        self.log = log
        self._clock = environment.perf_counter
        self._lock = lock
        self._interval_seconds = policy.interval_seconds
        self._max_unsynced_bytes = max_unsynced_bytes
        self._disk = disk
        self._loop = loop
        self._housekeeping = environment.start_worker("hqlwal-housekeeping", loop)
        self._jobs_housekeeping = 0
        self._pending: deque[_Append | _Exclusive | _Call] = deque()
        self._group: Group | None = None
        self._syncing: Group | None = None
        self._is_sync_wanted = False
        self._is_sync_coming = False
        # whether the last sync served more than one append, and how many there were before it
        self._is_crowded = False
        self._appends_before = 0
        self._is_alarm_set = False
        self._is_exclusive = False
        self._is_preparing = False
        # not again on a full disk, until somebody needs a segment
        self._is_preparing_ahead = True
        self._closing: _Exclusive | None = None
        #: why nothing is written any more
        self.poison: BaseException | None = None
        self.is_closed = False
        self._was_poisoned = False  # before it was closed
        self.appends = 0
        self.syncs = 0
        self.sync_seconds: deque[float] = deque(maxlen=4096)
        self.sync_max_seconds = 0.0
        self._prepare_ahead()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the disk thread does."""
        syncing = self._syncing
        return (
            self._is_exclusive
            or bool(self._pending)
            or (syncing is not None and (syncing.is_awaited or bool(syncing.callbacks)))
        )

    @property
    def queue_depth(self) -> int:
        return len(self._pending)

    def _ticket(self) -> Ticket:
        return Ticket(self._loop)

    # --- what the store asks for -----------------------------------------------------------

    def append_now(
        self,
        entries: Sequence[Any],
        callback: AppendCallback | None,
        append: Callable[[Sequence[Any]], Lacking | None] | None = None,
    ) -> Group | None:
        """Appends if nothing stands in the way; else None, and it has to queue.

        ``append`` is the log's method that takes such entries, where they are not Entry.
        """
        log = self.log
        if (
            self._pending
            or self._is_exclusive
            or self.poison is not None
            or self.is_closed
            or log.appended_bytes - log.synced_bytes >= self._max_unsynced_bytes
        ):
            return None
        try:
            if (append or log.append)(entries) is not None:
                return None
        except SyncError as error:
            self._set_poison(error)
            raise poisoned(error) from error
        group = self._group
        if group is not None and callback is None and log.prepared:
            self.appends += 1  # an earlier append of the group has seen to all that follows
            return group
        return self._accepted(callback)

    async def append_later(
        self, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> Group:
        """Queues an append and waits until it is readable; raises why it was refused."""
        operation = _Append(self._ticket(), entries, callback)
        ticket = self._enqueue(operation)
        try:
            group: Group = await ticket.wait()
        except BaseException:
            operation.is_abandoned = True
            raise
        return group

    def append_soon(
        self, entries: Sequence[Entry], callback: AppendCallback | None, ticket: Ticket
    ) -> None:
        """Queues an append; the ticket is settled when it is readable, or refused."""
        self._enqueue(_Append(ticket, entries, callback))

    def run(self, begin: Callable[[], Work[Any]], ticket: Ticket | None = None) -> Ticket:
        """Queues an operation that needs the log for itself."""
        return self._enqueue(_Exclusive(ticket or self._ticket(), begin))

    def _next_group(self) -> Group:
        """Those whom the next sync to begin will serve."""
        if self._group is None:
            self._group = Group(self._loop)
        return self._group

    def flush(self) -> Ticket:
        """Settled once everything accepted before is durable."""
        return self._enqueue(_Call(self._ticket(), self._flush))

    def save_committed(self, log_id: LogId | None) -> Ticket:
        return self._enqueue(_Call(self._ticket(), partial(self._save_committed, log_id)))

    def call(self, call: Callable[[], None]) -> None:
        """Calls something quick when everything before it is in the log."""
        self._enqueue(_Call(self._ticket(), lambda _ticket: call()))

    def close(self, ticket: Ticket | None = None) -> Ticket:
        """Refuses what has not begun, makes durable what was accepted, closes the log."""
        if self._closing is None:
            refused, self._pending = self._pending, deque()
            ticket = ticket or self._ticket()
            self._closing = _Exclusive(ticket, self.log.close, is_closing=True)
            self.is_closed = True
            self._was_poisoned = self.poison is not None
            self._is_sync_wanted = True
            for operation in refused:
                self._refuse(
                    operation, WalClosedError("the store was closed before this call's turn")
                )
            self._pending.append(self._closing)
            self._advance()
        return self._closing.ticket

    # --- order -----------------------------------------------------------------------------

    def _enqueue(self, operation: _Append | _Exclusive | _Call) -> Ticket:
        if self.is_closed:
            raise WalClosedError("the store is closed")
        if self.poison is not None:
            raise poisoned(self.poison)
        self._pending.append(operation)
        self._advance()
        return operation.ticket

    def _advance(self) -> None:
        """Starts whatever may start now, in the order of the calls."""
        while self._pending and not self._is_exclusive:
            if not self._start(self._pending[0]):
                break
        self._sync_when_all_are_in()

    def _start(self, operation: _Append | _Exclusive | _Call) -> bool:
        """Takes the first operation off the queue and starts it; False where it must wait."""
        if isinstance(operation, _Append):
            return self._start_append(operation)
        if isinstance(operation, _Exclusive):
            return self._start_exclusive(operation)
        self._pending.popleft()
        operation.call(operation.ticket)
        return True

    def _start_append(self, operation: _Append) -> bool:
        log = self.log
        if log.unsynced_bytes >= self._max_unsynced_bytes:
            self._is_sync_wanted = True
            return False
        try:
            lacking = log.append(operation.entries)
        except Exception as error:
            self._pending.popleft()
            if isinstance(error, SyncError):
                self._set_poison(error)
                error = poisoned(error)
            self._refuse(operation, error)
            return True
        if lacking is not None:
            self._prepare(lacking)
            return False
        self._pending.popleft()
        operation.ticket.settle(self._accepted(operation.callback))
        return True

    def _accepted(self, callback: AppendCallback | None) -> Group:
        self.appends += 1
        group = self._group
        if group is None:
            group = self._group = Group(self._loop)
        if callback is not None:
            group.callbacks.append(callback)
        if not self.log.prepared:
            self._prepare_ahead()
        if self._is_alarm_set:
            return group
        if self._interval_seconds:
            self._is_alarm_set = True
            self._disk.set_alarm(self._interval_seconds, self._alarm)
        else:
            self._is_sync_wanted = True
            self._sync_when_all_are_in()
        return group

    def _refuse(self, operation: _Append | _Exclusive | _Call, error: BaseException) -> None:
        operation.ticket.settle(None, error)
        if isinstance(operation, _Append) and operation.is_abandoned and operation.callback:
            tell(operation.callback, error)

    def _flush(self, ticket: Ticket) -> None:
        group = self._next_group() if self.log.is_dirty else self._syncing
        if group is None:
            ticket.settle(None)
            return
        group.callbacks.append(lambda error: ticket.settle(None, error))
        self._is_sync_wanted = True

    def _save_committed(self, log_id: LogId | None, ticket: Ticket) -> None:
        self.log.meta.save_committed(log_id)
        ticket.settle(None)

    def _alarm(self) -> None:
        self._is_alarm_set = False
        self._is_sync_wanted = True
        self._advance()

    # --- syncing ---------------------------------------------------------------------------

    def _sync_when_all_are_in(self) -> None:
        """Begins the sync that is wanted: at once for one who appends alone; else when all
        tasks that are ready to run have had their turn, so that it serves them too.
        """
        if not self._is_sync_wanted or self._syncing is not None:
            return
        if not self._is_crowded:
            self._sync()
        elif not self._is_sync_coming:
            self._is_sync_coming = True
            self._loop.soon(self._sync_now)

    def _sync_now(self) -> None:
        self._is_sync_coming = False
        if self._is_sync_wanted and self._syncing is None:
            self._sync()

    def _sync(self) -> None:
        if self._is_exclusive or self.poison is not None:
            return
        self._is_sync_wanted = False
        if not self.log.is_dirty:
            return
        work = self.log.sync()
        try:
            job = next(work)
        except SyncError as error:
            self._set_poison(error)
            return
        self._syncing, self._group = self._next_group(), None
        self._is_crowded = self.appends > self._appends_before + 1
        self._appends_before = self.appends
        self._disk.submit(partial(self._timed, job), partial(self._synced, work))

    def _timed(self, job: Callable[[], Any]) -> float:
        started = self._clock()
        job()
        return self._clock() - started

    def _synced(self, work: Work[None], seconds: float, error: BaseException | None) -> None:
        group, self._syncing = self._syncing, None
        assert group is not None
        if error is not None:
            self._set_poison(error)
            group.settle(error)
            self._advance()
            return
        self.syncs += 1
        self.sync_seconds.append(seconds)
        self.sync_max_seconds = max(self.sync_max_seconds, seconds)
        with contextlib.suppress(StopIteration):
            work.send(None)
        group.settle(None)
        self._advance()

    # --- exclusive operations --------------------------------------------------------------

    def _start_exclusive(self, operation: _Exclusive) -> bool:
        if self.poison is not None:
            return self._start_closing_poisoned(operation)
        if self._syncing is not None or self._is_preparing:
            return False
        if self.log.is_dirty:
            self._is_sync_wanted = True
            return False
        if operation.is_closing and self._jobs_housekeeping:
            return False
        self._pending.popleft()
        self._is_exclusive = True
        self._continue(operation, operation.begin(), None, None)
        return True

    def _start_closing_poisoned(self, operation: _Exclusive) -> bool:
        # only closing is left; its files are closed as they are
        if self._syncing is not None or self._jobs_housekeeping:
            return False
        self._pending.popleft()
        self._is_exclusive = True
        self._disk.submit(self.log.abandon, partial(self._closed, operation))
        return True

    def _continue(
        self, operation: _Exclusive, work: Work[Any], result: Any, error: BaseException | None
    ) -> None:
        """One step of an operation: what it yields goes to the disk thread."""
        try:
            job = work.throw(error) if error is not None else work.send(result)
        except StopIteration as end:
            self._finished(operation, end.value)
        except BaseException as failure:
            self._failed(operation, failure)
        else:
            self._disk.submit(job, partial(self._continue, operation, work))

    def _failed(self, operation: _Exclusive, failure: BaseException) -> None:
        if operation.is_closing:
            self._set_poison(failure)
            self._closed(operation, None, failure)
            return
        self._is_exclusive = False
        if isinstance(failure, SyncError):
            self._set_poison(failure)
            failure = poisoned(failure)
        self._refuse(operation, failure)
        self._advance()

    def _finished(self, operation: _Exclusive, value: Any) -> None:
        if operation.is_closing:
            self._closed(operation, None, None)
            return
        self._is_exclusive = False
        if callable(value):  # what a purge leaves to be done
            self._keep_house(value, partial(self._settle_purge, operation))
        else:
            operation.ticket.settle(value)
        self._advance()

    def _settle_purge(
        self, operation: _Exclusive, _result: object, error: BaseException | None
    ) -> None:
        operation.ticket.settle(None, error)

    def _closed(self, operation: _Exclusive, _result: object, error: BaseException | None) -> None:
        is_clean = error is None and self.poison is None
        if error is None and not self._was_poisoned:
            error = self.poison  # the last sync failed: who closes is the first to be told
        failure = poisoned(error) if error is not None else None
        self._disk.submit(
            partial(self._lock.release, remove=is_clean),
            lambda _result, late: operation.ticket.settle(None, failure or late),
        )
        self._disk.stop()
        self._housekeeping.stop()

    # --- housekeeping ----------------------------------------------------------------------

    def _keep_house(self, job: Callable[[], Any], done: Done) -> None:
        self._jobs_housekeeping += 1
        self._housekeeping.submit(job, partial(self._kept_house, done))

    def _kept_house(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._jobs_housekeeping -= 1
        done(result, error)
        self._advance()

    def _prepare_ahead(self) -> None:
        if self._is_preparing_ahead and not self.log.prepared and not self.is_closed:
            self._prepare(None)

    def _prepare(self, lacking: Lacking | None) -> None:
        if self._is_preparing or self.poison is not None:
            return
        self._is_preparing = True
        work = self.log.prepare(lacking)
        self._keep_house(next(work), partial(self._prepared, work, lacking))

    def _prepared(
        self,
        work: Work[None],
        lacking: Lacking | None,
        segment: Any,
        error: BaseException | None,
    ) -> None:
        self._is_preparing = False
        self._is_preparing_ahead = error is None
        if error is None:
            with contextlib.suppress(StopIteration):
                work.send(segment)
        elif isinstance(error, SyncError):
            self._set_poison(error)
        elif lacking is not None and self._pending and isinstance(self._pending[0], _Append):
            # A full disk, say: nothing was written, and it may pass. Whoever needs the segment
            # is told, and the next who needs it makes another attempt.
            self._refuse(self._pending.popleft(), error)

    # --- failing ---------------------------------------------------------------------------

    def _set_poison(self, error: BaseException) -> None:
        """Nothing is retried after a failed sync: the kernel may have dropped the pages."""
        if self.poison is not None:
            return
        self.poison = error
        self._is_sync_wanted = False
        refused = [op for op in self._pending if op is not self._closing]
        self._pending = deque(op for op in self._pending if op is self._closing)
        for operation in refused:
            self._refuse(operation, poisoned(error))
        if self._group is not None:
            group, self._group = self._group, None
            group.settle(error)
