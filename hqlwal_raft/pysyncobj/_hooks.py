"""Ties a WalJournal to a pysyncobj node: WalSyncObj, install, uninstall.

It relies on private names of pysyncobj's, which ``_checks`` checks when this is imported.

A node answers a leader right after it added the entries, with no call of the journal in
between; so the answer is caught on its way out, and leaves at the end of the tick, once what
it acknowledges is durable. One sync serves all answers of a tick.
"""

# ruff: noqa: SLF001  the private names are this module's business
from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj
from pysyncobj.node import TCPNode
from pysyncobj.transport import TCPTransport

from .._types import LogSync
from ..errors import WalError
from ._checks import RAFT_LOG, check_private_names
from ._dump import check_dump
from ._journal import WalJournal

__all__ = ["WalSyncObj", "install", "journal_of", "uninstall"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

_FOLLOWER = 0

check_private_names()

# Taken before anything is installed: answers leave through these.
_send_answer = SyncObj.__dict__["_SyncObj__sendNextNodeIdx"]
_originals: dict[str, Any] = {
    name: SyncObj.__dict__[name]
    for name in ("__init__", "_onTick", "_checkCommandsToApply", "_SyncObj__sendNextNodeIdx")
}
_create_journal = pysyncobj.journal.createJournal


def journal_of(node: Any) -> WalJournal | None:
    """The journal of a ``SyncObj``, for its ``storage`` and ``portal``; None where it has none."""
    journal = node.__dict__.get(RAFT_LOG)
    return journal if isinstance(journal, WalJournal) else None


# --- the hooks, per object -------------------------------------------------------------------


def _tick(original: Callable[[float], None], node: Any, time_to_wait: float) -> None:
    journal = journal_of(node)
    if journal is None:
        original(time_to_wait)
        return
    if journal.failure is not None:
        _sit_out(node, journal, time_to_wait)
        return
    try:
        try:
            original(time_to_wait)
        finally:
            # Also where something of the application's raised: what is durable is durable.
            if journal.failure is None:
                _release_answers(node, journal)
    except WalError:
        if journal.failure is None:
            raise
        _sit_out(node, journal, time_to_wait)


def _hold_answer(
    node: Any,
    receiver: Any,
    *,
    reset: bool,
    next_index: int | None,
    success: bool,
) -> None:
    journal = journal_of(node)
    if journal is None or not journal.hold_answer(
        receiver, reset=reset, next_index=next_index, success=success
    ):
        _send_answer(node, receiver, reset=reset, nextNodeIdx=next_index, success=success)
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


def _sit_out(node: Any, journal: WalJournal, time_to_wait: float) -> None:
    """What a node does instead of ticking after its log failed.

    It acknowledges nothing, votes for nobody, leads nothing, and says to the others by silence
    that they should go on without it. Callers are told that their commands will not be applied
    here, or that it is not known. The log said why, once; an application that ticks by itself
    gets the error.
    """
    if not journal.has_stepped_out:
        journal.has_stepped_out = True
        node.__dict__["_SyncObj__raftLeader"] = None
        node._SyncObj__setState(_FOLLOWER)
        node._SyncObj__onLeaderChanged()
        waiting = node.__dict__["_SyncObj__commandsWaitingCommit"]
        for subscribers in list(waiting.values()):
            for _, callback in subscribers:
                callback(None, FAIL_REASON.UNKNOWN_OUTCOME)
        waiting.clear()
        try:
            node.__dict__["_SyncObj__transport"].destroy()
        except Exception:
            logger.exception("the transport of a node whose log failed could not be closed")
    commands = node.__dict__["_SyncObj__commandsQueue"]
    while True:
        try:
            _, callback = commands.get_nowait()
        except pysyncobj.syncobj.Queue.Empty:
            break
        if not isinstance(callback, tuple):  # one of another node's, which is not reached
            node._SyncObj__callErrCallback(FAIL_REASON.REQUEST_DENIED, callback)
    if not node.conf.autoTick:
        journal.raise_failure()
    journal.sleep(time_to_wait)


def _attach(node: Any, journal: WalJournal) -> None:
    try:
        journal.attach(node)
    except BaseException:
        journal._destroy()
        raise


# --- WalSyncObj ------------------------------------------------------------------------------


class _JournalSlot:
    """Stands in a class for its nodes' raft log, and sees it being set.

    There is no ``__get__``, so reading goes straight to the node's ``__dict__``. pysyncobj
    leaves what is set before its ``__init__`` ends out of the dumps.
    """

    def __set__(self, node: Any, journal: Any) -> None:
        make = node.__dict__.pop("_WalSyncObj__make_journal", None)
        if make is not None:
            journal = make()
        node.__dict__[RAFT_LOG] = journal
        if isinstance(journal, WalJournal):
            _attach(node, journal)


class WalSyncObj(SyncObj):
    """A ``SyncObj`` whose journal is the WAL directory that ``conf.journalFile`` names.

    What a node acknowledged survives ``kill -9`` of every node at once. Everything else is as
    in ``SyncObj``; without a ``journalFile`` this is one.

    - ``sync``: when an entry counts as durable, as ``RaftLogStorage.open`` has it.
    - ``allow_no_dump``: accept a ``journalFile`` without a ``fullDumpFile``, though the node
      cannot come back from a restart after the first compaction.
    - ``cache_bytes`` and the options of ``RaftLogStorage.open`` pass through to WalJournal.

    Raises what WalJournal raises, and ValueError where there is no dump file. ``conf`` must not
    be in use for another node that is just being made.
    """

    def __init__(
        self,
        selfNode: Any,
        otherNodes: Any,
        conf: Any = None,
        consumers: Any = None,
        nodeClass: Any = TCPNode,
        transport: Any = None,
        transportClass: Any = TCPTransport,
        *,
        sync: LogSync | str = LogSync.IMMEDIATE,
        allow_no_dump: bool = False,
        **store_options: Any,
    ) -> None:
        arguments = (selfNode, otherNodes, conf, consumers, nodeClass, transport, transportClass)
        path = None if conf is None else conf.journalFile
        if path is None:
            super().__init__(*arguments)
            return
        check_dump(conf, allow_no_dump=allow_no_dump)

        def make_journal() -> WalJournal:
            conf.journalFile = path
            return WalJournal(path, sync=sync, allow_no_dump=allow_no_dump, **store_options)

        # pysyncobj would open a journal of its own at that path first
        conf.journalFile = None
        self.__dict__["_WalSyncObj__make_journal"] = make_journal
        try:
            super().__init__(*arguments)
        except BaseException:
            if (journal := journal_of(self)) is not None:
                journal._destroy()
            raise
        finally:
            conf.journalFile = path

    def _onTick(self, timeToWait: float = 0.0) -> None:
        _tick(super()._onTick, self, timeToWait)

    def _checkCommandsToApply(self) -> None:
        super()._checkCommandsToApply()
        # the leader's own writing starts before it looks at the network again
        if (journal := journal_of(self)) is not None:
            journal.hand_over()

    def _SyncObj__sendNextNodeIdx(
        self,
        node: Any,
        reset: bool = False,  # noqa: FBT001, FBT002
        nextNodeIdx: int | None = None,
        success: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        _hold_answer(self, node, reset=reset, next_index=nextNodeIdx, success=success)


setattr(WalSyncObj, RAFT_LOG, _JournalSlot())


# --- install ---------------------------------------------------------------------------------

_CREATE_JOURNAL_MODULES = (pysyncobj.journal, pysyncobj.syncobj, pysyncobj)
_installed_journals: weakref.WeakSet[WalJournal] = weakref.WeakSet()


def install(
    *, sync: LogSync | str = LogSync.IMMEDIATE, allow_no_dump: bool = False, **store_options: Any
) -> None:
    """Every SyncObj with a ``journalFile`` that is made from now on uses a WAL directory there.

    For code that cannot change its base class; whatever its subclass and transport class. The
    options are WalSyncObj's. Called again, it replaces the options. ``createJournal`` gives a
    bare WalJournal. Raises ValueError where ``sync`` names no policy.
    """
    policy = LogSync.parse(sync)

    def create_journal(journalFile: Any = None) -> Any:
        if journalFile is None:
            return _create_journal(None)
        journal = WalJournal(journalFile, sync=policy, allow_no_dump=allow_no_dump, **store_options)
        _installed_journals.add(journal)
        return journal

    for module in _CREATE_JOURNAL_MODULES:
        module.createJournal = create_journal
    setattr(SyncObj, RAFT_LOG, _JournalSlot())
    for name, hook in _hooks().items():
        setattr(SyncObj, name, hook)


def uninstall() -> None:
    """Takes :func:`install` back: a SyncObj made from now on has pysyncobj's own journal.

    Nodes that still live keep their WAL directories, and answer as they did.
    """
    for module in _CREATE_JOURNAL_MODULES:
        module.createJournal = _create_journal
    if RAFT_LOG in SyncObj.__dict__:
        delattr(SyncObj, RAFT_LOG)
    if all(journal.is_closed for journal in _installed_journals):
        for name, original in _originals.items():
            setattr(SyncObj, name, original)


def _hooks() -> dict[str, Any]:
    init, tick = _originals["__init__"], _originals["_onTick"]
    check = _originals["_checkCommandsToApply"]

    @functools.wraps(init)
    def make(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            init(self, *arguments, **named)
        except BaseException:
            if (journal := journal_of(self)) is not None:
                journal._destroy()
            raise

    @functools.wraps(tick)
    def _onTick(self: Any, timeToWait: float = 0.0) -> None:
        _tick(functools.partial(tick, self), self, timeToWait)

    @functools.wraps(check)
    def _checkCommandsToApply(self: Any) -> None:
        check(self)
        if (journal := journal_of(self)) is not None:
            journal.hand_over()

    @functools.wraps(_send_answer)
    def sendNextNodeIdx(
        self: Any,
        node: Any,
        reset: bool = False,  # noqa: FBT001, FBT002
        nextNodeIdx: int | None = None,
        success: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        _hold_answer(self, node, reset=reset, next_index=nextNodeIdx, success=success)

    return {
        "__init__": make,
        "_onTick": _onTick,
        "_checkCommandsToApply": _checkCommandsToApply,
        "_SyncObj__sendNextNodeIdx": sendNextNodeIdx,
    }
