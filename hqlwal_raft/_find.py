"""The search for records behind a bad one: what proves that it was durable, and so is damage.

Pure functions of bytes, for any thread. Places are given at which a record may begin; whether
one does, says its checksum, and whoever has the file looks (``_look``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ._format import (
    ENTRY_HEAD_BYTES,
    LENGTH_MASK,
    RECORD_HEAD,
    RECORD_OVERHEAD_BYTES,
    U64_MAX,
)

__all__ = ["candidates"]


def candidates(data: bytes, first_id: int, last_id: int) -> Iterator[tuple[int, int, int, int]]:
    """Where a record with an id in the range may begin: place, id, checksum, length with its bit.

    Nothing is checked yet. Heads that the buffer cuts off are not given. An id is looked for at
    C's pace, so that megabytes of payload cost little.
    """
    limit = len(data) - RECORD_OVERHEAD_BYTES
    for match in re.finditer(_ids(first_id, last_id), data, re.DOTALL):
        place = match.start()
        if place > limit:
            return
        index, checksum, marked = RECORD_HEAD.unpack_from(data, place)
        if marked & LENGTH_MASK >= ENTRY_HEAD_BYTES:
            yield place, index, checksum, marked


def _ids(first: int, last: int) -> bytes:
    """A pattern for the eight bytes of any id from ``first`` to ``last``, also overlapping."""

    def between(low: bytes, high: bytes) -> bytes:
        # as with decimal digits: 37…52 is 3[7-9] | 4[0-9] | 5[0-2]
        if not low:
            return b""
        if low[0] == high[0]:
            return _byte(low[0], low[0]) + between(low[1:], high[1:])
        rest = len(low) - 1
        zeros, ones = bytes(rest), b"\xff" * rest
        ways = [_byte(low[0], low[0]) + between(low[1:], ones)]
        if low[0] + 1 < high[0]:
            ways.append(_byte(low[0] + 1, high[0] - 1) + b".{%d}" % rest)
        ways.append(_byte(high[0], high[0]) + between(zeros, high[1:]))
        return b"(?:" + b"|".join(ways) + b")"

    last = min(last, U64_MAX)
    if first > last:
        return b"(?!)"
    return b"(?=" + between(first.to_bytes(8, "big"), last.to_bytes(8, "big")) + b")"


def _byte(low: int, high: int) -> bytes:
    return b"[\\x%02x-\\x%02x]" % (low, high)
