"""One row of ``old_new.py`` on whichever version of the package is found first, in a fresh process.

Uses nothing but what every version has in public, and nothing of the other benchmarks, which are
this version's. Prints the package's folder and the seconds of the measured calls, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

import hqlwal_raft
from hqlwal_raft import Entry, LogId, RaftLogStorage

__all__ = ["NEEDS_LOG", "ROWS"]

_PAYLOAD = bytes(256)
_RANGE = 64
#: of those appended last, which the cache still holds
_RECENT = 2048
_WARM_UP_CALLS = 4
#: entries a second for which enough is made ahead
_AHEAD_PER_SECOND = 1_000_000
_AHEAD_DURABLE = 200_000
_CUTS = 20

#: path, seconds, entries of the log → seconds of one unit of the row's work, or of a call
Row = Callable[[str, float, int], Awaitable[float]]


def _batches(first: int, count: int, size: int) -> list[list[Entry]]:
    """The first one stands last."""
    stop = first + count * size
    made = [
        [Entry(1, index, _PAYLOAD) for index in range(start, start + size)]
        for start in range(first, stop, size)
    ]
    return made[::-1]


def _settle() -> None:
    """The collector does not look at what was made ahead."""
    gc.freeze()
    gc.collect()


async def _fill(path: str, entries: int) -> None:
    async with RaftLogStorage.open(path, sync="interval_200") as store:
        for batch in reversed(_batches(1, entries // 100, 100)):
            await store.append(batch)
        await store.flush()


# --- rows --------------------------------------------------------------------------------


async def _append(
    path: str, seconds: float, _entries: int, *, policy: str, batch: int, tasks: int
) -> float:
    """The median call of one task; of many, the time that one entry takes of all of them."""
    ahead = _AHEAD_DURABLE * (1 + (batch > 1)) if policy == "immediate" else _AHEAD_PER_SECOND
    async with RaftLogStorage.open(path, sync=policy) as store:
        append = store.append
        for each in reversed(_batches(1, _WARM_UP_CALLS, batch)):
            await append(each)
        count = max(1, int(ahead * seconds) // batch)
        ready = _batches(1 + _WARM_UP_CALLS * batch, count, batch)
        _settle()
        calls: list[float] = []
        begin = perf_counter()
        until = begin + seconds

        async def work() -> None:
            while ready:
                mine = ready.pop()
                before = perf_counter()
                await append(mine)
                now = perf_counter()
                calls.append(now - before)
                if now >= until:
                    break

        if tasks == 1:
            await work()
            # what waits for the disk has a median; what does not pays now and then
            return statistics.median(calls) if policy == "immediate" else sum(calls) / len(calls)
        await asyncio.gather(*(work() for _ in range(tasks)))
        return (perf_counter() - begin) / len(calls)


async def _ranges(path: str, seconds: float, entries: int) -> float:
    """From the first call after opening, one pass at least."""
    took, count = 0.0, 0
    while took < seconds:
        async with RaftLogStorage.open(path) as store:
            read = store.try_get_log_entries
            begin = perf_counter()
            for start in range(1, entries - _RANGE + 2, _RANGE):
                await read(start, start + _RANGE)
                count += _RANGE
            took += perf_counter() - begin
    return took / count


async def _recent(path: str, seconds: float, _entries: int) -> float:
    async with RaftLogStorage.open(path) as store:
        first = await _last(store) + 1
        await store.append(_batches(first, 1, _RECENT)[0])
        read = store.try_get_log_entries
        count = 0
        begin = now = perf_counter()
        while now < begin + seconds:
            for start in range(first, first + _RECENT - _RANGE + 1, _RANGE):
                await read(start, start + _RANGE)
                count += _RANGE
            now = perf_counter()
        return (now - begin) / count


async def _random(path: str, seconds: float, entries: int) -> float:
    async with RaftLogStorage.open(path) as store:
        read = store.try_get_log_entries
        for place in range(1, entries + 1, 5000):  # each segment's first read is not what is timed
            await read(place, place + 1)
        places = random.Random(5)
        count = 0
        begin = now = perf_counter()
        while now < begin + seconds:
            for place in places.choices(range(1, entries + 1), k=256):
                await read(place, place + 1)
            count += 256
            now = perf_counter()
        return (now - begin) / count


async def _stream(path: str, seconds: float, _entries: int) -> float:
    took, count = 0.0, 0
    while took < seconds:
        async with RaftLogStorage.open(path) as store:
            begin = perf_counter()
            async for _ in store.entries_stream(0):
                count += 1
            took += perf_counter() - begin
    return took / count


async def _open(path: str, seconds: float, entries: int) -> float:
    """The median of several: after a close, the first one aside."""
    calls: list[float] = []
    begin = perf_counter()
    while perf_counter() < begin + seconds or len(calls) < 4:
        before = perf_counter()
        async with RaftLogStorage.open(path) as store:
            calls.append(perf_counter() - before)
            assert await _last(store) == entries
    return statistics.median(calls[1:])


async def _truncate(path: str, _seconds: float, entries: int) -> float:
    """Cuts of ten entries."""
    cuts = min(_CUTS, (entries - 1) // 10)
    calls = []
    async with RaftLogStorage.open(path) as store:
        for _ in range(cuts):
            entries -= 10
            before = perf_counter()
            await store.truncate(LogId(1, entries + 1))
            calls.append(perf_counter() - before)
    return statistics.median(calls)


async def _purge(path: str, _seconds: float, entries: int) -> float:
    async with RaftLogStorage.open(path) as store:
        before = perf_counter()
        await store.purge(LogId(1, entries // 2))
        return perf_counter() - before


async def _last(store: RaftLogStorage) -> int:
    last = (await store.get_log_state()).last_log_id
    return last.index if last else 0


def _appending(policy: str, batch: int, tasks: int = 1) -> Row:
    return partial(_append, policy=policy, batch=batch, tasks=tasks)


_LOGS: dict[str, Row] = {
    "read ranges of 64, cold": _ranges,
    "read ranges of 64, recent": _recent,
    "read one at random": _random,
    "stream it all, cold": _stream,
    "open": _open,
    "truncate 10": _truncate,
    "purge half": _purge,
}
ROWS: dict[str, Row] = {
    "durable, 1 entry": _appending("immediate", 1),
    "durable, 64 entries": _appending("immediate", 64),
    "durable, 16 tasks": _appending("immediate", 1, 16),
    "durable, 64 tasks": _appending("immediate", 1, 64),
    "durable, 512 tasks": _appending("immediate", 1, 512),
    "buffered, 1 entry, immediate_async": _appending("immediate_async", 1),
    "buffered, 64 entries, immediate_async": _appending("immediate_async", 64),
    "buffered, 1 entry, interval_200": _appending("interval_200", 1),
    "buffered, 64 entries, interval_200": _appending("interval_200", 64),
    **_LOGS,
}
#: rows that begin with a log, made by the same version
NEEDS_LOG = frozenset(_LOGS)


def main() -> None:
    row, path, seconds, entries = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    if row in NEEDS_LOG:
        asyncio.run(_fill(path, entries))
    took = asyncio.run(_measured(ROWS[row], path, seconds, entries))
    folder = os.path.dirname(os.path.dirname(os.path.abspath(hqlwal_raft.__file__)))
    told: dict[str, Any] = {"folder": folder, "seconds": took}
    print(json.dumps(told), flush=True)


async def _measured(row: Row, path: str, seconds: float, entries: int) -> float:
    return await row(path, seconds, entries)


if __name__ == "__main__":
    main()
