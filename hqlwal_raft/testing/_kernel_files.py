"""The calls of a :class:`MemoryKernel` that take a descriptor: read, store, sync, allocate, lock.

For the kernel only. It must not know what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Sequence
from typing import Any

from ._kernel_names import KernelNames
from ._kernel_pages import Directory, Fifo, FileNode, Node
from ._kernel_tree import Description, NeverReturns, fail

__all__ = ["KernelFiles", "MemoryMap"]

# as in <sys/file.h> and <linux/fs.h>
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602

MOST_BUFFERS = 1024


class KernelFiles(KernelNames):
    """Files by their descriptors."""

    capacity_bytes: int | None
    max_file_bytes: int
    has_attributes: bool
    rng: random.Random

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        if length < 0:
            fail(errno.EINVAL)
        with self._lock:
            return self._require_file(self._to_read(descriptor, offset)).read(offset, length)

    def preadv(
        self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0, /
    ) -> int:
        with self._lock:
            node = self._to_read(descriptor, offset)
            if len(buffers) > MOST_BUFFERS:
                fail(errno.EINVAL)
            views = [memoryview(buffer).cast("B") for buffer in buffers]
            length = sum(map(len, views))
            if not length:
                return 0  # from a directory, too
            if flags & ~(os.RWF_NOWAIT | os.RWF_HIPRI):
                fail(errno.EOPNOTSUPP)
            data = self._require_file(node).read(offset, length)
        count = 0
        for view in views:
            part = data[count : count + len(view)]
            view[: len(part)] = part
            count += len(part)
        return count

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int, /) -> int:
        return self._write(descriptor, bytes(data), offset)

    def pwritev(self, descriptor: int, buffers: Sequence[Any], offset: int, /) -> int:
        if len(buffers) > MOST_BUFFERS:
            fail(errno.EINVAL)
        return self._write(descriptor, b"".join(buffers), offset)

    def fdatasync(self, descriptor: int, /) -> None:
        with self._lock:
            description = self._opened(descriptor)
        node = description.node
        if isinstance(node, Directory):
            word = "directory"
        elif isinstance(node, FileNode):
            word = ""
        else:
            fail(errno.EINVAL)
        # one at a time: what another sync has in hand is not durable before it is done
        with node.sync_lock:
            with self._lock:
                covered: Any = node.begin_sync()
            self._point(f"syncing {word}".strip(), description.path)
            with self._lock:
                node.finish_sync(covered)
                if isinstance(node, Directory):
                    self._collect()
        self._point(f"synced {word}".strip(), description.path)

    fsync = fdatasync

    def forget_sync(self, descriptor: int) -> None:
        """What a sync that fails does: what it should have written may be lost, unnoticed later.

        For whoever injects the error, who raises it then.
        """
        with self._lock:
            node = self._opened(descriptor).node
        assert isinstance(node, (Directory, FileNode))
        with node.sync_lock, self._lock:
            node.forget_sync()

    def posix_fallocate(self, descriptor: int, offset: int, length: int, /) -> None:
        with self._lock:
            description = self._opened(descriptor)
            if offset < 0 or length <= 0:
                fail(errno.EINVAL)
            if not description.is_writable:
                fail(errno.EBADF)
            node = description.node
            if not isinstance(node, FileNode):
                fail(errno.ESPIPE)
            if offset + length > self.max_file_bytes:
                fail(errno.EFBIG)
        self._point("writing", description.path)
        with self._lock:
            # where space runs out, what was allocated before stays
            fits = self._fitting(node, offset, length)
            if offset + fits > node.size and fits > 0:
                node.resize(offset + fits)
            first, end = offset // self.page_bytes, -(-(offset + fits) // self.page_bytes)
            for page in range(first, end):
                if node.is_hole(page):
                    node.allocate(page)
        self._point("written", description.path)
        if fits < length:
            fail(errno.ENOSPC)

    def ftruncate(self, descriptor: int, length: int, /) -> None:
        with self._lock:
            if length < 0:
                fail(errno.EINVAL)
            description = self._opened(descriptor)
            node = description.node
            if not isinstance(node, FileNode) or not description.is_writable:
                fail(errno.EINVAL)
            if length > self.max_file_bytes:
                fail(errno.EFBIG)
        self._point("writing", description.path)
        with self._lock:
            node.resize(length)
        self._point("written", description.path)

    def lseek(self, descriptor: int, offset: int, whence: int, /) -> int:
        """Only SEEK_DATA and SEEK_HOLE: a page of zeros counts as a hole."""
        with self._lock:
            node = self._opened(descriptor).node
            if not isinstance(node, FileNode) or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
                fail(errno.EINVAL)
            data = node.data()
            if not 0 <= offset < data.size:
                fail(errno.ENXIO)
            for page in range(offset // self.page_bytes, len(data.pages)):
                content = data.pages[page]
                is_data = content is not None and bool(content.strip(b"\0"))
                if is_data == (whence == os.SEEK_DATA):
                    return max(offset, page * self.page_bytes)
            if whence == os.SEEK_DATA:
                fail(errno.ENXIO)
            return data.size

    def posix_fadvise(self, descriptor: int, offset: int, length: int, advice: int, /) -> None:
        with self._lock:
            node = self._opened(descriptor).node
            if isinstance(node, Fifo):
                fail(errno.ESPIPE)
            if length < 0 or not 0 <= advice <= os.POSIX_FADV_NOREUSE:
                fail(errno.EINVAL)
            if advice == os.POSIX_FADV_DONTNEED and isinstance(node, FileNode):
                # only whole pages are dropped
                first = -(-offset // self.page_bytes)
                end = (offset + length) // self.page_bytes if length else None
                node.reload(self.rng, first, end)

    def fstat(self, descriptor: int, /) -> os.stat_result:
        with self._lock:
            return self._stat(self._description(descriptor).node)

    def fstatvfs(self, descriptor: int, /) -> os.statvfs_result:
        with self._lock:
            self._description(descriptor)
            blocks = (self.capacity_bytes or 1 << 40) // self.page_bytes
            free = blocks if self.capacity_bytes is None else max(self._free_pages(), 0)
            inodes = self.capacity_inodes or 1 << 20
            left = max(inodes - self._count_inodes(), 0)
            size = self.page_bytes
            return os.statvfs_result((size, size, blocks, free, free, inodes, left, left, 0, 255))

    def flock(self, descriptor: int, operation: int, /) -> None:
        with self._lock:
            wanted = operation & ~LOCK_NB
            if wanted not in (LOCK_SH, LOCK_EX, LOCK_UN):
                fail(errno.EINVAL)
            description = self._opened(descriptor)
            locks = description.node.locks
            if wanted == LOCK_UN:
                locks.pop(description, None)
                return
            is_exclusive = wanted == LOCK_EX
            if locks.get(description) == is_exclusive:
                return
            locks.pop(description, None)  # a change of a lock gives it up first
            if locks if is_exclusive else any(locks.values()):
                if not operation & LOCK_NB:
                    raise NeverReturns(f"the lock of {description.path} is waited for")
                fail(errno.EWOULDBLOCK)
            locks[description] = is_exclusive

    def ioctl(self, descriptor: int, request: int, argument: Any = 0, /) -> Any:
        with self._lock:
            node = self._opened(descriptor).node
            is_known = request & 0xFFFFFFFF in (FS_IOC_GETFLAGS, FS_IOC_SETFLAGS)
            if not is_known or not self.has_attributes or isinstance(node, Fifo):
                fail(errno.ENOTTY)
            if isinstance(argument, int):
                fail(errno.EFAULT)
            if request & 0xFFFFFFFF == FS_IOC_SETFLAGS:
                (node.attributes,) = struct.unpack_from("=I", argument)
                return 0 if not isinstance(argument, bytes) else argument
            packed = struct.pack("=I", node.attributes)
            if isinstance(argument, bytes):
                return packed + argument[4:]
            memoryview(argument).cast("B")[:4] = packed
            return 0

    def mmap(self, descriptor: int, length: int) -> MemoryMap:
        with self._lock:
            description = self._description(descriptor)
            node = description.node
            if isinstance(node, FileNode):
                if length == 0 and node.size == 0:
                    raise ValueError("cannot mmap an empty file")
                if length > node.size:
                    raise ValueError("mmap length is greater than file size")
            self._require_free_descriptor(None)
            if description.is_path_only:
                fail(errno.EBADF)
            if not length and not isinstance(node, FileNode):
                fail(errno.EINVAL)
            if not (description.is_readable and description.is_writable):
                fail(errno.EACCES)
            if not isinstance(node, FileNode):
                fail(errno.ENODEV)
            description.count += 1
            twin = self._install(description)
            return MemoryMap(self, description, node, twin, length or node.size)

    # --- within --------------------------------------------------------------------------

    def _opened(self, descriptor: int) -> Description:
        description = self._description(descriptor)
        if description.is_path_only:
            fail(errno.EBADF)
        return description

    def _to_read(self, descriptor: int, offset: int) -> Node:
        if offset < 0:
            fail(errno.EINVAL)
        description = self._opened(descriptor)
        if isinstance(description.node, Fifo):
            fail(errno.ESPIPE)
        if not description.is_readable:
            fail(errno.EBADF)
        return description.node

    def _require_file(self, node: Node) -> FileNode:
        if not isinstance(node, FileNode):
            fail(errno.EISDIR)
        return node

    def _write(self, descriptor: int, data: bytes, offset: int) -> int:
        with self._lock:
            if offset < 0:
                fail(errno.EINVAL)
            description = self._opened(descriptor)
            node = description.node
            if isinstance(node, Fifo):
                fail(errno.ESPIPE)
            if not description.is_writable or not isinstance(node, FileNode):
                fail(errno.EBADF)
            if not data:
                return 0
            if description.flags & os.O_APPEND:
                offset = node.size
            if offset >= self.max_file_bytes:
                fail(errno.EFBIG)
            data = data[: self.max_file_bytes - offset]
        self._point("writing", description.path)
        with self._lock:
            fits = self._fitting(node, offset, len(data))
            if not fits:
                fail(errno.ENOSPC)
            node.write(offset, data[:fits])
        self._point("written", description.path)
        return fits

    def _fitting(self, node: FileNode, offset: int, length: int) -> int:
        """How many of the bytes find space; pages that are there already take none."""
        if self.capacity_bytes is None:
            return length
        free = self._free_pages()
        for page in range(offset // self.page_bytes, -(-(offset + length) // self.page_bytes)):
            if node.is_hole(page):
                free -= 1
                if free < 0:
                    return max(page * self.page_bytes - offset, 0)
        return length

    def _free_pages(self) -> int:
        assert self.capacity_bytes is not None
        used = sum(
            node.allocated
            for node in self._nodes.values()
            if isinstance(node, FileNode) and (node.links or node.opens)
        )
        return self.capacity_bytes // self.page_bytes - used


class MemoryMap:
    """A shared, writable map of a file. It keeps the file open, and takes up a descriptor."""

    def __init__(
        self,
        kernel: KernelFiles,
        description: Description,
        node: FileNode,
        descriptor: int,
        length: int,
    ) -> None:
        self._kernel: KernelFiles | None = kernel
        self._description = description
        self._node = node
        self._descriptor = descriptor
        self._length = length

    def __setitem__(self, place: slice, data: Any, /) -> None:
        kernel, node, path = self._kernel, self._node, self._description.path
        if kernel is None:
            raise ValueError("mmap closed or invalid")
        start, stop, _ = place.indices(self._length)
        data = bytes(data)
        if len(data) != max(stop - start, 0):
            raise IndexError("mmap slice assignment is wrong size")
        if not data:
            return
        kernel._point("writing", path)
        with kernel._lock:
            if (stop - 1) // kernel.page_bytes >= -(-node.size // kernel.page_bytes):
                raise NeverReturns(f"SIGBUS: a store behind the end of {path}")
            if kernel._fitting(node, start, len(data)) < len(data):
                raise NeverReturns(f"SIGBUS: no space for a store into a hole of {path}")
            # what is stored into the last page behind the file's end is no part of the file
            if start < node.size:
                node.write(start, data[: node.size - start])
        kernel._point("written", path)

    def close(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close(self._descriptor)

    def __del__(self) -> None:
        self.close()
