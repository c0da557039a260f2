"""What the owner of the log knows of one segment file, and the frozen extent that readers get.

Knows nothing of other segments. A :class:`Segment` is touched by the owner alone; threads are
given an :class:`Extent`, or a ``Load`` step, and give values back.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import NamedTuple

from ._files import File
from ._format import DATA_START, SEALED, SegmentHeader
from ._plans import Load, Step, Sync, Write
from ._records import decode, scan
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
        "offsets",
        "path",
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
        #: where each record begins; None while not loaded
        self.offsets: array[int] | None = None
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
        return Load(self.name, self.salt, self.end, file, is_writable)

    def loaded(self, file: File, offsets: array[int]) -> None:
        """Takes what a load found, unless it is not needed any more."""
        if self.offsets is None and len(offsets) == self.count:
            if self.file is None:
                self.file = file  # first: where there are offsets, there is a file
            self.offsets = offsets

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """Where the records ``[first, stop)`` of the loaded segment lie in the file."""
        assert self.offsets is not None
        last = stop - self.first_id
        offsets = self.offsets
        return (
            offsets[first - self.first_id],
            offsets[last] if last < len(offsets) else self.end,
        )

    def extent(self, first: int, stop: int) -> Extent:
        """The records ``[first, stop)`` of the loaded segment, for a reader."""
        assert self.file is not None
        start, end = self.span(first, stop)
        return Extent(self.file, self.salt, first, stop, start, end)

    def release(self) -> None:
        """Lets go of the file; it is closed when the last reader lets go of it too."""
        self.file = None
        self.offsets = None

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


@dataclass(frozen=True, slots=True)
class Extent:
    """The records ``[first, stop)``, which lie in ``[start, end)`` of an open file."""

    file: File
    salt: int
    first: int
    stop: int
    start: int
    end: int

    def read(self) -> list[Entry]:
        """The entries. May wait for the disk. Raises CorruptionError where they are not what
        was written.
        """
        return self.entries_of(self.file.read(self.start, self.end - self.start))

    def read_cached(self) -> list[Entry] | None:
        """As ``read``; None where that would wait for the disk."""
        data = self.file.read_cached(self.start, self.end - self.start)
        return None if data is None else self.entries_of(data)

    def entries_of(self, data: bytes) -> list[Entry]:
        """The entries, of the bytes that lie there. Raises as ``read`` does."""
        entries = decode(data, self.salt, self.first, self.stop - self.first)
        if len(entries) < self.stop - self.first:
            result = scan(data, self.start, self.salt, self.first, self.end)
            raise damage(
                self.file.path,
                result.end,
                result.next_id,
                self.stop - 1,
                result.why or "the file ends here",
            )
        return entries


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
