"""The calls of a :class:`MemoryKernel` that take a path: open, list, make, rename, link, unlink.

For the kernel only. It must not know what a file holds, nor what of it is durable.
"""

from __future__ import annotations

import errno
import os

from ._kernel_pages import Directory, Fifo, FileData, FileNode, Node, Symlink
from ._kernel_tree import Description, KernelTree, NeverReturns, Place, fail

__all__ = ["KernelNames"]


class KernelNames(KernelTree):
    """Descriptors and names."""

    # --- descriptors ---------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        with self._lock:
            if flags & os.O_PATH:
                flags &= os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            if flags & os.O_CREAT and flags & os.O_DIRECTORY:
                fail(errno.EINVAL, path)
            self._require_free_descriptor(path)
            if self.file_system and path.startswith("/proc/self/"):
                return self._install(Description(self._about_mounts(path), os.O_RDONLY, path))
            place = self._walk_to_open(path, flags, dir_fd)
            node = place.node
            is_new = node is None
            if node is None:
                node = self._create(place, FileNode(0, mode & ~self.umask, self.page_bytes), path)
            full = self._full_path(path, dir_fd)
            descriptor = self._install(Description(node, flags, full))
            is_cut = bool(flags & os.O_TRUNC) and isinstance(node, FileNode) and node.size > 0
        if is_new:
            self._point("created", full)
        if is_cut:
            assert isinstance(node, FileNode)
            self._point("writing", full)
            with self._lock:
                node.resize(0)
            self._point("written", full)
        return descriptor

    def _about_mounts(self, path: str) -> FileNode:
        """The files of Linux that say on which file system a descriptor is."""
        if path == "/proc/self/mountinfo":
            text = f"21 1 8:1 / / rw,relatime shared:1 - {self.file_system} /dev/sda1 rw\n"
        else:
            directory, _, number = path.rpartition("/")
            if directory != "/proc/self/fdinfo" or not number.isdigit():
                fail(errno.ENOENT, path)
            if int(number) not in self._descriptors:
                fail(errno.ENOENT, path)
            text = "pos:\t0\nflags:\t02100000\nmnt_id:\t21\n"
        return FileNode.of(0, FileData.of(text.encode(), self.page_bytes), self.page_bytes)

    def _walk_to_open(self, path: str, flags: int, dir_fd: int | None) -> Place:
        creates = flags & os.O_CREAT
        is_exclusive = creates and flags & os.O_EXCL
        follows = not flags & os.O_NOFOLLOW and not is_exclusive
        place = self._walk(path, dir_fd, follows=follows)
        if creates and place.has_slash and not place.is_special:
            fail(errno.EISDIR, path)
        node = place.node
        if node is None:
            if not creates:
                fail(errno.ENOENT, path)
            return place
        is_directory = isinstance(node, Directory)
        if is_exclusive:
            fail(errno.EEXIST, path)
        if creates and is_directory:
            fail(errno.EISDIR, path)
        if (flags & os.O_DIRECTORY or place.has_slash) and not is_directory:
            fail(errno.ENOTDIR, path)
        if flags & os.O_PATH:
            return place
        if isinstance(node, Symlink):
            fail(errno.ELOOP, path)
        if is_directory and flags & (os.O_ACCMODE | os.O_TRUNC):
            fail(errno.EISDIR, path)
        if isinstance(node, Fifo) and flags & os.O_ACCMODE != os.O_RDWR:
            is_reading = flags & os.O_ACCMODE == os.O_RDONLY
            others = [each for each in list(self._descriptors.values()) if each.node is node]
            has_peer = any(each.is_writable if is_reading else each.is_readable for each in others)
            if not has_peer and not flags & os.O_NONBLOCK:
                raise NeverReturns(f"the opening of the fifo {path} waits for its other end")
            if not has_peer and not is_reading:
                fail(errno.ENXIO, path)
        return place

    def close(self, descriptor: int) -> None:
        with self._lock:
            description = self._description(descriptor)
            del self._descriptors[descriptor]
            description.count -= 1
            if not description.count:
                node = description.node
                node.opens -= 1
                node.locks.pop(description, None)
                if not node.opens and not node.links:
                    self._collect()

    # --- names ---------------------------------------------------------------------------

    def stat(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        with self._lock:
            return self._stat(self._existing(path, dir_fd, follows=follow_symlinks))

    def access(self, path: str, mode: int, *, dir_fd: int | None = None) -> bool:
        with self._lock:
            try:
                node = self._existing(path, dir_fd)
            except OSError:
                return False
            return node.mode >> 6 & mode == mode

    def listdir(self, path: str | int) -> list[str]:
        """In no order that anybody could rely on."""
        with self._lock:
            if isinstance(path, int):
                description = self._description(path)
                node, text = description.node, None
                if description.is_path_only:
                    fail(errno.EBADF)
            else:
                node, text = self._existing(path, None), path
            if not isinstance(node, Directory):
                fail(errno.ENOTDIR, text)
            return list(node.names)[::-1]

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            place = self._walk(path, dir_fd, follows=False)
            if place.node is not None:
                fail(errno.EEXIST, path)
            parent = place.directory.number
            self._create(place, Directory(0, mode & ~self.umask, parent), path)
        self._point("created", self._full_path(path, dir_fd))

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._lock:
            place = self._walk(path, dir_fd, follows=False, is_slash_followed=False)
            node = place.node
            if place.is_special:
                last = path.rstrip("/").rpartition("/")[2]
                fail({".": errno.EINVAL, "..": errno.ENOTEMPTY}.get(last, errno.EBUSY), path)
            if node is None:
                fail(errno.ENOENT, path)
            if not isinstance(node, Directory):
                fail(errno.ENOTDIR, path)
            if node.names:
                fail(errno.ENOTEMPTY, path)
            place.directory.do((place.name, None))
            self._lose_name(node)
        self._point("unlinked", self._full_path(path, dir_fd))

    def rename(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        with self._lock:
            old = self._walk(source, src_dir_fd, follows=False)
            new = self._walk(target, dst_dir_fd, follows=False)
            number = self._refusal_to_rename(old, new)
            if number:
                fail(number, source, target)
            assert old.node is not None
            if old.node is not new.node:
                self._rename(old, old.node, new)
        self._point("renamed", self._full_path(target, dst_dir_fd))

    def _refusal_to_rename(self, old: Place, new: Place) -> int:
        node, victim = old.node, new.node
        if old.is_special or new.is_special:
            return errno.EBUSY
        if node is None:
            return errno.ENOENT
        is_directory = isinstance(node, Directory)
        if not is_directory and (old.has_slash or new.has_slash):
            return errno.ENOTDIR
        if is_directory and node in self._way_up(new.directory):
            return errno.EINVAL
        if victim in self._way_up(old.directory):
            return errno.ENOTEMPTY
        if node is victim:
            return 0
        if new.directory.is_removed:
            return errno.ENOENT
        if victim is not None and is_directory and not isinstance(victim, Directory):
            return errno.ENOTDIR
        if isinstance(victim, Directory):
            if not is_directory:
                return errno.EISDIR
            if victim.names:
                return errno.ENOTEMPTY
        return 0

    def _rename(self, old: Place, node: Node, new: Place) -> None:
        if old.directory is new.directory:
            new.directory.do((old.name, None), (new.name, node.number))
        else:  # no disk promises that both directories change at once
            new.directory.do((new.name, node.number))
            old.directory.do((old.name, None))
        if isinstance(node, Directory):
            node.parent = new.directory.number
        if new.node is not None:
            self._lose_name(new.node)

    def link(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        with self._lock:
            # Python has link(2) called, which follows no link, unless it needs linkat(2)
            follows = src_dir_fd is not None or dst_dir_fd is not None
            node = self._walk(source, src_dir_fd, follows=follows).node
            if node is None or node.links == 0:
                fail(errno.ENOENT, source, target)
            if source.endswith("/") and not isinstance(node, Directory):
                fail(errno.ENOTDIR, source, target)
            new = self._walk(target, dst_dir_fd, follows=False, is_slash_followed=False)
            if new.node is not None:
                fail(errno.EEXIST, source, target)
            if new.has_slash or new.directory.is_removed:
                fail(errno.ENOENT, source, target)
            if isinstance(node, Directory):
                fail(errno.EPERM, source, target)
            node.links += 1
            new.directory.do((new.name, node.number))
        self._point("created", self._full_path(target, dst_dir_fd))

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._lock:
            place = self._walk(path, dir_fd, follows=False, is_slash_followed=False)
            if place.is_special or isinstance(place.node, Directory):
                fail(errno.EISDIR, path)
            if place.node is None:
                fail(errno.ENOENT, path)
            if place.has_slash:
                fail(errno.ENOTDIR, path)
            place.directory.do((place.name, None))
            self._lose_name(place.node)
        self._point("unlinked", self._full_path(path, dir_fd))
