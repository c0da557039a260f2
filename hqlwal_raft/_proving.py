"""Which damaged records of a segment can be given back from copies: what is left must prove them.

Pure functions of bytes, for any thread. They decide, and write nothing.

A copy is proven by the salted checksum that the record was stored with; or, where the checksum's own
field is what is damaged, by every other byte. CRC-32C lets a wrong copy pass once in 2^32 times.
Where a record's place hangs on what it says of itself, because its head is damaged, the record
behind it must be where that copy ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from crc32c import crc32c

from ._find import candidates
from ._format import (
    ENTRY_HEAD_BYTES,
    LENGTH_MASK,
    RECORD_HEAD,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SETTLED,
)
from ._records import encode_one
from ._types import Entry

__all__ = ["Patch", "Proven", "prove"]

#: in the place of an id: nothing follows
_END = -1


class Patch(NamedTuple):
    """A record to be written over what is damaged."""

    id: int
    offset: int
    record: bytes


class Proven(NamedTuple):
    """What copies prove."""

    patches: tuple[Patch, ...]
    #: the indexes of damaged records for which there were copies, and none was proven
    unproven: tuple[int, ...]


def prove(
    data: bytes,
    base: int,
    salt: int,
    first: int,
    stop: int,
    copies: Iterable[Entry],
    *,
    is_all: bool,
) -> Proven:
    """``data``, which lies at the offset ``base`` of a segment's file, is its records from
    ``first`` on; those up to ``stop`` were durable for certain. ``is_all``: it ends with them.
    """
    known: dict[int, list[Entry]] = {}
    for entry in copies:
        known.setdefault(entry.index, []).append(entry)
    patches: list[Patch] = []
    damaged: set[int] = set()
    place, id_ = 0, first
    while id_ < stop:
        end = _healthy_end(data, place, id_, salt)
        if end is None:
            follows = id_ + 1 if id_ + 1 < stop else _END if is_all else None
            found = (_proven(e, salt, data, place, follows=follows) for e in known.get(id_, ()))
            record = next((each for each in found if each is not None), None)
            if record is not None:
                patches.append(Patch(id_, base + place, record))
                place, id_ = place + len(record), id_ + 1
                continue
            following = _next_place(data, place, id_, stop, salt)
            damaged.update(range(id_, following[1]))
            place, id_ = following
        else:
            place, id_ = end, id_ + 1
    return Proven(tuple(patches), tuple(sorted(damaged & known.keys())))


def _healthy_end(data: bytes, place: int, id_: int, salt: int) -> int | None:
    """Where the record that begins here ends, None where it is not healthy."""
    if place + RECORD_OVERHEAD_BYTES > len(data):
        return None
    found, checksum, marked = RECORD_HEAD.unpack_from(data, place)
    length = marked & LENGTH_MASK
    end = place + RECORD_HEAD_BYTES + length
    if found != id_ or length < ENTRY_HEAD_BYTES or end > len(data):
        return None
    view = memoryview(data)
    covered = crc32c(view[place + 12 : end], crc32c(view[place : place + 8], salt))
    return end if covered == checksum else None


def _next_place(data: bytes, place: int, id_: int, stop: int, salt: int) -> tuple[int, int]:
    """Where the walk goes on behind a record that is lost: place and id; the end if nowhere."""
    if place + RECORD_OVERHEAD_BYTES <= len(data):
        # its length may be right: then the next one's id stands behind it
        length = RECORD_HEAD.unpack_from(data, place)[2] & LENGTH_MASK
        behind = place + RECORD_HEAD_BYTES + length
        if length >= ENTRY_HEAD_BYTES and id_ + 1 < stop and _has_id(data, behind, id_ + 1):
            return behind, id_ + 1
    rest = data[place + 1 :]
    for found, other, _, _ in candidates(rest, id_ + 1, stop - 1):
        at = place + 1 + found
        if _healthy_end(data, at, other, salt) is not None:
            return at, other
    return len(data), stop


def _is_followed(data: bytes, place: int, id_: int) -> bool:
    return place == len(data) if id_ == _END else _has_id(data, place, id_)


def _has_id(data: bytes, place: int, id_: int) -> bool:
    return data[place : place + 8] == id_.to_bytes(8, "big")


def _proven(
    entry: Entry, salt: int, data: bytes, place: int, *, follows: int | None
) -> bytes | None:
    """The entry's record, if what is left at this place proves that it was that very one.

    ``follows``: the id of the record behind it; None where that is not known.
    """
    size = RECORD_OVERHEAD_BYTES + len(entry.payload)
    there = data[place : place + size]
    if len(there) < size:
        return None
    length = ENTRY_HEAD_BYTES + len(entry.payload)
    term, node_id, payload = entry.term, entry.node_id, entry.payload
    records = [
        encode_one(entry.index, marked, term, node_id, payload, salt)
        for marked in (length, length | SETTLED)
    ]
    # The checksum first: it tells a damaged settled bit from a damaged checksum.
    for record in records:
        if there[8:12] == record[8:12]:
            has_head = there[:8] == record[:8] and there[12:16] == record[12:16]
            if has_head or follows is None or _is_followed(data, place + size, follows):
                return record
    for record in records:
        if there[:8] + there[12:] == record[:8] + record[12:]:
            return record
    return None
