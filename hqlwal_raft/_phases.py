"""The phases of a committer, and what its parts may ask of it.

| phase    | new writes         | the lane            | goes on to                         |
|----------|--------------------|---------------------|------------------------------------|
| OPEN     | are accepted       | whatever was called | CLOSING, POISONED, CLOSED (abandon)|
| CLOSING  | WalClosedError     | what was accepted   | CLOSED, POISONED                   |
| POISONED | WalPoisonedError   | nothing new         | CLOSED                             |
| CLOSED   | WalClosedError     | nothing             |                                    |
"""

from __future__ import annotations

import enum
from typing import Protocol

__all__ = ["Order", "Phase"]


class Phase(enum.Enum):
    """See the module."""

    OPEN = "open"
    CLOSING = "closing"
    POISONED = "poisoned"
    CLOSED = "closed"


class Order(Protocol):
    """What is asked of a committer by its parts: the commits, the lane, the chores."""

    phase: Phase
    poison: BaseException | None

    @property
    def is_open(self) -> bool: ...

    @property
    def is_living(self) -> bool:
        """Whether it is neither poisoned nor closed."""

    @property
    def waits_for_quiet(self) -> bool:
        """Whether an operation that must be alone is on the lane, or next."""

    @property
    def has_append_first(self) -> bool:
        """Whether an append waits for what a chore or the lane does."""

    @property
    def is_lane_free(self) -> bool:
        """Whether neither a commit nor an operation is on it."""

    def refuse_first(self, error: BaseException) -> None: ...

    def must_begin_with(self, index: int) -> None:
        """The log is empty again: whatever waits to follow the entry does not become the first."""

    def advance(self) -> None:
        """Starts whatever may start now."""

    def has_changed(self, *, by_commit: bool) -> None:
        """The log is another one now: who follows it is told, and chores may go on."""

    def fall(self, error: BaseException) -> None: ...

    def has_ended(self) -> None:
        """The log is closed: threads and parts are let go."""
