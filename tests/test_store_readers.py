"""Reading from our store: cold segments, reads that are overtaken, bounded streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import (
    Entry,
    LeaderChangedError,
    LogId,
    LogRangeError,
    RaftLogStorage,
    Vote,
    WalClosedError,
)
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
