"""Reading a node's log beside the node, from an event loop: every call is made in a thread.

Knows the blocking store, but no journal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .._environment import Environment
from .._types import Entry, LogId, LogState, Vote
from ..blocking import BlockingRaftLogStorage

__all__ = ["AwaitedReader", "Portal"]

T = TypeVar("T")

#: so many entries of a stream are read at a time
_STREAM_ENTRIES = 256


class AwaitedReader:
    """The reading methods of :class:`hqlwal_raft.RaftLogStorage`, on any event loop."""

    def __init__(self, store: BlockingRaftLogStorage, environment: Environment) -> None:
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

    async def read_committed(self) -> LogId | None:
        return await self._await(self._store.read_committed)

    async def read_state(self) -> bytes | None:
        return await self._await(self._store.read_state)

    async def wait_durable(self, log_id: LogId) -> None:
        await self._await(partial(self._store.wait_durable, log_id))

    async def flush(self) -> None:
        await self._await(self._store.flush)


def _some(entries: Generator[Entry]) -> list[Entry]:
    return list(islice(entries, _STREAM_ENTRIES))


class Portal:
    """An event loop in a thread of its own, for those who have none."""

    def __init__(self, environment: Environment, name: str) -> None:
        self._started: Future[BlockingPortal] = Future()
        self._ended: Future[None] = Future()
        # A daemon: a program that ends does not wait for it.
        environment.start_thread(self._run, name)
        self.portal = self._started.result()

    def close(self) -> None:
        self.portal.call(self.portal.stop, True)  # cancels what still runs
        self._ended.result()

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        finally:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()
