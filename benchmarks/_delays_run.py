"""One scenario of ``_delays``, in the process of its own that measures it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

from _watched import Beat, Runtime, WatchedEnvironment
from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote

__all__ = ["APPENDED", "POLICIES", "READ", "SCANNED", "SCENARIOS"]

_PAYLOAD = bytes(256)
_WRITERS = 64
#: the first ones, in a row
_APPENDS = 100
#: small, so that they are rolled over every few syncs
_SEGMENT_BYTES = 64 << 10
#: how many delays the slow disk is watched for
_DELAYS = 30

READ, APPENDED, SCANNED = "first read", f"first {_APPENDS} appends", "cold scan"
SCENARIOS = (READ, APPENDED, SCANNED)
#: of the slow disk
POLICIES = ("immediate", "immediate_async", "interval_200")


async def _read(path: str, environment: WatchedEnvironment) -> None:
    async with RaftLogStorage.open(path, environment=environment) as store:
        assert await store.try_get_log_entries(1, 65)


async def _append(path: str, environment: WatchedEnvironment) -> None:
    async with RaftLogStorage.open(path, environment=environment) as store:
        last = (await store.get_log_state()).last_log_id
        first = last.index + 1 if last else 1
        for index in range(first, first + _APPENDS):
            await store.append([Entry(1, index, _PAYLOAD)])


async def _scan(path: str, environment: WatchedEnvironment) -> None:
    async with RaftLogStorage.open(path, environment=environment) as store:
        count = 0
        async for _ in store.entries_stream(0):
            count += 1
        assert count


async def _write_slowly(
    store: RaftLogStorage, runtime: Runtime, environment: WatchedEnvironment, seconds: float
) -> None:
    """Many writers, and now and then a vote, a cut of the end, a purge."""
    indexes = itertools.count(1)
    until = perf_counter() + seconds

    async def write() -> None:
        while perf_counter() < until:
            await store.append([Entry(1, next(indexes), _PAYLOAD)])

    async def change() -> None:
        await runtime.sleep(seconds / 3)
        await store.save_vote(Vote(1, 1))
        last = (await store.get_log_state()).last_log_id
        if last is not None:
            await store.purge(LogId(1, last.index // 2))

    try:
        await runtime.beside(change, *[write] * _WRITERS)
        last = (await store.get_log_state()).last_log_id
        if last is not None:
            await store.truncate(LogId(1, last.index))
    finally:
        environment.delay_seconds = 0.0


async def _watch(
    runtime: Runtime, environment: WatchedEnvironment, work: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    beat = Beat(runtime)
    await beat.during(runtime, work)
    return {"lateness": beat.lateness, "calls": environment.longest}


async def _slow(
    path: str, policy: str, delay: float, runtime: Runtime, environment: WatchedEnvironment
) -> dict[str, Any]:
    async with RaftLogStorage.open(
        path, sync=policy, segment_size=_SEGMENT_BYTES, environment=environment, stall_seconds=60
    ) as store:
        environment.longest.clear()
        environment.delay_seconds = delay
        work = partial(_write_slowly, store, runtime, environment, _DELAYS * delay)
        return await _watch(runtime, environment, work)


def main() -> None:
    name, path, scenario, seconds = sys.argv[1:5]
    runtime, environment = Runtime(name), WatchedEnvironment()
    works = {READ: _read, APPENDED: _append, SCANNED: _scan}
    if scenario in works:
        work = partial(works[scenario], path, environment)
        told = runtime.run(partial(_watch, runtime, environment, work))
    else:
        told = runtime.run(partial(_slow, path, scenario, float(seconds), runtime, environment))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
