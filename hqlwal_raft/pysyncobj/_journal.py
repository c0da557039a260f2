"""WalJournal: pysyncobj's Journal on a WAL directory. What must be durable before which call
returns, and what happens when that fails.

It must not know how a node sends its answers; ``_hooks`` holds them back and asks here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from anyio.from_thread import BlockingPortal

from .._store import Opening
from .._types import LogSync, StorageStatistics
from ..errors import WalClosedError, WalError, WalPoisonedError
from ._beside import AwaitedReader, Portal
from ._dump import (
    check_dump,
    replace_durably,
    replace_plainly,
    wait_for_orphaned_dump,
)
from ._opening import open_store
from ._shown import ShownLog
from ._votes import node_id_of, vote_of

__all__ = ["Answer", "WalJournal"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

#: A sync takes about a tenth of the time in which a follower reads so many entries, or of so
#: many seconds. Answers that wait any longer keep the leader from going on meanwhile.
_HELD_ENTRIES = 256
_HELD_SECONDS = 0.003
#: pysyncobj's _RAFT_STATE.LEADER
_LEADER = 2


class Answer(NamedTuple):
    """A follower's answer that waits for what it acknowledges to be durable."""

    node: Any
    reset: bool
    next_index: int
    success: bool
    #: another one where the term changed or the log was cut since
    epoch: int


class WalJournal(ShownLog):
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
    - ``cache_bytes``: how much of the newest entries is kept in memory.
    - all other options go to ``RaftLogStorage.open``.

    Raises what ``RaftLogStorage.open`` raises, and StockJournalError where ``path`` is a file of
    pysyncobj's own journal. After a failed write every method raises WalPoisonedError; after
    ``_destroy`` the ends of the log can still be read.
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
        **store_options: Any,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.allow_no_dump = allow_no_dump
        self.is_closed = False
        #: the node, once attached; it owns this journal
        self._node: Callable[[], Any] = _nobody
        self._answers: list[Answer] = []
        self._held_since = 0.0
        #: the last entry when answers were last released
        self._released = 0
        #: whether the node has drawn the consequences of a failure
        self.has_stepped_out = False
        # The storage is only asked for what is not in memory here. Raft's rules are pysyncobj's
        # to keep: it goes on where they are broken, so a log of its may hold anything, and an
        # error in the midst of its tick would cost the cluster a node.
        options = {
            "max_entry_size": max_entry_size,
            "cache_bytes": 0,
            "check_raft": False,
            **store_options,
        }
        opening = Opening(sync=sync, **options)
        self._environment = opening.ground
        self._monotonic = self._environment.monotonic
        opened = open_store(self, opening)
        # at the interpreter's end the store sees to it itself
        self._finalizer = weakref.finalize(self, opened.background.close_later)
        self._finalizer.atexit = False
        is_durable = opening.policy == LogSync.IMMEDIATE
        super().__init__(opened, cache_bytes, max_entry_size, is_durable_when_done=is_durable)
        self._portal: Portal | None = None
        self._portal_lock = self._environment.lock()
        self._commit = 1 if opened.committed is None else opened.committed
        self._commit_saved = self._commit
        vote = opened.vote
        self._term = 0 if vote is None else vote.term
        self._voted_for = None if vote is None else node_id_of(vote)
        # What was saved last may lie beyond the end of the log, lost with entries that were not
        # durable. It must not come true when the log has grown again.
        if self._last >= self._first:
            self._store_commit(max(self._first, min(self._commit, self._last)))
        self._set_dump_file(dump_file)

    def _set_dump_file(self, path: str | None) -> None:
        background = self._background
        if background.dump_file is not None:
            replace_plainly(background.dump_file)
        background.dump_file = None if path is None else os.path.abspath(path)
        if background.dump_file is not None:
            replace_durably(self._environment, background.dump_file)
            wait_for_orphaned_dump(self._environment, background.dump_file)

    # --- the storage, for others ----------------------------------------------------------

    def statistics(self) -> StorageStatistics:
        """What the log has done since it was opened; may be called from any thread.

        Raises WalClosedError after ``_destroy``.
        """
        return self._store.statistics()

    @property
    def storage(self) -> AwaitedReader:
        """The log, for reading on an event loop: ``RaftLogStorage``'s reading methods."""
        return AwaitedReader(self._store, self._environment)

    @property
    def portal(self) -> BlockingPortal:
        """Calls into an event loop for the storage: ``portal.call(storage.get_log_state)``.

        The loop, in a thread of its own, starts with the first use.
        """
        with self._portal_lock:
            if self.is_closed or self._store.is_closed:
                raise WalClosedError(f"the log in {self.path} is closed")
            if self._portal is None:
                self._portal = Portal(self._environment, f"hqlwal {os.path.basename(self.path)}")
            return self._portal.portal

    # --- attaching ------------------------------------------------------------------------

    def attach(self, node: Any) -> None:
        """From here on ``add`` only queues, because the node's answers are held back.

        For ``_hooks``. Raises ValueError where the node has no dump file and must have one.
        """
        check_dump(node.conf, allow_no_dump=self.allow_no_dump)
        self._node = weakref.ref(node)
        self._is_attached = True
        self._allow_short_way()
        self._set_dump_file(node.conf.fullDumpFile)
        dump_file = self._background.dump_file
        if dump_file is not None and self._first > 1 and not self._exists(dump_file):
            logger.warning(
                "the log in %s begins with entry %d, and the dump file %s, which holds what was "
                "before, is missing: this node cannot become ready by itself",
                self.path,
                self._first,
                dump_file,
            )

    def sleep(self, seconds: float) -> None:
        """For a node that has nothing else to do any more."""
        self._environment.sleep(seconds)

    def _exists(self, path: str) -> bool:
        try:
            self._environment.stat(path)
        except OSError:
            return False
        return True

    def is_abandoned(self) -> bool:
        """Whether the node that owns the journal is on its way out, or will never tick again."""
        node = self._node()
        if node is None:
            return self._is_attached
        state = node.__dict__
        thread = state.get("_SyncObj__thread")
        if thread is None:
            return False
        return bool(state.get("_SyncObj__destroying")) or not thread.is_alive()

    def is_ticking(self) -> bool:
        """Whether the node's own thread still runs."""
        node = self._node()
        thread = None if node is None else node.__dict__.get("_SyncObj__thread")
        return thread is not None and thread.is_alive() and not self.is_closed

    # --- term, vote, commit index ---------------------------------------------------------

    def setCurrentTerm(self, term: int, votedForNodeId: Any) -> None:
        """Saves both, durably on return: a message that depends on them may follow.

        A new term also ends the suspicion against hidden entries: what its leader does not
        have differs from what it sends, and whoever votes must know its whole log.
        """
        self._check()
        self.hand_over()
        if term != self._term or votedForNodeId != self._voted_for:
            with self._failing():
                self._store.save_vote(vote_of(term, votedForNodeId))
        self._epoch += 1
        if term > self._term and self._is_attached and self._hides_something():
            self.show_hidden()
        self._term, self._voted_for = term, votedForNodeId

    def getCurrentTerm(self) -> int:
        self._raise_if_failed()
        return self._term

    def getVotedForNodeId(self) -> Any:
        self._raise_if_failed()
        return self._voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Remembers the commit index; saved every second and at ``_destroy``.

        A leader counts its own copy, so for a leader it waits until that copy is durable.
        """
        if self.failure is not None:
            self.raise_failure()
        self._commit = raftCommitIndex
        node = self._node()
        if node is not None and node.__dict__.get("_SyncObj__raftState") == _LEADER:
            self._make_durable(min(raftCommitIndex, self._view.end - 1))

    def getRaftCommitIndex(self) -> int:
        """The commit index saved last, but never beyond the end of the log."""
        self._raise_if_failed()
        return max(1, min(self._commit, self._last))

    def onOneSecondTimer(self) -> None:
        if self.failure is not None:
            self.raise_failure()
        self._save_commit()

    def _save_commit(self) -> None:
        commit = min(self._commit, self._last)
        if commit != self._commit_saved and not self.is_closed and commit >= self._first:
            self._commit_saved = commit
            self.hand_over()
            self._store_commit(commit)

    def _store_commit(self, index: int) -> None:
        with self._failing():
            log_id = self._store.log_id_at(index)
            if log_id is not None:
                self._store.save_committed(log_id)

    # --- durability -----------------------------------------------------------------------

    def hold_answer(self, node: Any, *, reset: bool, next_index: int | None, success: bool) -> bool:
        """Keeps an answer until :meth:`release_answers`; False where it may leave at once.

        One that acknowledges nothing need not wait, unless it would overtake one that does.
        """
        answers = self._answers
        if not success and not answers:
            return False
        if not answers:
            self._held_since = self._monotonic()
        if next_index is None:
            next_index = self._last + 1
        if success and answers:
            before = answers[-1]
            if before.node is node and before.success and before.epoch == self._epoch:
                # The leader takes the highest; each one below would make it send again what
                # is on its way already.
                next_index = max(next_index, before.next_index)
                answers.pop()
        answers.append(Answer(node, reset, next_index, success, self._epoch))
        return True

    def has_held_enough(self) -> bool:
        """Whether the answers held back are worth a sync before the end of the tick."""
        return bool(self._answers) and (
            self._last - self._released >= _HELD_ENTRIES
            or self._monotonic() - self._held_since > _HELD_SECONDS
        )

    def release_answers(self) -> list[Answer]:
        """The answers held back, once all they acknowledge is durable; at every tick's end."""
        if self.is_closed:
            self._answers = []
            return []
        stored = self._stored_tail
        if stored is not None and stored[2] == self._term and self._hides_something():
            # Of one term there is one leader, whose log has all of that term's entries and
            # whatever lies before them: the hidden entries are the leader's.
            self.show_hidden()
        answers = self._answers
        if answers:
            self._answers = []
            self._make_durable(self._view.end - 1)
            self._released = self._last
        else:
            self.hand_over()
        self._trim()
        return answers

    # --- states ---------------------------------------------------------------------------

    def _is_starting(self) -> bool:
        node = self._node()
        return node is None or bool(getattr(node, "_SyncObj__needLoadDumpFile", True))

    def _check(self) -> None:
        if self.failure is not None:
            self.raise_failure()
        if self.is_closed or self._background.is_closing:
            raise WalClosedError(f"the journal in {self.path} is closed")

    def _raise_if_failed(self) -> None:
        if self.failure is not None:
            self.raise_failure()

    def raise_failure(self) -> NoReturn:
        if self.failure is None:
            raise WalClosedError(f"the journal in {self.path} is closed")
        raise WalPoisonedError(
            f"the log in {self.path} failed ({self.failure}): this node takes part no more. "
            "What was acknowledged is safe; see to the cause and restart the node"
        ) from self.failure

    def _fail(self, error: BaseException) -> None:
        """Said once; from here on every method raises. Called from any thread."""
        if isinstance(error, WalPoisonedError) and error.__cause__ is not None:
            error = error.__cause__
        if self.failure is None:
            self.failure = error
            self._next = -1
            self._head = self._tail = None
            logger.critical(
                "the log in %s failed: %s. The node takes part in its cluster no more; see to "
                "the cause and restart it",
                self.path,
                error,
            )

    def _fail_for_older_dump(self, index: int) -> NoReturn:
        self._fail(
            WalError(
                f"the dump file {self._background.dump_file} ends at entry {index + 1}, but the log "
                f"in {self.path} begins at entry {self._stored_first}: the dump is older than what was "
                "purged. Put the newer dump back, or remove both and let the node join anew"
            )
        )
        self.raise_failure()

    def _fail_for_missing_dump(self) -> NoReturn:
        self._fail(
            WalError(
                f"the log in {self.path} goes on after entry {self._frontier}, but no dump was "
                f"loaded that holds what was before ({self._background.dump_file}). Put the dump "
                "back, or remove the log and let the node join anew"
            )
        )
        self.raise_failure()

    # --- closing --------------------------------------------------------------------------

    def _destroy(self) -> None:
        """Makes everything durable and closes the log. Idempotent."""
        if self.is_closed:
            return
        try:
            # a failure is said once, where it is found
            with contextlib.suppress(WalPoisonedError):
                if self.failure is None and not self._background.is_closing:
                    self._settle_clearing()
                    if not self._is_attached and self._hides_something():
                        self._cut(self._last + 1)
                    self.hand_over()
                    self._save_commit()
        finally:
            self.is_closed = True
            self._next = -1
            self._answers = []
            self._finalizer.detach()
            if self._background.dump_file is not None:
                replace_plainly(self._background.dump_file)
            with self._portal_lock:
                portal, self._portal = self._portal, None
            if portal is not None:
                portal.close()
            self._close_store()

    def _close_store(self) -> None:
        try:
            self._background.close()
        except WalError:
            # A poisoned log may say so again when it is closed: it was said already.
            if self.failure is None:
                raise


def _nobody() -> None:
    return None
