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
from ._records import decode, encode
from ._types import Entry, MendOutcome

__all__ = ["mend", "proven"]

_ID_BYTES = 8


def proven(entry: Entry, salt: int, data: bytes) -> bytes | None:
    """The entry's record, if ``data`` begins with what is left of that very record."""
    for is_settled in (False, True):
        size = len(entry.payload)
        parts, _, _ = encode([entry], entry.index, salt, 0, size, is_settled=is_settled)
        record = b"".join(parts)
        there = data[: len(record)]
        has_checksum = there[8:12] == record[8:12]
        has_rest = there[:8] + there[12:] == record[:8] + record[12:]
        if len(there) == len(record) and (has_checksum or has_rest):
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
    file, offsets = segment.file, segment.offsets
    if file is None or offsets is None or segment.is_sealed:
        outcome = yield Plan("load", (segment.load_step(is_writable=True),))
        file, offsets = outcome.values[0]
    place = entry.index - segment.first_id
    if place >= len(offsets):
        return False
    start = offsets[place]
    following = offsets[place + 1] if place + 1 < len(offsets) else segment.end
    size = record_bytes(len(entry.payload))
    length = min(max(size + _ID_BYTES, following - start), segment.end - start)
    outcome = yield Plan("read", (Read(file, start, length),))
    data = outcome.values[0]
    if decode(data, segment.salt, entry.index, 1):
        return None
    record = proven(entry, segment.salt, data)
    if record is None:
        return False
    # The neighbours must agree: the next record begins where this one ends.
    next_id = (entry.index + 1).to_bytes(_ID_BYTES, "big")
    if start + size != following and data[size : size + _ID_BYTES] != next_id:
        return False
    yield Plan("mend", (Write(file, start, (record,)), Sync(file)), point=0)
    if segment.is_sealed:  # its records may have been looked for by a damaged length
        log.is_changing = True
        log.reads.forget([segment])
        segment.release()
        log.is_changing = False
    return True
