"""Event loops without anything around them, and a system that says what it took of the loop.

For a fresh process: whatever the package imports at its first use is imported then, so nothing
here imports anyio or a module of the benchmarks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeVar

from hqlwal_raft._environment import Environment

__all__ = ["BEAT_SECONDS", "Beat", "Runtime", "WatchedEnvironment"]

T = TypeVar("T")

BEAT_SECONDS = 0.001

_WRITES = (
    "pwrite", "pwritev", "fdatasync", "fsync", "posix_fallocate", "ftruncate", "mkdir", "rmdir",
    "rename", "link", "unlink",
)  # fmt: skip
_OTHERS = (
    "open", "close", "pread", "preadv", "lseek", "posix_fadvise", "fstat", "fstatvfs", "flock",
    "ioctl", "stat", "access", "listdir",
)  # fmt: skip


class Runtime:
    """asyncio, uvloop or trio as they are."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "trio":
            import trio

            self.sleep: Callable[[float], Awaitable[None]] = trio.sleep
        else:
            self.sleep = asyncio.sleep

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.name == "trio":
            import trio

            return trio.run(work)  # type: ignore[no-any-return, unused-ignore]

        async def main() -> T:
            return await work()

        factory = None
        if self.name == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    async def beside(self, *works: Callable[[], Awaitable[Any]]) -> None:
        """All of them at a time."""
        if self.name != "trio":
            await asyncio.gather(*(work() for work in works))
            return
        import trio

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)


class Beat:
    """How much later than due a timer of one millisecond fires, until it is stopped."""

    def __init__(self, runtime: Runtime) -> None:
        self._sleep = runtime.sleep
        self._is_over = False
        self.lateness: list[float] = []

    async def watch(self) -> None:
        sleep, note = self._sleep, self.lateness.append
        now = perf_counter()
        while not self._is_over:
            before = now
            await sleep(BEAT_SECONDS)
            now = perf_counter()
            note(now - before - BEAT_SECONDS)

    def stop(self) -> None:
        self._is_over = True

    async def during(self, runtime: Runtime, work: Callable[[], Awaitable[Any]]) -> None:
        """Watches while the work is done, from before its first step."""

        async def watched() -> None:
            try:
                await self._sleep(3 * BEAT_SECONDS)
                self.lateness.clear()
                await work()
                await self._sleep(3 * BEAT_SECONDS)
            finally:
                self.stop()

        await runtime.beside(self.watch, watched)


class _SlowMap:
    """A store through a map waits where the page is being written, so it is a write too."""

    def __init__(self, environment: WatchedEnvironment, real: Any) -> None:
        self._environment = environment
        self._real = real

    def __setitem__(self, place: slice, data: Any, /) -> None:
        def store() -> None:
            self._real[place] = data

        self._environment.timed("store through a map", store, is_write=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class WatchedEnvironment(Environment):
    """Notes what each system call takes of the loop's thread; writes can be made slow."""

    def __init__(self) -> None:
        #: what each write and sync takes more, whichever thread makes it
        self.delay_seconds = 0.0
        #: call → the longest of it that was made in the thread of the loop
        self.longest: dict[str, float] = {}
        self._loop_thread = self.get_ident()
        for name in (*_WRITES, *_OTHERS):
            setattr(self, name, self._wrapped(name, is_write=name in _WRITES))

    def _wrapped(self, name: str, *, is_write: bool) -> Callable[..., Any]:
        real = getattr(self, name)

        def call(*arguments: Any, **named: Any) -> Any:
            return self.timed(name, lambda: real(*arguments, **named), is_write=is_write)

        return call

    def timed(self, name: str, call: Callable[[], T], *, is_write: bool) -> T:
        is_here = self.get_ident() == self._loop_thread
        begin = perf_counter()
        try:
            if is_write and self.delay_seconds:
                time.sleep(self.delay_seconds)
            return call()
        finally:
            if is_here:
                took = perf_counter() - begin
                self.longest[name] = max(self.longest.get(name, 0.0), took)

    def mmap(self, descriptor: int, length: int) -> Any:
        real = super().mmap
        mapped = self.timed("mmap", lambda: real(descriptor, length), is_write=False)
        return _SlowMap(self, mapped)
