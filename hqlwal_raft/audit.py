"""Judges a store's directory, at rest or in use: findings are data, never exceptions.

Read-only: needs neither the engine nor the lock, and changes nothing. Recovery judges by the same
report and reads nothing anew, so what :func:`examine` says is what an open would do. ``_look``
reads, ``_judge`` knows the rules; here stand the public face, the lock's state, and how a store
that is being written to is told from a damaged one: by two looks. May be called from any thread.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ._directory import Directory
from ._environment import Environment
from ._files import File, IrregularFileError
from ._findings import Judgement, MetaReport, SegmentReport
from ._format import (
    DATA_START,
    LOCK_BYTES,
    LOCK_NAME,
    RECORD_HEAD,
    RECORD_OVERHEAD_BYTES,
    U64_MAX,
    SegmentHeader,
    record_bytes,
    unpack_lock,
)
from ._judge import judge
from ._look import Look, Progress, find_valid, look, scan_segment
from ._records import decode
from ._types import Entry, Finding, FindingKind, LogId, Vote

__all__ = [
    "DirectoryReport",
    "LockReport",
    "MetaReport",
    "Salvaged",
    "SegmentReport",
    "Verdict",
    "examine",
    "salvage",
]

# A store in use is looked at until two looks agree, this often at most, and with these pauses.
_LOOKS = 10
_PAUSE_SECONDS = 0.02
_PIECE_BYTES = 1 << 20


class Verdict(enum.Enum):
    """How a store stands."""

    #: opens, with nothing to clean up; every record was checked
    INTACT = "intact"
    #: opens, with nothing to clean up; the records of sealed segments were not checked
    UNCHECKED = "nothing wrong found, sealed segments not checked"
    #: opens, dropping what a crash left unfinished and nobody was told is durable
    TORN = "torn"
    #: opens only as a copy
    COPY = "copy"
    #: does not open: something that was durable is not as it was written
    DAMAGED = "damaged"
    #: does not open: another release's format
    UNKNOWN_VERSION = "unknown version"


@dataclass(frozen=True, slots=True)
class LockReport:
    """Who holds the store. Taken from the lock itself, not from what the lock file says."""

    is_held: bool
    #: who the holder says it is, in its own container; a hint
    pid: int | None = None
    #: not held, and the last holder closed it cleanly, or there never was one
    is_clean: bool = True

    def __str__(self) -> str:
        if self.is_held:
            return "in use" if self.pid is None else f"in use by process {self.pid}"
        return "closed" if self.is_clean else "not closed cleanly"


@dataclass(slots=True)
class DirectoryReport:
    """A store's directory as it was found."""

    path: str
    meta: MetaReport | None
    #: ascending
    segments: list[SegmentReport]
    lock: LockReport
    #: what recovery does, or, where there is an obstacle, healing
    judgement: Judgement
    #: temporary files that a crash left behind
    leftovers: list[str] = field(default_factory=list)
    #: what auto-heal set aside earlier
    broken: list[str] = field(default_factory=list)

    @property
    def all_findings(self) -> list[Finding]:
        return self.judgement.findings

    @property
    def findings(self) -> list[Finding]:
        """Those that belong to no single file."""
        return [finding for finding in self.all_findings if finding.path == self.path]

    @property
    def first_obstacle(self) -> Finding | None:
        """The first finding that keeps the store from opening."""
        return self.judgement.obstacle

    @property
    def verdict(self) -> Verdict:
        kinds = {finding.kind for finding in self.all_findings}
        if FindingKind.UNKNOWN_VERSION in kinds:
            return Verdict.UNKNOWN_VERSION
        if kinds & {FindingKind.DAMAGE, FindingKind.IRREGULAR}:
            return Verdict.DAMAGED
        if FindingKind.COPY in kinds:
            return Verdict.COPY
        if kinds & {FindingKind.TORN_TAIL, FindingKind.LEFTOVER}:
            return Verdict.TORN
        return Verdict.UNCHECKED if FindingKind.UNCHECKED in kinds else Verdict.INTACT

    @property
    def vote(self) -> Vote | None:
        return self.meta.vote if self.meta else None

    @property
    def last_purged_log_id(self) -> LogId | None:
        return self.meta.state.last_purged if self.meta and self.meta.state else None

    @property
    def last_log_id(self) -> LogId | None:
        """The log id of the last record that recovery, or healing, keeps."""
        kept = self.judgement.kept
        return kept[-1].last_log_id if kept else None

    @property
    def committed(self) -> LogId | None:
        """The latest saved committed log id that the log reaches, as an open takes it."""
        return self.committed_within(self.last_log_id)

    def committed_within(self, last: LogId | None) -> LogId | None:
        last = last or self.last_purged_log_id
        for _, log_id in self.meta.committed if self.meta else ():
            if log_id is None or (last is not None and log_id.index <= last.index):
                return log_id
        return None


def examine(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    environment: Environment | None = None,
    progress: Progress | None = None,
    directory: Directory | None = None,
) -> DirectoryReport:
    """Reads a store's directory and says what is there and what is wrong with it.

    ``deep`` verifies every record; otherwise sealed segments are judged by their headers, as at
    a normal open, and called unchecked. A store in use is never called damaged for being written
    to: what looks damaged must look the same twice. ``directory`` is the store's own, locked.
    Raises OSError where files cannot be read.
    """
    if directory is not None:
        lock = LockReport(is_held=True, pid=directory.environment.getpid())
        seen = _looked(directory, deep=deep, progress=progress)
        if seen[0].is_torn:  # only who holds the lock removes files: that is no judgement
            raise OSError(errno.ESTALE, "a file in it vanished while it was opened", directory.path)
        return _report(directory, *seen, lock)
    path = os.path.abspath(os.fspath(path))
    opened = Directory(environment or Environment(), path)
    try:
        return _examine_unlocked(opened, deep=deep, progress=progress)
    finally:
        opened.close()


def _examine_unlocked(
    directory: Directory, *, deep: bool, progress: Progress | None
) -> DirectoryReport:
    lock = probe_lock(directory)
    seen = _looked(directory, deep=deep, progress=progress)
    suspicions = _suspicions(*seen) if not seen[0].is_torn else set()
    confirmed: set[tuple[Finding, object]] = set()
    for _ in range(_LOOKS - 1):
        if not suspicions and not seen[0].is_torn:
            break
        directory.environment.sleep(_PAUSE_SECONDS)
        seen = _looked(directory, deep=deep, progress=progress)
        confirmed = set()
        if seen[0].is_torn:
            continue  # a file that vanished meanwhile is not missing
        again = _suspicions(*seen)
        confirmed = suspicions & again
        if confirmed == again:
            break
        suspicions = again
    if not lock.is_held:
        lock = probe_lock(directory)
    sound = {finding for finding, _ in confirmed}
    findings = seen[1].findings
    for place, finding in enumerate(findings):
        is_settled = finding in sound if finding.kind.is_obstacle else not lock.is_held
        if not is_settled:
            message = f"{finding.message} (the store is in use)"
            findings[place] = replace(finding, kind=FindingKind.IN_USE, message=message)
    return _report(directory, *seen, lock)


def _looked(
    directory: Directory, *, deep: bool, progress: Progress | None
) -> tuple[Look, Judgement]:
    """One look and the judgement of it."""
    seen = look(directory, deep=deep, progress=progress)
    while True:
        judgement = judge(directory.path, seen.meta, seen.segments)
        # The log's last record is always decoded, and a segment that is written to again is
        # read whole, wherever they lie: what that finds is judged as well.
        last = judgement.kept[-1] if judgement.kept else None
        if last is None or last.places is not None:
            break
        if not scan_segment(directory, last):
            seen.is_torn = True
            break
    judgement.findings += seen.findings
    if any(finding.kind.is_obstacle for finding in seen.findings):
        judgement.is_hopeless = True
    for name in seen.leftovers:
        path = directory.path_of(name)
        if not any(finding.path == path for finding in seen.findings):
            message = f"{path}: was in the making; the next open removes it"
            judgement.findings.append(Finding(FindingKind.LEFTOVER, path, message))
    return seen, judgement


def _suspicions(seen: Look, judgement: Judgement) -> set[tuple[Finding, object]]:
    """What keeps the store from opening, each with the bytes that tell whether it is the same.

    A file is known by its header, salt included, not by its name, which is used again.
    """
    heads: dict[str, object] = {s.path: (s.size, s.head) for s in seen.segments}
    state = None
    if seen.meta is not None:
        state = seen.meta.state
        heads[seen.meta.path] = (seen.meta.size, seen.meta.head)
    return {
        (finding, heads.get(finding.path, state))
        for finding in judgement.findings
        if finding.kind.is_obstacle
    }


def _report(
    directory: Directory, seen: Look, judgement: Judgement, lock: LockReport
) -> DirectoryReport:
    unchecked = [s for s in judgement.kept if not s.is_scanned]
    if unchecked:
        message = (
            f"{directory.path}: the records of {len(unchecked)} sealed segments were not checked, "
            "only their headers; a deep look checks them"
        )
        judgement.findings.append(
            Finding(
                FindingKind.UNCHECKED,
                directory.path,
                message,
                first_id=unchecked[0].first_id,
                last_id=unchecked[-1].next_id - 1,
            )
        )
    gone = {segment.path for segment in (*judgement.leftovers, *judgement.dropped)}
    for segment in seen.segments:
        segment.findings = [f for f in judgement.findings if f.path == segment.path]
        segment.is_dropped = segment.path in gone
    return DirectoryReport(
        directory.path,
        seen.meta,
        seen.segments,
        lock,
        judgement,
        [directory.path_of(name) for name in seen.leftovers],
        [directory.path_of(name) for name in seen.broken],
    )


# --- the lock ----------------------------------------------------------------------------


def probe_lock(directory: Directory) -> LockReport:
    """Whether somebody holds the lock: by trying it, shared, for an instant.

    Other probes are not disturbed by that; a store that is being opened tries again.
    """
    is_held = not directory.lock.is_free()
    said: int | bool | None = None
    with contextlib.suppress(FileNotFoundError, IrregularFileError):
        file = directory.open_file(LOCK_NAME)
        is_held = is_held or not file.is_lockable()
        data = file.read(0, LOCK_BYTES)
        file.close()
        said = unpack_lock(data)
    pid = said if isinstance(said, int) and not isinstance(said, bool) else None
    if is_held:
        return LockReport(is_held=True, pid=pid, is_clean=False)
    return LockReport(is_held=False, is_clean=said in (None, True))


# --- what healing set aside --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Salvaged:
    """An entry that can be read from a file that healing set aside."""

    path: str
    offset: int
    entry: Entry


def salvage(
    path: str | os.PathLike[str], *, environment: Environment | None = None
) -> Iterator[Salvaged]:
    """The entries that can be read from the ``.broken`` files of a directory, file by file.

    Each is found by its index and its salted checksum, behind damage too. One that was set aside
    twice comes twice. Raises OSError where files cannot be read.
    """
    directory = Directory(environment or Environment(), os.path.abspath(os.fspath(path)))
    try:
        for name in look(directory, deep=False).broken:
            with contextlib.suppress(FileNotFoundError, IrregularFileError):
                file = directory.open_file(name)
                yield from _salvage_file(file)
    finally:
        directory.close()


def _salvage_file(file: File) -> Iterator[Salvaged]:
    head = file.read(0, DATA_START + RECORD_OVERHEAD_BYTES)
    if len(head) < DATA_START + RECORD_OVERHEAD_BYTES:
        return
    # Where the header is damaged, its salt may not be: that a record is valid proves it.
    salt = int.from_bytes(head[32:36], "big")
    header = SegmentHeader.unpack(head)
    if isinstance(header, SegmentHeader) and not header.is_unused:
        first = header.id_from
    else:
        first = RECORD_HEAD.unpack_from(head, DATA_START)[0]
    offset, last = DATA_START, min(first + file.size // RECORD_OVERHEAD_BYTES, U64_MAX)
    while (found := find_valid(file, salt, offset, first, last)) is not None:
        offset, first, length = found
        while length:
            entries = decode(file.read(offset, length), salt, first, length)
            for entry in entries:
                yield Salvaged(file.path, offset, entry)
                offset += record_bytes(len(entry.payload))
                first += 1
            # a run of healthy records is read a piece at a time
            length = _PIECE_BYTES if entries else 0
