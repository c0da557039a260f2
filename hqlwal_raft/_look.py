"""One look at a directory: reads what the rules of ``_judge`` need, in pieces, and changes nothing.

For ``audit``, in any thread. Memory and time grow with what was written, not with the length of
the segments: holes are passed over. Bytes that are being written to meanwhile lead to odd facts,
never to an exception; two looks tell those from damage (``audit``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crc32c import crc32c

from ._directory import Directory
from ._files import File, IrregularFileError
from ._find import candidates
from ._findings import MetaReport, SegmentReport, version_finding
from ._format import (
    COMMITTED_OFFSETS,
    DATA_START,
    ENTRY_HEAD,
    LENGTH_MASK,
    LOCK_NAME,
    META_BYTES,
    META_NAME,
    RECORD_HEAD,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SETTLED,
    SLOT_BYTES,
    SLOT_OFFSETS,
    TEMPORARY_SUFFIX,
    SegmentHeader,
    broken_name,
    segment_number,
    unpack_committed,
    unpack_slot,
)
from ._places import Places
from ._records import scan
from ._types import Finding, FindingKind, LogId

__all__ = ["Look", "Progress", "find_valid", "look", "scan_segment"]

#: told of the bytes examined so far and of those there are in all
Progress = Callable[[int, int], object]

#: how much is read at a time
PIECE_BYTES = 1 << 20
_OFFSET_MAX = (1 << 32) - 1
_ZEROS = bytes(PIECE_BYTES)


@dataclass(slots=True)
class Look:
    """What one look found."""

    names: list[str]
    meta: MetaReport | None = None
    segments: list[SegmentReport] = field(default_factory=list)
    #: names of temporary files that a crash left behind
    leftovers: list[str] = field(default_factory=list)
    #: names of what auto-heal set aside earlier
    broken: list[str] = field(default_factory=list)
    #: findings on files that are neither segments nor ``meta.hql``
    findings: list[Finding] = field(default_factory=list)
    #: a name vanished between being listed and being opened
    is_torn: bool = False


def look(directory: Directory, *, deep: bool, progress: Progress | None = None) -> Look:
    """Reads everything that opening relies on; with ``deep`` also what it takes for granted."""
    result = Look(directory.names())
    # The names come first: `meta.hql` names a new first segment before older ones go.
    for name in result.names:
        if name == META_NAME:
            result.meta = _read_meta(directory)
        elif (number := segment_number(name)) is not None:
            result.segments.append(SegmentReport(number, name, directory.path_of(name)))
        elif name.endswith(TEMPORARY_SUFFIX) and _is_ours(name.removesuffix(TEMPORARY_SUFFIX)):
            result.leftovers.append(name)
            _check_regular(directory, name, result)
        elif name == LOCK_NAME:
            _check_regular(directory, name, result)
        elif broken_name(name) is not None:
            result.broken.append(name)
    if result.meta is None and META_NAME in result.names:
        result.is_torn = True
    result.segments = [s for s in result.segments if _read_head(directory, s, result)]
    _read_records(directory, result, deep=deep, progress=progress)
    return result


def _is_ours(name: str) -> bool:
    return name == META_NAME or segment_number(name) is not None or broken_name(name) is not None


def _check_regular(directory: Directory, name: str, result: Look) -> None:
    try:
        directory.open_file(name).close()
    except FileNotFoundError:
        pass
    except IrregularFileError:
        path = directory.path_of(name)
        message = f"{path} is no regular file: move away what stands in its place"
        result.findings.append(Finding(FindingKind.IRREGULAR, path, message))


# --- meta.hql ----------------------------------------------------------------------------


def _read_meta(directory: Directory) -> MetaReport | None:
    path = directory.path_of(META_NAME)
    report = MetaReport(path)
    try:
        file = directory.open_file(META_NAME)
    except FileNotFoundError:
        return None
    except IrregularFileError:
        message = f"{path} is no regular file: move away what stands in its place"
        report.findings.append(Finding(FindingKind.IRREGULAR, path, message))
        return report
    report.size, report.identity = file.size, file.identity
    report.head = data = file.read(0, META_BYTES)
    file.close()
    _judge_slots(report, data)
    found = [unpack_committed(data[offset : offset + 512]) for offset in COMMITTED_OFFSETS]
    report.committed = sorted((f for f in found if f is not None), key=lambda f: -f[0])
    return report


def _judge_slots(report: MetaReport, data: bytes) -> None:
    slots = [unpack_slot(data[offset : offset + SLOT_BYTES]) for offset in SLOT_OFFSETS]
    valid = [slot for slot in slots if isinstance(slot, tuple)]
    path = report.path
    if not valid:
        version = slots[0]
        # The crate's file is shorter than a slot; of ours both slots say the same.
        if isinstance(version, int) and (slots[1] == version or len(data) <= SLOT_BYTES):
            report.findings.append(version_finding(path, version))
            return
        why = " and ".join(f"at {o}: {s}" for o, s in zip(SLOT_OFFSETS, slots, strict=True))
        message = f"{path}: neither copy of the vote can be read ({why})"
        report.findings.append(Finding(FindingKind.DAMAGE, path, message, offset=0))
        return
    sequence, state = max(valid, key=lambda slot: slot[0])
    if any(slot[0] == sequence and slot[1] != state for slot in valid):
        message = f"{path}: its two copies of the vote contradict each other"
        report.findings.append(Finding(FindingKind.DAMAGE, path, message, offset=0))
        return
    report.sequence, report.state = sequence, state
    report.stale_slots = tuple(
        offset
        for offset, slot in zip(SLOT_OFFSETS, slots, strict=True)
        if slot != (sequence, state)
    )
    for offset in report.stale_slots:
        message = f"{path}, offset {offset}: one of two copies is older or unreadable"
        report.findings.append(Finding(FindingKind.LEFTOVER, path, message, offset=offset))


# --- segments ----------------------------------------------------------------------------


def _read_head(directory: Directory, segment: SegmentReport, result: Look) -> bool:
    """Reads the header; False where the file is gone."""
    try:
        file = directory.open_file(segment.name)
    except FileNotFoundError:
        result.is_torn = True
        return False
    except IrregularFileError:
        segment.is_irregular = True
        return True
    segment.size, segment.identity = file.size, file.identity
    segment.head = file.read(0, DATA_START)
    file.close()
    header = SegmentHeader.unpack(segment.head)
    if isinstance(header, SegmentHeader):
        segment.header = header
    elif isinstance(header, str):
        segment.problem = header
    elif header == 1 and result.meta is not None and result.meta.state is not None:
        # Version 1 has no checksum that would tell, but no directory is of two versions.
        segment.problem = "it says format version 0x01 in a directory of another"
    else:
        segment.version = header
    return True


def _read_records(
    directory: Directory, result: Look, *, deep: bool, progress: Progress | None
) -> None:
    state = result.meta.state if result.meta is not None else None
    first = state.first_segment if state is not None else 0
    chosen = [
        segment
        for segment in result.segments
        if segment.header is not None
        and 0 < first <= segment.number
        and (deep or not segment.header.is_sealed or segment.is_short)
    ]
    total, done = sum(segment.size for segment in chosen), 0
    want: int | None = None
    room = 0
    for segment in result.segments:
        if segment in chosen:
            if want is None and segment.number != first and state is not None:
                want = state.last_purged.index if state.last_purged is not None else -1
            room += segment.size // RECORD_OVERHEAD_BYTES
            if not scan_segment(directory, segment, want, room):
                result.is_torn = True
            done += segment.size
            if progress is not None:
                progress(done, total)
        if segment.is_used and segment.number >= first:
            want = segment.next_id
            room = max(segment.size - segment.end, 0) // RECORD_OVERHEAD_BYTES


def scan_segment(
    directory: Directory,
    segment: SegmentReport,
    want: int | None = None,
    room: int = 0,
) -> bool:
    """Reads the segment's records into the report; False where the file is another one now.

    ``want`` is the id that comes next in the log, for a segment without one of its own, and
    ``room`` the most records that it and its predecessors could have from there.
    """
    header = segment.header
    assert header is not None
    try:
        file = directory.open_file(segment.name)
    except (FileNotFoundError, IrregularFileError):
        return False
    limit = min(header.length, segment.size, _OFFSET_MAX)
    segment.places = Places()
    segment.records, segment.scanned_end, segment.why = 0, DATA_START, ""
    segment.last_log_id = segment.last_settled_id = segment.settled_behind = None
    segment.first_term = segment.fall_id = None
    segment.has_bytes_behind = False
    if not header.is_unused:
        _scan_records(file, segment, min(limit, header.data_end) if header.is_sealed else limit)
        want, room = segment.next_id, limit // RECORD_OVERHEAD_BYTES
    segment.is_scanned = True
    _look_behind(file, segment, header, want, room, limit)
    is_same = file.identity == segment.identity
    file.close()
    return is_same


def _scan_records(file: File, segment: SegmentReport, stop: int) -> None:
    header, places = segment.header, segment.places
    assert header is not None
    assert places is not None
    position, id_ = DATA_START, header.id_from
    while True:
        data = file.read(position, min(PIECE_BYTES, max(stop - position, 0)))
        found = scan(data, position, header.salt, id_, stop)
        places.add(found.offsets, found.end)
        _note_terms(segment, id_, found.first_term, found.fall_id)
        segment.last_log_id = found.last_log_id or segment.last_log_id
        for place in range(len(found.offsets) - 1, -1, -1):
            if data[found.offsets[place] - position + 12] & 0x80:
                segment.last_settled_id = id_ + place
                break
        position, id_ = found.end, found.next_id
        if found.why is not None:
            segment.why = found.why
            break
        if found.offsets:
            continue  # the next piece begins with what this one cut off
        if len(data) < RECORD_OVERHEAD_BYTES or found.wanted <= PIECE_BYTES:
            segment.why = "the file ends here"
            break
        if not _is_valid(file, position, data, header.salt, found.wanted):
            segment.why = "the checksum is wrong"
            break
        places.add((position,), position + found.wanted)
        term, node_id = ENTRY_HEAD.unpack_from(data, RECORD_HEAD_BYTES)
        _note_terms(segment, id_, term, None)
        segment.last_log_id = LogId(term, id_, node_id)
        if data[12] & 0x80:
            segment.last_settled_id = id_
        position += found.wanted
        id_ += 1
    places.settle(position)
    segment.records = len(places)
    segment.scanned_end = position


def _note_terms(segment: SegmentReport, id_: int, term: int | None, fall_id: int | None) -> None:
    """Of more records, the first of which has ``id_``: whether terms fall there."""
    if term is None or segment.fall_id is not None:
        return
    if segment.first_term is None:
        segment.first_term = term
    last = segment.last_log_id
    segment.fall_id = id_ if last is not None and term < last.term else fall_id


def _is_valid(file: File, offset: int, data: bytes, salt: int, length: int) -> bool:
    """Whether the record of ``length`` bytes at the offset is valid; ``data`` has its beginning."""
    head = data[:RECORD_HEAD_BYTES]
    checksum = crc32c(data[12:length], crc32c(head[:8], salt))
    position = min(len(data), length)
    while position < length:
        piece = file.read(offset + position, min(PIECE_BYTES, length - position))
        if not piece:
            return False
        checksum = crc32c(piece, checksum)
        position += len(piece)
    return bool(checksum == RECORD_HEAD.unpack(head)[1])


def _look_behind(
    file: File,
    segment: SegmentReport,
    header: SegmentHeader,
    want: int | None,
    room: int,
    limit: int,
) -> None:
    """Whether anything lies behind the records, and a settled record that proves damage.

    Where a truncation was zeroing, what lies at or behind its cut proves nothing: a crash may
    have zeroed some of it and not the rest.
    """
    start = max(segment.scanned_end, DATA_START)
    stop = header.cut or limit
    for offset, data in _written(file, start, limit):
        segment.has_bytes_behind = True
        if header.is_sealed or want is None or segment.settled_behind is not None:
            return
        for place, index, _, marked in candidates(data, want + 1, want + room):
            if offset + place >= stop:
                break
            length = RECORD_HEAD_BYTES + (marked & LENGTH_MASK)
            is_possible = marked & SETTLED and offset + place + length <= limit
            if is_possible and _is_valid(file, offset + place, data[place:], header.salt, length):
                segment.settled_behind = (index, offset + place)
                return


def _written(file: File, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The pieces that are not all zeros, each with the beginning of what follows it."""
    for first, last in file.data_regions(start, stop):
        for offset in range(first, last, PIECE_BYTES):
            length = min(PIECE_BYTES, last - offset)
            data = file.read(offset, min(length + RECORD_OVERHEAD_BYTES, stop - offset))
            if data[:length] != _ZEROS[: len(data[:length])]:
                yield offset, data


def find_valid(
    file: File, salt: int, start: int, first_id: int, last_id: int
) -> tuple[int, int, int] | None:
    """The first valid record at or behind ``start``, settled or not: offset, id, bytes."""
    for offset, data in _written(file, start, file.size):
        for place, index, _, marked in candidates(data, first_id, last_id):
            length = RECORD_HEAD_BYTES + (marked & LENGTH_MASK)
            if offset + place + length <= file.size and _is_valid(
                file, offset + place, data[place:], salt, length
            ):
                return offset + place, index, length
    return None
