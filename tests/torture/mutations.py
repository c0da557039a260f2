"""The write rules of docs/design/format.md, each switched off, to show that the images tell.

A mutation meddles with the calls the engine makes, or replaces one of its functions: the engine
itself has no switches. Rule 0 stands for what recovery must do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

from hqlwal_raft import LogId, _log, _recovery
from hqlwal_raft._environment import Environment
from hqlwal_raft._files import File
from hqlwal_raft._log import Log, Work
from hqlwal_raft._segment import Segment
from hqlwal_raft.testing import PassingEnvironment

__all__ = ["MUTATIONS", "Mutation"]


# --- meddling with calls -----------------------------------------------------------------


class _UnsyncedBeforeRename(PassingEnvironment):
    def fdatasync(self, descriptor: int, /) -> None:
        if not self.path_of(descriptor).endswith(".tmp"):
            super().fdatasync(descriptor)


class _UnsyncedMeta(PassingEnvironment):
    def fdatasync(self, descriptor: int, /) -> None:
        if not self.path_of(descriptor).endswith("meta.hql.tmp"):
            super().fdatasync(descriptor)


class _NoTemporaryName(PassingEnvironment):
    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        return super().open(path.removesuffix(".tmp"), flags, mode, dir_fd=dir_fd)

    def rename(self, source: str, target: str, **directories: int | None) -> None:
        if source.removesuffix(".tmp") != target:
            super().rename(source, target, **directories)


class _AcknowledgedFirst(PassingEnvironment):
    def fdatasync(self, descriptor: int, /) -> None:
        if not self.path_of(descriptor).endswith(".wal"):
            super().fdatasync(descriptor)


class _NoDirectorySync(PassingEnvironment):
    def fsync(self, descriptor: int, /) -> None:
        pass


class _NoReload(PassingEnvironment):
    def posix_fadvise(self, descriptor: int, offset: int, length: int, advice: int, /) -> None:
        pass


class _ReadIsNotSynced(PassingEnvironment):
    def __init__(self, environment: Environment | None = None) -> None:
        super().__init__(environment)
        self._written: set[int] = set()

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        descriptor = super().open(path, flags, mode, dir_fd=dir_fd)
        self._written.discard(descriptor)
        return descriptor

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int, /) -> int:
        self._written.add(descriptor)
        return super().pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int, /) -> None:
        if descriptor in self._written:
            super().fdatasync(descriptor)


class _Retrying(PassingEnvironment):
    """Every fourth sync of a segment fails, and is simply tried again."""

    count = 0

    def fdatasync(self, descriptor: int, /) -> None:
        self.count += 1
        if self.count % 4 == 0 and self.path_of(descriptor).endswith(".wal"):
            self.forget_sync(descriptor)
        super().fdatasync(descriptor)


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


class _SyncsOnce:
    """A file, but for its first sync, which is left out."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._is_first = True

    def sync(self) -> None:
        if self._is_first:
            self._is_first = False
        else:
            self._file.sync()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _cut_in_one_sync(
    self: Log, kept: Segment, removed: list[Segment], old_end: int, *, was_sealed: bool
) -> None:
    assert kept.file is not None
    file = kept.file
    kept.file = cast(File, _SyncsOnce(file))
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
    wrap: Callable[[Environment], Environment] | None = None
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
