"""Term, vote and commit index: what a node keeps beside its log.

In the node's thread. Knows the writer, but not what is visible of the log.
"""

from __future__ import annotations

from typing import Any

from ._opening import Opened
from ._votes import node_id_of, vote_of
from ._writing import LogWriter

__all__ = ["SavedState"]


class SavedState:
    """The vote is durable when saved; the commit index may be an older one after a crash."""

    def __init__(self, opened: Opened, writer: LogWriter, first: int, last: int) -> None:
        self._writer = writer
        self._vote = opened.vote
        self.term = 0 if opened.vote is None else opened.vote.term
        self.voted_for = None if opened.vote is None else node_id_of(opened.vote)
        self.commit = self._commit = 1 if opened.committed is None else opened.committed
        # What was saved last may lie beyond the end of the log, lost with entries that were not
        # durable. It must not come true when the log has grown again.
        if last >= first:
            writer.save_committed(max(first, min(self.commit, last)))

    def set_vote(self, term: int, node_id: Any) -> bool:
        """Saves both, durably on return. Says whether the term is a new one."""
        if (term, node_id) != (self.term, self.voted_for):
            vote = vote_of(term, node_id)
            self._writer.save_vote(vote)
            self._vote = vote
        is_new, self.term, self.voted_for = term > self.term, term, node_id
        return is_new

    def save_commit(self, first: int, last: int) -> None:
        """Saves the commit index, clamped to the log ``[first, last]``, if it changed."""
        commit = min(self.commit, last)
        if commit != self._commit and commit >= first:
            self._commit = commit
            self._writer.hand_over()
            self._writer.save_committed(commit)

    def is_of(self, opened: Opened) -> bool:
        """Whether the vote is the one that was found when the log was opened again."""
        return opened.vote == self._vote
