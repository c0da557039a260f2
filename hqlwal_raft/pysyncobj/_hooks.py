"""Ties a WalJournal to a pysyncobj node: WalSyncObj, install, uninstall.

It relies on private names of pysyncobj's, which ``_checks`` checks when this is imported. What
the hooks do, ``_node`` knows.
"""

# ruff: noqa: SLF001  the private names are this module's business
from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
from pysyncobj import SyncObj
from pysyncobj.node import TCPNode
from pysyncobj.transport import TCPTransport

from .._types import LogSync
from ._checks import check_private_names
from ._dump import check_dump
from ._journal import WalJournal
from ._node import HOOKS, RAFT_LOG, journal_of
from ._serializing import WalSerializer
from ._unsaved_votes import SAVES_VOTES, VOTE, VoteSlot, restore

__all__ = ["WalSyncObj", "install", "uninstall"]

SERIALIZER = "_SyncObj__serializer"

check_private_names()

# Taken before anything is installed.
_originals: dict[str, Any] = {name: SyncObj.__dict__[name] for name in ("__init__", *HOOKS)}
_create_journal = pysyncobj.journal.createJournal


# --- hooks and slots -------------------------------------------------------------------------


def _hooked(name: str) -> Any:
    """SyncObj's own method, or property, with the hook before it."""
    original, hook = _originals[name], HOOKS[name]
    if isinstance(original, property):
        getter = original.fget
        return property(lambda node: hook(getter, node), doc=original.__doc__)

    @functools.wraps(original)
    def method(node: Any, *arguments: Any, **named: Any) -> Any:
        return hook(original, node, *arguments, **named)

    return method


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


class _SerializerSlot:
    """The same for the nodes' serializers."""

    def __set__(self, node: Any, serializer: Any) -> None:
        node.__dict__[SERIALIZER] = serializer
        if (journal := journal_of(node)) is not None:
            WalSerializer.adopt(serializer, weakref.ref(node), journal.dump)
            if not SAVES_VOTES:
                restore(node)


#: what a node needs while it is made, and what for as long as it lives
_MAKING_SLOTS: dict[str, Any] = {RAFT_LOG: _JournalSlot(), SERIALIZER: _SerializerSlot()}
_LIVING_SLOTS: dict[str, Any] = {} if SAVES_VOTES else {VOTE: VoteSlot()}
_SLOTS = _MAKING_SLOTS | _LIVING_SLOTS


def _attach(node: Any, journal: WalJournal) -> None:
    try:
        journal.attach(node)
    except BaseException:
        journal._destroy()
        raise


def _make(node: Any, init: Callable[[], None]) -> None:
    """Runs pysyncobj's ``__init__``; a node that could not be made lets its directory go.

    A node that its application ticks has its log opened, and its threads started, by its first
    tick: until then the process may fork.
    """
    try:
        init()
        if (journal := journal_of(node)) is not None and not node.conf.autoTick:
            journal.rest()
    except BaseException:
        if (journal := journal_of(node)) is not None:
            journal._destroy()
        raise


# --- WalSyncObj ------------------------------------------------------------------------------


class WalSyncObj(SyncObj):
    """A ``SyncObj`` whose journal is the WAL directory that ``conf.journalFile`` names.

    What a node acknowledged survives ``kill -9`` of every node at once. Everything else is as
    in ``SyncObj``; without a ``journalFile`` this is one.

    - ``sync``: when an entry counts as durable, as ``RaftLogStorage.open`` has it.
    - ``allow_no_dump``: accept a ``journalFile`` without a ``fullDumpFile``, though the node
      cannot come back from a restart after the first compaction.
    - ``on_failure``, ``on_step_down``, ``step_down_seconds``, ``cache_bytes`` and the options of
      ``RaftLogStorage.open`` pass through to WalJournal.

    Raises what WalJournal raises, ValueError where no dump file is configured, and WalError where
    the dump that the log needs is missing. ``conf`` must not be in use for another node that is
    just being made.
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
        **journal_options: Any,
    ) -> None:
        arguments = (selfNode, otherNodes, conf, consumers, nodeClass, transport, transportClass)
        path = None if conf is None else conf.journalFile
        if path is None:
            super().__init__(*arguments)
            return
        check_dump(conf, allow_no_dump=allow_no_dump)

        def make_journal() -> WalJournal:
            conf.journalFile = path
            return WalJournal(path, sync=sync, allow_no_dump=allow_no_dump, **journal_options)

        # pysyncobj would open a journal of its own at that path first
        conf.journalFile = None
        self.__dict__["_WalSyncObj__make_journal"] = make_journal
        try:
            _make(self, functools.partial(super().__init__, *arguments))
        finally:
            conf.journalFile = path


for _name in HOOKS:
    setattr(WalSyncObj, _name, _hooked(_name))
for _name, _slot in _SLOTS.items():
    setattr(WalSyncObj, _name, _slot)


# --- install ---------------------------------------------------------------------------------

_CREATE_JOURNAL_MODULES = (pysyncobj.journal, pysyncobj.syncobj, pysyncobj)
_installed_journals: weakref.WeakSet[WalJournal] = weakref.WeakSet()


def install(
    *, sync: LogSync | str = LogSync.IMMEDIATE, allow_no_dump: bool = False, **journal_options: Any
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
        journal = WalJournal(
            journalFile, sync=policy, allow_no_dump=allow_no_dump, **journal_options
        )
        _installed_journals.add(journal)
        return journal

    for module in _CREATE_JOURNAL_MODULES:
        module.createJournal = create_journal
    for name, slot in _SLOTS.items():
        setattr(SyncObj, name, slot)
    for name in HOOKS:
        setattr(SyncObj, name, _hooked(name))
    init = _originals["__init__"]

    @functools.wraps(init)
    def make(self: Any, *arguments: Any, **named: Any) -> None:
        _make(self, functools.partial(init, self, *arguments, **named))

    SyncObj.__init__ = make


def uninstall() -> None:
    """Takes :func:`install` back: a SyncObj made from now on has pysyncobj's own journal.

    Nodes that still live keep their WAL directories, and answer as they did.
    """
    for module in _CREATE_JOURNAL_MODULES:
        module.createJournal = _create_journal
    _remove(_MAKING_SLOTS)
    if all(journal.is_closed for journal in _installed_journals):
        _remove(_LIVING_SLOTS)
        for name, original in _originals.items():
            setattr(SyncObj, name, original)


def _remove(slots: dict[str, Any]) -> None:
    for name in slots:
        if name in SyncObj.__dict__:
            delattr(SyncObj, name)
