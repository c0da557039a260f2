"""Appending to our store: group commit, back-pressure, cancellation, sizes, the event loop."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from hqlwal_raft import (
    Entry,
    EntryTooLargeError,
    LogGapError,
    LogId,
    RaftLogStorage,
    Vote,
    WalClosedError,
)
from hqlwal_raft.testing import ForgetfulDisk
from tests._support import Gate, HookedFiles, entries, on_both_backends, segments

SEGMENT_SIZE = 8192


class Started:
    """Calls in tasks of their own, made one after the other; each outcome is kept."""

    def __init__(self, tasks: Any) -> None:
        self._tasks = tasks
        self.outcomes: dict[str, Any] = {}

    async def start(self, name: str, call: Any) -> anyio.CancelScope:
        """Makes the call; returns when it waits or is done."""
        scope = anyio.CancelScope()

        async def run(*, task_status: TaskStatus[None]) -> None:
            task_status.started()  # no other task runs between here and the call's first wait
            with scope:
                try:
                    self.outcomes[name] = await call()
                except Exception as error:
                    self.outcomes[name] = error

        await self._tasks.start(run)
        return scope


# --- group commit ------------------------------------------------------------------------


@on_both_backends
async def test_one_sync_serves_all_tasks_that_wait(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(tmp_path, files=HookedFiles(gate), segment_size=8192) as store:
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
    async with RaftLogStorage.open(tmp_path, files=HookedFiles(gate), segment_size=8192) as store:
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
    async with RaftLogStorage.open(tmp_path, files=HookedFiles(gate), segment_size=8192) as store:
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

#: what may wait for the device
BLOCKING = {"sync", "create", "unlink", "rename", "sync_directory", "names", "open", "read", "lock"}


@on_both_backends
async def test_no_call_that_may_block_runs_on_the_event_loop(tmp_path: Path) -> None:
    loop_thread = threading.get_ident()
    blocking: list[tuple[str, str]] = []
    kinds = set()

    def note(call: str, path: str) -> None:
        kinds.add(call)
        if call in BLOCKING and threading.get_ident() == loop_thread:
            blocking.append((call, path))

    files = HookedFiles(note)
    for run in range(2):
        options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, "files": files}
        async with RaftLogStorage.open(tmp_path / "log", **options) as store:
            state = await store.get_log_state()
            first = state.last_log_id.index + 1 if state.last_log_id else 1
            await store.append(entries(first, first + 40, size=700))
            await store.append(entries(first + 40, first + 41, size=20_000))
            await store.append(entries(first + 41, first + 60, size=700))
            await store.save_vote(Vote(run, "node"))
            await store.save_committed(LogId(1, first + 3))
            await store.truncate(LogId(1, first + 50))
            await store.purge(LogId(1, first + 20))
            assert len(await store.try_get_log_entries(0)) == 29
            assert len([entry async for entry in store.entries_stream(0)]) == 29
            await store.get_key_log_ids()
            await store.flush()
    assert {"sync", "create", "unlink", "rename", "sync_directory", "lock"} <= kinds
    assert blocking == []


@on_both_backends
async def test_while_a_sync_blocks_other_tasks_and_readers_run(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(tmp_path, files=HookedFiles(gate), segment_size=8192) as store:
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


# --- back-pressure -----------------------------------------------------------------------


@on_both_backends
async def test_an_append_past_the_bound_waits_for_room(tmp_path: Path) -> None:
    gate = Gate()
    options: dict[str, Any] = {
        "segment_size": 8192,
        "files": HookedFiles(gate),
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
        "files": HookedFiles(gate),
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
    async with RaftLogStorage.open(tmp_path, files=HookedFiles(gate), segment_size=8192) as store:
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
        "files": HookedFiles(gate),
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
            tmp_path, files=HookedFiles(gate), segment_size=8192
        ) as store:
            await store.append(entries(1, 2))
            gate.shut()
            await store.append(entries(2, 9), lambda error: None)
            await gate.held()
            gate.open()
            raise LookupError
    except LookupError:
        pass
    assert not (tmp_path / "lock.hql").exists()
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.try_get_log_entries(0) == entries(1, 9)


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
    options: dict[str, Any] = {"files": HookedFiles(gate), "max_unsynced_bytes": 1}
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
    options: dict[str, Any] = {"files": HookedFiles(gate), "max_unsynced_bytes": 1}
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


# --- sizes -------------------------------------------------------------------------------


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
    writes: list[str] = []
    files = HookedFiles(lambda call, path: writes.append(path) if call == "write" else None)
    async with RaftLogStorage.open(tmp_path, files=files) as store:
        await store.append(entries(1, 2))
        tail = str(segments(tmp_path)[0])
        del writes[:]
        await store.append(entries(2, 102))
        assert writes.count(tail) == 2  # the records, and the header with the last sync's mark


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
    disk = ForgetfulDisk()
    for run in range(3):
        async with RaftLogStorage.open("/log", files=disk, segment_size=SEGMENT_SIZE) as store:
            await store.append(entries(run * 20 + 1, run * 20 + 21, size=900))
    async with RaftLogStorage.open("/log", files=disk, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 61, size=900)
    assert list(tmp_path.iterdir()) == []
