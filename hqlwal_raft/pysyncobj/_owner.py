"""The node that owns a journal, as far as a journal asks about it.

Called in the node's thread; ``is_abandoned`` and ``is_ticking`` by any. It must not know the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from . import _repairs
from ._entries import PlainEntry

__all__ = ["Owner"]

#: pysyncobj's _RAFT_STATE.LEADER
_LEADER = 2
#: shorter waits for the disk are not worth a correction
_SHORT_SECONDS = 0.001


class Owner:
    """Nobody, for a bare journal; a node, weakly held, once the journal is attached to it."""

    def __init__(self) -> None:
        self.is_node = False
        self._node: Callable[[], Any] = _nobody

    def become(self, node: Any) -> None:
        self.is_node = True
        self._node = weakref.ref(node)

    def _state(self) -> dict[str, Any]:
        node = self._node()
        return {} if node is None else node.__dict__

    def is_leader(self) -> bool:
        return self._state().get("_SyncObj__raftState") == _LEADER

    def is_starting(self) -> bool:
        """Whether the dump that is being loaded is the node's own, at its start."""
        return bool(self._state().get("_SyncObj__needLoadDumpFile", True))

    def is_abandoned(self) -> bool:
        """Whether the node is on its way out, or will never tick again."""
        if self._node() is None:
            return self.is_node
        state = self._state()
        thread = state.get("_SyncObj__thread")
        if thread is None:
            return False
        return bool(state.get("_SyncObj__destroying")) or not thread.is_alive()

    def is_ticking(self) -> bool:
        """Whether the node's own thread still runs."""
        thread = self._state().get("_SyncObj__thread")
        return thread is not None and thread.is_alive()

    def note_wait(self, seconds: float) -> None:
        """The node's thread has waited for its own disk."""
        if seconds >= _SHORT_SECONDS and (node := self._node()) is not None:
            _repairs.push_election_deadline(node, seconds)

    def apply_membership_again(self, entries: Callable[[], Iterable[PlainEntry]]) -> None:
        """Entries are visible again that pysyncobj had deleted."""
        node = self._node()
        if node is not None and node.conf.dynamicMembershipChange:
            _repairs.apply_membership_again(node, entries())


def _nobody() -> None:
    return None
