"""What is asked of paths outside of a store's directory: its parents, and the mounts of the system.

For whoever opens a directory, in a thread that may wait. It must not know what lies in one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ._environment import Environment
from ._files import noted, noting

__all__ = ["file_system_of", "make_directories", "sync_directory_at"]


def make_directories(environment: Environment, path: str, made: list[str]) -> None:
    """Makes what is missing of the path, and adds each to ``made``, the highest first."""
    missing: list[str] = []
    place = path
    while True:
        try:
            status = environment.stat(place)
        except FileNotFoundError:
            missing.append(place)
            place = os.path.dirname(place)
            continue
        except OSError as error:
            raise noted(error, path, "making the directory") from None
        if not stat.S_ISDIR(status.st_mode):
            no_directory = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
            raise noted(no_directory, path, "making the directory")
        break
    for each in reversed(missing):
        made.append(each)  # first: a call that says it failed may have made it
        try:
            with noting(each, "making the directory"):
                environment.mkdir(each, 0o700)
        except FileExistsError:
            made.remove(each)  # another process was faster


def sync_directory_at(environment: Environment, path: str, *, must: bool) -> None:
    """Makes the names in a directory durable. Not ``must``: unless it is not ours to open."""
    try:
        descriptor = environment.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, PermissionError) and not must:
            return  # not ours to open: the name in it was made durable by who made it
        raise noted(error, path, "opening") from None
    try:
        with noting(path, "syncing the directory"):
            environment.fsync(descriptor)
    finally:
        with noting(path, "closing"):
            environment.close(descriptor)


def file_system_of(environment: Environment, descriptor: int) -> str:
    """The kind of file system a descriptor is on, by its mount's number."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _read_text(environment, f"/proc/self/fdinfo/{descriptor}").splitlines():
            if line.startswith("mnt_id:"):
                number = line.split()[1]
                break
        else:
            return ""
        for line in _read_text(environment, "/proc/self/mountinfo").splitlines():
            if line.split(" ", 1)[0] == number:
                return line.partition(" - ")[2].split()[0]
    return ""


def _read_text(environment: Environment, path: str) -> str:
    descriptor = environment.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := environment.pread(descriptor, 1 << 16, len(data)):
            data += piece
        return data.decode(errors="replace")
    finally:
        environment.close(descriptor)
