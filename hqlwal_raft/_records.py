"""Entries ⇄ record bytes, one room for both ways: encode, decode, scan, locate.

Pure functions of bytes: no file, no state, any thread. One decoder serves reading, recovery,
verification and dump, so they cannot disagree on what a record is. Nothing here raises on bad
bytes or looks outside of its buffer: it stops and says where and why.

``docs/design/format.md`` draws a record. Its length carries the *settled bit* in front: when
the record was written, every one before it was durable. So a valid settled record behind a bad
one proves that the bad one was durable, and is damage, not a torn tail.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crc32c import crc32c

from ._entry_rules import refusal
from ._format import (
    COVERED,
    ENTRY_HEAD,
    ENTRY_HEAD_BYTES,
    LENGTH_MASK,
    RECORD,
    RECORD_HEAD,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SETTLED,
)
from ._types import Entry, LogId

__all__ = [
    "Scan",
    "decode",
    "encode",
    "encode_one",
    "hop",
    "locate",
    "scan",
]


# --- entries to bytes ----------------------------------------------------------------------


def encode(
    entries: Sequence[Entry],
    index: int,
    salt: int,
    offset: int,
    max_payload_bytes: int,
    *,
    is_settled: bool,
    least_term: int | None = None,
) -> tuple[list[bytes], list[int], int]:
    """The records of ``entries``, the first of which must have ``index``.

    Gives what is to be written one after the other, where each record begins, and where the
    last one ends. ``is_settled`` says that every record before the first one is durable when it
    is written. ``least_term``: as for :func:`refusal`. Raises what that says.
    """
    pack_covered, pack_record = COVERED.pack, RECORD.pack
    max_length = ENTRY_HEAD_BYTES + max_payload_bytes
    parts: list[bytes] = []
    offsets: list[int] = []
    add_offset = offsets.append
    bit = SETTLED if is_settled else 0
    entry: Any = None
    # Those of the entry before: most have the same, and mostly it is the very same object.
    before: int | None = None
    node: int | None = None
    least = least_term
    try:
        for entry in entries:
            if type(entry) is not Entry:
                break
            term, found, payload, node_id = entry
            if type(found) is not int or found != index or type(payload) is not bytes:
                break
            if term is not before or node_id is not node:
                if type(term) is not int or type(node_id) is not int:
                    break
                if least is not None:
                    if term < least:
                        break
                    least = term
                before, node = term, node_id
            length = ENTRY_HEAD_BYTES + len(payload)
            if length > max_length:
                break
            add_offset(offset)
            offset += RECORD_HEAD_BYTES + length
            if bit:
                length |= bit
                bit = 0
            checksum = crc32c(payload, crc32c(pack_covered(index, length, term, node_id), salt))
            parts += pack_record(index, checksum, length, term, node_id), payload
            index += 1
        else:
            return parts, offsets, offset
    except struct.error:
        pass
    raise refusal(entry, index, max_payload_bytes, least) or AssertionError


def encode_one(
    index: int, marked: int, term: int, node_id: int, payload: bytes, salt: int
) -> bytes:
    """The record of one entry that was judged already; ``marked`` is its length, with the settled
    bit where it has that. Raises struct.error where a number is no u64.
    """
    covered = COVERED.pack(index, marked, term, node_id)
    checksum = crc32c(payload, crc32c(covered, salt))
    return RECORD.pack(index, checksum, marked, term, node_id) + payload


# --- bytes to entries ----------------------------------------------------------------------


def decode(data: bytes, salt: int, first_id: int, count: int, skip: int = 0) -> list[Entry]:
    """The entries of ``count`` records that ``data`` holds behind ``skip`` others; fewer where one
    is bad.

    Of those skipped the lengths alone are looked at. A damaged one leads astray, which ends here:
    what they lead to is checked as any record is, its id included.
    """
    entries: list[Entry] = []
    offset = hop(data, skip) if skip else 0
    if count < _FEW:
        _decode_few(data, offset, count, salt, first_id, entries)
        return entries
    id_, stop = first_id, first_id + count
    while id_ < stop and offset >= 0:
        size, alike = _alike(data, offset, stop - id_) if stop - id_ >= _FEW else (0, 0)
        if alike:
            offset = _decode_alike(data, offset, size, alike, salt, id_, entries)
            id_ += alike
        else:
            few = min(_FEW, stop - id_)
            offset = _decode_few(data, offset, few, salt, id_, entries)
            id_ += few
    return entries


_unpack_record, _pack_covered, _new = RECORD.unpack_from, COVERED.pack, tuple.__new__
# So many records are decoded one by one before those behind them are compared again.
_FEW = 8
_MANY = 256
_U32 = struct.Struct(">I")
_WITHOUT_BIT = bytes(byte & 0x7F for byte in range(256))


def hop(data: bytes, count: int) -> int:
    """Where the record behind the first ``count`` begins, by their lengths alone.

    Lengths that lead out of ``data`` end the hop there.
    """
    unpack, last = _U32.unpack_from, len(data) - RECORD_OVERHEAD_BYTES
    offset = 0
    for _ in range(count):
        if offset > last:
            break
        offset += RECORD_HEAD_BYTES + (unpack(data, offset + 12)[0] & LENGTH_MASK)
    return offset


def _decode_few(
    data: bytes, offset: int, count: int, salt: int, first_id: int, entries: list[Entry]
) -> int:
    """Adds the entries of the next ``count`` records; where they end, -1 if one is bad."""
    limit = len(data) - RECORD_OVERHEAD_BYTES
    for id_ in range(first_id, first_id + count):
        if offset > limit:
            return -1
        found, checksum, marked, term, node_id = _unpack_record(data, offset)
        length = marked & LENGTH_MASK
        end = offset + RECORD_HEAD_BYTES + length
        payload = data[offset + RECORD_OVERHEAD_BYTES : end]
        if (
            found != id_
            or len(payload) + ENTRY_HEAD_BYTES != length
            or crc32c(payload, crc32c(_pack_covered(id_, marked, term, node_id), salt)) != checksum
        ):
            return -1
        entries.append(_new(Entry, (term, id_, payload, node_id)))
        offset = end
    return offset


def _decode_alike(
    data: bytes, offset: int, size: int, count: int, salt: int, first_id: int, entries: list[Entry]
) -> int:
    """As ``_decode_few``, of records that all have the same size, and are all there."""
    pack, new, append = COVERED.pack, tuple.__new__, entries.append
    id_, end = first_id, offset + count * size
    records = _record_of(size - RECORD_OVERHEAD_BYTES).iter_unpack(memoryview(data)[offset:end])
    for found, checksum, marked, term, node_id, payload in records:
        if (
            found != id_
            or crc32c(payload, crc32c(pack(id_, marked, term, node_id), salt)) != checksum
        ):
            return -1
        append(new(Entry, (term, id_, payload, node_id)))
        id_ += 1
    return end


@lru_cache(maxsize=64)
def _record_of(payload_bytes: int) -> struct.Struct:
    """A record with a payload of that size."""
    return struct.Struct(f"{RECORD.format}{payload_bytes}s")


def _alike(data: bytes, offset: int, most: int) -> tuple[int, int]:
    """The size of the next records, and how many of them have it: 0 where those are but a few."""
    here = len(data) - offset
    if here < RECORD_OVERHEAD_BYTES:
        return 0, 0
    place = offset + RECORD_HEAD_BYTES - 4
    length = _U32.unpack_from(data, place)[0] & LENGTH_MASK
    size = RECORD_HEAD_BYTES + length
    most = min(most, here // size, _MANY)
    if length < ENTRY_HEAD_BYTES or most < _FEW:
        return 0, 0
    if data[place + size + 1 : place + size + 4] != data[place + 1 : place + 4]:
        return 0, 0
    stop = offset + most * size
    lengths = length.to_bytes(4, "big")
    # Of four bytes of the length, each in a column of its own: how many records have the same.
    columns = [data[place + byte : stop : size] for byte in range(4)]
    columns[0] = columns[0].translate(_WITHOUT_BIT)
    alike = most - max(
        len(column.lstrip(lengths[byte : byte + 1])) for byte, column in enumerate(columns)
    )
    return size, alike if alike >= _FEW else 0


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
    #: None where the buffer ended before the record did: then ``wanted`` bytes are, from ``end``
    why: str | None
    wanted: int = 0
    #: the first record's term, and the first id of a term lower than the one before it
    first_term: int | None = None
    fall_id: int | None = None


def scan(data: bytes, base: int, salt: int, first_id: int, stop: int) -> Scan:
    """Checks the records that ``data``, which lies at the offset ``base`` of a file, begins with.

    ``stop`` is the offset in the file at which records must end.
    """
    view = memoryview(data)  # a copy of a large payload would be large
    offsets = array("I")
    place, id_, here = 0, first_id, len(data)
    why: str | None = None
    wanted = 0
    before = 0
    fall_id: int | None = None
    while True:
        if base + place + RECORD_OVERHEAD_BYTES > stop:
            why = "no room for another record"
            break
        if place + RECORD_OVERHEAD_BYTES > here:
            wanted = RECORD_OVERHEAD_BYTES
            break
        found, checksum, marked, term, node_id = _unpack_record(data, place)
        length = marked & LENGTH_MASK
        end = place + RECORD_HEAD_BYTES + length
        if not (found or checksum or marked):
            why = "nothing was written here"
            break
        if found != id_:
            why = f"id {id_} was expected, {found} is there"
            break
        if length < ENTRY_HEAD_BYTES or base + end > stop:
            why = f"a length of {length} cannot be"
            break
        if end > here:
            wanted = RECORD_HEAD_BYTES + length
            break
        covered = _pack_covered(found, marked, term, node_id)
        if crc32c(view[place + RECORD_OVERHEAD_BYTES : end], crc32c(covered, salt)) != checksum:
            why = "the checksum is wrong"
            break
        if term < before and fall_id is None:
            fall_id = id_
        before = term
        offsets.append(base + place)
        place = end
        id_ += 1
    last = first_term = None
    if offsets:
        (first_term, _) = ENTRY_HEAD.unpack_from(data, RECORD_HEAD_BYTES)
        last_term, node_id = ENTRY_HEAD.unpack_from(data, offsets[-1] - base + RECORD_HEAD_BYTES)
        last = LogId(last_term, id_ - 1, node_id)
    return Scan(offsets, base + place, id_, last, why, wanted, first_term, fall_id)


def locate(data: bytes, start: int, stop: int, base: int = 0) -> array[int]:
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
        length = unpack(data, offset)[2] & LENGTH_MASK
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
    top, *rest = length.to_bytes(4, "big")
    place = offset + RECORD_HEAD_BYTES - 4
    return data[place:stop:stride].translate(_WITHOUT_BIT) == bytes((top,)) * _BLOCK and all(
        data[place + further : stop : stride] == bytes((byte,)) * _BLOCK
        for further, byte in enumerate(rest, 1)
    )


assert RECORD.size == RECORD_OVERHEAD_BYTES
