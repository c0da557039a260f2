"""What a node of pysyncobj's does otherwise where its journal is a WAL directory: a hook for each
method, which gets the original method, the node and the arguments.

A node answers a leader right after it added the entries, with no call of the journal in between;
so the answer is caught on its way out, and leaves at the end of the tick, once what it
acknowledges is durable. One sync serves all answers of a tick.

Everything runs in the thread that ticks the node, except what is said to. How the hooks get into
a class, ``_hooks`` knows.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable
from typing import Any

from pysyncobj import SyncObj

from ..errors import WalError
from . import _repairs, _stepping_out
from ._journal import WalJournal

__all__ = ["HOOKS", "RAFT_LOG", "journal_of"]

#: where a SyncObj keeps its journal
RAFT_LOG = "_SyncObj__raftLog"

Method = Callable[..., Any]

# Taken before anything is installed: answers leave through it.
_send_answer: Method = SyncObj.__dict__.get("_SyncObj__sendNextNodeIdx", SyncObj)


def journal_of(node: Any) -> WalJournal | None:
    """The journal of a ``SyncObj``; None where it has none.

    Its ``failure`` says why the node stopped, ``statistics()`` what it did; ``get_log_reader()``
    and ``get_async_log_reader()`` read it. Any thread may call.
    """
    journal = node.__dict__.get(RAFT_LOG)
    return journal if isinstance(journal, WalJournal) else None


# --- ticking ---------------------------------------------------------------------------------


def on_tick(original: Method, node: Any, timeToWait: float = 0.0) -> None:
    journal = journal_of(node)
    if journal is None:
        original(node, timeToWait)
        return
    if journal.failure is not None:
        _stepping_out.sit_out(node, journal, timeToWait)
        return
    try:
        _begin_tick(node, journal)
        try:
            original(node, timeToWait)
        finally:
            # Also where something of the application's raised: what is durable is durable.
            if journal.failure is None:
                _release_answers(node, journal)
    except WalError:
        if journal.failure is None:
            raise
        _stepping_out.sit_out(node, journal, timeToWait)


def _begin_tick(node: Any, journal: WalJournal) -> None:
    journal.wake()
    if node.__dict__["_SyncObj__needLoadDumpFile"]:
        _stepping_out.watch_for_stalls(node, journal)
        if journal.misses_its_dump:
            journal.check_dump_was_loaded(0)


def on_commands(original: Method, node: Any) -> None:
    original(node)
    # the leader's own writing starts before it looks at the network again
    if (journal := journal_of(node)) is not None:
        journal.hand_over()


# --- answers ---------------------------------------------------------------------------------


def on_answer(
    original: Method,
    node: Any,
    receiver: Any,
    reset: bool = False,  # noqa: FBT001, FBT002
    nextNodeIdx: int | None = None,
    success: bool = False,  # noqa: FBT001, FBT002
) -> None:
    journal, wanted = journal_of(node), nextNodeIdx
    if journal is not None and reset and not success:
        state = node.__dict__
        _, last, term = journal[-1]
        wanted = last + 1 if nextNodeIdx is None else nextNodeIdx
        if term != state["_SyncObj__raftCurrentTerm"]:  # else all of it is this leader's
            committed = max(state["_SyncObj__raftCommitIndex"], state["_SyncObj__raftLastApplied"])
            wanted = _repairs.go_back_to_commit(wanted, committed)
    if journal is None or not journal.hold_answer(
        receiver, reset=reset, next_index=wanted, success=success
    ):
        original(node, receiver, reset=reset, nextNodeIdx=wanted, success=success)
    elif journal.has_held_enough():
        _release_answers(node, journal)


def _release_answers(node: Any, journal: WalJournal) -> None:
    for answer in journal.release_answers():
        _send_answer(
            node,
            answer.node,
            reset=answer.reset,
            nextNodeIdx=answer.next_index,
            success=answer.success,
        )


# --- messages and dumps ----------------------------------------------------------------------


def on_message(original: Method, node: Any, sender: Any, message: Any) -> None:
    journal = journal_of(node)
    if journal is None:
        original(node, sender, message)
        return
    with _without_false_alarms():
        if message["type"] != "append_entries" or "prevLogIdx" in message:
            original(node, sender, message)
            return
        state = node.__dict__
        commit, applied = state["_SyncObj__raftCommitIndex"], state["_SyncObj__raftLastApplied"]
        original(node, sender, message)
        raised = state["_SyncObj__raftCommitIndex"]
        kept = _repairs.keep_commit_index(
            raised,
            commit,
            journal[-1][1],
            is_installed=state["_SyncObj__raftLastApplied"] != applied,
        )
        if kept != raised:
            state["_SyncObj__raftCommitIndex"] = kept
            journal.setRaftCommitIndex(kept)


def on_loading_dump(original: Method, node: Any, clearJournal: bool) -> None:  # noqa: FBT001
    journal = journal_of(node)
    if journal is None:
        original(node, clearJournal)
        return
    with _without_false_alarms():
        original(node, clearJournal)
    # whatever it raised was logged and swallowed
    journal.check_dump_was_loaded(node.__dict__["_SyncObj__raftLastApplied"])


# --- what others are told of a node ----------------------------------------------------------
# Called from any thread, also after ``destroy``.


def on_status(original: Method, node: Any) -> dict[str, Any]:
    status: dict[str, Any] = original(node)
    if (journal := journal_of(node)) is not None:
        failure = journal.failure
        status["journal_failure"] = None if failure is None else str(failure)
    return status


def on_is_ready(original: Method, node: Any) -> bool:
    return bool(original(node)) and not _has_failed(node)


def on_has_quorum(original: Method, node: Any) -> bool:
    return bool(original(node)) and not _has_failed(node)


def _has_failed(node: Any) -> bool:
    journal = journal_of(node)
    return journal is not None and journal.failure is not None


#: the hooks by the names of the methods that they stand before
HOOKS: dict[str, Method] = {
    "_onTick": on_tick,
    "_checkCommandsToApply": on_commands,
    "_SyncObj__sendNextNodeIdx": on_answer,
    "_SyncObj__onMessageReceived": on_message,
    "_SyncObj__loadDumpFile": on_loading_dump,
    "getStatus": on_status,
    "isReady": on_is_ready,
    "hasQuorum": on_has_quorum,
}


# --- false alarms ----------------------------------------------------------------------------

_is_in_wal_node = contextvars.ContextVar("is_in_wal_node", default=False)


@contextlib.contextmanager
def _without_false_alarms() -> Any:
    token = _is_in_wal_node.set(True)
    try:
        yield
    finally:
        _is_in_wal_node.reset(token)


class _FalseAlarms(logging.Filter):
    """Drops what pysyncobj logs and what is never true over this journal: deleted entries that
    match are only hidden, and a commit index is never beyond what was durable.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not (
            _is_in_wal_node.get()
            and isinstance(record.msg, str)
            and record.msg.startswith(
                ("truncating already-applied", "raftCommitIndex (%d) exceeds")
            )
        )


logging.getLogger("pysyncobj.syncobj").addFilter(_FalseAlarms())
