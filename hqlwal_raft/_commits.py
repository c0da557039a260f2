"""The commits of a log: how one begins, what its outcome changes, and how everything is taken back
where it was refused; and the committed log id, a hint that the next one saves.

For the owner of the log. Who waits for a commit, and in which thread it is carried out, is no
business of this module.

| a commit failed   | what was accepted                                     | the log   |
|-------------------|-------------------------------------------------------|-----------|
| before its point  | nothing was stored: all of it is taken back           | goes on   |
| behind its point  | nobody knows; so always where appends are buffered    | is poisoned |
"""

from __future__ import annotations

from collections import deque

from ._format import DATA_START
from ._log import Log
from ._places import Places
from ._plans import Outcome, Plan
from ._raft_rules import check_committed
from ._segment import Segment
from ._types import LogId
from ._unsynced import Commit

__all__ = ["begin_commit", "committed", "may_be_committed", "retreat", "save_committed"]


def may_be_committed(log: Log, log_id: LogId | None) -> bool:
    """Raises RaftRuleError where it may not be; False where only the disk knows."""
    if log_id is None or not log.options.checks_raft:
        return True
    held = log.known_log_id(log_id.index)
    if held is None and log.first_index <= log_id.index < (log.next_index or 0):
        return False
    check_committed(log_id, held, log.last_log_id)
    return True


def save_committed(log: Log, log_id: LogId | None) -> None:
    """Has the next commit save the hint; a buffered log puts it into the page cache now."""
    if log.options.is_buffered:
        step = log.meta.committed_step(log_id)
        log.carry_out_here(Plan("save committed", (step,), point=0))
        log.is_changing = True
        log.meta.committed_saved(log_id)
        log.is_changing = False
    else:
        log.unsynced.hint = (log_id,)


def begin_commit(log: Log, now: float) -> Plan | None:
    """The plan that makes durable what was accepted; None where there is nothing to do."""
    if log.is_clean:
        return None
    unsynced = log.unsynced
    steps, goals = unsynced.plan(log.meta, now)
    # What a buffered log syncs was written before: there a failure cannot be refused.
    plan = Plan("commit", tuple(steps), point=-1 if unsynced.is_buffered else 0)
    commit = Commit(
        goals,
        log.last_log_id,
        log.next_index,
        log.appended_entries,
        log.appended_bytes,
        now,
        unsynced.hint,
    )
    log.is_changing = True
    unsynced.in_flight = commit
    unsynced.unwritten, unsynced.dirty, unsynced.hint = [], [], None
    log.is_changing = False
    return plan


def committed(log: Log, outcome: Outcome) -> None:
    """The commit under way was carried out."""
    unsynced = log.unsynced
    commit = unsynced.in_flight
    assert commit is not None
    log.is_changing = True
    for segment, end, next_id, header, place in commit.goals:
        segment.durable_end, segment.durable_next_id = end, next_id
        if header is not None and outcome.values[place]:
            segment.header = header
            segment.mark_seconds = commit.seconds
    if commit.goals:
        log.filling.met_sync()
        log.durable_entries, log.durable_bytes = commit.entries, commit.bytes
        log.last_durable_log_id = commit.last_log_id
        if commit.next_index is not None and commit.next_index > log.written_next:
            log.written_next = commit.next_index
        unsynced.were_identified(commit.seconds)
        if len(commit.goals) > 1:
            log.left = None
        log.recent.trim(log.written_next)
    if commit.hint is not None:
        log.meta.committed_saved(commit.hint[0])
    unsynced.in_flight = None
    log.view = log.durable_view()
    log.is_changing = False


def retreat(log: Log) -> None:
    """The commit under way was refused, before a byte was stored: all that was accepted and is
    not durable goes, what was accepted after it too.
    """
    log.is_changing = True
    log.unsynced.forget()
    back: list[Segment] = []
    while log.segments and log.segments[-1].header.is_unused:
        segment = log.segments.pop()
        log.first_ids.pop()
        segment.first_id = segment.next_id = segment.durable_next_id = 0
        segment.end = segment.durable_end = DATA_START
        segment.places = Places()
        back.insert(0, segment)
    log.prepared[:0] = back
    if log.segments:
        tail = log.segments[-1]
        if tail.places is not None:
            tail.places.cut(tail.durable_next_id - tail.first_id)
        tail.end, tail.next_id = tail.durable_end, tail.durable_next_id
        back.append(tail)
    log.to_seal = deque(s for s in log.to_seal if s not in back)
    log.reads.forget(back)
    log.left = None
    log.appended_entries, log.appended_bytes = log.durable_entries, log.durable_bytes
    last = log.last_durable_log_id
    log.recent.cut(last.index + 1 if last is not None else 0)
    log.set_ends(last)
    log.epoch += 1
    log.is_changing = False
