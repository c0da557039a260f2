"""The cases of streams, plain ones and those bound to a leader.

It must not know any storage.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel

from hqlwal_raft._types import Entry, LogId, Vote
from hqlwal_raft.errors import LeaderChangedError, LogRangeError

from ._case import Trial, case, closing, collected, equal, filled, holds, refused

__all__: list[str] = []


@case
async def a_stream_gives_every_entry_of_its_range(trial: Trial) -> None:
    """A stream gives the entries of [start, stop) one by one, in order."""
    entries = trial.entries(1, 41)
    async with filled(trial, 1, 41) as storage:
        for start, stop in ((0, None), (1, 41), (1, 2), (7, 30), (40, None), (41, None)):
            got = await collected(storage.entries_stream(start, stop))
            equal(got, await storage.try_get_log_entries(start, stop), f"[{start}, {stop})")
        equal(await collected(storage.entries_stream(0)), entries, "the whole log")


@case
async def a_stream_of_an_empty_log_ends_at_once(trial: Trial) -> None:
    """A stream with nothing to give ends."""
    async with trial.open() as storage:
        equal(await collected(storage.entries_stream(0)), [], "the stream of an empty log")
        await storage.purge(LogId(1, 10))
        equal(await collected(storage.entries_stream(0)), [], "the stream of a purged log")


@case
async def a_stream_goes_on_to_what_was_appended_meanwhile(trial: Trial) -> None:
    """Without a stop a stream ends at the last entry there is when it gets there."""
    async with filled(trial, 1, 4) as storage:
        got = []
        async for entry in storage.entries_stream(1):
            got.append(entry)
            if entry.index == 2:
                await storage.append(trial.entries(4, 8))
        equal(got, trial.entries(1, 8), "the entries of the stream")


@case
async def a_stream_may_be_left_early(trial: Trial) -> None:
    """A stream that is not read to its end hinders nothing."""
    async with filled(trial, 1, 11) as storage:
        async with closing(storage.entries_stream(1)) as stream:
            equal(await anext(stream), trial.entry(1), "the first entry of the stream")
        await storage.truncate(LogId(1, 6))
        await storage.purge(LogId(1, 3))
        await holds(storage, trial.entries(4, 6), "afterwards", purged=LogId(1, 3))


@case
async def a_stream_never_gives_what_was_truncated_before_it_got_there(trial: Trial) -> None:
    """Entries truncated before the stream reaches them are not given."""
    async with filled(trial, 1, 9) as storage:
        got = []
        async for entry in storage.entries_stream(1):
            got.append(entry)
            if entry.index == 3:
                await storage.truncate(LogId(1, 6))
                await storage.append(trial.entries(6, 8, term=2))
        want = trial.entries(1, 6) + trial.entries(6, 8, term=2)
        equal(got, want, "the entries of the stream")


@case
async def a_stream_that_a_purge_overtakes_says_so(trial: Trial) -> None:
    """A purge of entries that a stream has still to give ends it with LogRangeError, whether the
    purge ends within the log, at its end, or beyond it.
    """
    vote = Vote(1, 1, committed=True)
    for purged in (5, 9, 10, 20):
        for is_bounded in (False, True):
            async with trial.open(f"{purged}{is_bounded}") as storage:
                await storage.append(trial.entries(1, 11))
                await storage.save_vote(vote)
                got = []
                stream = (
                    storage.leader_bounded_stream(vote, 1, 11)
                    if is_bounded
                    else storage.entries_stream(1)
                )
                with refused(LogRangeError, f"a stream overtaken by purge({purged})"):
                    async for entry in stream:
                        got.append(entry)
                        if entry.index == 3:
                            await storage.purge(LogId(1, purged))
                equal(got, trial.entries(1, 4), "the entries before the purge")


@case
async def a_stream_that_gave_all_of_its_range_ends_whatever_is_purged(trial: Trial) -> None:
    """A purge of what a stream has given is no concern of that stream."""
    async with filled(trial, 1, 11) as storage:
        got = []
        async for entry in storage.entries_stream(1, 7):
            got.append(entry)
            if entry.index in (3, 6):
                await storage.purge(LogId(1, {3: 3, 6: 20}[entry.index]))
        equal(got, trial.entries(1, 7), "the entries of the stream")


@case
async def streams_run_side_by_side(trial: Trial) -> None:
    """Many streams at once do not disturb each other."""
    entries = trial.entries(1, 31)
    async with filled(trial, 1, 31) as storage:

        async def follow(start: int) -> None:
            got = []
            async for entry in storage.entries_stream(start):
                got.append(entry)
                await anyio.lowlevel.checkpoint()
            equal(got, entries[start - 1 :], f"the stream from {start}")

        async with anyio.create_task_group() as tasks:
            for start in range(1, 31, 3):
                tasks.start_soon(follow, start)


# --- streams bound to a leader -----------------------------------------------------------

_LEADER = Vote(term=3, node_id=7, committed=True)


@case
async def a_leader_bounded_stream_gives_the_range_while_the_vote_stays(trial: Trial) -> None:
    """While the saved vote is the given committed one, the stream is a plain stream."""
    async with filled(trial, 1, 21) as storage:
        await storage.save_vote(_LEADER)
        reader = await storage.get_log_reader()
        for side in (storage, reader):
            for start, stop in ((0, None), (1, 21), (5, 9), (30, None), (9, 9)):
                got = await collected(side.leader_bounded_stream(_LEADER, start, stop))
                equal(got, await side.try_get_log_entries(start, stop), f"[{start}, {stop})")


@case
async def a_leader_bounded_stream_refuses_another_vote(trial: Trial) -> None:
    """Where the saved vote is not the given committed one: LeaderChangedError, no entry."""
    others = [
        None,
        Vote(_LEADER.term - 1, _LEADER.node_id, committed=True),
        Vote(_LEADER.term, None, committed=False),
        Vote(_LEADER.term, _LEADER.node_id, committed=False),
        Vote(_LEADER.term, 8, committed=True),
        Vote(_LEADER.term, str(_LEADER.node_id), committed=True),
        Vote(_LEADER.term, None, committed=True),
        Vote(_LEADER.term + 1, _LEADER.node_id, committed=True),
    ]
    for number, other in enumerate(others):
        async with trial.open(str(number)) as storage:
            await storage.append(trial.entries(1, 6))
            if other is not None:
                await storage.save_vote(other)
            got: list[Entry] = []
            with refused(LeaderChangedError, f"a stream bound to {_LEADER} under {other}"):
                async for entry in storage.leader_bounded_stream(_LEADER, 1):
                    got.append(entry)  # noqa: PERF401 - what came before the error counts
            equal(got, [], f"the entries of a stream bound to {_LEADER} under {other}")


@case
async def a_leader_bounded_stream_ends_where_the_leader_changes(trial: Trial) -> None:
    """Once another vote is saved, the stream gives no further entry but LeaderChangedError."""
    async with filled(trial, 1, 21) as storage:
        await storage.save_vote(_LEADER)
        got: list[Entry] = []
        with refused(LeaderChangedError, "a stream whose leader lost its vote"):
            async for entry in storage.leader_bounded_stream(_LEADER, 1):
                got.append(entry)
                if entry.index == 5:
                    await storage.save_vote(Vote(_LEADER.term + 1, 9))
        equal(got, trial.entries(1, 6), "the entries before the change")
