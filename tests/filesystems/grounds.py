"""File systems that are made, mounted and removed again.

Each is a context manager that gives the reason why it is not there, empty where it is. They are
removed when an exception passes, KeyboardInterrupt included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GROUNDS", "Ground", "made", "mounted"]


@contextlib.contextmanager
def mounted(
    target: Path, kind: str, options: str = "", *, source: str | None = None
) -> Iterator[str]:
    """Mounts a file system at ``target``; gives why not, where that cannot be."""
    reason = "" if os.geteuid() == 0 else "mounting needs root"
    if not reason:
        target.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", kind, *(["-o", options] if options else [])]
        reason = _ran([*command, source or kind, str(target)])
    if reason:
        yield f"no {kind} here: {reason}"
        return
    try:
        yield ""
    finally:
        if _ran(["umount", str(target)]):
            _ran(["umount", "--lazy", str(target)])  # somebody still holds a file there


def _ran(command: list[str]) -> str:
    """Why the command failed; empty where it did not."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"{command[0]} failed")


@dataclass(frozen=True, slots=True)
class Ground:
    """A file system to test on."""

    name: str
    kind: str
    #: the command that makes it, the image's path comes last; empty: it has no image
    make: tuple[str, ...] = ()
    mebibytes: int = 0
    options: str = ""
    #: the scenes run here, which fill it; the rest of the suite runs on the others
    is_small: bool = False
    #: done to the mounted file system before the tests
    prepare: Callable[[Path], None] | None = None


def _leave(mebibytes: int) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        status = os.statvfs(root)
        left = status.f_bavail * status.f_frsize - (mebibytes << 20)
        with (root / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, max(left, 4096))
        os.sync()

    return fill


def _compress(root: Path) -> None:
    """Files made here are to be compressed, which excludes that they are made no-copy."""
    subprocess.run(["chattr", "+c", str(root)], check=True)


_EXT4 = ("mkfs.ext4", "-q", "-J", "size=4")
_XFS = ("mkfs.xfs", "-q", "-m", "reflink=1")
_BTRFS = ("mkfs.btrfs", "-q", "--mixed")
GROUNDS = (
    Ground("ext4", "ext4", _EXT4, 3072),
    Ground("ext4, 4 MiB", "ext4", ("mkfs.ext4", "-q", "-O", "^has_journal"), 4, is_small=True),
    Ground("ext4, 128 inodes", "ext4", (*_EXT4, "-N", "128"), 48, is_small=True),
    Ground("ext4, nearly full", "ext4", _EXT4, 48, is_small=True, prepare=_leave(3)),
    Ground("XFS", "xfs", _XFS, 3072),
    Ground("XFS, nearly full", "xfs", _XFS, 320, is_small=True, prepare=_leave(3)),
    Ground("btrfs", "btrfs", _BTRFS, 3072),
    Ground("btrfs, nearly full", "btrfs", _BTRFS, 120, is_small=True, prepare=_leave(24)),
    Ground("btrfs, no-copy not allowed", "btrfs", _BTRFS, 120, is_small=True, prepare=_compress),
    Ground("tmpfs", "tmpfs", options="size=2g"),
    Ground("tmpfs, 2 MiB, 64 inodes", "tmpfs", options="size=2m,nr_inodes=64", is_small=True),
    Ground("overlayfs on ext4", "overlay", _EXT4, 3072),
    Ground("overlayfs on XFS, nearly full", "overlay", _XFS, 320, is_small=True, prepare=_leave(3)),
)


@contextlib.contextmanager
def made(ground: Ground, folder: Path) -> Iterator[tuple[Path, str]]:
    """The mounted file system's root, and why it is not there."""
    with contextlib.ExitStack() as stack:
        root = folder / "root"
        reason = _mount(ground, folder, root, stack)
        if not reason and ground.prepare is not None:
            ground.prepare(root)
        yield root, reason


def _mount(ground: Ground, folder: Path, root: Path, stack: contextlib.ExitStack) -> str:
    if not ground.make:
        return stack.enter_context(mounted(root, ground.kind, ground.options))
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(ground.mebibytes << 20)
    stack.callback(image.unlink)
    reason = _ran([*ground.make, str(image)])
    if reason:
        return reason
    is_layered = ground.kind == "overlay"
    below = folder / "below" if is_layered else root
    kind = ground.make[0].partition(".")[2]
    options = ",".join(filter(None, ("loop", ground.options)))
    reason = stack.enter_context(mounted(below, kind, options, source=str(image)))
    if reason or not is_layered:
        return reason
    for name in ("lower", "upper", "work"):
        (below / name).mkdir()
    layers = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    return stack.enter_context(mounted(root, "overlay", layers))
