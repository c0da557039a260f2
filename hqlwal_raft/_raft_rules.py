"""Raft's own demands on a vote, a committed log id and a purge, as pure functions of log ids.

Called where a store checks Raft's rules (``check_raft``), by the owner of the log, before
anything is changed. That the terms of entries never fall is judged where entries are encoded
(``_entry_rules.refusal``). It must not know a log.
"""

from __future__ import annotations

from ._types import LogId, Vote
from .errors import RaftRuleError

__all__ = ["check_committed", "check_purge", "check_vote_change", "refuse_conflict"]

_OTHERWISE = "(check_raft=False takes any)"


def check_vote_change(saved: Vote | None, vote: Vote) -> None:
    """Whether a vote may follow the saved one: else the node could vote twice in a term."""
    if saved is None or vote.term > saved.term:
        return
    if vote.term < saved.term:
        why = f"its term is lower than {saved.term}"
    elif saved.node_id is not None and vote.node_id != saved.node_id:
        why = "in this term another node was voted for"
    elif saved.committed and not vote.committed:
        why = "it unsays that a leader was found in this term"
    else:
        return
    raise RaftRuleError(
        f"{vote} cannot follow the saved {saved}: {why}. Read the saved vote before you answer "
        f"for a term {_OTHERWISE}",
        rule="vote",
        given=vote,
        held=saved,
    )


def check_committed(log_id: LogId, held: LogId | None, last: LogId | None) -> None:
    """Whether an entry may be called committed; ``held`` is what has its index."""
    if held == log_id:
        return
    there = f"the log has {held} there" if held is not None else f"the log ends with {last}"
    raise RaftRuleError(
        f"{log_id} cannot be committed: {there}. Append it first; what is committed is in the "
        f"log, or the purge frontier {_OTHERWISE}",
        rule="committed",
        given=log_id,
        held=held,
    )


def check_purge(log_id: LogId, held: LogId | None) -> None:
    """Whether a purge up to an entry of the log names that entry's term."""
    if held is None or held.term == log_id.term:
        return
    raise RaftRuleError(
        f"a purge up to {log_id}, but the log has {held} there: what is purged must be what the "
        f"snapshot holds. Truncate first if the snapshot's is the right one {_OTHERWISE}",
        rule="purge",
        given=log_id,
        held=held,
    )


def refuse_conflict(log_id: LogId, committed: LogId) -> None:
    """An entry that is to replace another one of its index, where that one is committed."""
    raise RaftRuleError(
        f"{log_id} cannot be appended: the log has another entry there, and holds what is "
        f"committed up to {committed}, which never changes. One of the two nodes has lost what it "
        f"acknowledged: find out which {_OTHERWISE}",
        rule="committed",
        given=log_id,
        held=committed,
    )
