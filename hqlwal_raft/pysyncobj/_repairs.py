"""Habits of pysyncobj's that cost an acknowledged command or a node, each mended in one place.

One small function for each, called through this module by the others, so that a test can take
one out and see what it is good for. They take plain values, or a node whose private state they
change in its own thread. None of them may wait.
"""

# ruff: noqa: SLF001  the private names are this module's business
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pysyncobj.syncobj

from ..errors import CorruptionError
from ._entries import PlainEntry

__all__ = [
    "apply_membership_again",
    "go_back_to_commit",
    "is_damage",
    "is_newer_dump",
    "keep_commit_index",
    "lacks_its_dump",
    "push_election_deadline",
    "wait_for_another_leader",
]

_MEMBERSHIP = b"\x02"
_LEADER = 2


def is_newer_dump(end: int, than: int) -> bool:
    """Whether a dump that ends with entry ``end`` may replace one that ends with ``than``.

    A dump only moves forward. What the log has purged, the dump alone has: were an older one
    put in its place (a leader's, which was on its way, or the node's own, which took long), the
    entries between the two would be nowhere, and the node could not start any more.
    """
    return end > than


def keep_commit_index(commit: int, before: int, log_end: int, *, is_installed: bool) -> int:
    """The commit index after a message of a snapshot's piece, which raised it to ``commit``.

    pysyncobj takes the leader's commit index for its own log's, though nothing was compared:
    a leader that was deposed would report success for commands of its own that are about to be
    overwritten. Only the last piece, once the snapshot is installed, says something of the log.
    """
    return commit if is_installed else min(before, log_end)


def go_back_to_commit(next_index: int, committed: int) -> int:
    """The entry that a follower asks for which does not have what comes before ``next_index``.

    pysyncobj asks for the one before that, so its leader goes back one by one, and what then
    follows fills more than one message at some time. The second is turned down as well, with an
    index that is higher than the first's: the leader never gets any further back. What is committed
    is in every later leader's log, so there the search ends at once.
    """
    return min(next_index, committed + 1)


def apply_membership_again(node: Any, entries: Iterable[PlainEntry]) -> None:
    """Applies the membership changes among entries that are visible again without an ``add``.

    pysyncobj took them back when it deleted the entries, and expects them to be added again.
    """
    for command, _, _ in entries:
        if command[:1] == _MEMBERSHIP:
            request = node._SyncObj__parseChangeClusterRequest(command)
            if request is not None:
                node._SyncObj__doChangeCluster(request)


def push_election_deadline(node: Any, seconds: float) -> None:
    """The time in which this node waited for its own disk is not its leader's silence.

    Nobody could be heard meanwhile. An immediate election, deadline 0, stays immediate. A leader's
    deadline is of before it led, and counts again once the first message it reads deposes it.
    """
    if node.__dict__.get("_SyncObj__raftState") == _LEADER:
        wait_for_another_leader(node)
        return
    deadline = node.__dict__.get("_SyncObj__raftElectionDeadline")
    if deadline:
        node.__dict__["_SyncObj__raftElectionDeadline"] = deadline + seconds


def wait_for_another_leader(node: Any) -> None:
    """A leader that gave up its post begins to listen for the next one.

    Its election deadline is of before it led, long past: it would stand for election at once
    against whoever was elected meanwhile.
    """
    now = pysyncobj.syncobj.monotonicTime()
    timeout = node._SyncObj__generateRaftTimeout()
    node.__dict__["_SyncObj__raftElectionDeadline"] = now + timeout


def is_damage(error: Exception) -> bool:
    """Whether an error that a read met stops the node, as a failed write does.

    A leader that cannot read an entry never gets its followers further; it must let another lead.
    """
    return isinstance(error, CorruptionError | OSError)


def lacks_its_dump(applied: int, frontier: int) -> bool:
    """Whether a node that starts with ``applied`` as its last entry has lost its past.

    pysyncobj passes over a dump that is missing or cannot be loaded. Such a node would vote,
    acknowledge and even lead with nothing, and hand its emptiness on to others.
    """
    return applied < frontier
