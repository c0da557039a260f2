"""The cases of a storage's life: many tasks, cancellation, close, what survives how it ended.

It must not know any storage.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from hqlwal_raft._types import Entry, LogId, LogState, Vote
from hqlwal_raft.errors import LogGapError, WalClosedError
from hqlwal_raft.protocols import LogReader, LogStorage

from ._case import (
    Rounds,
    Trial,
    all_started,
    case,
    closing,
    collected,
    equal,
    holds,
    ignore,
    refused,
    require,
)

__all__: list[str] = []


# --- many tasks --------------------------------------------------------------------------


@case
async def many_tasks_append_at_once(trial: Trial) -> None:
    """Appends of many tasks that wait together are all applied, in the order of the calls."""
    entries = trial.entries(1, 65)
    async with trial.open() as storage:
        calls = [functools.partial(storage.append, [entry]) for entry in entries]
        equal(await all_started(calls), [None] * len(calls), "the results of the appends")
        await holds(storage, entries, "afterwards")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def tasks_append_as_fast_as_they_can(trial: Trial) -> None:
    """Tasks that take the next index as they go leave a log without a gap."""
    next_index = 1
    async with trial.open() as storage:

        async def append(count: int) -> None:
            nonlocal next_index
            for _ in range(count):
                # no other task runs between taking the index and the call's first wait
                index, next_index = next_index, next_index + 1
                await storage.append([trial.entry(index)])

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(append, 8)
        await holds(storage, trial.entries(1, 129), "afterwards")
    async with trial.open() as storage:
        await holds(storage, trial.entries(1, 129), "after a reopen")


@case
async def writes_of_every_kind_are_applied_in_call_order(trial: Trial) -> None:
    """Appends, truncations, purges and votes that wait together keep the order of calls."""
    async with trial.open() as storage:
        outcome = await all_started(
            [
                lambda: storage.append(trial.entries(1, 9)),
                lambda: storage.save_vote(Vote(1, 1)),
                lambda: storage.truncate(LogId(1, 5)),
                lambda: storage.append(trial.entries(5, 10, term=2)),
                lambda: storage.purge(LogId(1, 3)),
                lambda: storage.append(trial.entries(10, 13, term=2)),
                lambda: storage.append(trial.entries(20, 21, term=2)),
                lambda: storage.save_vote(Vote(2, 2)),
                lambda: storage.truncate_after(LogId(2, 10)),
                lambda: storage.append(trial.entries(11, 12, term=3)),
                lambda: storage.save_vote(Vote(3, 3)),
            ]
        )
        refusal = outcome.pop(6)
        require(isinstance(refusal, LogGapError), f"the append of 20 gave {refusal!r}")
        equal(outcome, [None] * len(outcome), "the results of the other writes")
        want = trial.entries(4, 5) + trial.entries(5, 11, term=2) + trial.entries(11, 12, term=3)
        await holds(storage, want, "afterwards", purged=LogId(1, 3))
        equal(await storage.read_vote(), Vote(3, 3), "the vote")
    async with trial.open() as storage:
        await holds(storage, want, "after a reopen", purged=LogId(1, 3))
        equal(await storage.read_vote(), Vote(3, 3), "the vote after a reopen")


@case
async def a_refused_write_hinders_no_other(trial: Trial) -> None:
    """Of writes that wait together, the refused ones fail alone."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 5))
        await storage.purge(LogId(1, 2))
        outcome = await all_started(
            [
                lambda: storage.append(trial.entries(5, 6)),
                lambda: storage.append(trial.entries(5, 6, term=2)),
                lambda: storage.truncate(LogId(1, 1)),
                lambda: storage.append(trial.entries(6, 7)),
            ]
        )
        kinds = [None if result is None else type(result).__name__ for result in outcome]
        equal(kinds, [None, "LogGapError", "LogRangeError", None], "the results")
        await holds(storage, trial.entries(3, 7), "afterwards", purged=LogId(1, 2))


@case
async def reads_go_on_while_others_write(trial: Trial) -> None:
    """Readers in other tasks see a growing log, never a shrinking or broken one."""
    async with trial.open() as storage:
        rounds = Rounds()

        async def follow(reader: LogReader) -> None:
            seen = 0

            async def read() -> None:
                nonlocal seen
                start = max(seen, 1)
                got = await reader.try_get_log_entries(start)
                want = trial.entries(start, start + len(got))
                equal(got, want, f"what a reader saw from {start} on")
                require(len(got) > 0 or seen == 0, f"entry {seen} was seen and is gone")
                seen = got[-1].index if got else seen

            await rounds.repeat(read)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(follow, await storage.get_log_reader())
            for index in range(1, 51):
                rounds.begin()
                await storage.append([trial.entry(index)])
            rounds.end()


# --- cancellation ------------------------------------------------------------------------


@case
async def a_cancelled_append_is_not_taken_back(trial: Trial) -> None:
    """Cancelling an append that waits only stops the waiting: the entries stay."""
    entries = trial.entries(1, 5)
    async with trial.open() as storage:
        await all_started([lambda: storage.append(entries)], cancelled=[0])
        # applied in call order, so behind the cancelled one
        await storage.append(trial.entries(5, 9))
        await holds(storage, trial.entries(1, 9), "after the next append")
    async with trial.open() as storage:
        await holds(storage, trial.entries(1, 9), "after a reopen")


@case
async def cancelling_one_append_hinders_no_other(trial: Trial) -> None:
    """Of appends that wait together, the others are durable though one was cancelled."""
    entries = trial.entries(1, 13)
    async with trial.open() as storage:
        calls = [functools.partial(storage.append, [entry]) for entry in entries]
        outcome = await all_started(calls, cancelled=range(1, 13, 3))
        equal(outcome, [None] * len(calls), "the results of the appends")
        await holds(storage, entries, "afterwards")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def a_write_in_a_cancelled_scope_happens_whole_or_not_at_all(trial: Trial) -> None:
    """A call made when its scope is cancelled already is carried out or not, never in part."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 4))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await storage.append(trial.entries(4, 8))
        got = await storage.try_get_log_entries(0)
        require(
            got in (trial.entries(1, 4), trial.entries(1, 8)),
            f"the log has {len(got)} entries, where 3 or 7 are legal",
        )
        with anyio.CancelScope() as scope:
            scope.cancel()
            await storage.save_vote(Vote(4, 4))
        require(await storage.read_vote() in (None, Vote(4, 4)), "the vote is neither")
        await storage.truncate_after(LogId(1, 3))
        await storage.append(trial.entries(4, 6, term=2))
        want = trial.entries(1, 4) + trial.entries(4, 6, term=2)
        await holds(storage, want, "after further writes")
    async with trial.open() as storage:
        await holds(storage, want, "after a reopen")


@case
async def a_cancelled_read_hinders_nothing(trial: Trial) -> None:
    """Cancelling a read leaves the storage as it was."""
    entries = trial.entries(1, 9)
    async with trial.open() as storage:
        await storage.append(entries)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await storage.try_get_log_entries(0)
        with anyio.CancelScope() as scope:
            async with closing(storage.entries_stream(1)) as stream:
                async for _ in stream:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        await holds(storage, entries, "after the cancelled reads")


# --- close and what comes after ----------------------------------------------------------


@case
async def every_call_after_the_close_is_refused(trial: Trial) -> None:
    """After aclose() every method raises WalClosedError, of readers and streams too."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 5))
        vote = Vote(1, 1, committed=True)
        await storage.save_vote(vote)
        reader = await storage.get_log_reader()
        await storage.aclose()
        calls = _reading_calls("the storage's ", storage, vote)
        calls |= _reading_calls("a reader's ", reader, vote)
        calls |= _writing_calls(trial, storage)
        for name, call in calls.items():
            with refused(WalClosedError, f"{name} after the close"):
                await call()
    async with trial.open() as storage:
        await holds(storage, trial.entries(1, 5), "after a reopen")
        equal(await storage.read_vote(), vote, "the vote after a reopen")


def _reading_calls(
    whose: str, reader: LogReader, vote: Vote
) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        whose + "try_get_log_entries": lambda: reader.try_get_log_entries(0),
        whose + "empty range": lambda: reader.try_get_log_entries(9, 9),
        whose + "limited_get_log_entries": lambda: reader.limited_get_log_entries(0),
        whose + "try_get_log_entry": lambda: reader.try_get_log_entry(1),
        whose + "log_id_at": lambda: reader.log_id_at(1),
        whose + "entries_stream": lambda: collected(reader.entries_stream(0)),
        whose + "bounded stream": lambda: collected(reader.leader_bounded_stream(vote, 0)),
        whose + "follow": lambda: anext(reader.follow(1)),
        whose + "get_key_log_ids": reader.get_key_log_ids,
        whose + "get_log_state": reader.get_log_state,
        whose + "read_vote": reader.read_vote,
    }


def _writing_calls(trial: Trial, storage: LogStorage) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "append": lambda: storage.append(trial.entries(5, 6)),
        "append with a callback": lambda: storage.append(trial.entries(5, 6), ignore),
        "append of nothing": lambda: storage.append([]),
        "append_after": lambda: storage.append_after(LogId(1, 4), trial.entries(5, 6)),
        "append_after of nothing": lambda: storage.append_after(LogId(1, 4), []),
        "truncate": lambda: storage.truncate(LogId(1, 2)),
        "truncate_after": lambda: storage.truncate_after(None),
        "purge": lambda: storage.purge(LogId(1, 2)),
        "save_vote": lambda: storage.save_vote(Vote(2)),
        "save_state": lambda: storage.save_state(b"state"),
        "read_state": storage.read_state,
        "wait_durable": lambda: storage.wait_durable(LogId(1, 1)),
        "flush": storage.flush,
        "save_committed": lambda: storage.save_committed(LogId(1, 1)),
        "read_committed": storage.read_committed,
        "get_log_reader": storage.get_log_reader,
    }


@case
async def a_close_may_be_repeated(trial: Trial) -> None:
    """aclose() is idempotent, also when leaving the context comes on top."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 4))
        await storage.aclose()
        await storage.aclose()
    await storage.aclose()
    async with trial.open() as storage:
        await holds(storage, trial.entries(1, 4), "after a reopen")


@case
async def a_storage_may_be_reopened_again_and_again(trial: Trial) -> None:
    """Every run sees what all runs before it left, and adds to it."""
    for run in range(8):
        async with trial.open() as storage:
            equal(await storage.read_vote(), Vote(run, "x") if run else None, f"vote, run {run}")
            await holds(storage, trial.entries(1, 3 * run + 1), f"the log in run {run}")
            await storage.append(trial.entries(3 * run + 1, 3 * run + 4))
            await storage.save_vote(Vote(run + 1, "x"))


@case
async def a_reopen_without_any_write_changes_nothing(trial: Trial) -> None:
    """Opening and closing is no change."""
    entries = trial.entries(5, 12)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 12))
        await storage.purge(LogId(1, 4))
        await storage.save_committed(LogId(1, 9))
    for _ in range(3):
        async with trial.open() as storage:
            pass
    async with trial.open() as storage:
        await holds(storage, entries, "after four reopens", purged=LogId(1, 4))
        equal(await storage.read_committed(), LogId(1, 9), "committed")


@case
async def what_was_accepted_survives_a_body_that_raises(trial: Trial) -> None:
    """Leaving by an exception closes cleanly: all that was accepted is kept."""
    entries = trial.entries(1, 9)
    with refused(LookupError, "a body that raises LookupError"):
        async with trial.open() as storage:
            await storage.append(entries[:5])
            await storage.append(entries[5:], ignore)
            await storage.save_committed(LogId(1, 4))
            raise LookupError
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")
        equal(await storage.read_committed(), LogId(1, 4), "committed after a reopen")


@case
async def what_was_accepted_survives_a_body_that_is_cancelled(trial: Trial) -> None:
    """Leaving by cancellation closes cleanly: all that was accepted is kept."""
    entries = trial.entries(1, 9)
    with anyio.CancelScope() as scope:
        async with trial.open() as storage:
            await storage.append(entries, ignore)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")
        await storage.append(trial.entries(9, 11))
        await holds(storage, trial.entries(1, 11), "after an append")


@case
async def two_storages_do_not_know_each_other(trial: Trial) -> None:
    """Storages of different names share nothing."""
    other = Trial(trial.factory, trial.name + "-other", trial.payload_bytes)
    async with trial.open() as one, other.open() as two:
        await one.append(trial.entries(1, 5))
        await one.save_vote(Vote(1, 1))
        await two.append(trial.entries(9, 12, term=2))
        await holds(one, trial.entries(1, 5), "the first storage")
        await holds(two, trial.entries(9, 12, term=2), "the second storage")
        equal(await two.read_vote(), None, "the second storage's vote")
    async with other.open() as two:
        await holds(two, trial.entries(9, 12, term=2), "the second storage, reopened")


@case
async def a_long_life_leaves_what_the_contract_says(trial: Trial) -> None:
    """A few hundred mixed changes with reopens in between end where the contract says."""
    held: list[Entry] = []
    purged: LogId | None = None
    index, term = 1, 1
    for round_ in range(6):
        async with trial.open() as storage:
            await holds(storage, held, f"the beginning of round {round_}", purged=purged)
            for step in range(20):
                batch = trial.entries(index, index + 1 + step % 4, term)
                await storage.append(batch)
                held += batch
                if step % 7 == 3:
                    term += 1
                    cut = len(held) - step % 5
                    held = held[:cut]
                    await storage.truncate_after(held[-1].log_id)
                if step % 9 == 5:
                    purged = held[len(held) // 2].log_id
                    held = held[len(held) // 2 + 1 :]
                    await storage.purge(purged)
                index = held[-1].index + 1
            await holds(storage, held, f"the end of round {round_}", purged=purged)
    require(purged is not None, "the log was purged on the way")
    async with trial.open() as storage:
        equal(await storage.get_log_state(), LogState(purged, held[-1].log_id), "the end")
