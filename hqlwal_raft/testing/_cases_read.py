"""The cases of reading: ranges, bounded reads, key log ids, readers.

It must not know any storage.
"""

from __future__ import annotations

import functools

import anyio

from hqlwal_raft._types import Entry, LogId, Vote
from hqlwal_raft.protocols import LogReader

from ._case import Rounds, Trial, case, collected, equal, filled, holds, require

__all__: list[str] = []

_VOTE = Vote(term=3, node_id=7, committed=True)


@case
async def a_range_is_half_open(trial: Trial) -> None:
    """[start, stop) includes start and excludes stop, wherever it lies."""
    entries = trial.entries(1, 11)
    async with filled(trial, 1, 11) as storage:
        for start in range(1, 11):
            for stop in range(start, 12):
                got = await storage.try_get_log_entries(start, stop)
                equal(got, entries[start - 1 : stop - 1], f"[{start}, {stop})")


@case
async def a_range_without_a_stop_reads_to_the_end(trial: Trial) -> None:
    """``stop=None`` reads to the last entry."""
    entries = trial.entries(1, 11)
    async with filled(trial, 1, 11) as storage:
        for start in range(1, 11):
            got = await storage.try_get_log_entries(start)
            equal(got, entries[start - 1 :], f"[{start}, ...)")
            got = await storage.try_get_log_entries(start, None)
            equal(got, entries[start - 1 :], f"[{start}, None)")


@case
async def an_empty_range_gives_nothing(trial: Trial) -> None:
    """[n, n) holds no entry."""
    async with trial.open() as storage:
        equal(await storage.try_get_log_entries(0, 0), [], "[0, 0) of an empty log")
        await storage.append(trial.entries(3, 8))
        for index in (0, 3, 5, 7, 8, 100):
            equal(await storage.try_get_log_entries(index, index), [], f"[{index}, {index})")
            got = await collected(storage.entries_stream(index, index))
            equal(got, [], f"the stream of [{index}, {index})")


@case
async def an_inverted_range_gives_nothing(trial: Trial) -> None:
    """A range whose stop lies before its start holds no entry."""
    async with filled(trial, 3, 9) as storage:
        for start, stop in ((5, 4), (8, 3), (100, 4), (4, 0), (9, 8)):
            what = f"[{start}, {stop})"
            equal(await storage.try_get_log_entries(start, stop), [], what)
            equal(await storage.limited_get_log_entries(start, stop), [], f"limited {what}")
            equal(await collected(storage.entries_stream(start, stop)), [], f"stream {what}")


@case
async def a_range_partly_in_the_log_gives_what_is_there(trial: Trial) -> None:
    """What is not there is missing at the ends of the list."""
    entries = trial.entries(5, 11)
    async with filled(trial, 5, 11) as storage:
        for start, stop, want in (
            (0, 8, entries[:3]),
            (0, 6, entries[:1]),
            (4, 100, entries),
            (8, 100, entries[3:]),
            (10, 12, entries[5:]),
            (0, 1 << 64, entries),
        ):
            what = f"[{start}, {stop}) of 5 to 10"
            equal(await storage.try_get_log_entries(start, stop), want, what)
            equal(await storage.limited_get_log_entries(start, stop, 1 << 30), want, what)
            equal(await collected(storage.entries_stream(start, stop)), want, what)


@case
async def a_range_outside_the_log_gives_nothing(trial: Trial) -> None:
    """A range wholly before or behind the log gives an empty list."""
    async with filled(trial, 5, 11) as storage:
        for start, stop in ((0, 5), (2, 4), (11, 20), (11, None), (1 << 63, None), (12, 13)):
            equal(await storage.try_get_log_entries(start, stop), [], f"[{start}, {stop})")


@case
async def single_entries_are_read_in_any_order(trial: Trial) -> None:
    """Every index is read on its own, forwards, backwards and twice, also after a reopen."""
    entries = trial.entries(1, 13)
    async with filled(trial, 1, 13):
        pass
    async with trial.open() as storage:
        for index in [12, 1, 7, 7, *range(1, 13), *range(12, 0, -1)]:
            got = await storage.try_get_log_entries(index, index + 1)
            equal(got, [entries[index - 1]], f"entry {index}")


@case
async def a_read_leaves_the_list_to_the_caller(trial: Trial) -> None:
    """Changing a list that a read returned does not change the log."""
    async with filled(trial, 1, 6) as storage:
        got = await storage.try_get_log_entries(0)
        got.clear()
        await holds(storage, trial.entries(1, 6), "after the list was cleared")
        (await storage.get_key_log_ids()).clear()
        equal(len(await storage.get_key_log_ids()), 1, "the number of key log ids")


# --- bounded reads -----------------------------------------------------------------------


def _of_size(size: int, start: int, stop: int) -> list[Entry]:
    return [Entry(1, index, bytes([index]) * size) for index in range(start, stop)]


@case
async def a_limited_read_stops_at_its_bytes(trial: Trial) -> None:
    """The payloads of a limited read sum to at most ``max_bytes``."""
    size = max(trial.payload_bytes, 10)
    entries = _of_size(size, 1, 9)
    async with trial.open() as storage:
        await storage.append(entries)
        for budget in (size, 2 * size, 3 * size + size // 2, 7 * size):
            got = await storage.limited_get_log_entries(1, 9, budget)
            equal(got, entries[: len(got)], f"the entries within {budget} bytes")
            total = sum(len(entry.payload) for entry in got)
            require(total <= budget, f"{total} bytes came where {budget} were asked for")
            got = await storage.limited_get_log_entries(3, 5, budget)
            equal(got, entries[2 : 2 + len(got)], f"entries 3 and 4 within {budget} bytes")
            require(0 < len(got) <= 2, f"{len(got)} entries came from a range of 2")


@case
async def a_limited_read_gives_at_least_one_entry(trial: Trial) -> None:
    """Where there is an entry, a limited read gives one, however small the limit."""
    entries = _of_size(max(trial.payload_bytes, 1000), 1, 6)
    async with trial.open() as storage:
        await storage.append(entries)
        for budget in (0, 1, 999):
            for start in range(1, 6):
                got = await storage.limited_get_log_entries(start, None, budget)
                equal(got, entries[start - 1 : start], f"from {start} within {budget} bytes")


@case
async def a_limited_read_of_nothing_gives_nothing(trial: Trial) -> None:
    """Where the range holds no entry, a limited read gives an empty list."""
    async with trial.open() as storage:
        equal(await storage.limited_get_log_entries(0), [], "a limited read of an empty log")
        await storage.append(trial.entries(3, 6))
        for start, stop in ((0, 3), (6, 9), (4, 4), (6, None)):
            got = await storage.limited_get_log_entries(start, stop, 1 << 20)
            equal(got, [], f"a limited read of [{start}, {stop})")


@case
async def limited_reads_one_after_the_other_walk_the_whole_log(trial: Trial) -> None:
    """Each limited read continuing where the last ended, all entries are seen."""
    entries = [Entry(1, index, b"x" * (index * 97 % 400)) for index in range(1, 31)]
    async with trial.open() as storage:
        await storage.append(entries)
        got: list[Entry] = []
        while batch := await storage.limited_get_log_entries(len(got) + 1, None, 500):
            got += batch
        equal(got, entries, "the entries of all reads")


# --- single entries ----------------------------------------------------------------------


@case
async def an_entry_and_its_log_id_are_found_by_index(trial: Trial) -> None:
    """By its index an entry and its log id are found; None where the log does not hold it."""
    entries = trial.entries(3, 6, term=2, node_id=7) + trial.entries(6, 9, term=4)
    async with trial.open() as storage:
        equal(await storage.log_id_at(0), None, "the log id at 0 of an empty log")
        await storage.append(entries)
        await storage.purge(LogId(2, 4, 7))
    async with trial.open() as storage:
        reader = await storage.get_log_reader()
        for side in (storage, reader):
            for index in (0, 2, 3, 4, 9, 10, (1 << 64) - 1):
                equal(await side.try_get_log_entry(index), None, f"entry {index}")
                equal(await side.log_id_at(index), None, f"the log id at {index}")
            for entry in entries[2:]:
                equal(await side.try_get_log_entry(entry.index), entry, f"entry {entry.index}")
                got = await side.log_id_at(entry.index)
                equal(got, entry.log_id, f"the log id at {entry.index}")


# --- key log ids -------------------------------------------------------------------------


@case
async def key_log_ids_are_the_last_of_each_leader(trial: Trial) -> None:
    """The last log id of each leader (term, node id), each once, ascending."""
    leaders = [(1, 0), (1, 0), (1, 0), (2, 0), (2, 5), (2, 5), (4, 5), (4, 5), (4, 5)]
    entries = [
        trial.entry(index, term, node_id) for index, (term, node_id) in enumerate(leaders, 3)
    ]
    lasts = [entries[position].log_id for position in (2, 3, 5, 8)]
    async with trial.open() as storage:
        await storage.append(entries)
        equal(await storage.get_key_log_ids(), lasts, "key log ids")
        await storage.truncate(LogId(4, 10))
        lasts[-1] = entries[6].log_id
        equal(await storage.get_key_log_ids(), lasts, "with one entry of the last leader")
        await storage.purge(LogId(1, 4))
        equal(await storage.get_key_log_ids(), lasts, "after a purge within the first leader")
        await storage.purge(LogId(1, 5))
        equal(await storage.get_key_log_ids(), lasts[1:], "after a purge of the first leader")
    async with trial.open() as storage:
        equal(await storage.get_key_log_ids(), lasts[1:], "after a reopen")
        await storage.truncate_after(None)
        equal(await storage.get_key_log_ids(), [], "of an emptied log")


@case
async def key_log_ids_of_a_range_are_those_of_its_entries(trial: Trial) -> None:
    """Of a range, both ends of which are included, the last log id of each leader in it."""
    leaders = [(1, 0), (1, 0), (2, 5), (3, 1), (3, 1), (3, 2), (3, 2), (3, 2)]
    entries = [
        trial.entry(index, term, node_id) for index, (term, node_id) in enumerate(leaders, 3)
    ]
    async with trial.open() as storage:
        await storage.append(entries)
        for first in range(12):
            for last in range(12):
                within = [entry for entry in entries if first <= entry.index <= last]
                want = [
                    one.log_id
                    for one, other in zip(within, [*within[1:], None], strict=False)
                    if other is None or (one.term, one.node_id) != (other.term, other.node_id)
                ]
                got = await storage.get_key_log_ids(first, last)
                equal(got, want, f"key log ids from {first} to {last}")
        got = await storage.get_key_log_ids(LogId(1, 4), LogId(3, 6, 1))
        want = [entries[position].log_id for position in (1, 2, 3)]
        equal(got, want, "key log ids between log ids")
        equal(await storage.get_key_log_ids(last=LogId(1, 3)), [LogId(1, 3)], "a last")
        equal(await storage.get_key_log_ids(8), [entries[7].log_id], "a first")


@case
async def key_log_ids_of_a_single_leader_are_its_last(trial: Trial) -> None:
    """One leader: one log id, the last one."""
    async with trial.open() as storage:
        for index in range(4, 8):
            await storage.append(trial.entries(index, index + 1))
            equal(await storage.get_key_log_ids(), [LogId(1, index)], f"up to {index}")


# --- readers -----------------------------------------------------------------------------


@case
async def a_reader_reads_what_the_storage_reads(trial: Trial) -> None:
    """A reader has every reading method, with the storage's answers."""
    async with trial.open() as storage:
        reader = await storage.get_log_reader()
        equal(await reader.try_get_log_entries(0), [], "a reader of an empty log")
        equal(await reader.read_vote(), None, "the vote of an unused storage")
        entries = trial.entries(2, 8)
        await storage.append(entries)
        await storage.save_vote(_VOTE)
        await holds(reader, entries, "the reader")
        equal(await reader.try_get_log_entries(3, 5), entries[1:3], "a range")
        equal(await reader.limited_get_log_entries(3, 5, 0), entries[1:2], "a limited read")
        equal(await collected(reader.entries_stream(3, 5)), entries[1:3], "a stream")
        equal(await reader.get_key_log_ids(), await storage.get_key_log_ids(), "key log ids")
        equal(await reader.read_vote(), _VOTE, "the vote")


@case
async def a_reader_that_outlives_a_truncation_sees_the_new_entries(trial: Trial) -> None:
    """However old a reader is, what was truncated is seen by no read of it."""
    async with filled(trial, 1, 11) as storage:
        reader = await storage.get_log_reader()
        await holds(reader, trial.entries(1, 11), "before the truncation")
        await storage.truncate(LogId(1, 5))
        await holds(reader, trial.entries(1, 5), "after the truncation")
        await storage.append(trial.entries(5, 9, term=2))
        want = trial.entries(1, 5) + trial.entries(5, 9, term=2)
        await holds(reader, want, "after the append of a new leader")
        got = await reader.try_get_log_entries(5, 6)
        equal(got, trial.entries(5, 6, term=2), "the entry that was replaced")


@case
async def a_reader_that_outlives_a_purge_sees_it(trial: Trial) -> None:
    """However old a reader is, what was purged is seen by no read of it."""
    async with filled(trial, 1, 11) as storage:
        reader = await storage.get_log_reader()
        await holds(reader, trial.entries(1, 11), "before the purge")
        await storage.purge(LogId(1, 6))
        await holds(reader, trial.entries(7, 11), "after the purge", purged=LogId(1, 6))
        equal(await reader.try_get_log_entries(1, 7), [], "what was purged")
        await storage.purge(LogId(2, 20))
        await holds(reader, [], "after the purge of all", purged=LogId(2, 20))
        await storage.append(trial.entries(21, 24, term=2))
        new = trial.entries(21, 24, term=2)
        await holds(reader, new, "after an append", purged=LogId(2, 20))


@case
async def a_read_sees_the_log_at_one_moment(trial: Trial) -> None:
    """While others write, every read shows whole batches, consecutive, from one moment."""
    async with trial.open() as storage:
        reader = await storage.get_log_reader()
        rounds = Rounds()

        async def write() -> None:
            for start in range(1, 121, 4):
                rounds.begin()
                await storage.append(trial.entries(start, start + 4))
                if start % 24 == 1 and start > 1:
                    rounds.begin()
                    await storage.truncate(LogId(1, start))
                    await storage.append(trial.entries(start, start + 4))
            rounds.end()

        async def read(side: LogReader) -> None:
            got = await side.try_get_log_entries(0)
            equal(got, trial.entries(1, len(got) + 1), "what a read showed")
            require(len(got) % 4 == 0, f"{len(got)} entries: a batch was seen in part")

        async with anyio.create_task_group() as tasks:
            for side in (storage, reader):
                tasks.start_soon(rounds.repeat, functools.partial(read, side))
            tasks.start_soon(write)
