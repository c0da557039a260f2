"""Every image that a crash could leave at every step of some calls, each with its address.

Knows the kernel in memory and not the engine. ``lock.hql`` is left out of all images: what it
says is a hint, and with it each image would be there four times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from hqlwal_raft.testing import Image, MemoryKernel, Snapshot
from hqlwal_raft.testing._kernel_images import DirectoryState, Special
from hqlwal_raft.testing._kernel_pages import SIZE, Content, FileData

from .alphabet import PAGE_BYTES
from .core import LOCK_NAME

__all__ = ["Images", "Moment", "Recorder", "all_images", "new_kernel", "present", "started"]

#: the calls that add images; a sync only takes some away, and what those show was seen before
_AFTER = ("written", "renamed", "unlinked", "created")


def new_kernel() -> MemoryKernel:
    return MemoryKernel(page_bytes=PAGE_BYTES)


def started(image: Image) -> MemoryKernel:
    """A kernel that holds the image, and draws other numbers than the one it was taken from."""
    return MemoryKernel.of(image, seed=1)


class _Quick(Snapshot[MemoryKernel]):
    """Gives the same, but looks at each state of a file once and only at the pages that changed."""

    def _variants(self, number: int) -> Sequence[FileData | Special]:
        content = self.contents[number]
        if not isinstance(content, Content) or not content.is_synced or SIZE in content.versions:
            return super()._variants(number)
        known = _variants_of.get(id(content))
        if known is not None and known[0] is content:
            return known[1]
        if len(_variants_of) > 1000:
            _variants_of.clear()
        pages = list(content.data.pages)
        choices = [dict.fromkeys(versions) for versions in content.versions.values()]
        variants = []
        for chosen in itertools.product(*choices):
            for page, version in zip(content.versions, chosen, strict=True):
                pages[page] = version
            variants.append(FileData(content.data.size, tuple(pages)))
        _variants_of[id(content)] = content, variants
        return variants


#: by identity: a state of a file is the same object until the file is changed
_variants_of: dict[int, tuple[Content, list[FileData]]] = {}


def _without_lock(snapshot: Snapshot[MemoryKernel]) -> Snapshot[MemoryKernel]:
    directories, locks = {}, set()
    for directory, (durable, pending) in snapshot.directories.items():
        state = DirectoryState(durable, pending)
        if LOCK_NAME in durable:
            locks.add(durable[LOCK_NAME])
            state = state._replace(durable={n: i for n, i in durable.items() if n != LOCK_NAME})
        if any(name == LOCK_NAME for operation in pending for name, _ in operation):
            locks.update(
                number
                for operation in pending
                for name, number in operation
                if name == LOCK_NAME and number is not None
            )
            left = [tuple(c for c in operation if c[0] != LOCK_NAME) for operation in pending]
            state = state._replace(pending=tuple(operation for operation in left if operation))
        directories[directory] = state
    contents = {n: content for n, content in snapshot.contents.items() if n not in locks}
    return _Quick(snapshot.page_bytes, directories, contents, snapshot.build)


def all_images(kernel: MemoryKernel) -> Iterator[Image]:
    return _without_lock(kernel.snapshot()).all_images()


def present(kernel: MemoryKernel) -> Image:
    """What a process would find that is started after this one died, without a power cut."""
    image = kernel.image()
    places = dict(image.names)
    gone = next((places[path] for path in places if path.endswith("/" + LOCK_NAME)), None)
    if gone is None:
        return image
    names = tuple((path, place - (place > gone)) for path, place in image.names if place != gone)
    return Image(image.page_bytes, names, image.nodes[:gone] + image.nodes[gone + 1 :])


class Images:
    """Numbers images. Keeps each state of a file once, since most images differ in one only."""

    def __init__(self) -> None:
        self._parts: dict[object, int] = {}
        self._values: list[Any] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._keys: list[tuple[int, ...]] = []

    def add(self, image: Image) -> int:
        """The image's number, the next one where it is new."""
        parts = self._parts
        key = []
        for part in (image.names, *image.nodes):
            number = parts.get(part)
            if number is None:
                number = parts[part] = len(self._values)
                self._values.append(part)
            key.append(number)
        found = self._numbers.setdefault(tuple(key), len(self._keys))
        if found == len(self._keys):
            self._keys.append(tuple(key))
        return found

    def __getitem__(self, number: int) -> Image:
        names, *nodes = [self._values[part] for part in self._keys[number]]
        return Image(PAGE_BYTES, names, tuple(nodes))


class Moment(NamedTuple):
    """The disk after one call."""

    call: str
    snapshot: Snapshot[MemoryKernel]
    #: what is left where only the process dies
    present: Image | None

    def images(self) -> Iterator[Image]:
        return self.snapshot.all_images()


class Recorder:
    """While it is entered, takes the disk after each call that leaves more to what may be found."""

    def __init__(self, kernel: MemoryKernel, *, is_recovery: bool = False) -> None:
        self.moments: list[Moment] = []
        self._kernel = kernel
        self._is_recovery = is_recovery

    def __enter__(self) -> Self:
        if not self._is_recovery:  # that begins with what it is about
            self.take("the beginning")
        self._kernel.on_point = self._point
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.on_point = None

    def _point(self, what: str, path: str) -> None:
        if what in _AFTER:
            self.take(f"{what} {path}")

    def take(self, call: str, *, always: bool = False) -> None:
        snapshot = _without_lock(self._kernel.snapshot())
        if self.moments and not always:
            last = self.moments[-1].snapshot
            if snapshot.directories == last.directories and snapshot.contents == last.contents:
                return
        found = None if self._is_recovery else present(self._kernel)
        self.moments.append(Moment(call, snapshot, found))
