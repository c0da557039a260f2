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
from ._unsaved_votes import SAVES_VOTES, VOTE

__all__ = ["RELIED_ON", "SUPPORTED_VERSIONS", "check_private_names"]

#: the versions of pysyncobj whose source was read
SUPPORTED_VERSIONS = tuple(f"0.3.{patch}" for patch in range(11, 18))

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
        (
            RAFT_LOG,
            "add",
            "_SyncObj__sendNextNodeIdx",
            "_SyncObj__setCurrentTerm" if SAVES_VOTES else VOTE,
            "_SyncObj__raftElectionDeadline",
            "_SyncObj__raftCommitIndex",
            "setTransmissionData",
            "_SyncObj__parseChangeClusterRequest",
            "_SyncObj__doChangeCluster",
        ),
    ),
    "_SyncObj__loadDumpFile": (("self", "clearJournal"), (RAFT_LOG, "clear", "add")),
    "_SyncObj__deleteEntriesTo": (("self", "toIDx"), (RAFT_LOG, "deleteEntriesTo")),
    "_SyncObj__setState": (("self", "newState"), ("_SyncObj__raftState",)),
    "_SyncObj__onLeaderChanged": (("self",), ("_SyncObj__commandsWaitingReply",)),
    "_SyncObj__callErrCallback": (("self", "err", "callback"), ()),
    "_SyncObj__doChangeCluster": (("self", "request", "reverse"), ()),
    "_SyncObj__parseChangeClusterRequest": (("self", "command"), ()),
    "_SyncObj__tryLogCompaction": (
        ("self",),
        ("_SyncObj__serializer", "checkSerializing", "serialize", "_SyncObj__raftLastApplied"),
    ),
    "getStatus": (("self",), ("hasQuorum",)),
    "isReady": (("self",), ("_SyncObj__onReadyCalled",)),
}
if SAVES_VOTES:
    RELIED_ON["_SyncObj__setCurrentTerm"] = (
        ("self", "term", "votedForNodeId"),
        (RAFT_LOG, "setCurrentTerm"),
    )

#: the same of its Serializer
RELIED_ON_IN_SERIALIZER: dict[str, tuple[str, ...]] = {
    "serialize": ("atomicReplace", "_Serializer__pid"),
    "setTransmissionData": (
        "atomicReplace",
        "_Serializer__incomingTransmissionFile",
        "_Serializer__inMemorySerializedData",
    ),
    "deserialize": ("_Serializer__fileName",),
    "checkSerializing": ("_Serializer__pid",),
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
    for name, names in RELIED_ON_IN_SERIALIZER.items():
        method = vars(Serializer).get(name)
        used = method.__code__.co_names if isinstance(method, FunctionType) else ()
        missing += [f"Serializer.{name} does not use {n}" for n in names if n not in used]
    journal_methods = {n for n, m in vars(Journal).items() if inspect.isfunction(m)}
    missing += [f"Journal.{n} is new" for n in sorted(journal_methods - set(dir(WalJournal)))]
    missing += [
        f"Journal.{n} is not implemented"
        for n in sorted(journal_methods)
        if getattr(WalJournal, n, None) is vars(Journal)[n]
    ]
    if missing:
        raise ImportError(
            f"hqlwal_raft works with pysyncobj {SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]}; "
            f"this one differs in what its durability relies on: {'; '.join(missing)}. Install one "
            f"that it knows: pip install 'pysyncobj=={SUPPORTED_VERSIONS[-1]}'"
        )
