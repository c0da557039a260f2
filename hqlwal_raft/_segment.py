"""One segment file: append, read, mark, seal, cut back. Knows nothing of other segments.

Memory is changed by the thread that owns the log (the event loop's); the methods named
``*_on_disk`` only touch the file and run on a writer thread. A reader thread may call
``load`` and ``read`` at any time.
"""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Sequence

from crc32c import crc32c

from ._files import File, Files, SyncError
from ._format import (
    COVERED,
    DATA_START,
    ENTRY_HEAD_BYTES,
    RECORD,
    RECORD_HEAD,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SegmentHeader,
)
from ._scan import decode, hop, is_zero, scan
from ._types import Entry
from .errors import CorruptionError, EntryTooLargeError, LogGapError

__all__ = [
    "NotPlainError",
    "PlainEntry",
    "Segment",
    "encode",
    "encode_one",
    "encode_plain",
    "plain",
    "refusal",
    "zero_on_disk",
]

_ZEROS = bytes(1 << 20)


#: payload, index, term: an Entry of the node 0, for those who have very many
PlainEntry = tuple[bytes, int, int]


class NotPlainError(TypeError):
    """Something is no Entry, or its payload is not bytes; ``plain`` makes it so if it can be."""


def plain(entry: Entry) -> Entry:
    """The entry with a payload of bytes that nobody can change any more."""
    if not isinstance(entry, Entry):
        raise TypeError(f"{entry!r} is no Entry")
    payload = entry.payload
    return Entry(
        entry.term,
        entry.index,
        payload if type(payload) is bytes else bytes(memoryview(payload)),
        entry.node_id,
    )


# How much of a segment is read at a time to locate its records.
_PIECE_BYTES = 256 << 10
# Batches of more bytes are written, not stored through the map: one system call for many faults.
_THROUGH_THE_MAP_BYTES = 4096


def refusal(entry: Entry, index: int, max_payload_bytes: int) -> Exception | None:
    """Why the entry cannot be appended as number ``index``; None where it can."""
    if type(entry) is not Entry or type(entry.payload) is not bytes:
        return NotPlainError()
    if entry.index != index:
        return LogGapError(
            f"entry {entry.index} cannot follow entry {index - 1}: the next index must be {index}"
        )
    if len(entry.payload) > max_payload_bytes:
        return EntryTooLargeError(
            f"entry {index} has a payload of {len(entry.payload)} bytes, the store takes at most "
            f"{max_payload_bytes}: open it with a larger max_entry_size or split the entry"
        )
    try:
        COVERED.pack(index, 0, entry.term, entry.node_id)
    except struct.error:
        return ValueError(f"{entry.log_id} must be made of whole numbers from 0 to 2**64 - 1")
    return None


def encode(
    entries: Sequence[Entry], index: int, salt: int, offset: int, max_payload_bytes: int
) -> tuple[bytes, list[int]]:
    """The records of ``entries``, the first of which must have ``index``, and their offsets.

    Raises what :func:`refusal` says.
    """
    pack_covered, pack_record = COVERED.pack, RECORD.pack
    max_length = ENTRY_HEAD_BYTES + max_payload_bytes
    parts: list[bytes] = []
    offsets: list[int] = []
    try:
        for entry in entries:
            if type(entry) is not Entry:
                break
            term, found, payload, node_id = entry
            if type(payload) is not bytes or found != index:
                break
            length = ENTRY_HEAD_BYTES + len(payload)
            if length > max_length:
                break
            covered = pack_covered(index, length, term, node_id)
            checksum = crc32c(payload, crc32c(covered, salt))
            parts += pack_record(index, checksum, length, term, node_id), payload
            offsets.append(offset)
            offset += RECORD_HEAD_BYTES + length
            index += 1
        else:
            return b"".join(parts), offsets
    except struct.error:
        pass
    raise refusal(entry, index, max_payload_bytes) or AssertionError


def encode_one(entry: Entry, index: int, salt: int, max_payload_bytes: int) -> bytes:
    """The record of one entry, as ``encode`` makes it, for half the time."""
    if type(entry) is Entry:
        term, found, payload, node_id = entry
        length = ENTRY_HEAD_BYTES + len(payload)
        if (
            type(payload) is bytes
            and found == index
            and length <= ENTRY_HEAD_BYTES + max_payload_bytes
        ):
            try:
                covered = COVERED.pack(index, length, term, node_id)
                checksum = crc32c(payload, crc32c(covered, salt))
                return RECORD.pack(index, checksum, length, term, node_id) + payload
            except struct.error:
                pass
    raise refusal(entry, index, max_payload_bytes) or AssertionError


def encode_plain(entries: Sequence[PlainEntry], salt: int, offset: int) -> tuple[bytes, list[int]]:
    """As ``encode``, for two thirds of the time, of entries that the caller vouches for.

    Raises struct.error where a number is no u64.
    """
    pack_covered, pack_record = COVERED.pack, RECORD.pack
    parts: list[bytes] = []
    offsets: list[int] = []
    for payload, index, term in entries:
        length = ENTRY_HEAD_BYTES + len(payload)
        checksum = crc32c(payload, crc32c(pack_covered(index, length, term, 0), salt))
        parts += pack_record(index, checksum, length, term, 0), payload
        offsets.append(offset)
        offset += RECORD_HEAD_BYTES + length
    return b"".join(parts), offsets


def zero_on_disk(file: File, start: int, stop: int) -> bool:
    """Zeroes what is not yet zero in ``[start, stop)``; says whether anything was written."""
    is_changed = False
    for offset in range(start, stop, len(_ZEROS)):
        length = min(len(_ZEROS), stop - offset)
        if not is_zero(file.read(offset, length)):
            file.write(offset, _ZEROS[:length])
            is_changed = True
    return is_changed


#: an open file, and where its records begin
Loaded = tuple[File, "array[int]"]


class Segment:
    """A segment. Its records are ``[first_id, next_id)``, in ``[DATA_START, end)`` of the file."""

    __slots__ = (
        "_header",
        "durable_end",
        "durable_next_id",
        "end",
        "file",
        "first_id",
        "is_dirty",
        "is_sealed",
        "length",
        "next_id",
        "number",
        "offsets",
        "path",
        "salt",
    )

    def __init__(self, number: int, path: str, header: SegmentHeader, file: File | None) -> None:
        self.number = number
        self.path = path
        self.salt = header.salt
        self.length = header.length
        #: open while written to or lately read
        self.file = file
        #: where each record begins; None while not loaded
        self.offsets: array[int] | None = None
        self.is_dirty = False
        self.is_sealed = header.is_sealed
        self._header = header
        self.first_id = header.id_from
        self.next_id = header.id_until + 1 if header.has_mark else header.id_from
        self.end = header.data_end if header.data_start else DATA_START
        # what is durable: the mark that the next header will carry
        self.durable_end = self.end
        self.durable_next_id = self.next_id

    @property
    def count(self) -> int:
        """How many records it has."""
        return self.next_id - self.first_id

    # --- writing ---------------------------------------------------------------------------

    def activate(self, first_id: int) -> None:
        """Makes a segment without records begin with ``first_id``.

        The header rides along with the sync of the first records: if it is lost so are they.
        """
        self._header = self._header.activated(first_id)
        self.first_id = self.next_id = self.durable_next_id = first_id
        self.end = self.durable_end = DATA_START
        self.offsets = array("I")
        self.write_header()

    def extend(self, data: bytes, offsets: Sequence[int], *, is_through_map: bool) -> None:
        """Adds encoded records at the end, and leaves the segment dirty."""
        assert self.file is not None
        assert self.offsets is not None
        if is_through_map and self.is_dirty and len(data) < _THROUGH_THE_MAP_BYTES:
            self.file.store(self.end, data)
        else:
            self.file.write(self.end, data)
            self.is_dirty = True
        self.offsets.extend(offsets)
        self.end += len(data)
        self.next_id += len(offsets)

    def check_not_removed(self) -> None:
        """A sync of a removed file would succeed, and keep nothing."""
        if self.file is not None and self.file.is_removed():
            raise SyncError(errno.ENOENT, "the file was taken away while in use", self.path)

    def write_header(self) -> None:
        """Writes the header with the durable mark of the last sync: it rides along with the
        next one and so never claims more than is on disk, whatever the order of pages.
        """
        self.write_mark(self.durable_next_id, self.durable_end, is_sealed=self.is_sealed)

    def write_mark(self, next_id: int, end: int, *, is_sealed: bool) -> None:
        assert self.file is not None
        self.file.write(0, self._header.pack_marked(next_id - 1, end, is_sealed=is_sealed))

    # --- reading ---------------------------------------------------------------------------

    def load(self, files: Files) -> Loaded:
        """Opens the file and finds where its records begin. May wait for the disk."""
        file, offsets = self.file, self.offsets
        if file is None:
            file = files.open(self.path)
        if offsets is None:
            offsets = self._locate(file)
            if len(offsets) < self.count:
                self._raise_damage(file)
        self.file, self.offsets = file, offsets
        return file, offsets

    def _locate(self, file: File) -> array[int]:
        """Where the records begin, found piece by piece so that little memory is needed."""
        offsets = array("I")
        position = DATA_START
        while position < self.end:
            data = file.read(position, min(_PIECE_BYTES, self.end - position))
            found = hop(data, 0, len(data), position)
            if not found:
                break
            offsets += found
            last = found[-1]
            position = last + RECORD_HEAD_BYTES + RECORD_HEAD.unpack_from(data, last - position)[2]
        return offsets

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """Where the records ``[first, stop)`` of the loaded segment lie in the file."""
        assert self.offsets is not None
        return self._span(self.offsets, first, stop)

    def _span(self, offsets: array[int], first: int, stop: int) -> tuple[int, int]:
        last = stop - self.first_id
        return (
            offsets[first - self.first_id],
            offsets[last] if last < len(offsets) else self.end,
        )

    def read(self, files: Files, first: int, stop: int) -> list[Entry]:
        """The entries ``[first, stop)``, which exist. May wait for the disk.

        Raises CorruptionError where they are not what was written.
        """
        file, offsets = self.load(files)
        start, end = self._span(offsets, first, stop)
        return self._decode(file, file.read(start, end - start), first, stop)

    def read_cached(self, first: int, stop: int) -> list[Entry] | None:
        """As ``read``; None where that would wait for the disk."""
        file, offsets = self.file, self.offsets
        if file is None or offsets is None:
            return None
        start, end = self._span(offsets, first, stop)
        data = file.read_cached(start, end - start)
        return None if data is None else self._decode(file, data, first, stop)

    def _decode(self, file: File, data: bytes, first: int, stop: int) -> list[Entry]:
        entries = decode(data, self.salt, first, stop - first)
        if len(entries) < stop - first:
            self._raise_damage(file)
        return entries

    def _raise_damage(self, file: File) -> None:
        result = scan(file.read(0, self.end), self.salt, self.first_id, DATA_START, self.end)
        raise CorruptionError(
            f"{self.path}, offset {result.end}: {result.why}; entries {result.next_id} to "
            f"{self.next_id - 1} cannot be trusted. Stop this node and restore it from its "
            "cluster, or reopen the log with auto_heal=True if the cluster re-sends them",
            path=self.path,
            offset=result.end,
            first_id=result.next_id,
            last_id=self.next_id - 1,
        )

    def release(self) -> None:
        """Lets go of the file; it is closed when the last reader lets go of it too."""
        self.file = None
        self.offsets = None


assert RECORD.size == RECORD_OVERHEAD_BYTES
