"""How a log is followed: batch by batch, without an end, woken by the commits.

For both faces, as ``_reading``: each batch is a read, a generator that runs on the owner's side.
"""

from __future__ import annotations

from ._core import Core
from ._reading import Reading, check_overtaken, read, read_some
from ._types import Entry, LogId
from .errors import LogTruncatedError

__all__ = ["Follower"]


class Follower:
    """Where one who follows a log has come to."""

    __slots__ = ("_core", "_epoch", "_given", "_is_durable", "_position")

    def __init__(self, core: Core, start: int, *, is_durable: bool) -> None:
        self._core = core
        self._position = start
        self._is_durable = is_durable
        #: the last entry that was given, and the log's epoch when it was known to be there
        self._given: LogId | None = None
        self._epoch = core.log.epoch

    def next_batch(self) -> Reading[list[Entry]]:
        """The next entries, one at least; waits for them."""
        core, log = self._core, self._core.log
        while True:
            core.check_open()
            frontier = log.last_purged_log_id
            if frontier is not None:
                check_overtaken(self._position, frontier.index + 1, None)
            if self._epoch != log.epoch:
                yield from self._check_given()
                continue
            end = log.durable_next_index if self._is_durable else log.next_index or 0
            if self._position < end:
                entries = yield from read_some(core, self._position, end)
                if self._takes(entries):
                    return entries
                continue
            core.committer.check_writable()  # nothing comes any more where it is poisoned
            yield core.committer.next_change(is_durable=self._is_durable)

    def _takes(self, entries: list[Entry]) -> bool:
        """Whether they follow what was given; else the log has changed meanwhile."""
        if not entries or self._epoch != self._core.log.epoch:
            return False
        if self._given is not None and entries[0].index != self._position:
            return False
        self._given = entries[-1].log_id
        self._position = self._given.index + 1
        return True

    def _check_given(self) -> Reading[None]:
        """After a truncation: whether what was given last is still there."""
        log, given = self._core.log, self._given
        epoch = log.epoch
        if given is not None and given.index >= log.first_index:
            found = yield from read(self._core, given.index, given.index + 1, None)
            if log.epoch != epoch:
                return  # once more
            if given.index >= log.first_index and (not found or found[0].log_id != given):
                there = found[0].log_id if found else None
                raise LogTruncatedError(
                    f"{given} was given to one who follows {self._core.path}, and was truncated "
                    "then: take back what was made of it, and begin anew behind what is committed",
                    log_id=given,
                    found=there,
                )
        self._epoch = epoch
