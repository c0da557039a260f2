"""The cases of purging: where the log then begins, and where it goes on.

It must not know any storage.
"""

from __future__ import annotations

from hqlwal_raft._types import LogId
from hqlwal_raft.errors import LogGapError, LogRangeError

from ._case import Trial, case, holds, refused

__all__: list[str] = []


@case
async def a_purge_removes_up_to_and_including_its_index(trial: Trial) -> None:
    """purge(id) removes [.., id.index], wherever it lies, also for good."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 13))
    for index in (1, 2, 6, 11):
        frontier = LogId(1, index)
        async with trial.open() as storage:
            await storage.purge(frontier)
            left = trial.entries(index + 1, 13)
            await holds(storage, left, f"after purge({index})", purged=frontier)
        async with trial.open() as storage:
            await holds(storage, left, f"purge({index}), then a reopen", purged=frontier)


@case
async def a_purge_of_everything_leaves_the_frontier(trial: Trial) -> None:
    """With everything purged, last_log_id is last_purged_log_id."""
    frontier = LogId(1, 8)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.purge(frontier)
        await holds(storage, [], "after the purge", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen", purged=frontier)


@case
async def after_a_purge_of_everything_the_next_index_follows_the_frontier(trial: Trial) -> None:
    """The log continues at the frontier's index + 1 and nowhere else."""
    frontier = LogId(1, 8)
    entries = trial.entries(9, 14, term=2)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.purge(frontier)
        for first in (0, 1, 8, 10):
            with refused(LogGapError, f"an append of {first} to a log purged up to 8"):
                await storage.append(trial.entries(first, first + 2, term=2))
        await holds(storage, [], "after the refused appends", purged=frontier)
        await storage.append(entries)
        await holds(storage, entries, "after the append of 9", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen", purged=frontier)


@case
async def a_purge_beyond_the_end_is_legal(trial: Trial) -> None:
    """Beyond the end (a snapshot was installed) the log is empty, its last id the given one."""
    frontier = LogId(3, 100, 2)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.purge(frontier)
        await holds(storage, [], "after the purge", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen", purged=frontier)
        for first in (9, 100, 102):
            with refused(LogGapError, f"an append of {first} to a log purged up to 100"):
                await storage.append(trial.entries(first, first + 1, term=3))
        await storage.append(trial.entries(101, 106, term=3))
        await holds(storage, trial.entries(101, 106, term=3), "an append", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, trial.entries(101, 106, term=3), "it reopened", purged=frontier)


@case
async def a_purge_below_the_frontier_changes_nothing(trial: Trial) -> None:
    """The frontier never goes back, and at its index it stays the log id it was."""
    frontier = LogId(2, 6)
    entries = trial.entries(7, 11, term=2)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11, term=2))
        await storage.purge(frontier)
        for log_id in (LogId(1, 0), LogId(1, 5), LogId(9, 5), LogId(9, 6), frontier):
            await storage.purge(log_id)
            await holds(storage, entries, f"after purge({log_id})", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen", purged=frontier)


@case
async def a_purge_of_an_unused_storage_sets_its_beginning(trial: Trial) -> None:
    """A node that begins with a snapshot purges before it ever appended."""
    frontier = LogId(4, 50, 1)
    async with trial.open() as storage:
        await storage.purge(frontier)
        await holds(storage, [], "after the purge", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen", purged=frontier)
        with refused(LogGapError, "an append of 1"):
            await storage.append(trial.entries(1, 2))
        await storage.append(trial.entries(51, 54, term=4))
        await holds(storage, trial.entries(51, 54, term=4), "an append", purged=frontier)


@case
async def index_0_can_be_purged(trial: Trial) -> None:
    """A frontier at index 0 is a frontier."""
    frontier = LogId(1, 0)
    async with trial.open() as storage:
        await storage.append(trial.entries(0, 4))
        await storage.purge(frontier)
        await holds(storage, trial.entries(1, 4), "after the purge", purged=frontier)
        with refused(LogRangeError, "truncate(0) of a log purged up to 0"):
            await storage.truncate(LogId(0, 0))
    async with trial.open() as storage:
        await holds(storage, trial.entries(1, 4), "after a reopen", purged=frontier)


@case
async def a_purge_before_the_first_entry_removes_nothing(trial: Trial) -> None:
    """A frontier below the first entry is kept, and so is every entry."""
    frontier = LogId(1, 5)
    entries = trial.entries(10, 16)
    async with trial.open() as storage:
        await storage.append(entries)
        await storage.purge(frontier)
        await holds(storage, entries, "after the purge", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen", purged=frontier)
        await storage.append(trial.entries(16, 18))
        await holds(storage, trial.entries(10, 18), "after an append", purged=frontier)


@case
async def purges_may_follow_each_other(trial: Trial) -> None:
    """Purging step by step with appends in between leaves what lies above the last."""
    async with trial.open() as storage:
        for last in range(4, 41, 4):
            await storage.append(trial.entries(last - 3, last + 1))
            if last > 4:
                frontier = LogId(1, last - 6)
                await storage.purge(frontier)
                left = trial.entries(last - 5, last + 1)
                await holds(storage, left, f"after purge({last - 6})", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, left, "after a reopen", purged=frontier)


@case
async def a_purge_and_a_truncation_leave_what_lies_between(trial: Trial) -> None:
    """Both ends may be cut, in either order."""
    for purge_first in (True, False):
        async with trial.open() as storage:
            state = await storage.get_log_state()
            base = 0 if state.last_log_id is None else state.last_log_id.index
            await storage.append(trial.entries(base + 1, base + 13))
            frontier = LogId(1, base + 4)
            if purge_first:
                await storage.purge(frontier)
            await storage.truncate(LogId(1, base + 9))
            if not purge_first:
                await storage.purge(frontier)
            left = trial.entries(base + 5, base + 9)
            await holds(storage, left, f"purge first: {purge_first}", purged=frontier)
        async with trial.open() as storage:
            await holds(storage, left, "after a reopen", purged=frontier)


@case
async def a_purge_after_a_conflict_takes_the_new_entries(trial: Trial) -> None:
    """Truncate, append, purge into what was just appended, and again."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.truncate(LogId(1, 5))
        await storage.append(trial.entries(5, 11, term=2))
        await storage.purge(LogId(2, 7))
        left = trial.entries(8, 11, term=2)
        await holds(storage, left, "after the purge", purged=LogId(2, 7))
        await storage.truncate(LogId(2, 8))
        await storage.append(trial.entries(8, 12, term=3))
    async with trial.open() as storage:
        left = trial.entries(8, 12, term=3)
        await holds(storage, left, "after a reopen", purged=LogId(2, 7))
