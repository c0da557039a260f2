"""A disk that can be filled: of files in memory, or a small file system that is mounted.

The scenes know nothing else of what they run on.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import MemoryKernel

__all__ = ["Disk", "MemoryDisk", "RealDisk", "can_fill"]

#: nobody's real disk is filled by mistake
_LARGEST_BYTES = 1 << 30
_MOST_INODES = 200_000


class Disk(Protocol):
    """A directory in which stores are made, on a disk of its own."""

    environment: Environment
    root: str

    def fill(self) -> None:
        """Leaves no free block."""

    def take_inodes(self) -> bool:
        """Leaves no free inode; False where there is no such limit."""

    def make_room(self) -> None:
        """Gives back what was taken."""


class MemoryDisk:
    """On the file double."""

    def __init__(self) -> None:
        self.kernel = MemoryKernel()
        self.environment: Environment = self.kernel
        self.root = "/ground"
        self.kernel.mkdir(self.root)

    def fill(self) -> None:
        self.kernel.capacity_bytes = 1

    def take_inodes(self) -> bool:
        self.kernel.capacity_inodes = 1
        return True

    def make_room(self) -> None:
        self.kernel.capacity_bytes = self.kernel.capacity_inodes = None


def can_fill(root: str) -> bool:
    """Whether the file system is a small one of its own."""
    status = os.statvfs(root)
    return status.f_blocks * status.f_frsize <= _LARGEST_BYTES


class RealDisk:
    """On a mounted file system; ``root`` is a directory there."""

    def __init__(self, root: str) -> None:
        assert can_fill(root), f"{root} is on a file system that is too large to be filled"
        self.environment = Environment()
        self.root = root
        self._taken: list[Path] = []

    def fill(self) -> None:
        filler = Path(self.root) / "filler"
        self._taken.append(filler)
        os.sync()  # what is freed late is free now
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for _ in range(3):  # what was freed meanwhile, too
                self._write_until_full(descriptor)
        finally:
            os.close(descriptor)
        # small files live elsewhere on some file systems
        for number in range(_MOST_INODES):
            small = Path(self.root) / f"small{number}"
            self._taken.append(small)
            try:
                small.write_bytes(os.urandom(2048))
            except OSError:
                return

    def _write_until_full(self, descriptor: int) -> None:
        size = 1 << 20
        noise = os.urandom(size)  # nothing that could be compressed
        while size >= 512:
            try:
                os.write(descriptor, noise[:size])
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                size //= 2
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def take_inodes(self) -> bool:
        for number in range(_MOST_INODES if os.statvfs(self.root).f_files else 0):
            empty = Path(self.root) / f"empty{number}"
            try:
                empty.touch()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return True
            self._taken.append(empty)
        return False

    def make_room(self) -> None:
        for path in self._taken:
            path.unlink(missing_ok=True)
        self._taken.clear()
        os.sync()
