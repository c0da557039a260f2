"""The operating system as one replaceable object: its primitive calls, clock, chance, threads,
and the way to the event loop.

Whatever the package asks of the machine it asks an :class:`Environment`, which a store is given
when it is opened (the real one by default). A double overrides what it stands in for: a disk
that forgets, a call that fails, a clock that jumps, a thread that runs when a test says so.
Nobody patches modules, and no other module calls ``os``, ``mmap``, ``fcntl``, ``time``,
``random`` or ``threading`` for such a purpose (``os.path`` and constants are free to all).

The methods are the system's own: the same arguments, results and errors, one system call each.
They may be called from any thread. It must not know what a file means.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import math
import os
import queue
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ._primitives import Event, Lock, Loop, Map, Queue
from .errors import UnsupportedPlatformError

if TYPE_CHECKING:
    from ._threads import Worker
    from ._watchdog import Watch

if sys.platform == "linux":
    import fcntl
    import mmap
    import resource
    import select
else:  # everything can be imported, and opening a store says that it needs Linux

    class _Elsewhere:
        """Modules and functions that are not there."""

        def __init__(self, module: Any = None) -> None:
            self._module = module

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name, _unsupported)

        def register_at_fork(self, **_: Any) -> None:
            """There is no store that a child could inherit."""

    def _unsupported(*_: Any, **__: Any) -> Any:
        raise UnsupportedPlatformError(_why_unsupported())

    fcntl = mmap = resource = select = _Elsewhere()
    os = _Elsewhere(os)


def _why_unsupported() -> str:
    """Why stores cannot be opened here; empty where they can."""
    if sys.platform != "linux":
        return f"hqlwal_raft stores need Linux, and this is {sys.platform}: run the node on Linux"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return (
            "hqlwal_raft does not support free-threaded Python yet: use the usual build, or run "
            "this one with PYTHON_GIL=1"
        )
    return ""


logger = logging.getLogger("hqlwal_raft")

__all__ = [
    "LOCK_EX",
    "LOCK_NB",
    "LOCK_SH",
    "LOCK_UN",
    "REAL",
    "Bell",
    "Empty",
    "Environment",
    "Event",
    "Lock",
    "Loop",
    "Map",
    "Queue",
]

LOCK_EX, LOCK_NB, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_SH
LOCK_UN = fcntl.LOCK_UN
#: what the ``get`` of a queue raises when its time is over
Empty = queue.Empty

T = TypeVar("T")


class Bell:
    """An eventfd: it says that there is something, whatever that is.

    Closed by letting go: whoever is about to ring it holds it. A thread that waits for one is
    woken on the core of the thread that rings. A futex (a lock, a queue) would wake it on another
    core, which was halted.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLIN)
        _bells.add(self)

    def ring(self) -> None:
        if self.descriptor >= 0:  # in a forked child it is closed
            os.eventfd_write(self.descriptor, 1)

    def hush(self) -> None:
        try:  # noqa: SIM105 - suppress() takes as long as the call
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            pass

    def wait(self, timeout: float | None) -> bool:
        """Waits until it is rung, and hushes it; False where the time was over first."""
        if not self._poll.poll(None if timeout is None else math.ceil(timeout * 1000)):
            return False
        self.hush()
        return True

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


# A forked child closes its copies before anything else: it must not ring its parent's bells. It
# leaves its loop alone: removing a reader there would unregister it in the parent's epoll.
_bells: weakref.WeakSet[Bell] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    for bell in list(_bells):
        with contextlib.suppress(Exception):
            bell.close()


os.register_at_fork(after_in_child=_close_in_forked_child)


class Environment:
    """The real system. A double derives from it and overrides what it stands in for.

    ``path`` is absolute, or relative to the open directory ``dir_fd``.
    """

    # --- files ---------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags, mode, dir_fd=dir_fd)

    close: Callable[[int], None] = staticmethod(os.close)
    #: descriptor, length, offset
    pread: Callable[[int, int, int], bytes] = staticmethod(os.pread)
    #: descriptor, buffers, offset, flags
    preadv: Callable[[int, Sequence[Any], int, int], int] = staticmethod(os.preadv)
    #: descriptor, data, offset
    pwrite: Callable[[int, bytes | bytearray | memoryview, int], int] = staticmethod(os.pwrite)
    #: descriptor, buffers, offset
    pwritev: Callable[[int, Sequence[Any], int], int] = staticmethod(os.pwritev)
    #: descriptor, offset, whence
    lseek: Callable[[int, int, int], int] = staticmethod(os.lseek)
    fdatasync: Callable[[int], None] = staticmethod(os.fdatasync)
    fsync: Callable[[int], None] = staticmethod(os.fsync)
    #: descriptor, offset, length
    posix_fallocate: Callable[[int, int, int], None] = staticmethod(os.posix_fallocate)
    ftruncate: Callable[[int, int], None] = staticmethod(os.ftruncate)
    #: descriptor, offset, length, advice
    posix_fadvise: Callable[[int, int, int, int], None] = staticmethod(os.posix_fadvise)
    fstat: Callable[[int], os.stat_result] = staticmethod(os.fstat)
    fstatvfs: Callable[[int], os.statvfs_result] = staticmethod(os.fstatvfs)

    #: descriptor, operation
    flock: Callable[[int, int], None] = staticmethod(fcntl.flock)
    #: descriptor, request, argument
    ioctl: Callable[[int, int, Any], Any] = staticmethod(fcntl.ioctl)

    def mmap(self, descriptor: int, length: int) -> Map:
        """A shared, writable map of the file's first ``length`` bytes."""
        return mmap.mmap(descriptor, length)

    # --- names ---------------------------------------------------------------------------

    def stat(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def access(self, path: str, mode: int, *, dir_fd: int | None = None) -> bool:
        return os.access(path, mode, dir_fd=dir_fd)

    def listdir(self, path: str | int) -> list[str]:
        """The names in a directory, given by its path or by its open descriptor."""
        return os.listdir(path)

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        os.mkdir(path, mode, dir_fd=dir_fd)

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        os.rmdir(path, dir_fd=dir_fd)

    def rename(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        os.unlink(path, dir_fd=dir_fd)

    # --- clock and chance ----------------------------------------------------------------

    monotonic: Callable[[], float] = staticmethod(time.monotonic)
    perf_counter: Callable[[], float] = staticmethod(time.perf_counter)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def getrandbits(self, bits: int) -> int:
        return random.SystemRandom().getrandbits(bits)

    # --- the process, its threads, the event loop ----------------------------------------

    getpid: Callable[[], int] = staticmethod(os.getpid)

    def getenv(self, name: str) -> str | None:
        return os.environ.get(name)

    def descriptor_limit(self) -> int:
        """How many descriptors this process may have open."""
        limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return limit if limit != resource.RLIM_INFINITY else 1 << 20

    def call_in_forked_child(self, call: Callable[[], None]) -> None:
        """Has ``call`` called in every child that this process forks from now on."""
        os.register_at_fork(after_in_child=call)

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        """Runs ``run`` in a daemon thread."""
        threading.Thread(target=run, name=name, daemon=True).start()

    def queue(self) -> Queue[Any]:
        return queue.SimpleQueue()

    lock: Callable[[], Lock] = staticmethod(threading.Lock)  # type: ignore[assignment]
    get_ident: Callable[[], int] = staticmethod(threading.get_ident)

    def is_main_thread(self) -> bool:
        """Whether signals' handlers run in the calling thread."""
        return threading.current_thread() is threading.main_thread()

    def call_at_exit(self, call: Callable[[], None]) -> None:
        """Has ``call`` called when the interpreter ends."""
        atexit.register(call)

    def start_worker(self, name: str, loop: Loop) -> Worker:
        """A thread that runs jobs in order and reports each to the loop."""
        from ._threads import Worker  # noqa: PLC0415 - the real one stands on this module

        return Worker(name, loop, self)

    def check_system(self) -> None:
        """Raises UnsupportedPlatformError where stores cannot be opened."""
        if why := _why_unsupported():
            raise UnsupportedPlatformError(why)

    def look_after(self, watch: Watch) -> None:
        """Has the watchdog of the process say where a store's disk does not answer."""
        from ._watchdog import the_watchdog  # noqa: PLC0415 - it stands on this module

        the_watchdog().watch(watch)

    def bell(self) -> Bell:
        """From one thread to another, or to a loop that watches its descriptor."""
        return Bell()

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        """Runs a job that may wait for the disk. Cancelled, it is abandoned, not stopped."""
        return self._run_in_daemon(job)

    async def _run_in_daemon(self, job: Callable[[], T]) -> T:
        # anyio's own threads, under asyncio, keep the interpreter from ending for as long as a
        # disk does not answer. Its limit of threads is kept.
        from anyio import to_thread  # noqa: PLC0415 - the log below needs no event loop

        loop = self.running_loop()
        event = loop.event()
        values: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                values.append(job())
            except BaseException as error:
                errors.append(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.post(event.set)

        limiter, borrower = to_thread.current_default_thread_limiter(), object()
        await limiter.acquire_on_behalf_of(borrower)
        try:
            self.start_thread(run, "hqlwal-read")
            await event.wait()
        finally:
            limiter.release_on_behalf_of(borrower)
        if errors:
            raise errors.pop()
        return values.pop()

    def running_loop(self) -> Loop:
        """The event loop of the calling task, asyncio's or trio's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio  # noqa: PLC0415 - needed only where it is there

            token = trio.lowlevel.current_trio_token()
            interruptions: deque[BaseException] = deque()

            def run_sync_soon(call: Callable[[], Any]) -> None:
                token.run_sync_soon(_contained, call, interruptions)

            def running_token() -> object:
                try:
                    return trio.lowlevel.current_trio_token()
                except RuntimeError:
                    return None

            return Loop(
                run_sync_soon,
                run_sync_soon,
                trio.Event,
                running=running_token,
                identity=token,
                interruptions=interruptions,
                checkpoint=trio.lowlevel.checkpoint,
                library="trio",
            )
        return Loop(
            loop.call_soon_threadsafe,
            loop.call_soon,
            asyncio.Event,
            watch=partial(_watch, loop),
            running=asyncio._get_running_loop,  # noqa: SLF001 - documented; the other one raises
            identity=loop,
            has_ended=loop.is_closed,
            checkpoint=partial(asyncio.sleep, 0),
            library="asyncio",
        )


#: the real system, one object for all stores that are given none: they share its threads
REAL = Environment()


def _watch(
    loop: asyncio.AbstractEventLoop, descriptor: int, call: Callable[[], Any]
) -> Callable[[], Any]:
    loop.add_reader(descriptor, call)
    return partial(loop.remove_reader, descriptor)


def _contained(call: Callable[[], Any], interruptions: deque[BaseException]) -> None:
    """Trio would end the whole run with an error of its own. No Ctrl-C is lost: trio does not let
    one in here.
    """
    try:
        call()
    except (KeyboardInterrupt, SystemExit) as error:
        interruptions.append(error)
    except BaseException:
        logger.exception("a call by the threads of a log failed")
