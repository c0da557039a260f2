"""WalJournal: pysyncobj's Journal on a WAL directory. What must be durable before which call
returns.

For the thread that ticks the node; ``len``, the ends and ``statistics`` for any. It must not know
how a node sends its answers; ``_node`` holds them back and asks here.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, overload

from pysyncobj.journal import Journal

from .._environment import Queue
from .._options import Opening
from .._types import LogSync, StorageStatistics
from ..blocking import BlockingRaftLogReader
from ..errors import WalClosedError, WalError, WalPoisonedError
from . import _repairs
from ._answers import Answer, HeldAnswers
from ._beside import AwaitedReader
from ._dump import DumpFile, check_dump, wait_for_orphaned_dump
from ._entries import PlainEntry
from ._health import Health, call_user
from ._opening import Opened, open_store
from ._owner import Owner
from ._saved import SavedState
from ._visible import VisibleLog
from ._writing import LogWriter

__all__ = ["WalJournal"]


class WalJournal(Journal):
    """A ``pysyncobj.journal.Journal`` that keeps its entries in the WAL directory ``path``.

    Used bare, ``add`` returns when the entry is durable. Attached to a node, which is what
    ``WalSyncObj`` and ``install`` do, ``add`` only queues, and the node's answers wait.

    ``setCurrentTerm`` is durable on return, always. ``deleteEntriesFrom`` and ``clear`` hide:
    they become real with the next ``add`` of a different entry or, used bare, at ``_destroy``.
    ``deleteEntriesTo`` takes effect at once; the space is freed in the background, after the
    dump file was synced.

    - ``dump_file``: the dump that replaces what compaction deletes; a node's own, when attached.
    - ``sync``: when an entry counts as durable, as ``RaftLogStorage.open`` has it.
    - ``allow_no_dump``: accept a node that has a journal but no dump file.
    - ``cache_bytes``: how much of the newest entries is kept in memory, in bytes.
    - ``on_failure``: called once, with the journal, after the log failed; in the node's thread.
    - ``on_step_down``: called with the journal each time a leader gave up its post because its disk
      had not answered for ``step_down_seconds`` (None: never); while the node's thread waits.
    - all other options go to ``RaftLogStorage.open``.

    Raises what ``RaftLogStorage.open`` raises, and StockJournalError where ``path`` is a file of
    pysyncobj's own journal. After a failure (of a write, or damage that a read met) every method
    but ``len`` raises WalPoisonedError; after ``_destroy`` the ends of the log can still be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dump_file: str | None = None,
        sync: LogSync | str = LogSync.IMMEDIATE,
        allow_no_dump: bool = False,
        cache_bytes: int = 32 << 20,
        max_entry_size: int = 1 << 30,
        on_failure: Callable[[WalJournal], object] | None = None,
        on_step_down: Callable[[WalJournal], object] | None = None,
        step_down_seconds: float | None = 10.0,
        **store_options: Any,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.allow_no_dump = allow_no_dump
        self.on_failure = on_failure
        self.on_step_down = on_step_down
        self.step_down_seconds = step_down_seconds
        self.health = Health(self.path)
        # The storage is only asked for what is not in memory here. Raft's rules are pysyncobj's
        # to keep: it goes on where they are broken, so a log of its may hold anything, and an
        # error in the midst of its tick would cost the cluster a node.
        options = {"cache_bytes": 0, "check_raft": False} | store_options
        self._opening = Opening(sync=sync, max_entry_size=max_entry_size, **options)
        self.environment = self._opening.ground
        self.owner = Owner()
        #: whether the node has drawn the consequences of a failure
        self.has_stepped_out = False
        #: when its application was last told of it
        self.reminded_at = 0.0
        #: ends the watch for stalls, once there is one
        self.stalls: Queue[None] | None = None
        self._is_resting = False
        opened = self._open()
        last = opened.frontier if opened.tail is None else opened.tail[1]
        self._writer = LogWriter(
            opened.store,
            self.environment,
            self.health,
            cache_bytes,
            last + 1,
            is_durable_when_done=self._opening.policy == LogSync.IMMEDIATE,
        )
        self._log = VisibleLog(opened, self._writer, self.health, opened.background, max_entry_size)
        self._answers = HeldAnswers(self.environment, last)
        self._saved = SavedState(opened, self._writer, self._log.first, self._log.last)
        self._set_dump_file(dump_file)
        self.health.call_on_failure(self._tell_of_failure)

    def _open(self) -> Opened:
        opened = open_store(self, self._opening)
        self._store, self._background = opened.store, opened.background
        self._pid = self.environment.getpid()
        # at the interpreter's end the store closes itself
        self._finalizer = weakref.finalize(self, opened.background.close_later)
        self._finalizer.atexit = False
        return opened

    def rest(self) -> None:
        """Closes the log until :meth:`wake`: the process may fork."""
        self._writer.hand_over()
        self._finalizer.detach()
        self._background.close()
        self._is_resting = True

    def wake(self) -> None:
        """Opens the log again if it rests. Raises what opening raises, WalLockedError say."""
        if not self._is_resting:
            if self.environment.getpid() != self._pid:
                raise WalClosedError(
                    f"the log in {self.path} was opened before this process was forked: make the "
                    "node after forking, or before with autoTick=False and tick it after",
                    path=self.path,
                )
            return
        dump = self.dump
        opened = self._open()
        self._is_resting = False
        self._background.dump = dump
        if dump is not None:
            dump.belong_to_this_process()
        self._writer.store, self._log.background = opened.store, opened.background
        if opened.tail != self._log.stored_tail or not self._saved.is_of(opened):
            self.health.fail(
                WalError(f"another process changed {self.path} before the first tick of this node")
            )
            self._raise_if_failed()

    @property
    def dump(self) -> DumpFile | None:
        return self._background.dump

    def _set_dump_file(self, path: str | None) -> None:
        if self.dump is not None:
            self.dump.let_go()
        self._background.dump = None if path is None else DumpFile(self.environment, path)
        if self.dump is not None:
            self.dump.take_over()
            wait_for_orphaned_dump(self.environment, self.dump.path)

    # --- the storage, for others ----------------------------------------------------------

    @property
    def failure(self) -> BaseException | None:
        """Why the node takes part in its cluster no more; None while all is well."""
        return self.health.failure

    @property
    def is_closed(self) -> bool:
        return self.health.is_closed

    def statistics(self) -> StorageStatistics:
        """What the log has done since it was opened; from any thread. Raises WalClosedError."""
        return self._store.statistics()

    def get_log_reader(self) -> BlockingRaftLogReader:
        """Reads the log beside the node, from any thread. Raises WalClosedError."""
        return self._store.get_log_reader()

    def get_async_log_reader(self) -> AwaitedReader:
        """The same for tasks: each call is made in a thread."""
        return AwaitedReader(self._store.get_log_reader(), self.environment)

    # --- attaching ------------------------------------------------------------------------

    def attach(self, node: Any) -> None:
        """From here on ``add`` only queues, because the node's answers are held back.

        For ``_node``. Raises ValueError where the node has no dump file and must have one, and
        WalError where the dump is missing or empty that holds what the log does not.
        """
        check_dump(node.conf, allow_no_dump=self.allow_no_dump)
        self.owner.become(node)
        self._log.is_attached = True
        self._log.is_starting = self.owner.is_starting
        self._log.on_visible_again = self.owner.apply_membership_again
        self._log.allow_short_way()
        self._writer.on_waited = self.owner.note_wait
        self._set_dump_file(node.conf.fullDumpFile)
        if self.misses_its_dump:
            raise self._background.missing_dump(self._log.frontier)

    @property
    def misses_its_dump(self) -> bool:
        """Whether the dump file is missing or empty that holds what the log does not."""
        if self.dump is None or not _repairs.lacks_its_dump(0, self._log.frontier):
            return False
        return self.dump.is_missing()

    def check_dump_was_loaded(self, applied: int) -> None:
        """Fails a log that does not go on from ``applied``, with which its node begins."""
        frontier = self._log.frontier
        if self.failure is None and _repairs.lacks_its_dump(applied, frontier):
            self.health.fail(self._background.missing_dump(frontier))
        self._raise_if_failed()

    def _tell_of_failure(self) -> None:
        if not self._log.is_attached:
            self.tell_of_failure()

    def tell_of_failure(self) -> None:
        """Calls ``on_failure``; for a node that draws the consequences."""
        call, self.on_failure = self.on_failure, None
        if call is not None:
            call_user(call, self)

    @property
    def waiting_seconds(self) -> float:
        """For how long the node's thread has been waiting for the disk; 0 where it does not."""
        return self._writer.waiting_seconds

    # --- the list -------------------------------------------------------------------------

    def __len__(self) -> int:
        """Never raises: a node's status can be asked for whatever became of its log."""
        return self._log.last - self._log.first + 1

    @overload
    def __getitem__(self, item: int) -> PlainEntry: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[PlainEntry]: ...
    def __getitem__(self, item: int | slice) -> Any:
        # Some twenty times per command: the short ways come first. A failure takes the ends away.
        log = self._log
        if item.__class__ is slice:
            return log.part(item)
        if item == -1:
            if (tail := log.tail) is not None:
                return tail
        elif item == 0 and (head := log.head) is not None:
            return head
        return log.item(item)  # type: ignore[arg-type]

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Appends an entry. Used bare: durable on return; attached: only queued.

        Raises EntryTooLargeError, LogGapError, WalPoisonedError, WalClosedError.
        """
        self._log.add(command, idx, term)

    def clear(self) -> None:
        """Empties the list, as pysyncobj does before it adds the two entries of a dump."""
        self._check()
        self._log.clear()

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Removes the positions ``[entryFrom, ∞)`` from the list; the log keeps them hidden."""
        self._check()
        self._log.delete_from(entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Removes the positions ``[0, entryTo)``: the dump has what they did."""
        self._check()
        self._log.delete_to(entryTo)

    # --- term, vote, commit index ---------------------------------------------------------

    def setCurrentTerm(self, term: int, votedForNodeId: Any) -> None:
        """Saves both, durably on return: a message that depends on them may follow.

        A new term also ends the suspicion against hidden entries: what its leader does not
        have differs from what it sends, and a node that votes must know its whole log.
        """
        self._check()
        self._writer.hand_over()
        is_new = self._saved.set_vote(term, votedForNodeId)
        self._log.epoch += 1
        if is_new and self._log.is_attached and self._log.hides_something():
            self._log.show_hidden()

    def getCurrentTerm(self) -> int:
        self._raise_if_failed()
        return self._saved.term

    def getVotedForNodeId(self) -> Any:
        self._raise_if_failed()
        return self._saved.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Remembers the commit index; saved every second and at ``_destroy``.

        A leader counts its own copy, so for a leader it waits until that copy is durable.
        """
        self._raise_if_failed()
        self._saved.commit = raftCommitIndex
        if self.owner.is_leader():
            self._writer.make_durable(min(raftCommitIndex, self._writer.view.end - 1))

    def getRaftCommitIndex(self) -> int:
        """The commit index saved last, but never beyond the end of the log."""
        self._raise_if_failed()
        return max(1, min(self._saved.commit, self._log.last))

    def onOneSecondTimer(self) -> None:
        self._raise_if_failed()
        if not self.is_closed:
            self._saved.save_commit(self._log.first, self._log.last)

    # --- durability -----------------------------------------------------------------------

    def hand_over(self) -> None:
        """Has written what was added, without waiting for the disk."""
        self._writer.hand_over()

    def hold_answer(self, node: Any, *, reset: bool, next_index: int | None, success: bool) -> bool:
        """Keeps an answer until :meth:`release_answers`; False where it may leave at once."""
        log = self._log
        if next_index is None:
            next_index = log.last + 1
        return self._answers.hold(Answer(node, reset, next_index, success, log.epoch))

    def has_held_enough(self) -> bool:
        """Whether the answers held back are worth a sync before the end of the tick."""
        return self._answers.has_enough(self._log.last)

    def release_answers(self) -> list[Answer]:
        """The answers held back, once all they acknowledge is durable; at every tick's end."""
        log = self._log
        answers = self._answers.take(log.last)
        if self.is_closed:
            return []
        stored = log.stored_tail
        if stored is not None and stored[2] == self._saved.term and log.hides_something():
            # Of one term there is one leader, whose log has all of that term's entries and
            # what lies before them: the hidden entries are the leader's.
            log.show_hidden()
        if answers:
            self._writer.make_durable(self._writer.view.end - 1)
        else:
            self._writer.hand_over()
        self._writer.trim()
        return answers

    # --- states ---------------------------------------------------------------------------

    def _check(self) -> None:
        self.health.check()
        if self._background.is_closing:
            self.health.raise_failure()

    def _raise_if_failed(self) -> None:
        if self.health.failure is not None:
            self.health.raise_failure()

    # --- closing --------------------------------------------------------------------------

    def _destroy(self) -> None:
        """Makes everything durable and closes the log. Idempotent."""
        if self.is_closed:
            return
        try:
            with contextlib.suppress(WalPoisonedError):
                if self.failure is None and not self._background.is_closing:
                    self._log.settle_clearing()
                    if not self._log.is_attached and self._log.hides_something():
                        self._log.cut(self._log.last + 1)
                    self._writer.hand_over()
                    self._saved.save_commit(self._log.first, self._log.last)
        finally:
            self.health.is_closed = True
            self._log.allow_short_way()
            self._answers.take(self._log.last)
            if self.stalls is not None:
                self.stalls.put(None)
            self._finalizer.detach()
            if self.dump is not None:
                self.dump.let_go()
            self._close_store()

    def _close_store(self) -> None:
        try:
            self._background.close()
        except WalError:
            # a poisoned log may say so again: it was reported where it was found
            if self.failure is None:
                raise
