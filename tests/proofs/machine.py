"""A machine in memory that does everything in one thread, the same way every time.

``Machine`` is a kernel in memory whose worker threads are none: a job is done at once where it is
handed in, and its outcome waits for the loop. For the proofs that repeat one history ten thousand
times. It must not know what the store does.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import anyio.lowlevel

from hqlwal_raft._environment import Loop
from hqlwal_raft._threads import Worker
from hqlwal_raft.testing._kernel import Image, MemoryKernel, Snapshot
from hqlwal_raft.testing._kernel_images import Variants
from hqlwal_raft.testing._kernel_pages import Content, apply

from . import loops
from .turns import SteppedThread, Turns

__all__ = ["Inline", "Kernel", "Machine", "Spinning", "oldest", "play", "without_frames"]

T = TypeVar("T")


class Spinning(BaseException):
    """Something runs and never ends."""


@contextmanager
def _limit_seconds(seconds: float) -> Iterator[None]:
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


def without_frames(error: BaseException) -> BaseException:
    """An error kept for long must not keep alive what its frames hold: files, above all."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        if each.__context__ is not None:
            each.__context__.__traceback__ = None
        if isinstance(each, BaseExceptionGroup):
            for inner in each.exceptions:
                without_frames(inner)
        each = each.__cause__ or each.__context__
    return error


def play(
    backend: str, machine: Turns, main: Callable[[], Awaitable[Any]], seconds: float = 20
) -> None:
    """Runs ``main`` on an event loop; the same every time, and silently.

    Raises Spinning after so many seconds of the processor, Deadlock, or what the loop died of.
    """
    failure: BaseException | None = None
    was_enabled = gc.isenabled()
    gc.disable()  # finalizers come when the last reference goes, not at any call of the kernel
    try:
        with loops.silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with _limit_seconds(seconds):
                    loops.run(backend, main, machine)
            except BaseException as error:
                failure = without_frames(error)
                gc.collect()  # what was abandoned complains here, not in the next test
    finally:
        if was_enabled:
            gc.enable()
    if failure is not None:
        raise failure


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

    def __init__(self, name: str, loop: Loop, machine: Inline) -> None:
        self._name = name
        self._loop = loop
        self._machine = machine
        self._jobs: list[Callable[[], None]] = []

    def submit(
        self,
        job: Callable[[], Any],
        done: Callable[[Any, BaseException | None], Any],
        *,
        can_wait: bool = False,
    ) -> None:
        if not self._machine.delay:
            self._do(job, done)
            return
        self._jobs.append(lambda: self._do(job, done))
        if len(self._jobs) == 1:
            self._hop(self._machine.delay)

    def _hop(self, steps: int) -> None:
        """Lets the loop take so many steps, then does the next job."""
        if steps:
            self._loop.post(lambda: self._hop(steps - 1))
            return
        self._jobs[0]()
        del self._jobs[0]
        if self._jobs:
            self._hop(self._machine.delay)

    def _do(self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], Any]) -> None:
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

    def make_way(self) -> None:
        pass


class Inline(Turns):
    """To be mixed in before an environment that has the files: it has no threads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: how many jobs of other threads are being done
        self.jobs = 0
        #: how many steps of the loop a job waits before it is done
        self.delay = 0

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return cast("Worker", _InlineWorker(name, loop, self))

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        return self._run_here(job)

    async def _run_here(self, job: Callable[[], T]) -> T:
        for _ in range(1 + self.delay):  # one, as anyio's does
            await anyio.lowlevel.checkpoint()
        self.jobs += 1
        try:
            result = job()
        finally:
            self.jobs -= 1
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return result


class Kernel(MemoryKernel):
    """What the machines have in common."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # of each life its own: no two lives draw the same salts
        self._rng = random.Random(self.seed)
        #: whether no read finds its bytes in memory
        self.is_cold = False

    def preadv(
        self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0, /
    ) -> int:
        if self.is_cold and flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return MemoryKernel.preadv(self, descriptor, buffers, offset, flags)

    @property
    def open_descriptors(self) -> list[str]:
        return [description.path for description in self._descriptors.values()]

    @property
    def inodes(self) -> int:
        """How many are in use."""
        return self._count_inodes()


class Machine(Inline, Kernel):  # type: ignore[misc]  # both have a chance of their own
    """See the module."""


def oldest(snapshot: Snapshot[Any], *, has_new_names: bool) -> Image:
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
