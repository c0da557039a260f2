"""The async face of the whole: ``RaftLogStorage``, under asyncio and trio.

Turns the committer's answers into awaits. Nothing here waits for a device.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import anyio

from . import _operations, _said
from ._answers import Answer, call_back
from ._arguments import (
    check_callable,
    check_callback,
    check_log_id,
    check_number,
    check_path,
    check_seconds,
    check_truth,
    check_vote,
    copied_state,
    listed,
    parse_truth,
)
from ._commit import Committer, Phase
from ._entry_rules import NotPlainError, plain
from ._environment import Environment, Loop
from ._format import DATA_START, LENGTH_MASK, RECORD_OVERHEAD_BYTES, U64_MAX
from ._log import Log, Work, drive
from ._measures import SYNC_BOUNDS_SECONDS
from ._reader import RaftLogReader
from ._reading import Core, begin_waiting, open_cores
from ._reads import Options
from ._recovery import recover
from ._threads import Worker
from ._types import Entry, LogId, LogSync, StorageStatistics, Vote
from ._watchdog import Watch
from .errors import given
from .protocols import AppendCallback

__all__ = [
    "PATIENCE_SECONDS",
    "Opening",
    "RaftLogReader",
    "RaftLogStorage",
    "statistics_of",
]

logger = logging.getLogger("hqlwal_raft")

_SEGMENT_SIZE_MINIMUM = 8192
_SIZE_MAXIMUM = (1 << 32) - 1
_MAX_ENTRY_SIZE_MAXIMUM = LENGTH_MASK - DATA_START - RECORD_OVERHEAD_BYTES
_CHECK_VARIABLE = "HQL_CHECK_WAL_INTEGRITY"

_REAL = Environment()

#: how long who was cancelled waits for a disk: longer, and it is taken for one that never answers
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a log is opened; :meth:`RaftLogStorage.open` says what each option means.

    Raises ValueError where an option makes no sense.
    """

    sync: LogSync | str = LogSync.IMMEDIATE
    segment_size: int = 8 << 20
    max_entry_size: int = 64 << 20
    auto_heal: bool = False
    check_integrity: bool | None = None
    check_raft: bool = True
    max_unsynced_bytes: int = 64 << 20
    cache_bytes: int = 4 << 20
    fill_segments: bool = True
    stall_seconds: float = 1.0
    on_stall: Callable[[float], object] | None = None
    environment: Environment | None = None

    def __post_init__(self) -> None:
        _REAL.check_system()
        LogSync.parse(self.sync)
        check_number(
            "segment_size", self.segment_size, _SEGMENT_SIZE_MINIMUM, _SIZE_MAXIMUM, " bytes"
        )
        check_number("max_entry_size", self.max_entry_size, 0, _MAX_ENTRY_SIZE_MAXIMUM, " bytes")
        check_number("max_unsynced_bytes", self.max_unsynced_bytes, 1, U64_MAX, " bytes")
        check_number("cache_bytes", self.cache_bytes, 0, U64_MAX, " bytes")
        check_truth("auto_heal", self.auto_heal)
        check_truth("fill_segments", self.fill_segments)
        if self.check_integrity is not None:
            check_truth("check_integrity", self.check_integrity)
        check_seconds("stall_seconds", self.stall_seconds)
        check_callable("on_stall", self.on_stall)
        check_truth("check_raft", self.check_raft)
        if self.environment is not None and not isinstance(self.environment, Environment):
            raise TypeError(
                f"environment is {given(self.environment)}: give a hqlwal_raft.testing environment"
            )

    @property
    def policy(self) -> LogSync:
        return LogSync.parse(self.sync)

    @property
    def ground(self) -> Environment:
        """The environment, the real one where none was given."""
        return self.environment or _REAL

    def watch(self, path: str, report: Callable[[Callable[[], Any]], Any]) -> Watch:
        """Begins to look for stalls; ``report`` has a callable called where users' code runs."""
        on_stall = self.on_stall

        def stalled(seconds: float) -> None:
            if on_stall is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    report(partial(_call_on_stall, on_stall, seconds))

        environment = self.ground
        watch = Watch(path, self.stall_seconds, environment.monotonic, stalled)
        environment.look_after(watch)
        return watch

    def open_log(self, path: str, watch: Watch | None = None) -> Log:
        """Opens the log, and takes the directory's lock; blocks."""
        if watch is None:
            return self._open_log(path)
        watch.lane = watch.now("open")
        try:
            return self._open_log(path)
        finally:
            watch.lane = None

    def _open_log(self, path: str) -> Log:
        options = Options(
            self.segment_size,
            self.max_entry_size,
            self.cache_bytes,
            is_buffered=self.policy != LogSync.IMMEDIATE,
            checks_raft=self.check_raft,
            fills_ahead=self.fill_segments,
        )
        environment = self.ground
        is_checking = self.check_integrity
        if is_checking is None:
            text = environment.getenv(_CHECK_VARIABLE)
            is_checking = text is not None and parse_truth(_CHECK_VARIABLE, text)
        recovered = recover(
            environment,
            path,
            is_healing=self.auto_heal,
            is_checking_everything=is_checking,
        )
        try:
            log = Log(
                recovered.directory,
                options,
                recovered.meta,
                list(recovered.segments),
                list(recovered.prepared),
                recovered.last_log_id,
            )
            _said.opened(
                path,
                recovered.directory.lock.before,
                recovered.findings,
                entries=log.count,
                segments=len(log.segments),
                last_log_id=log.last_log_id,
            )
        except BaseException:
            recovered.directory.close()
            raise
        return log

    def start(self, path: str, log: Log, disk: Worker, loop: Loop, watch: Watch) -> Core:
        """Starts the committer of an open log."""
        committer = Committer(log, self.policy, self.max_unsynced_bytes, loop, disk, watch)
        core = Core(path, log, committer, loop)
        open_cores.add(core)
        return core


class RaftLogStorage(RaftLogReader):
    """A durable Raft log; see :meth:`open`. Implements ``protocols.LogStorage``.

    Writes are applied in the order of their calls, whatever their kind. Cancelling a write
    that waits does not take it back; it only ends the waiting. Methods are to be called on the
    event loop that opened the store; elsewhere they raise WrongLoopError, in a forked child
    WalClosedError, and do nothing. :meth:`abandon` alone may be called from anywhere.

    A store that is dropped without having been closed warns (ResourceWarning) and lets go of
    its lock, threads and descriptors, as after a kill.

    After a failed sync or write, the calls that failed and all later writes raise
    WalPoisonedError (its cause is the OSError); reading goes on. After closing every method
    raises WalClosedError.
    """

    __slots__ = ("_entries_wait", "_interruptions")

    def __init__(self, core: Core, policy: LogSync, loop: Loop) -> None:
        super().__init__(core)
        self._entries_wait = policy == LogSync.IMMEDIATE
        self._interruptions = loop.interruptions

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
    ) -> AbstractAsyncContextManager[RaftLogStorage]:
        """Opens the log in the directory ``path``, for ``async with``.

        Creates the directory (0700) where it is missing, takes its lock, recovers, starts the
        background committer. Leaving the block makes durable what was accepted and closes
        cleanly, whatever the block raised. Cancelled while it opens, it leaves nothing open, so
        that the next try finds the lock free; cancelled in the block, it closes all the same.
        Only where the disk does not answer for five seconds does the cancellation end the
        waiting, and the lock goes when the disk answers.

        ``sync`` says when an append returns, and so what a crash of the machine can cost:

        - ``"immediate"``: when it is durable; nothing that was acknowledged.
        - ``"immediate_async"``: when it is readable and its write-out is under way; what the
          last syncs had not finished.
        - ``"interval_N"``: when it is readable; there is a sync every N milliseconds, and up
          to N milliseconds can be lost (by a crash of the process alone: nothing).

        Votes, truncations and purges are durable on return under each of them.

        - ``segment_size``: bytes of a segment file, 8192 at least. Larger entries get a segment
          of their own.
        - ``max_entry_size``: the largest payload accepted, in bytes.
        - ``auto_heal``: where durable entries are damaged, keep the damaged file as
          ``.broken`` and cut the log back to the last healthy entry, instead of raising
          CorruptionError. Only right where the cluster sends the lost entries again.
        - ``check_integrity``: verify every record; when None, do so if the environment has
          ``HQL_CHECK_WAL_INTEGRITY=true``.
        - ``check_raft``: hold the caller to Raft's own rules. The terms of entries never fall; a
          vote never goes back (to a lower term, to another node in the same term, or behind its
          *committed*); a committed log id is in the log, or is the purge frontier; a purge up to
          an entry that the log holds names its term. Otherwise RaftRuleError, and nothing is
          written. For a log that is not kept by Raft, or by one with other rules, say False.
        - ``max_unsynced_bytes``: once so much is accepted but not durable, appends wait. The
          last batch may exceed it.
        - ``cache_bytes``: how much memory the newest entries may take; reads of them need
          no disk. Each full garbage collection looks at all of them (6 ms for 40,000 entries).
        - ``fill_segments``: fill segments with zeros ahead where there are many syncs (under
          ``immediate``, on ext4 and XFS): a batch is durable in two thirds of the time, and
          everything is written twice. False for a disk that must not write more than it has to.
        - ``stall_seconds``: a sync, or any other step of the disk, that takes longer is a stall:
          the log says so (logger ``hqlwal_raft``, WARNING) when it is one, again at 2, 4, 8 …
          times that, and when it ends; ``statistics()`` shows its age. Noticed after 0.2 s at the
          earliest.
        - ``on_stall``: called with the age of a stall, in seconds, each time that the log says
          it lasts: on the event loop, where it must not wait. What it raises is logged.
        - ``environment``: the operating system, clock, chance and threads, for tests
          (``hqlwal_raft.testing``).

        Raises WalLockedError, CorruptionError, UnknownVersionError, OSError; nothing on disk
        was changed then. ValueError or TypeError where an option makes no sense.
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
        return _Block(cls, opening, check_path(path))

    # --- writing ---------------------------------------------------------------------------

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        """Appends entries with consecutive indexes, the first being the last index + 1.

        An empty log that was never purged takes any first index, 0 included; one that was
        purged to its end goes on behind the frontier. A batch is one write.

        Without a callback it returns as the sync policy says. With one, it returns as soon as
        the entries are readable by every reader, and ``callback(error_or_None)`` is called
        exactly once, on the event loop, when they are durable or with the error; not, though,
        where ``append`` itself raises. What it raises is logged; a KeyboardInterrupt or SystemExit
        ends the run: asyncio's loop raises it, under trio the next write, or the close, does.
        Tasks that append at the same time share one sync.

        Raises LogGapError, EntryTooLargeError, RaftRuleError (a term falls), ValueError (a number
        is no u64), TypeError (a payload is not bytes-like), what the iterable raises, or, where a
        new segment could not be allocated, OSError (``ENOSPC``): in each of these cases nothing
        was written and the store goes on.
        Waits while too much is accepted but not durable. Cancelled, the entries stay accepted.
        """
        core = self._core
        core.check_open()
        if callback is not None:
            check_callback(callback)
        batch = entries if type(entries) is list else listed(entries)
        if not batch:
            if callback is not None:
                call_back(callback, None)
            await self._turns.did(1)
            return
        committer = core.committer
        try:
            group = committer.append_now(batch, callback)
        except NotPlainError:
            batch = plain(batch)
            group = committer.append_now(batch, callback)
        if group is None:
            # it waits for its place in the order: from here on the batch is ours
            waiting = committer.append_later(plain(batch), callback)
            try:
                await waiting.answer.event.wait()
            except BaseException:
                committer.forsake(waiting)
                raise
            group = waiting.answer.result()
        if self._entries_wait and callback is None:
            await group.wait()
            if self._interruptions:
                raise self._interruptions.popleft()
            return
        turns = self._turns
        turns.work -= 2 + len(batch)
        if turns.work < 0:
            await turns.yield_now()

    async def truncate(self, log_id: LogId) -> None:
        """Removes ``[log_id.index, ∞)``; durable on return. Past the end nothing happens.

        Raises LogRangeError at or below the purge frontier.
        """
        self._core.check_open()
        check_log_id(log_id)
        await self._run(partial(_operations.truncate, self._core.log, log_id.index), is_quiet=True)

    async def truncate_after(self, log_id: LogId | None) -> None:
        """Keeps the entries up to and including ``log_id``, None of them for None.

        Durable on return. Raises LogRangeError where ``log_id`` is below the purge frontier.
        """
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        if log_id is not None:
            await self._run(
                partial(_operations.truncate, self._core.log, log_id.index + 1), is_quiet=True
            )
        else:
            await self._run(partial(_operations.truncate_all, self._core.log), is_quiet=True)

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        """Removes ``[.., log_id.index]``; durable on return, and the space is free.

        Beyond the end is legal, as after installing a snapshot: the log is then empty and its
        last log id is ``log_id``. Below the frontier nothing happens. The cost grows with the
        segments removed, not with the entries. ``state`` is saved in the same step, as by
        :meth:`save_state`: a crash leaves both or neither. Raises RaftRuleError where the log holds another
        entry at that index.
        """
        self._core.check_open()
        check_log_id(log_id)
        data = None if state is None else copied_state("state", state)
        await self._run(partial(_operations.purge, self._core.log, log_id, data), is_quiet=True)

    async def save_vote(self, vote: Vote) -> None:
        """Saves the vote; durable on return, as is everything that was called before.

        Raises RaftRuleError where it goes back behind the saved one; ValueError or TypeError
        where the term or the node id cannot be saved.
        """
        self._core.check_open()
        check_vote(vote)
        await self._run(partial(_operations.save_vote, self._core.log, vote))

    async def save_state(self, data: bytes) -> None:
        """Saves a small state of the node's own, at most 2048 bytes, beside the vote: a cluster's
        configuration, say, or how far it was applied. Durable on return, as safe as the vote.
        """
        self._core.check_open()
        own = copied_state("data", data)
        await self._run(partial(_operations.save_state, self._core.log, own))

    async def read_state(self) -> bytes | None:
        """The state that was saved last; None where none ever was."""
        self._core.check_open()
        state = self._core.log.meta.state.state
        await self._turns.did(1)
        return state

    async def save_committed(self, log_id: LogId | None) -> None:
        """Saves the committed log id, without a sync: a crash can bring an older one back.

        Raises RaftRuleError where it is neither in the log nor the purge frontier.
        """
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        await self._wait(self._core.committer.save_committed(log_id))

    async def read_committed(self) -> LogId | None:
        """The committed log id saved last; after a crash possibly an older one, never one
        beyond the last log id.
        """
        self._core.check_open()
        committed = self._core.log.meta.committed
        await self._turns.did(1)
        return committed

    async def wait_durable(self, log_id: LogId) -> None:
        """Returns once that very entry is durable; asks for no sync of its own.

        Raises LogTruncatedError where the log held it, or another with its index, and does not
        any more; LogRangeError where no entry with its index was appended since the log was
        opened; and as :meth:`append` would.
        """
        self._core.check_open()
        check_log_id(log_id)
        waiting = begin_waiting(self._core, log_id)
        if isinstance(waiting, Answer):
            await self._wait(waiting)
        elif waiting is not None:
            await self._drive(waiting)
        else:
            await self._turns.did(1)

    async def flush(self) -> None:
        """Everything that was accepted before is durable on return."""
        self._core.check_open()
        await self._wait(self._core.committer.flush())

    async def get_log_reader(self) -> RaftLogReader:
        """A reader for other tasks; it lives as long as the store is open."""
        self._core.check_open()
        await self._turns.did(1)
        return RaftLogReader(self._core, self._turns)

    async def aclose(self) -> None:
        """Makes durable what was accepted and closes the log. Idempotent.

        Calls that still wait for their turn get WalClosedError; those that were accepted get
        their answer. Cancelled, it goes on in the background. Raises WalPoisonedError where
        the last sync failed, unless an earlier one had. In a forked child it does nothing.
        """
        core = self._core
        if core.is_forked or (core.committer.phase is Phase.CLOSED and not core.is_here):
            return
        if not core.is_closed:
            core.check_open()
            core.close(f"{core.path} was closed")
        elif not core.is_here:
            raise core.wrong_loop()
        await self._wait(core.committer.close())

    def abandon(self) -> None:
        """Answers every caller at once with WalClosedError, and lets go without waiting for a
        disk that does not answer: what is not durable may be lost, as after a kill. Idempotent.

        The directory's lock, the threads and the descriptors go when the disk answers, at once
        where it is idle. A plain call, that may be made in any thread, on another event loop,
        and after the own one has ended; callers are answered when their loop runs. In a forked
        child it does nothing.
        """
        core = self._core
        core.end(core.committer.abandon if core.is_here else core.committer.drop)

    def statistics(self) -> StorageStatistics:
        """What the store has done since it was opened, and how it stands now.

        Raises WalClosedError after closing.
        """
        self._core.check_open()
        return statistics_of(self._core)

    async def _run(self, begin: Callable[[], Work[Any]], *, is_quiet: bool = False) -> None:
        await self._wait(self._core.committer.run(begin, is_quiet=is_quiet))

    async def _wait(self, answer: Answer) -> None:
        """Waits for an answer. One that was there at once does not starve other tasks either."""
        await answer.wait()
        if self._interruptions:
            raise self._interruptions.popleft()
        await self._turns.did(1)


# --- helpers -----------------------------------------------------------------------------


def statistics_of(core: Core) -> StorageStatistics:
    """What the store of a log has done, and how it stands; for the owner."""
    log, committer = core.log, core.committer
    committer.look_for_space()
    measures = committer.measures
    latencies = sorted(measures.sync_seconds)
    cached_entries, cached_bytes = len(log.recent), log.recent.bytes
    return StorageStatistics(
        segments=len(log.segments),
        segment_bytes=log.segment_bytes,
        entries=log.count,
        appends=measures.appends,
        appended_entries=log.appended_entries,
        appended_bytes=log.appended_bytes,
        syncs=measures.syncs,
        entries_per_sync=log.durable_entries / measures.syncs if measures.syncs else 0.0,
        sync_last_seconds=measures.sync_seconds[-1] if latencies else 0.0,
        sync_p50_seconds=_quantile(latencies, 0.50),
        sync_p99_seconds=_quantile(latencies, 0.99),
        sync_max_seconds=measures.sync_max_seconds,
        sync_histogram=tuple(zip(SYNC_BOUNDS_SECONDS, measures.sync_counts, strict=True)),
        under_way_seconds=committer.watch.oldest_seconds,
        stalls=committer.watch.stalls,
        stall_max_seconds=committer.watch.longest_seconds,
        queue_depth=committer.queue_depth,
        unsynced_bytes=log.unsynced_bytes,
        last_log_id=log.last_log_id,
        last_durable_log_id=log.last_durable_log_id,
        last_purged_log_id=log.last_purged_log_id,
        cached_entries=cached_entries,
        cached_bytes=cached_bytes,
        rollovers=log.rollovers,
        segment_waits=measures.segment_waits,
        free_bytes=log.directory.free_bytes_seen,
        is_poisoned=committer.poison is not None,
    )


def _call_on_stall(on_stall: Callable[[float], object], seconds: float) -> None:
    try:
        on_stall(seconds)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        logger.exception("on_stall raised")


def _quantile(ascending: list[float], part: float) -> float:
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)] if ascending else 0.0


class _Block(AbstractAsyncContextManager[RaftLogStorage]):
    """``async with`` a store. No generator: an event loop closes one that is dropped, and so a
    store that nobody holds would be closed in silence.
    """

    def __init__(self, kind: type[RaftLogStorage], opening: Opening, path: str) -> None:
        self._kind = kind
        self._opening = opening
        self._path = path
        self._store: RaftLogStorage | None = None

    async def __aenter__(self) -> RaftLogStorage:
        if self._store is not None:
            raise RuntimeError(f"{self._path} is open in this block: call open() once more")
        environment = self._opening.environment or _REAL
        loop = environment.running_loop()
        watch = self._opening.watch(self._path, loop.post)
        try:
            disk = environment.start_worker("hqlwal-disk", loop)
        except BaseException:
            watch.end()
            raise
        core = await _open_on(disk, loop, self._opening, self._path, watch)
        self._store = self._kind(core, self._opening.policy, loop)
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        try:
            if not await _patiently(store.aclose):
                await store.aclose()  # the disk does not answer: who is cancelled waits no longer
        except GeneratorExit:  # nobody runs this any more
            store.abandon()
            raise


async def _open_on(disk: Worker, loop: Loop, opening: Opening, path: str, watch: Watch) -> Core:
    """Opens the log on its thread. If that fails or is cancelled, nothing stays open.

    Cancelled, it waits for the thread, so that the next try finds the lock free.
    """
    opened: list[Log] = []

    def undo() -> None:
        try:
            for log in opened:
                _undo_opening(log)
        finally:
            watch.end()

    answer = Answer(loop.event())
    disk.submit(lambda: opened.append(opening.open_log(path, watch)), partial(answer.give, loop))
    try:
        await answer.wait()
        return opening.start(path, opened[0], disk, loop, watch)
    except BaseException:
        undone = Answer(loop.event())
        disk.submit(undo, partial(undone.give, loop))
        disk.stop()
        with contextlib.suppress(OSError):
            await _patiently(undone.wait)
        raise


async def _patiently(wait: Callable[[], Awaitable[object]]) -> bool:
    """Waits through cancellations, which are raised afterwards; False: the patience was over.

    A ``with`` can be interrupted between its two first instructions: the scope would stay
    entered, and anyio would end the task with an error that hides the interrupt. Hence the two
    ways out of it, of which an interrupt can spoil only one.
    """
    scope = anyio.move_on_after(PATIENCE_SECONDS, shield=True)
    cancellations: list[BaseException] = []
    is_over = True
    try:
        try:
            scope.__enter__()
            await _wait_through(wait, scope, cancellations)
            is_over = False
        except BaseException as error:
            if not scope.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            scope.__exit__(None, None, None)
    finally:
        with contextlib.suppress(RuntimeError):  # it was left, or never entered
            scope.__exit__(None, None, None)
    if cancellations:
        raise cancellations.pop()
    return not is_over


async def _wait_through(
    wait: Callable[[], Awaitable[object]],
    scope: anyio.CancelScope,
    cancellations: list[BaseException],
) -> None:
    """Waits, though the task itself is cancelled: a task's own ``cancel()`` goes through shields."""
    while True:
        try:
            await wait()
        except anyio.get_cancelled_exc_class() as error:
            if scope.cancel_called:
                raise
            cancellations[:] = [error]
        else:
            return


def _undo_opening(log: Log) -> None:
    """Closes a log that nobody has used yet; blocks."""
    try:
        drive(_operations.close(log), log)
        log.directory.say_clean()
    finally:
        log.release()
        log.directory.close()
