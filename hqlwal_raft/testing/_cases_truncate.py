"""The cases of truncating: what goes, what is refused, what may follow.

It must not know any storage.
"""

from __future__ import annotations

from hqlwal_raft._types import Entry, LogId
from hqlwal_raft.errors import LogGapError, LogRangeError

from ._case import Trial, case, holds, refused

__all__: list[str] = []


@case
async def a_truncation_removes_its_index_and_all_behind(trial: Trial) -> None:
    """truncate(id) removes [id.index, ∞), wherever in the log it lies, also for good."""
    for index in (12, 11, 7, 2):
        async with trial.open() as storage:
            await storage.truncate_after(None)
            await storage.append(trial.entries(1, 13))
            await storage.truncate(LogId(1, index))
            await holds(storage, trial.entries(1, index), f"after truncate({index})")
        async with trial.open() as storage:
            await holds(storage, trial.entries(1, index), f"truncate({index}), then a reopen")


@case
async def a_truncation_at_the_first_entry_empties_the_log(trial: Trial) -> None:
    """A log truncated from its first entry is as if it never had one."""
    async with trial.open() as storage:
        await storage.append(trial.entries(5, 12))
        await storage.truncate(LogId(1, 5))
        await holds(storage, [], "after the truncation")
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen")
        await storage.append(trial.entries(5, 7, term=2))
        await holds(storage, trial.entries(5, 7, term=2), "after an append")


@case
async def a_log_that_was_truncated_empty_takes_any_first_index(trial: Trial) -> None:
    """An empty log that was never purged takes any index, as at its beginning."""
    async with trial.open() as storage:
        for first in (50, 3, 1_000, 0):
            await storage.append(trial.entries(first, first + 4))
            await holds(storage, trial.entries(first, first + 4), f"a log from {first}")
            await storage.truncate(LogId(1, 0))
            await holds(storage, [], f"after the truncation of the log from {first}")
        await storage.append(trial.entries(7, 9))
    async with trial.open() as storage:
        await holds(storage, trial.entries(7, 9), "after a reopen")


@case
async def a_truncation_past_the_end_changes_nothing(trial: Trial) -> None:
    """Where nothing lies at or behind the index, nothing happens."""
    entries = trial.entries(1, 7)
    async with trial.open() as storage:
        for index in (0, 1, 100):
            await storage.truncate(LogId(1, index))
            await holds(storage, [], f"an empty log after truncate({index})")
        await storage.append(entries)
        for index in (7, 8, 1 << 40):
            await storage.truncate(LogId(9, index))
            await holds(storage, entries, f"after truncate({index})")
        await storage.append(trial.entries(7, 9))
        await holds(storage, trial.entries(1, 9), "after an append")


@case
async def truncations_may_follow_each_other(trial: Trial) -> None:
    """Several truncations leave what the lowest left, entries appended since included."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 21))
        for index in (19, 18, 10, 14, 6):
            await storage.truncate(LogId(1, index))
        await holds(storage, trial.entries(1, 6), "after the truncations")
        await storage.append(trial.entries(6, 10, term=2))
        await storage.truncate(LogId(2, 8))
        want = trial.entries(1, 6) + trial.entries(6, 8, term=2)
        await holds(storage, want, "after an append and a truncation")
    async with trial.open() as storage:
        await holds(storage, want, "after a reopen")


@case
async def a_truncation_at_or_below_the_frontier_is_refused(trial: Trial) -> None:
    """At or below the purge frontier truncate raises LogRangeError and changes nothing."""
    frontier = LogId(1, 5)
    entries = trial.entries(6, 11)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11))
        await storage.purge(frontier)
        for index in (5, 4, 0):
            with refused(LogRangeError, f"truncate({index}) of a log purged up to 5"):
                await storage.truncate(LogId(1, index))
            await holds(storage, entries, f"after truncate({index})", purged=frontier)
        with refused(LogRangeError, "truncate_after(4) of a log purged up to 5"):
            await storage.truncate_after(LogId(1, 4))
        await holds(storage, entries, "after truncate_after(4)", purged=frontier)
        await storage.purge(LogId(1, 20))
        with refused(LogRangeError, "truncate(20) of an empty log purged up to 20"):
            await storage.truncate(LogId(1, 20))
        await storage.truncate(LogId(1, 21))
        await holds(storage, [], "after truncate(21)", purged=LogId(1, 20))


@case
async def a_truncation_right_above_the_frontier_leaves_the_frontier(trial: Trial) -> None:
    """With everything above the frontier gone, last_log_id is the frontier."""
    frontier = LogId(1, 5)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11))
        await storage.purge(frontier)
        await storage.truncate(LogId(1, 6))
        await holds(storage, [], "after the truncation", purged=frontier)
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen", purged=frontier)
        with refused(LogGapError, "an append of 5, which is purged"):
            await storage.append(trial.entries(5, 8))
        with refused(LogGapError, "an append that leaves 6 out"):
            await storage.append(trial.entries(7, 8))
        await storage.append(trial.entries(6, 9, term=2))
        await holds(storage, trial.entries(6, 9, term=2), "after an append", purged=frontier)


@case
async def truncate_after_keeps_its_log_id(trial: Trial) -> None:
    """truncate_after(id) keeps up to and including id; past the end nothing happens."""
    async with trial.open() as storage:
        await storage.truncate_after(LogId(1, 3))
        await holds(storage, [], "an empty log")
        await storage.append(trial.entries(1, 13))
        for index in (12, 13, 100):
            await storage.truncate_after(LogId(1, index))
            await holds(storage, trial.entries(1, 13), f"after truncate_after({index})")
        for index in (11, 6, 1):
            await storage.truncate_after(LogId(1, index))
            await holds(storage, trial.entries(1, index + 1), f"after truncate_after({index})")
        await storage.truncate_after(LogId(1, 0))
        await holds(storage, [], "after truncate_after(0)")


@case
async def truncate_after_none_removes_all_that_is_not_purged(trial: Trial) -> None:
    """truncate_after(None) empties the log and leaves the frontier."""
    async with trial.open() as storage:
        await storage.truncate_after(None)
        await storage.append(trial.entries(3, 9))
        await storage.truncate_after(None)
        await holds(storage, [], "without a frontier")
        await storage.append(trial.entries(1, 12))
        await storage.purge(LogId(1, 4))
        await storage.truncate_after(None)
        await holds(storage, [], "with a frontier", purged=LogId(1, 4))
        await storage.truncate_after(None)
        await holds(storage, [], "a second time", purged=LogId(1, 4))
    async with trial.open() as storage:
        await holds(storage, [], "after a reopen", purged=LogId(1, 4))


@case
async def truncate_after_the_frontier_removes_all_that_is_not_purged(trial: Trial) -> None:
    """truncate_after(frontier) is legal: what lies above it goes."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 10))
        await storage.purge(LogId(1, 4))
        await storage.truncate_after(LogId(1, 4))
        await holds(storage, [], "afterwards", purged=LogId(1, 4))
        await storage.truncate_after(LogId(1, 4))
        await holds(storage, [], "a second time", purged=LogId(1, 4))


@case
async def a_conflict_is_truncated_and_overwritten(trial: Trial) -> None:
    """A new leader's entries take the place of the truncated ones, also after a reopen."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11))
        await storage.truncate(LogId(1, 6))
        with refused(LogGapError, "an append behind the old end"):
            await storage.append(trial.entries(11, 12, term=2))
        await storage.append(trial.entries(6, 9, term=2, node_id=3))
        want = trial.entries(1, 6) + trial.entries(6, 9, term=2, node_id=3)
        await holds(storage, want, "after the append of the new leader")
    async with trial.open() as storage:
        await holds(storage, want, "after a reopen")
        await storage.truncate(LogId(1, 3))
        await storage.append(trial.entries(3, 12, term=3))
        want = trial.entries(1, 3) + trial.entries(3, 12, term=3)
        await holds(storage, want, "after a second conflict")
    async with trial.open() as storage:
        await holds(storage, want, "after a second reopen")


@case
async def truncated_entries_never_come_back(trial: Trial) -> None:
    """Entries of equal size lie where truncated ones lay: these do not return at a reopen."""
    size = max(trial.payload_bytes, 8)
    old = [Entry(1, index, b"old" + bytes(size)) for index in range(1, 11)]
    new = [Entry(2, index, b"new" + bytes(size)) for index in range(4, 6)]
    async with trial.open() as storage:
        await storage.append(old)
        await storage.truncate(LogId(1, 4))
    for kept in range(3):
        want = old[:3] + new[:kept]
        async with trial.open() as storage:
            await holds(storage, want, f"{kept} entries after the truncation")
            await storage.append(new[kept : kept + 1])


@case
async def a_truncated_log_takes_larger_entries_than_before(trial: Trial) -> None:
    """Whatever room a truncation leaves, the next entry may be of any size."""
    size = max(trial.payload_bytes, 100)
    for kept in range(4):
        held = [Entry(1, index, bytes([index]) * size) for index in range(1, 4)]
        async with trial.open() as storage:
            await storage.truncate_after(None)
            await storage.append(held)
            for growth in (1, 3, 10, 30):
                await storage.truncate(LogId(1, kept + 1))
                held = held[:kept]
                batch = [Entry(2, kept + n, b"x" * size * growth) for n in (1, 2, 3)]
                for entry in batch:
                    await storage.append([entry])
                held += batch
                await holds(storage, held, f"{growth} times the size behind {kept} entries")
        async with trial.open() as storage:
            await holds(storage, held, f"larger entries behind {kept}, then a reopen")
