"""``async with`` a store of snapshots: opening and closing, whatever is cancelled meanwhile.

For tasks of the event loop that the store will live on. It must not know what a store does in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

from ._answers import Answer
from ._block import patiently
from ._blocking_snapshots import BlockingSnapshotStore
from ._environment import Environment, Loop
from ._threads import Worker
from .errors import SnapshotError

__all__ = ["SnapshotBlock"]


class _Store(Protocol):
    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


S = TypeVar("S", bound=_Store)


class SnapshotBlock(AbstractAsyncContextManager[S]):
    """``async with`` a store. Where opening fails or is cancelled nothing stays open."""

    def __init__(
        self,
        make: Callable[[BlockingSnapshotStore, Worker, Loop], S],
        begin: Callable[[], BlockingSnapshotStore],
        environment: Environment,
        path: str,
    ) -> None:
        self._make = make
        self._begin = begin
        self._environment = environment
        self._path = path
        self._store: S | None = None

    async def __aenter__(self) -> S:
        if self._store is not None:
            raise SnapshotError(
                f"{self._path} is open in this block: call open() once more", path=self._path
            )
        loop = self._environment.running_loop()
        worker = self._environment.start_worker("hqlwal-snapshots", loop)
        opened: list[BlockingSnapshotStore] = []

        def undo() -> None:
            for inner in opened:
                inner.close()

        answer = Answer(loop.event())
        worker.submit(lambda: opened.append(self._begin()), partial(answer.give, loop))
        try:
            await answer.wait()
        except BaseException:
            undone = Answer(loop.event())
            worker.submit(undo, partial(undone.give, loop))
            worker.stop()
            with contextlib.suppress(OSError):
                await patiently(undone.wait)
            raise
        self._store = self._make(opened.pop(), worker, loop)
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
        elif not await patiently(store.aclose):
            await store.aclose()  # the disk does not answer: who is cancelled waits no longer
