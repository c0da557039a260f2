"""``hqlwal repair --from``: damaged records given back from copies, at rest. Prints nothing.

A copy counts only where what is left of the record proves it: its salted checksum, or, where the
checksum is what was damaged, every other byte. So only bytes that are proven damaged are written,
and nothing that this node did not write itself. Headers, lost files and the vote are not mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .._directory import Directory
from .._environment import Environment
from .._format import DATA_START, SegmentHeader
from .._lock import LockedError
from .._mending import proven
from .._records import scan
from .._types import Entry, FindingKind
from ..audit import DirectoryReport
from ..errors import WalLockedError

__all__ = ["mend"]

#: copies of the entries with indexes ``[start, stop)``
Copies = Callable[[int, int], Iterable[Entry]]


def mend(report: DirectoryReport, copies: Copies) -> list[int]:
    """Gives the indexes of the records that were mended, durably. Raises WalLockedError, OSError."""
    directory = Directory(Environment(), report.path)
    try:
        directory.lock.take()
        mended: list[int] = []
        for segment in report.segments:
            damage = [f for f in segment.findings if f.kind is FindingKind.DAMAGE]
            if damage and segment.header is not None and segment.is_used:
                ids = [segment.header.id_until]
                ids += [f.last_id or f.first_id or 0 for f in damage]
                mended += _mend_segment(directory, segment.name, max(ids), copies)
        return mended
    except LockedError as error:
        raise WalLockedError(
            f"{report.path} is in use: close that store first", path=report.path, pid=error.pid
        ) from None
    finally:
        directory.close()


def _mend_segment(directory: Directory, name: str, last: int, copies: Copies) -> list[int]:
    """``last`` is the last one that was durable for certain: what may follow was never, or was
    truncated, and must not come back.
    """
    file = directory.open_file(name, is_writable=True)
    header = SegmentHeader.unpack(file.read(0, DATA_START))
    assert isinstance(header, SegmentHeader)
    offset, index = DATA_START, header.id_from
    data = file.read(offset, file.size - offset)
    mended: list[int] = []
    known: dict[int, list[Entry]] | None = None
    while True:
        found = scan(data, offset, header.salt, index, file.size)
        data, offset, index = data[found.end - offset :], found.end, found.next_id
        if known is None:
            known = {}
            for entry in copies(index, last + 1):
                known.setdefault(entry.index, []).append(entry)
        records = (proven(entry, header.salt, data) for entry in known.get(index, ()))
        record = next((record for record in records if record is not None), None)
        if record is None or index > last:
            break
        file.write(offset, (record,))
        data = record + data[len(record) :]
        mended.append(index)
    if mended:
        file.sync()
    return mended
