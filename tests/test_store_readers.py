"""Reading from our store: cold segments, reads that are overtaken, bounded streams."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import (
    CorruptionError,
    Entry,
    LeaderChangedError,
    LogId,
    LogRangeError,
    RaftLogStorage,
    Vote,
    WalClosedError,
    blocking,
)
from hqlwal_raft._files import open_files
from hqlwal_raft._format import RECORD_OVERHEAD_BYTES, segment_name
from hqlwal_raft._places import GROUP_BYTES, GROUP_RECORDS
from tests._support import ColdEnvironment, Gate, entries, on_both_backends

SEGMENT_SIZE = 8192
SIZE = 900


async def fill(directory: Path, count: int = 60) -> None:
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, count + 1, size=SIZE))


def cold(directory: Path, *hooks: Any) -> Any:
    """Opens the log with nothing in memory."""
    return RaftLogStorage.open(
        directory, segment_size=SEGMENT_SIZE, cache_bytes=0, environment=ColdEnvironment(*hooks)
    )


@on_both_backends
async def test_cold_segments_are_read_whatever_the_range(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with cold(tmp_path) as store:
        assert await store.try_get_log_entries(0) == entries(1, 61, size=SIZE)
        for start in (1, 8, 9, 30, 60):
            for stop in (start + 1, start + 8, 61):
                want = entries(start, min(stop, 61), size=SIZE)
                assert await store.try_get_log_entries(start, stop) == want
        assert [entry async for entry in store.entries_stream(1)] == entries(1, 61, size=SIZE)
        assert await store.get_key_log_ids() == [LogId(1, 60)]


@on_both_backends
async def test_a_log_longer_than_the_cache_is_read_whole(tmp_path: Path) -> None:
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=10_000
    ) as store:
        for start in range(1, 301, 10):
            await store.append(entries(start, start + 10, size=SIZE))
            assert store.statistics().cached_bytes <= 10_000
        assert await store.try_get_log_entries(0) == entries(1, 301, size=SIZE)
        assert [entry async for entry in store.entries_stream(0)] == entries(1, 301, size=SIZE)


@on_both_backends
async def test_key_log_ids_are_found_without_reading_the_whole_log(tmp_path: Path) -> None:
    read: list[str] = []
    leaders = [(1, 1)] * 200 + [(2, 2)] * 3 + [(2, 3)] * 200 + [(5, 1)]
    log = [
        Entry(term, index, b"x" * SIZE, node_id) for index, (term, node_id) in enumerate(leaders, 1)
    ]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(log)
    note = lambda call, path: read.append(call) if call == "pread" else None  # noqa: E731
    async with cold(tmp_path, note) as store:
        del read[:]
        got = await store.get_key_log_ids()
        assert len(read) < len(log) / 4
        assert got == [LogId(1, 200, 1), LogId(2, 203, 2), LogId(2, 403, 3), LogId(5, 404, 1)]
        assert (await store.get_log_state()).last_log_id == LogId(5, 404, 1)


@on_both_backends
async def test_the_log_state_never_reads_the_disk(tmp_path: Path) -> None:
    await fill(tmp_path)
    calls: list[str] = []
    async with cold(tmp_path, lambda call, path: calls.append(call)) as store:
        await store.append(entries(61, 62))
        await store.flush()
        before = [call for call in calls if call.startswith("read")]
        for _ in range(10):
            assert (await store.get_log_state()).last_log_id == LogId(1, 61)
        assert [call for call in calls if call.startswith("read")] == before


# --- overtaken reads ---------------------------------------------------------------------


async def overtaken(store: RaftLogStorage, gate: Gate, write: Any) -> Any:
    """What a read of everything gives that is at the disk while ``write`` is done."""
    outcome: Any = None

    async def read() -> None:
        nonlocal outcome
        try:
            outcome = await store.try_get_log_entries(0)
        except Exception as error:
            outcome = error

    gate.shut()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await gate.held()

        async def open_later() -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            gate.open()

        tasks.start_soon(open_later)
        await write()
    return outcome


@on_both_backends
async def test_a_read_overtaken_by_a_purge_shows_the_log_of_one_moment(tmp_path: Path) -> None:
    await fill(tmp_path)
    gate = Gate("pread")
    async with cold(tmp_path, gate) as store:
        got = await overtaken(store, gate, lambda: store.purge(LogId(1, 40)))
        assert got in (entries(1, 61, size=SIZE), entries(41, 61, size=SIZE))
        assert await store.try_get_log_entries(0) == entries(41, 61, size=SIZE)


@on_both_backends
async def test_a_read_overtaken_by_a_purge_of_everything_is_no_error(tmp_path: Path) -> None:
    await fill(tmp_path)
    gate = Gate("pread")
    async with cold(tmp_path, gate) as store:
        got = await overtaken(store, gate, lambda: store.purge(LogId(3, 100)))
        assert got in (entries(1, 61, size=SIZE), [])
        assert await store.try_get_log_entries(0) == []


@on_both_backends
async def test_a_read_overtaken_by_a_truncation_shows_the_log_of_one_moment(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    gate = Gate("pread")
    new = entries(21, 50, SIZE, term=2)
    async with cold(tmp_path, gate) as store:

        async def replace() -> None:
            await store.truncate(LogId(1, 21))
            await store.append(new)

        got = await overtaken(store, gate, replace)
        assert got in (
            entries(1, 61, size=SIZE),
            entries(1, 21, size=SIZE),
            entries(1, 21, size=SIZE) + new,
        )
        assert await store.try_get_log_entries(0) == entries(1, 21, size=SIZE) + new


@on_both_backends
async def test_a_read_overtaken_by_the_close_is_refused(tmp_path: Path) -> None:
    await fill(tmp_path)
    gate = Gate("pread")
    async with cold(tmp_path, gate) as store:
        got = await overtaken(store, gate, store.aclose)
        assert isinstance(got, WalClosedError)
    async with cold(tmp_path) as store:
        assert await store.try_get_log_entries(0) == entries(1, 61, size=SIZE)


@on_both_backends
async def test_a_cancelled_read_leaves_the_store_usable(tmp_path: Path) -> None:
    await fill(tmp_path)
    gate = Gate("pread")
    async with cold(tmp_path, gate) as store:
        gate.shut()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.try_get_log_entries, 0)
            await gate.held()
            tasks.cancel_scope.cancel()
        await store.append(entries(61, 63, size=SIZE))  # while the read is still at the disk
        gate.open()
        await store.purge(LogId(1, 50))
        assert await store.try_get_log_entries(0) == entries(51, 63, size=SIZE)


# --- streams -----------------------------------------------------------------------------


@on_both_backends
async def test_a_stream_overtaken_by_a_purge_says_so(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with cold(tmp_path) as store:
        got = []
        with pytest.raises(LogRangeError):
            async for entry in store.entries_stream(0):
                got.append(entry)
                if entry.index == 10:
                    await store.purge(LogId(1, 50))
        assert got == entries(1, len(got) + 1, size=SIZE)
        assert len(got) >= 10
        # one that begins below the frontier begins with the first entry there is
        rest = [entry async for entry in store.entries_stream(0)]
        assert rest == entries(51, 61, size=SIZE)


@on_both_backends
async def test_a_stream_ends_with_the_store(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with cold(tmp_path) as store:
        got = []
        with pytest.raises(WalClosedError):
            async for entry in store.entries_stream(0):
                got.append(entry)
                if entry.index == 10:
                    await store.aclose()
        assert got == entries(1, len(got) + 1, size=SIZE)


@on_both_backends
async def test_a_bounded_stream_over_cold_segments_gives_every_entry(tmp_path: Path) -> None:
    await fill(tmp_path)
    leader = Vote(3, "leader", committed=True)
    async with cold(tmp_path) as store:
        await store.save_vote(leader)
        got = [entry async for entry in store.leader_bounded_stream(leader, 5, 55)]
        assert got == entries(5, 55, size=SIZE)


@on_both_backends
async def test_a_vote_that_is_not_committed_bounds_no_stream(tmp_path: Path) -> None:
    await fill(tmp_path)
    candidate = Vote(3, "candidate")
    async with cold(tmp_path) as store:
        await store.save_vote(candidate)
        with pytest.raises(LeaderChangedError, match="candidate"):
            [entry async for entry in store.leader_bounded_stream(candidate, 1)]


@on_both_backends
async def test_a_stream_of_a_long_log_lets_others_run(tmp_path: Path) -> None:
    await fill(tmp_path, count=600)
    turns = 0

    async with cold(tmp_path) as store, anyio.create_task_group() as tasks:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count_turns)
        seen = [entry.index async for entry in store.entries_stream(0)]
        assert seen == list(range(1, 601))
        tasks.cancel_scope.cancel()
    assert turns > 2


# --- single reads, and what they cost ------------------------------------------------------


class Counting(ColdEnvironment):
    """Counts the calls that read, and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.bytes = self.opened = 0

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        self.opened += 1
        return super().open(path, flags, mode, dir_fd=dir_fd)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        data = super().pread(descriptor, length, offset)
        self.reads += 1
        self.bytes += len(data)
        return data


def log_of(sizes: Sequence[int], count: int) -> list[Entry]:
    rng = random.Random(count)
    return [Entry(1, i, rng.randbytes(sizes[i % len(sizes)])) for i in range(1, count + 1)]


async def written(directory: Path, log: list[Entry], segment_size: int = SEGMENT_SIZE) -> None:
    async with RaftLogStorage.open(
        directory, segment_size=segment_size, sync="immediate_async"
    ) as store:
        for first in range(0, len(log), 500):
            await store.append(log[first : first + 500])


@on_both_backends
@pytest.mark.parametrize(("sizes", "most"), [([68], 100), ([20, 68, 300], GROUP_BYTES)])
async def test_once_a_segment_was_looked_through_any_entry_takes_one_short_read(
    tmp_path: Path, sizes: list[int], most: int
) -> None:
    """Whichever segments are read in between: more than are kept open."""
    log = log_of(sizes, 16_000)
    await written(tmp_path, log, 16 << 10)
    environment = Counting()
    async with RaftLogStorage.open(
        tmp_path, segment_size=16 << 10, cache_bytes=0, environment=environment
    ) as store:
        segments = store._core.log.segments
        assert len(segments) > 90
        for segment in segments:
            await store.try_get_log_entry(segment.first_id)
        some = random.Random(7).sample(log, 300)
        for entry in some:
            environment.reads = environment.bytes = environment.opened = 0
            assert await store.try_get_log_entry(entry.index) == entry
            # where the file was closed meanwhile, its salt tells whether it is the same
            assert environment.opened <= 1
            assert environment.reads <= 1 + environment.opened
            assert environment.bytes <= most + 4 * environment.opened
        # what was closed and is read again stays open from then on
        assert 80 < sum(segment.is_loaded for segment in segments) <= len(segments)
        environment.opened = 0
        assert await store.try_get_log_entry(some[-1].index) == some[-1]
        assert environment.opened == 0
        memory = sum(segment.places.memory_bytes for segment in segments if segment.places)
        assert memory <= 0.4 * len(log) + 12 * len(segments)


class Poor(Counting):
    """A process that may have few files open."""

    def descriptor_limit(self) -> int:
        return 2 * (open_files() + 66)


@on_both_backends
@pytest.mark.parametrize("is_scan", [True, False])
async def test_neither_a_scan_nor_random_reads_take_the_descriptors_of_others(
    tmp_path: Path, *, is_scan: bool
) -> None:
    log = log_of([900], 1000)
    await written(tmp_path, log)
    environment = Counting() if is_scan else Poor()
    gc.collect()
    before = open_files()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=0, environment=environment
    ) as store:
        segments = store._core.log.segments
        assert len(segments) > 120
        for entry in log if is_scan else random.Random(1).choices(log, k=500):
            assert await store.try_get_log_entry(entry.index) == entry
        assert open_files() - before <= 75


@on_both_backends
async def test_a_warm_read_of_an_entry_takes_as_many_steps_in_a_long_log_as_in_a_short_one(
    tmp_path: Path,
) -> None:
    async def steps(count: int) -> int:
        path = tmp_path / str(count)
        await written(path, log_of([900], count))
        found = 0

        def count_step(frame: Any, event: str, argument: Any) -> None:
            nonlocal found
            found += event in ("call", "c_call")

        async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE, cache_bytes=0) as store:
            await store.try_get_log_entry(count // 2)
            await store.try_get_log_entry(count // 2)
            sys.setprofile(count_step)
            try:
                await store.try_get_log_entry(count // 2)
            finally:
                sys.setprofile(None)
        return found

    assert await steps(100) == await steps(3000) <= 60


@on_both_backends
@pytest.mark.parametrize("budget", [1, 500, 5000, 100_000])
async def test_a_chunk_of_mixed_sizes_ends_where_its_budget_does(
    tmp_path: Path, budget: int
) -> None:
    log = log_of([20, 68, 300, 3000], 1000)
    await written(tmp_path, log)
    async with cold(tmp_path) as store:
        for start in (1, 2, 63, 64, 65, 500, 997):
            got = await store.limited_get_log_entries(start, None, budget)
            assert got == log[start - 1 : start - 1 + len(got)]
            sizes = [len(entry.payload) for entry in log[start - 1 :]]
            most = next((n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) > budget), None)
            assert len(got) == (len(sizes) if most is None else max(most - 1, 1))


# --- damage that came after a segment was looked through -------------------------------------


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    with path.open("r+b") as file:
        file.seek(bit // 8)
        file.write(data[bit // 8 : bit // 8 + 1])


async def _outcomes(store: Any, log: list[Entry]) -> list[Entry | int]:
    """Each entry by a read of its own; where that is damage, the first id that it names."""
    found: list[Entry | int] = []
    for entry in log:
        try:
            got = await store.try_get_log_entry(entry.index)
            assert got == entry, "read as an entry that was never written, or as not there"
            found.append(got)
        except CorruptionError as error:
            assert error.first_id is not None
            assert error.last_id == entry.index
            found.append(error.first_id)
    return found


@on_both_backends
@pytest.mark.parametrize("sizes", [[30], [30, 70, 1]], ids=["alike", "mixed"])
async def test_a_damaged_length_never_leads_to_what_is_no_entry(
    tmp_path: Path, sizes: list[int]
) -> None:
    log = log_of(sizes, 2 * GROUP_RECORDS + 10)
    await written(tmp_path, log, 64 << 10)
    path = tmp_path / segment_name(1)
    bad = GROUP_RECORDS + 20
    start = 64 + sum(RECORD_OVERHEAD_BYTES + len(entry.payload) for entry in log[: bad - 1])
    async with RaftLogStorage.open(tmp_path, cache_bytes=0) as store:
        assert await store.try_get_log_entries(1) == log
        for bit in range(32):
            place = (start + 12) * 8 + bit
            _flip(path, place)
            found = await _outcomes(store, log)
            assert found[bad - 1] == bad
            for entry, outcome in zip(log, found, strict=True):
                # what only lengths of a damaged group lead to may be lost with it, by its name
                assert outcome == entry or (outcome == bad and entry.index >= bad)
                if entry.index > 2 * GROUP_RECORDS or len(sizes) == 1:
                    assert outcome == entry or entry.index == bad
            with pytest.raises(CorruptionError) as caught:
                await store.try_get_log_entries(1)
            assert caught.value.first_id == bad
            _flip(path, place)
        assert await _outcomes(store, log) == log


@on_both_backends
async def test_a_truncation_behind_a_damaged_length_is_refused_or_exact(tmp_path: Path) -> None:
    log = log_of([30, 70, 1], 2 * GROUP_RECORDS)
    await written(tmp_path, log, 64 << 10)
    path = tmp_path / segment_name(1)
    bad, cut = GROUP_RECORDS + 5, GROUP_RECORDS + 20
    start = 64 + sum(RECORD_OVERHEAD_BYTES + len(entry.payload) for entry in log[: bad - 1])
    # Of purged entries that lead astray no one can be named: the first of their group is.
    for purged, named in (
        (None, bad),
        (LogId(1, bad - 1), bad),
        (LogId(1, cut - 1), GROUP_RECORDS + 1),
    ):
        async with RaftLogStorage.open(tmp_path, cache_bytes=0) as store:
            assert store._core.log.segments[0].places is not None
            store._core.log.segments[0].places.settle(store._core.log.segments[0].end)
            if purged is not None:
                await store.purge(purged)
            _flip(path, (start + 15) * 8)
            before = path.read_bytes()
            with pytest.raises(CorruptionError) as caught:
                await store.truncate(LogId(1, cut))
            assert caught.value.first_id == named
            assert path.read_bytes() == before
            _flip(path, (start + 15) * 8)
            assert await store.try_get_log_entries(cut) == log[cut - 1 :]


@on_both_backends
async def test_a_damaged_purged_entry_keeps_no_truncation_back_where_places_are_known(
    tmp_path: Path,
) -> None:
    log = log_of([30], 2 * GROUP_RECORDS)
    await written(tmp_path, log)
    path, cut = tmp_path / segment_name(1), GROUP_RECORDS + 20
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=0) as store:
        await store.purge(LogId(1, cut - 1))
        start = 64 + (cut - 2) * (RECORD_OVERHEAD_BYTES + 30)
        _flip(path, (start + 15) * 8)
        await store.truncate(LogId(1, cut))
        assert await store.try_get_log_entries(0) == []
        await store.append(log[cut - 1 :])
        await store.flush()
        assert await store.try_get_log_entries(0) == log[cut - 1 :]
        _flip(path, (start + 15) * 8)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == log[cut - 1 :]


# --- scans ----------------------------------------------------------------------------------


def _living() -> int:
    return sum(type(each) is Entry for each in gc.get_objects())


@on_both_backends
async def test_a_scan_holds_a_few_hundred_entries_at_a_time_however_small_they_are(
    tmp_path: Path,
) -> None:
    await written(tmp_path, log_of([3], 3000), 1 << 20)
    gc.collect()
    before = _living()
    async with RaftLogStorage.open(tmp_path, cache_bytes=0) as store:
        async for entry in store.entries_stream(0):
            if entry.index % 250 == 0:
                assert _living() - before <= 260
        following = store.follow(1)
        assert len(await anext(following)) <= 256
        await following.aclose()
        assert entry.index == 3000
    with blocking.BlockingRaftLogStorage.open(tmp_path, cache_bytes=0) as other:
        for each in other.entries_stream(0):
            if each.index % 250 == 0:
                assert _living() - before <= 261
