"""What every contestant can do, the floor, and ours. Measures nothing and knows no peer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Self

from anyio.from_thread import start_blocking_portal

from hqlwal_raft import Entry, LogId, RaftLogStorage, StorageStatistics

__all__ = [
    "RECORD_OVERHEAD_BYTES",
    "Append",
    "AsyncPeer",
    "Floor",
    "HandOver",
    "Maker",
    "Ours",
    "OursBlocking",
    "Peer",
    "entries_maker",
    "is_available",
]

#: bytes that a record of ours takes besides its payload: the floor writes as many
RECORD_OVERHEAD_BYTES = 32

#: appends a batch that was made before
Append = Callable[[Any], object]
AsyncAppend = Callable[[Any], Awaitable[object]]
#: makes the batch whose first index is given
Maker = Callable[[int], Any]


def entries_maker(payload: bytes, batch: int) -> Maker:
    if batch == 1:
        return lambda first: [Entry(1, first, payload)]
    return lambda first: [Entry(1, index, payload) for index in range(first, first + batch)]


class Peer:
    """A synchronous contestant, open in one directory."""

    name: ClassVar[str]
    #: the module it needs
    needs: ClassVar[str] = ""
    #: leaves out a part of the work, to show what that part costs
    is_bare: ClassVar[bool] = False
    #: can be asked for entries
    can_read: ClassVar[bool] = True

    def __init__(self, path: str, *, durable: bool) -> None:
        os.makedirs(path, exist_ok=True)
        self.path = path
        self.durable = durable

    @staticmethod
    def maker(payload: bytes, batch: int) -> Maker:
        """Makes what ``appender``'s function takes, outside the time."""
        return entries_maker(payload, batch)

    def appender(self, payload: bytes, batch: int) -> Append:
        """A function that appends a batch that ``maker`` made of these."""
        return self.append

    def fill(self, payload: bytes, entries: int, batch: int) -> None:
        """Appends that many entries from 1 on, whole batches."""
        make, append = self.maker(payload, batch), self.appender(payload, batch)
        for first in range(1, entries + 1, batch):
            append(make(first))

    def append(self, entries: list[Entry]) -> None:
        raise NotImplementedError

    def last(self) -> int:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[Any]:
        """What is in ``[start, stop)``."""
        raise NotImplementedError

    def read_one(self, index: int) -> Any:
        raise NotImplementedError

    def purge(self, through: int) -> None:
        """Removes [.., through], durably."""
        raise NotImplementedError

    def truncate(self, start: int) -> None:
        """Removes [start, ∞), durably."""
        raise NotImplementedError

    def sync(self) -> None:
        """What was appended is durable on return."""

    def close(self) -> None:
        raise NotImplementedError


class AsyncPeer:
    """A contestant with coroutines, open in one directory."""

    name: ClassVar[str]
    needs: ClassVar[str] = ""

    def __init__(self, path: str, *, durable: bool) -> None:
        self.path = path
        self.durable = durable

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *_: object) -> None:
        raise NotImplementedError

    @staticmethod
    def maker(payload: bytes, batch: int) -> Maker:
        return entries_maker(payload, batch)

    def appender(self, payload: bytes, batch: int) -> AsyncAppend:
        return self.append

    async def append(self, entries: list[Entry]) -> None:
        raise NotImplementedError


class Floor(Peer):
    """What no store can beat: one prepared write into an allocated file, then fdatasync."""

    name = "floor"
    can_read = False
    FILE_BYTES = 256 << 20

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        self._file = os.open(os.path.join(path, "floor"), os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self._file, 0, self.FILE_BYTES)
        os.fsync(self._file)

    def appender(self, payload: bytes, batch: int) -> Append:
        data = (bytes(RECORD_OVERHEAD_BYTES) + payload) * batch
        size = len(data)
        last = self.FILE_BYTES - size
        offset = 0

        def buffered(_: object) -> None:
            nonlocal offset
            os.pwrite(self._file, data, offset)
            offset += size
            if offset > last:
                offset = 0

        def durable(batch: object) -> None:
            buffered(batch)
            os.fdatasync(self._file)

        return durable if self.durable else buffered

    def close(self) -> None:
        os.close(self._file)


class HandOver(AsyncPeer):
    """What a store that syncs in a thread cannot beat: the floor's work there, and an eventfd each
    way. Nothing is encoded, nothing is kept.
    """

    name = "bare hand-over"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._floor = Floor(self.path, durable=self.durable)
        self._wanted = os.eventfd(0, os.EFD_CLOEXEC)
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_over = False
        self._work: Append = int
        self._future: asyncio.Future[None] | None = None
        self._create_future = loop.create_future
        loop.add_reader(self._done, self._settle)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        os.eventfd_write(self._wanted, 1)
        self._thread.join()
        asyncio.get_running_loop().remove_reader(self._done)
        os.close(self._wanted)
        os.close(self._done)
        self._floor.close()

    def _run(self) -> None:
        wanted, done = self._wanted, self._done
        while True:
            os.eventfd_read(wanted)
            if self._is_over:
                return
            self._work(0)
            os.eventfd_write(done, 1)

    def _settle(self) -> None:
        os.eventfd_read(self._done)
        assert self._future is not None
        self._future.set_result(None)

    def appender(self, payload: bytes, batch: int, *, is_idle: bool = False) -> AsyncAppend:
        """``is_idle``: nothing is done in the thread."""
        if not is_idle:
            self._work = self._floor.appender(payload, batch)
        create_future, wanted = self._create_future, self._wanted

        def append(_: object) -> Awaitable[object]:
            future = self._future = create_future()
            os.eventfd_write(wanted, 1)
            return future

        return append


class Ours(AsyncPeer):
    """The store of this package; ``policy`` overrides what ``durable`` says."""

    name = "hqlwal"

    def __init__(
        self, path: str, *, durable: bool, policy: str | None = None, **options: Any
    ) -> None:
        super().__init__(path, durable=durable)
        self.policy = policy or ("immediate" if durable else "immediate_async")
        self.options = options

    async def __aenter__(self) -> Self:
        self._opening = RaftLogStorage.open(self.path, sync=self.policy, **self.options)
        self.store = await self._opening.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opening.__aexit__(None, None, None)

    def appender(self, payload: bytes, batch: int) -> AsyncAppend:
        return self.store.append  # no coroutine in between

    async def fill(self, payload: bytes, entries: int, batch: int) -> None:
        """Appends that many entries from 1 on, whole batches; they are durable on return."""
        make, append = self.maker(payload, batch), self.store.append
        for first in range(1, entries + 1, batch):
            await append(make(first))
        await self.store.flush()

    async def last(self) -> int:
        last = (await self.store.get_log_state()).last_log_id
        return last.index if last else 0


class OursBlocking(Peer):
    """Ours driven from a plain thread, for steps that are long against a thread's hop."""

    name = "hqlwal"

    def __init__(self, path: str, *, durable: bool, **options: Any) -> None:
        super().__init__(path, durable=durable)
        self._stack = contextlib.ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())
        policy = "immediate" if durable else "immediate_async"
        opening = RaftLogStorage.open(path, sync=policy, **options)
        self.store = self._stack.enter_context(self._portal.wrap_async_context_manager(opening))

    def statistics(self) -> StorageStatistics:
        return self._portal.call(self.store.statistics)

    def append(self, entries: list[Entry]) -> None:
        self._portal.call(self.store.append, entries)

    def last(self) -> int:
        last = self._portal.call(self.store.get_log_state).last_log_id
        return last.index if last else 0

    def read(self, start: int, stop: int) -> list[Any]:
        return self._portal.call(self.store.try_get_log_entries, start, stop)

    def read_one(self, index: int) -> Any:
        return self.read(index, index + 1)[0]

    def purge(self, through: int) -> None:
        self._portal.call(self.store.purge, LogId(1, through))

    def truncate(self, start: int) -> None:
        self._portal.call(self.store.truncate, LogId(1, start))

    def sync(self) -> None:
        self._portal.call(self.store.flush)

    def close(self) -> None:
        self._stack.close()


def is_available(contestant: type[Peer | AsyncPeer]) -> bool:
    return not contestant.needs or importlib.util.find_spec(contestant.needs) is not None
