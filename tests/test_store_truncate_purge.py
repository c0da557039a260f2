"""Truncating and purging our store: which files go, in which order, at what cost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hqlwal_raft import LogId, LogRangeError, LogState, RaftLogStorage, Vote
from hqlwal_raft._format import segment_name
from tests._support import (
    PATIENCE_SECONDS,
    Gate,
    HookedEnvironment,
    Started,
    entries,
    on_both_backends,
    segments,
)

SEGMENT_SIZE = 8192
#: eight of these fill a segment
SIZE = 900


class Calls:
    """A hook that keeps every call, by kind."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self._news = threading.Condition()

    def __call__(self, call: str, path: str) -> None:
        with self._news:
            self.made.append((call, Path(path).name))
            self._news.notify_all()

    async def seen(self, kind: str, count: int) -> None:
        """Waits until so many calls of the kind were begun: housekeeping makes them later."""

        def wait() -> None:
            with self._news:
                assert self._news.wait_for(lambda: len(self.of(kind)) >= count, PATIENCE_SECONDS), (
                    self.made
                )

        await anyio.to_thread.run_sync(wait)

    def of(self, *kinds: str) -> list[tuple[str, str]]:
        return [made for made in self.made if made[0] in kinds]


@on_both_backends
async def test_a_purge_removes_whole_segments_oldest_first(tmp_path: Path) -> None:
    calls = Calls()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:
        await store.append(entries(1, 82, size=SIZE))
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:  # all but the tail is sealed
        before = {path.name: path.read_bytes() for path in segments(tmp_path)}
        calls.made.clear()
        await store.purge(LogId(1, 44))
        await calls.seen("unlink", 5)
        # 1 to 5 hold 1 to 40; 41 to 44 stay on disk with the segment they share
        assert calls.of("unlink") == [("unlink", segment_name(n)) for n in range(1, 6)]
        frontier = len(calls.made) - 1 - calls.made[::-1].index(("fdatasync", "meta.hql"))
        assert frontier < calls.made.index(("unlink", segment_name(1)))
        # nothing that stays is rewritten
        written = {name for _, name in calls.of("pwrite", "pwritev", "fdatasync")}
        assert not written & {segment_name(n) for n in range(1, 12)}
        assert (tmp_path / segment_name(6)).read_bytes() == before[segment_name(6)]
        assert await store.try_get_log_entries(0) == entries(45, 82, size=SIZE)
    assert segments(tmp_path)[0].name == segment_name(6)


@on_both_backends
async def test_a_purge_returns_when_the_frontier_is_durable_and_unlinks_later(
    tmp_path: Path,
) -> None:
    gate = Gate("unlink")
    calls = Calls()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(gate, calls)
    ) as store:
        await store.append(entries(1, 41, size=SIZE))
        gate.shut()
        await store.purge(LogId(1, 24))
        await gate.held()
        # nobody waits for the file system: the next segment was prepared before
        await store.append(entries(41, 49, size=SIZE))
        await store.save_vote(Vote(1))
        assert await store.try_get_log_entries(0) == entries(25, 49, size=SIZE)
        assert segments(tmp_path)[0].name == segment_name(1)
        gate.open()
        await calls.seen("unlink", 3)
        await store.purge(LogId(1, 32))
        await calls.seen("unlink", 4)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(33, 49, size=SIZE)
    assert segments(tmp_path)[0].name == segment_name(5)


@on_both_backends
async def test_what_a_close_left_to_be_unlinked_the_next_open_removes(tmp_path: Path) -> None:
    gate = Gate("unlink")
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(gate)
    ) as store:
        await store.append(entries(1, 81, size=SIZE))
        gate.shut()
        await store.purge(LogId(1, 44))
        await gate.held()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("close", store.aclose)
            gate.open()
    assert segment_name(5) in {path.name for path in segments(tmp_path)}
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert segments(tmp_path)[0].name == segment_name(6)
        assert await store.try_get_log_entries(0) == entries(45, 81, size=SIZE)


@on_both_backends
async def test_a_purge_costs_what_it_removes_not_what_the_log_holds(tmp_path: Path) -> None:
    calls = Calls()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:
        await store.append(entries(1, 801, size=SIZE))
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:  # all are sealed and one is prepared: there is nothing else to do
        for index, cost in ((8, 1), (9, 0), (15, 0), (16, 1), (24, 1), (40, 2)):
            calls.made.clear()
            await store.purge(LogId(1, index))
            await calls.seen("unlink", cost)
            others = len(calls.made) - len(calls.of("unlink"))
            # some of it looks at the entry itself, whose term the purge has to name
            assert others < 20, calls.made
            assert len(calls.of("unlink")) == cost


@on_both_backends
async def test_a_purge_is_at_the_end_of_a_segment(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 25, size=SIZE))
        for index in (7, 8, 9, 16, 23, 24):
            await store.purge(LogId(1, index))
            assert await store.try_get_log_entries(0) == entries(index + 1, 25, size=SIZE)
        await store.append(entries(25, 42, size=SIZE))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(25, 42, size=SIZE)
        assert await store.get_log_state() == LogState(LogId(1, 24), LogId(1, 41))


@on_both_backends
async def test_a_purge_beyond_the_end_frees_the_space(tmp_path: Path) -> None:
    calls = Calls()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:
        await store.append(entries(1, 81, size=SIZE))
        calls.made.clear()
        await store.purge(LogId(4, 1000))
        assert store.statistics().entries == 0
        assert store.statistics().segment_bytes == 0
        await calls.seen("unlink", 10)
        await store.append(entries(1001, 1021, size=SIZE, term=4))
        assert await store.try_get_log_entries(0) == entries(1001, 1021, SIZE, term=4)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1001, 1021, SIZE, term=4)
        assert await store.get_log_state() == LogState(LogId(4, 1000), LogId(4, 1020))
        assert len(segments(tmp_path)) <= store.statistics().segments + 1


@on_both_backends
async def test_the_numbers_of_segments_go_on_after_purges(tmp_path: Path) -> None:
    index = 1
    for run in range(4):
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            await store.append(entries(index, index + 40, size=SIZE))
            index += 40
            await store.purge(LogId(1, index - 1 if run % 2 else index - 10))
        numbers = [int(path.stem) for path in segments(tmp_path)]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[0] > 4 * run


@on_both_backends
async def test_a_truncation_unlinks_from_the_newest_backwards(tmp_path: Path) -> None:
    calls = Calls()
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(calls)
    ) as store:
        await store.append(entries(1, 41, size=SIZE))
        await store.save_committed(LogId(1, 4))
        calls.made.clear()
        await store.truncate(LogId(1, 12))
        gone = [made for made in calls.of("unlink") if made[1].endswith(".wal")]
        assert gone == sorted(gone, reverse=True)
        assert {("unlink", segment_name(n)) for n in (3, 4, 5)} <= set(gone)
        assert calls.of("fsync")
        # the cut-off bytes are zeroed and synced before the call returns
        last_write = max(
            n for n, made in enumerate(calls.made) if made == ("pwrite", segment_name(2))
        )
        assert ("fdatasync", segment_name(2)) in calls.made[last_write:]
        data = (tmp_path / segment_name(2)).read_bytes()
        assert data[64 + 3 * (32 + SIZE) :].strip(b"\0") == b""


@on_both_backends
async def test_a_truncation_may_cut_at_every_place_of_three_segments(tmp_path: Path) -> None:
    for index in range(1, 25):
        path = tmp_path / str(index)
        async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
            await store.append(entries(1, 25, size=SIZE))
            await store.truncate(LogId(1, index))
            assert await store.try_get_log_entries(0) == entries(1, index, size=SIZE)
            await store.append(entries(index, index + 10, SIZE, term=2))
        want = entries(1, index, size=SIZE) + entries(index, index + 10, SIZE, term=2)
        async with RaftLogStorage.open(
            path, segment_size=SEGMENT_SIZE, check_integrity=True
        ) as store:
            assert await store.try_get_log_entries(0) == want


@on_both_backends
async def test_a_jumbo_entry_may_be_truncated_and_purged(tmp_path: Path) -> None:
    log = [*entries(1, 4), *entries(4, 5, size=50_000), *entries(5, 8), *entries(8, 9, size=30_000)]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(log)
        await store.truncate(LogId(1, 8))
        assert await store.try_get_log_entries(0) == log[:7]
        await store.purge(LogId(1, 3))
        await store.truncate(LogId(1, 4))
        assert await store.try_get_log_entries(0) == []
        await store.append(entries(4, 6, size=60_000))
        await store.purge(LogId(1, 4))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(5, 6, size=60_000)
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert sum(size > SEGMENT_SIZE for size in sizes) == 1


@on_both_backends
async def test_the_error_names_the_frontier(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 21))
        await store.purge(LogId(1, 13))
        with pytest.raises(LogRangeError, match="13"):
            await store.truncate(LogId(1, 9))
        with pytest.raises(LogRangeError, match="13"):
            await store.truncate_after(LogId(1, 8))


@on_both_backends
async def test_numbers_that_are_no_u64_are_refused(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 21))
        for bad in (LogId(-1, 3), LogId(1 << 64, 3), LogId(1, -3), LogId(1, 3, 1 << 64)):
            for call in (store.purge, store.save_committed):
                with pytest.raises(ValueError, match="2\\*\\*64"):
                    await call(bad)
        assert await store.get_log_state() == LogState(None, LogId(1, 20))
        assert await store.read_committed() is None


@on_both_backends
@pytest.mark.parametrize("cut", [1, 9, 17])
async def test_an_emptied_segment_is_passed_over_by_an_entry_it_has_no_room_for(
    tmp_path: Path, cut: int
) -> None:
    for run in range(2):  # the second time on top of what the first left
        options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
        async with RaftLogStorage.open(tmp_path, **options) as store:
            await store.truncate_after(None)
            await store.append(entries(1, 25, size=SIZE))
            await store.truncate(LogId(1, cut))  # cut begins a segment
            await store.append(entries(cut, cut + 2, size=9000, term=2 + run))
            want = entries(1, cut, size=SIZE) + entries(cut, cut + 2, size=9000, term=2 + run)
            assert await store.try_get_log_entries(0) == want
        async with RaftLogStorage.open(tmp_path, check_integrity=True, **options) as store:
            assert await store.try_get_log_entries(0) == want


@on_both_backends
async def test_an_emptied_log_may_begin_elsewhere_with_an_entry_of_any_size(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for first, size in ((0, 10), (5, 9000), (3, 20_000), (70, 10)):
            await store.append(entries(first, first + 2, size=size))
            assert await store.try_get_log_entries(0) == entries(first, first + 2, size=size)
            await store.truncate_after(None)
        await store.append(entries(7, 9, size=30_000))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(7, 9, size=30_000)
