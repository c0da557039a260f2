"""Reading a node's log beside the node, from an event loop: every call is made in a thread.

Knows the blocking store, but no journal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from itertools import islice
from typing import TypeVar

from .._environment import Environment
from .._types import Entry, LogId, LogState, Vote
from ..blocking import BlockingRaftLogReader

__all__ = ["AwaitedReader"]

T = TypeVar("T")

#: so many entries of a stream are read at a time
_STREAM_ENTRIES = 256


class AwaitedReader:
    """The reading methods of :class:`hqlwal_raft.RaftLogReader`, on any event loop."""

    def __init__(self, store: BlockingRaftLogReader, environment: Environment) -> None:
        self._store = store
        self._environment = environment

    async def _await(self, call: Callable[[], T]) -> T:
        return await self._environment.run_in_thread(call)

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        return await self._await(partial(self._store.try_get_log_entries, start, stop))

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        call = partial(self._store.limited_get_log_entries, start, stop, max_bytes)
        return await self._await(call)

    async def try_get_log_entry(self, index: int) -> Entry | None:
        return await self._await(partial(self._store.try_get_log_entry, index))

    async def log_id_at(self, index: int) -> LogId | None:
        return await self._await(partial(self._store.log_id_at, index))

    async def entries_stream(self, start: int, stop: int | None = None) -> AsyncGenerator[Entry]:
        entries = self._store.entries_stream(start, stop)
        while some := await self._await(partial(_some, entries)):
            for entry in some:
                yield entry

    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry]:
        entries = self._store.leader_bounded_stream(vote, start, stop)
        while some := await self._await(partial(_some, entries)):
            for entry in some:
                yield entry

    async def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        return await self._await(partial(self._store.get_key_log_ids, first, last))

    async def get_log_state(self) -> LogState:
        return await self._await(self._store.get_log_state)

    async def read_vote(self) -> Vote | None:
        return await self._await(self._store.read_vote)


def _some(entries: Generator[Entry]) -> list[Entry]:
    return list(islice(entries, _STREAM_ENTRIES))
