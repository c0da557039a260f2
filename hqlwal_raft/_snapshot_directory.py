"""The snapshots in a directory: which there are, how one is published, which one counts.

For ``_blocking_snapshots``, which holds a lock around every call; it may wait for the disk. It must
not know who writes or reads, nor what the bytes mean.

The order of a publication: data, sync (``_snapshot_files``), name, sync of the directory, tables,
then the older ones go. So a crash at any step leaves the newest one before, or the new one, whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from . import _said
from ._directory import Directory
from ._files import IrregularFileError
from ._format import META_NAME, segment_number
from ._snapshot_files import SnapshotFile, Unfinished
from ._snapshot_format import is_temporary_name, parse_snapshot_name, snapshot_name
from ._types import Finding, FindingKind, LogId, SnapshotInfo
from .errors import CorruptionError, SnapshotError, SnapshotOrderError

__all__ = ["Held", "SnapshotDirectory"]


class Held(NamedTuple):
    """A snapshot that is whole as far as is known. In the tables they stand in this order."""

    log_id: LogId
    number: int
    name: str
    info: SnapshotInfo


class SnapshotDirectory:
    """The tables of a locked directory."""

    def __init__(self, directory: Directory, keep: int) -> None:
        self.path = directory.path
        self.directory = directory
        #: the newest last
        self.held: tuple[Held, ...] = ()
        #: the names of those that were read to the end, or written, since it was opened
        self.checked: set[str] = set()
        self.findings: list[Finding] = []
        self._keep = keep
        self._damaged: dict[str, Held] = {}
        self._next_number = 1

    # --- opening ---------------------------------------------------------------------------

    def look(self) -> None:
        """Removes what a crash left, and notes what there is; what is shown is durable.

        Raises SnapshotError where a log lies there, UnknownVersionError, OSError.
        """
        directory = self.directory
        names = directory.names()
        for name in names:
            if name == META_NAME or segment_number(name) is not None:
                raise SnapshotError(
                    f"{self.path} is a log's directory, it holds {name}: give the snapshots one of "
                    "their own, beside it. Nothing was changed",
                    path=self.path,
                )
        for name in filter(is_temporary_name, names):
            path = directory.path_of(name)
            is_gone = self.remove(name)
            message = (
                f"{path} {'was removed' if is_gone else 'stays'}: a snapshot that was cut short"
            )
            self.findings.append(Finding(FindingKind.LEFTOVER, path, message))
        # Who published the newest one may have been killed before its name was durable.
        directory.sync()
        found = []
        for name in names:
            parsed = parse_snapshot_name(name)
            if parsed is not None:
                self._next_number = max(self._next_number, parsed[1] + 1)
                held = self._look_at(name, *parsed)
                if held is not None:
                    found.append(held)
        self.held = tuple(sorted(found))

    def _look_at(self, name: str, log_id: LogId, number: int) -> Held | None:
        path = self.directory.path_of(name)
        held = Held(log_id, number, name, SnapshotInfo(log_id, 0, path))
        with contextlib.suppress(CorruptionError, IrregularFileError), self._noting(held):
            file = SnapshotFile(self.directory, name, log_id)
            file.make_durable()  # what is shown is
            return held._replace(info=SnapshotInfo(log_id, file.size, path))
        return None

    def say_opened(self) -> None:
        newest = self.held[-1].log_id if self.held else None
        before, count = self.directory.lock.before, len(self.held)
        _said.snapshots_opened(self.path, before, self.findings, snapshots=count, newest=newest)

    # --- reading ---------------------------------------------------------------------------

    def open_file(self, snapshot: SnapshotInfo) -> SnapshotFile:
        """Opens the file of one. Damage is noted, and raised."""
        held = self._find(snapshot)
        if held is None:
            raise SnapshotError(
                f"{snapshot.path} is not there any more: newer snapshots took its place, or it was "
                "found damaged. Ask latest() again",
                path=snapshot.path,
                log_id=snapshot.log_id,
            )
        with self._noting(held):
            return SnapshotFile(self.directory, held.name, held.log_id)

    def note_damage(self, snapshot: SnapshotInfo, error: CorruptionError) -> None:
        """From now on it is none, and the one before it counts."""
        held = self._find(snapshot)
        if held is not None:  # else it was noted, or replaced
            self._skip(held, error)

    def _find(self, snapshot: SnapshotInfo) -> Held | None:
        return next((held for held in self.held if held.info == snapshot), None)

    @contextlib.contextmanager
    def _noting(self, held: Held) -> Iterator[None]:
        try:
            yield
        except (CorruptionError, IrregularFileError) as error:
            self._skip(held, error)
            raise

    def _skip(self, held: Held, error: CorruptionError | IrregularFileError) -> None:
        path = held.info.path
        if isinstance(error, CorruptionError):
            message = f"{error}; it is skipped for the snapshot before it"
            finding = Finding(FindingKind.DAMAGE, path, message, error.offset)
            self._damaged[held.name] = held
        else:
            message = f"{path} is no regular file, and so no snapshot"
            finding = Finding(FindingKind.IRREGULAR, path, message)
        self._forget(held.name)
        self.findings.append(finding)
        _said.snapshot_damaged(message)

    def _forget(self, name: str) -> None:
        self.held = tuple([held for held in self.held if held.name != name])

    # --- publishing ------------------------------------------------------------------------

    def check_order(self, log_id: LogId) -> None:
        """Raises SnapshotOrderError where the newest one goes further."""
        if not self.held:
            return
        newest = self.held[-1].log_id
        if log_id < newest or log_id.index < newest.index:
            raise SnapshotOrderError(
                f"{self.path}: a snapshot at {log_id} was refused, since the newest one is at "
                f"{newest}: snapshots never go back. Nothing was published. Take that one, or make "
                "a newer one",
                path=self.path,
                log_id=log_id,
                newest=newest,
            )

    def publish(self, unfinished: Unfinished) -> SnapshotInfo:
        """Gives a durable file its name, durably. Where that fails it is taken back."""
        directory, log_id = self.directory, unfinished.head.log_id
        self.check_order(log_id)
        number = self._next_number
        self._next_number += 1
        name = snapshot_name(number, log_id)
        info = SnapshotInfo(log_id, unfinished.size, directory.path_of(name))
        try:
            directory.check(())
            directory.set_aside(unfinished.name, name)
            directory.sync()
            self.checked.add(name)
            self.held = (*self.held, Held(log_id, number, name, info))
        except BaseException:
            self._take_back(unfinished, name)
            raise
        _said.snapshot_published(info.path, log_id, info.size_bytes)
        self._remove_older()
        return info

    def _take_back(self, unfinished: Unfinished, name: str) -> None:
        """What cannot be removed is whole, and counts once the directory is opened again. The
        temporary name is left to who drops the file.
        """
        self._forget(name)
        with contextlib.suppress(OSError):
            if self.directory.identify(name) == unfinished.file.identity:
                self.remove(name)

    def _remove_older(self) -> None:
        """Those beyond what is to be kept, and damaged ones before all of these."""
        kept = self.held[-self._keep :]
        stay = [held for held in self.held[: -self._keep] if not self.remove(held.name)]
        self.held = (*stay, *kept)
        self.checked &= {held.name for held in self.held}
        for held in list(self._damaged.values()):
            if held < kept[0] and self.remove(held.name):
                del self._damaged[held.name]

    def remove(self, name: str) -> bool:
        """False where it could not be removed: then it stays until the next time."""
        try:
            self.directory.unlink(name)
        except OSError as error:
            _said.snapshot_stays(self.directory.path_of(name), error)
            return False
        return True
