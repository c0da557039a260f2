"""Shows reports to people (tables) and to programs (JSON). The only code that prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .._types import Finding, LogId, Vote
from ..audit import Verdict
from ._bench import BenchReport
from ._reports import (
    LogReport,
    RecordReport,
    SegmentLine,
    SnapshotsReport,
    StatsReport,
    VerifyReport,
    to_json,
)

if TYPE_CHECKING:  # pysyncobj is an extra
    from ..pysyncobj import ImportReport

__all__ = [
    "progress_bar",
    "show_bench",
    "show_import",
    "show_json",
    "show_log",
    "show_mended",
    "show_payload",
    "show_records",
    "show_segments",
    "show_snapshots",
    "show_stats",
    "show_text",
    "show_verdict",
]

_COLOURS = {
    Verdict.INTACT: "green",
    Verdict.UNCHECKED: "green",
    Verdict.TORN: "yellow",
    Verdict.COPY: "yellow",
    Verdict.DAMAGED: "red",
    Verdict.UNKNOWN_VERSION: "red",
}
_MEANINGS = {
    Verdict.INTACT: "intact: every record was checked",
    Verdict.UNCHECKED: "nothing wrong found; the records of sealed segments were not checked",
    Verdict.TORN: "opens; drops what a crash left unfinished and was never acknowledged",
    Verdict.COPY: "a backup: it does not open as the node it was made of",
    Verdict.DAMAGED: "damaged: durable bytes are not what was written",
    Verdict.UNKNOWN_VERSION: "of a format version that this release does not write",
}
#: payload bytes shown of each record unless asked for more
_PREVIEW_BYTES = 32


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def show_text(text: str) -> None:
    _console().print(escape(text))


def show_json(value: Any) -> None:
    sys.stdout.write(json.dumps(to_json(value), indent=2) + "\n")


def show_payload(payload: bytes) -> None:
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


def show_log(report: LogReport) -> None:
    table = Table.grid(padding=(0, 2))
    rows = {
        "store": report.path,
        "state": report.lock,
        "vote": _vote(report.vote),
        "entries": _range(report),
        "committed": _log_id(report.committed),
        "purged up to": _log_id(report.last_purged_log_id),
        "segments": f"{report.segments} and {report.prepared_segments} prepared, "
        f"{report.segment_bytes:,} bytes",
    }
    if report.state_bytes is not None:
        rows["small state"] = f"{report.state_bytes:,} bytes"
    if report.is_copy:
        rows["copy"] = "yes, a backup"
    if report.broken:
        rows["set aside"] = "\n".join(report.broken)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    _console().print(table)
    _show_findings(report.findings)
    _show_verdict_line(report.verdict)


def show_mended(indexes: list[int]) -> None:
    told = ", ".join(map(str, indexes[:20])) + (" …" if len(indexes) > 20 else "")
    show_text(f"given back: {len(indexes):,} entries" + (f" ({told})" if indexes else ""))


def show_segments(lines: list[SegmentLine]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("segment", "state", "first", "last", "used", "durable", "size"):
        table.add_column(name, justify="left" if name in ("segment", "state") else "right")
    for line in lines:
        table.add_row(
            f"{line.number:016d}",
            line.state if line.is_checked else f"{line.state}, unchecked",
            "-" if line.first_id is None else str(line.first_id),
            "-" if line.last_id is None else str(line.last_id),
            f"{line.end:,}",
            f"{line.durable_end:,}",
            f"{line.size_bytes:,}",
        )
    _console().print(table)
    _show_findings([finding for line in lines for finding in line.findings])


def show_records(
    items: Iterable[RecordReport | Finding], *, full: bool = False, as_json: bool = False
) -> None:
    """One line each, as they come. Payloads as text where they are printable, else as hex."""
    for item in items:
        if as_json:
            kind = "record" if isinstance(item, RecordReport) else "finding"
            sys.stdout.write(json.dumps({"type": kind, **to_json(item)}) + "\n")
        elif isinstance(item, RecordReport):
            sys.stdout.write(_record_line(item, full=full) + "\n")
        else:
            sys.stdout.write(f"-- {item.kind.value}: {item.message}\n")


def show_verdict(report: VerifyReport) -> None:
    _console().print(
        f"{report.records:,} records in {report.segments} segments "
        f"({report.segment_bytes:,} bytes) of {escape(report.path)}"
    )
    _show_findings(report.findings)
    _show_verdict_line(report.verdict)


def show_snapshots(report: SnapshotsReport) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("index", "term", "node", "bytes", "file"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for each in report.snapshots:
        log_id = each.log_id
        numbers = (log_id.index, log_id.term, log_id.node_id)
        table.add_row(*map(str, numbers), f"{each.size_bytes:,}", escape(each.path))
    _console().print(f"{escape(report.path)}, {report.lock}: {len(report.snapshots)} snapshots")
    if report.snapshots:
        _console().print(table)
    _show_findings(report.findings)
    _show_verdict_line(report.verdict)


def show_stats(report: StatsReport) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("entries", f"{report.entries:,}")
    grid.add_row(
        "payloads",
        f"{report.payload_bytes:,} bytes; each {report.payload_min_bytes:,} to "
        f"{report.payload_max_bytes:,}, p50 {report.payload_p50_bytes:,}, "
        f"p99 {report.payload_p99_bytes:,}",
    )
    grid.add_row("segments", f"{report.segment_bytes:,} bytes")
    table = Table(box=None, pad_edge=False)
    for name in ("term", "node", "first", "last", "entries"):
        table.add_column(name, justify="right")
    for line in report.leaders:
        count = line.last_index - line.first_index + 1
        numbers = (line.term, line.node_id, line.first_index, line.last_index)
        table.add_row(*map(str, numbers), f"{count:,}")
    _console().print(grid, "", table)


def show_bench(report: BenchReport) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("entries", f"{report.entries:,} of {report.payload_bytes:,} bytes")
    grid.add_row("tasks", f"{report.tasks:,}, sync {report.sync}")
    grid.add_row("throughput", f"{report.entries_per_second:,.0f} entries/s")
    grid.add_row("an append", _times(report.append_p50_seconds, report.append_p99_seconds))
    grid.add_row("a sync", _times(report.sync_p50_seconds, report.sync_p99_seconds))
    grid.add_row("syncs", f"{report.syncs:,}, {report.entries_per_sync:.1f} entries each")
    grid.add_row("a bare fdatasync", f"p50 {1e6 * report.floor_p50_seconds:,.0f} µs")
    _console().print(grid)


def show_import(report: ImportReport, journal: str, directory: str) -> None:
    held = "no entries"
    if report.entries:
        held = f"{report.entries:,} entries ({report.first_index} to {report.last_index})"
    voted = "nobody" if report.voted_for is None else str(report.voted_for)
    _console().print(
        escape(
            f"{held}, term {report.term}, vote for {voted}, commit index {report.commit_index}: "
            f"{journal} is now the store {directory}"
        )
    )
    for loss in report.lost:
        _console().print(f"[yellow]lost[/]: {escape(loss)}")


def show_export(count: int, directory: str, journal: str) -> None:
    _console().print(escape(f"{count:,} entries of {directory}: {journal} is pysyncobj's own now"))


def _times(p50_seconds: float, p99_seconds: float) -> str:
    return f"p50 {1e6 * p50_seconds:,.0f} µs, p99 {1e6 * p99_seconds:,.0f} µs"


@contextmanager
def progress_bar(text: str, *, is_shown: bool, in_bytes: bool = True) -> Iterator[Any]:
    """Gives a function to call with what is done and what there is to do."""
    columns = (DownloadColumn(),) if in_bytes else (TextColumn("{task.completed}/{task.total}"),)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not is_shown or not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _record_line(record: RecordReport, *, full: bool) -> str:
    payload = record.payload if full else record.payload[:_PREVIEW_BYTES]
    text = payload.decode("ascii", errors="replace")
    shown = text if text.isascii() and text.isprintable() else f"0x{payload.hex()}"
    if len(payload) < len(record.payload):
        shown += " …"
    return (
        f"{record.segment:>6}:{record.offset:<10} index {record.index:<8} term {record.term:<5} "
        f"node {record.node_id:<3} {len(record.payload):>7} bytes  {shown}"
    )


def _show_findings(findings: list[Finding]) -> None:
    for finding in findings:
        colour = "red" if finding.kind.is_obstacle else "yellow"
        _console().print(f"[{colour}]{finding.kind.value}[/]: {escape(finding.message)}")


def _show_verdict_line(verdict: Verdict) -> None:
    _console().print(f"[{_COLOURS[verdict]}]{_MEANINGS[verdict]}[/]")


def _range(report: LogReport) -> str:
    if report.first_index is None:
        return "none"
    return f"{report.entries:,} (index {report.first_index} to {report.last_index})"


def _log_id(log_id: LogId | None) -> str:
    if log_id is None:
        return "-"
    return f"index {log_id.index}, term {log_id.term}, node {log_id.node_id}"


def _vote(vote: Vote | None) -> str:
    if vote is None:
        return "-"
    return f"term {vote.term} for {vote.node_id!r}, {'' if vote.committed else 'not '}committed"
