"""What the commands report, as data: made from ``audit``'s findings, without any printing.

Every report turns into JSON as it is; the renderers show the same, nothing more.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from .._directory import Directory
from .._environment import Environment
from .._files import File, IrregularFileError
from .._format import META_NAME, broken_name, record_bytes, segment_number
from .._look import find_valid, scan_segment
from .._records import decode, hop
from .._snapshot_audit import examine_snapshots
from .._types import Entry, Finding, FindingKind, LogId, SnapshotInfo, Vote
from ..audit import DirectoryReport, SegmentReport, Verdict, examine, salvage

__all__ = [
    "LeaderLine",
    "LogReport",
    "NoStoreError",
    "RecordReport",
    "SegmentLine",
    "SnapshotsReport",
    "StatsReport",
    "VerifyReport",
    "examine_store",
    "log_report",
    "records",
    "salvaged_records",
    "segment_lines",
    "snapshots_report",
    "stats_report",
    "to_json",
    "verify_report",
]


@dataclass(frozen=True, slots=True)
class LogReport:
    """``hqlwal info``: the log as an open would find it."""

    path: str
    verdict: Verdict
    #: "closed", "in use", with "by process N" where that is known, or "not closed cleanly"
    lock: str
    #: a backup: it opens only as a copy
    is_copy: bool
    vote: Vote | None
    committed: LogId | None
    last_purged_log_id: LogId | None
    #: None where the log is empty
    first_index: int | None
    last_index: int | None
    entries: int
    segments: int
    prepared_segments: int
    segment_bytes: int
    #: how much the node keeps beside the log; None: nothing was ever kept
    state_bytes: int | None
    broken: list[str]
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """``hqlwal segments``: one file."""

    number: int
    path: str
    size_bytes: int
    #: "sealed", "tail", "unsealed" (killed before its seal), "prepared", "dropped" (the next
    #: open removes it), "unreadable"
    state: str
    #: whether every record of it was checked, or only its header
    is_checked: bool
    first_id: int | None
    last_id: int | None
    #: how far the records reach, and how far they are known durable by the header
    end: int
    durable_end: int
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class RecordReport:
    """``hqlwal dump``: one record and where it lies."""

    path: str
    segment: int
    offset: int
    size_bytes: int
    index: int
    term: int
    node_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """``hqlwal verify``: the verdict after every record was read."""

    path: str
    verdict: Verdict
    records: int
    segments: int
    segment_bytes: int
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class SnapshotsReport:
    """``hqlwal verify`` of a directory of snapshots."""

    path: str
    verdict: Verdict
    lock: str
    #: those that are whole, the newest last
    snapshots: list[SnapshotInfo]
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class LeaderLine:
    """The entries in a row that one leader proposed."""

    term: int
    node_id: int
    first_index: int
    last_index: int


@dataclass(frozen=True, slots=True)
class StatsReport:
    """``hqlwal stats``: what the log is made of."""

    path: str
    entries: int
    payload_bytes: int
    payload_min_bytes: int
    payload_p50_bytes: int
    payload_p99_bytes: int
    payload_max_bytes: int
    #: what the segments take on disk, prepared ones included
    segment_bytes: int
    leaders: list[LeaderLine]


class NoStoreError(Exception):
    """The directory holds no store."""


def examine_store(directory: str, *, deep: bool = False, progress: Any = None) -> DirectoryReport:
    """``audit.examine``, where there is a store. Raises NoStoreError, OSError."""
    report = examine(directory, deep=deep, progress=progress)
    if report.meta is None and not report.segments:
        raise NoStoreError(f"{report.path} holds no store: neither {META_NAME} nor segments")
    return report


def log_report(report: DirectoryReport) -> LogReport:
    first, last = _ends(report)
    state = report.meta.state if report.meta is not None else None
    return LogReport(
        path=report.path,
        verdict=report.verdict,
        lock=str(report.lock),
        is_copy=state is not None and state.is_copy,
        vote=report.vote,
        committed=report.committed,
        last_purged_log_id=report.last_purged_log_id,
        first_index=first,
        last_index=last,
        entries=0 if first is None or last is None else last - first + 1,
        segments=sum(segment.is_used for segment in report.segments),
        prepared_segments=sum(
            segment.header is not None and segment.header.is_unused for segment in report.segments
        ),
        segment_bytes=sum(segment.size for segment in report.segments),
        state_bytes=None if state is None or state.state is None else len(state.state),
        broken=report.broken,
        findings=report.all_findings,
    )


def segment_lines(report: DirectoryReport) -> list[SegmentLine]:
    tail = next((s for s in reversed(report.segments) if s.is_used and not s.is_dropped), None)
    return [_segment_line(segment, is_tail=segment is tail) for segment in report.segments]


def verify_report(report: DirectoryReport) -> VerifyReport:
    return VerifyReport(
        path=report.path,
        verdict=report.verdict,
        records=sum(segment.records for segment in report.segments),
        segments=len(report.segments),
        segment_bytes=sum(segment.size for segment in report.segments),
        findings=report.all_findings,
    )


def snapshots_report(directory: str) -> SnapshotsReport | None:
    """None where there are no snapshots. Raises OSError."""
    report = examine_snapshots(directory)
    if not report.snapshots and not report.findings:
        return None
    return SnapshotsReport(
        report.path, report.verdict, str(report.lock), report.snapshots, report.findings
    )


def stats_report(report: DirectoryReport) -> StatsReport:
    sizes: list[int] = []
    leaders: list[LeaderLine] = []
    for item in records(report):
        if not isinstance(item, RecordReport):
            continue
        sizes.append(len(item.payload))
        first = item.index
        if leaders and (leaders[-1].term, leaders[-1].node_id) == (item.term, item.node_id):
            first = leaders.pop().first_index
        leaders.append(LeaderLine(item.term, item.node_id, first, item.index))
    sizes.sort()
    last = len(sizes) - 1
    return StatsReport(
        path=report.path,
        entries=len(sizes),
        payload_bytes=sum(sizes),
        payload_min_bytes=sizes[0] if sizes else 0,
        payload_p50_bytes=sizes[last // 2] if sizes else 0,
        payload_p99_bytes=sizes[last * 99 // 100] if sizes else 0,
        payload_max_bytes=sizes[-1] if sizes else 0,
        segment_bytes=sum(segment.size for segment in report.segments),
        leaders=leaders,
    )


# --- records -----------------------------------------------------------------------------


def records(
    report: DirectoryReport, start: int = 0, stop: int | None = None, *, purged: bool = False
) -> Iterator[RecordReport | Finding]:
    """The healthy records ``[start, stop)`` in their order, and what is wrong in between.

    Also those behind damage, but none that the next open drops. Each segment is read as it
    comes. ``purged`` shows also those that are purged but still there.
    """
    frontier = report.last_purged_log_id
    if frontier is not None and not purged:
        start = max(start, frontier.index + 1)
    directory = Directory(Environment(), report.path)
    try:
        for segment in report.segments:
            if not segment.is_dropped or (purged and segment in report.judgement.leftovers):
                yield from _segment_records(directory, segment, start, stop)
            yield from segment.findings
    finally:
        directory.close()
    for finding in report.findings:
        if finding.kind is not FindingKind.UNCHECKED:  # what was asked for was checked now
            yield finding


def _segment_records(
    directory: Directory, segment: SegmentReport, start: int, stop: int | None
) -> Iterator[RecordReport | Finding]:
    header = segment.header
    if header is None or header.is_unused:
        return
    if header.is_sealed and (header.id_until < start or (stop and header.id_from >= stop)):
        return
    is_known = segment.is_scanned
    if not is_known and not scan_segment(directory, segment):
        return  # the store is in use, and has removed it
    places, end, next_id = segment.places, segment.end, segment.next_id
    assert places is not None
    try:
        file = directory.open_file(segment.name)
    except (FileNotFoundError, IrregularFileError):
        return
    first, last = max(start, header.id_from), next_id if stop is None else min(stop, next_id)
    if first < last:
        offset, skip = places.before(first - header.id_from)
        behind = places.behind(last - header.id_from, end)
        data = file.read(offset, behind - offset)
        offset += hop(data, skip)
        # Fewer where a store in use truncated in the meantime.
        for entry in decode(data, header.salt, first, last - first, skip):
            yield _record_report(segment.path, offset, entry)
            offset += record_bytes(len(entry.payload))
    is_short = header.has_mark and next_id <= header.id_until
    if not is_known and is_short and file.read(0, len(segment.head)) == segment.head:
        message = f"{segment.path}: offset {end}: {segment.why}; it cannot be trusted"
        yield Finding(FindingKind.DAMAGE, segment.path, message, end, next_id, header.id_until)
    if is_short or segment.settled_behind is not None:
        yield from _records_behind(file, header.salt, end, max(next_id + 1, start), stop)


def _records_behind(
    file: File, salt: int, offset: int, first: int, stop: int | None
) -> Iterator[RecordReport]:
    last = first + file.size if stop is None else stop - 1
    while (found := find_valid(file, salt, offset, first, last)) is not None:
        offset, index, length = found
        for entry in decode(file.read(offset, length), salt, index, 1):
            yield _record_report(file.path, offset, entry)
        offset, first = offset + length, index + 1


def salvaged_records(path: str, start: int = 0, stop: int | None = None) -> Iterator[RecordReport]:
    """Those ``[start, stop)`` that can be read from what healing set aside, file by file."""
    for found in salvage(path):
        if start <= found.entry.index and (stop is None or found.entry.index < stop):
            yield _record_report(found.path, found.offset, found.entry)


def _record_report(path: str, offset: int, entry: Entry) -> RecordReport:
    name = path.rpartition("/")[2]
    return RecordReport(
        path=path,
        segment=segment_number(broken_name(name) or name) or 0,
        offset=offset,
        size_bytes=record_bytes(len(entry.payload)),
        index=entry.index,
        term=entry.term,
        node_id=entry.node_id,
        payload=entry.payload,
    )


# --- segments ----------------------------------------------------------------------------


def _segment_line(segment: SegmentReport, *, is_tail: bool) -> SegmentLine:
    header = segment.header
    if segment.is_dropped:
        state = "dropped"
    elif header is None:
        state = "unreadable"
    elif header.is_unused:
        state = "prepared"
    elif header.is_sealed:
        state = "sealed"
    else:
        state = "tail" if is_tail else "unsealed"
    has_records = segment.is_used and header is not None and segment.next_id > header.id_from
    return SegmentLine(
        number=segment.number,
        path=segment.path,
        size_bytes=segment.size,
        state=state,
        is_checked=segment.is_scanned,
        first_id=header.id_from if header is not None and has_records else None,
        last_id=segment.next_id - 1 if has_records else None,
        end=segment.end,
        durable_end=header.data_end if header is not None else 0,
        findings=segment.findings,
    )


def _ends(report: DirectoryReport) -> tuple[int | None, int | None]:
    """Of what opening, or healing, keeps."""
    kept = report.judgement.kept
    if not kept:
        return None, None
    first, last = kept[0].first_id, kept[-1].next_id - 1
    if report.last_purged_log_id is not None:
        first = max(first, report.last_purged_log_id.index + 1)
    return (first, last) if first <= last else (None, None)


def to_json(value: Any) -> Any:
    """Reports as what ``json`` knows; bytes become hexadecimal digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(item) for name, item in _fields(value).items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _fields(value: Any) -> dict[str, Any]:
    # asdict() would turn nested dataclasses into dicts, and enums in them would be missed
    return {name: getattr(value, name) for name in asdict(value)}
