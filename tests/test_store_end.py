"""How a store ends: closed more than once, cancelled while it closes, dropped without a word."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from hqlwal_raft import RaftLogStorage, Vote, WalClosedError
from hqlwal_raft.testing import MemoryKernel
from tests._support import (
    PATIENCE_SECONDS,
    Gate,
    HookedEnvironment,
    Started,
    entries,
    on_both_backends,
)

SEGMENT_SIZE = 8192


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("hqlwal")}


async def end_of(started: set[threading.Thread]) -> None:
    for thread in started:
        await anyio.to_thread.run_sync(thread.join, PATIENCE_SECONDS)
        assert not thread.is_alive()


async def held_by_the_next(path: Any, **options: Any) -> list[Any]:
    """What the next store holds; it finds the lock free."""
    async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE, **options) as store:
        return await store.try_get_log_entries(0)


# --- closed more than once ---------------------------------------------------------------


@on_both_backends
async def test_closing_twice_and_more_is_closing_once(tmp_path: Path) -> None:
    before = threads()
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(store.aclose)
        await store.aclose()
        await end_of(threads() - before)
        assert await held_by_the_next(tmp_path) == entries(1, 4)
        await store.aclose()
    assert (tmp_path / "lock.hql").read_bytes().startswith(b"clean")


@on_both_backends
async def test_a_close_that_is_cancelled_anywhere_goes_on_and_can_be_waited_for_again() -> None:
    for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        disk = MemoryKernel()
        before = threads()
        seen: list[object] = []
        async with RaftLogStorage.open(
            "/log", environment=disk, segment_size=SEGMENT_SIZE
        ) as store:
            await store.append(entries(1, 30, size=900))
            await store.append(entries(30, 40, size=900), seen.append)
            async with anyio.create_task_group() as tasks:
                started = Started(tasks)
                scope = await started.start("close", store.aclose)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            with pytest.raises(WalClosedError):
                await store.append(entries(40, 41))
            await store.aclose()
            assert seen == [None]
            await end_of(threads() - before)
            assert await held_by_the_next("/log", environment=disk) == entries(1, 40, size=900)


@on_both_backends
@pytest.mark.parametrize(
    ("call", "ending"), [("fdatasync", ".wal"), ("fdatasync", "meta.hql"), ("pwrite", "lock.hql")]
)
async def test_a_close_that_is_cancelled_at_the_disk_goes_on(
    tmp_path: Path, call: str, ending: str
) -> None:
    gate = Gate(call, ending)
    before = threads()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=SEGMENT_SIZE
    ) as store:
        await store.append(entries(1, 30, size=900))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            scopes = [await started.start(f"{n}", store.aclose) for n in range(3)]
            await gate.held()
            scopes[0].cancel()
            await anyio.lowlevel.checkpoint()
            scopes[1].cancel()
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert started.outcomes == {}  # the third still waits
            gate.open()
        assert started.outcomes == {"2": None}
    await end_of(threads() - before)
    assert (tmp_path / "lock.hql").read_bytes().startswith(b"clean")
    assert await held_by_the_next(tmp_path) == entries(1, 30, size=900)


# --- dropped -----------------------------------------------------------------------------


@contextmanager
def told_of(path: Path) -> Iterator[Callable[[], list[str]]]:
    """The ResourceWarnings about the store at the path."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield lambda: [
            str(warning.message)
            for warning in caught
            if warning.category is ResourceWarning and str(path) in str(warning.message)
        ]


async def use(store: RaftLogStorage) -> None:
    await store.append(entries(1, 20, size=900))
    await store.save_vote(Vote(1))


@pytest.mark.parametrize("collected_by", ["the loop's thread", "another thread"])
@pytest.mark.parametrize("is_waiting", [False, True])
@pytest.mark.parametrize("is_closed_first", [False, True])
def test_a_store_whose_loop_is_gone_is_told_of_and_lets_go(
    tmp_path: Path, collected_by: str, is_waiting: bool, is_closed_first: bool
) -> None:
    gate = Gate()
    before = threads()
    loop = asyncio.new_event_loop()
    opening = RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, environment=HookedEnvironment(gate)
    )
    with told_of(tmp_path) as told:
        store = loop.run_until_complete(opening.__aenter__())
        loop.run_until_complete(use(store))
        if is_waiting:
            gate.shut()
            loop.run_until_complete(store.append(entries(20, 21), lambda error: None))
        started = threads() - before
        if is_closed_first:
            loop.close()
        cycle: list[Any] = [store, opening]
        cycle.append(cycle)
        gc.disable()
        try:
            del store, opening, cycle
            assert all(thread.is_alive() for thread in started)
            if collected_by == "another thread":
                collector = threading.Thread(target=gc.collect)
                collector.start()
                collector.join(PATIENCE_SECONDS)
            else:
                gc.collect()
        finally:
            gc.enable()
        loop.close()
        gc.collect()
        gate.open()
        assert len(told()) == 1
        assert "never closed" in told()[0]
    for thread in started:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert (tmp_path / "lock.hql").read_bytes().startswith(b"pid")  # nobody closed it
    assert anyio.run(held_by_the_next, tmp_path)[:19] == entries(1, 20, size=900)


def test_a_closed_store_leaves_no_descriptor_even_where_nothing_is_collected(
    tmp_path: Path,
) -> None:
    async def use_and_close(number: int) -> None:
        async with RaftLogStorage.open(tmp_path / str(number)) as store:
            await store.append(entries(1, 3))

    gc.collect()
    gc.disable()
    try:
        asyncio.run(use_and_close(0))
        before, started = len(os.listdir("/proc/self/fd")), threads()
        for number in range(1, 6):
            asyncio.run(use_and_close(number))
            for thread in threads() - started:
                thread.join(PATIENCE_SECONDS)
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()
