"""The cases of Raft's receiver rule: what a follower does with a leader's entries.

It must not know any storage.
"""

from __future__ import annotations

from hqlwal_raft._types import AppendOutcome, Entry, LogId
from hqlwal_raft.errors import (
    LogGapError,
    RaftRuleError,
)
from hqlwal_raft.protocols import LogStorage

from ._case import Trial, all_started, case, equal, filled, holds, ignore, refused

__all__: list[str] = []


async def _receives(
    storage: LogStorage, prev: LogId | None, entries: list[Entry], want: AppendOutcome, what: str
) -> None:
    equal(await storage.append_after(prev, entries), want, what)


def _matched(
    last: LogId | None, truncated_from: int | None = None, appended: int = 0
) -> AppendOutcome:
    return AppendOutcome(True, last, None, truncated_from, appended)


def _unmatched(last: LogId | None, hint: LogId | None) -> AppendOutcome:
    return AppendOutcome(False, last, hint)


@case
async def what_follows_the_last_entry_is_appended(trial: Trial) -> None:
    """Entries behind the log's last one are appended, and are there after a reopen."""
    async with trial.open() as storage:
        await _receives(storage, None, trial.entries(1, 4), _matched(LogId(1, 3), None, 3), "first")
        want = _matched(LogId(2, 5), None, 2)
        await _receives(storage, LogId(1, 3), trial.entries(4, 6, term=2), want, "then")
    async with trial.open() as storage:
        log = trial.entries(1, 4) + trial.entries(4, 6, term=2)
        await holds(storage, log, "after a reopen")
        want = _matched(LogId(3, 6), None, 1)
        await _receives(storage, LogId(2, 5), [trial.entry(6, term=3)], want, "after a reopen")
        await holds(storage, [*log, trial.entry(6, term=3)], "at the end")


@case
async def what_is_there_is_skipped(trial: Trial) -> None:
    """Entries that the log holds are skipped, and those behind the last one given stay."""
    entries = trial.entries(1, 6) + trial.entries(6, 11, term=2)
    async with trial.open() as storage:
        await storage.append(entries)
    async with trial.open() as storage:
        for prev, start, stop in ((None, 1, 4), (None, 1, 11), (1, 2, 11), (5, 6, 7), (9, 10, 11)):
            held = entries[start - 1 : stop - 1]
            log_id = None if prev is None else entries[prev - 1].log_id
            await _receives(storage, log_id, held, _matched(LogId(2, 10)), f"[{start}, {stop})")
            await holds(storage, entries, f"after [{start}, {stop})")
        more = [*entries[4:], *trial.entries(11, 13, term=2)]
        want = _matched(LogId(2, 12), None, 2)
        await _receives(storage, LogId(1, 4), more, want, "a batch that goes beyond the end")
        await holds(storage, [*entries, *more[-2:]], "after it")


@case
async def the_first_conflict_truncates_and_the_rest_is_appended(trial: Trial) -> None:
    """From the first entry on that is another one the leader's entries take the log's place."""
    old = trial.entries(1, 13)
    for first in (12, 11, 7, 4, 2, 1):
        name = str(first)
        new = [*old[: first - 1], *trial.entries(first, first + 3, term=2)]
        async with trial.open(name) as storage:
            await storage.append(old)
            prev = None if first < 4 else old[first - 4].log_id
            batch = new if prev is None else new[prev.index :]
            want = _matched(LogId(2, first + 2), first, 3)
            await _receives(storage, prev, batch, want, f"a conflict at {first}")
            await holds(storage, new, f"after a conflict at {first}")
            await storage.append([trial.entry(first + 3, term=2)])
        async with trial.open(name) as storage:
            want_log = [*new, trial.entry(first + 3, term=2)]
            await holds(storage, want_log, f"after a conflict at {first} and a reopen")


@case
async def a_conflict_is_a_matter_of_term_and_node_id(trial: Trial) -> None:
    """Another node's entry of the same term is another entry; payloads are not compared."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 6, term=3, node_id=1))
        same = [entry._replace(payload=b"") for entry in trial.entries(3, 6, term=3, node_id=1)]
        await _receives(storage, LogId(3, 2, 1), same, _matched(LogId(3, 5, 1)), "the same log ids")
        new = trial.entries(4, 6, term=3, node_id=2)
        want = _matched(LogId(3, 5, 2), 4, 2)
        await _receives(storage, LogId(3, 3, 1), new, want, "another node's")
        await holds(storage, trial.entries(1, 4, term=3, node_id=1) + new, "afterwards")


@case
async def without_a_match_nothing_is_changed_and_there_is_a_hint(trial: Trial) -> None:
    """The hint is the last log id at or before the previous one's index of no later leader."""
    log = trial.entries(5, 8, term=2) + trial.entries(8, 11, term=4, node_id=3)
    log += trial.entries(11, 14, term=4, node_id=5)
    last = LogId(4, 13, 5)
    async with trial.open() as storage:
        for prev in (LogId(1, 1), LogId(0, 0), LogId(9, 99, 9)):
            await _receives(storage, prev, [], _unmatched(None, None), f"an empty log, {prev}")
        await storage.append(log)
    async with trial.open() as storage:
        for prev, hint in (
            (LogId(9, 99, 9), last),
            (LogId(4, 14, 5), last),
            (LogId(5, 13), last),
            (LogId(4, 14, 4), LogId(4, 10, 3)),
            (LogId(4, 12, 4), LogId(4, 10, 3)),
            (LogId(4, 11, 3), LogId(4, 10, 3)),
            (LogId(4, 9, 4), LogId(4, 9, 3)),
            (LogId(3, 99, 9), LogId(2, 7)),
            (LogId(3, 8), LogId(2, 7)),
            (LogId(3, 6), LogId(2, 6)),
            (LogId(1, 13), None),
            (LogId(1, 5), None),
            (LogId(2, 4), None),
            (LogId(9, 0), None),
        ):
            for batch in ([], [trial.entry(prev.index + 1, term=9)]):
                await _receives(storage, prev, batch, _unmatched(last, hint), f"{prev}")
                await holds(storage, log, f"after {prev}")


@case
async def without_entries_it_is_only_compared(trial: Trial) -> None:
    """A heartbeat: whether the previous log id is there; what is behind it stays."""
    async with trial.open() as storage:
        await _receives(storage, None, [], _matched(None), "an empty log")
        await storage.append(trial.entries(1, 6), ignore)
        for index in (1, 3, 5):
            await _receives(storage, LogId(1, index), [], _matched(LogId(1, 5)), f"at {index}")
        await _receives(storage, None, [], _matched(LogId(1, 5)), "the very start")
        await _receives(storage, LogId(2, 5), [], _unmatched(LogId(1, 5), LogId(1, 5)), "another")
        await holds(storage, trial.entries(1, 6), "afterwards")


@case
async def none_stands_for_the_very_start(trial: Trial) -> None:
    """An empty log that was never purged takes any first index; another one its own first, or one
    that was purged.
    """
    for first in (0, 1, 7):
        async with trial.open(str(first)) as storage:
            want = _matched(LogId(1, first + 2), None, 3)
            await _receives(storage, None, trial.entries(first, first + 3), want, f"from {first}")
            for other in (first + 1, first + 3, 99):
                want = _unmatched(LogId(1, first + 2), LogId(1, first + 2))
                await _receives(storage, None, trial.entries(other, other + 9), want, f"at {other}")
            await holds(storage, trial.entries(first, first + 3), f"from {first}")
            new = trial.entries(first, first + 2, term=2)
            want = _matched(LogId(2, first + 1), first, 2)
            await _receives(storage, None, new, want, "others from the very start")
            await holds(storage, new, "afterwards")


@case
async def what_was_purged_is_held(trial: Trial) -> None:
    """Entries at or below the purge frontier are committed: they match, and are skipped."""
    async with filled(trial, 1, 11) as storage:
        await storage.purge(LogId(1, 6))
        for prev, first in ((None, 1), (None, 6), (LogId(1, 2), 3), (LogId(1, 6), 7)):
            batch = trial.entries(first, 9)
            await _receives(storage, prev, batch, _matched(LogId(1, 10)), f"{first} to 8")
        # of those below the frontier nobody knows any more which they were
        await _receives(storage, LogId(9, 4), [], _matched(LogId(1, 10)), "below the frontier")
        purged = trial.entries(2, 5)
        await _receives(storage, LogId(1, 1), purged, _matched(LogId(1, 10)), "all below it")
        want = _unmatched(LogId(1, 10), LogId(1, 6))
        await _receives(storage, LogId(2, 6), [], want, "the frontier with another term")
        await _receives(storage, LogId(0, 8), [], want, "behind the frontier, an old term")
        want = _unmatched(LogId(1, 10), LogId(1, 10))
        await _receives(storage, None, trial.entries(7, 9), want, "from the very start, behind it")
        new = trial.entries(3, 8) + trial.entries(8, 10, term=2)
        await _receives(storage, LogId(1, 2), new, _matched(LogId(2, 9), 8, 2), "across it")
        log = [trial.entry(7), *trial.entries(8, 10, term=2)]
        await holds(storage, log, "afterwards", purged=LogId(1, 6))
        await storage.purge(LogId(4, 20))  # a snapshot was installed
        batch = trial.entries(19, 21, term=4) + trial.entries(21, 23, term=5)
        want = _matched(LogId(5, 22), None, 2)
        await _receives(storage, LogId(3, 18), batch, want, "behind a snapshot")
    async with trial.open() as storage:
        await holds(storage, batch[2:], "after a reopen", purged=LogId(4, 20))


@case
async def a_conflict_with_what_is_committed_is_refused(trial: Trial) -> None:
    """What is committed, or was purged, is never replaced: nothing is changed."""
    entries = trial.entries(1, 11)
    async with filled(trial, 1, 11) as storage:
        await storage.purge(LogId(1, 3))
        await storage.save_committed(LogId(1, 7))
        for prev, first, place in ((LogId(1, 5), 6, 7), (LogId(1, 3), 4, 4), (LogId(1, 2), 3, 3)):
            batch = trial.entries(first, place) + trial.entries(place, 12, term=2)
            with refused(RaftRuleError, f"another entry {place}"):
                await storage.append_after(prev, batch)
            await holds(storage, entries[3:], "after the refusal", purged=LogId(1, 3))
        equal(await storage.read_committed(), LogId(1, 7), "committed")
        new = trial.entries(8, 10, term=2)
        await _receives(storage, LogId(1, 7), new, _matched(LogId(2, 9), 8, 2), "behind it")
        equal(await storage.read_committed(), LogId(1, 7), "committed")


@case
async def what_a_leader_cannot_have_sent_is_refused(trial: Trial) -> None:
    """Entries that do not follow the previous log id, or each other: nothing is changed, and
    that also where some of them would have been skipped, or would have cut the log.
    """
    async with filled(trial, 1, 11) as storage:
        for prev, batch in (
            (LogId(1, 4), trial.entries(6, 8)),
            (LogId(1, 4), trial.entries(4, 8)),
            (LogId(1, 4), [trial.entry(5), trial.entry(7)]),
            (LogId(1, 4), [trial.entry(5, term=2), trial.entry(5, term=2)]),
            (None, [trial.entry(1), trial.entry(3)]),
            (LogId(9, 99), trial.entries(101, 103)),
        ):
            with refused(LogGapError, f"entries {[e.index for e in batch]} after {prev}"):
                await storage.append_after(prev, batch)
        for prev, batch in (
            (LogId(1, 4), [trial.entry(5, term=0)]),
            (LogId(1, 4), [trial.entry(5, term=3), trial.entry(6, term=2)]),
            (None, [trial.entry(1), trial.entry(2, term=0)]),
        ):
            with refused(RaftRuleError, f"terms {[e.term for e in batch]} after {prev}"):
                await storage.append_after(prev, batch)
        for wrong in (None, 3, (1, 5, b"", 0), Entry(1, 5, "x"), Entry(1.0, 5)):  # type: ignore[arg-type]
            batch = [trial.entry(5, term=2), wrong]  # type: ignore[list-item]
            with refused((TypeError, ValueError), f"{wrong!r} among the entries"):
                await storage.append_after(LogId(1, 4), batch)
        await holds(storage, trial.entries(1, 11), "at the end")


@case
async def leaders_follow_each_other(trial: Trial) -> None:
    """Many leaders, each of which overwrites some of what the one before it sent."""
    log: list[Entry] = []
    async with trial.open() as storage:
        for term in range(1, 25):
            kept = len(log) * 2 // 3
            count = 8 if term % 3 else 2
            new = log[:kept] + trial.entries(kept + 1, kept + 1 + count, term=term)
            first = max(kept - 3, 0)
            prev = new[first - 1].log_id if first else None
            outcome = await storage.append_after(prev, new[first:])
            equal(outcome.truncated_from, kept + 1 if log else None, f"truncated in term {term}")
            log = new
            await holds(storage, log, f"in term {term}")
    async with trial.open() as storage:
        await holds(storage, log, "after a reopen")


@case
async def it_keeps_its_place_in_the_order_of_the_calls(trial: Trial) -> None:
    """What was called before it is judged with it, and nothing comes between cut and append."""
    async with trial.open() as storage:
        outcomes = await all_started(
            [
                lambda: storage.append(trial.entries(1, 6)),
                lambda: storage.append_after(LogId(1, 5), trial.entries(6, 9)),
                lambda: storage.append_after(LogId(1, 3), trial.entries(4, 7, term=2)),
                lambda: storage.append(trial.entries(7, 9, term=2)),
                lambda: storage.append_after(LogId(2, 8), trial.entries(9, 11, term=2)),
                lambda: storage.append_after(LogId(1, 8), trial.entries(9, 11, term=3)),
                lambda: storage.truncate(LogId(2, 10)),
                lambda: storage.append_after(LogId(2, 9), trial.entries(10, 12, term=3)),
            ]
        )
        log = trial.entries(1, 4) + trial.entries(4, 10, term=2) + trial.entries(10, 12, term=3)
        want = [
            *(None, _matched(LogId(1, 8), None, 3), _matched(LogId(2, 6), 4, 3), None),
            *(_matched(LogId(2, 10), None, 2), _unmatched(LogId(2, 10), LogId(1, 3)), None),
            _matched(LogId(3, 11), None, 2),
        ]
        equal(outcomes, want, "the outcomes")
        await holds(storage, log, "afterwards")
    async with trial.open() as storage:
        await holds(storage, log, "after a reopen")


@case
async def one_that_is_cancelled_is_made_all_the_same(trial: Trial) -> None:
    """Being cancelled ends the waiting: the log is cut, and the rest is appended."""
    async with filled(trial, 1, 11) as storage:
        await all_started(
            [
                lambda: storage.append_after(LogId(1, 5), trial.entries(6, 9, term=2)),
                lambda: storage.append_after(LogId(2, 8), trial.entries(9, 12, term=2)),
            ],
            cancelled=(0, 1),
        )
        await _receives(storage, LogId(2, 11), [], _matched(LogId(2, 11)), "behind both")
        log = trial.entries(1, 6) + trial.entries(6, 12, term=2)
        await holds(storage, log, "afterwards")
    async with trial.open() as storage:
        await holds(storage, log, "after a reopen")
