"""The decoder: bytes in, records and the reason for stopping out. Knows no file.

One decoder serves reading, recovery, verification and dump, so they cannot disagree on
what a record is. It never raises on bad bytes and never looks outside of its buffer: it stops.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from crc32c import crc32c

from ._format import (
    COVERED,
    ENTRY_HEAD,
    ENTRY_HEAD_BYTES,
    RECORD,
    RECORD_HEAD,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
)
from ._types import Entry, LogId

__all__ = ["Scan", "decode", "hop", "is_zero", "scan"]


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found: healthy records from the start, then ``why`` it went no further."""

    #: where each healthy record begins
    offsets: array[int]
    #: one past the last healthy record
    end: int
    #: the id that comes after the last healthy record's
    next_id: int
    #: the last healthy record's log id
    last_log_id: LogId | None
    why: str


def scan(data: bytes, salt: int, first_id: int, start: int, stop: int) -> Scan:
    """Checks the records in ``data[start:stop]``, the first of which has ``first_id``."""
    stop = min(stop, len(data))
    view = memoryview(data)
    offsets = array("I")
    offset, id_ = start, first_id
    while True:
        body = offset + RECORD_HEAD_BYTES
        if body + ENTRY_HEAD_BYTES > stop:
            why = "no room for another record"
            break
        found, checksum, length = RECORD_HEAD.unpack_from(data, offset)
        end = body + length
        if not (found or checksum or length):
            why = "nothing was written here"
            break
        if found != id_:
            why = f"id {id_} was expected, {found} is there"
            break
        if length < ENTRY_HEAD_BYTES or end > stop:
            why = f"a length of {length} cannot be"
            break
        if crc32c(view[offset + 12 : end], crc32c(view[offset : offset + 8], salt)) != checksum:
            why = "the checksum is wrong"
            break
        offsets.append(offset)
        offset = end
        id_ += 1
    last = None
    if offsets:
        term, node_id = ENTRY_HEAD.unpack_from(data, offsets[-1] + RECORD_HEAD_BYTES)
        last = LogId(term, id_ - 1, node_id)
    return Scan(offsets, offset, id_, last, why)


def decode(data: bytes, salt: int, first_id: int, count: int) -> list[Entry]:
    """The entries of ``count`` records that ``data`` begins with; fewer where one is bad."""
    unpack, pack, new = RECORD.unpack_from, COVERED.pack, tuple.__new__
    entries: list[Entry] = []
    append = entries.append
    offset, limit = 0, len(data) - RECORD_OVERHEAD_BYTES
    for id_ in range(first_id, first_id + count):
        if offset > limit:
            break
        found, checksum, length, term, node_id = unpack(data, offset)
        end = offset + RECORD_HEAD_BYTES + length
        payload = data[offset + RECORD_OVERHEAD_BYTES : end]
        if (
            found != id_
            or len(payload) + ENTRY_HEAD_BYTES != length
            or crc32c(payload, crc32c(pack(id_, length, term, node_id), salt)) != checksum
        ):
            break
        append(new(Entry, (term, id_, payload, node_id)))
        offset = end
    return entries


def hop(data: bytes, start: int, stop: int, base: int = 0) -> array[int]:
    """Where the records of a healthy segment begin, by their lengths alone.

    ``data`` begins at the offset ``base``, which is added to what is found. A damaged length
    leads astray but never outside; reading checks what it lands on.
    """
    offsets = array("I")
    unpack = RECORD_HEAD.unpack_from
    offset, stop = start, min(stop, len(data))
    stride = alike = 0
    while offset + RECORD_OVERHEAD_BYTES <= stop:
        offsets.append(base + offset)
        length = unpack(data, offset)[2]
        alike = alike + 1 if stride == RECORD_HEAD_BYTES + length else 0
        stride = RECORD_HEAD_BYTES + length
        if alike == _ALIKE_ENOUGH:
            # Many logs have entries of one size: such a run is crossed a block at a time.
            alike = 0
            while offset + (_BLOCK + 1) * stride <= stop and _has_lengths(
                data, offset + stride, stride, length
            ):
                first = base + offset + stride
                offsets.extend(range(first, first + _BLOCK * stride, stride))
                offset += _BLOCK * stride
        offset += stride
    return offsets


_ALIKE_ENOUGH = 16
_BLOCK = 256


def _has_lengths(data: bytes, offset: int, stride: int, length: int) -> bool:
    """Whether the next ``_BLOCK`` records, ``stride`` apart, all have this length."""
    stop = offset + _BLOCK * stride
    return all(
        data[offset + place : stop : stride] == bytes((byte,)) * _BLOCK
        for place, byte in enumerate(length.to_bytes(4, "big"), RECORD_HEAD_BYTES - 4)
    )


def is_zero(data: bytes) -> bool:
    return data == bytes(len(data))
