"""The cases of what is kept beside the entries: log state, vote, committed log id.

It must not know any storage.
"""

from __future__ import annotations

import itertools

from hqlwal_raft._types import LogId, LogState, Vote

from ._case import Trial, case, equal, holds, refused

__all__: list[str] = []

_U64_MAX = (1 << 64) - 1


@case
async def the_log_state_follows_the_log(trial: Trial) -> None:
    """Both ends are right after every change, and after a reopen."""
    async with trial.open() as storage:

        async def expect(purged: LogId | None, last: LogId | None, what: str) -> None:
            equal(await storage.get_log_state(), LogState(purged, last), what)

        await expect(None, None, "an unused storage")
        await storage.append([trial.entry(3), trial.entry(4, term=2, node_id=9)])
        await expect(None, LogId(2, 4, 9), "after an append")
        await storage.append(trial.entries(5, 12, term=2, node_id=9))
        await expect(None, LogId(2, 11, 9), "after another append")
        await storage.truncate(LogId(2, 8, 9))
        await expect(None, LogId(2, 7, 9), "after a truncation")
        await storage.purge(LogId(1, 3))
        await expect(LogId(1, 3), LogId(2, 7, 9), "after a purge")
    async with trial.open() as storage:
        await expect(LogId(1, 3), LogId(2, 7, 9), "after a reopen")
        await storage.purge(LogId(2, 7, 9))
        await expect(LogId(2, 7, 9), LogId(2, 7, 9), "after a purge of everything")
        await storage.append(trial.entries(8, 9, term=4))
        await expect(LogId(2, 7, 9), LogId(4, 8), "after an append behind the frontier")
    async with trial.open() as storage:
        await expect(LogId(2, 7, 9), LogId(4, 8), "after a second reopen")


@case
async def the_vote_saved_last_is_read_back(trial: Trial) -> None:
    """A vote replaces the one before."""
    votes = [
        *(Vote(1, 1), Vote(1, 1), Vote(1, 1, committed=True), Vote(2), Vote(2, 3), Vote(3)),
        *(Vote(3, committed=True), Vote(3, 1, committed=True), Vote(9, "a"), Vote(9, "a", True)),
    ]
    async with trial.open() as storage:
        for vote in votes:
            await storage.save_vote(vote)
            equal(await storage.read_vote(), vote, "the vote")
            await holds(storage, [], "a vote changes no log")


@case
async def every_kind_of_vote_survives_a_reopen(trial: Trial) -> None:
    """Node ids are int, str or None and keep their type; committed is kept."""
    node_ids: list[int | str | None] = [0, 1, "1", "", None, _U64_MAX, "node-é-節点", "n" * 300]
    votes = [Vote(term, node_id) for term, node_id in enumerate(node_ids)]
    votes += [Vote(_U64_MAX - 9 + term, n, committed=True) for term, n in enumerate(node_ids)]
    votes += [Vote(_U64_MAX, _U64_MAX, committed=True)] * 2
    async with trial.open() as storage:
        await storage.save_vote(votes[0])
    for vote, following in itertools.pairwise(votes):
        async with trial.open() as storage:
            got = await storage.read_vote()
            equal(got, vote, "the vote after a reopen")
            if got is not None:
                equal(type(got.node_id), type(vote.node_id), f"the node id's type in {vote}")
                equal(got.committed is True, vote.committed, f"committed in {vote}")
            await storage.save_vote(following)


@case
async def a_vote_outlives_every_change_of_the_log(trial: Trial) -> None:
    """Appends, truncations and purges leave the vote as it is."""
    vote = Vote(5, "node-2", committed=True)
    async with trial.open() as storage:
        await storage.save_vote(vote)
        await storage.append(trial.entries(1, 11))
        await storage.truncate(LogId(1, 8))
        await storage.purge(LogId(1, 3))
        equal(await storage.read_vote(), vote, "the vote after the changes")
    async with trial.open() as storage:
        equal(await storage.read_vote(), vote, "the vote after a reopen")
        await storage.purge(LogId(1, 100))
        await storage.truncate_after(None)
        equal(await storage.read_vote(), vote, "the vote of an emptied log")
    async with trial.open() as storage:
        equal(await storage.read_vote(), vote, "the vote after a second reopen")


@case
async def votes_between_appends_are_kept_with_them(trial: Trial) -> None:
    """Votes and entries written by turns are all there, also after a reopen."""
    async with trial.open() as storage:
        for index in range(1, 9):
            await storage.append([trial.entry(index, term=index)])
            await storage.save_vote(Vote(index, index))
        equal(await storage.read_vote(), Vote(8, 8), "the vote")
    entries = [trial.entry(index, term=index) for index in range(1, 9)]
    async with trial.open() as storage:
        equal(await storage.read_vote(), Vote(8, 8), "the vote after a reopen")
        await holds(storage, entries, "the entries after a reopen")


@case
async def the_committed_log_id_is_read_back(trial: Trial) -> None:
    """What was saved last is read, None included."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11, term=2, node_id=4))
        for committed in (LogId(2, 1, 4), LogId(2, 9, 4), LogId(2, 5, 4), None, LogId(2, 10, 4)):
            await storage.save_committed(committed)
            equal(await storage.read_committed(), committed, "the committed log id")


@case
async def the_committed_log_id_survives_a_clean_close(trial: Trial) -> None:
    """After a clean close the committed log id is the one saved last."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.save_committed(LogId(1, 3))
        await storage.save_committed(LogId(1, 7))
    for saved, following in ((LogId(1, 7), LogId(1, 8)), (LogId(1, 8), None)):
        async with trial.open() as storage:
            equal(await storage.read_committed(), saved, "committed after a reopen")
            await storage.save_committed(following)
    async with trial.open() as storage:
        equal(await storage.read_committed(), None, "committed after None was saved")


@case
async def the_committed_log_id_is_cut_by_a_truncation(trial: Trial) -> None:
    """A truncation of the committed entry leaves the last log id as the committed one."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.save_committed(LogId(1, 7))
        await storage.truncate(LogId(1, 8))
        equal(await storage.read_committed(), LogId(1, 7), "committed before what is cut")
        await storage.truncate(LogId(1, 6))
        equal(await storage.read_committed(), LogId(1, 5), "committed after it was cut")
        await storage.append(trial.entries(6, 9, term=2))
        equal(await storage.read_committed(), LogId(1, 5), "committed after the log grew again")
        await storage.purge(LogId(1, 3))
        await storage.truncate_after(LogId(1, 3))
        equal(await storage.read_committed(), LogId(1, 3), "committed in an emptied log")
    async with trial.open() as storage:
        equal(await storage.read_committed(), LogId(1, 3), "committed after a reopen")


@case
async def the_committed_log_id_may_be_the_frontier(trial: Trial) -> None:
    """Where everything committed was purged, it is still known."""
    frontier = LogId(1, 8)
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 9))
        await storage.save_committed(frontier)
        await storage.purge(frontier)
        equal(await storage.read_committed(), frontier, "committed after the purge")
    async with trial.open() as storage:
        equal(await storage.read_committed(), frontier, "committed after a reopen")


# --- the node's own state ----------------------------------------------------------------


@case
async def the_state_of_a_node_s_own_is_read_back(trial: Trial) -> None:
    """What was saved last is read, whatever its bytes, also after a reopen; None before."""
    states = [b"", b"x", bytes(range(256)), b"y" * 2048, b"\0" * 2048, b""]
    async with trial.open() as storage:
        equal(await storage.read_state(), None, "the state of an unused storage")
        await storage.save_state(states[0])
    for state, following in itertools.pairwise(states):
        async with trial.open() as storage:
            equal(await storage.read_state(), state, "the state after a reopen")
            await storage.save_state(following)
            equal(await storage.read_state(), following, "the state")
    async with trial.open() as storage:
        data = bytearray(b"mine")
        await storage.save_state(data)  # type: ignore[arg-type]
        data[:] = b"away"
        equal(await storage.read_state(), b"mine", "a state whose buffer was changed")
        with refused(ValueError, "a state of 2049 bytes"):
            await storage.save_state(b"z" * 2049)
        equal(await storage.read_state(), b"mine", "the state after one that is too large")


@case
async def the_state_outlives_every_change_of_log_and_vote(trial: Trial) -> None:
    """Appends, truncations, purges and votes leave the state as it is, and it leaves them."""
    async with trial.open() as storage:
        await storage.save_vote(Vote(1, 1))
        await storage.save_state(b"mine")
        await storage.append(trial.entries(1, 11))
        await storage.save_vote(Vote(2, "n" * 1024))
        await storage.truncate(LogId(1, 9))
        await storage.purge(LogId(1, 3))
        equal(await storage.read_state(), b"mine", "the state after the changes")
    async with trial.open() as storage:
        equal(await storage.read_state(), b"mine", "the state after a reopen")
        equal(await storage.read_vote(), Vote(2, "n" * 1024), "the vote")
        await storage.save_state(b"y" * 2048)
        equal(await storage.read_vote(), Vote(2, "n" * 1024), "the vote beside another state")
        await holds(storage, trial.entries(4, 9), "the log", purged=LogId(1, 3))


@case
async def a_purge_saves_the_state_with_it(trial: Trial) -> None:
    """``purge(log_id, state=...)`` changes both, also where there is nothing to purge."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 11))
        for number, log_id in enumerate((LogId(1, 3), LogId(1, 2), LogId(1, 10), LogId(2, 99))):
            await storage.purge(log_id, state=b"%d" % number)
            equal(await storage.read_state(), b"%d" % number, f"the state after purge({log_id})")
        await storage.purge(LogId(2, 100))
        equal(await storage.read_state(), b"3", "the state after a purge without one")
    async with trial.open() as storage:
        equal(await storage.read_state(), b"3", "the state after a reopen")
        await holds(storage, [], "the log", purged=LogId(2, 100))
