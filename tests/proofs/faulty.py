"""An environment that fails one call: by an error, before or after the call was made, by a short
write, or by an interrupt; and the table that says which call can fail how.

For the proofs. It counts every call on files and names, and knows neither what the bytes mean nor
which environment lies below. It is no kinder than the kernel: a descriptor is gone after a failed
``close``, a failed sync may have forgotten what it should have written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from hqlwal_raft._environment import Environment
from hqlwal_raft.testing._passing import PassingEnvironment

__all__ = [
    "AFTER",
    "INTERRUPTS",
    "SHORT",
    "WRITES",
    "Call",
    "Fault",
    "FaultyEnvironment",
    "faults_of",
]

T = TypeVar("T")

AFTER = " after"
SHORT = "short"
INTERRUPTS: dict[str, type[BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
}

#: the errors that each call can give. EINTR only where Python does not repeat the call itself;
#: ENOSPC and EDQUOT also from writes into allocated files, which copy-on-write and network file
#: systems give; ENOENT not where the name would still be there afterwards
_ERRORS = {
    "access": "",  # it has no errors: see FaultyEnvironment.access
    "close": "EIO ENOSPC EDQUOT",
    "fdatasync": "EIO ENOSPC EDQUOT EROFS ESTALE",
    "flock": "ENOLCK EIO ESTALE",
    "fstat": "EIO ESTALE",
    "fstatvfs": "EIO ENOSYS",
    "lseek": "EIO",
    "fsync": "EIO ENOSPC EDQUOT EROFS ESTALE",
    "ftruncate": "EIO EROFS ESTALE",
    "ioctl": "EINTR EIO ENOTTY",
    "link": "EIO ENOSPC EDQUOT EROFS EACCES EMLINK ESTALE EINTR",
    "listdir": "EIO EMFILE ENFILE EACCES ESTALE ENOENT",
    "mkdir": "EIO ENOSPC EDQUOT EROFS EACCES ESTALE EINTR",
    "mmap": "ENOMEM EMFILE ENFILE EACCES ENODEV",
    "open": "EIO EMFILE ENFILE EACCES ESTALE ENOENT",
    "posix_fadvise": "EINVAL",
    "posix_fallocate": "ENOSPC EDQUOT EFBIG EIO EINVAL EROFS",
    "pread": "EIO ESTALE",
    "preadv": "EIO ESTALE EAGAIN EOPNOTSUPP",
    "pwrite": "EIO ENOSPC EDQUOT EFBIG EROFS ESTALE",
    "pwritev": "EIO ENOSPC EDQUOT EFBIG EROFS ESTALE",
    "rename": "EIO ENOSPC EDQUOT EROFS EACCES ESTALE EINTR",
    "rmdir": "EIO EROFS EACCES ESTALE EINTR ENOTEMPTY",
    "stat": "EIO EACCES ESTALE ENOENT EINTR",
    "unlink": "EIO EROFS EACCES ESTALE EINTR",
}
#: what opening can give besides, where it creates or writes
_ERRORS_CREATING = ("ENOSPC", "EDQUOT", "EROFS")
_ERRORS_WRITING = ("EROFS",)

#: of these the error may come although the call was carried out: a reply of a network file
#: system that was lost, a device that fails behind the cache
_MADE_ANYWAY = {
    *("fdatasync", "fsync", "ftruncate", "link", "mkdir", "posix_fallocate"),
    *("pwrite", "pwritev", "rename", "rmdir", "unlink"),
}
#: of a write these say that it ended before it took a byte; a part taken is a short write
_NO_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")

PAGE_BYTES = 4096

WRITES = ("pwrite", "pwritev")


class Call(NamedTuple):
    """One call that was made."""

    name: str
    path: str
    #: of an ``open``, its flags; of a write, its bytes
    detail: int = 0
    #: of a write, where it begins
    offset: int = 0
    #: whether the thread of the loop made it
    is_on_loop: bool = False

    def __str__(self) -> str:
        return f"{self.name} {os.path.basename(self.path)}"


class Fault(NamedTuple):
    """What happens at one call; the calls are counted from 0."""

    number: int
    #: "EIO", "EIO after", "short", "short ENOSPC", "KeyboardInterrupt after" …
    kind: str

    def __str__(self) -> str:
        return f"{self.number}:{self.kind}"

    @property
    def errno(self) -> int | None:
        return getattr(errno, self.kind.removeprefix(SHORT).strip().split(" ")[0], None)

    @property
    def interrupt(self) -> type[BaseException] | None:
        return INTERRUPTS.get(self.kind.removesuffix(AFTER))

    @property
    def is_after(self) -> bool:
        return self.kind.endswith(AFTER)


def faults_of(number: int, call: Call) -> Iterator[Fault]:
    """Everything that this call can do instead of succeeding."""
    errors = _ERRORS[call.name].split()
    if call.name == "open":
        if call.detail & os.O_CREAT:
            errors = [*errors, *_ERRORS_CREATING]
        elif call.detail & (os.O_WRONLY | os.O_RDWR):
            errors = [*errors, *_ERRORS_WRITING]
    for error in errors:
        yield Fault(number, error)
        if call.name in _MADE_ANYWAY and (call.name not in WRITES or error not in _NO_SPACE):
            yield Fault(number, error + AFTER)
    if call.name == "access":
        yield Fault(number, "False")
    if call.name in WRITES and call.detail > 1:
        yield Fault(number, SHORT)
        # an error behind it: at a page's border, where a file system runs out of space
        if _border(call):
            yield Fault(number, f"{SHORT} ENOSPC")
            yield Fault(number, f"{SHORT} EIO")
    for interrupt in INTERRUPTS:
        yield Fault(number, interrupt)
        yield Fault(number, interrupt + AFTER)


def _border(call: Call) -> int:
    """How many bytes of a write lie before the last border of a page within it."""
    end = (call.offset + call.detail - 1) // PAGE_BYTES * PAGE_BYTES
    return max(end - call.offset, 0)


class FaultyEnvironment(PassingEnvironment):
    """Passes every call on to ``environment``, and fails the one that ``fault`` names."""

    def __init__(self, environment: Environment, fault: Fault | None = None) -> None:
        super().__init__(environment)
        self.fault = fault
        self.calls: list[Call] = []
        #: the call at which the fault came
        self.hit: Call | None = None
        #: while the one who judges looks at the store himself
        self.is_quiet = False
        #: whether what runs now would run in another thread
        self.is_in_job: Callable[[], bool] = lambda: False
        # what is still to be thrown at the next write of this path, after a short one
        self._next: tuple[str, int] | None = None

    def pass_on(
        self, call: str, path: str, perform: Callable[[], T], detail: int = 0, offset: int = 0
    ) -> T:
        if call == "store" or self.is_quiet:  # a store through a map is no call
            return perform()
        fault = self._due(call, path, detail, offset)
        if fault is None:
            return perform()
        if fault.is_after:
            perform()
        elif call == "close":
            if fault.interrupt is None:
                perform()  # the descriptor is gone all the same
        elif call in ("fsync", "fdatasync") and fault.errno is not None:
            self._forget()
        if fault.interrupt is not None:
            raise fault.interrupt("injected")
        assert fault.errno is not None
        raise OSError(fault.errno, os.strerror(fault.errno))

    def _due(self, call: str, path: str, detail: int = 0, offset: int = 0) -> Fault | None:
        number = len(self.calls)
        self.calls.append(Call(call, path, detail, offset, not self.is_in_job()))
        if self.fault is None or number != self.fault.number:
            return None
        self.hit = self.calls[-1]
        return self.fault

    # --- calls with something of their own -------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        full = self._full(path, dir_fd)

        def perform() -> int:
            descriptor = self.environment.open(path, flags, mode, dir_fd=dir_fd)
            self._paths[descriptor] = full
            return descriptor

        return self.pass_on("open", full, perform, flags)

    def access(self, path: str, mode: int, *, dir_fd: int | None = None) -> bool:
        full = self._full(path, dir_fd)
        if not self.is_quiet:
            fault = self._due("access", full)
            if fault is not None and fault.interrupt is None:
                return False
            if fault is not None and fault.interrupt is not None:
                raise fault.interrupt("injected")
        return self.environment.access(path, mode, dir_fd=dir_fd)

    def fsync(self, descriptor: int, /) -> None:
        self._syncing = descriptor
        super().fsync(descriptor)

    def fdatasync(self, descriptor: int, /) -> None:
        self._syncing = descriptor
        super().fdatasync(descriptor)

    def _forget(self) -> None:
        self.forget_sync(self._syncing)

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int, /) -> int:
        return self._write("pwrite", descriptor, [data], offset)

    def pwritev(self, descriptor: int, buffers: Sequence[Any], offset: int, /) -> int:
        return self._write("pwritev", descriptor, buffers, offset)

    def _write(self, call: str, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        path = self.path_of(descriptor)
        size = sum(map(len, buffers))
        if self._next is not None and self._next[0] == path and not self.is_quiet:
            _, number = self._next
            self._next = None
            self.calls.append(Call(call, path, size, offset, not self.is_in_job()))
            raise OSError(number, os.strerror(number))
        fault = self.fault
        is_short = (
            fault is not None
            and not self.is_quiet
            and fault.kind.startswith(SHORT)
            and fault.number == len(self.calls)
        )

        def perform() -> int:
            if call == "pwrite":
                return self.environment.pwrite(descriptor, buffers[0], offset)
            return self.environment.pwritev(descriptor, buffers, offset)

        if not is_short:
            return self.pass_on(call, path, perform, size, offset)
        assert fault is not None
        self._due(call, path, size, offset)
        length = size // 2
        if fault.errno is not None:
            self._next = path, fault.errno
            length = _border(self.calls[-1])
        part = b"".join(bytes(buffer) for buffer in buffers)[:length]
        return self.environment.pwrite(descriptor, part, offset)
