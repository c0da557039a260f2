"""What an environment hands out, as types: maps, locks, queues, events, the way to a loop.

So that a double can give its own. They stand here for ``_environment`` alone, from which all others
import them. No code runs here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol, TypeVar

__all__ = ["Event", "Lock", "Loop", "Map", "Queue"]

T = TypeVar("T")


class Map(Protocol):
    """A shared, writable map of a whole file: what is used of :class:`mmap.mmap`."""

    def __setitem__(self, place: slice, data: Any, /) -> None: ...
    def close(self) -> None: ...


class Event(Protocol):
    """What asyncio's and trio's events have in common. anyio's costs some microseconds more."""

    def set(self) -> Any: ...
    async def wait(self) -> Any: ...


class Queue(Protocol[T]):
    """What is used of :class:`queue.SimpleQueue`."""

    def put(self, item: T, /) -> None: ...
    def get(self, block: bool = True, timeout: float | None = None) -> T: ...  # noqa: FBT001, FBT002


class Lock(Protocol):
    """What is used of :class:`threading.Lock`."""

    def acquire(self, blocking: bool = True) -> bool: ...  # noqa: FBT001, FBT002
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *arguments: object) -> None: ...


class Loop(NamedTuple):
    """The running event loop, as far as it is needed here."""

    #: has a callable called on the loop, from any thread, without waiting for it
    post: Callable[[Callable[[], Any]], Any]
    #: has a callable called on the loop, from the loop, after what is ready to run now
    soon: Callable[[Callable[[], Any]], Any]
    event: Callable[[], Event]
    #: the same as ``soon``, where that is not after all who are about to ask for something too
    gather: Callable[[Callable[[], Any]], Any] | None = None
    #: KeyboardInterrupts and SystemExits that left a call, where the loop itself cannot raise
    #: them: the next task that can is to
    interruptions: deque[BaseException] | None = None
    #: has a callable called on the loop whenever a descriptor can be read; gives what ends that.
    #: None where ``post`` is as quick. Raises NotImplementedError where the loop has no selector
    watch: Callable[[int, Callable[[], Any]], Callable[[], Any]] | None = None
    #: what runs where the caller is, to be compared with ``identity``; None where any thread may
    #: call. In a forked child nothing does
    running: Callable[[], object] | None = None
    identity: object = None
    #: whether it was closed: nothing that is posted is heard
    has_ended: Callable[[], bool] = lambda: False
    #: lets every other task that is ready run once, and is where a task can be cancelled; None where
    #: there are no tasks. What anyio's checkpoint does, without looking for its backend
    checkpoint: Callable[[], Awaitable[object]] | None = None
    #: as anyio names whose it is; empty where that is no event loop
    library: str = ""
