"""The kernel in memory held against the real one: the same calls, results, errors and effects."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import resource
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hqlwal_raft._environment import Environment
from hqlwal_raft.testing._kernel import MemoryKernel
from hqlwal_raft.testing._kernel_pages import Node
from hqlwal_raft.testing._kernel_tree import Description

RW = os.O_RDWR
NEW = os.O_RDWR | os.O_CREAT
EXCLUSIVE = NEW | os.O_EXCL
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
EXCLUSIVE_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
SHARED_LOCK = fcntl.LOCK_SH | fcntl.LOCK_NB
BAD_DESCRIPTOR = 987_654
MISSING = object()

#: what a step names: a call, perhaps with the handle that its result is kept under, and its
#: arguments. "/x" is x in the directory of the script, "@x" the descriptor kept as x.
Step = tuple[Any, ...]


class World:
    """One environment and a directory in it, in which a script of calls is run."""

    def __init__(self, environment: Environment, root: str) -> None:
        self.environment = environment
        self.root = root
        self.kept: dict[str, Any] = {}

    def run(self, script: list[Step]) -> list[object]:
        try:
            outcomes = [self.step(*step) for step in script]
            return [*outcomes, self.tree("")]
        finally:
            self.leave()

    def step(self, call: str, *given: Any) -> object:
        keep, _, name = call.rpartition("=")
        keywords = given[-1] if given and isinstance(given[-1], dict) else {}
        places = given[:-1] if keywords else given
        arguments = [self._meant(each) for each in places]
        try:
            result = self._call(
                name, *arguments, **{k: self._meant(v) for k, v in keywords.items()}
            )
        except OSError as error:
            return name, errno.errorcode[error.errno or 0], type(error)
        except (ValueError, IndexError) as error:
            return name, type(error)
        if keep:
            self.drop(keep)
            self.kept[keep] = result
        return name, None if keep else _comparable(result)

    def _meant(self, argument: Any) -> Any:
        if isinstance(argument, str) and argument.startswith("@"):
            return self.kept.get(argument[1:], BAD_DESCRIPTOR)
        if isinstance(argument, str) and argument.startswith("/"):
            return self.root + argument
        return argument

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        kernel = self.environment
        match name:
            case "plant_symlink":
                if isinstance(kernel, MemoryKernel):
                    return kernel.plant_symlink(arguments[0], arguments[1])
                return os.symlink(arguments[1], arguments[0])
            case "plant_fifo":
                plant = kernel.plant_fifo if isinstance(kernel, MemoryKernel) else os.mkfifo
                return plant(arguments[0])
            case "store":
                arguments[0][arguments[1] : arguments[2]] = arguments[3]
                return None
            case "close_map":
                return arguments[0].close()
            case "close":
                for kept in [key for key, value in self.kept.items() if value == arguments[0]]:
                    del self.kept[kept]
            case "preadv":
                buffers = [bytearray(length) for length in arguments[1]]
                return kernel.preadv(arguments[0], buffers, *arguments[2:]), buffers
        return getattr(kernel, name)(*arguments, **keywords)

    def drop(self, key: str) -> None:
        kept = self.kept.pop(key, None)
        if isinstance(kept, int):
            self.environment.close(kept)
        elif kept is not None:
            kept.close()

    def leave(self) -> None:
        for key in list(self.kept):
            self.drop(key)

    def tree(self, path: str) -> object:
        """Everything below the directory, told by calls of the environment."""
        found: dict[str, object] = {}
        inodes: dict[int, int] = {}
        left = [path]
        while left:
            path = left.pop()
            for name in sorted(self.environment.listdir(self.root + path)):
                child = f"{path}/{name}"
                status = self.environment.stat(self.root + child, follow_symlinks=False)
                content = None
                if stat.S_ISDIR(status.st_mode):
                    left.append(child)
                if stat.S_ISREG(status.st_mode):
                    descriptor = self.environment.open(self.root + child, os.O_RDONLY)
                    content = self.environment.pread(descriptor, 1 << 20, 0)
                    self.environment.close(descriptor)
                same = inodes.setdefault(status.st_ino, len(inodes))
                found[child] = (_comparable(status), same, content)
        return found


def _comparable(result: Any) -> object:
    if isinstance(result, os.stat_result):
        mode = result.st_mode
        if stat.S_ISREG(mode):
            return mode, result.st_nlink, result.st_size
        return mode if stat.S_ISDIR(mode) else stat.S_IFMT(mode)
    if isinstance(result, list):
        return sorted(result)
    return result


@pytest.fixture
def real_root(tmp_path: Any) -> Iterator[Callable[[], str]]:
    old = os.umask(0o022)
    numbers = itertools.count()

    def make() -> str:
        # a script may step one directory out of its own
        path = tmp_path / str(next(numbers)) / "around"
        path.mkdir(parents=True)
        (path / "root").mkdir(mode=0o700)
        return str(path / "root")

    yield make
    os.umask(old)


def both(root: str, script: list[Step], **options: Any) -> list[tuple[Step, object, object]]:
    """Runs the script in both worlds: the steps with what each world made of them."""
    double = MemoryKernel.of({}, [root], **options)
    shown = World(double, root).run(script)
    assert not double._descriptors, "the double holds descriptors that are closed"
    real = World(Environment(), root).run(script)
    return list(zip([*script, ("tree",)], shown, real, strict=True))


def hold_against(root: str, script: list[Step], **options: Any) -> None:
    for step, shown, real in both(root, script, **options):
        assert shown == real, f"{step}: the double says {shown}, the kernel {real}"


A: Step = ("f=open", "/a", NEW)
D: Step = ("mkdir", "/d", 0o700)

SCRIPTS: dict[str, list[Step]] = {
    "open: what is missing, what is there": [
        ("f=open", "/a", RW), A, ("g=open", "/a", EXCLUSIVE), ("g=open", "/a/", RW),
        ("g=open", "/a/b", NEW), ("g=open", "/x/b", NEW), ("g=open", "/x/", NEW),
        ("g=open", "/a/", NEW), ("g=open", "", NEW), ("g=open", "/" + "n" * 256, NEW),
        ("g=open", "/" + "n" * 255, NEW), ("g=open", "/" + "ü" * 128, NEW),
        ("g=open", "/a/..", RW), ("g=open", "/./a", RW), ("g=open", "//a", os.O_RDONLY),
    ],
    "open: directories": [
        D, A, ("g=open", "/d", RW), ("g=open", "/d", NEW), ("g=open", "/d", EXCLUSIVE),
        ("g=open", "/d", os.O_TRUNC), ("g=open", "/d", os.O_WRONLY), ("g=open", "/a", DIRECTORY),
        ("g=open", "/d/", DIRECTORY), ("pread", "@g", 10, 0), ("pwrite", "@g", b"x", 0),
        ("preadv", "@g", [4], 0, 0), ("preadv", "@g", [0], 0, 0), ("ftruncate", "@g", 0), ("posix_fallocate", "@g", 0, 1),
        ("fdatasync", "@g"), ("fsync", "@g"), ("listdir", "@g"), ("m=mmap", "@g", 10), ("m=mmap", "@g", 0),
        ("posix_fadvise", "@g", 0, 0, os.POSIX_FADV_DONTNEED), ("fstat", "@g"),
        ("flock", "@g", EXCLUSIVE_LOCK), ("g=open", "/d/.", RW), ("g=open", "/d/..", DIRECTORY),
    ],
    "open: truncation": [
        A, ("pwrite", "@f", b"x" * 100, 0), ("g=open", "/a", os.O_RDONLY | os.O_TRUNC),
        ("fstat", "@f"), ("pwrite", "@f", b"y", 50), ("pread", "@g", 100, 0),
        ("g=open", "/a", EXCLUSIVE | os.O_TRUNC), ("g=open", "/a", NEW | os.O_TRUNC, 0o644),
    ],
    "open: only a path": [
        A, D, ("p=open", "/a", os.O_PATH), ("pread", "@p", 1, 0), ("pwrite", "@p", b"x", 0),
        ("fdatasync", "@p"), ("ftruncate", "@p", 1), ("flock", "@p", EXCLUSIVE_LOCK),
        ("posix_fallocate", "@p", 0, 1), ("posix_fallocate", "@p", 0, 0), ("posix_fadvise", "@p", 0, 0, 0), ("m=mmap", "@p", 0),
        ("ioctl", "@p", 0x5401, b"1234"), ("fstat", "@p"), ("q=open", "/d", os.O_PATH),
        ("listdir", "@q"), ("g=open", "b", NEW, {"dir_fd": "@q"}), ("fsync", "@q"),
        ("p=open", "/a", os.O_PATH | os.O_DIRECTORY), ("p=open", "/x", os.O_PATH | os.O_CREAT),
        ("plant_symlink", "/l", "a"), ("p=open", "/l", os.O_PATH | os.O_NOFOLLOW), ("fstat", "@p"),
        ("stat", "b", {"dir_fd": "@p"}),
    ],
    "open: symbolic links": [
        A, D, ("plant_symlink", "/l", "a"), ("plant_symlink", "/e", "d"),
        ("plant_symlink", "/x", "none"), ("plant_symlink", "/o", "o"),
        ("plant_symlink", "/s", "d/"), ("plant_symlink", "/u", "d/../a"),
        ("g=open", "/l", RW), ("g=open", "/l", RW | os.O_NOFOLLOW), ("g=open", "/o", RW),
        ("g=open", "/l", EXCLUSIVE), ("g=open", "/x", EXCLUSIVE), ("g=open", "/x", RW),
        ("g=open", "/x", NEW | os.O_NOFOLLOW), ("g=open", "/x", NEW), ("g=open", "/e/b", NEW),
        ("g=open", "/e", DIRECTORY | os.O_NOFOLLOW), ("g=open", "/e", DIRECTORY),
        ("g=open", "/e/", DIRECTORY | os.O_NOFOLLOW), ("g=open", "/s", DIRECTORY),
        ("g=open", "/l/", RW), ("g=open", "/u", RW), ("g=open", "/o/b", NEW),
        ("g=open", "/l/b", NEW), ("stat", "/l"), ("stat", "/l", {"follow_symlinks": False}),
        ("stat", "/l/", {"follow_symlinks": False}), ("stat", "/e/", {"follow_symlinks": False}),
        ("stat", "/o"), ("access", "/o", os.F_OK), ("access", "/l", os.F_OK),
        ("listdir", "/e"), ("listdir", "/l"), ("mkdir", "/x", 0o700), ("mkdir", "/l/", 0o700),
        ("plant_symlink", "/l", "a"), ("unlink", "/e/"), ("unlink", "/e"), ("unlink", "/l"),
        ("rename", "/u", "/a"),
    ],
    "open: fifos": [
        ("plant_fifo", "/p"), ("w=open", "/p", os.O_WRONLY | os.O_NONBLOCK),
        ("f=open", "/p", os.O_RDONLY | os.O_NONBLOCK), ("pread", "@f", 1, 0),
        ("w=open", "/p", os.O_WRONLY | os.O_NONBLOCK), ("pwrite", "@w", b"x", 0),
        ("pwrite", "@f", b"x", 0), ("pread", "@w", 1, 0), ("fdatasync", "@f"), ("fsync", "@w"),
        ("ftruncate", "@w", 0), ("posix_fallocate", "@w", 0, 1), ("posix_fallocate", "@f", 0, 1),
        ("posix_fadvise", "@f", 0, 0, 0), ("fstat", "@f"), ("flock", "@f", EXCLUSIVE_LOCK),
        ("m=mmap", "@f", 1), ("preadv", "@f", [4], 0, 0), ("pwritev", "@w", [b"x"], 0),
        ("g=open", "/p", RW | os.O_NONBLOCK), ("m=mmap", "@g", 1),
        ("g=open", "/p", NEW | os.O_NONBLOCK | os.O_TRUNC),
        ("g=open", "/p", DIRECTORY | os.O_NONBLOCK), ("stat", "/p"),
    ],
    "a closed descriptor": [
        ("close", "@f"), ("pread", "@f", 1, 0), ("pread", "@f", 1, -1), ("pwrite", "@f", b"x", 0),
        ("preadv", "@f", [1], 0, 0), ("pwritev", "@f", [b"x"], 0), ("fdatasync", "@f"),
        ("fsync", "@f"), ("posix_fallocate", "@f", 0, 1), ("ftruncate", "@f", 0),
        ("ftruncate", "@f", -1), ("posix_fadvise", "@f", 0, 0, 0), ("fstat", "@f"),
        ("fstatvfs", "@f"), ("flock", "@f", fcntl.LOCK_UN), ("ioctl", "@f", 0x5401, b"1234"),
        ("m=mmap", "@f", 1), ("listdir", "@f"), ("stat", "a", {"dir_fd": "@f"}),
        ("access", "a", 0, {"dir_fd": "@f"}), ("mkdir", "a", 0o700, {"dir_fd": "@f"}),
        ("g=open", "a", NEW, {"dir_fd": "@f"}), ("unlink", "a", {"dir_fd": "@f"}),
        ("rename", "a", "b", {"src_dir_fd": "@f"}), ("link", "a", "b", {"src_dir_fd": "@f"}),
        ("g=open", "/a", NEW, {"dir_fd": "@f"}), ("stat", "", {"dir_fd": "@f"}),
    ],
    "reading and writing": [
        A, ("pread", "@f", 10, 0), ("pwrite", "@f", b"hello", 3), ("pread", "@f", 100, 0),
        ("pread", "@f", 2, 7), ("pread", "@f", 2, 8), ("pread", "@f", 2, 5000),
        ("pread", "@f", 0, 0), ("pread", "@f", -1, 0), ("pread", "@f", 1, -1),
        ("pwrite", "@f", b"", 100), ("fstat", "@f"), ("pwrite", "@f", b"x", -1),
        ("pwrite", "@f", b"y" * 9000, 4000), ("pread", "@f", 8192, 4096), ("fstat", "@f"),
        ("pwritev", "@f", [b"a", b"", bytearray(b"bc")], 10), ("pwritev", "@f", [], 10),
        ("pwritev", "@f", [b"a"] * 1025, 0), ("pwritev", "@f", [b"a"] * 1024, 20),
        ("preadv", "@f", [3, 0, 5], 10, 0), ("preadv", "@f", [10], 12_995, 0),
        ("preadv", "@f", [10, 10], 20_000, 0), ("preadv", "@f", [1], -2, 0),
        ("preadv", "@f", [1] * 1025, 0, 0), ("preadv", "@f", [], 0, 0),
        ("preadv", "@f", [1], 0, 0x4000_0000),
        ("r=open", "/a", os.O_RDONLY), ("pwrite", "@r", b"x", 0), ("pwrite", "@r", b"", 0),
        ("pwritev", "@r", [b"x"], 0), ("ftruncate", "@r", 0), ("posix_fallocate", "@r", 0, 1),
        ("fdatasync", "@r"), ("w=open", "/a", os.O_WRONLY), ("pread", "@w", 1, 0),
        ("preadv", "@w", [1], 0, 0), ("p=open", "/a", os.O_WRONLY | os.O_APPEND),
        ("pwrite", "@p", b"end", 0),
    ],
    "sizes and space": [
        A, ("ftruncate", "@f", 10_000), ("pread", "@f", 5, 9998), ("pwrite", "@f", b"x" * 10_000, 0),
        ("ftruncate", "@f", 4100), ("ftruncate", "@f", 8200), ("pread", "@f", 9000, 4090),
        ("ftruncate", "@f", -1), ("posix_fallocate", "@f", 0, 4096), ("fstat", "@f"),
        ("posix_fallocate", "@f", 8000, 4096), ("fstat", "@f"), ("posix_fallocate", "@f", 0, 0),
        ("posix_fallocate", "@f", -1, 10), ("posix_fallocate", "@f", 5, -1),
        ("posix_fadvise", "@f", 0, 0, os.POSIX_FADV_DONTNEED), ("posix_fadvise", "@f", 0, -1, 0),
        ("posix_fadvise", "@f", 0, 0, 99), ("posix_fadvise", "@f", 100, 5000, 4),
        ("ioctl", "@f", 0x5401, b"1234"), ("ftruncate", "@f", 0), ("fstat", "@f"),
    ],
    "maps": [
        A, ("m=mmap", "@f", 0), ("m=mmap", "@f", 10), ("ftruncate", "@f", 5000),
        ("m=mmap", "@f", 5001), ("m=mmap", "@f", 5000), ("store", "@m", 4090, 4100, b"0123456789"),
        ("pread", "@f", 20, 4085), ("store", "@m", 0, 3, b"four"), ("store", "@m", 4999, 5001, b"x"),
        ("store", "@m", 4999, 5001, b"xy"), ("store", "@m", 6000, 6001, b""),
        ("store", "@m", 3, 3, b""), ("close", "@f"), ("store", "@m", 0, 2, b"ok"),
        ("unlink", "/a"), ("store", "@m", 0, 2, b"ok"), ("close_map", "@m"),
        ("store", "@m", 0, 2, b"ok"), ("close_map", "@m"), ("r=open", "/b", NEW),
        ("ftruncate", "@r", 10), ("r=open", "/b", os.O_RDONLY), ("m=mmap", "@r", 10),
        ("r=open", "/b", os.O_WRONLY), ("m=mmap", "@r", 10), ("r=open", "/b", RW),
        ("m=mmap", "@r", 0), ("store", "@m", 0, 10, b"x" * 10),
    ],
    "locks belong to open files": [
        A, ("g=open", "/a", RW), ("flock", "@f", EXCLUSIVE_LOCK), ("flock", "@f", EXCLUSIVE_LOCK),
        ("flock", "@g", EXCLUSIVE_LOCK), ("flock", "@g", SHARED_LOCK), ("flock", "@g", fcntl.LOCK_UN),
        ("flock", "@f", SHARED_LOCK), ("flock", "@g", SHARED_LOCK), ("flock", "@f", EXCLUSIVE_LOCK),
        ("flock", "@g", EXCLUSIVE_LOCK), ("flock", "@f", 0), ("flock", "@f", 16),
        ("flock", "@f", fcntl.LOCK_NB), ("close", "@g"), ("flock", "@f", EXCLUSIVE_LOCK),
        ("unlink", "/a"), ("g=open", "/a", NEW), ("flock", "@g", EXCLUSIVE_LOCK),
        ("flock", "@f", fcntl.LOCK_UN), D, ("d=open", "/d", DIRECTORY),
        ("e=open", "/d", DIRECTORY), ("flock", "@d", EXCLUSIVE_LOCK), ("rename", "/d", "/moved"),
        ("flock", "@e", EXCLUSIVE_LOCK), ("close", "@d"), ("flock", "@e", EXCLUSIVE_LOCK),
    ],
    "a map keeps the lock of a closed descriptor": [
        A, ("ftruncate", "@f", 10), ("flock", "@f", EXCLUSIVE_LOCK), ("m=mmap", "@f", 10),
        ("close", "@f"), ("g=open", "/a", RW), ("flock", "@g", EXCLUSIVE_LOCK),
        ("close_map", "@m"), ("flock", "@g", EXCLUSIVE_LOCK),
    ],
    "an unlinked file lives on while it is open": [
        A, ("pwrite", "@f", b"abc", 0), ("unlink", "/a"), ("unlink", "/a"), ("fstat", "@f"),
        ("pread", "@f", 10, 0), ("pwrite", "@f", b"def", 3), ("fdatasync", "@f"),
        ("g=open", "/a", NEW), ("pread", "@g", 10, 0), ("pread", "@f", 10, 0),
        ("access", "/a", os.F_OK), ("unlink", "/a/"), ("unlink", "/"), ("unlink", "/x/a"),
        ("unlink", "/a/b"), D, ("unlink", "/d"), ("unlink", "/d/"), ("unlink", "/d/."),
        ("unlink", "/x/"),
    ],
    "a pinned directory follows its inode": [
        D, ("d=open", "/d", DIRECTORY), ("f=open", "a", NEW, {"dir_fd": "@d"}),
        ("rename", "/d", "/e"), ("mkdir", "/d", 0o700), ("f=open", "b", NEW, {"dir_fd": "@d"}),
        ("f=open", "/d/c", NEW), ("listdir", "@d"), ("listdir", "/d"), ("listdir", "/e"),
        ("stat", "a", {"dir_fd": "@d"}), ("access", "a", os.F_OK, {"dir_fd": "@d"}),
        ("rename", "a", "z", {"src_dir_fd": "@d", "dst_dir_fd": "@d"}),
        ("link", "z", "y", {"src_dir_fd": "@d", "dst_dir_fd": "@d"}),
        ("unlink", "z", {"dir_fd": "@d"}), ("mkdir", "m", 0o700, {"dir_fd": "@d"}),
        ("stat", "../d/c", {"dir_fd": "@d"}), ("fsync", "@d"), ("stat", ".", {"dir_fd": "@d"}),
        ("rename", "/d", "/e/m"), ("stat", "/e/m/../y"), ("stat", "/e/m/c"),
        ("stat", "a", {"dir_fd": "@f"}), ("f=open", "a", NEW, {"dir_fd": "@f"}),
        ("listdir", "@f"), ("listdir", "/e/y"), ("listdir", "/none"),
    ],
    "a replaced directory takes no more names": [
        D, ("mkdir", "/e", 0o700), ("d=open", "/d", DIRECTORY), ("rename", "/e", "/d"),
        ("f=open", "a", NEW, {"dir_fd": "@d"}), ("mkdir", "a", 0o700, {"dir_fd": "@d"}),
        ("listdir", "@d"), ("f=open", "/d/a", NEW), ("rename", "/d/a", "b", {"dst_dir_fd": "@d"}),
        ("link", "/d/a", "b", {"dst_dir_fd": "@d"}), ("fsync", "@d"), ("f=open", "/b", NEW),
    ],
    "rename": [
        A, D, ("g=open", "/b", NEW), ("pwrite", "@f", b"old", 0), ("rename", "/a", "/b"),
        ("fstat", "@g"), ("pread", "@f", 9, 0), ("rename", "/a", "/b"), ("rename", "/b", "/b"),
        ("rename", "/b", "/d"), ("rename", "/d", "/b"), ("rename", "/b", "/d/"),
        ("rename", "/b/", "/c"), ("rename", "/b", "/c/"), ("rename", "/d", "/d/x"),
        ("rename", "/d/.", "/x"), ("rename", "/d", "/d/.."), ("rename", "/d", "/x/"),
        ("mkdir", "/d", 0o700), ("f=open", "/d/a", NEW), ("rename", "/x", "/d"),
        ("rename", "/d/a", "/d"), ("rename", "/x", "/x/y/z"), ("rename", "/x", "/d/x"),
        ("rename", "/d/x", "/d"), ("rename", "/d", "/d/x/y"), ("rename", "/d/a", "/d/x/a"),
        ("link", "/b", "/c"), ("rename", "/b", "/c"), ("rename", "/none", "/none2"),
        ("rename", "", "/x"), ("rename", "/b", ""), ("rename", "/none/a", "/b"),
    ],
    "link": [
        A, D, ("link", "/a", "/b"), ("fstat", "@f"), ("link", "/a", "/b"), ("link", "/a", "/d"),
        ("link", "/none", "/c"), ("link", "/d", "/e"), ("link", "/a", "/c/"), ("link", "/a/", "/c"),
        ("link", "/a", "/none/c"), ("link", "/d", "/b"), ("link", "/none", "/b"),
        ("link", "/a", "/d/a"), ("unlink", "/a"), ("fstat", "@f"), ("link", "/a", "/c"),
        ("plant_symlink", "/l", "b"), ("d=open", "/d", DIRECTORY),
        ("link", "/l", "k", {"dst_dir_fd": "@d"}), ("link", "/b", "/l"), ("link", "/b", "/d/."),
    ],
    "mkdir, stat, access, listdir": [
        D, ("mkdir", "/d", 0o700), ("mkdir", "/x/y", 0o700), ("mkdir", "/e/", 0o755), A,
        ("mkdir", "/a", 0o700), ("mkdir", "/a/b", 0o700), ("mkdir", "/d/.", 0o700),
        ("mkdir", "/", 0o700), ("mkdir", "", 0o700), ("stat", "/a/"), ("stat", "/a/."),
        ("stat", "/none"), ("stat", "/d/"), ("stat", ""), ("access", "/none", os.F_OK),
        ("access", "/a", os.R_OK | os.W_OK), ("access", "/a", os.X_OK), ("access", "/d", os.X_OK),
        ("access", "/a/", os.F_OK), ("access", "", os.F_OK), ("listdir", "/"), ("listdir", "/a"),
    ],
    "lseek": [
        A, D, ("lseek", "@f", 0, os.SEEK_DATA), ("pwrite", "@f", b"x" * 10, 0),
        ("lseek", "@f", 0, os.SEEK_DATA), ("lseek", "@f", 4, os.SEEK_DATA),
        ("lseek", "@f", 4, os.SEEK_HOLE), ("lseek", "@f", 10, os.SEEK_DATA),
        ("lseek", "@f", 10, os.SEEK_HOLE), ("lseek", "@f", -1, os.SEEK_DATA),
        ("close", "@f"), ("lseek", "@f", 0, os.SEEK_DATA),
    ],
    "rmdir": [
        D, A, ("mkdir", "/d/e", 0o700), ("rmdir", "/d"), ("rmdir", "/a"), ("rmdir", "/a/"),
        ("rmdir", "/none"), ("rmdir", "/none/e"), ("rmdir", ""), ("rmdir", "/d/."),
        ("rmdir", "/d/e/.."), ("plant_symlink", "/l", "d/e"), ("rmdir", "/l"), ("rmdir", "/l/"),
        ("d=open", "/d", DIRECTORY), ("e=open", "/d/e", DIRECTORY), ("rmdir", "e/", {"dir_fd": "@d"}),
        ("stat", "/d/e"), ("fstat", "@e"), ("g=open", "x", NEW, {"dir_fd": "@e"}), ("rmdir", "/d"),
        D, ("mkdir", "/d/e", 0o700), ("rmdir", "e", {"dir_fd": "@f"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("page_bytes", [4096, 64])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_double_answers_every_call_as_the_kernel_does(
    real_root: Callable[[], str], script: str, page_bytes: int
) -> None:
    hold_against(real_root(), SCRIPTS[script], page_bytes=page_bytes)


def test_the_scripts_use_every_call_about_files_and_names() -> None:
    used = {step[0].rpartition("=")[2] for script in SCRIPTS.values() for step in script}
    calls = set(vars(Environment))
    about_the_process = {
        *("monotonic", "perf_counter", "sleep", "getrandbits", "getpid", "getenv", "queue"),
        *("call_in_forked_child", "start_thread", "start_worker", "run_in_thread", "running_loop"),
        *(
            "lock",
            "get_ident",
            "is_main_thread",
            "call_at_exit",
            "look_after",
            "descriptor_limit",
            "bell",
            "check_system",
        ),
    }
    public = {name for name in calls if not name.startswith("_")}
    assert public - about_the_process <= used


# --- sequences that nobody thought of --------------------------------------------------------

names = st.sampled_from(["/a", "/b", "/d", "/d/a", "/d/d", "/d/d/b", "/l", "/l/a", "/d/", "/d/.."])
near = st.sampled_from(["a", "b", "d", "d/a", "..", "../a", "l", "."])
files = st.sampled_from(["@f", "@g"])
any_open = st.sampled_from(["@f", "@g", "@d", "@e"])
offsets = st.one_of(st.integers(-1, 300), st.integers(4000, 4200))
# to preadv and pwritev -1 means the position of the file, which the double does not have
positions = offsets.filter(lambda offset: offset >= 0)
lengths = st.one_of(st.integers(0, 200), st.integers(4000, 4200))
data = st.one_of(st.binary(max_size=100), lengths.map(lambda length: b"x" * length))
flags = st.sampled_from(
    [
        *(RW, NEW, NEW, NEW, EXCLUSIVE, os.O_RDONLY, os.O_WRONLY, NEW | os.O_TRUNC, DIRECTORY),
        *(RW | os.O_NOFOLLOW, os.O_PATH, os.O_PATH | os.O_NOFOLLOW, NEW | os.O_NOFOLLOW),
    ]
)
near_d = st.sampled_from([{"dir_fd": "@d"}, {"dir_fd": "@e"}, {"dir_fd": "@f"}])


def call(*parts: Any) -> st.SearchStrategy[Step]:
    made = [part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts]
    return st.tuples(*made)


steps = st.one_of(
    call(st.sampled_from(["f=open", "g=open"]), names, flags),
    call(st.sampled_from(["f=open", "g=open"]), near, flags, near_d),
    call(st.sampled_from(["d=open", "e=open"]), names, st.just(DIRECTORY)),
    call("mkdir", names, 0o700),
    call("mkdir", near, 0o700, near_d),
    call("rmdir", names),
    call("rmdir", near, near_d),
    call("pwrite", files, data, offsets),
    call("pwritev", files, st.lists(data, max_size=3), positions),
    call("pread", any_open, lengths, offsets),
    call("preadv", files, st.lists(lengths, max_size=3), positions, 0),
    call("ftruncate", any_open, offsets),
    call("posix_fallocate", files, offsets, lengths),
    call("posix_fadvise", files, offsets, lengths, os.POSIX_FADV_DONTNEED),
    call(st.sampled_from(["fsync", "fdatasync", "fstat"]), any_open),
    call("flock", any_open, st.sampled_from([EXCLUSIVE_LOCK, SHARED_LOCK, fcntl.LOCK_UN])),
    call("m=mmap", files, st.sampled_from([0, 10, 4096])),
    call("close", any_open),
    call(st.sampled_from(["stat", "listdir", "unlink"]), names),
    call("unlink", near, near_d),
    call("rename", names, names),
    call("rename", names, near, near_d.map(lambda each: {"dst_dir_fd": each["dir_fd"]})),
    call("rename", near, names, near_d.map(lambda each: {"src_dir_fd": each["dir_fd"]})),
    call("link", names, names.filter(lambda name: name != "/l/a")),
    # no link leads out of the directory: the calls on the real kernel are real
    call("plant_symlink", "/l", st.sampled_from(["a", "d", "none", "l", "d/", "./d/a"])),
)
beginning: list[Step] = [
    D, ("mkdir", "/d/d", 0o700), A, ("g=open", "/d/a", NEW), ("d=open", "/d", DIRECTORY),
]  # fmt: skip


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(steps, min_size=1, max_size=25), page_bytes=st.sampled_from([4096, 512, 64]))
def test_the_double_goes_the_way_of_the_kernel_in_any_sequence_of_calls(
    real_root: Callable[[], str], script: list[Step], page_bytes: int
) -> None:
    hold_against(real_root(), beginning + script, page_bytes=page_bytes)


# --- limits ----------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    old, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (old, hard))


def test_where_no_descriptor_is_left_nothing_is_created_or_mapped(
    real_root: Callable[[], str],
) -> None:
    root = real_root()
    open_two: list[Step] = [A, ("ftruncate", "@f", 10), ("g=open", "/a", RW)]
    more: list[Step] = [
        ("m=mmap", "@f", 10), ("h=open", "/b", NEW), ("h=open", "/none", RW), ("close", "@g"),
        ("m=mmap", "@f", 10), ("h=open", "/b", NEW), ("close", "@f"), ("h=open", "/b", NEW),
    ]  # fmt: skip
    double = World(MemoryKernel.of({}, [root]), root)
    double.environment.max_descriptors = 2  # type: ignore[attr-defined]
    shown = [double.step(*step) for step in open_two + more]
    real = World(Environment(), root)
    seen = [real.step(*step) for step in open_two]
    with limited(resource.RLIMIT_NOFILE, _next_descriptor()):
        seen += [real.step(*step) for step in more]
    real.leave()
    double.leave()
    assert shown == seen
    assert double.tree("") == real.tree("")
    assert [step for step in shown if "EMFILE" in str(step)], "the limit was never met"


def _next_descriptor() -> int:
    descriptor = os.open("/", os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_a_file_grows_up_to_its_limit_and_no_further(real_root: Callable[[], str]) -> None:
    root = real_root()
    script: list[Step] = [
        A, ("pwrite", "@f", b"x" * 100, 9950), ("pwrite", "@f", b"x", 10_000),
        ("pwrite", "@f", b"x", 10_001), ("ftruncate", "@f", 10_001), ("ftruncate", "@f", 10_000),
        ("posix_fallocate", "@f", 9000, 1001), ("posix_fallocate", "@f", 9000, 1000),
        ("pwritev", "@f", [b"x" * 10, b"y" * 10], 9985), ("fstat", "@f"),
    ]  # fmt: skip
    kernel = MemoryKernel.of({}, [root])
    kernel.max_file_bytes = 10_000
    shown = World(kernel, root).run(script)
    with limited(resource.RLIMIT_FSIZE, 10_000):
        seen = World(Environment(), root).run(script)
    assert shown == seen


def test_a_read_that_may_not_wait_gives_what_is_cached(real_root: Callable[[], str]) -> None:
    root = real_root()
    script: list[Step] = [A, ("pwrite", "@f", b"abc", 0), ("preadv", "@f", [2], 1, os.RWF_NOWAIT)]
    (*_, (_, shown, real), (_, tree, real_tree)) = both(root, script)
    assert tree == real_tree
    assert shown == ("preadv", (2, [bytearray(b"bc")]))
    # some file systems cannot say
    assert real in (shown, ("preadv", "EOPNOTSUPP", OSError))


def test_an_allocated_file_takes_up_its_space_and_a_hole_none(real_root: Callable[[], str]) -> None:
    root = real_root()
    for environment in (Environment(), MemoryKernel.of({}, [root])):
        full = environment.open(f"{root}/full", NEW)
        environment.posix_fallocate(full, 0, 65_536)
        hole = environment.open(f"{root}/hole", NEW)
        environment.ftruncate(hole, 65_536)
        assert environment.fstat(full).st_blocks * 512 >= 65_536
        assert environment.fstat(hole).st_blocks == 0
        assert environment.fstat(full).st_dev == environment.stat(root).st_dev
        space = environment.fstatvfs(full)
        assert space.f_bavail * space.f_frsize > 65_536
        assert space.f_favail > 0 or space.f_files == 0
        environment.close(full)
        environment.close(hole)


def test_a_map_of_the_double_takes_what_a_real_one_takes() -> None:
    assert {"__setitem__", "close"} <= set(dir(mmap.mmap))


# --- finalizers ---------------------------------------------------------------------------------


class _Closing(Description):
    """Where it is looked at, a finalizer closes another descriptor: collections come anywhere."""

    close: Callable[[], None]
    looked_at: Node

    @property
    def node(self) -> Node:
        close, self.close = self.close, lambda: None
        close()
        return self.looked_at

    @node.setter
    def node(self, node: Node) -> None:
        self.looked_at = node


@pytest.mark.parametrize(
    "walk",
    [
        lambda kernel: kernel._collect(),
        lambda kernel: kernel.clone(),
        lambda kernel: kernel.open("/fifo", os.O_RDONLY | os.O_NONBLOCK),
    ],
    ids=["forgetting inodes", "copying", "opening a fifo"],
)
def test_a_finalizer_may_close_a_descriptor_in_the_middle_of_a_call(
    walk: Callable[[MemoryKernel], Any],
) -> None:
    kernel = MemoryKernel()
    kernel.plant_fifo("/fifo")
    descriptors = [kernel.open("/file", NEW) for _ in range(3)]
    old = kernel._descriptors[descriptors[0]]
    closing: Any = _Closing.__new__(_Closing)
    closing.close = lambda: kernel.close(descriptors[1])
    closing.node, closing.flags, closing.path, closing.count = old.node, old.flags, old.path, 1
    kernel._descriptors[descriptors[0]] = closing
    closed, kept = (kernel._descriptors[each] for each in descriptors[1:])
    walk(kernel)
    assert closed not in kernel._descriptors.values()
    assert kept in kernel._descriptors.values()
