"""An operating system's files in memory, which forget: they know what a power cut could leave.

Tests give a :class:`MemoryKernel` to a store as its environment. Its calls have the real ones'
results and errors, which a test holds against the real kernel. It must not know what the bytes
mean. What it assumes of a disk is little, so that what holds here holds on a real one:

- A page (``page_bytes``) reaches the disk whole, at any moment after a store into it and at the
  latest when a sync that began after the store has returned. Until then each page for itself is
  as it was or as after any of the stores since; so is the size. A store is one through a map,
  by ``pwrite``, an allocation, or a change of size.
- Creations, links, renames and unlinks reach the disk in the order in which they happened to
  their directory, at the latest when a sync of the directory that began after them has
  returned. The sync of a file makes no name durable. A rename from one directory into another
  is two such operations, and either may be there without the other.
- Before its first sync a new file may be empty, short, full of zeros, or whole.
- After a failed sync (:meth:`MemoryKernel.forget_sync`) the pages it covered count as written,
  though they may not be: later syncs pass over them until they are stored into again. So do
  the operations of a directory. What ``posix_fadvise(DONTNEED)`` drops is read from the disk.

A call that for the real process would never end raises :class:`NeverReturns`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Self, TypeVar

from ._kernel_files import KernelFiles
from ._kernel_images import DIRECTORY, ROOT, DirectoryState, Image, Snapshot, Special
from ._kernel_pages import Content, Directory, Fifo, FileData, FileNode, Node, Symlink
from ._kernel_tree import Description, NeverReturns, fail

__all__ = ["Image", "MemoryKernel", "NeverReturns", "Snapshot"]

K = TypeVar("K", bound="MemoryKernel")


class MemoryKernel(KernelFiles):
    """Files in memory, and at every moment the states a power cut could leave of them.

    ``on_point`` is called with a word and a path, in the thread that does the work and with
    nothing locked: ``"writing"`` and ``"written"`` (sizes and allocations, too), ``"syncing"``
    and ``"synced"``, ``"syncing directory"`` and ``"synced directory"``, ``"renamed"``,
    ``"unlinked"``, ``"created"``. It may take a :meth:`snapshot`, or wait.
    """

    def __init__(
        self,
        *,
        page_bytes: int = 4096,
        capacity_bytes: int | None = None,
        capacity_inodes: int | None = None,
        max_descriptors: int = 1024,
        first_descriptor: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(page_bytes, max_descriptors, first_descriptor)
        #: what the pages of all files together may take up
        self.capacity_bytes = capacity_bytes
        self.capacity_inodes = capacity_inodes
        #: past which no file may grow (EFBIG)
        self.max_file_bytes = 1 << 30
        #: whether the file system knows the flags of FS_IOC_GETFLAGS
        self.has_attributes = False
        #: each life of a machine has its own, so that no two draw the same numbers
        self.seed = seed
        #: what the clock shows; it ticks whenever it is looked at
        self.now = 1000.0
        self.in_forked_child: list[Callable[[], None]] = []
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """All chance here, and which pages a failed sync did write, once they are read back."""
        if self._rng is None:
            self._rng = random.Random(self.seed)  # noqa: S311 - no secret
        return self._rng

    @rng.setter
    def rng(self, rng: random.Random) -> None:
        self._rng = rng

    # --- making one, looking at it -------------------------------------------------------

    @classmethod
    def of(
        cls,
        files: Mapping[str, bytes] | Image,
        directories: Iterable[str] = (),
        *,
        page_bytes: int = 4096,
        seed: int = 1,
    ) -> Self:
        """A kernel that holds an image, or ``files`` (path → content), all of it durable."""
        image = files if isinstance(files, Image) else _image(files, directories, page_bytes)
        kernel = cls(page_bytes=image.page_bytes, seed=seed)
        found, tables = _skeleton(image.names)
        for number, parent in found:
            kernel._nodes[number] = Directory(number, 0o700, parent)
        for number, names in tables.items():
            directory = kernel._nodes[number]
            assert isinstance(directory, Directory)
            directory.names = directory.durable = names
            directory.links = 1
        first = ROOT + len(found) + 1
        for number, node in enumerate(image.nodes, first):
            made: Node
            if isinstance(node, FileData):
                made = FileNode.of(number, node, image.page_bytes)
            elif node.target is None:
                made = Fifo(number)
            else:
                made = Symlink(number, target=node.target)
            kernel._nodes[number] = made
        for _, place in image.names:
            if place != DIRECTORY:
                kernel._nodes[first + place].links += 1
        kernel._last_number = first + len(image.nodes)
        return kernel

    def snapshot(self) -> Snapshot[Self]:
        with self._lock:
            directories = {}
            contents: dict[int, Content | Special] = {}
            for number, node in self._nodes.items():
                if isinstance(node, Directory):
                    directories[number] = DirectoryState(node.durable, node.pending)
                elif isinstance(node, FileNode):
                    contents[number] = node.content()
                else:
                    contents[number] = _special(node)
            kind, seed = type(self), self.seed + 1
            return Snapshot(
                self.page_bytes, directories, contents, lambda image: kind.of(image, seed=seed)
            )

    def image(self) -> Image:
        """Everything as a process sees it now."""
        with self._lock:
            directories = {}
            contents: dict[int, FileData | Special] = {}
            for number, node in self._nodes.items():
                if isinstance(node, Directory):
                    directories[number] = DirectoryState(node.names, ())
                elif isinstance(node, FileNode):
                    contents[number] = node.data()
                else:
                    contents[number] = _special(node)
        snapshot = Snapshot(self.page_bytes, directories, {}, type(self).of)
        names, numbers = snapshot._names({n: each.durable for n, each in directories.items()})
        return Image(self.page_bytes, names, tuple([contents[number] for number in numbers]))

    def contents(self) -> dict[str, bytes]:
        """Path → content of every file, as a process sees them now."""
        return self.image().contents()

    def fingerprint(self) -> int:
        return hash(self.image())

    def write_to(self, directory: str) -> None:
        """Copies every file into a real directory, under its last name."""
        os.makedirs(directory, exist_ok=True)
        for path, content in self.contents().items():
            with open(os.path.join(directory, os.path.basename(path)), "wb") as file:
                file.write(content)

    def clone(self) -> Self:
        """A twin with the same open descriptors and locks; from now on each goes its own way.

        Maps stay with the kernel they were made by. ``on_point`` is not taken over.
        """
        with self._lock:
            twin = self.after_kill()
            twin.seed, twin.now = self.seed, self.now
            if self._rng is not None:
                twin.rng = random.Random()  # noqa: S311 - no secret
                twin.rng.setstate(self._rng.getstate())
            descriptions: dict[Description, Description] = {}
            for number, old in list(self._descriptors.items()):
                if old not in descriptions:
                    node = twin._nodes[old.node.number]
                    node.opens += 1
                    descriptions[old] = Description(node, old.flags, old.path)
                    descriptions[old].count = old.count
                    if old in old.node.locks:
                        node.locks[descriptions[old]] = old.node.locks[old]
                twin._descriptors[number] = descriptions[old]
            return twin

    def after_kill(self) -> Self:
        """The files as another process finds them after this one died.

        No descriptor is open, no lock is held, and nothing is more durable than it was.
        """
        with self._lock:
            twin = type(self)(page_bytes=self.page_bytes, seed=self.seed + 1)
            for name in (
                *("capacity_bytes", "capacity_inodes", "max_file_bytes", "has_attributes"),
                *("file_system", "umask", "max_descriptors", "_first_descriptor", "_last_number"),
            ):
                setattr(twin, name, getattr(self, name))
            twin._nodes = {number: node.twin() for number, node in self._nodes.items()}
            root = twin._nodes[ROOT]
            assert isinstance(root, Directory)
            twin._root = root
            return twin

    def plant_symlink(self, path: str, target: str) -> None:
        """Makes a symbolic link, as somebody else would."""
        self._plant(path, Symlink(0, target=target))

    def plant_fifo(self, path: str) -> None:
        self._plant(path, Fifo(0))

    def _plant(self, path: str, node: Node) -> None:
        with self._lock:
            place = self._walk(path, None, follows=False)
            if place.node is not None:
                fail(errno.EEXIST, path)
            self._create(place, node, path)

    # --- clock and chance, the process ---------------------------------------------------

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float, /) -> None:
        """Does not wait."""
        self.now += seconds

    def getrandbits(self, bits: int) -> int:
        return self.rng.getrandbits(bits)

    def call_in_forked_child(self, call: Callable[[], None]) -> None:
        """Only kept: a forked child would have a memory, and so files, of its own."""
        self.in_forked_child.append(call)


def _special(node: Node) -> Special:
    return Special(node.target if isinstance(node, Symlink) else None)


def _image(files: Mapping[str, bytes], directories: Iterable[str], page_bytes: int) -> Image:
    nodes: list[FileData | Special] = []
    names = {}
    above = set(directories)
    for path in sorted(files):
        names[path] = len(nodes)
        nodes.append(FileData.of(files[path], page_bytes))
        above.add(os.path.dirname(path))
    for path in list(above):
        while path != "/":
            names[path] = DIRECTORY
            path = os.path.dirname(path)  # noqa: PLW2901 - up to the root
    return Image(page_bytes, tuple(sorted(names.items())), tuple(nodes))


@lru_cache(maxsize=256)
def _skeleton(
    names: tuple[tuple[str, int], ...],
) -> tuple[list[tuple[int, int]], dict[int, dict[str, int]]]:
    """The directories of an image (number, parent), and the names in each."""
    numbers = {"": ROOT}
    found: list[tuple[int, int]] = []
    for path, place in names:
        if place == DIRECTORY:
            number = numbers[path] = ROOT + 1 + len(found)
            found.append((number, numbers[path.rpartition("/")[0]]))
    tables: dict[int, dict[str, int]] = {number: {} for number in numbers.values()}
    for path, place in names:
        parent, _, name = path.rpartition("/")
        number = numbers[path] if place == DIRECTORY else ROOT + 1 + len(found) + place
        tables[numbers[parent]][name] = number
    return found, tables
