"""The private names of pysyncobj's that durability relies on, and whether they are still there.

A pysyncobj that changed gives an error, never a silent loss of durability.
"""

from __future__ import annotations

import inspect
from types import FunctionType

from pysyncobj import SyncObj
from pysyncobj.journal import Journal
from pysyncobj.serializer import Serializer
from pysyncobj.version import VERSION

from ._journal import WalJournal
from ._node import RAFT_LOG

__all__ = ["RELIED_ON", "SUPPORTED_VERSIONS", "check_private_names"]

#: the versions of pysyncobj whose source was read
SUPPORTED_VERSIONS = ("0.3.16", "0.3.17")

#: what each of SyncObj's methods must take, and the names that its code must use
RELIED_ON: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "__init__": (
        ("self", "selfNode", "otherNodes", "conf", "consumers", "nodeClass", "transport"),
        (
            RAFT_LOG,
            "_SyncObj__conf",
            "createJournal",
            "_SyncObj__needLoadDumpFile",
            "_SyncObj__thread",
            "_SyncObj__destroying",
            "_SyncObj__properies",
        ),
    ),
    "_onTick": (
        ("self", "timeToWait"),
        (
            RAFT_LOG,
            "_SyncObj__needLoadDumpFile",
            "_SyncObj__raftState",
            "setRaftCommitIndex",
            "_checkCommandsToApply",
            "_poller",
            "poll",
            "_SyncObj__applyLogEntries",
        ),
    ),
    "_checkCommandsToApply": (("self",), (RAFT_LOG, "add")),
    "_SyncObj__sendNextNodeIdx": (
        ("self", "node", "reset", "nextNodeIdx", "success"),
        ("_SyncObj__transport", "send"),
    ),
    "_SyncObj__onMessageReceived": (
        ("self", "node", "message"),
        (RAFT_LOG, "add", "_SyncObj__sendNextNodeIdx", "_SyncObj__setCurrentTerm"),
    ),
    "_SyncObj__setCurrentTerm": (
        ("self", "term", "votedForNodeId"),
        (RAFT_LOG, "setCurrentTerm"),
    ),
    "_SyncObj__loadDumpFile": (("self", "clearJournal"), (RAFT_LOG, "clear", "add")),
    "_SyncObj__deleteEntriesTo": (("self", "toIDx"), (RAFT_LOG, "deleteEntriesTo")),
    "_SyncObj__setState": (("self", "newState"), ("_SyncObj__raftState",)),
    "_SyncObj__onLeaderChanged": (("self",), ("_SyncObj__commandsWaitingReply",)),
    "_SyncObj__callErrCallback": (("self", "err", "callback"), ()),
}


def check_private_names() -> None:
    """Raises ImportError where pysyncobj is not as it was when this was written."""
    missing = []
    if VERSION not in SUPPORTED_VERSIONS:
        missing.append(f"its version is {VERSION}")
    for name, (parameters, names) in RELIED_ON.items():
        method = SyncObj.__dict__.get(name)
        if not isinstance(method, FunctionType):
            missing.append(f"SyncObj.{name} is missing")
            continue
        if tuple(inspect.signature(method).parameters)[: len(parameters)] != parameters:
            missing.append(f"SyncObj.{name} takes other parameters")
        used = method.__code__.co_names
        missing += [f"SyncObj.{name} does not use {n}" for n in names if n not in used]
    for name in ("serialize", "setTransmissionData"):
        method = vars(Serializer).get(name)
        if not isinstance(method, FunctionType) or "atomicReplace" not in method.__code__.co_names:
            missing.append(f"Serializer.{name} does not use atomicReplace")
    journal_methods = {n for n, m in vars(Journal).items() if inspect.isfunction(m)}
    missing += [f"Journal.{n} is new" for n in sorted(journal_methods - set(dir(WalJournal)))]
    missing += [
        f"Journal.{n} is not implemented"
        for n in sorted(journal_methods)
        if getattr(WalJournal, n, None) is vars(Journal)[n]
    ]
    if missing:
        raise ImportError(
            f"hqlwal_raft works with pysyncobj {', '.join(SUPPORTED_VERSIONS)}; this one differs "
            f"in what its durability relies on: {'; '.join(missing)}"
        )
