"""What the commands report, as data: made from ``audit``'s findings, without any printing.

Every report turns into JSON as it is; the renderers show the same, nothing more.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from .._files import Files
from .._format import LOCK_NAME, META_NAME, record_bytes
from .._scan import decode
from .._types import Entry, Finding, FindingKind, LogId, Vote
from ..audit import DirectoryReport, SegmentReport, examine, scan_segment

__all__ = [
    "LeaderLine",
    "LogReport",
    "NoStoreError",
    "RecordReport",
    "SegmentLine",
    "StatsReport",
    "Verdict",
    "VerifyReport",
    "examine_store",
    "log_report",
    "records",
    "segment_lines",
    "stats_report",
    "to_json",
    "verify_report",
]


class Verdict(enum.Enum):
    """How a store stands; each has an exit code of its own."""

    #: opens, with nothing to clean up
    INTACT = "intact"
    #: opens, dropping what a crash left unfinished and nobody was told is durable
    TORN = "torn"
    #: does not open: something that was durable is not as it was written
    DAMAGED = "damaged"
    #: does not open: another release's format
    UNKNOWN_VERSION = "unknown version"

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Verdict.INTACT: 0,
    Verdict.TORN: 3,
    Verdict.DAMAGED: 4,
    Verdict.UNKNOWN_VERSION: 5,
}


@dataclass(frozen=True, slots=True)
class LogReport:
    """``hqlwal info``: the log as an open would find it."""

    path: str
    verdict: Verdict
    #: "closed", "in use by process N" or "not closed cleanly"
    lock: str
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
    first_id: int | None
    last_id: int | None
    #: how far the records reach, and how far they are known durable by the header
    end: int
    durable_end: int
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class RecordReport:
    """``hqlwal dump``: one record and where it lies."""

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


def verdict_of(report: DirectoryReport) -> Verdict:
    kinds = {finding.kind for finding in report.all_findings}
    if FindingKind.DAMAGE in kinds:
        return Verdict.DAMAGED
    if FindingKind.UNKNOWN_VERSION in kinds:
        return Verdict.UNKNOWN_VERSION
    return Verdict.TORN if kinds or report.leftovers else Verdict.INTACT


def log_report(report: DirectoryReport) -> LogReport:
    first, last = _ends(report)
    return LogReport(
        path=report.path,
        verdict=verdict_of(report),
        lock=_lock_state(report.path),
        vote=report.vote,
        committed=_committed(report, last),
        last_purged_log_id=report.last_purged_log_id,
        first_index=first,
        last_index=last,
        entries=0 if first is None or last is None else last - first + 1,
        segments=sum(segment.is_used for segment in report.segments),
        prepared_segments=sum(
            segment.header is not None and segment.header.is_unused for segment in report.segments
        ),
        segment_bytes=sum(segment.size for segment in report.segments),
        broken=report.broken,
        findings=report.all_findings,
    )


def segment_lines(report: DirectoryReport) -> list[SegmentLine]:
    tail = next((s for s in reversed(report.segments) if s.is_used and not s.is_dropped), None)
    return [_segment_line(segment, is_tail=segment is tail) for segment in report.segments]


def verify_report(report: DirectoryReport) -> VerifyReport:
    return VerifyReport(
        path=report.path,
        verdict=verdict_of(report),
        records=sum(len(s.scan.offsets) for s in report.segments if s.scan is not None),
        segments=len(report.segments),
        segment_bytes=sum(segment.size for segment in report.segments),
        findings=report.all_findings,
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


def records(
    report: DirectoryReport, start: int = 0, stop: int | None = None, *, purged: bool = False
) -> Iterator[RecordReport | Finding]:
    """The healthy records ``[start, stop)`` in their order, and what is wrong in between.

    Segments that the report did not scan are scanned as it goes, one at a time. ``purged``
    shows also those that are purged but still there.
    """
    frontier = report.last_purged_log_id
    if frontier is not None and not purged:
        start = max(start, frontier.index + 1)
    for segment in report.segments:
        header = segment.header
        if header is not None and header.is_sealed and not segment.is_dropped:
            if header.id_until < start or (stop is not None and header.id_from >= stop):
                continue
            if segment.scan is None:
                scan_segment(Files(), segment)
                yield from _segment_records(segment, start, stop)
                segment.scan = None  # a long log has many offsets
                yield from segment.findings
                continue
        yield from _segment_records(segment, start, stop)
        yield from segment.findings
    yield from report.findings


def _segment_records(
    segment: SegmentReport, start: int, stop: int | None
) -> Iterator[RecordReport]:
    header, scan = segment.header, segment.scan
    if header is None or scan is None or not scan.offsets:
        return
    first = max(start, header.id_from)
    last = scan.next_id if stop is None else min(stop, scan.next_id)
    if first >= last:
        return
    offsets = scan.offsets[first - header.id_from : last - header.id_from]
    end = scan.offsets[last - header.id_from] if last < scan.next_id else scan.end
    file = Files().open(segment.path)
    try:
        data = file.read(offsets[0], end - offsets[0])
    finally:
        file.close()
    # Shorter where a store in use truncated in the meantime.
    entries = decode(data, header.salt, first, last - first)
    for offset, entry in zip(offsets, entries, strict=False):
        yield _record_report(segment.number, offset, entry)


def _record_report(number: int, offset: int, entry: Entry) -> RecordReport:
    return RecordReport(
        segment=number,
        offset=offset,
        size_bytes=record_bytes(len(entry.payload)),
        index=entry.index,
        term=entry.term,
        node_id=entry.node_id,
        payload=entry.payload,
    )


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
        first_id=header.id_from if header is not None and has_records else None,
        last_id=segment.next_id - 1 if has_records else None,
        end=segment.end,
        durable_end=header.data_end if header is not None else 0,
        findings=segment.findings,
    )


def _ends(report: DirectoryReport) -> tuple[int | None, int | None]:
    used = [line for line in segment_lines(report) if line.state in ("sealed", "unsealed", "tail")]
    firsts = [line.first_id for line in used if line.first_id is not None]
    lasts = [line.last_id for line in used if line.last_id is not None]
    if not firsts or not lasts:
        return None, None
    first, last = firsts[0], lasts[-1]
    if report.last_purged_log_id is not None:
        first = max(first, report.last_purged_log_id.index + 1)
    return (first, last) if first <= last else (None, None)


def _committed(report: DirectoryReport, last_index: int | None) -> LogId | None:
    """The latest saved committed log id that the log reaches, as an open takes it."""
    if last_index is None and report.last_purged_log_id is not None:
        last_index = report.last_purged_log_id.index
    for log_id in report.meta.committed if report.meta else ():
        if log_id is None or (last_index is not None and log_id.index <= last_index):
            return log_id
    return None


def _lock_state(path: str) -> str:
    try:
        with open(os.path.join(path, LOCK_NAME), "rb") as file:
            holder = file.read(32).strip()
    except FileNotFoundError:
        return "closed"
    if holder.isdigit():
        try:
            os.kill(int(holder), 0)
        except ProcessLookupError:
            return "not closed cleanly"
        except PermissionError:
            pass
        return f"in use by process {int(holder)}"
    return "not closed cleanly"


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
