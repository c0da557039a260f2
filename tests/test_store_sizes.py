"""Entries, batches and segments of every size, and the options that bound them."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import (
    Entry,
    EntryTooLargeError,
    LogId,
    RaftLogStorage,
)
from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import MemoryKernel
from tests._support import (
    Gate,
    HookedEnvironment,
    StandingClock,
    Started,
    entries,
    on_both_backends,
    segments,
)

SEGMENT_SIZE = 8192
WRITES = ("pwrite", "pwritev")


@on_both_backends
async def test_an_entry_larger_than_max_entry_size_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "max_entry_size": 10_000}
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 3))
        for batch in (
            entries(3, 4, size=10_001),
            [*entries(3, 5), *entries(5, 6, size=10_001)],
            entries(3, 4, size=1_000_000),
        ):
            try:
                await store.append(batch)
            except EntryTooLargeError as error:
                assert "10000" in str(error)
                assert "max_entry_size" in str(error)
            else:
                raise AssertionError("nothing was raised")
            assert await store.try_get_log_entries(0) == entries(1, 3)
        await store.append(entries(3, 4, size=10_000))
        assert await store.try_get_log_entries(3) == entries(3, 4, size=10_000)


@on_both_backends
async def test_an_entry_larger_than_a_segment_gets_a_segment_of_its_size(tmp_path: Path) -> None:
    jumbo = [*entries(3, 4, size=50_000), *entries(4, 5, size=9_000)]
    everything = [*entries(1, 3), *jumbo, *entries(5, 30, size=700)]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
        for entry in jumbo:
            await store.append([entry])
        await store.append(entries(5, 30, size=700))
        assert await store.try_get_log_entries(0) == everything
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert [size for size in sizes if size != SEGMENT_SIZE] == [64 + 32 + 50_000, 64 + 32 + 9_000]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == everything


@on_both_backends
async def test_a_batch_may_span_many_segments(tmp_path: Path) -> None:
    batch = [entry for n in range(1, 80) for entry in entries(n, n + 1, size=n * 731 % 20_000)]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(batch)
        assert store.statistics().appends == 1
        assert store.statistics().segments > 50
        assert store.statistics().last_durable_log_id == LogId(1, 79)
        assert await store.try_get_log_entries(0) == batch
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == batch


@on_both_backends
async def test_a_batch_is_one_write(tmp_path: Path) -> None:
    clock = StandingClock()
    calls: list[tuple[str, str]] = []

    def note(call: str, path: str) -> None:
        calls.append(("write" if call in WRITES else call, path))

    files = HookedEnvironment(note, environment=clock)
    async with RaftLogStorage.open(tmp_path, environment=files) as store:
        await store.append(entries(1, 2))
        tail = str(segments(tmp_path)[0])
        write, sync = ("write", tail), ("fdatasync", tail)
        clock.now += 1  # the first mark is due
        await store.append(entries(2, 3))
        for seconds, is_marked in ((0.0, False), (0.009, False), (0.002, True), (0.009, False)):
            clock.now += seconds
            start = (await store.get_log_state()).last_log_id.index + 1  # type: ignore[union-attr]
            del calls[:]
            await store.append(entries(start, start + 100))
            mark = [write] if is_marked else []  # what the sync before made durable
            assert [call for call in calls if call[1] == tail] == [write, *mark, sync]


@on_both_backends
async def test_appends_that_wait_are_one_write(tmp_path: Path) -> None:
    gate = Gate()
    writes: list[tuple[str, str]] = []

    def note(call: str, path: str) -> None:
        if call in WRITES:
            writes.append((call, Path(path).name))

    clock = StandingClock()
    files = HookedEnvironment(gate, note, environment=clock)
    async with RaftLogStorage.open(tmp_path, environment=files) as store:
        await store.append(entries(1, 2))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            for index in range(2, 12):
                await started.start(f"{index}", partial(store.append, entries(index, index + 1)))
                await gate.held()
            del writes[:]
            gate.open()
        assert [name for _, name in writes] == [segments(tmp_path)[0].name]
        assert store.statistics().syncs == 3


@on_both_backends
async def test_segments_follow_each_other_by_number_and_size(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for index in range(1, 61):
            await store.append(entries(index, index + 1, size=900))
        count = store.statistics().segments
        assert count == 8  # eight records fill one
        assert store.statistics().segment_bytes == count * SEGMENT_SIZE
    numbers = [int(path.stem) for path in segments(tmp_path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= count + 1  # at most one is prepared
    assert {path.stat().st_size for path in segments(tmp_path)} == {SEGMENT_SIZE}


@on_both_backends
async def test_another_segment_size_may_be_given_at_each_open(tmp_path: Path) -> None:
    index = 1
    for size in (8192, 65536, 8192, 16384):
        async with RaftLogStorage.open(tmp_path, segment_size=size) as store:
            await store.append(entries(index, index + 30, size=900))
            index += 30
            assert await store.try_get_log_entries(0) == entries(1, index, size=900)


@on_both_backends
async def test_options_without_sense_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "log"
    bad: list[dict[str, Any]] = [
        {"segment_size": 8191},
        {"segment_size": 1 << 32},
        {"max_entry_size": -1},
        {"max_entry_size": 1 << 32},
        {"max_unsynced_bytes": 0},
        {"cache_bytes": -1},
        {"sync": "sometimes"},
        {"sync": "interval_0"},
    ]
    for options in bad:
        try:
            async with RaftLogStorage.open(path, **options):
                raise AssertionError(f"opened with {options}")
        except ValueError as error:
            assert str(next(iter(options.values()))).split("_")[-1] in str(error)
    assert not path.exists()


@on_both_backends
async def test_the_store_runs_on_any_files(tmp_path: Path) -> None:
    disk = MemoryKernel()
    for run in range(3):
        async with RaftLogStorage.open(
            "/log", environment=disk, segment_size=SEGMENT_SIZE
        ) as store:
            await store.append(entries(run * 20 + 1, run * 20 + 21, size=900))
    async with RaftLogStorage.open("/log", environment=disk, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 61, size=900)
    assert list(tmp_path.iterdir()) == []


@on_both_backends
@pytest.mark.parametrize(
    ("segment_size", "size", "most", "count"),
    [
        (1 << 20, 300_000, 8 * 300_032 + 64, 24),  # eight of them
        (1 << 20, 120_000, 1 << 20, 24),  # eight fit anyway
        (1 << 20, 9_000_000, 64 << 20, 3),  # up to a length
        (8192, 5000, 8192, 24),  # small segments stay small
    ],
)
async def test_segments_ahead_have_room_for_eight_entries_as_large_as_the_newest(
    segment_size: int, size: int, most: int, count: int
) -> None:
    kernel = MemoryKernel()
    async with RaftLogStorage.open(
        "/log", environment=kernel, segment_size=segment_size, cache_bytes=0
    ) as store:
        for index in range(1, count + 1):
            await store.append(entries(index, index + 1, size=size))
        log = store._core.log
        assert [each.length for each in log.segments[1:]] == [most] * (len(log.segments) - 1)
        per_segment = (most - 64) // (size + 32)
        assert len(log.segments) <= 2 + count / per_segment
        assert await store.try_get_log_entries(1) == entries(1, count + 1, size=size)
        # and are of the usual length again
        last = count
        while log.segments[-1].length != segment_size:
            last += 1
            assert last < 10_000
            await store.append(entries(last, last + 1, size=segment_size // 16))
    async with RaftLogStorage.open("/log", environment=kernel, segment_size=segment_size) as store:
        assert await store.try_get_log_entries(1, count + 1) == entries(1, count + 1, size=size)


class Gathering(Environment):
    """Notes the buffers of every write to a segment's records."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []

    def pwrite(self, descriptor: int, data: Any, offset: int, /) -> int:
        if offset:
            self.writes.append([data])
        return super().pwrite(descriptor, data, offset)

    def pwritev(self, descriptor: int, buffers: Sequence[Any], offset: int, /) -> int:
        self.writes.append(list(buffers))
        return super().pwritev(descriptor, buffers, offset)


@on_both_backends
@pytest.mark.parametrize("sync", ["immediate", "immediate_async"])
@pytest.mark.parametrize("mebibytes", [1, 4])
async def test_a_large_entry_is_written_as_it_is_and_copied_once_when_it_is_read(
    tmp_path: Path, mebibytes: int, sync: str
) -> None:
    environment = Gathering()
    size = mebibytes << 20
    payloads = [bytes([i]) * size for i in range(1, 4)]
    async with RaftLogStorage.open(
        tmp_path, sync=sync, environment=environment, cache_bytes=0
    ) as store:
        tracemalloc.start()
        try:
            for index, payload in enumerate(payloads, 1):
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                await store.append([Entry(1, index, payload)])
                await store.flush()
                assert tracemalloc.get_traced_memory()[1] - before < size // 4
                (write,) = [each for each in environment.writes if payload in each]
                assert len(write) == 2
                assert write[1] is payload
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            assert await store.try_get_log_entries(2, 3) == [Entry(1, 2, payloads[1])]
            assert tracemalloc.get_traced_memory()[1] - before < 2 * size + size // 4
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("sizes", [[1], [32, 256], [32, 100_000], [32, 1, 32, 300_000, 32, 20_000]])
def test_whatever_the_sizes_a_write_gathers_large_parts_and_joins_small_ones(
    tmp_path: Path, sizes: list[int]
) -> None:
    environment = Gathering()
    directory = Directory.make(environment, str(tmp_path / "log"))
    parts = [bytes([i % 251]) * size for i, size in zip(range(3000), itertools.cycle(sizes))]
    del parts[3 + (20 << 20) // (sum(sizes) // len(sizes) + 1) :]
    file = directory.create("some", 1 << 20, b"")
    environment.writes.clear()
    file.write(7, parts)
    assert file.read(7, sum(map(len, parts))) == b"".join(parts)
    pieces = [each for write in environment.writes for each in write]
    large = [each for each in parts if len(each) > 64 << 10]
    assert [each for each in pieces if any(each is part for part in large)] == large
    assert len(pieces) <= 2 * len(large) + sum(map(len, parts)) // (64 << 10) + 1
    assert len(environment.writes) <= 1 + len(pieces) // 1024
    file.close()
    directory.close()
