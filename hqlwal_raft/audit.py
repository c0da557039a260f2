"""Read-only examination of a store's directory: findings are data, never exceptions.

Needs neither the engine nor the lock and changes nothing. Recovery judges by the same report,
so what ``examine`` says is what an open would do. It knows the rules of recovery as
``docs/design/format.md`` gives them, and not how anything is repaired.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ._environment import Environment
from ._files import Files
from ._format import (
    BROKEN_SUFFIX,
    DATA_START,
    META_NAME,
    TEMPORARY_SUFFIX,
    SegmentHeader,
    segment_number,
)
from ._meta import MetaReport, examine_meta
from ._scan import Scan, is_zero, scan
from ._types import Finding, FindingKind, LogId, Vote

__all__ = ["DirectoryReport", "SegmentReport", "examine"]

#: told of the bytes examined so far and of those there are in all
Progress = Callable[[int, int], object]


@dataclass(slots=True)
class SegmentReport:
    """One segment file as it was found."""

    number: int
    path: str
    size: int
    #: None where it cannot be read
    header: SegmentHeader | None = None
    #: its records, where they were scanned
    scan: Scan | None = None
    #: something other than zeros lies behind the records
    has_torn_tail: bool = False
    #: the next open removes it: left over, or unacknowledged behind a torn tail
    is_dropped: bool = False
    #: its damage leaves the records before it sound, so that the log can be cut back to them
    is_sound_before_damage: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        return self.header is not None and not self.header.is_unused

    @property
    def is_sealed(self) -> bool:
        return self.header is not None and self.header.is_sealed

    @property
    def has_mark(self) -> bool:
        """Whether its header says that some of its records, or all, are durable."""
        return self.header is not None and (self.header.has_mark or self.header.is_sealed)

    @property
    def first_id(self) -> int:
        return self.header.id_from if self.header is not None else 0

    @property
    def next_id(self) -> int:
        """The id after the last healthy record's."""
        if self.scan is not None:
            return self.scan.next_id
        header = self.header
        if header is None:
            return 0
        return header.id_until + 1 if header.has_mark else header.id_from

    @property
    def end(self) -> int:
        """One past the last healthy record, as an offset."""
        if self.scan is not None:
            return self.scan.end
        return max(self.header.data_end, DATA_START) if self.header else 0


@dataclass(slots=True)
class DirectoryReport:
    """A store's directory as it was found."""

    path: str
    meta: MetaReport | None
    segments: list[SegmentReport]
    #: temporary files that a crash left behind
    leftovers: list[str]
    #: what auto-heal set aside earlier
    broken: list[str]
    #: findings that belong to no single file
    findings: list[Finding] = field(default_factory=list)

    @property
    def all_findings(self) -> list[Finding]:
        found = list(self.meta.findings) if self.meta else []
        for segment in self.segments:
            found += segment.findings
        return found + self.findings

    @property
    def first_obstacle(self) -> Finding | None:
        """The first finding that keeps the store from opening."""
        stopping = (FindingKind.DAMAGE, FindingKind.UNKNOWN_VERSION)
        return next((f for f in self.all_findings if f.kind in stopping), None)

    @property
    def vote(self) -> Vote | None:
        return self.meta.state.vote if self.meta else None

    @property
    def last_purged_log_id(self) -> LogId | None:
        return self.meta.state.last_purged if self.meta else None


def examine(
    directory: str | os.PathLike[str],
    *,
    deep: bool = False,
    progress: Progress | None = None,
    environment: Environment | None = None,
) -> DirectoryReport:
    """Reads a store's directory and says what is there and what is wrong with it.

    ``deep`` verifies every record; otherwise sealed segments are judged by their headers, as
    at a normal open. An examined store that is being written to shows the state of some moment
    between two writes, and possibly a torn tail. Raises OSError where files cannot be read.
    """
    path = os.path.abspath(os.fspath(directory))
    return examine_files(Files(environment), path, deep=deep, progress=progress)


def examine_files(
    files: Files, path: str, *, deep: bool, progress: Progress | None = None
) -> DirectoryReport:
    """As ``examine``, for those who have the files already."""
    names = files.names(path)
    report = DirectoryReport(
        path,
        examine_meta(files, path) if META_NAME in names else None,
        [],
        [
            os.path.join(path, name)
            for name in names
            if name.endswith(TEMPORARY_SUFFIX) and _is_ours(name.removesuffix(TEMPORARY_SUFFIX))
        ],
        [os.path.join(path, name) for name in names if BROKEN_SUFFIX in name],
    )
    first_segment = report.meta.state.first_segment if report.meta else 0
    for name in names:
        number = segment_number(name)
        if number is not None:
            report.segments.append(
                _examine_file(
                    files, os.path.join(path, name), number, is_leftover=number < first_segment
                )
            )
    _scan_segments(files, report, deep=deep, progress=progress)
    _judge_sequence(report)
    return report


def _is_ours(name: str) -> bool:
    return name == META_NAME or segment_number(name) is not None


def _damage(segment: SegmentReport, message: str, **where: int) -> None:
    segment.findings.append(
        Finding(FindingKind.DAMAGE, segment.path, f"{segment.path}: {message}", **where)
    )


def _examine_file(files: Files, path: str, number: int, *, is_leftover: bool) -> SegmentReport:
    file = files.open(path)
    try:
        segment = SegmentReport(number, path, file.size)
        header = SegmentHeader.unpack(file.read(0, DATA_START))
    finally:
        file.close()
    if is_leftover:
        segment.is_dropped = True
        segment.header = header if isinstance(header, SegmentHeader) else None
        message = f"{path}: wholly purged; the next open removes it"
        segment.findings.append(Finding(FindingKind.LEFTOVER, path, message))
    elif isinstance(header, int):
        message = f"{path} is of format version {header}, which this release does not write"
        segment.findings.append(Finding(FindingKind.UNKNOWN_VERSION, path, message, version=header))
    elif isinstance(header, str):
        _damage(segment, header, offset=0)
    elif segment.size < header.length:
        _damage(
            segment,
            f"it was cut to {segment.size} bytes, {header.length} were allocated",
            offset=segment.size,
        )
    elif not (
        header.is_unused or DATA_START == header.data_start <= header.data_end <= header.length
    ):
        _damage(segment, "the header's numbers contradict each other", offset=0)
    else:
        segment.header = header
    return segment


def _scan_segments(
    files: Files, report: DirectoryReport, *, deep: bool, progress: Progress | None
) -> None:
    chosen = [
        segment
        for segment in report.segments
        if segment.header is not None
        and not segment.is_dropped
        and (deep or not segment.header.is_sealed)
    ]
    total = sum(segment.size for segment in chosen)
    done = 0
    for segment in chosen:
        scan_segment(files, segment)
        done += segment.size
        if progress is not None:
            progress(done, total)


def scan_segment(files: Files, segment: SegmentReport) -> None:
    """Reads the segment's records into the report, and what is wrong with them."""
    header = segment.header
    assert header is not None
    file = files.open(segment.path)
    try:
        data = file.read(0, header.length)
    finally:
        file.close()
    # an unused segment holds nothing, whatever lies in it
    stop = DATA_START if header.is_unused else len(data)
    if header.is_sealed:
        stop = header.data_end
    found = scan(data, header.salt, header.id_from, DATA_START, stop)
    segment.scan = found
    segment.has_torn_tail = not header.is_sealed and not is_zero(data[found.end :])
    if found.end < header.data_end or (header.has_mark and found.next_id <= header.id_until):
        _damage(
            segment,
            f"offset {found.end}: {found.why}; entries {found.next_id} to {header.id_until} "
            "were durable and cannot be trusted",
            offset=found.end,
            first_id=found.next_id,
            last_id=header.id_until,
        )
        segment.is_sound_before_damage = True
    elif header.is_sealed and found.next_id != header.id_until + 1:
        _damage(segment, "the sealed header does not agree with its records", offset=0)


def _judge_sequence(report: DirectoryReport) -> None:
    """Holds the segments against each other and against ``meta.hql``."""
    kept = [segment for segment in report.segments if not segment.is_dropped]
    meta = report.meta
    if meta is None:
        if kept:
            report.findings.append(
                Finding(
                    FindingKind.DAMAGE,
                    report.path,
                    f"{report.path}: segments are here but {META_NAME} is missing, and with it "
                    "the node's vote",
                )
            )
        return
    if any(f.kind is not FindingKind.TORN_TAIL for f in meta.findings):
        return  # the order cannot be judged without what meta.hql says
    first = meta.state.first_segment
    if first and (not kept or kept[0].number != first):
        there = f"the first one is {kept[0].number}" if kept else "there is none"
        report.findings.append(
            Finding(
                FindingKind.DAMAGE,
                report.path,
                f"{report.path}: segment {first} is missing: {there}",
            )
        )
        return
    if not first and any(segment.is_used for segment in kept):
        report.findings.append(
            Finding(
                FindingKind.DAMAGE,
                report.path,
                f"{report.path}: {META_NAME} is older than the segments: the node's vote may "
                "be lost",
            )
        )
        return
    for previous, segment in itertools.pairwise(kept):
        if segment.number != previous.number + 1:
            _damage(segment, f"segment {previous.number + 1}, which precedes it, is missing")
            return
    if all(segment.header is not None for segment in kept):  # else it is found already
        _judge_order(kept, meta.state.last_purged)


def _judge_order(kept: list[SegmentReport], frontier: LogId | None) -> None:
    """Finds where the records end, and damage where they should not."""
    next_free = frontier.index + 1 if frontier else 0
    last: SegmentReport | None = None
    # a segment, unused or torn, after which only unacknowledged records can follow
    torn: SegmentReport | None = None
    is_dropping = False
    for segment in kept:  # a log may begin anywhere; that the first is the first, meta.hql says
        if not segment.is_used:
            torn = torn or segment
            if is_dropping:
                _drop(segment)
            continue
        if torn is None:
            if last is None or _follows(segment, last, frontier):
                last = segment
                continue
            if last.is_sealed:
                _damage(segment, _gap(last.next_id, segment.first_id), first_id=last.next_id)
                return
            torn = last
        if segment.has_mark:
            _damage_torn(torn, segment, last.next_id if last else next_free)
            return
        is_dropping = True
        _drop(segment)
    _judge_end(kept, last)


def _follows(segment: SegmentReport, last: SegmentReport, frontier: LogId | None) -> bool:
    """Whether no entry is missing between the two."""
    if segment.first_id == last.next_id:
        return True
    # what is missing may be purged
    return frontier is not None and last.next_id <= frontier.index + 1 == segment.first_id


def _damage_torn(torn: SegmentReport, segment: SegmentReport, lost: int) -> None:
    _damage(
        torn,
        f"entries {lost} to {segment.first_id - 1} are missing although later ones were "
        f"durable (in {segment.path})",
        offset=torn.end or DATA_START,
        first_id=lost,
        last_id=segment.first_id - 1,
    )
    torn.is_sound_before_damage = torn.is_used


def _judge_end(kept: list[SegmentReport], last: SegmentReport | None) -> None:
    for segment in kept:
        if segment.has_torn_tail and not segment.is_dropped and not segment.findings:
            message = f"{segment.path}, offset {segment.end}: unacknowledged bytes of a torn write"
            segment.findings.append(
                Finding(FindingKind.TORN_TAIL, segment.path, message, offset=segment.end)
            )
    # A sealed segment behind one that is not: a truncation was under way, which unseals the
    # one that stays and then removes from the newest backwards. Nothing is missing then.
    is_truncating = any(s.is_used and not s.is_sealed for s in kept)
    if last is not None and last is kept[-1] and last.is_sealed and not is_truncating:
        _damage(
            last,
            "it is sealed, so another segment followed it, and that is missing",
            first_id=last.next_id,
        )
        last.is_sound_before_damage = True


def _drop(segment: SegmentReport) -> None:
    segment.is_dropped = True
    message = f"{segment.path}: nothing but unacknowledged entries behind a torn tail"
    segment.findings.append(Finding(FindingKind.TORN_TAIL, segment.path, message))


def _gap(expected: int, found: int) -> str:
    return f"it begins with entry {found} where {expected} was expected"
