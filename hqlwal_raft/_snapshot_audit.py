"""Judges a directory of snapshots, at rest or in use: findings are data, never exceptions.

Read-only: needs no lock and changes nothing. May be called from any thread that may wait.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from ._directory import Directory
from ._environment import Environment
from ._files import IrregularFileError
from ._snapshot_files import SnapshotFile
from ._snapshot_format import is_temporary_name, parse_snapshot_name
from ._types import Finding, FindingKind, SnapshotInfo
from .audit import LockReport, Verdict, probe_lock
from .errors import CorruptionError, UnknownVersionError

__all__ = ["SnapshotsReport", "examine_snapshots"]


@dataclass(frozen=True, slots=True)
class SnapshotsReport:
    """A directory of snapshots as it was found."""

    path: str
    lock: LockReport
    #: those that are whole, every byte of them, the newest last
    snapshots: list[SnapshotInfo]
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        kinds = {finding.kind for finding in self.findings}
        if FindingKind.UNKNOWN_VERSION in kinds:
            return Verdict.UNKNOWN_VERSION
        if kinds & {FindingKind.DAMAGE, FindingKind.IRREGULAR}:
            return Verdict.DAMAGED
        return Verdict.TORN if FindingKind.LEFTOVER in kinds else Verdict.INTACT


def examine_snapshots(
    path: str | os.PathLike[str], *, environment: Environment | None = None
) -> SnapshotsReport:
    """Reads and checks every snapshot in a directory. Changes nothing, and takes no lock.

    Raises OSError where files cannot be read for a reason that proves no damage.
    """
    directory = Directory(environment or Environment(), os.path.abspath(os.fspath(path)))
    try:
        lock = probe_lock(directory)
        report = SnapshotsReport(directory.path, lock, [], [])
        held = []
        for name in directory.names():
            parsed = parse_snapshot_name(name)
            if parsed is not None:
                info = _examine(directory, name, report.findings)
                held += [(*parsed, info)] if info is not None else []
            elif is_temporary_name(name):
                report.findings.append(_in_the_making(directory.path_of(name), lock))
        report.snapshots.extend(info for *_, info in sorted(held, key=lambda each: each[:2]))
        return report
    finally:
        directory.close()


def _in_the_making(path: str, lock: LockReport) -> Finding:
    if lock.is_held:
        return Finding(FindingKind.IN_USE, path, f"{path} is being written (the store is in use)")
    message = f"{path}: was in the making; the next open removes it"
    return Finding(FindingKind.LEFTOVER, path, message)


def _examine(directory: Directory, name: str, findings: list[Finding]) -> SnapshotInfo | None:
    path = directory.path_of(name)
    parsed = parse_snapshot_name(name)
    assert parsed is not None
    try:
        file = SnapshotFile(directory, name, parsed[0])
        for number in range(file.blocks):
            file.block(number)
    except UnknownVersionError as error:
        message = str(error).partition(". ")[0]
        findings.append(Finding(FindingKind.UNKNOWN_VERSION, path, message, version=error.version))
    except CorruptionError as error:
        with contextlib.suppress(OSError):
            if directory.identify(name) is None:
                return None  # a newer one took its place meanwhile
        findings.append(Finding(FindingKind.DAMAGE, path, str(error), error.offset))
    except IrregularFileError:
        message = f"{path} is no regular file, and so no snapshot"
        findings.append(Finding(FindingKind.IRREGULAR, path, message))
    else:
        return SnapshotInfo(parsed[0], file.size, path)
    return None
