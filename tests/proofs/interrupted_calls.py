"""The calls of the history that is interrupted, and what each makes of the log.

For ``interrupted``. It must not know how a call is interrupted, nor how it is judged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import anyio

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote

__all__ = ["BEGINNING", "CALLS", "Call", "Held"]


@dataclass(frozen=True)
class Held:
    """What a log should hold; every value is of one moment."""

    entries: tuple[Entry, ...] = ()
    frontier: LogId | None = None
    vote: Vote | None = None

    def append(self, entries: list[Entry]) -> Held:
        return replace(self, entries=(*self.entries, *entries))

    def truncate(self, index: int) -> Held:
        return replace(self, entries=tuple(e for e in self.entries if e.index < index))

    def purge(self, log_id: LogId) -> Held:
        kept = tuple(e for e in self.entries if e.index > log_id.index)
        return replace(self, entries=kept, frontier=log_id)


def _next(held: Held, number: int, size: int, term: int = 1) -> list[Entry]:
    """The next entries that the log takes."""
    first = held.entries[-1].index + 1
    return [
        Entry(term, index, (b"%d of %d." % (index, term)).ljust(size, b"x"))
        for index in range(first, first + number)
    ]


class Call(NamedTuple):
    """One call of the history: what it makes of the log, and how it is made on that."""

    name: str
    then: Callable[[Held], Held]
    make: Callable[[RaftLogStorage, Held, list[Any]], Awaitable[Any]]
    #: it makes several calls of the store: the first of them may stand and the others not
    is_many: bool = False

    def may_leave(self, before: Held, after: Held, live: tuple[Entry, ...]) -> bool:
        """Whether the log may hold these entries after it was interrupted."""
        if self.is_many and len(before.entries) < len(live):
            return live == after.entries[: len(live)]
        return live in (before.entries, after.entries)


def _append(name: str, number: int, size: int, *, has_callback: bool = False) -> Call:
    return Call(
        name,
        lambda held: held.append(_next(held, number, size)),
        lambda store, held, told: store.append(
            _next(held, number, size), (lambda _error: told.append(name)) if has_callback else None
        ),
    )


def _truncate(name: str, number: int) -> Call:
    def index(held: Held) -> int:
        return held.entries[-number].index

    return Call(
        name,
        lambda held: held.truncate(index(held)),
        lambda store, held, _: store.truncate(LogId(1, index(held))),
    )


def _same(name: str, make: Callable[[RaftLogStorage], Awaitable[Any]]) -> Call:
    return Call(name, lambda held: held, lambda store, _held, _told: make(store))


async def _at_once(store: RaftLogStorage, held: Held, told: list[Any]) -> None:
    """Three tasks append; the second has a callback. Raises the first error that one of them met."""
    errors: list[BaseException] = []
    left = _next(held, 3, 64)

    def hear(_error: BaseException | None) -> None:
        told.append("appends at once")

    async def append(callback: Callable[[Any], object] | None) -> None:
        try:  # whichever task goes first has the first entry
            await store.append([left.pop(0)], callback)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(append, hear if number == 1 else None)
    if errors:
        raise errors[0]


async def _stream(store: RaftLogStorage) -> list[Entry]:
    return [entry async for entry in store.entries_stream(7, 11)]


_VOTE = Vote(3, 1)

CALLS = (
    _same("cold read", lambda store: store.try_get_log_entries(2, 4)),
    _append("append", 1, 64),
    _append("append with roll-over", 6, 2000),
    _append("append with callback", 2, 64, has_callback=True),
    Call("appends at once", lambda held: held.append(_next(held, 3, 64)), _at_once, is_many=True),
    _truncate("truncate inside", 1),
    _truncate("truncate across", 6),
    _append("append after a cut", 2, 64),
    Call(
        "purge",
        lambda held: held.purge(held.entries[5].log_id),
        lambda store, held, _: store.purge(held.entries[5].log_id),
    ),
    Call(
        "vote",
        lambda held: replace(held, vote=_VOTE),
        lambda store, _held, _told: store.save_vote(_VOTE),
    ),
    _same("committed", lambda store: store.save_committed(LogId(1, 8))),
    _same("stream", _stream),
    _same("limited read", lambda store: store.limited_get_log_entries(8, None, 3000)),
    _same("key log ids", lambda store: store.get_key_log_ids()),
    _same("flush", lambda store: store.flush()),
)
BEGINNING = Held(tuple(Entry(1, i, (b"%d." % i).ljust(2000, b"x")) for i in range(1, 13)))
