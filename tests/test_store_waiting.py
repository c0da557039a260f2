"""Appends that wait: for room, cancelled, and while the store is closed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from hqlwal_raft import (
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


@on_both_backends
async def test_an_append_past_the_bound_waits_for_room(tmp_path: Path) -> None:
    gate = Gate()
    options: dict[str, Any] = {
        "segment_size": 8192,
        "environment": HookedEnvironment(gate),
        "max_unsynced_bytes": 1000,
    }
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()
        await store.append(entries(2, 3, size=600), lambda error: None)
        await gate.held()
        await store.append(entries(3, 4, size=600), lambda error: None)
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            for index in range(4, 8):
                batch = entries(index, index + 1, size=600)
                ignore = functools.partial(store.append, batch, lambda error: None)
                await started.start(f"{index}", ignore)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert started.outcomes == {}
            assert (await store.get_log_state()).last_log_id == LogId(1, 3)
            assert store.statistics().queue_depth == 4
            # the bound, exceeded by no more than the last batch
            assert store.statistics().unsynced_bytes < 1000 + 700
            gate.open()
        assert started.outcomes == {f"{index}": None for index in range(4, 8)}
        await store.flush()
        assert store.statistics().unsynced_bytes == 0
        assert store.statistics().last_durable_log_id == LogId(1, 7)


@on_both_backends
async def test_unsynced_bytes_stay_within_the_bound_and_a_batch(tmp_path: Path) -> None:
    async with RaftLogStorage.open(
        tmp_path, sync="interval_60000", max_unsynced_bytes=5000
    ) as store:
        for index in range(1, 101):
            await store.append(entries(index, index + 1, size=400))
            assert store.statistics().unsynced_bytes <= 5000 + 432
        assert store.statistics().syncs >= 6


@on_both_backends
async def test_a_cancelled_append_that_waited_for_room_is_not_taken_back(tmp_path: Path) -> None:
    gate = Gate()
    options: dict[str, Any] = {
        "segment_size": 8192,
        "environment": HookedEnvironment(gate),
        "max_unsynced_bytes": 1,
    }
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("2", lambda: store.append(entries(2, 3)))
            scope = await started.start("3", lambda: store.append(entries(3, 4)))
            await started.start("4", lambda: store.append(entries(4, 5)))
            await gate.held()
            scope.cancel()
            gate.open()
        assert started.outcomes == {"2": None, "4": None}
        assert await store.try_get_log_entries(0) == entries(1, 5)


@on_both_backends
async def test_cancelling_the_wait_for_a_sync_leaves_the_group_alone(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=8192
    ) as store:
        await store.append(entries(1, 2))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("2", lambda: store.append(entries(2, 3)))
            await gate.held()
            scopes = [
                await started.start(
                    f"{index}", functools.partial(store.append, entries(index, index + 1))
                )
                for index in range(3, 9)
            ]
            for scope in scopes[::2]:
                scope.cancel()
            gate.open()
        assert started.outcomes == dict.fromkeys(["2", "4", "6", "8"])
        assert await store.try_get_log_entries(0) == entries(1, 9)
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.try_get_log_entries(0) == entries(1, 9)


# --- closing while appends wait ----------------------------------------------------------


@on_both_backends
async def test_a_close_answers_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    gate = Gate()
    seen: list[object] = []
    options: dict[str, Any] = {
        "segment_size": 8192,
        "environment": HookedEnvironment(gate),
        "max_unsynced_bytes": 1,
    }
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("accepted", lambda: store.append(entries(2, 3)))
            await gate.held()
            await started.start("waiting", lambda: store.append(entries(3, 4)))
            await started.start("callback", lambda: store.append(entries(4, 5), seen.append))
            await started.start("vote", lambda: store.save_vote(Vote(9)))
            await started.start("flush", store.flush)
            await started.start("close", store.aclose)
            await started.start("late", lambda: store.append(entries(3, 4)))
            await started.start("second close", store.aclose)
            gate.open()
    assert started.outcomes.pop("accepted") is None
    assert started.outcomes.pop("close") is None
    assert started.outcomes.pop("second close") is None
    for name in ("waiting", "callback", "vote", "late"):
        assert isinstance(started.outcomes.pop(name), WalClosedError), name
    assert isinstance(started.outcomes.pop("flush"), WalClosedError | None)
    assert started.outcomes == {}
    assert seen == []
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.try_get_log_entries(0) == entries(1, 3)
        assert await store.read_vote() is None


@on_both_backends
async def test_a_body_that_raises_while_appends_wait_ends_in_a_clean_close(tmp_path: Path) -> None:
    gate = Gate()
    try:
        async with RaftLogStorage.open(
            tmp_path, environment=HookedEnvironment(gate), segment_size=8192
        ) as store:
            await store.append(entries(1, 2))
            gate.shut()
            await store.append(entries(2, 9), lambda error: None)
            await gate.held()
            gate.open()
            raise LookupError
    except LookupError:
        pass
    assert (tmp_path / "lock.hql").read_bytes().startswith(b"clean")
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.try_get_log_entries(0) == entries(1, 9)
