"""Rows about many stores in one process: one task each, durable, with threads and descriptors.

Measured in a process of its own (this file is also what that process runs), so that the threads
and descriptors are theirs alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

import anyio

from _contestants import Ours, entries_maker
from _machine import ask_child
from _measure import RUNTIMES, Latency, Plan, Result, is_installed, rotated, run

__all__ = ["many_stores"]

_PAYLOAD = bytes(256)
#: the same number of tasks, in one store
_ONE = "one store"


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _appending(
    append: Callable[[Any], Awaitable[object]], ready: list[Any], until: float, calls: list[float]
) -> None:
    """One task of one store. Its entries were made before; it ends early where they do."""
    before = perf_counter()
    while ready:
        await append(ready.pop())
        now = perf_counter()
        calls.append(now - before)
        before = now
        if now >= until:
            break


async def _measure(path: str, stores: int, tasks: int, seconds: float) -> dict[str, Any]:
    """``tasks`` tasks share the stores evenly."""
    descriptors = _descriptors()
    calls: list[float] = []
    make = entries_maker(_PAYLOAD, 1)
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(Ours(os.path.join(path, str(number)), durable=True))
            for number in range(stores)
        ]
        for ours in opened:
            await ours.store.append(make(1))
        # tasks of one store share a list, so that its indexes have no gaps
        entries = int(seconds * 200_000) // stores + 1
        ready = [[make(index) for index in range(entries + 1, 1, -1)] for _ in opened]
        gc.freeze()  # the collector does not look at what was made ahead
        begin = perf_counter()
        until = begin + seconds
        async with anyio.create_task_group() as group:
            for number in range(tasks):
                which = number % stores
                append = opened[which].store.append
                group.start_soon(_appending, append, ready[which], until, calls)
            await anyio.sleep(seconds / 2)
            threads, open_now = _threads(), _descriptors()
        taken = perf_counter() - begin
    return {
        "rate": len(calls) / taken,
        "calls": calls,
        "threads": threads,
        "descriptors": open_now - descriptors,
    }


def main() -> None:
    runtime, path, stores, tasks, seconds = sys.argv[1:6]
    os.makedirs(path)
    work = partial(_measure, path, int(stores), int(tasks), float(seconds))
    print(json.dumps(run(runtime, work)), flush=True)


def many_stores(plan: Plan) -> list[Result]:
    """Durable appends of one entry in many stores at a time, and in one by as many tasks."""
    count = plan.stores
    cells = {f"{count} stores": count, f"{_ONE}, {count} tasks": 1}
    results: dict[tuple[str, str], Result] = {}
    samples: dict[tuple[str, str], list[float]] = {}
    works = [(cell, stores, runtime) for cell, stores in cells.items() for runtime in RUNTIMES]
    for turn in range(plan.rounds):
        for cell, stores, runtime in rotated(works, turn):
            name = f"hqlwal {runtime}"
            if not is_installed(runtime):
                results[cell, name] = Result("stores", cell, name, "", missing="missing")
                continue
            with plan.scratch() as path:
                told = ask_child(
                    __file__, runtime, path, str(stores), str(count), str(plan.seconds * 4)
                )
            for what, unit, value in (
                (cell, "entries/s", told["rate"]),
                (f"{cell}: threads in all", "threads", told["threads"]),
                (f"{cell}: descriptors", "descriptors", told["descriptors"]),
            ):
                result = results.setdefault((what, name), Result("stores", what, name, unit))
                result.rounds.append(value)
            results[cell, name].p50s.append(statistics.median(told["calls"]))
            samples.setdefault((cell, name), []).extend(told["calls"])
    for key, calls in samples.items():
        results[key].latency = Latency.of(calls)
    order = list(dict.fromkeys(cell for cell, _ in results))
    return sorted(results.values(), key=lambda result: order.index(result.cell))


if __name__ == "__main__":
    main()
