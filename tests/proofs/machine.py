"""A machine in memory that does everything in one thread, the same way every time.

``Machine`` is a kernel in memory whose worker threads are none: a job is done at once where it is
handed in, and its outcome waits for the loop. For the proofs that repeat one history ten thousand
times. It must not know what the store does.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import anyio.lowlevel

from hqlwal_raft._environment import Loop
from hqlwal_raft._threads import Worker
from hqlwal_raft.testing._kernel import Image, MemoryKernel, Snapshot
from hqlwal_raft.testing._kernel_images import Variants
from hqlwal_raft.testing._kernel_pages import Content, apply

from .turns import SteppedThread, Turns

__all__ = ["Machine", "Spinning", "limit_seconds", "oldest"]

T = TypeVar("T")


class Spinning(BaseException):
    """Something runs and never ends."""


@contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raises Spinning in the main thread once so much time of the processor is used up."""

    def ring(_number: int, _frame: Any) -> None:
        raise Spinning

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class _Alarm:
    """In the place of a thread that waits for a moment."""

    is_over = False
    is_runnable = False

    def __init__(self, name: str, deadline: float, ring: Callable[[], Any]) -> None:
        self.name = name
        self.deadline: float | None = deadline
        self._ring = ring

    def go(self) -> None:
        self.is_over = True
        self.deadline = None
        self._ring()

    def drop(self) -> None:
        self.is_over = True


class _InlineWorker:
    """A worker without a thread; its jobs are done in the order in which they come."""

    def __init__(self, name: str, loop: Loop, machine: Machine) -> None:
        self._name = name
        self._loop = loop
        self._machine = machine

    def submit(
        self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], Any]
    ) -> None:
        result, failure = None, None
        self._machine.jobs += 1
        try:
            result = job()
        except BaseException as error:
            failure = error
        finally:
            self._machine.jobs -= 1
        self._loop.post(lambda: done(result, failure))

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        machine = self._machine
        alarm = _Alarm(self._name, machine.now + seconds, lambda: self._loop.post(ring))
        machine.threads.append(cast("SteppedThread", alarm))

    def stop(self) -> None:
        pass


class Machine(Turns, MemoryKernel):  # type: ignore[misc]  # both have a chance of their own
    """See the module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # of each life its own: no two lives draw the same salts
        self._rng = random.Random(self.seed)
        #: how many jobs of other threads are being done
        self.jobs = 0

    @property
    def open_descriptors(self) -> list[str]:
        return [description.path for description in self._descriptors.values()]

    @property
    def inodes(self) -> int:
        return len(self._nodes)

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return cast("Worker", _InlineWorker(name, loop, self))

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        return self._run_here(job)

    async def _run_here(self, job: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()  # as anyio's does
        self.jobs += 1
        try:
            result = job()
        finally:
            self.jobs -= 1
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return result


def oldest(snapshot: Snapshot[Machine], *, has_new_names: bool) -> Image:
    """What a power cut leaves where nothing reached the disk that no sync brought there.

    With ``has_new_names`` what happened to the directories did.
    """
    tables = {
        number: apply(directory.pending if has_new_names else (), directory.durable)
        for number, directory in snapshot.directories.items()
    }
    names, numbers = snapshot._names(tables)
    nodes = []
    for number in numbers:
        content = snapshot.contents[number]
        is_file = isinstance(content, Content)
        nodes.append(
            next(iter(Variants(cast("Content", content), snapshot.page_bytes)))
            if is_file
            else cast("Any", content)
        )
    return Image(snapshot.page_bytes, names, tuple(nodes))
