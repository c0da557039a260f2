"""The async face of the whole: ``RaftLogStorage``, under asyncio and trio.

Turns the committer's answers into awaits. Nothing here waits for a device.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from . import _operations
from ._arguments import (
    check_callback,
    check_log_id,
    check_number,
    check_truth,
    check_vote,
    parse_truth,
)
from ._commit import Answer, Committer
from ._environment import Environment, Loop
from ._format import DATA_START, LENGTH_MASK, RECORD_OVERHEAD_BYTES, U64_MAX
from ._log import Log, Work, drive
from ._reader import RaftLogReader
from ._reading import Core, open_cores
from ._reads import Options
from ._records import NotPlainError, plain
from ._recovery import recover
from ._threads import Worker
from ._types import Entry, LogId, LogSync, StorageStatistics, Vote
from .protocols import AppendCallback

__all__ = ["Opening", "RaftLogReader", "RaftLogStorage", "statistics_of"]

_SEGMENT_SIZE_MINIMUM = 8192
_SIZE_MAXIMUM = (1 << 32) - 1
_MAX_ENTRY_SIZE_MAXIMUM = LENGTH_MASK - DATA_START - RECORD_OVERHEAD_BYTES
_CHECK_VARIABLE = "HQL_CHECK_WAL_INTEGRITY"

_REAL = Environment()


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
    max_unsynced_bytes: int = 64 << 20
    cache_bytes: int = 4 << 20
    environment: Environment | None = None

    def __post_init__(self) -> None:
        LogSync.parse(self.sync)
        check_number(
            "segment_size", self.segment_size, _SEGMENT_SIZE_MINIMUM, _SIZE_MAXIMUM, " bytes"
        )
        check_number("max_entry_size", self.max_entry_size, 0, _MAX_ENTRY_SIZE_MAXIMUM, " bytes")
        check_number("max_unsynced_bytes", self.max_unsynced_bytes, 1, U64_MAX, " bytes")
        check_number("cache_bytes", self.cache_bytes, 0, U64_MAX, " bytes")
        check_truth("auto_heal", self.auto_heal)
        if self.check_integrity is not None:
            check_truth("check_integrity", self.check_integrity)

    @property
    def policy(self) -> LogSync:
        return LogSync.parse(self.sync)

    @property
    def ground(self) -> Environment:
        """The environment, the real one where none was given."""
        return self.environment if isinstance(self.environment, Environment) else _REAL

    def open_log(self, path: str) -> Log:
        """Opens the log, and takes the directory's lock; blocks."""
        options = Options(
            self.segment_size,
            self.max_entry_size,
            self.cache_bytes,
            is_buffered=self.policy != LogSync.IMMEDIATE,
        )
        environment = self.environment or _REAL
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
        return Log(
            recovered.directory,
            options,
            recovered.meta,
            list(recovered.segments),
            list(recovered.prepared),
            recovered.last_log_id,
        )

    def start(self, path: str, log: Log, disk: Worker, loop: Loop) -> Core:
        """Starts the committer of an open log."""
        core = Core(path, log, Committer(log, self.policy, self.max_unsynced_bytes, loop, disk))
        open_cores.add(core)
        return core


class RaftLogStorage(RaftLogReader):
    """A durable Raft log; see :meth:`open`. Implements ``protocols.LogStorage``.

    Writes are applied in the order of their calls, whatever their kind. Cancelling a write
    that waits does not take it back; it only ends the waiting. Methods are to be called on the
    event loop that opened the store.

    After a failed sync or write, the calls that failed and all later writes raise
    WalPoisonedError (its cause is the OSError); reading goes on. After closing every method
    raises WalClosedError.
    """

    __slots__ = ("_entries_wait",)

    def __init__(self, core: Core, policy: LogSync) -> None:
        super().__init__(core)
        self._entries_wait = policy == LogSync.IMMEDIATE

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: LogSync | str = Opening.sync,
        segment_size: int = Opening.segment_size,
        max_entry_size: int = Opening.max_entry_size,
        auto_heal: bool = Opening.auto_heal,
        check_integrity: bool | None = Opening.check_integrity,
        max_unsynced_bytes: int = Opening.max_unsynced_bytes,
        cache_bytes: int = Opening.cache_bytes,
        environment: Environment | None = Opening.environment,
    ) -> AsyncIterator[RaftLogStorage]:
        """Opens the log in the directory ``path``, for ``async with``.

        Creates the directory (0700) where it is missing, takes its lock, recovers, starts the
        background committer. Leaving the block makes durable what was accepted and closes
        cleanly, whatever the block raised.

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
        - ``max_unsynced_bytes``: once so much is accepted but not durable, appends wait. The
          last batch may exceed it.
        - ``cache_bytes``: how much memory the newest entries may take; reads of them need
          no disk. Each full garbage collection looks at all of them (6 ms for 40,000 entries).
        - ``environment``: the operating system, clock, chance and threads, for tests
          (``hqlwal_raft.testing``).

        Raises WalLockedError, CorruptionError, UnknownVersionError, OSError; nothing on disk
        was changed then. ValueError where an option makes no sense.
        """
        opening = Opening(
            sync=sync,
            segment_size=segment_size,
            max_entry_size=max_entry_size,
            auto_heal=auto_heal,
            check_integrity=check_integrity,
            max_unsynced_bytes=max_unsynced_bytes,
            cache_bytes=cache_bytes,
            environment=environment,
        )
        path = os.path.abspath(os.fsdecode(path))  # noqa: ASYNC240 - touches no disk
        environment = environment or _REAL
        loop = environment.running_loop()
        disk = environment.start_worker("hqlwal-disk", loop)
        log = await _open_on(disk, Answer(loop.event()), loop, partial(opening.open_log, path))
        store = cls(opening.start(path, log, disk, loop), opening.policy)
        try:
            yield store
        finally:
            await _shielded(store.aclose)

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
        where ``append`` itself raises. Tasks that append at the same time share one sync.

        Raises LogGapError, EntryTooLargeError, ValueError (a number is no u64), TypeError
        (a payload is not bytes-like), or, where a new segment could not be allocated, OSError
        (``ENOSPC``): in each of these cases nothing was written and the store goes on.
        Waits while too much is accepted but not durable. Cancelled, the entries stay accepted.
        """
        core = self._core
        if core.is_closed:
            core.check_open()
        if callback is not None:
            check_callback(callback)
        batch = entries if type(entries) is list else list(entries)
        if not batch:
            if callback is not None:
                callback(None)
            return
        committer = core.committer
        try:
            group = committer.append_now(batch, callback)
        except NotPlainError:
            batch = [plain(entry) for entry in batch]
            group = committer.append_now(batch, callback)
        if group is None:
            # it waits for its place in the order: from here on the batch is ours
            waiting = committer.append_later([plain(entry) for entry in batch], callback)
            try:
                group = await waiting.answer.wait()
            except BaseException:
                waiting.is_abandoned = True
                raise
        if self._entries_wait and callback is None:
            await group.wait()
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

    async def purge(self, log_id: LogId) -> None:
        """Removes ``[.., log_id.index]``; durable on return, and the space is free.

        Beyond the end is legal, as after installing a snapshot: the log is then empty and its
        last log id is ``log_id``. Below the frontier nothing happens. The cost grows with the
        segments removed, not with the entries.
        """
        self._core.check_open()
        check_log_id(log_id)
        await self._run(partial(_operations.purge, self._core.log, log_id), is_quiet=True)

    async def save_vote(self, vote: Vote) -> None:
        """Saves the vote; durable on return, as is everything that was called before.

        Raises ValueError or TypeError where the term or the node id cannot be saved.
        """
        self._core.check_open()
        check_vote(vote)
        await self._run(partial(_operations.save_vote, self._core.log, vote))

    async def save_committed(self, log_id: LogId | None) -> None:
        """Saves the committed log id, without a sync: a crash can bring an older one back."""
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        await self._core.committer.save_committed(log_id).wait()

    async def read_committed(self) -> LogId | None:
        """The committed log id saved last; after a crash possibly an older one, never one
        beyond the last log id.
        """
        self._core.check_open()
        return self._core.log.meta.committed

    async def flush(self) -> None:
        """Everything that was accepted before is durable on return."""
        self._core.check_open()
        await self._core.committer.flush().wait()

    async def get_log_reader(self) -> RaftLogReader:
        """A reader for other tasks; it lives as long as the store is open."""
        self._core.check_open()
        return RaftLogReader(self._core, self._turns)

    async def aclose(self) -> None:
        """Makes durable what was accepted and closes the log. Idempotent.

        Calls that still wait for their turn get WalClosedError; those that were accepted get
        their answer. Cancelled, it goes on in the background. Raises WalPoisonedError where
        the last sync failed, unless an earlier one had.
        """
        core = self._core
        core.close(f"{core.path} was closed")
        await core.committer.close().wait()

    def statistics(self) -> StorageStatistics:
        """What the store has done since it was opened, and how it stands now.

        Raises WalClosedError after closing.
        """
        self._core.check_open()
        return statistics_of(self._core)

    async def _run(self, begin: Callable[[], Work[Any]], *, is_quiet: bool = False) -> None:
        await self._core.committer.run(begin, is_quiet=is_quiet).wait()


# --- helpers -----------------------------------------------------------------------------


async def _shielded(call: Callable[[], Awaitable[object]]) -> None:
    """Awaits the call, whatever is cancelled meanwhile.

    A ``with`` can be interrupted between its two first instructions: the scope would stay
    entered, and anyio would end the task with an error that hides the interrupt. Hence the two
    ways out, of which an interrupt can spoil only one.
    """
    scope = anyio.CancelScope(shield=True)
    try:
        try:
            scope.__enter__()
            await call()
        finally:
            scope.__exit__(None, None, None)
    finally:
        with contextlib.suppress(RuntimeError):  # it was left, or never entered
            scope.__exit__(None, None, None)


def statistics_of(core: Core) -> StorageStatistics:
    """What the store of a log has done, and how it stands; for the owner."""
    log, committer = core.log, core.committer
    latencies = sorted(committer.sync_seconds)
    cached_entries, cached_bytes = len(log.recent), log.recent.bytes
    return StorageStatistics(
        segments=len(log.segments),
        segment_bytes=log.segment_bytes,
        entries=log.count,
        appends=committer.appends,
        appended_entries=log.appended_entries,
        appended_bytes=log.appended_bytes,
        syncs=committer.syncs,
        entries_per_sync=log.durable_entries / committer.syncs if committer.syncs else 0.0,
        sync_last_seconds=committer.sync_seconds[-1] if latencies else 0.0,
        sync_p50_seconds=_quantile(latencies, 0.50),
        sync_p99_seconds=_quantile(latencies, 0.99),
        sync_max_seconds=committer.sync_max_seconds,
        queue_depth=committer.queue_depth,
        unsynced_bytes=log.unsynced_bytes,
        last_log_id=log.last_log_id,
        last_durable_log_id=log.last_durable_log_id,
        last_purged_log_id=log.last_purged_log_id,
        cached_entries=cached_entries,
        cached_bytes=cached_bytes,
        is_poisoned=committer.poison is not None,
    )


def _quantile(ascending: list[float], part: float) -> float:
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)] if ascending else 0.0


async def _open_on(disk: Worker, answer: Answer, loop: Loop, opening: Callable[[], Log]) -> Log:
    """Opens the log on its thread. If that fails or is cancelled, nothing stays open.

    Cancelled, it waits for the thread, so that the next try finds the lock free.
    """
    opened: list[Log] = []

    def undo() -> None:
        for log in opened:
            try:
                drive(_operations.close(log), log)
                log.directory.say_clean()
            finally:
                log.release()
                log.directory.close()

    disk.submit(lambda: opened.append(opening()), partial(answer.give, loop))
    try:
        await answer.wait()
    except BaseException:
        undone = Answer(loop.event())
        disk.submit(undo, partial(undone.give, loop))
        disk.stop()
        with contextlib.suppress(OSError):
            await _shielded(undone.wait)
        raise
    return opened[0]
