"""The write rules of docs/design/format.md, each switched off, to show that the images tell.

A mutation meddles with the system's calls, with the plans before they are carried out, or
replaces a function: the engine itself has no switches. No rule: what recovery must do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from hqlwal_raft import _appending, _log, _look, _operations, _plans, _records, _recovery
from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import (
    META_NAME,
    SETTLED,
    SLOT_BYTES,
    SegmentHeader,
    segment_name,
    segment_number,
    unpack_slot,
)
from hqlwal_raft._log import Log
from hqlwal_raft._plans import (
    Outcome,
    Plan,
    Step,
    Sync,
    SyncDirectory,
    Unlink,
    Write,
    Zero,
    carry_out,
)
from hqlwal_raft._segment import Segment
from hqlwal_raft._unsynced import Unsynced
from hqlwal_raft.testing import PassingEnvironment

__all__ = ["MUTATIONS", "Mutation"]

Meddle = Callable[[Plan], Plan]

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
    def __init__(self, environment: Environment | None = None) -> None:
        super().__init__(environment)
        self._made: set[str] = set()

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        if path.endswith(".tmp"):
            path = path.removesuffix(".tmp")
            self._made.add(path)
        return super().open(path, flags, mode, dir_fd=dir_fd)

    def stat(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        if path in self._made:  # the engine looks whether the name is free
            self._made.discard(path)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return super().stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def rename(self, source: str, target: str, **directories: int | None) -> None:
        if source.removesuffix(".tmp") != target:
            super().rename(source, target, **directories)


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

    def pwritev(self, descriptor: int, buffers: Any, offset: int, /) -> int:
        self._written.add(descriptor)
        return super().pwritev(descriptor, buffers, offset)

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


# --- meddling with plans -----------------------------------------------------------------


class _Nothing:
    """In the place of a step: the others keep their numbers."""

    def carry_out(self, directory: Directory) -> bool:
        return True


_NOTHING: Any = _Nothing()

Chooses = Callable[[list[Step], int], bool]


def _without(name: str, chooses: Chooses) -> Meddle:
    """Leaves steps out of the plans of this name."""

    def meddle(plan: Plan) -> Plan:
        steps = list(plan.steps)
        left = [_NOTHING if chooses(steps, place) else step for place, step in enumerate(steps)]
        return replace(plan, steps=tuple(left))

    return _of(name, meddle)


def _of(name: str, meddle: Meddle) -> Meddle:
    return lambda plan: meddle(plan) if plan.name == name else plan


def _is_sync(steps: list[Step], place: int) -> bool:
    step = steps[place]
    return isinstance(step, Sync) and step.file.name != META_NAME


def _is_early_sync(steps: list[Step], place: int) -> bool:
    return _is_sync(steps, place) and any(_is_sync(steps, p) for p in range(place + 1, len(steps)))


def _is_zero(steps: list[Step], place: int) -> bool:
    return isinstance(steps[place], Zero)


def _is_sync_before_zero(steps: list[Step], place: int) -> bool:
    return isinstance(steps[place], Sync) and any(isinstance(s, Zero) for s in steps[place:])


def _is_header(steps: list[Step], place: int) -> bool:
    step = steps[place]
    is_segments = isinstance(step, Write) and segment_number(step.file.name) is not None
    return is_segments and step.offset == 0  # type: ignore[union-attr]


def _is_directory_sync(steps: list[Step], place: int) -> bool:
    return isinstance(steps[place], SyncDirectory)


def _is_sync_of_unlinks(steps: list[Step], place: int) -> bool:
    return _is_directory_sync(steps, place) and isinstance(steps[place - 1], Unlink)


def _is_meta(steps: list[Step], place: int) -> bool:
    step = steps[place]
    return isinstance(step, Write | Sync) and step.file.name == META_NAME


def _is_slot(steps: list[Step], place: int) -> bool:
    step = steps[place]
    return _is_meta(steps, place) and isinstance(step, Write) and step.offset < 2 * SLOT_BYTES


def _is_first_meta_sync(steps: list[Step], place: int) -> bool:
    return isinstance(steps[place], Sync) and _is_meta(steps, place) and place == 1


def _forget_the_cut(plan: Plan) -> Plan:
    steps: list[Step] = []
    for step in plan.steps:
        if isinstance(step, Write) and isinstance(
            header := SegmentHeader.unpack(step.parts[0]), SegmentHeader
        ):
            step = replace(step, parts=(replace(header, cut=0).pack(),))  # noqa: PLW2901
        steps.append(step)
    return replace(plan, steps=tuple(steps))


def _is_unlink(step: Step) -> bool:
    return isinstance(step, Unlink)


def _unlink_oldest_first(plan: Plan) -> Plan:
    unlinks = iter([step for step in plan.steps if _is_unlink(step)][::-1])
    return replace(
        plan, steps=tuple(next(unlinks) if _is_unlink(step) else step for step in plan.steps)
    )


def _unlink_at_once(plan: Plan) -> Plan:
    return replace(plan, steps=tuple(sorted(plan.steps, key=lambda s: not _is_unlink(s))))


def _unlink_before_the_frontier(plan: Plan) -> Plan:
    slot = plan.steps[0]
    assert isinstance(slot, Write)
    found = unpack_slot(slot.parts[0])
    assert isinstance(found, tuple)
    first = found[1].first_segment
    unlinks = [Unlink(segment_name(number)) for number in range(max(first - 9, 1), first)]
    return replace(plan, steps=(*unlinks, *plan.steps))


def _meta_last(plan: Plan) -> Plan:
    steps = list(plan.steps)
    early = [step for place, step in enumerate(steps) if not _is_meta(steps, place)]
    late = [step for place, step in enumerate(steps) if _is_meta(steps, place)]
    return replace(plan, steps=(*early, *late))


# --- replaced functions ------------------------------------------------------------------

_plan_goal = Unsynced.plan_goal
_encode, _encode_one = _records.encode, _records.encode_one
_look_behind = _look._look_behind


def _mark_ahead(self: Unsynced, segment: Segment, *arguments: Any) -> None:
    durable = segment.durable_end, segment.durable_next_id
    segment.durable_end, segment.durable_next_id = segment.end, segment.next_id
    segment.mark_seconds = -1.0
    try:
        _plan_goal(self, segment, *arguments)
    finally:
        segment.durable_end, segment.durable_next_id = durable


def _encode_settled(*arguments: Any, **named: Any) -> Any:
    return _encode(*arguments, **(named | {"is_settled": True}))


def _encode_one_settled(index: int, marked: int, *arguments: Any) -> Any:
    return _encode_one(index, marked | SETTLED, *arguments)


def _is_there(log: Log, segment: Segment) -> bool:
    """Its own records are durable, and the follower exists."""
    return segment is not log.segments[-1] and segment.durable_next_id == segment.next_id


def _look_behind_the_cut(file: Any, segment: Any, header: SegmentHeader, *rest: Any) -> None:
    _look_behind(file, segment, replace(header, cut=0), *rest)


# --- the table ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule switched off."""

    rule: int | None
    what: str
    wrap: Callable[[Environment], Environment] | None = None
    meddle: Meddle | None = None
    #: object, attribute, replacement
    patches: tuple[tuple[Any, str, Any], ...] = ()
    #: of all lives, how many meet a failing sync
    failing_share: float = 0.0
    #: of a history that finds it, where the first does not: a search begins there
    seed: int = 0

    @property
    def name(self) -> str:
        rule = f"rule {self.rule}" if self.rule is not None else "recovery"
        return f"{rule}: {self.what}"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        patches = list(self.patches)
        if self.meddle is not None:
            patches += [
                (_log, "carry_out", self._carry_out),
                (_plans, "carry_out", self._carry_out),
                (_recovery, "carry_out", self._carry_out),
            ]
        with contextlib.ExitStack() as stack:
            for target, name, replacement in patches:
                stack.enter_context(mock.patch.object(target, name, replacement))
            yield

    def _carry_out(self, directory: Directory, plan: Plan) -> Outcome:
        assert self.meddle is not None
        return carry_out(directory, self.meddle(plan))


MUTATIONS = (
    Mutation(1, "a segment is renamed before it is synced", _UnsyncedBeforeRename),
    Mutation(1, "a segment is made under its final name", _NoTemporaryName),
    Mutation(
        1,
        "a segment is used before its name is synced",
        meddle=_without("prepare", _is_directory_sync),
    ),
    Mutation(2, "an append is acknowledged before its sync", meddle=_without("commit", _is_sync)),
    Mutation(3, "only the newest segment is synced", meddle=_without("commit", _is_early_sync)),
    Mutation(
        3,
        "sealed before its follower is durable",
        patches=((_operations, "_is_followed", _is_there),),
        seed=5,
    ),
    Mutation(3, "meta.hql is not durable before the first segment", _UnsyncedMeta),
    Mutation(4, "the cut-off bytes are not zeroed", meddle=_without("truncate", _is_zero)),
    Mutation(4, "mark and cut share one sync", meddle=_without("truncate", _is_sync_before_zero)),
    Mutation(4, "the cut is not noted", meddle=_of("truncate", _forget_the_cut), seed=13),
    Mutation(4, "the mark is not lowered", meddle=_without("truncate", _is_header)),
    Mutation(4, "the oldest is unlinked first", meddle=_of("truncate", _unlink_oldest_first)),
    Mutation(4, "unlinked before unsealed", meddle=_of("truncate", _unlink_at_once), seed=1),
    Mutation(4, "what was unlinked may come back", meddle=_without("truncate", _is_directory_sync)),
    Mutation(4, "emptied before meta.hql says so", meddle=_of("truncate", _meta_last), seed=1),
    Mutation(
        5,
        "unlinked before the frontier is durable",
        meddle=_of("purge", _unlink_before_the_frontier),
        seed=3,
    ),
    Mutation(
        5, "the first segment is not named", meddle=_without("name the first segment", _is_meta)
    ),
    Mutation(7, "the directory is never synced", _NoDirectorySync),
    Mutation(10, "a failed sync is tried again", _Retrying),
    Mutation(
        10,
        "a reopened store believes what a failed sync left",
        _NoReload,
        failing_share=0.5,
        seed=8,
    ),
    Mutation(None, "the mark is written ahead", patches=((Unsynced, "plan_goal", _mark_ahead),)),
    Mutation(
        None,
        "every record counts as settled",
        patches=(
            (_appending, "encode", _encode_settled),
            (_appending, "encode_one", _encode_one_settled),
        ),
        seed=1,
    ),
    Mutation(
        None,
        "what lies behind a cut counts",
        patches=((_look, "_look_behind", _look_behind_the_cut),),
        seed=13,
    ),
    Mutation(None, "what recovery only read is not synced", _ReadIsNotSynced, seed=10),
    Mutation(None, "the torn tail is not zeroed", meddle=_without("recover", _is_zero)),
    Mutation(None, "a lagging slot is left", meddle=_without("recover", _is_slot)),
    Mutation(
        None, "the oldest is dropped first", meddle=_of("recover", _unlink_oldest_first), seed=36
    ),
    Mutation(None, "headers stay as they were", meddle=_without("recover", _is_header)),
    Mutation(None, "names are not synced", meddle=_without("recover", _is_directory_sync)),
    Mutation(
        None,
        "one slot is written before the other is synced",
        meddle=_without("save vote", _is_first_meta_sync),
    ),
)
