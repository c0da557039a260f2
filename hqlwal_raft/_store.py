"""The async face of the whole: ``RaftLogStorage``, under asyncio and trio.

Turns the committer's answers into awaits. Nothing here waits for a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Self

from . import _mending, _operations, _truncating
from ._answers import Answer, call_back
from ._arguments import (
    check_callback,
    check_log_id,
    check_path,
    check_vote,
    copied_state,
    listed,
)
from ._block import Block, open_log_on_loop
from ._calls import Append
from ._core import Core
from ._entry_rules import NotPlainError, plain
from ._environment import Environment, Loop
from ._options import Opening
from ._phases import Phase
from ._plans import Work
from ._reader import RaftLogReader
from ._statistics import statistics_of
from ._types import AppendOutcome, Entry, LogId, LogSync, MendOutcome, StorageStatistics, Vote
from ._waiting import begin_waiting
from .protocols import AppendCallback

__all__ = ["RaftLogReader", "RaftLogStorage"]


class RaftLogStorage(RaftLogReader):
    """A durable Raft log; see :meth:`open`. Implements ``protocols.LogStorage``.

    Writes are applied in the order of their calls, whatever their kind. Cancelling a write
    that waits does not take it back; it only ends the waiting. Methods are to be called on the
    event loop that opened the store; elsewhere they raise WrongLoopError, in a forked child
    WalClosedError, and do nothing. :meth:`abandon` alone may be called from anywhere.

    A store that is dropped without having been closed warns (ResourceWarning) and lets go of
    its lock, threads and descriptors, as after a kill.

    After a failed sync or write, the calls that failed and all later writes raise
    WalPoisonedError (its cause is what failed, mostly an OSError); reading goes on, up to what
    was durable. After closing every method raises WalClosedError.
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
        - ``"interval_N"``: when it is readable; there is a sync every N milliseconds, sooner
          where segments were filled, and up to N milliseconds can be lost (by a crash of the
          process alone: nothing).

        Votes, truncations and purges are durable on return under each of them.

        - ``segment_size``: bytes of a segment file, 8192 at least. Larger entries get a segment
          of their own. Where entries take more than an eighth of it, and it is a mebibyte at
          least, the next segments are larger: eight such entries, 64 MiB at the most.
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

        Raises WalLockedError, CorruptionError, UnknownVersionError, WalCopyError (a backup),
        OSError; nothing on disk was changed then, but by an OSError from the middle of putting in
        order what a crash left, which the next open goes on with. UnsupportedPlatformError here;
        ValueError or TypeError where an option makes no sense.
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
        checked = check_path(path)
        return Block(checked, partial(cls._enter, opening, checked))

    @classmethod
    async def _enter(cls, opening: Opening, path: str) -> Self:
        core, loop = await open_log_on_loop(opening, path)
        return cls(core, opening.policy, loop)

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
        was written and the store goes on. What waits to follow a refused append is never the first
        entry of an empty log instead: LogGapError.
        Waits while too much is accepted but not durable. Cancelled, the entries stay accepted.
        """
        core = self._core
        if core.is_closed or core.running() is not core.identity:  # type: ignore[misc]
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
            group = await self._turn_of(committer.append_later(plain(batch), callback))
        if self._entries_wait and callback is None:
            await group.wait()
            if self._interruptions:
                raise self._interruptions.popleft()
            return
        turns = self._turns
        turns.work -= 2 + len(batch)
        if turns.work < 0:
            await turns.yield_now()

    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        """Raft's receiver rule, in one step: what a follower does with a leader's entries.

        ``entries`` follow ``prev_log_id``, None meaning that they are the leader's from the very
        start. Where the log does not hold ``prev_log_id`` nothing is changed, and the outcome has
        a hint where the leader should go on. Otherwise what is there already is skipped (entries
        are compared by their log ids), the first conflict truncates, and the rest is appended; no
        other call comes in between. What was purged is committed, and so it matches. With None an
        empty log that was never purged takes any first index; other logs match where their first
        index, or one that was purged, is the first entry's. Without entries it only compares.

        Returns as ``append`` does: under ``immediate`` once all that it acknowledges is durable,
        what was there before included; a truncation is so under every policy. Where nothing
        changes, and all is durable, nothing is synced. A crash meanwhile leaves the beginning of
        the old log or of the new one, with all that both hold: never a mixture.

        Raises LogGapError (the entries do not follow ``prev_log_id``, or each other) and what
        ``append`` raises, before anything is touched; RaftRuleError where an entry conflicts with
        the purge frontier or, under ``check_raft``, with what is committed; CorruptionError where
        an entry that must be compared is damaged: in each of these cases nothing is changed.
        OSError (``ENOSPC``): the log may have been truncated, and nothing was appended. So it is
        after WalClosedError, where the store is closed or abandoned meanwhile: as after a crash.
        Cancelled, it goes on.
        """
        core = self._core
        core.check_open()
        check_log_id(prev_log_id, is_none_allowed=True, name="prev_log_id")
        batch = plain(listed(entries))
        outcome: AppendOutcome
        outcome, group = await self._turn_of(core.committer.append_after(prev_log_id, batch))
        if self._entries_wait and group is not None:
            await self._wait(group)
        else:
            await self._turns.did(1 + len(batch))
        return outcome

    async def truncate(self, log_id: LogId) -> None:
        """Removes ``[log_id.index, ∞)``; durable on return. Past the end nothing happens.

        Raises LogRangeError at or below the purge frontier.
        """
        self._core.check_open()
        check_log_id(log_id)
        await self._run(partial(_truncating.truncate, self._core.log, log_id.index), is_quiet=True)

    async def truncate_after(self, log_id: LogId | None) -> None:
        """Keeps the entries up to and including ``log_id``, None of them for None.

        Durable on return. Raises LogRangeError where ``log_id`` is below the purge frontier.
        """
        self._core.check_open()
        check_log_id(log_id, is_none_allowed=True)
        await self._run(partial(_truncating.truncate_after, self._core.log, log_id), is_quiet=True)

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        """Removes ``[.., log_id.index]``; durable on return. The files go soon afterwards.

        Beyond the end is legal, as after installing a snapshot: the log is then empty and its
        last log id is ``log_id``. At or below the frontier only ``state`` is saved. The cost grows
        with the segments removed, not with the entries. ``state`` is saved in the same step, as
        by :meth:`save_state`: a crash leaves both or neither. Raises RaftRuleError where the log
        holds another entry at that index.
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

    async def mend(self, entries: Iterable[Entry]) -> MendOutcome:
        """Gives damaged records back from a peer's copies of the entries; durable on return.

        A copy is taken only where the stored, salted checksum proves it to be the very entry (by
        CRC-32C: with 1 - 2**-32), or, where the checksum itself was damaged, every other byte.
        Nothing else is changed: healthy records, and entries that the log does not hold, are left
        alone. CorruptionError says which entries to ask a peer for. Where damage refuses the
        opening, ``hqlwal repair --from`` does the same at rest. Raises as :meth:`append` does for
        what is no entry, OSError, WalPoisonedError where a write failed.
        """
        self._core.check_open()
        begin = partial(_mending.mend, self._core.log, plain(listed(entries)))
        return await self._run(begin, is_quiet=True)  # type: ignore[no-any-return]

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

    async def _turn_of(self, append: Append) -> Any:
        """Waits for its place in the order."""
        try:
            await append.answer.event.wait()
        except BaseException:
            self._core.committer.forsake(append)
            raise
        return append.answer.result()

    async def _run(self, begin: Callable[[], Work[Any]], *, is_quiet: bool = False) -> Any:
        return await self._wait(self._core.committer.run(begin, is_quiet=is_quiet))

    async def _wait(self, answer: Answer) -> Any:
        """Waits for an answer. One that was there at once does not starve other tasks either."""
        value = await answer.wait()
        if self._interruptions:
            raise self._interruptions.popleft()
        await self._turns.did(1)
        return value
