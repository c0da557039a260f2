"""The cases of Raft's own rules, and of waiting for an entry.

It must not know any storage.
"""

from __future__ import annotations

from hqlwal_raft._types import Entry, LogId, Vote
from hqlwal_raft.errors import LogRangeError, LogTruncatedError, RaftRuleError

from ._case import Trial, case, equal, filled, holds, ignore, refused

__all__: list[str] = []


@case
async def the_terms_of_entries_never_fall(trial: Trial) -> None:
    """An entry of a lower term than the one before it is refused with its whole batch."""
    entries = trial.entries(1, 4, term=3)
    async with trial.open() as storage:
        await storage.append(entries)
        for batch in (
            [trial.entry(4, term=2)],
            [trial.entry(4, term=0)],
            [trial.entry(4, term=3), trial.entry(5, term=2)],
            [trial.entry(4, term=5), trial.entry(5, term=5), trial.entry(6, term=4)],
        ):
            with refused(RaftRuleError, f"an append of terms {[e.term for e in batch]} after 3"):
                await storage.append(batch)
            calls: list[BaseException | None] = []
            with refused(RaftRuleError, "the same with a callback"):
                await storage.append(batch, calls.append)
            equal(calls, [], "what the callback was called with")
            await holds(storage, entries, "after the refusal")
    async with trial.open() as storage:
        with refused(RaftRuleError, "an append of term 2 after a reopen"):
            await storage.append([trial.entry(4, term=2)])
        await storage.append(trial.entries(4, 6, term=3) + trial.entries(6, 8, term=1 << 63))
        want = entries + trial.entries(4, 6, term=3) + trial.entries(6, 8, term=1 << 63)
        await holds(storage, want, "after entries of rising terms")


@case
async def terms_go_on_from_what_a_truncation_or_a_purge_leaves(trial: Trial) -> None:
    """After a truncation the last entry's term counts, in an emptied log the frontier's."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 4, term=2) + trial.entries(4, 6, term=7))
        await storage.truncate(LogId(7, 4))
        with refused(RaftRuleError, "an append of term 1 behind one of term 2"):
            await storage.append([trial.entry(4, term=1)])
        await storage.append([trial.entry(4, term=3)])
        await storage.purge(LogId(5, 20))
        with refused(RaftRuleError, "an append of term 4 behind a frontier of term 5"):
            await storage.append([trial.entry(21, term=4)])
        await storage.append([trial.entry(21, term=5)])
        want = [trial.entry(21, term=5)]
        await holds(storage, want, "behind the frontier", purged=LogId(5, 20))
        await storage.truncate_after(None)
    async with trial.open() as storage:
        with refused(RaftRuleError, "an append of term 4 after a reopen"):
            await storage.append([trial.entry(21, term=4)])
        await holds(storage, [], "at the end", purged=LogId(5, 20))


@case
async def a_log_truncated_empty_takes_any_term(trial: Trial) -> None:
    """Where no entry is left and none was purged, there is no term to be below."""
    async with filled(trial, 1, 5) as storage:
        await storage.truncate_after(None)
        await storage.append(trial.entries(1, 3, term=0))
        await holds(storage, trial.entries(1, 3, term=0), "the log")


_BACKWARDS = (
    (Vote(5, 1), Vote(4, 1)),
    (Vote(5, 1), Vote(4, 1, committed=True)),
    (Vote(5, 1), Vote(0)),
    (Vote(5, 1), Vote(5, 2)),
    (Vote(5, 1), Vote(5, "1")),
    (Vote(5, 1), Vote(5)),
    (Vote(5, "a"), Vote(5, "b", committed=True)),
    (Vote(5, 1, committed=True), Vote(5, 1)),
    (Vote(5, 1, committed=True), Vote(5, 2, committed=True)),
    (Vote(5, committed=True), Vote(5, 1)),
)


@case
async def a_vote_never_goes_back(trial: Trial) -> None:
    """A lower term, another node or none in the same term, *committed* unsaid: refused."""
    for number, (saved, vote) in enumerate(_BACKWARDS):
        async with trial.open(str(number)) as storage:
            await storage.save_vote(saved)
            with refused(RaftRuleError, f"{vote} after {saved}"):
                await storage.save_vote(vote)
            equal(await storage.read_vote(), saved, "the vote after the refusal")
        async with trial.open(str(number)) as storage:
            equal(await storage.read_vote(), saved, "the vote after a reopen")
            with refused(RaftRuleError, f"{vote} after {saved} and a reopen"):
                await storage.save_vote(vote)


@case
async def what_is_committed_is_in_the_log_or_is_the_frontier(trial: Trial) -> None:
    """A committed log id that is neither is refused, and the one before stays."""
    async with trial.open() as storage:
        with refused(RaftRuleError, "a committed log id of an empty log"):
            await storage.save_committed(LogId(1, 1))
        await storage.append(trial.entries(1, 6, term=1, node_id=3))
        await storage.append(trial.entries(6, 11, term=2, node_id=4))
        await storage.save_committed(LogId(1, 5, 3))
        await storage.purge(LogId(1, 4, 3))
    async with trial.open() as storage:  # also of what is in no memory any more
        for log_id in (
            *(LogId(2, 11, 4), LogId(2, 99, 4), LogId(1, 6, 3), LogId(2, 5, 4), LogId(1, 5, 4)),
            *(LogId(1, 3, 3), LogId(9, 4, 3), LogId(1, 0)),
        ):
            with refused(RaftRuleError, f"save_committed({log_id})"):
                await storage.save_committed(log_id)
            equal(await storage.read_committed(), LogId(1, 5, 3), "committed afterwards")
        for log_id in (LogId(1, 4, 3), LogId(1, 5, 3), LogId(2, 6, 4), LogId(2, 10, 4)):
            await storage.save_committed(log_id)
            equal(await storage.read_committed(), log_id, "committed")
        await storage.save_committed(None)
        equal(await storage.read_committed(), None, "committed after None")


@case
async def who_purges_an_entry_names_its_term(trial: Trial) -> None:
    """A purge up to an entry that the log holds, under another term, is refused."""
    entries = trial.entries(1, 4, term=2) + trial.entries(4, 8, term=5)
    async with trial.open() as storage:
        await storage.append(entries)
    async with trial.open() as storage:
        for log_id in (LogId(1, 2), LogId(5, 3), LogId(2, 4), LogId(6, 7)):
            with refused(RaftRuleError, f"purge({log_id})"):
                await storage.purge(log_id)
            await holds(storage, entries, "after the refusal")
        await storage.purge(LogId(2, 3))
        await holds(storage, entries[3:], "after a purge", purged=LogId(2, 3))
        await storage.purge(LogId(9, 20))
        await holds(storage, [], "after a purge beyond the end", purged=LogId(9, 20))


# --- waiting -----------------------------------------------------------------------------


@case
async def an_entry_can_be_waited_for_until_it_is_durable(trial: Trial) -> None:
    """Waiting for an entry of the log ends; purged ones were durable before."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 6), ignore)
        for index in (5, 1, 3):
            await storage.wait_durable(LogId(1, index))
        await storage.purge(LogId(1, 3))
        for index in (2, 3, 4):
            await storage.wait_durable(LogId(1, index))
    async with trial.open() as storage:
        for index in (2, 3, 4, 5):
            await storage.wait_durable(LogId(1, index))
        await holds(storage, trial.entries(4, 6), "after a reopen", purged=LogId(1, 3))


@case
async def waiting_for_a_truncated_entry_is_told_from_one_never_appended(trial: Trial) -> None:
    """What is gone is LogTruncatedError, whether another has its index or the log ends before
    it; what was never appended is LogRangeError.
    """
    async with trial.open() as storage:
        with refused(LogRangeError, "waiting for an entry of an empty log"):
            await storage.wait_durable(LogId(1, 1))
        await storage.append(trial.entries(5, 10))
        for index in (10, 99, 4, 0):
            with refused(LogRangeError, f"waiting for entry {index} of 5 to 9"):
                await storage.wait_durable(LogId(1, index))
        await storage.truncate(LogId(1, 7))
        await storage.append(trial.entries(7, 8, term=2))
        for index in (7, 8, 9):
            with refused(LogTruncatedError, f"waiting for the truncated entry {index}"):
                await storage.wait_durable(LogId(1, index))
        with refused(LogRangeError, "waiting for entry 10, which never was"):
            await storage.wait_durable(LogId(1, 10))
        with refused(LogTruncatedError, "waiting for an entry of another leader"):
            await storage.wait_durable(LogId(2, 7, node_id=9))
        await storage.wait_durable(LogId(2, 7))
        await storage.truncate_after(None)
        for index in (5, 6, 7, 9):
            with refused(LogTruncatedError, f"waiting for entry {index} of an emptied log"):
                await storage.wait_durable(LogId(1, index))


@case
async def entries_are_judged_before_anything_is_written(trial: Trial) -> None:
    """A batch with something in it that is no entry leaves the log as it was."""
    wrong = [
        *(None, 3, "x", b"x", (1, 7, b"x", 0), Entry(1.0, 7), Entry(1, 7.0), Entry(1, 7, b"", 0.0)),  # type: ignore[arg-type]
        *(Entry(True, 7), Entry(1, 7, b"", True), Entry(-1, 7), Entry(1 << 64, 7), Entry("1", 7)),  # type: ignore[arg-type]
        *(Entry(1, 7, "x"), Entry(1, 7, None), Entry(1, 7, 3), Entry(1, 7, [1]), Entry(1, -7)),  # type: ignore[arg-type]
    ]
    async with filled(trial, 1, 6) as storage:
        for each in wrong:
            for batch in ([trial.entry(6), each], [trial.entry(6), each, trial.entry(8)]):
                with refused((TypeError, ValueError), f"an append with {each!r} in it"):
                    await storage.append(batch)  # type: ignore[arg-type]
                await holds(storage, trial.entries(1, 6), "after the refusal")
