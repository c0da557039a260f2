"""The three sync policies, and what is durable under each of them."""

from __future__ import annotations

import functools
import random
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import LogId, LogSync, RaftLogStorage, Vote
from hqlwal_raft.testing import MemoryKernel
from tests._support import (
    Gate,
    HookedEnvironment,
    StandingClock,
    entries,
    on_both_backends,
    start_python,
)

POLICIES = ["immediate", "immediate_async", "interval_60000"]


def test_a_policy_is_named_by_a_string() -> None:
    assert LogSync.parse("immediate") is LogSync.IMMEDIATE
    assert LogSync.parse("immediate_async") is LogSync.IMMEDIATE_ASYNC
    assert LogSync.parse("interval_200") == LogSync.interval(200)
    assert LogSync.parse(LogSync.interval(5)).interval_seconds == 0.005
    assert [str(LogSync.parse(policy)) for policy in POLICIES] == POLICIES


@pytest.mark.parametrize("name", ["", "Immediate", "interval", "interval_", "interval_x", "_5"])
def test_an_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="immediate_async"):
        LogSync.parse(name)


def test_an_interval_has_at_least_a_millisecond() -> None:
    for text in ("interval_0", "interval_00"):
        with pytest.raises(ValueError, match="1 ms"):
            LogSync.parse(text)


@on_both_backends
@pytest.mark.parametrize("policy", [LogSync.IMMEDIATE_ASYNC, LogSync.interval(7), "immediate"])
async def test_open_takes_a_policy_or_its_name(tmp_path: Path, policy: LogSync | str) -> None:
    async with RaftLogStorage.open(tmp_path, sync=policy) as store:
        await store.append(entries(1, 4))
        assert await store.try_get_log_entries(0) == entries(1, 4)


@on_both_backends
async def test_immediate_returns_when_it_is_durable(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, sync="immediate", segment_size=8192) as store:
        for index in range(1, 11):
            await store.append(entries(index, index + 1))
            assert store.statistics().last_durable_log_id == LogId(1, index)
            assert store.statistics().unsynced_bytes == 0


@on_both_backends
async def test_immediate_async_returns_when_it_is_readable(tmp_path: Path) -> None:
    gate = Gate()
    options: dict[str, Any] = {"sync": "immediate_async", "environment": HookedEnvironment(gate)}
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 2))
        await store.flush()
        gate.shut()
        await store.append(entries(2, 4))
        await store.append(entries(4, 5))
        await gate.held()  # the write-out is under way
        assert await store.try_get_log_entries(0) == entries(1, 5)
        assert store.statistics().last_durable_log_id == LogId(1, 1)
        gate.open()
        await store.flush()
        assert store.statistics().last_durable_log_id == LogId(1, 4)


@on_both_backends
async def test_an_interval_syncs_only_at_its_end(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, sync="interval_60000", segment_size=8192) as store:
        seen: list[object] = []
        for index in range(1, 101):
            await store.append(entries(index, index + 1), seen.append)
        assert store.statistics().syncs == 0
        assert store.statistics().last_durable_log_id is None
        assert seen == []
        await store.flush()
        assert store.statistics().syncs == 1
        assert store.statistics().entries_per_sync == 100
        assert store.statistics().last_durable_log_id == LogId(1, 100)
        assert seen == [None] * 100


@on_both_backends
async def test_an_interval_that_is_over_syncs_by_itself(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, sync="interval_1") as store:
        for index in range(1, 6):
            durable = anyio.Event()
            callback = functools.partial(_set, durable)
            await store.append(entries(index, index + 1), callback)
            with anyio.fail_after(20):
                await durable.wait()
            assert store.statistics().last_durable_log_id == LogId(1, index)
        assert store.statistics().syncs == 5


def _set(event: anyio.Event, _error: BaseException | None) -> None:
    event.set()


@on_both_backends
async def test_one_interval_is_one_sync_for_all_that_was_appended(tmp_path: Path) -> None:
    gate = Gate()
    # no second is ever over, in which a tail that is idle would get its mark
    files = HookedEnvironment(gate, environment=StandingClock())
    async with RaftLogStorage.open(tmp_path, sync="interval_1", environment=files) as store:
        await store.append(entries(1, 2))
        await store.flush()
        syncs = store.statistics().syncs
        gate.shut()
        await store.append(entries(2, 3))
        await gate.held()
        for index in range(3, 50):
            await store.append(entries(index, index + 1))
        gate.open()
        await store.flush()
        assert store.statistics().syncs - syncs == 2


@on_both_backends
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_vote_is_durable_on_return_under_every_policy(policy: str) -> None:
    disk = MemoryKernel()
    async with RaftLogStorage.open(
        "/log", sync=policy, environment=disk, segment_size=8192
    ) as store:
        await store.save_vote(Vote(1, "a"))
        await store.append(entries(1, 4))
        await store.save_vote(Vote(2, "b", committed=True))
        crashed = disk.snapshot()
    for seed in range(8):
        image = crashed.image(random.Random(seed))
        async with RaftLogStorage.open("/log", environment=image, segment_size=8192) as store:
            assert await store.read_vote() == Vote(2, "b", committed=True)
            # written in order, so what was appended before the vote is durable with it
            assert await store.try_get_log_entries(0) == entries(1, 4)


@on_both_backends
@pytest.mark.parametrize("policy", POLICIES)
async def test_purges_and_truncations_are_durable_on_return(policy: str) -> None:
    disk = MemoryKernel()
    async with RaftLogStorage.open(
        "/log", sync=policy, environment=disk, segment_size=8192
    ) as store:
        await store.append(entries(1, 31, size=900))
        await store.truncate(LogId(1, 25))
        await store.purge(LogId(1, 12))
        crashed = disk.snapshot()
    for seed in range(8):
        image = crashed.image(random.Random(seed))
        async with RaftLogStorage.open("/log", environment=image, segment_size=8192) as store:
            state = await store.get_log_state()
            assert state.last_purged_log_id == LogId(1, 12)
            assert await store.try_get_log_entries(0) == entries(13, 25, size=900)


@on_both_backends
@pytest.mark.parametrize("policy", POLICIES)
async def test_flush_makes_appends_durable_under_every_policy(policy: str) -> None:
    disk = MemoryKernel()
    async with RaftLogStorage.open(
        "/log", sync=policy, environment=disk, segment_size=8192
    ) as store:
        await store.append(entries(1, 31, size=900), lambda error: None)
        await store.flush()
        crashed = disk.snapshot()
    for seed in range(8):
        image = crashed.image(random.Random(seed))
        async with RaftLogStorage.open("/log", environment=image, segment_size=8192) as store:
            assert await store.try_get_log_entries(0) == entries(1, 31, size=900)


@on_both_backends
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_clean_close_loses_nothing_under_any_policy(policy: str) -> None:
    disk = MemoryKernel()
    async with RaftLogStorage.open(
        "/log", sync=policy, environment=disk, segment_size=8192
    ) as store:
        await store.append(entries(1, 31, size=900), lambda error: None)
        await store.save_committed(LogId(1, 17))
    for seed in range(8):
        image = disk.snapshot().image(random.Random(seed))
        async with RaftLogStorage.open("/log", environment=image, segment_size=8192) as store:
            assert await store.try_get_log_entries(0) == entries(1, 31, size=900)
            assert await store.read_committed() == LogId(1, 17)


@on_both_backends
async def test_saving_committed_makes_no_sync(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    files = HookedEnvironment(lambda call, path: calls.append((call, path)))
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=8192) as store:
        await store.append(entries(1, 11))
        await anyio.lowlevel.checkpoint()
        del calls[:]
        for index in range(1, 11):
            await store.save_committed(LogId(1, index))
        # the next segment may be in the making at any time, under its temporary name
        assert not [
            path for call, path in calls if call == "fdatasync" and not path.endswith(".tmp")
        ]
        assert sum(call == "pwrite" and path.endswith("meta.hql") for call, path in calls) == 10


@on_both_backends
async def test_committed_is_never_beyond_the_last_log_id_after_a_crash() -> None:
    disk = MemoryKernel()
    options: dict[str, Any] = {"sync": "interval_60000", "segment_size": 8192}
    async with RaftLogStorage.open("/log", environment=disk, **options) as store:
        await store.append(entries(1, 6))
        await store.flush()
        await store.save_committed(LogId(1, 5))
        await store.append(entries(6, 11))
        await store.save_committed(LogId(1, 9))
        crashed = disk.snapshot()
    seen = set()
    for seed in range(30):
        image = crashed.image(random.Random(seed))
        async with RaftLogStorage.open("/log", environment=image, segment_size=8192) as store:
            committed = await store.read_committed()
            last = (await store.get_log_state()).last_log_id
            assert committed in (None, LogId(1, 5), LogId(1, 9))
            assert committed is None or (last is not None and committed <= last)
            seen.add((committed, last is not None and last.index))
    assert len(seen) > 2, "the images do not differ"


KEEP_WRITING = """
    import sys, anyio
    from hqlwal_raft import Entry, LogId, RaftLogStorage

    async def main():
        async with RaftLogStorage.open(sys.argv[1], sync=sys.argv[2], segment_size=8192) as store:
            for index in range(1, 101):
                await store.append([Entry(1, index, b"x" * 900)])
                await store.save_committed(LogId(1, index))
            print("written", flush=True)
            await anyio.sleep_forever()

    anyio.run(main)
"""


@on_both_backends
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_killed_process_loses_nothing_under_any_policy(tmp_path: Path, policy: str) -> None:
    with start_python(KEEP_WRITING, tmp_path, policy) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "written"
        process.send_signal(signal.SIGKILL)
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert (await store.get_log_state()).last_log_id == LogId(1, 100)
        assert len(await store.try_get_log_entries(0)) == 100
        assert await store.read_committed() == LogId(1, 100)
