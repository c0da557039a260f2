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
from ._types import LogSync
from ._watchdog import Watch

__all__ = ["Block", "patiently"]


class _Store(Protocol):
    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


S = TypeVar("S", bound=_Store)
#: what makes a store of what was opened
Make = Callable[[Core, LogSync, Loop], S]


class Block(AbstractAsyncContextManager[S]):
    """``async with`` a store. No generator: an event loop closes one that is dropped, and so a
    store that nobody holds would be closed in silence.
    """

    def __init__(self, make: Make[S], opening: Opening, path: str) -> None:
        self._make = make
        self._opening = opening
        self._path = path
        self._store: S | None = None

    async def __aenter__(self) -> S:
        if self._store is not None:
            raise RuntimeError(f"{self._path} is open in this block: call open() once more")
        environment = self._opening.ground
        loop = environment.running_loop()
        watch = self._opening.watch(self._path, loop.post)
        try:
            disk = environment.start_worker("hqlwal-disk", loop)
        except BaseException:
            watch.end()
            raise
        core = await _open_on(disk, loop, self._opening, self._path, watch)
        self._store = self._make(core, self._opening.policy, loop)
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
        try:
            if not await patiently(store.aclose):
                await store.aclose()  # the disk does not answer: who is cancelled waits no longer
        except GeneratorExit:  # nobody runs this any more
            store.abandon()
            raise


async def _open_on(disk: Worker, loop: Loop, opening: Opening, path: str, watch: Watch) -> Core:
    """Opens the log on its thread. If that fails or is cancelled, nothing stays open.

    Cancelled, it waits for the thread, so that the next try finds the lock free.
    """
    opened: list[Log] = []

    def undo() -> None:
        try:
            for log in opened:
                close_unused(log)
        finally:
            watch.end()

    answer = Answer(loop.event())

    def open_log() -> None:
        _import_backend(loop.library)
        opened.append(opening.open_log(path, watch))

    disk.submit(open_log, partial(answer.give, loop))
    try:
        await answer.wait()
        return opening.start(path, opened[0], disk, loop, watch)
    except BaseException:
        undone = Answer(loop.event())
        disk.submit(undo, partial(undone.give, loop))
        disk.stop()
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
