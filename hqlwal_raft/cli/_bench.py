"""A short measurement of appends on a disk of one's own. Prints nothing."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass

import anyio

from .._directory import Directory
from .._environment import Environment
from .._store import RaftLogStorage
from .._types import Entry, LogSync

__all__ = ["BenchReport", "measure"]

_FLOOR_SYNCS = 200


@dataclass(frozen=True, slots=True)
class BenchReport:
    """``hqlwal bench``: what appending took."""

    entries: int
    payload_bytes: int
    tasks: int
    sync: str
    entries_per_second: float
    append_p50_seconds: float
    append_p99_seconds: float
    syncs: int
    entries_per_sync: float
    sync_p50_seconds: float
    sync_p99_seconds: float
    #: of a small write and its sync, without a store
    floor_p50_seconds: float


def measure(directory: str, *, entries: int, size: int, tasks: int, sync: LogSync) -> BenchReport:
    """Appends ``entries`` payloads of ``size`` bytes singly, from so many tasks at once."""
    with tempfile.TemporaryDirectory(prefix="hqlwal-bench-", dir=directory) as folder:
        floor = _measure_floor(os.path.abspath(folder))
        return anyio.run(_measure, os.path.join(folder, "log"), entries, size, tasks, sync, floor)


def _measure_floor(folder: str) -> float:
    directory = Directory(Environment(), folder)
    file = directory.create("floor", 1 << 20, b"")
    took = []
    for number in range(_FLOOR_SYNCS):
        begun = time.perf_counter()
        file.write(number * 512, (b"x" * 512,))
        file.sync()
        took.append(time.perf_counter() - begun)
    file.close()
    directory.close()
    return sorted(took)[len(took) // 2]


async def _measure(
    path: str, entries: int, size: int, tasks: int, sync: LogSync, floor: float
) -> BenchReport:
    payload = os.urandom(size)
    took: list[float] = []
    async with RaftLogStorage.open(path, sync=sync) as store:
        indexes = iter(range(1, entries + 1))

        async def append_singly() -> None:
            for index in indexes:
                begun = time.perf_counter()
                await store.append([Entry(1, index, payload)])
                took.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(append_singly)
        await store.flush()
        seconds = time.perf_counter() - begun
        statistics = store.statistics()
    took.sort()
    return BenchReport(
        entries=entries,
        payload_bytes=size,
        tasks=tasks,
        sync=str(sync),
        entries_per_second=entries / seconds,
        append_p50_seconds=took[len(took) // 2],
        append_p99_seconds=took[len(took) * 99 // 100],
        syncs=statistics.syncs,
        entries_per_sync=statistics.entries_per_sync,
        sync_p50_seconds=statistics.sync_p50_seconds,
        sync_p99_seconds=statistics.sync_p99_seconds,
        floor_p50_seconds=floor,
    )
