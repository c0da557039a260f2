"""What the owner of the log knows of one segment file, and the frozen extent that readers get.

Knows nothing of other segments. A :class:`Segment` is touched by the owner alone; threads are
given an :class:`Extent`, or a ``Load`` step, and give values back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ._files import File
from ._format import DATA_START, SEALED, SegmentHeader
from ._places import Places
from ._plans import Load, Step, Sync, Write
from ._records import decode, hop, scan
from ._types import Entry
from .errors import CorruptionError

__all__ = ["Extent", "Segment"]


class Segment:
    """A segment. Its records are ``[first_id, next_id)``, in ``[DATA_START, end)`` of the file.

    | state    | records        | header                          |
    |----------|----------------|---------------------------------|
    | prepared | none           | unused: all numbers 0           |
    | tail     | are added      | a durable mark, at times        |
    | left     | no more        | its seal waits for housekeeping |
    | sealed   | no more        | sealed, the mark at the end     |
    """

    __slots__ = (
        "durable_end",
        "durable_next_id",
        "end",
        "file",
        "first_id",
        "has_room",
        "header",
        "is_filled",
        "is_sealed",
        "length",
        "mark_seconds",
        "name",
        "next_id",
        "number",
        "path",
        "places",
        "salt",
    )

    def __init__(
        self, number: int, name: str, path: str, header: SegmentHeader, file: File | None = None
    ) -> None:
        self.number = number
        self.name = name
        self.path = path
        self.salt = header.salt
        self.length = header.length
        #: open while written to or lately read
        self.file = file
        #: where its records begin; None until they were looked for
        self.places: Places | None = None
        #: the header as it was written last
        self.header = header
        self.is_sealed = header.is_sealed
        #: whether blocks for its whole length are known to be there
        self.has_room = True
        #: its blocks were written: a sync need not convert unwritten extents
        self.is_filled = False
        #: when its durable mark was written last (monotonic)
        self.mark_seconds = 0.0
        self.first_id = header.id_from
        self.next_id = header.id_until + 1 if header.has_mark else header.id_from
        self.end = max(header.data_end, DATA_START)
        # what is durable: the mark that the next header will carry
        self.durable_end = self.end
        self.durable_next_id = self.next_id

    @property
    def count(self) -> int:
        """How many records it has."""
        return self.next_id - self.first_id

    @property
    def is_marked(self) -> bool:
        """Whether its header says all that is durable, and no cut stands."""
        return self.header.data_end == self.durable_end and not self.header.cut

    # --- headers ---------------------------------------------------------------------------

    def activated(self, first_id: int) -> SegmentHeader:
        """The header of a prepared segment whose first record will have the id."""
        return replace(self.header, id_from=first_id, data_start=DATA_START, data_end=DATA_START)

    def marked(self, next_id: int, end: int, *, is_sealed: bool, cut: int = 0) -> SegmentHeader:
        """The header with another durable mark."""
        return replace(
            self.header,
            id_until=next_id - 1 if end > DATA_START else 0,
            data_end=end,
            flags=SEALED if is_sealed else 0,
            cut=cut,
        )

    def header_step(self, header: SegmentHeader) -> Write:
        assert self.file is not None
        return Write(self.file, 0, (header.pack(),))

    def seal_steps(self) -> tuple[SegmentHeader, tuple[Step, ...]]:
        """Seals it: its records are durable, and so is the first one of its follower."""
        assert self.file is not None
        header = self.marked(self.next_id, self.end, is_sealed=True)
        return header, (self.header_step(header), Sync(self.file))

    # --- reading ---------------------------------------------------------------------------

    def load_step(self, *, is_writable: bool = False) -> Load:
        """What finds its records, for another thread; ``loaded`` takes what that gives."""
        file = None if is_writable and self.is_sealed else self.file
        is_located = self.places is not None
        return Load(self.name, self.salt, self.end, file, is_writable, is_located)

    def loaded(self, file: File, places: Places | None) -> None:
        """Takes what a load found, unless it is not needed any more."""
        if self.places is None and places is not None and len(places) == self.count:
            self.places = places
        if self.file is None and self.places is not None:
            self.file = file

    @property
    def is_loaded(self) -> bool:
        """Whether its records can be read: ``extent`` may be called."""
        return self.file is not None and self.places is not None

    def extent(self, first: int, stop: int) -> Extent:
        """The records ``[first, stop)`` of the loaded segment, for a reader."""
        first_id = self.first_id
        start, skip, end = self.places.span(first - first_id, stop - first_id, self.end)  # type: ignore[union-attr]
        # past Extent's own constructor, which takes twice the time
        return tuple.__new__(Extent, (self.file, self.salt, first, stop, start, end, skip))

    def fitting(self, first: int, limit: int) -> int:
        """One past the last of the records from ``first`` on that end before the offset ``limit``,
        as far as is known without reading; at least one.
        """
        assert self.places is not None
        fitting = self.first_id + self.places.fitting(first - self.first_id, limit)
        return min(fitting, self.next_id)

    def release(self) -> None:
        """Lets go of the file; it is closed when the last reader lets go of it too."""
        self.file = None

    # --- the durable part ------------------------------------------------------------------

    def known(self) -> Known:
        """What is durable of it, frozen."""
        return Known(
            self.number,
            self.name,
            self.path,
            self.header,
            self.file,
            self.is_sealed,
            self.first_id,
            self.durable_next_id,
            self.durable_end,
        )

    @classmethod
    def of(cls, known: Known) -> Segment:
        """The segment as it was when it was frozen."""
        segment = cls(known.number, known.name, known.path, known.header, known.file)
        segment.is_sealed = known.is_sealed
        segment.first_id = known.first_id
        segment.next_id = segment.durable_next_id = known.next_id
        segment.end = segment.durable_end = known.end
        return segment


class Known(NamedTuple):
    """What is durable of a segment: one of the parts of the log's durable view."""

    number: int
    name: str
    path: str
    header: SegmentHeader
    file: File | None
    is_sealed: bool
    first_id: int
    next_id: int
    end: int


class Extent(NamedTuple):
    """The records ``[first, stop)`` in ``[start, end)`` of an open file, behind ``skip`` others."""

    file: File
    salt: int
    first: int
    stop: int
    start: int
    end: int
    skip: int = 0

    def read(self) -> list[Entry]:
        """The entries. May wait for the disk. Raises CorruptionError where they are not what
        was written.
        """
        return self.decode(self.file.read(self.start, self.end - self.start))

    def read_cached(self) -> list[Entry] | None:
        """As ``read``; None where that would wait for the disk."""
        data = self.file.read_cached(self.start, self.end - self.start)
        if data is None:
            return None
        count = self.stop - self.first
        entries = decode(data, self.salt, self.first, count, self.skip)
        return entries if len(entries) == count else self.decode(data)  # which raises

    def decode(self, data: bytes) -> list[Entry]:
        """The entries in the bytes that were read. Raises as ``read`` does."""
        entries = decode(data, self.salt, self.first, self.stop - self.first, self.skip)
        if len(entries) < self.stop - self.first:
            raise self._damage(data)
        return entries

    def _damage(self, data: bytes) -> CorruptionError:
        """Which record is not what was written."""
        start = hop(data, self.skip)
        result = scan(data[start:], self.start + start, self.salt, self.first, self.end)
        if result.next_id == self.first:
            # Lengths of those before it lead to it: one of them may be to blame.
            result = scan(data, self.start, self.salt, self.first - self.skip, self.end)
        why = result.why or "the file ends here"
        return damage(self.file.path, result.end, result.next_id, self.stop - 1, why)


def damage(path: str, offset: int, first: int, last: int, why: str) -> CorruptionError:
    """What is raised where records that were durable are not what was written."""
    return CorruptionError(
        f"{path}, offset {offset}: {why}; entries {first} to {last} cannot be trusted. Stop this "
        "node and restore it from its cluster, or reopen the log with auto_heal=True if the "
        "cluster re-sends them",
        path=path,
        offset=offset,
        first_id=first,
        last_id=last,
    )
