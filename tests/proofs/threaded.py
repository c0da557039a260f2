"""The blocking face with the methods of the async face: each call is made in a thread.

``InThreads`` makes each in a stepped thread of its own, and those that are made at once wait for
each other as threads do; ``Direct`` makes them in the thread that asks, the main thread or a
stepped one. ``ThreadedMachine`` is a kernel in memory whose threads are real, move in lockstep, and stand still for a moment at every
sync, so that others come while one leads. For the proofs. It must not know the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from hqlwal_raft import Entry, Vote
from hqlwal_raft._environment import Environment, Lock
from hqlwal_raft.blocking import BlockingRaftLogStorage

from .answers import DIRECTORY, SEGMENT_SIZE
from .machine import Kernel
from .turns import Deadlock, SteppedThread, Turns, here

__all__ = ["Direct", "InThreads", "Locks", "SteppedLock", "ThreadedMachine", "opened", "run_here"]

T = TypeVar("T")
_SYNC_SECONDS = 0.001
#: virtual: so long the main thread waits for a lock. What an interrupt has had forgotten is found
#: within two seconds
_PATIENCE_SECONDS = 5.0


class SteppedLock:
    """A lock whose takers are stepped threads, or the one that steps them. Where ``lock`` is among
    the stops, a thread stops before it takes one; with ``unlock`` also where it gave one back.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._was_taken = False
        #: who took it: a thread, None for the one that steps them
        self.owner: SteppedThread | None = None
        #: who waits for something may go on while it has any: the one place behind the lock
        self.items: deque[None] = deque([None])

    @property
    def is_held(self) -> bool:
        return not self.items

    def acquire(self, blocking: bool = True) -> bool:  # noqa: FBT002
        thread = here()
        patience = self._turns.now + _PATIENCE_SECONDS
        is_first, self._was_taken = not self._was_taken, True  # there a thread makes it to wait on
        if thread is not None and not is_first and "lock" in self._turns.stops:
            if thread.is_bound:
                thread.is_bound = False
            else:
                self._stop(thread)
        while not self.items:
            if not blocking:
                return False
            if thread is None:
                self._move_others(patience)
            else:
                self._stop(thread)
        self.items.pop()
        self.owner = thread
        return True

    def _stop(self, thread: SteppedThread) -> None:
        thread.waits_for = self
        thread.stop_at("lock")
        thread.waits_for = None

    def _move_others(self, patience: float) -> None:
        runnable = self._turns.runnable()
        if runnable:
            runnable[0].go()
        elif self._turns.now > patience or not self._turns.pass_time():
            raise Deadlock

    def release(self) -> None:
        if self.items:
            raise RuntimeError("release unlocked lock")
        self.owner = None
        self.items.append(None)
        self._turns.moved()
        thread = here()
        if thread is not None and "unlock" in self._turns.stops:
            thread.stop_at("unlock")

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *arguments: object) -> None:
        self.release()


class _Never:
    items = ()


class Locks(Turns):
    """Threads that move only when they are told, and their locks."""

    def lock(self) -> Lock:
        return SteppedLock(self)


class ThreadedMachine(Locks, Kernel):  # type: ignore[misc]  # both have a chance of their own
    """See the module."""

    #: as of a machine without threads, where no job is done beside the loop
    jobs = 0

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        thread = here()
        if name == "fdatasync" and thread is not None:
            self._rest(thread)
        return super()._call(name, call, *args, **options)

    def _rest(self, thread: SteppedThread) -> None:
        thread.waits_for, thread.deadline = _Never(), self.now + _SYNC_SECONDS
        thread.stop_at("fdatasync")
        thread.waits_for = thread.deadline = None


class InThreads:
    """See the module."""

    def __init__(self, environment: Environment, store: Any) -> None:
        self._environment = environment
        self._store = store

    @property
    def _core(self) -> Any:
        return self._store._core

    async def _run(self, method: str, *arguments: Any) -> Any:
        return await self._make(partial(getattr(self._store, method), *arguments))

    async def _make(self, call: Callable[[], Any]) -> Any:
        return await self._environment.run_in_thread(call)

    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        await self._run("append", entries, callback)

    async def entries_stream(self, start: int, stop: int | None = None) -> AsyncIterator[Entry]:
        for entry in await self._make(lambda: list(self._store.entries_stream(start, stop))):
            yield entry

    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncIterator[Entry]:
        for entry in await self._make(
            lambda: list(self._store.leader_bounded_stream(vote, start, stop))
        ):
            yield entry

    async def get_log_reader(self) -> InThreads:
        return type(self)(self._environment, await self._run("get_log_reader"))

    async def aclose(self) -> None:
        await self._run("close")

    def statistics(self) -> Any:
        """In the main thread, for which another one makes the call."""
        return self._store.statistics()

    def __getattr__(self, method: str) -> Any:
        return partial(self._run, method)


class Direct(InThreads):
    """See the module. Its coroutines never wait for an event loop: see :func:`run_here`."""

    async def _make(self, call: Callable[[], Any]) -> Any:
        return call()

    async def entries_stream(self, start: int, stop: int | None = None) -> AsyncIterator[Entry]:
        for entry in self._store.entries_stream(start, stop):
            yield entry

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: str, *, environment: Environment, **options: Any
    ) -> AsyncIterator[InThreads]:
        store = BlockingRaftLogStorage.open(directory, environment=environment, **options)
        try:
            yield cls(environment, store)
        finally:
            store.close()


def run_here(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that makes its calls by ``Direct``."""
    try:
        call.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("it waits for an event loop")


def opened(
    environment: Environment, directory: str = DIRECTORY, **options: Any
) -> AbstractAsyncContextManager[InThreads]:
    options = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, **options}
    return _opened(environment, directory, options)


@asynccontextmanager
async def _opened(
    environment: Environment, directory: str, options: dict[str, Any]
) -> AsyncIterator[InThreads]:
    open_it = partial(BlockingRaftLogStorage.open, directory, environment=environment, **options)
    store = InThreads(environment, await environment.run_in_thread(open_it))
    try:
        yield store
    finally:
        await store.aclose()
