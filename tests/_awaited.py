"""The blocking store behind the contract of the asynchronous one: each call in a thread.

The contract speaks of calls made in an order by tasks of one loop. So a call's thread waits until
the call before it was begun, which a hook in the store's lane says; after that they run as they
like. It must not test anything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import anyio

from hqlwal_raft import AppendOutcome, Entry, LogId, LogState, Vote
from hqlwal_raft._answers import call_back
from hqlwal_raft._environment import Environment
from hqlwal_raft.blocking import BlockingRaftLogReader, BlockingRaftLogStorage
from hqlwal_raft.protocols import AppendCallback

T = TypeVar("T")

_END = object()


class Calls:
    """Threads for the calls, and the order in which those are begun."""

    def __init__(self, store: BlockingRaftLogStorage) -> None:
        self._pool = ThreadPoolExecutor(100)
        self._loop = Environment().running_loop()
        self._last = threading.Event()
        self._last.set()
        self._own = threading.local()
        lane = store._lane
        call = lane.call

        def noted(begin: Callable[[], Any]) -> Any:
            begun = getattr(self._own, "begun", None)

            def begin_and_note() -> Any:
                try:
                    return begin()
                finally:
                    if begun is not None:
                        begun.set()

            return call(begin_and_note)

        lane.call = noted  # type: ignore[method-assign]

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    async def make(self, call: Callable[[], T]) -> T:
        """Cancelled, it only ends the waiting."""
        before, begun = self._last, threading.Event()
        self._last = begun

        def run() -> T:
            before.wait()
            self._own.begun = begun
            try:
                return call()
            finally:
                begun.set()

        event = self._loop.event()
        future = self._pool.submit(run)
        future.add_done_callback(lambda _: self.post(event.set))
        await event.wait()
        return future.result()

    def post(self, call: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.post(call)


class AwaitedReader:
    def __init__(self, reader: BlockingRaftLogReader, calls: Calls) -> None:
        self._reader = reader
        self._calls = calls

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        return await self._calls.make(partial(self._reader.try_get_log_entries, start, stop))

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        call = partial(self._reader.limited_get_log_entries, start, stop, max_bytes)
        return await self._calls.make(call)

    async def try_get_log_entry(self, index: int) -> Entry | None:
        return await self._calls.make(partial(self._reader.try_get_log_entry, index))

    async def log_id_at(self, index: int) -> LogId | None:
        return await self._calls.make(partial(self._reader.log_id_at, index))

    def entries_stream(self, start: int, stop: int | None = None) -> AsyncGenerator[Entry]:
        return self._stream(self._reader.entries_stream(start, stop))

    def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry]:
        return self._stream(self._reader.leader_bounded_stream(vote, start, stop))

    async def _stream(self, entries: Generator[Entry]) -> AsyncGenerator[Entry]:
        while True:
            entry: Any = await self._calls.make(partial(next, entries, _END))
            if entry is _END:
                return
            yield entry

    async def follow(self, start: int, *, durable: bool = True) -> AsyncGenerator[list[Entry]]:
        batches = self._reader.follow(start, durable=durable)
        while True:
            yield await self._calls.make(partial(next, batches))

    async def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        return await self._calls.make(partial(self._reader.get_key_log_ids, first, last))

    async def get_log_state(self) -> LogState:
        return await self._calls.make(self._reader.get_log_state)

    async def read_vote(self) -> Vote | None:
        return await self._calls.make(self._reader.read_vote)


class AwaitedStorage(AwaitedReader):
    def __init__(self, store: BlockingRaftLogStorage, calls: Calls) -> None:
        super().__init__(store, calls)
        self._store = store

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        posted = None
        if callback is not None:
            posted = lambda error: self._calls.post(partial(call_back, callback, error))  # noqa: E731
        await self._calls.make(partial(self._store.append, list(entries), posted))

    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        batch = list(entries)
        return await self._calls.make(partial(self._store.append_after, prev_log_id, batch))

    async def truncate(self, log_id: LogId) -> None:
        await self._calls.make(partial(self._store.truncate, log_id))

    async def truncate_after(self, log_id: LogId | None) -> None:
        await self._calls.make(partial(self._store.truncate_after, log_id))

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        await self._calls.make(partial(self._store.purge, log_id, state=state))

    async def save_state(self, data: bytes) -> None:
        await self._calls.make(partial(self._store.save_state, data))

    async def read_state(self) -> bytes | None:
        return await self._calls.make(self._store.read_state)

    async def save_vote(self, vote: Vote) -> None:
        await self._calls.make(partial(self._store.save_vote, vote))

    async def save_committed(self, log_id: LogId | None) -> None:
        await self._calls.make(partial(self._store.save_committed, log_id))

    async def read_committed(self) -> LogId | None:
        return await self._calls.make(self._store.read_committed)

    async def wait_durable(self, log_id: LogId) -> None:
        await self._calls.make(partial(self._store.wait_durable, log_id))

    async def flush(self) -> None:
        await self._calls.make(self._store.flush)

    async def get_log_reader(self) -> AwaitedReader:
        return AwaitedReader(await self._calls.make(self._store.get_log_reader), self._calls)

    async def aclose(self) -> None:
        if self._store.is_closed:
            self._store.close()  # once more; the threads have gone
        else:
            await self._calls.make(self._store.close)


@contextlib.asynccontextmanager
async def open_awaited(path: Any, **options: Any) -> AsyncIterator[AwaitedStorage]:
    store = BlockingRaftLogStorage.open(path, **options)
    calls = Calls(store)
    try:
        yield AwaitedStorage(store, calls)
    finally:
        with anyio.CancelScope(shield=True):
            await AwaitedStorage(store, calls).aclose()
        calls.close()
