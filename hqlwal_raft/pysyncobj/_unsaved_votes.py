"""Term and vote on pysyncobj before 0.3.16, which keeps them in two plain attributes and saves
neither: here they are durable before the next message leaves, and come back after a restart.

In the node's thread. Newer versions do this themselves through their journal.
"""

from __future__ import annotations

from typing import Any

from pysyncobj import SyncObj

from ._node import journal_of

__all__ = ["SAVES_VOTES", "VOTE", "VoteSlot", "restore"]

#: whether pysyncobj itself has its journal save term and vote
SAVES_VOTES = "_SyncObj__setCurrentTerm" in SyncObj.__dict__

VOTE = "_SyncObj__votedForNodeId"
_TERM = "_SyncObj__raftCurrentTerm"


class VoteSlot:
    """Stands in a class for its nodes' vote. pysyncobj sets it after each change of the term, and
    before each message that depends on either.
    """

    def __set__(self, node: Any, node_id: Any) -> None:
        state = node.__dict__
        # saved first: a vote that could not be saved was not given
        if (journal := journal_of(node)) is not None:
            journal.setCurrentTerm(state[_TERM], node_id)
        state[VOTE] = node_id


def restore(node: Any) -> None:
    """What pysyncobj does from 0.3.16 on, when it has opened its journal."""
    journal = journal_of(node)
    if journal is not None:
        node.__dict__[_TERM] = max(journal.getCurrentTerm(), journal[-1][2])
        node.__dict__[VOTE] = journal.getVotedForNodeId()
