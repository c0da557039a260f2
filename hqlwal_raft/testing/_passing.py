"""An environment that passes every call on to another one, and knows which path it is about.

For doubles that stand between a store and a system: they override :meth:`pass_on`, or single
calls. It must not know what the calls do.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from .._environment import Environment, Lock, Loop, Map, Queue
from .._threads import Worker
from .._watchdog import Watch

__all__ = ["PassingEnvironment"]

T = TypeVar("T")


class PassingEnvironment(Environment):
    """Passes every call on to ``environment``; those on files and names by :meth:`pass_on`."""

    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or Environment()
        #: descriptor → the path it was opened under; follows renames
        self._paths: dict[int, str] = {}

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        """Makes the call that has this name, on this path; to be overridden.

        ``"store"`` is a store through a map.
        """
        return perform()

    def path_of(self, descriptor: int) -> str:
        """The path of an open file, as far as it was opened here."""
        return self._paths.get(descriptor, "")

    def forget_sync(self, descriptor: int) -> None:
        """Before a sync is made to fail: a system that can forget what it should have written."""
        forget = getattr(self.environment, "forget_sync", None)
        if forget is not None:
            forget(descriptor)

    def _full(self, path: str, dir_fd: int | None) -> str:
        return path if dir_fd is None else os.path.join(self.path_of(dir_fd), path)

    def _on_file(self, call: str, descriptor: int, *arguments: Any) -> Any:
        perform = partial(getattr(self.environment, call), descriptor, *arguments)
        return self.pass_on(call, self.path_of(descriptor), perform)

    # --- files ---------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        full = self._full(path, dir_fd)
        perform = partial(self.environment.open, path, flags, mode, dir_fd=dir_fd)
        descriptor = self.pass_on("open", full, perform)
        self._paths[descriptor] = full
        return descriptor

    def close(self, descriptor: int, /) -> None:
        path = self._paths.pop(descriptor, "")  # before another thread can be given the number
        self.pass_on("close", path, partial(self.environment.close, descriptor))

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        data: bytes = self._on_file("pread", descriptor, length, offset)
        return data

    def lseek(self, descriptor: int, offset: int, whence: int, /) -> int:
        return int(self._on_file("lseek", descriptor, offset, whence))

    def preadv(
        self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0, /
    ) -> int:
        count: int = self._on_file("preadv", descriptor, buffers, offset, flags)
        return count

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int, /) -> int:
        count: int = self._on_file("pwrite", descriptor, data, offset)
        return count

    def pwritev(self, descriptor: int, buffers: Sequence[Any], offset: int, /) -> int:
        count: int = self._on_file("pwritev", descriptor, buffers, offset)
        return count

    def fdatasync(self, descriptor: int, /) -> None:
        self._on_file("fdatasync", descriptor)

    def fsync(self, descriptor: int, /) -> None:
        self._on_file("fsync", descriptor)

    def posix_fallocate(self, descriptor: int, offset: int, length: int, /) -> None:
        self._on_file("posix_fallocate", descriptor, offset, length)

    def ftruncate(self, descriptor: int, length: int, /) -> None:
        self._on_file("ftruncate", descriptor, length)

    def posix_fadvise(self, descriptor: int, offset: int, length: int, advice: int, /) -> None:
        self._on_file("posix_fadvise", descriptor, offset, length, advice)

    def fstat(self, descriptor: int, /) -> os.stat_result:
        result: os.stat_result = self._on_file("fstat", descriptor)
        return result

    def fstatvfs(self, descriptor: int, /) -> os.statvfs_result:
        result: os.statvfs_result = self._on_file("fstatvfs", descriptor)
        return result

    def flock(self, descriptor: int, operation: int, /) -> None:
        self._on_file("flock", descriptor, operation)

    def ioctl(self, descriptor: int, request: int, argument: Any = 0, /) -> Any:
        return self._on_file("ioctl", descriptor, request, argument)

    def mmap(self, descriptor: int, length: int) -> Map:
        perform = partial(self.environment.mmap, descriptor, length)
        mapped = self.pass_on("mmap", self.path_of(descriptor), perform)
        return _PassingMap(self, partial(self.path_of, descriptor), mapped)

    # --- names ---------------------------------------------------------------------------

    def stat(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        perform = partial(
            self.environment.stat, path, dir_fd=dir_fd, follow_symlinks=follow_symlinks
        )
        return self.pass_on("stat", self._full(path, dir_fd), perform)

    def access(self, path: str, mode: int, *, dir_fd: int | None = None) -> bool:
        perform = partial(self.environment.access, path, mode, dir_fd=dir_fd)
        return self.pass_on("access", self._full(path, dir_fd), perform)

    def listdir(self, path: str | int) -> list[str]:
        where = self.path_of(path) if isinstance(path, int) else path
        return self.pass_on("listdir", where, partial(self.environment.listdir, path))

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        perform = partial(self.environment.mkdir, path, mode, dir_fd=dir_fd)
        self.pass_on("mkdir", self._full(path, dir_fd), perform)

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        perform = partial(self.environment.rmdir, path, dir_fd=dir_fd)
        self.pass_on("rmdir", self._full(path, dir_fd), perform)

    def rename(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        old, new = self._full(source, src_dir_fd), self._full(target, dst_dir_fd)
        perform = partial(
            self.environment.rename, source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd
        )
        self.pass_on("rename", new, perform)
        for descriptor, path in list(self._paths.items()):
            if path == old or path.startswith(old + "/"):
                self._paths[descriptor] = new + path[len(old) :]

    def link(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        perform = partial(
            self.environment.link, source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd
        )
        self.pass_on("link", self._full(target, dst_dir_fd), perform)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        perform = partial(self.environment.unlink, path, dir_fd=dir_fd)
        self.pass_on("unlink", self._full(path, dir_fd), perform)

    # --- everything else -----------------------------------------------------------------

    def monotonic(self) -> float:
        return self.environment.monotonic()

    def perf_counter(self) -> float:
        return self.environment.perf_counter()

    def sleep(self, seconds: float, /) -> None:
        self.environment.sleep(seconds)

    def getrandbits(self, bits: int) -> int:
        return self.environment.getrandbits(bits)

    def getpid(self) -> int:
        return self.environment.getpid()

    def getenv(self, name: str) -> str | None:
        return self.environment.getenv(name)

    def call_in_forked_child(self, call: Callable[[], None]) -> None:
        self.environment.call_in_forked_child(call)

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        self.environment.start_thread(run, name)

    def queue(self) -> Queue[Any]:
        return self.environment.queue()

    def lock(self) -> Lock:
        return self.environment.lock()

    def get_ident(self) -> int:
        return self.environment.get_ident()

    def is_main_thread(self) -> bool:
        return self.environment.is_main_thread()

    def call_at_exit(self, call: Callable[[], None]) -> None:
        self.environment.call_at_exit(call)

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return self.environment.start_worker(name, loop)

    def look_after(self, watch: Watch) -> None:
        self.environment.look_after(watch)

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        return self.environment.run_in_thread(job)

    def running_loop(self) -> Loop:
        return self.environment.running_loop()


class _PassingMap:
    def __init__(
        self, environment: PassingEnvironment, path: Callable[[], str], mapped: Map
    ) -> None:
        self._environment = environment
        self._path = path
        self._map = mapped

    def __setitem__(self, place: slice, data: Any, /) -> None:
        store = partial(self._map.__setitem__, place, data)
        self._environment.pass_on("store", self._path(), store)

    def close(self) -> None:
        self._map.close()
