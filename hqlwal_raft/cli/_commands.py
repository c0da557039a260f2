"""The commands: what is asked for, the report that answers it, and the exit code.

Exit codes: 0 nothing wrong found, or done · 1 an error · 2 wrong usage · 3 torn (opens) ·
4 damaged · 5 another format version · 6 a backup (opens only as a copy).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import click

from .. import _operations
from .._options import Opening
from .._plans import drive
from .._types import Entry, FindingKind, LogSync
from ..audit import DirectoryReport, Verdict
from ..errors import WalError
from . import _render as render
from . import _reports as reports
from ._bench import measure
from ._mend import mend

__all__ = ["hqlwal"]

F = TypeVar("F", bound=Callable[..., Any])

_EXIT_CODES = {
    Verdict.INTACT: 0,
    Verdict.UNCHECKED: 0,
    Verdict.TORN: 3,
    Verdict.DAMAGED: 4,
    Verdict.UNKNOWN_VERSION: 5,
    Verdict.COPY: 6,
}

_DIRECTORY = click.argument("directory", type=click.Path())
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _telling_errors(function: F) -> F:
    """What went wrong in one line, without a traceback, and exit code 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BrokenPipeError:
            raise SystemExit(1) from None  # the reader of a pipe has seen enough
        except OSError as error:
            raise click.ClickException(_in_one_line(error)) from None
        except (WalError, reports.NoStoreError) as error:
            raise click.ClickException(str(error)) from None

    return wrapper  # type: ignore[return-value]


@click.group(epilog=__doc__.partition("\n\n")[2], context_settings={"max_content_width": 100})
@click.version_option(package_name="hqlwal_raft")
def hqlwal() -> None:
    """Inspects, verifies, repairs and imports write-ahead logs of hqlwal_raft.

    info, segments, verify, dump, get and stats only read, take no lock, and may be used on a store
    that is open. bench makes a store of its own.
    """


@hqlwal.command()
@_DIRECTORY
@_JSON
@click.pass_context
@_telling_errors
def info(context: click.Context, directory: str, *, as_json: bool) -> None:
    """Shows what a store holds and how it stands."""
    report = reports.log_report(reports.examine_store(directory))
    (render.show_json if as_json else render.show_log)(report)
    context.exit(_EXIT_CODES[report.verdict])


@hqlwal.command()
@_DIRECTORY
@_JSON
@_telling_errors
def segments(directory: str, *, as_json: bool) -> None:
    """Lists the segment files with the entries they hold."""
    lines = reports.segment_lines(reports.examine_store(directory))
    (render.show_json if as_json else render.show_segments)(lines)


@hqlwal.command()
@_DIRECTORY
@_JSON
@click.pass_context
@_telling_errors
def verify(context: click.Context, directory: str, *, as_json: bool) -> None:
    """Reads every record and checks it; the exit code tells torn from damaged.

    The other commands that read take sealed segments at their headers' word. A directory of
    snapshots is read and checked as well.
    """
    try:
        report = reports.verify_report(_examine_deeply(directory, is_shown=not as_json))
    except reports.NoStoreError:
        snapshots = reports.snapshots_report(directory)
        if snapshots is None:
            raise
        (render.show_json if as_json else render.show_snapshots)(snapshots)
        context.exit(_EXIT_CODES[snapshots.verdict])
    (render.show_json if as_json else render.show_verdict)(report)
    context.exit(_EXIT_CODES[report.verdict])


@hqlwal.command()
@_DIRECTORY
@click.option("--from", "start", type=click.IntRange(0), default=0, help="First index.")
@click.option("--to", "last", type=click.IntRange(0), help="Last index, included.")
@click.option("--full", is_flag=True, help="Show whole payloads.")
@click.option("--purged", is_flag=True, help="Also what is purged but still on disk.")
@click.option("--broken", is_flag=True, help="Instead, what healing set aside (*.broken).")
@_JSON
@_telling_errors
def dump(
    directory: str,
    *,
    start: int,
    last: int | None,
    full: bool,
    purged: bool,
    broken: bool,
    as_json: bool,
) -> None:
    """Prints the records, one line each, with segment and offset; findings in their place."""
    report = _readable(directory)
    stop = None if last is None else last + 1
    if broken:
        salvaged = reports.salvaged_records(report.path, start, stop)
        render.show_records(salvaged, full=full, as_json=as_json)
        return
    items = reports.records(report, start, stop, purged=purged)
    render.show_records(items, full=full, as_json=as_json)


@hqlwal.command()
@_DIRECTORY
@click.argument("index", type=click.IntRange(0))
@click.option("--raw", is_flag=True, help="Write the payload as it is, nothing else.")
@_JSON
@_telling_errors
def get(directory: str, index: int, *, raw: bool, as_json: bool) -> None:
    """Prints one entry."""
    report = _readable(directory)
    found = [
        item
        for item in reports.records(report, index, index + 1)
        if isinstance(item, reports.RecordReport)
    ]
    if not found:
        log = reports.log_report(report)
        held = "is empty" if log.first_index is None else f"holds {log.first_index} to "
        held += "" if log.last_index is None else str(log.last_index)
        raise click.ClickException(f"entry {index} cannot be read: the log {held}")
    if raw:
        render.show_payload(found[0].payload)
    elif as_json:
        render.show_json(found[0])
    else:
        render.show_records(found, full=True)


@hqlwal.command()
@_DIRECTORY
@_JSON
@_telling_errors
def stats(directory: str, *, as_json: bool) -> None:
    """Shows what the log is made of: sizes, leaders, terms."""
    report = reports.stats_report(_readable(directory))
    (render.show_json if as_json else render.show_stats)(report)


@hqlwal.command()
@click.argument("directory", type=click.Path(file_okay=False, exists=True), default=".")
@click.option("--entries", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--size", type=click.IntRange(0), default=256, show_default=True, help="In bytes.")
@click.option("--tasks", type=click.IntRange(1), default=64, show_default=True)
@click.option("--sync", default="immediate", show_default=True, help="As for an open.")
@_JSON
@_telling_errors
def bench(directory: str, *, entries: int, size: int, tasks: int, sync: str, as_json: bool) -> None:
    """Measures single appends of many tasks to a store made for it in DIRECTORY, then removed."""
    try:
        policy = LogSync.parse(sync)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--sync") from None
    report = measure(directory, entries=entries, size=size, tasks=tasks, sync=policy)
    (render.show_json if as_json else render.show_bench)(report)


@hqlwal.command()
@_DIRECTORY
@click.option(
    "--from",
    "source",
    type=click.Path(file_okay=False, exists=True),
    help="A store, of a peer say, whose entries, *.broken files included, mend damaged ones.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
@_telling_errors
def repair(context: click.Context, directory: str, *, source: str | None, yes: bool) -> None:
    """Cuts a damaged log back to its last healthy entry; the damaged files are kept aside.

    Only right where the cluster sends the lost entries again: a node that acknowledged them
    and forgot them weakens the majority that holds them. The safer way is to give the node a
    fresh directory and let it join anew; or --from: a damaged record is given back where its
    checksum proves the copy, and nothing is lost.
    """
    report = _examine_deeply(directory, is_shown=True)
    if source is not None and report.verdict is Verdict.DAMAGED:
        render.show_mended(mend(report, lambda start, stop: _copies(source, start, stop)))
        report = _examine_deeply(directory, is_shown=True)
    before = reports.log_report(report)
    render.show_log(before)
    if before.verdict is Verdict.INTACT:
        return
    if before.verdict in (Verdict.COPY, Verdict.UNKNOWN_VERSION):
        _refuse(report)
    if not yes:
        is_torn = before.verdict is Verdict.TORN
        what = "Drop what was never acknowledged?" if is_torn else "Cut back to what is healthy?"
        click.confirm(what, abort=True)
    log = Opening(auto_heal=True, check_integrity=True).open_log(before.path)
    try:
        drive(_operations.close(log), log.directory)
        log.directory.say_clean()
    finally:
        log.release()
        log.directory.close()
    after = reports.log_report(_examine_deeply(directory, is_shown=True))
    render.show_log(after)
    context.exit(_EXIT_CODES[after.verdict])


def _copies(source: str, start: int, stop: int) -> Iterator[Entry]:
    report = reports.examine_store(source)
    found = reports.records(report, start, stop, purged=True)
    healthy = (item for item in found if isinstance(item, reports.RecordReport))
    for record in (*healthy, *reports.salvaged_records(report.path, start, stop)):
        yield Entry(record.term, record.index, record.payload, record.node_id)


@hqlwal.command("import-pysyncobj")
@click.argument("journal", type=click.Path())
@click.argument("directory", type=click.Path(), required=False)
@click.option(
    "--in-place",
    is_flag=True,
    help="Give the store the name of JOURNAL, which becomes JOURNAL.stock.",
)
@click.option(
    "--prefix-only",
    is_flag=True,
    help="Of a damaged journal import what lies before the damage.",
)
@_JSON
@_telling_errors
def import_pysyncobj(
    journal: str, directory: str | None, *, in_place: bool, prefix_only: bool, as_json: bool
) -> None:
    """Turns pysyncobj's JOURNAL file and its .meta into a store in DIRECTORY.

    The node must not be running, and DIRECTORY must not exist. The files stay as they are.
    Afterwards give the node DIRECTORY as its journalFile, and leave it its dump file.

    With --in-place the store gets the journal's own name, for programs that name it themselves.
    JOURNAL becomes JOURNAL.stock and its .meta JOURNAL.meta.stock. To undo it before the node
    has run again, remove the store and rename both back; later, use export-pysyncobj.
    """
    _need_one_target(directory, "DIRECTORY", in_place=in_place)
    adapter = _adapter()
    with render.progress_bar("importing", is_shown=not as_json) as progress:
        try:
            if directory is None:
                report = adapter.import_in_place(
                    journal, prefix_only=prefix_only, progress=progress
                )
            else:
                report = adapter.import_file_journal(
                    journal, directory, prefix_only=prefix_only, progress=progress
                )
        except ValueError as error:  # the file is no journal
            raise click.ClickException(str(error)) from None
    if as_json:
        render.show_json(report)
    else:
        render.show_import(report, journal, directory or journal)


@hqlwal.command("export-pysyncobj")
@_DIRECTORY
@click.argument("journal", type=click.Path(), required=False)
@click.option(
    "--in-place",
    is_flag=True,
    help="Give the journal the name of DIRECTORY, which becomes DIRECTORY.wal.",
)
@click.option(
    "--dump",
    type=click.Path(),
    help="The node's dump file: begin the journal where it ends. Needed after a kill.",
)
@_telling_errors
def export_pysyncobj(
    directory: str, journal: str | None, *, in_place: bool, dump: str | None
) -> None:
    """Turns a pysyncobj node's store into a journal file of pysyncobj's own: the way back.

    The node must not be running, and JOURNAL must not exist. The store stays as it is, and the
    dump file serves both. Unless the node was stopped in order give --dump: with a journal that
    does not begin where the dump ends, pysyncobj's own forgets what follows the dump.
    """
    _need_one_target(journal, "JOURNAL", in_place=in_place)
    adapter = _adapter()
    with render.progress_bar("exporting", is_shown=True, in_bytes=False) as progress:
        try:
            if journal is None:
                count = adapter.export_in_place(directory, dump=dump, progress=progress)
            else:
                count = adapter.export_file_journal(
                    directory, journal, dump=dump, progress=progress
                )
        except ValueError as error:  # too large, or no dump
            raise click.ClickException(str(error)) from None
    render.show_export(count, directory, journal or directory)


def _need_one_target(given: str | None, name: str, *, in_place: bool) -> None:
    if in_place == (given is not None):
        raise click.UsageError(f"give either {name} or --in-place")


def _adapter() -> Any:
    try:
        from .. import pysyncobj  # noqa: PLC0415 - pysyncobj is an extra
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    return pysyncobj


def _in_one_line(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    where = error.filename or "; ".join(getattr(error, "__notes__", ()))
    return f"{where}: {error.strerror}" if where else error.strerror


def _examine_deeply(directory: str, *, is_shown: bool) -> DirectoryReport:
    with render.progress_bar("verifying", is_shown=is_shown) as progress:
        return reports.examine_store(directory, deep=True, progress=progress)


def _readable(directory: str) -> DirectoryReport:
    """The report, where the records can be read."""
    report = reports.examine_store(directory)
    if report.verdict is Verdict.UNKNOWN_VERSION:
        _refuse(report)
    return report


def _refuse(report: DirectoryReport) -> NoReturn:
    kinds = (FindingKind.UNKNOWN_VERSION, FindingKind.COPY)
    finding = next(f for f in report.all_findings if f.kind in kinds)
    click.echo(f"Error: {finding.message}", err=True)
    raise SystemExit(_EXIT_CODES[report.verdict])
