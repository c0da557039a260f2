"""Damaged records given back from copies: what proves a copy, and the plans that write it.

A copy counts only where what is left of the record proves it to be that very record: its salted
checksum, or, where the checksum is what was damaged, every other byte. So only bytes that are
damaged are written, and nothing that this node did not write itself.

``mend`` is for the owner of a log that is clean, with no chore under way; what is at rest
``hqlwal repair --from`` mends by the same proof. Headers and lost files are mended by neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._format import record_bytes
from ._log import Log
from ._plans import Plan, Read, Sync, Work, Write
from ._records import decode, encode, hop
from ._types import Entry, MendOutcome

__all__ = ["mend", "proven"]

_ID_BYTES = 8


def proven(entry: Entry, salt: int, data: bytes) -> bytes | None:
    """The entry's record, if ``data`` begins with what is left of that very record."""
    size = len(entry.payload)
    records = [
        b"".join(encode([entry], entry.index, salt, 0, size, is_settled=is_settled)[0])
        for is_settled in (False, True)
    ]
    there = data[: len(records[0])]
    if len(there) < len(records[0]):
        return None
    # The checksum first: it tells a damaged settled bit from a damaged checksum.
    for record in records:
        if there[8:12] == record[8:12]:
            return record
    for record in records:
        if there[:8] + there[12:] == record[:8] + record[12:]:
            return record
    return None


def mend(log: Log, copies: Sequence[Entry]) -> Work[MendOutcome]:
    """Writes the damaged records that the copies prove, durably, and tells which those are.

    From the lowest on: where a length was damaged, that is what the next ones are found by.
    """
    mended: list[int] = []
    refused: list[int] = []
    for entry in sorted(copies, key=lambda entry: entry.index):
        if not log.first_index <= entry.index < (log.next_index or 0):
            continue
        is_mended = yield from _mend_one(log, entry)
        if is_mended:
            mended.append(entry.index)
        elif is_mended is not None:
            refused.append(entry.index)
    left = sorted(set(refused) - set(mended))  # another copy may have been the right one
    return MendOutcome(tuple(mended), tuple(left))


def _mend_one(log: Log, entry: Entry) -> Work[bool | None]:
    """Whether the record was mended; None where it is healthy."""
    segment = log.reads.segment_of(entry.index)
    file, places = segment.file, segment.places
    if file is None or places is None or segment.is_sealed:
        outcome = yield Plan("load", (segment.load_step(is_writable=True),))
        file, located = outcome.values[0]
        places = located if places is None else places
    place = entry.index - segment.first_id
    if place >= len(places):
        return False
    near, skip = places.before(place)
    size = record_bytes(len(entry.payload))
    length = min(places.behind(place + 1, segment.end) + size + _ID_BYTES, segment.end) - near
    outcome = yield Plan("read", (Read(file, near, length),))
    within = hop(outcome.values[0], skip)
    start, data = near + within, outcome.values[0][within:]
    if decode(data, segment.salt, entry.index, 1):
        return None
    record = proven(entry, segment.salt, data)
    if record is None:
        return False
    # The neighbours must agree: the next record begins where this one ends.
    next_id = (entry.index + 1).to_bytes(_ID_BYTES, "big")
    is_last = place + 1 == len(places)
    following = (segment.end, 0) if is_last else places.before(place + 1)
    if following != (start + size, 0) and data[size : size + _ID_BYTES] != next_id:
        return False
    yield Plan("mend", (Write(file, start, (record,)), Sync(file)), point=0)
    if segment.is_sealed:  # its records may have been looked for by a damaged length
        log.is_changing = True
        log.reads.forget([segment])
        segment.release()
        segment.places = None
        log.is_changing = False
    return True
