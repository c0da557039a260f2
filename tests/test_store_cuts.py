"""Readers while a truncation is under way: held before each of its calls, they see the log as it
was or as it will be, never damage.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage
from hqlwal_raft.testing import MemoryKernel
from tests._support import (
    PATIENCE_SECONDS,
    ColdEnvironment,
    HookedEnvironment,
    Started,
    entries,
    on_both_backends,
)

#: eight of these fill a segment of 8 KiB
SIZE = 900
COUNT = 30
LOG = entries(1, COUNT + 1, size=SIZE)

Read = Callable[[Any], Awaitable[list[Entry]]]


class Steps:
    """Holds one call of the disk's thread, and notes how often others read meanwhile."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._left: int | None = None
        self.is_held = False
        self.reads = 0

    def __call__(self, call: str, path: str) -> None:
        is_disk = threading.current_thread().name == "hqlwal-disk"
        with self._news:
            if not is_disk:
                self.reads += call in ("open", "pread") and path.endswith(".wal")
                self._news.notify_all()
            elif self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self.is_held = True
                    self._news.notify_all()
                    assert self._news.wait_for(lambda: self._left is None, PATIENCE_SECONDS)
                    self.is_held = False

    def hold(self, number: int) -> None:
        """The ``number``-th next call of the disk's thread is held."""
        with self._news:
            self._left = number
            self.reads = 0

    def release(self) -> None:
        with self._news:
            self._left = None
            self._news.notify_all()

    async def wait(self, condition: Callable[[], bool]) -> None:
        def wait() -> None:
            with self._news:
                assert self._news.wait_for(condition, PATIENCE_SECONDS), "it never came"

        await anyio.to_thread.run_sync(wait)

    def notify(self) -> None:
        with self._news:
            self._news.notify_all()


async def stream(side: Any, start: int) -> list[Entry]:
    return [entry async for entry in side.entries_stream(start)]


async def in_parts(side: Any, start: int) -> list[Entry]:
    """A limited read; what it gives need not be all."""
    got: list[Entry] = await side.limited_get_log_entries(start, max_bytes=3 * SIZE)
    return got


def reads_of(cut: int) -> dict[str, tuple[int, Read]]:
    """Reads by name: where each begins, and how it is made."""
    result: dict[str, tuple[int, Read]] = {}
    for start in {1, max(cut - 1, 1), cut, min(cut + 2, COUNT)}:
        result[f"entries from {start}"] = (
            start,
            functools.partial(lambda start, side: side.try_get_log_entries(start), start),
        )
        result[f"some from {start}"] = (
            start,
            functools.partial(lambda s, i: in_parts(i, s), start),
        )
        result[f"stream from {start}"] = (
            start,
            functools.partial(lambda s, i: stream(i, s), start),
        )
    return result


@on_both_backends
@pytest.mark.parametrize("is_cold", [True, False], ids=["cold", "warm"])
@pytest.mark.parametrize("cut", [1, 2, 9, 12, 17, 25, 28, COUNT])
async def test_a_read_during_a_truncation_gives_what_was_there_before_or_after(
    cut: int, is_cold: bool
) -> None:
    number = 0
    was_held = True
    while was_held:
        number += 1
        was_held = await cut_while_read(cut, number, is_cold=is_cold)
    assert number > 5


async def cut_while_read(cut: int, number: int, *, is_cold: bool) -> bool:
    """Truncates, held before the call with the number; says whether there was such a call."""
    disk = MemoryKernel()
    steps = Steps()
    kind = ColdEnvironment if is_cold else HookedEnvironment
    options: dict[str, Any] = {
        "segment_size": 8192,
        "cache_bytes": 0,
        "environment": kind(steps, environment=disk),
    }
    async with RaftLogStorage.open("/log", **options) as store:
        for index in range(1, COUNT + 1):
            await store.append(entries(index, index + 1, size=SIZE))
    want = LOG[: cut - 1]
    async with RaftLogStorage.open("/log", **options) as store:
        reader = await store.get_log_reader()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            steps.hold(number)
            is_done = False

            async def truncate() -> None:
                nonlocal is_done
                await store.truncate(LogId(1, cut))
                is_done = True
                steps.notify()

            await started.start("truncate", truncate)
            await steps.wait(lambda: steps.is_held or is_done)
            was_held = not is_done
            if was_held:
                assert (await store.get_log_state()).last_log_id == LogId(1, COUNT)
                for name, (_, read) in reads_of(cut).items():
                    await started.start(f"store {name}", functools.partial(read, store))
                    await started.start(f"reader {name}", functools.partial(read, reader))
                await started.start("leaders", store.get_key_log_ids)
                # those that wait for the disk do so while the truncation is where it is
                if is_cold:
                    await steps.wait(lambda: steps.reads >= len(reads_of(cut)))
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
            steps.release()
        assert started.outcomes.pop("truncate") is None
        leaders = started.outcomes.pop("leaders", None)
        assert leaders in (None, [LogId(1, COUNT)], key_ids(cut))
        for name, got in started.outcomes.items():
            start, _ = reads_of(cut)[name.partition(" ")[2]]
            before, after = LOG[start - 1 :], want[start - 1 :]
            assert not isinstance(got, Exception), (name, number, got)
            if name.partition(" ")[2].startswith("entries"):
                assert got in (before, after), (name, number)
            else:  # the first few, of the one or the other
                assert got in (before[: len(got)], after[: len(got)]), (name, number)
                assert got or not after, (name, number)
        assert await store.try_get_log_entries(0) == want
        assert await reader.try_get_log_entries(0) == want
        await store.append(entries(cut, cut + 2, size=SIZE, term=2))
        assert await reader.try_get_log_entries(0) == [*want, *entries(cut, cut + 2, SIZE, term=2)]
    return was_held


def key_ids(cut: int) -> list[LogId]:
    return [LogId(1, cut - 1)] if cut > 1 else []
