"""The row about purging half of a log: when it returns, and what an append meanwhile waits for."""

from __future__ import annotations

import os
import statistics
from functools import partial
from time import perf_counter

import anyio

from _contestants import Ours
from _measure import Plan, Result, run
from hqlwal_raft import LogId

__all__ = ["ALONE", "MEANWHILE", "P50", "RETURNS", "purge"]

_PAYLOAD = bytes(256)
RETURNS = "purge half returns"
MEANWHILE = "longest append meanwhile"
ALONE = "longest append in as long a time alone"
P50 = "p50 of an append alone"
_FREED = "until its files are gone"
#: alone, before the purge
_WARM_SECONDS = 0.2
#: the files are gone when there were no fewer for that long
_QUIET_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0


async def _files_gone(path: str) -> float:
    """When the last file went."""
    left, since = len(os.listdir(path)), perf_counter()
    give_up = since + _PATIENCE_SECONDS
    while perf_counter() < min(since + _QUIET_SECONDS, give_up):
        await anyio.sleep(0.002)
        now = len(os.listdir(path))
        if now < left:
            left, since = now, perf_counter()
    return since


async def _purge(path: str, entries: int) -> dict[str, float]:
    async with Ours(path, durable=False) as ours:
        await ours.fill(_PAYLOAD, entries, 100)
    ends: list[tuple[float, float]] = []
    is_over = False
    async with Ours(path, durable=True) as ours:
        append, make = ours.store.append, ours.maker(_PAYLOAD, 1)

        async def write() -> None:
            index = entries
            while not is_over:
                index += 1
                batch = make(index)
                begin = perf_counter()
                await append(batch)
                ends.append((begin, perf_counter()))

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await anyio.sleep(_WARM_SECONDS)
            begin = perf_counter()
            await ours.store.purge(LogId(1, entries // 2))
            returned = perf_counter()
            gone = max(returned, await _files_gone(path))
            await anyio.sleep(gone - begin)
            is_over = True

    def longest(since: float, until: float) -> float:
        """Of the appends that were under way then."""
        return max((end - start for start, end in ends if end > since and start < until), default=0)

    alone = [end - start for start, end in ends if end <= begin]
    last = ends[-1][1]
    return {
        RETURNS: returned - begin,
        _FREED: gone - begin,
        MEANWHILE: longest(begin, gone),
        ALONE: longest(last - (gone - begin), last),
        P50: statistics.median(alone) if alone else 0.0,
    }


def purge(plan: Plan) -> list[Result]:
    """Half of a large log is purged while one task appends durably."""
    entries = plan.big_entries // 100 * 100
    results: dict[str, Result] = {}
    for _ in range(plan.rounds):
        with plan.scratch() as path:
            for cell, seconds in run("asyncio", partial(_purge, path, entries)).items():
                result = results.setdefault(cell, Result("purge", cell, "hqlwal", "seconds"))
                result.rounds.append(seconds)
    return list(results.values())
