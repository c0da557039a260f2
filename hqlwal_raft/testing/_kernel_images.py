"""What a power cut could leave of a :class:`MemoryKernel`: snapshots, and the images they hold.

Tests take them from the kernel. Knows what a disk may hold, but no system call. Everything here
is frozen, and images share the pages of the kernel they were taken from.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ._kernel_pages import SIZE, Content, FileData, Names, Operation, apply

__all__ = ["DIRECTORY", "ROOT", "Image", "Snapshot", "Special"]

#: the root directory's inode number
ROOT = 1

#: in an image's names: a directory, where others have the place of their inode
DIRECTORY = -1

Kernel = TypeVar("Kernel")


class Special(NamedTuple):
    """A symbolic link, or a fifo (no target)."""

    target: str | None


class Image(NamedTuple):
    """One whole state of a disk, to compare, to put into a set, and to build a kernel of."""

    page_bytes: int
    #: every path, sorted → the place of its inode in ``nodes``, the same for hard links
    names: tuple[tuple[str, int], ...]
    nodes: tuple[FileData | Special, ...]

    def contents(self) -> dict[str, bytes]:
        """Path → content of every file."""
        return {
            path: node.to_bytes(self.page_bytes)
            for path, place in self.names
            if place != DIRECTORY and isinstance(node := self.nodes[place], FileData)
        }


class DirectoryState(NamedTuple):
    durable: Names
    pending: tuple[Operation, ...]

    def states(self) -> list[Names]:
        """The different name tables that an ordered prefix of the operations leads to."""
        states: list[Names] = []
        for count in range(len(self.pending) + 1):
            names = apply(self.pending[:count], self.durable)
            if names not in states:
                states.append(names)
        return states


class Variants(Sequence[FileData]):
    """All contents of one file that a power cut may leave, each once."""

    def __init__(self, content: Content, page_bytes: int) -> None:
        self._fixed: tuple[FileData, ...] = ()
        #: size → versions of each page
        self._pages: dict[int, list[tuple[bytes | None, ...]]] = {}
        data = content.data
        if not content.is_synced:
            zeros = tuple([None if page is None else bytes(page_bytes) for page in data.pages])
            fixed = (FileData(0, ()), FileData(data.size, zeros), data)
            self._fixed = tuple(dict.fromkeys(fixed))
            return
        for size in dict.fromkeys(content.sizes()):
            count = -(-size // page_bytes)
            pages = [_distinct(content.versions_of(page)) for page in range(count)]
            if kept := size % page_bytes:
                pages[-1] = _distinct(
                    tuple([page and page[:kept] + bytes(page_bytes - kept) for page in pages[-1]])
                )
            self._pages[size] = pages

    def __len__(self) -> int:
        return len(self._fixed) or sum(math.prod(map(len, pages)) for pages in self._pages.values())

    def __iter__(self) -> Iterator[FileData]:
        yield from self._fixed
        for size, pages in self._pages.items():
            for chosen in itertools.product(*pages):
                yield FileData(size, chosen)

    def __getitem__(self, place: int | slice) -> FileData:  # type: ignore[override]
        assert isinstance(place, int)
        return next(itertools.islice(self, place, None))

    def __contains__(self, data: object) -> bool:
        if self._fixed:
            return data in self._fixed
        if not isinstance(data, FileData) or data.size not in self._pages:
            return False
        versions = self._pages[data.size]
        return all(page in each for page, each in zip(data.pages, versions, strict=True))


def _distinct(versions: tuple[bytes | None, ...]) -> tuple[bytes | None, ...]:
    # a page of zeros differs from a hole only in the space it takes: a hole is no kinder
    distinct = dict.fromkeys(versions)
    zero = next((page for page in distinct if page is not None and not any(page)), None)
    if None in distinct and zero is not None:
        del distinct[zero]
    return tuple(distinct)


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[Kernel]):
    """The disk at one moment: every state that a power cut at this moment could leave."""

    page_bytes: int
    directories: Mapping[int, DirectoryState]
    contents: Mapping[int, Content | Special]
    #: makes a kernel of an image
    build: Callable[[Image], Kernel]

    # --- drawn by chance -----------------------------------------------------------------

    def image(self, rng: random.Random) -> Kernel:
        """One of the states, drawn by ``rng``."""
        return self.build(self.draw(rng))

    def images(self, rng: random.Random, at_most: int) -> Iterator[Kernel]:
        """Up to ``at_most`` different states: all of them where there are so few."""
        seen: set[Image] = set()
        for _ in range(2 * at_most):
            image = self.draw(rng)
            if image not in seen:
                seen.add(image)
                yield self.build(image)
                if len(seen) == at_most:
                    return

    def draw(self, rng: random.Random) -> Image:
        tables = {}
        for number, directory in self.directories.items():
            extreme = rng.choice((0, len(directory.pending), None))
            count = rng.randint(0, len(directory.pending)) if extreme is None else extreme
            tables[number] = apply(directory.pending[:count], directory.durable)
        names, numbers = self._names(tables)
        # In turn: everything old, everything new, mixed, and one page unlike all others,
        # which is what finds a wrong order of two writes soonest.
        uncertain = [
            (number, page)
            for number in sorted(numbers)
            if isinstance(content := self.contents[number], Content)
            for page in sorted(content.versions)
        ]
        style = rng.choice(("old", "new", "mixed", "mixed", "odd old", "odd new"))
        odd = rng.choice(uncertain) if uncertain else None

        def version(number: int, page: int, count: int) -> int:
            if style == "mixed":
                return rng.choice((0, count - 1, rng.randrange(count)))
            is_odd = (number, page) == odd
            return count - 1 if (style in ("new", "odd new")) != is_odd else 0

        nodes = [self._draw_node(number, version, rng) for number in numbers]
        return Image(self.page_bytes, names, tuple(nodes))

    def _draw_node(
        self, number: int, version: Callable[[int, int, int], int], rng: random.Random
    ) -> FileData | Special:
        content = self.contents[number]
        if isinstance(content, Special):
            return content
        sizes = content.sizes()
        size = sizes[version(number, SIZE, len(sizes))]
        pages = []
        for page in range(-(-size // self.page_bytes)):
            versions = content.versions_of(page)
            pages.append(versions[version(number, page, len(versions))])
        if not content.is_synced:
            match rng.choice(("empty", "zeros", "short", "whole", "whole")):
                case "empty":
                    return FileData(0, ())
                case "zeros":
                    pages = [page and bytes(self.page_bytes) for page in pages]
                case "short":
                    sector = min(512, self.page_bytes)
                    size = rng.randint(0, size // sector) * sector
                    del pages[-(-size // self.page_bytes) :]
        if (kept := size % self.page_bytes) and (last := pages[-1]) is not None:
            pages[-1] = last[:kept] + bytes(self.page_bytes - kept)
        return FileData(size, tuple(pages))

    # --- all of them ---------------------------------------------------------------------

    def all_images(self) -> Iterator[Image]:
        """Every state, each once. Of a file that was never synced: empty, zeros and whole."""
        for boxes in self._boxes().values():
            for at, (names, box) in enumerate(boxes):
                earlier = [other for _, other in boxes[:at]]
                for nodes in itertools.product(*box):
                    if not any(map(_contains, earlier, itertools.repeat(nodes))):
                        yield Image(self.page_bytes, names, nodes)

    def count_images(self) -> int:
        """How many :meth:`all_images` gives, without making them."""
        return sum(_count([box for _, box in boxes]) for boxes in self._boxes().values())

    def _boxes(self) -> Mapping[object, list[tuple[tuple[tuple[str, int], ...], _Box]]]:
        """By names, the products of contents that may stand under them.

        Two products under the same names may overlap: of two files in turn under one name.
        """
        boxes: dict[object, list[tuple[tuple[tuple[str, int], ...], _Box]]] = {}
        seen = set()
        variants = functools.cache(self._variants)
        choices = [directory.states() for directory in self.directories.values()]
        for chosen in itertools.product(*choices):
            names, numbers = self._names(dict(zip(self.directories, chosen, strict=True)))
            if (names, numbers) not in seen:
                seen.add((names, numbers))
                box = tuple([variants(number) for number in numbers])
                boxes.setdefault(names, []).append((names, box))
        return boxes

    def _variants(self, number: int) -> Sequence[FileData | Special]:
        content = self.contents[number]
        if isinstance(content, Special):
            return (content,)
        return Variants(content, self.page_bytes)

    def _names(
        self, tables: Mapping[int, Names]
    ) -> tuple[tuple[tuple[str, int], ...], tuple[int, ...]]:
        """An image's names, and the inode number of each place.

        A directory is found under one name at most, as where a repair has been over the disk.
        """
        found: list[tuple[str, int]] = []
        left = [("", ROOT)]
        seen = {ROOT}
        while left:
            path, number = left.pop()
            for name, child in tables[number].items():
                if child in tables and child in seen:
                    continue
                found.append((f"{path}/{name}", child))
                if child in tables:
                    seen.add(child)
                    left.append(found[-1])
        found.sort()
        places: dict[int, int] = {}
        names = tuple(
            [
                (path, DIRECTORY if child in tables else places.setdefault(child, len(places)))
                for path, child in found
            ]
        )
        return names, tuple(places)

    def key(self) -> object:
        """Equal for two snapshots that could leave the same, whatever their inode numbers."""
        places = {ROOT: 0}
        key: list[object] = [self.page_bytes]
        # `places` grows as numbers are met, in an order that the names alone decide
        for number in (order := [ROOT]):
            if (content := self.contents.get(number)) is not None:
                if isinstance(content, Content):
                    versions = tuple(sorted(content.versions.items()))
                    key.append((content.data, versions, content.is_synced))
                else:
                    key.append(content)
                continue
            directory = self.directories[number]
            changes = [*sorted(directory.durable.items()), *itertools.chain(*directory.pending)]
            for _, child in changes:
                if child is not None and child not in places:
                    places[child] = len(places)
                    order.append(child)
            renamed = [(name, child and places[child]) for name, child in changes]
            key.append((len(directory.durable), *map(len, directory.pending), *renamed))
        return tuple(key)


#: what each place of an image may hold
_Box = tuple[Sequence["FileData | Special"], ...]


def _contains(box: _Box, nodes: Sequence[FileData | Special]) -> bool:
    return all(node in variants for node, variants in zip(nodes, box, strict=True))


def _count(boxes: Sequence[_Box]) -> int:
    """The size of the union of products under the same names."""
    total = 0
    for at, box in enumerate(boxes):
        meets = [_meet(box, other) for other in boxes[:at]]
        total += math.prod(map(len, box)) - _count([meet for meet in meets if all(meet)])
    return total


def _meet(box: _Box, other: _Box) -> _Box:
    return tuple(
        [
            mine if mine is its else [each for each in mine if each in its]
            for mine, its in zip(box, other, strict=True)
        ]
    )
