"""The write rules of docs/design/format.md, each switched off, to show that the images tell.

A mutation meddles with the calls the engine makes, or replaces one of its functions: the engine
itself has no switches. Rule 0 stands for what recovery must do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hqlwal_raft import LogId, _log, _recovery
from hqlwal_raft._files import File, Files, Lock
from hqlwal_raft._log import Log, Work
from hqlwal_raft._segment import Segment
from hqlwal_raft.testing import ForgetfulFile

__all__ = ["MUTATIONS", "Mutation"]


# --- meddling with calls -----------------------------------------------------------------


class Meddler(Files):
    """Passes every call on; subclasses leave some out."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def make_directory(self, path: str) -> None:
        self.files.make_directory(path)

    def is_directory(self, path: str) -> bool:
        return self.files.is_directory(path)

    def names(self, path: str) -> list[str]:
        return self.files.names(path)

    def open(self, path: str, *, writable: bool = False) -> File:
        return _Meddled(self, self.files.open(path, writable=writable))

    def create(self, path: str, size: int) -> File:
        return _Meddled(self, self.files.create(path, size))

    def rename(self, source: str, target: str) -> None:
        self.files.rename(source, target)

    def unlink(self, path: str) -> None:
        self.files.unlink(path)

    def sync_directory(self, path: str) -> None:
        self.files.sync_directory(path)

    def lock(self, directory: str) -> Lock:
        return self.files.lock(directory)

    def sync_file(self, file: File, *, is_written: bool) -> None:
        file.sync()


class _Meddled(File):
    def __init__(self, files: Meddler, file: File) -> None:
        self._files = files
        self._file = file
        self.path = file.path
        self.size = file.size
        self.is_written = False

    def write(self, offset: int, data: bytes) -> None:
        self.is_written = True
        self._file.write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._file.read_cached(offset, length)

    def sync(self) -> None:
        self._files.sync_file(self._file, is_written=self.is_written)

    def is_removed(self) -> bool:
        return self._file.is_removed()

    def reload(self) -> None:
        self._file.reload()

    def freeze(self) -> None:
        self._file.freeze()

    def close(self) -> None:
        self._file.close()


class _UnsyncedBeforeRename(Meddler):
    def sync_file(self, file: File, *, is_written: bool) -> None:
        if not file.path.endswith(".tmp"):
            file.sync()


class _UnsyncedMeta(Meddler):
    def sync_file(self, file: File, *, is_written: bool) -> None:
        if not file.path.endswith("meta.hql.tmp"):
            file.sync()


class _NoTemporaryName(Meddler):
    def publish(self, path: str, size: int, head: bytes) -> File:
        file = self.create(path, size)
        file.write(0, head)
        file.sync()
        self.sync_directory(path.rpartition("/")[0])
        return file


class _AcknowledgedFirst(Meddler):
    def sync_file(self, file: File, *, is_written: bool) -> None:
        if not file.path.endswith(".wal"):
            file.sync()


class _NoDirectorySync(Meddler):
    def sync_directory(self, path: str) -> None:
        pass


class _NoReload(Meddler):
    def open(self, path: str, *, writable: bool = False) -> File:
        return _NotReloaded(self, self.files.open(path, writable=writable))


class _NotReloaded(_Meddled):
    def reload(self) -> None:
        pass


class _ReadIsNotSynced(Meddler):
    def sync_file(self, file: File, *, is_written: bool) -> None:
        if is_written:
            file.sync()


def bottom(file: File) -> ForgetfulFile:
    """The file of the forgetful disk below all wrappers."""
    while not isinstance(file, ForgetfulFile):
        file = file._file  # type: ignore[attr-defined]
    return file


class _Retrying(Meddler):
    """Every fourth sync of a segment fails, and is simply tried again."""

    count = 0

    def sync_file(self, file: File, *, is_written: bool) -> None:
        self.count += 1
        if self.count % 4 == 0 and file.path.endswith(".wal"):
            with contextlib.suppress(OSError):
                bottom(file).fail_sync()
        file.sync()


# --- replaced functions ------------------------------------------------------------------

_sync_on_disk = _log._sync_on_disk
_cut_on_disk = Log._cut_on_disk
_purge = Log.purge
_usable_tail = Log._usable_tail


def _sync_newest_only(goals: Sequence[_log.Goal]) -> None:
    _sync_on_disk(goals[-1:])


def _seal_with_the_records(goals: Sequence[_log.Goal]) -> None:
    for segment, end, next_id, is_followed in goals:
        assert segment.file is not None
        if is_followed:
            segment.write_mark(next_id, end, is_sealed=True)
        segment.file.sync()


def _mark_ahead(goals: Sequence[_log.Goal]) -> None:
    for segment, end, next_id, _ in goals:
        assert segment.file is not None
        segment.write_mark(next_id, end, is_sealed=False)
        segment.file.sync()


def _zero_nothing(_file: File, _start: int, _stop: int) -> bool:
    return False


class _SyncsOnce(_Meddled):
    """Leaves out the first sync."""

    def __init__(self, file: File) -> None:
        super().__init__(Meddler(_NO_FILES), file)
        self._is_first = True

    def sync(self) -> None:
        if self._is_first:
            self._is_first = False
        else:
            self._file.sync()


_NO_FILES: Any = None


def _cut_in_one_sync(
    self: Log, kept: Segment, removed: list[Segment], old_end: int, *, was_sealed: bool
) -> None:
    assert kept.file is not None
    file = kept.file
    kept.file = _SyncsOnce(file)
    try:
        _cut_on_disk(self, kept, removed, old_end, was_sealed=was_sealed)
    finally:
        kept.file = file


def _unlink_oldest_first(
    self: Log, kept: Segment, removed: list[Segment], old_end: int, *, was_sealed: bool
) -> None:
    _cut_on_disk(self, kept, removed[::-1], old_end, was_sealed=was_sealed)


def _unlink_before_unsealing(
    self: Log, kept: Segment, removed: list[Segment], old_end: int, *, was_sealed: bool
) -> None:
    for segment in reversed(removed):
        self._files.unlink(segment.path)
    _cut_on_disk(self, kept, removed, old_end, was_sealed=was_sealed)


def _unlink_before_the_frontier(self: Log, log_id: LogId) -> Work[Callable[[], None]]:
    purging = _purge(self, log_id)
    try:
        save = next(purging)
    except StopIteration as end:
        done: Callable[[], None] = end.value
        return done
    first = save.args[0].first_segment  # type: ignore[attr-defined]

    def unlink_then_save() -> Any:
        for segment in self.segments:
            if segment.number < first:
                self._files.unlink(segment.path)
        return save()

    result = yield unlink_then_save
    try:
        purging.send(result)
    except StopIteration as end:
        done = end.value
        return done
    raise AssertionError("a purge has one step")


def _any_tail_will_do(self: Log, index: int) -> Segment | None:
    tail = self.segments[-1] if self.segments else None
    if tail is None or tail.is_sealed:
        return None
    tail.next_id = index
    return tail


# --- the table ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule switched off."""

    rule: int
    what: str
    wrap: Callable[[Files], Files] | None = None
    #: object, attribute, replacement
    patch: tuple[Any, str, Any] | None = None
    #: of all lives, how many meet a failing sync
    failing_share: float = 0.0

    @property
    def name(self) -> str:
        rule = f"rule {self.rule}" if self.rule else "recovery"
        return f"{rule}: {self.what}"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        if self.patch is None:
            yield
        else:
            target, name, replacement = self.patch
            with mock.patch.object(target, name, replacement):
                yield


MUTATIONS = (
    Mutation(1, "a segment is renamed before it is synced", _UnsyncedBeforeRename),
    Mutation(1, "a segment is made under its final name", _NoTemporaryName),
    Mutation(2, "an append is acknowledged before its sync", _AcknowledgedFirst),
    Mutation(
        3, "only the newest segment is synced", patch=(_log, "_sync_on_disk", _sync_newest_only)
    ),
    Mutation(
        3, "the seal rides with the records", patch=(_log, "_sync_on_disk", _seal_with_the_records)
    ),
    Mutation(3, "meta.hql is not durable before the first segment", _UnsyncedMeta),
    Mutation(4, "the cut-off bytes are not zeroed", patch=(_log, "zero_on_disk", _zero_nothing)),
    Mutation(4, "mark and cut share one sync", patch=(Log, "_cut_on_disk", _cut_in_one_sync)),
    Mutation(4, "the oldest is unlinked first", patch=(Log, "_cut_on_disk", _unlink_oldest_first)),
    Mutation(4, "unlinked before unsealed", patch=(Log, "_cut_on_disk", _unlink_before_unsealing)),
    Mutation(
        5,
        "unlinked before the frontier is durable",
        patch=(Log, "purge", _unlink_before_the_frontier),
    ),
    Mutation(
        6,
        "an emptied log goes on in the old segment",
        patch=(Log, "_usable_tail", _any_tail_will_do),
    ),
    Mutation(7, "the directory is never synced", _NoDirectorySync),
    Mutation(8, "a failed sync is tried again", _Retrying),
    Mutation(8, "a reopened store believes what a failed sync left", _NoReload, None, 0.5),
    Mutation(0, "the mark is written ahead", patch=(_log, "_sync_on_disk", _mark_ahead)),
    Mutation(0, "what recovery only read is not synced", _ReadIsNotSynced),
    Mutation(0, "the torn tail is not zeroed", patch=(_recovery, "zero_on_disk", _zero_nothing)),
)
