"""Waiting until one entry is durable, by its log id: what is there to wait for, and why not.

As reads are (``_reading``): for the owner, and for both faces.
"""

from __future__ import annotations

from ._answers import Answer
from ._core import Core
from ._reading import Reading, read
from ._types import LogId
from .errors import LogRangeError, LogTruncatedError

__all__ = ["begin_waiting"]


def begin_waiting(core: Core, log_id: LogId) -> Answer | Reading[None] | None:
    """What to wait for until that very entry is durable; None where it is. As the owner."""
    log, committer, index = core.log, core.committer, log_id.index
    if log.next_index is None or index >= log.next_index:
        committer.commits.check_taken_back(index)
        committer.check_writable()  # poison took it
        if log.was_cut(index):
            raise _truncated(core, log_id, None)
        raise _never_appended(core, index)
    frontier = log.last_purged_log_id
    if index < log.first_index:
        if frontier is None or index > frontier.index:
            if log.was_cut(index):
                raise _truncated(core, log_id, None)
            raise _never_appended(core, index)
        if index == frontier.index and frontier.term != log_id.term:
            raise _truncated(core, log_id, frontier)
        return None  # purged: durable before it was
    known = log.known_log_id(index)
    if known is None:
        return _wait_for_cold(core, log_id)
    if known != log_id:
        raise _truncated(core, log_id, known)
    return committer.durable_answer(index)


def _wait_for_cold(core: Core, log_id: LogId) -> Reading[None]:
    """As ``begin_waiting``, where it must be read which entry the log has there."""
    entries = yield from read(core, log_id.index, log_id.index + 1, None)
    if entries:
        if entries[0].log_id != log_id:
            raise _truncated(core, log_id, entries[0].log_id)
        answer = core.committer.durable_answer(log_id.index)
        if answer is not None:
            yield answer
        return
    waiting = begin_waiting(core, log_id)  # it went meanwhile
    if isinstance(waiting, Answer):
        yield waiting
    elif waiting is not None:
        yield from waiting


def _truncated(core: Core, log_id: LogId, found: LogId | None) -> LogTruncatedError:
    there = f"the log has {found} there" if found is not None else "the log has none there"
    return LogTruncatedError(
        f"{log_id} is not in {core.path} any more: {there}. Whoever waits for it must be told that "
        "it was not committed by this leader",
        log_id=log_id,
        found=found,
    )


def _never_appended(core: Core, index: int) -> LogRangeError:
    state = core.log.state
    return LogRangeError(
        f"no entry {index} was appended to {core.path} since it was opened: it begins with "
        f"{core.log.first_index} and ends with {state.last_log_id}. Append it first",
        index=index,
        first_index=core.log.first_index,
        last_log_id=state.last_log_id,
    )
