"""What every contestant can do, the floor, and ours. Measures nothing and knows no peer."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Self

from anyio.from_thread import start_blocking_portal

from hqlwal_raft import Entry, LogId, RaftLogStorage, StorageStatistics

__all__ = [
    "RECORD_OVERHEAD_BYTES",
    "Append",
    "AsyncPeer",
    "Floor",
    "Ours",
    "OursBlocking",
    "Peer",
    "is_available",
]

#: bytes that a record of ours takes besides its payload: the floor writes as many
RECORD_OVERHEAD_BYTES = 32

#: appends a batch whose first index is given
Append = Callable[[int], object]
AsyncAppend = Callable[[int], Awaitable[object]]


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

    def appender(self, payload: bytes, batch: int) -> Append:
        """A function that appends ``batch`` entries from a first index on."""
        append = self.append
        if batch == 1:
            return lambda first: append([Entry(1, first, payload)])
        return lambda first: append(
            [Entry(1, index, payload) for index in range(first, first + batch)]
        )

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

    def appender(self, payload: bytes, batch: int) -> AsyncAppend:
        append = self.append
        if batch == 1:
            return lambda first: append([Entry(1, first, payload)])
        return lambda first: append(
            [Entry(1, index, payload) for index in range(first, first + batch)]
        )

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

        def buffered(_: int) -> None:
            nonlocal offset
            os.pwrite(self._file, data, offset)
            offset += size
            if offset > last:
                offset = 0

        def durable(first: int) -> None:
            buffered(first)
            os.fdatasync(self._file)

        return durable if self.durable else buffered

    def close(self) -> None:
        os.close(self._file)


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
        append = self.store.append  # no coroutine in between
        if batch == 1:
            return lambda first: append([Entry(1, first, payload)])
        return lambda first: append(
            [Entry(1, index, payload) for index in range(first, first + batch)]
        )


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
