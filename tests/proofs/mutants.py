"""The engine with one fault each, to show that the loops tell.

A mutant replaces a function of the engine while it is applied: the engine itself has no switches.
Each breaks one rule of ``docs/design/format.md``. It knows the engine's inside, as ``core`` does:
a new engine changes this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hqlwal_raft import LogId, _format, _log, _scan, _segment
from hqlwal_raft._files import File, Files
from hqlwal_raft._log import Goal, Log, Work
from hqlwal_raft._reads import Reads

__all__ = ["CHECKSUMS", "CRASHES", "Mutant"]

_publish = Files.publish
_purge = Log.purge
_unlink = Files.unlink


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    #: object, attribute, replacement
    patches: tuple[tuple[Any, str, Any], ...]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for target, name, replacement in self.patches:
                stack.enter_context(mock.patch.object(target, name, replacement))
            yield


def _mark_ahead(goals: Sequence[Goal]) -> None:
    for segment, end, next_id, _ in goals:
        assert segment.file is not None
        segment.write_mark(next_id, end, is_sealed=False)
        segment.file.sync()


def _seal_too_early(goals: Sequence[Goal]) -> None:
    # with the records, not behind them
    for segment, end, next_id, is_followed in goals:
        assert segment.file is not None
        if is_followed:
            segment.write_mark(next_id, end, is_sealed=True)
        segment.file.sync()


def _without_the_sync_of_names(self: Files, path: str, size: int, head: bytes) -> File:
    # only where the name was used before
    used: set[str] = vars(self.environment).setdefault("used_names", set())
    if path not in used:
        return _publish(self, path, size, head)
    with mock.patch.object(Files, "sync_directory", lambda *_: None):
        return _publish(self, path, size, head)


def _unlink_and_remember(self: Files, path: str) -> None:
    vars(self.environment).setdefault("used_names", set()).add(path)
    _unlink(self, path)


def _zero_nothing(_file: File, _start: int, _stop: int) -> bool:
    return False


def _unlink_before_the_frontier(self: Log, log_id: LogId) -> Work[Callable[[], None]]:
    purging = _purge(self, log_id)
    try:
        save = next(purging)
    except StopIteration as end:
        nothing: Callable[[], None] = end.value
        return nothing
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
        done: Callable[[], None] = end.value
        return done
    raise AssertionError("a purge has one step")


def _forget_nothing(_self: Reads, _index: int) -> None:
    pass


def _no_checksum(_data: object, _value: int = 0) -> int:
    return 0


#: what the loop over crashes must find
CRASHES = (
    Mutant("the mark is written ahead", ((_log, "_sync_on_disk", _mark_ahead),)),
    Mutant("a segment is sealed too early", ((_log, "_sync_on_disk", _seal_too_early),)),
    Mutant(
        "a name is used again without a sync of the directory",
        ((Files, "publish", _without_the_sync_of_names), (Files, "unlink", _unlink_and_remember)),
    ),
    Mutant("what is cut off is not zeroed", ((_log, "zero_on_disk", _zero_nothing),)),
    Mutant(
        "the frontier is written after the files are unlinked",
        ((Log, "purge", _unlink_before_the_frontier),),
    ),
    Mutant(
        "the outcome of a truncation is applied by half",
        ((Reads, "forget_entries", _forget_nothing),),
    ),
)

#: what the loop over bits must find
CHECKSUMS = (
    Mutant("headers and slots have no checksum", ((_format, "crc32c", _no_checksum),)),
    Mutant(
        "records have no checksum",
        ((_segment, "crc32c", _no_checksum), (_scan, "crc32c", _no_checksum)),
    ),
)
