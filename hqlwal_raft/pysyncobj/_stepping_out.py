"""How a node stops that cannot do its part: one whose log failed, for good; a leader whose disk
does not answer, until it does.

It stops visibly, once, and cheaply. In the node's thread, except the watch for stalls: the thread
that waits for the disk cannot notice that itself.
"""

# ruff: noqa: SLF001  the private names are this module's business
from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import Any

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON

from .._environment import Empty, Queue
from ..errors import WalPoisonedError
from . import _repairs
from ._health import call_user
from ._journal import WalJournal

__all__ = ["UNKNOWN_OUTCOME", "sit_out", "step_down", "watch_for_stalls"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

_FOLLOWER, _LEADER = 0, 2
#: an application that ticks by itself gets an error once in so many seconds
_REMINDER_SECONDS = 60.0
#: the outcome of commands under way; older versions of pysyncobj have no name for it
UNKNOWN_OUTCOME = getattr(FAIL_REASON, "UNKNOWN_OUTCOME", FAIL_REASON.DISCARDED)


# --- a log that failed -----------------------------------------------------------------------


def sit_out(node: Any, journal: WalJournal, time_to_wait: float) -> None:
    """What a node does instead of ticking after its log failed.

    It acknowledges nothing, votes for nobody, leads nothing, and tells the others by silence
    that they should go on without it. Callers are told that their commands will not be applied
    here, or that it is not known. An application that ticks by itself gets the error, with its
    cause the first time and once a minute in short; each call takes its time.
    """
    state = node.__dict__
    is_first = not journal.has_stepped_out
    if is_first:
        journal.has_stepped_out = True
        _leave_post(node)
        try:
            state["_SyncObj__transport"].destroy()
        except Exception:
            logger.exception("the transport of a node whose log failed could not be closed")
        journal.tell_of_failure()
    _refuse_queued(node, FAIL_REASON.REQUEST_DENIED)
    if not is_first:
        journal.environment.sleep(time_to_wait)
    if node.conf.autoTick:
        return
    now = journal.environment.monotonic()
    if is_first:
        journal.reminded_at = now
        journal.health.raise_failure()
    if now - journal.reminded_at >= _REMINDER_SECONDS:
        journal.reminded_at = now
        path = journal.path
        raise WalPoisonedError(f"the log in {path} has failed: restart the node", path=path)


def _leave_post(node: Any) -> None:
    """The node follows nobody, and whoever waits for a command of his is answered."""
    state = node.__dict__
    state["_SyncObj__raftLeader"] = None
    node._SyncObj__setState(_FOLLOWER)
    node._SyncObj__onLeaderChanged()
    waiting = state["_SyncObj__commandsWaitingCommit"]
    while waiting:
        try:
            _, subscribers = waiting.popitem()  # each by one thread, whoever gets it
        except KeyError:
            break
        for _, callback in subscribers:
            callback(None, UNKNOWN_OUTCOME)


def _refuse_queued(node: Any, reason: int) -> None:
    commands = node.__dict__["_SyncObj__commandsQueue"]
    while True:
        try:
            _, callback = commands.get_nowait()
        except pysyncobj.syncobj.Queue.Empty:
            break
        if not isinstance(callback, tuple):  # one of another node's, which is not reached
            node._SyncObj__callErrCallback(reason, callback)


# --- a disk that does not answer -------------------------------------------------------------


def watch_for_stalls(node: Any, journal: WalJournal) -> None:
    """Starts the thread that notices that the node's own has been waiting for too long."""
    if journal.step_down_seconds is not None and journal.stalls is None:
        journal.stalls = calls = journal.environment.queue()
        watch = partial(_watch, weakref.ref(node), calls, journal.step_down_seconds)
        journal.environment.start_thread(watch, "hqlwal-stalls")


def _watch(reference: weakref.ref[Any], ending: Queue[None], seconds: float) -> None:
    while True:
        try:
            ending.get(timeout=seconds / 4)
        except Empty:
            pass
        else:
            return
        node = reference()
        journal = None if node is None else node.__dict__.get("_SyncObj__raftLog")
        if not isinstance(journal, WalJournal) or journal.is_closed:
            return
        if journal.failure is None and journal.waiting_seconds >= seconds:
            step_down(node, journal)
        del node, journal


def step_down(node: Any, journal: WalJournal) -> None:
    """A leader whose disk does not answer leads no more, and answers its callers.

    The other nodes hear nothing of it while it waits, and elect another. Commands that come
    while the disk is away are refused. Called while the node's own thread is waiting.
    """
    if node.__dict__["_SyncObj__raftState"] == _LEADER:
        logger.error(
            "the disk of %s has not answered for %.1f seconds: this node gives up its post as "
            "leader. Check the disk",
            journal.path,
            journal.waiting_seconds,
        )
        _leave_post(node)
        _repairs.wait_for_another_leader(node)
        if journal.on_step_down is not None:
            call_user(journal.on_step_down, journal)
    _refuse_queued(node, FAIL_REASON.MISSING_LEADER)
