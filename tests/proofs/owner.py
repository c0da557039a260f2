"""A guard: nobody but the owner changes the log's memory.

While it stands every attribute that is set on what makes up a log and its committer is looked at.
It knows which classes those are, as ``core`` does. It cannot see what is changed within a list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from hqlwal_raft._answers import Answer, Changes
from hqlwal_raft._commit import Committer
from hqlwal_raft._filling import Filling
from hqlwal_raft._grouping import GroupCommit
from hqlwal_raft._log import Log
from hqlwal_raft._meta import Meta
from hqlwal_raft._on_lane import OnLane
from hqlwal_raft._reads import Reads
from hqlwal_raft._recent import Recent
from hqlwal_raft._segment import Segment
from hqlwal_raft._unsynced import Unsynced

__all__ = ["guarded"]

_MEMORY = (
    *(Answer, Changes, Committer, GroupCommit, OnLane),
    *(Filling, Log, Meta, Reads, Recent, Segment, Unsynced),
)


@contextlib.contextmanager
def guarded(is_owner: Callable[[], bool], complain: Callable[[str], object]) -> Iterator[None]:
    """Complains of whatever is changed where ``is_owner`` says no."""

    def guard(kind: type[Any]) -> Callable[[Any, str, Any], None]:
        plain: Any = kind.__setattr__

        def set_attribute(self: Any, name: str, value: Any) -> None:
            if not is_owner():
                complain(f"{kind.__name__}.{name} was changed by somebody else than the owner")
            plain(self, name, value)

        return set_attribute

    with contextlib.ExitStack() as stack:
        for kind in _MEMORY:
            stack.enter_context(mock.patch.object(kind, "__setattr__", guard(kind)))
        yield
