"""The options that a log is opened with, once for every face; and opening it with them.

``open`` of both faces and of the adapter take names and defaults from :class:`Opening`, and hand
one on. What blocks says so, and is for a thread that may wait for the disk; the rest is for the
owner. It must not know how the owner waits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _operations, _said
from ._arguments import check_callable, check_number, check_seconds, check_truth, parse_truth
from ._commit import Committer
from ._core import Core, open_cores
from ._environment import REAL, Environment, Loop
from ._format import DATA_START, LENGTH_MASK, RECORD_OVERHEAD_BYTES, U64_MAX
from ._log import Log
from ._plans import drive
from ._reads import Options
from ._recovery import recover
from ._threads import Worker
from ._types import LogSync
from ._watchdog import Watch
from .errors import given

__all__ = ["PATIENCE_SECONDS", "Opening", "close_unused"]

logger = logging.getLogger("hqlwal_raft")

_SEGMENT_SIZE_MINIMUM = 8192
_SIZE_MAXIMUM = (1 << 32) - 1
_MAX_ENTRY_SIZE_MAXIMUM = LENGTH_MASK - DATA_START - RECORD_OVERHEAD_BYTES
_CHECK_VARIABLE = "HQL_CHECK_WAL_INTEGRITY"


#: how long who was cancelled waits for a disk: longer, and it is taken for one that never answers
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The options, with their defaults; :meth:`RaftLogStorage.open` says what each means.

    Raises ValueError or TypeError where one makes no sense, before anything is touched.
    """

    sync: LogSync | str = LogSync.IMMEDIATE
    segment_size: int = 8 << 20
    max_entry_size: int = 64 << 20
    auto_heal: bool = False
    check_integrity: bool | None = None
    check_raft: bool = True
    max_unsynced_bytes: int = 64 << 20
    cache_bytes: int = 4 << 20
    fill_segments: bool = True
    stall_seconds: float = 1.0
    on_stall: Callable[[float], object] | None = None
    environment: Environment | None = None

    def __post_init__(self) -> None:
        REAL.check_system()
        LogSync.parse(self.sync)
        check_number(
            "segment_size", self.segment_size, _SEGMENT_SIZE_MINIMUM, _SIZE_MAXIMUM, " bytes"
        )
        check_number("max_entry_size", self.max_entry_size, 0, _MAX_ENTRY_SIZE_MAXIMUM, " bytes")
        check_number("max_unsynced_bytes", self.max_unsynced_bytes, 1, U64_MAX, " bytes")
        check_number("cache_bytes", self.cache_bytes, 0, U64_MAX, " bytes")
        check_truth("auto_heal", self.auto_heal)
        check_truth("fill_segments", self.fill_segments)
        if self.check_integrity is not None:
            check_truth("check_integrity", self.check_integrity)
        check_seconds("stall_seconds", self.stall_seconds)
        check_callable("on_stall", self.on_stall)
        check_truth("check_raft", self.check_raft)
        if self.environment is not None and not isinstance(self.environment, Environment):
            raise TypeError(
                f"environment is {given(self.environment)}: give a hqlwal_raft.testing environment"
            )

    @property
    def policy(self) -> LogSync:
        return LogSync.parse(self.sync)

    @property
    def ground(self) -> Environment:
        """The environment, the real one where none was given."""
        return self.environment or REAL

    def watch(self, path: str, report: Callable[[Callable[[], Any]], Any]) -> Watch:
        """Begins to look for stalls; ``report`` has a callable called where users' code runs."""
        on_stall = self.on_stall

        def stalled(seconds: float) -> None:
            if on_stall is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    report(partial(_call_on_stall, path, on_stall, seconds))

        environment = self.ground
        watch = Watch(path, self.stall_seconds, environment.monotonic, stalled)
        environment.look_after(watch)
        return watch

    def open_log(self, path: str, watch: Watch | None = None) -> Log:
        """Opens the log, and takes the directory's lock; blocks."""
        if watch is None:
            return self._open_log(path)
        watch.lane = watch.now("open")
        try:
            return self._open_log(path)
        finally:
            watch.lane = None

    def _open_log(self, path: str) -> Log:
        options = Options(
            self.segment_size,
            self.max_entry_size,
            self.cache_bytes,
            is_buffered=self.policy != LogSync.IMMEDIATE,
            checks_raft=self.check_raft,
            fills_ahead=self.fill_segments,
            most_open_files=self.ground.descriptor_limit() // 2,
        )
        environment = self.ground
        is_checking = self.check_integrity
        if is_checking is None:
            text = environment.getenv(_CHECK_VARIABLE)
            is_checking = text is not None and parse_truth(_CHECK_VARIABLE, text)
        recovered = recover(
            environment,
            path,
            is_healing=self.auto_heal,
            is_checking_everything=is_checking,
        )
        try:
            log = Log(
                recovered.directory,
                options,
                recovered.meta,
                list(recovered.segments),
                list(recovered.prepared),
                recovered.last_log_id,
            )
            _said.opened(
                path,
                recovered.directory.lock.before,
                recovered.findings,
                entries=log.count,
                segments=len(log.segments),
                last_log_id=log.last_log_id,
            )
        except BaseException:
            recovered.directory.close()
            raise
        return log

    def start(self, path: str, log: Log, disk: Worker, loop: Loop, watch: Watch) -> Core:
        """Starts the committer of an open log."""
        committer = Committer(log, self.policy, self.max_unsynced_bytes, loop, disk, watch)
        core = Core(path, log, committer, loop)
        open_cores.add(core)
        return core


def _call_on_stall(path: str, on_stall: Callable[[float], object], seconds: float) -> None:
    try:
        on_stall(seconds)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        logger.exception("%s: on_stall raised", path)


def close_unused(log: Log) -> None:
    """Closes a log that nobody has used yet; blocks."""
    try:
        drive(_operations.close(log), log.directory)
        log.directory.say_clean()
    finally:
        log.release()
        log.directory.close()
