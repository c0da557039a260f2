"""What a call came to: answers, and problems. And how the proofs open a store and look at it.

Plain values for ``store`` and ``operations``; nothing here judges.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio

from hqlwal_raft import RaftLogStorage, WalPoisonedError
from hqlwal_raft._environment import Environment
from tests.torture.ledger import Node, View

__all__ = ["DIRECTORY", "Answer", "Problem", "WasCancelled", "look", "opened"]

DIRECTORY = "/node/log"
SEGMENT_SIZE = 8192
#: what may come out of a call that was interrupted
_INTERRUPTS = (KeyboardInterrupt, MemoryError)


class WasCancelled(Exception):
    """In the place of a result: what waited for the call was cancelled."""


class Problem(NamedTuple):
    """A promise that was broken."""

    #: "hang", "untyped", "lost", "half", "callback", "descriptor", "lock", "refused" …
    kind: str
    #: the operation during which it showed
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.where}): {self.what}"


@dataclass(eq=False)
class Answer:
    """One call, and what became of it."""

    operation: str
    is_answered: bool = False
    value: Any = None
    error: BaseException | None = None
    #: what the callback was called with, where one was given
    calls: list[BaseException | None] | None = None
    #: it was readable and is taken back, as the callback was told
    is_taken_back: bool = False
    is_settled: bool = False
    #: it was refused, and its first part may have been done
    is_half: bool = False
    #: what an append adds to the ledger
    nodes: list[Node] = field(default_factory=list)
    #: notes in the ledger that it succeeded; that it was refused and nothing was changed
    acknowledge: Callable[[], object] = lambda: None
    undo: Callable[[], object] = lambda: None
    #: compares a value that is right with the one that came
    check: Callable[[Any], str | None] = lambda _value: None

    @property
    def is_unknown(self) -> bool:
        """Whether the operation may have been carried out or not."""
        return not self.is_answered or isinstance(
            self.error, (*_INTERRUPTS, anyio.get_cancelled_exc_class())
        )

    @property
    def is_refused(self) -> bool:
        """Whether the operation must have changed nothing. A cancelled one is carried out."""
        return self.is_taken_back or (
            self.error is not None
            and not isinstance(self.error, WalPoisonedError)
            and not self.is_unknown
            and not isinstance(self.error, WasCancelled)
        )


def opened(
    environment: Environment, directory: str = DIRECTORY, **options: Any
) -> AbstractAsyncContextManager[RaftLogStorage]:
    options = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, **options}
    return RaftLogStorage.open(directory, environment=environment, **options)


async def look(store: RaftLogStorage) -> View:
    """Everything a store shows."""
    entries = tuple(await store.try_get_log_entries(0))
    state = await store.get_log_state()
    return View(
        state.last_purged_log_id,
        state.last_log_id,
        entries,
        await store.read_vote(),
        await store.read_committed(),
    )
