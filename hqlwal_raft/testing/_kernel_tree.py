"""The inodes and descriptors of a :class:`MemoryKernel`, and the way from a path to an inode.

For the kernel only. Makes no system call's decisions: they stand in the modules above.

Not modelled: permissions (everything belongs to the caller, who is no root, and ``open`` asks
nobody), mounts, timestamps, positions in open files, and a working directory other than ``/``.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .._environment import Environment
from ._kernel_images import ROOT
from ._kernel_pages import Directory, FileNode, Node, Symlink

__all__ = ["Description", "KernelTree", "NeverReturns", "Place", "fail"]

DEVICE = 77


class NeverReturns(BaseException):
    """The real call would wait for ever, or the process would be killed (SIGBUS)."""


def fail(number: int, path: str | None = None, target: str | None = None) -> NoReturn:
    if path is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), path, None, target)


class Description:
    """An open file. A map of it keeps it open under a descriptor of its own, as Python's does."""

    __slots__ = ("count", "flags", "node", "path")

    def __init__(self, node: Node, flags: int, path: str) -> None:
        self.node = node
        self.flags = flags
        self.path = path
        #: how many descriptors lead here
        self.count = 1

    @property
    def is_path_only(self) -> bool:
        return bool(self.flags & os.O_PATH)

    @property
    def is_readable(self) -> bool:
        return not self.flags & os.O_PATH and self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def is_writable(self) -> bool:
        return not self.flags & os.O_PATH and self.flags & os.O_ACCMODE != os.O_RDONLY


class Place(NamedTuple):
    """Where a path leads: a name in a directory, and what is there."""

    directory: Directory
    name: str
    node: Node | None
    #: whether the path ends with a slash, which only a directory may
    has_slash: bool

    @property
    def is_special(self) -> bool:
        return self.name in ("", ".", "..")


class KernelTree(Environment):
    """What the calls of the kernel are made of."""

    def __init__(self, page_bytes: int, max_descriptors: int, first_descriptor: int) -> None:
        self.page_bytes = page_bytes
        self.max_descriptors = max_descriptors
        self.capacity_inodes: int | None = None
        #: what kind it says it is, to who asks /proc; there is no /proc where it is ""
        self.file_system = ""
        #: called with a word and a path, in the calling thread, with nothing locked
        self.on_point: Callable[[str, str], object] | None = None
        self.umask = 0o022
        self._lock = threading.RLock()
        self._first_descriptor = first_descriptor
        self._descriptors: dict[int, Description] = {}
        self._root = Directory(ROOT, 0o755)
        self._nodes: dict[int, Node] = {ROOT: self._root}
        self._last_number = ROOT

    def _point(self, what: str, path: str) -> None:
        if self.on_point is not None:
            self.on_point(what, path)

    # --- descriptors ---------------------------------------------------------------------

    def _require_free_descriptor(self, path: str | None) -> None:
        if len(self._descriptors) >= self.max_descriptors:
            fail(errno.EMFILE, path)

    def _install(self, description: Description) -> int:
        number = self._first_descriptor
        while number in self._descriptors:
            number += 1
        self._descriptors[number] = description
        if description.count == 1:
            description.node.opens += 1
        return number

    def _description(self, descriptor: int) -> Description:
        description = self._descriptors.get(descriptor)
        if description is None:
            fail(errno.EBADF)
        return description

    # --- paths and inodes ----------------------------------------------------------------

    def _walk(
        self,
        path: str,
        dir_fd: int | None,
        *,
        follows: bool = True,
        is_slash_followed: bool = True,
    ) -> Place:
        if not path:
            fail(errno.ENOENT, path)
        here: Any = self._root
        if path[0] != "/" and dir_fd is not None:
            here = self._description(dir_fd).node
            if not isinstance(here, Directory):
                fail(errno.ENOTDIR, path)
        names = [name for name in reversed(path.split("/")) if name]
        has_slash = path[-1] == "/"
        followed = 0
        while names:
            name = names.pop()
            if name in (".", ".."):
                number = here.number if name == "." else here.parent
            elif len(name) > 63 and len(os.fsencode(name)) > 255:
                fail(errno.ENAMETOOLONG, path)
            else:
                number = here.names.get(name)
            node = None if number is None else self._nodes[number]
            if isinstance(node, Symlink) and (
                names or follows or (has_slash and is_slash_followed)
            ):
                followed += 1
                if followed > 40:
                    fail(errno.ELOOP, path)
                if node.target[0] == "/":
                    here = self._root
                has_slash = has_slash or (not names and node.target[-1] == "/")
                names += [each for each in reversed(node.target.split("/")) if each]
                continue
            if not names:
                return Place(here, name, node, has_slash)
            if node is None:
                fail(errno.ENOENT, path)
            if not isinstance(node, Directory):
                fail(errno.ENOTDIR, path)
            here = node
        return Place(here, "", here, has_slash)

    def _existing(self, path: str, dir_fd: int | None, *, follows: bool = True) -> Node:
        place = self._walk(path, dir_fd, follows=follows)
        if place.node is None:
            fail(errno.ENOENT, path)
        if place.has_slash and not isinstance(place.node, Directory):
            fail(errno.ENOTDIR, path)
        return place.node

    def _full_path(self, path: str, dir_fd: int | None) -> str:
        if dir_fd is not None and path[0] != "/":
            description = self._descriptors.get(dir_fd)
            return f"{description.path if description else ''}/{path}"
        return path

    def _way_up(self, directory: Directory) -> list[Node]:
        """The directory and all that it lies in."""
        way: list[Node] = [directory]
        while directory is not self._root and directory.parent in self._nodes:
            parent = self._nodes[directory.parent]
            assert isinstance(parent, Directory)
            if parent is directory:
                break
            directory = parent
            way.append(directory)
        return way

    def _create(self, place: Place, node: Node, path: str | None) -> Node:
        if place.directory.is_removed:
            fail(errno.ENOENT, path)
        if self.capacity_inodes is not None and self._count_inodes() >= self.capacity_inodes:
            fail(errno.ENOSPC, path)
        self._last_number += 1
        node.number = self._last_number
        node.links = 1
        self._nodes[node.number] = node
        place.directory.do((place.name, node.number))
        return node

    def _lose_name(self, node: Node) -> None:
        node.links -= 1
        if isinstance(node, Directory):
            node.is_removed = True
        if not node.links and not node.opens:
            self._collect()

    def _count_inodes(self) -> int:
        return sum(1 for node in self._nodes.values() if node.links or node.opens) + 1

    def _collect(self) -> None:
        """Forgets inodes to which neither a process nor the disk can find a way any more."""
        # of a copy, as everywhere: a finalizer may close a descriptor between two steps
        used = {ROOT, *(each.node.number for each in list(self._descriptors.values()))}
        for node in self._nodes.values():
            if isinstance(node, Directory):
                used.update(node.names.values(), node.durable.values())
                for operation in node.pending:
                    used.update(number for _, number in operation if number is not None)
                if not node.is_removed:
                    used.add(node.parent)
        self._nodes = {number: self._nodes[number] for number in self._nodes if number in used}

    def _stat(self, node: Node) -> os.stat_result:
        links, blocks = node.links, 0
        if isinstance(node, Directory):
            children = [self._nodes[number] for number in node.names.values()]
            links = 0 if node.is_removed else 2 + sum(isinstance(x, Directory) for x in children)
        elif isinstance(node, FileNode):
            blocks = -(-node.allocated * self.page_bytes // 512)
        owner, group = os.getuid(), os.getgid()
        times = (0, 0, 0)
        return os.stat_result(
            (node.mode, node.number, DEVICE, links, owner, group, node.size, *times),
            {"st_blocks": blocks, "st_blksize": self.page_bytes},
        )
