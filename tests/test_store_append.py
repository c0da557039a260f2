"""Appending to our store: group commit, the event loop, callbacks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import (
    Entry,
    EntryTooLargeError,
    LogGapError,
    LogId,
    RaftLogStorage,
    Vote,
    WalClosedError,
)
from tests._support import (
    Gate,
    HookedEnvironment,
    Started,
    entries,
    on_both_backends,
)

SEGMENT_SIZE = 8192


# --- group commit ------------------------------------------------------------------------


@on_both_backends
async def test_one_sync_serves_all_tasks_that_wait(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=8192
    ) as store:
        await store.append(entries(1, 2))
        syncs = store.statistics().syncs
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            for index in range(2, 66):
                append = functools.partial(store.append, entries(index, index + 1))
                await started.start(f"{index}", append)
            await gate.held()
            assert started.outcomes == {}
            gate.open()
        assert started.outcomes == {f"{index}": None for index in range(2, 66)}
        statistics = store.statistics()
        # the first began a sync of its own, the other 63 shared the next
        assert statistics.syncs - syncs == 2
        assert statistics.appends == 65
        assert statistics.last_durable_log_id == LogId(1, 65)


@on_both_backends
async def test_many_tasks_need_far_fewer_syncs_than_appends(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        last = 0

        async def append() -> None:
            nonlocal last
            for _ in range(10):
                last += 1
                await store.append(entries(last, last + 1))

        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(append)
        statistics = store.statistics()
        assert statistics.appends == statistics.entries == 640
        assert statistics.syncs < 640 / 8
        assert statistics.entries_per_sync > 8


@on_both_backends
async def test_an_append_is_readable_before_it_is_durable(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=8192
    ) as store:
        await store.append(entries(1, 2))
        reader = await store.get_log_reader()
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("append", lambda: store.append(entries(2, 5)))
            await gate.held()
            assert await reader.try_get_log_entries(0) == entries(1, 5)
            assert (await reader.get_log_state()).last_log_id == LogId(1, 4)
            assert store.statistics().last_durable_log_id == LogId(1, 1)
            assert started.outcomes == {}
            gate.open()
        assert store.statistics().last_durable_log_id == LogId(1, 4)


@on_both_backends
async def test_a_callback_comes_only_when_its_entries_are_durable(tmp_path: Path) -> None:
    gate = Gate()
    seen: list[object] = []
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=8192
    ) as store:
        await store.append(entries(1, 2))
        gate.shut()
        await store.append(entries(2, 3), seen.append)
        await gate.held()
        await store.append(entries(3, 4), seen.append)
        await anyio.lowlevel.checkpoint()
        assert seen == []
        gate.open()
        await store.flush()
        assert seen == [None, None]


# --- the event loop ----------------------------------------------------------------------


@on_both_backends
async def test_while_a_sync_blocks_other_tasks_and_readers_run(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=8192
    ) as store:
        await store.append(entries(1, 2))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("append", lambda: store.append(entries(2, 3)))
            await gate.held()
            await started.start("vote", lambda: store.save_vote(Vote(1)))
            await started.start("truncate", lambda: store.truncate(LogId(1, 2)))
            await started.start("purge", lambda: store.purge(LogId(1, 1)))
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
                assert await store.try_get_log_entries(2) == entries(2, 3)
            assert await store.read_vote() is None
            assert started.outcomes == {}
            gate.open()
        assert started.outcomes == dict.fromkeys(["append", "vote", "truncate", "purge"])
        assert await store.read_vote() == Vote(1)
        assert await store.try_get_log_entries(0) == []


# --- callbacks ---------------------------------------------------------------------------


@on_both_backends
async def test_a_refused_append_raises_and_does_not_call_back(tmp_path: Path) -> None:
    seen: list[object] = []
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        await store.append(entries(1, 2), seen.append)
        for batch in (entries(5, 6), [Entry(1, 2, b"x" * (64 << 20) + b"x")]):
            try:
                await store.append(batch, seen.append)
            except (LogGapError, EntryTooLargeError):
                continue
            raise AssertionError("nothing was raised")
        await store.flush()
    assert seen == [None]


@on_both_backends
async def test_a_callback_that_raises_hinders_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_error: BaseException | None) -> None:
        raise ZeroDivisionError("by the callback")

    seen: list[object] = []
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for index in range(1, 4):
            await store.append(entries(index, index + 1), failing if index == 2 else seen.append)
        await store.flush()
        assert seen == [None, None]
        await store.append(entries(4, 5))
    assert "by the callback" in caplog.text


@on_both_backends
async def test_the_callback_of_a_cancelled_append_comes_all_the_same(tmp_path: Path) -> None:
    gate = Gate()
    seen: list[object] = []
    options: dict[str, Any] = {"environment": HookedEnvironment(gate), "max_unsynced_bytes": 1}
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()
        await store.append(entries(2, 3), seen.append)
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            scope = await started.start("3", lambda: store.append(entries(3, 4), seen.append))
            await gate.held()
            scope.cancel()
        assert started.outcomes == {}
        assert seen == []
        gate.open()
        await store.flush()
        assert seen == [None, None]
        assert await store.try_get_log_entries(0) == entries(1, 4)


@on_both_backends
async def test_the_callback_of_a_cancelled_append_hears_why_it_was_refused(tmp_path: Path) -> None:
    gate = Gate()
    seen: list[object] = []
    options: dict[str, Any] = {"environment": HookedEnvironment(gate), "max_unsynced_bytes": 1}
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()
        await store.append(entries(2, 3), lambda error: None)
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            scope = await started.start("3", lambda: store.append(entries(3, 4), seen.append))
            await gate.held()
            scope.cancel()
        gate.open()
    assert len(seen) == 1
    assert isinstance(seen[0], WalClosedError | None)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        held = entries(1, 4 if seen == [None] else 3)
        assert await store.try_get_log_entries(0) == held
