"""``async with`` a store: opening and closing, whatever is cancelled or interrupted meanwhile.

For tasks of the event loop that the store will live on. What is promised: where opening fails or
is cancelled nothing stays open, so the next try finds the lock free; leaving the block closes the
store however it is left. Only a disk that does not answer ends the waiting sooner. It must not
know what a store does in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Protocol, TypeVar

import anyio

from ._answers import Answer
from ._core import Core
from ._environment import Loop
from ._log import Log
from ._options import PATIENCE_SECONDS, Opening, close_unused
from ._threads import Worker

__all__ = ["Block", "open_log_on_loop", "open_on", "patiently"]


class _Store(Protocol):
    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


S = TypeVar("S", bound=_Store)
T = TypeVar("T")
R = TypeVar("R")


class Block(AbstractAsyncContextManager[S]):
    """``async with`` a store, which ``enter`` opens. No generator: an event loop closes one that is
    dropped, and so a store that nobody holds would be closed in silence.
    """

    def __init__(self, path: str, enter: Callable[[], Awaitable[S]]) -> None:
        self._path = path
        self._enter = enter
        self._store: S | None = None

    async def __aenter__(self) -> S:
        if self._store is not None:
            raise RuntimeError(f"{self._path} is open in this block: call open() once more")
        self._store = await self._enter()
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        if isinstance(error, GeneratorExit):  # nobody runs this any more
            store.abandon()
            return
        try:
            if not await patiently(store.aclose):
                await store.aclose()  # the disk does not answer: who is cancelled waits no longer
        except GeneratorExit:  # nor from here on
            store.abandon()
            raise


async def open_log_on_loop(opening: Opening, path: str) -> tuple[Core, Loop]:
    """Opens a log for the loop that runs."""
    environment = opening.ground
    loop = environment.running_loop()
    watch = opening.watch(path, loop.post)
    try:
        disk = environment.start_worker("hqlwal-disk", loop)
    except BaseException:
        watch.end()
        raise
    watch.when_stalled = disk.make_way

    def begin() -> Log:
        _import_backend(loop.library)
        return opening.open_log(path, watch)

    def undo(opened: list[Log]) -> None:
        try:
            for log in opened:
                close_unused(log)
        finally:
            watch.end()

    core = await open_on(
        disk, loop, begin, lambda log: opening.start(path, log, disk, loop, watch), undo
    )
    return core, loop


async def open_on(
    worker: Worker,
    loop: Loop,
    begin: Callable[[], T],
    make: Callable[[T], R],
    undo: Callable[[list[T]], object],
) -> R:
    """Opens something by a worker, and makes on the loop what it is used by. If that fails or is
    cancelled, ``undo`` is given what was opened, nothing stays open, and the worker ends.

    Cancelled, it waits for the worker, so that the next try finds the lock free.
    """
    opened: list[T] = []
    answer = Answer(loop.event())
    worker.submit(lambda: opened.append(begin()), partial(answer.give, loop))
    try:
        await answer.wait()
        return make(opened[0])
    except BaseException:
        undone = Answer(loop.event())
        worker.submit(partial(undo, opened), partial(undone.give, loop))
        worker.stop()
        with contextlib.suppress(OSError):
            await patiently(undone.wait)
        raise


def _import_backend(library: str) -> None:
    """What anyio imports when it is first used takes some 20 ms: not on the loop, at a read."""
    for name in ("anyio.to_thread", f"anyio._backends._{library}"):
        with contextlib.suppress(ImportError):  # then anyio has it elsewhere, and imports it itself
            import_module(name)


async def patiently(wait: Callable[[], Awaitable[object]]) -> bool:
    """Waits through cancellations, which are raised afterwards; False: the patience was over.

    A ``with`` can be interrupted between its two first instructions: the scope would stay
    entered, and anyio would end the task with an error that hides the interrupt. Hence the two
    ways out of it, of which an interrupt can spoil only one.
    """
    scope = anyio.move_on_after(PATIENCE_SECONDS, shield=True)
    cancellations: list[BaseException] = []
    is_over = True
    try:
        try:
            scope.__enter__()
            await _wait_through(wait, scope, cancellations)
            is_over = False
        except BaseException as error:
            if not scope.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            scope.__exit__(None, None, None)
    finally:
        with contextlib.suppress(RuntimeError):  # it was left, or never entered
            scope.__exit__(None, None, None)
    if cancellations:
        raise cancellations.pop()
    return not is_over


async def _wait_through(
    wait: Callable[[], Awaitable[object]],
    scope: anyio.CancelScope,
    cancellations: list[BaseException],
) -> None:
    """Waits, though the task itself is cancelled: a task's own ``cancel()`` goes through shields."""
    while True:
        try:
            await wait()
        except anyio.get_cancelled_exc_class() as error:
            if scope.cancel_called:
                raise
            cancellations[:] = [error]
        else:
            return
