"""Rows about appending: durable, buffered, many tasks, sync policies."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from _contestants import RECORD_OVERHEAD_BYTES, AsyncPeer, Floor, HandOver, Ours, Peer, is_available
from _measure import (
    RUNTIMES,
    Latency,
    Limits,
    Plan,
    Result,
    Stint,
    Supply,
    is_installed,
    rotated,
    run,
    stint,
    tasks_stint,
    thread_stint,
)
from _peers import ASYNC_PEERS, PEERS, Aiosqlite, Plyvel

__all__ = [
    "BATCHES",
    "SIZE",
    "SIZES",
    "TASKS",
    "buffered",
    "cell",
    "durable",
    "grid",
    "large",
    "policies",
    "tasks",
]

SIZES = (16, 256, 4096, 65536)
BATCHES = (1, 64, 1024)
TASKS = (1, 16, 64, 512)
#: the size of the headline figures
SIZE = 256
#: larger batches say nothing about a log
_MAX_BATCH_BYTES = 8 << 20

#: path, payload, entries per call, limits → what was done
Runner = Callable[[str, bytes, int, Limits], Stint]


def cell(size: int, batch: int) -> str:
    return f"{size} B x {batch}"


def _sync_runner(
    make: Callable[[str], Peer], path: str, payload: bytes, batch: int, limits: Limits
) -> Stint:
    peer = make(path)
    try:
        supply = Supply(peer.maker(payload, batch), batch)
        return stint(peer.appender(payload, batch), supply, limits)
    finally:
        peer.close()


def _thread_runner(
    contestant: type[Peer], threads: int, path: str, payload: bytes, batch: int, limits: Limits
) -> Stint:
    peer = contestant(path, durable=True)
    try:
        supply = Supply(peer.maker(payload, batch), batch)
        return thread_stint(peer.appender(payload, batch), supply, limits, threads)
    finally:
        peer.close()


def _async_runner(
    make: Callable[[str], AsyncPeer],
    runtime: str,
    task_count: int,
    path: str,
    payload: bytes,
    batch: int,
    limits: Limits,
) -> Stint:
    async def work() -> Stint:
        async with make(path) as peer:
            supply = Supply(peer.maker(payload, batch), batch)
            return await tasks_stint(peer.appender(payload, batch), supply, limits, task_count)

    return run(runtime, work)


def _runners(*, durable: bool) -> dict[str, Runner | None]:
    """Every contestant with one writer; None where its package is missing."""
    runners: dict[str, Runner | None] = {}
    for peer in PEERS:
        runners[peer.name] = (
            partial(_sync_runner, partial(peer, durable=durable)) if is_available(peer) else None
        )
    for async_peer in ASYNC_PEERS:
        if async_peer is HandOver and not durable:
            continue  # its price is that of waiting for the disk
        make = partial(async_peer, durable=durable)
        runners[async_peer.name] = (
            partial(_async_runner, make, "asyncio", 1) if is_available(async_peer) else None
        )
    return runners


def _compare(
    row: str,
    cells: Iterable[tuple[str, int, int, dict[str, Runner | None]]],
    plan: Plan,
) -> list[Result]:
    """Interleaved rounds of (cell, size, batch, runners); rates are medians over rounds."""
    results: list[Result] = []
    for name, size, batch, runners in cells:
        payload = bytes(range(256)) * (size // 256) or bytes(size)
        limits = Limits(plan.seconds, batch, batch * (size + RECORD_OVERHEAD_BYTES))
        found = {
            label: Result(row, name, label, "entries/s", missing="" if runner else "missing")
            for label, runner in runners.items()
        }
        samples: dict[str, list[float]] = {label: [] for label in runners}
        for turn in range(plan.rounds):
            for label, runner in rotated(list(runners.items()), turn):
                if runner is None:
                    continue
                with plan.scratch() as path:
                    done = runner(path, payload, batch, limits)
                found[label].rounds.append(done.rate)
                found[label].p50s.append(statistics.median(done.calls))
                samples[label].extend(done.calls)
        for label, result in found.items():
            result.latency = Latency.of(samples[label])
        results += found.values()
    return results


def durable(plan: Plan) -> list[Result]:
    """One writer; every call is durable when it returns."""
    runners = _runners(durable=True)
    return _compare(
        "durable", [(cell(SIZE, batch), SIZE, batch, runners) for batch in (1, 64)], plan
    )


def buffered(plan: Plan) -> list[Result]:
    """One writer; a call returns before the entries are durable."""
    runners = _runners(durable=False)
    make = partial(Ours, durable=False, policy="interval_200")
    runners["hqlwal interval_200"] = partial(_async_runner, make, "asyncio", 1)
    return _compare(
        "buffered", [(cell(SIZE, batch), SIZE, batch, runners) for batch in (1, 64)], plan
    )


def grid(plan: Plan, *, is_durable: bool) -> list[Result]:
    """Every size by every batch, one writer; shorter stints, since there are many."""
    plan = replace(plan, rounds=min(plan.rounds, 3), seconds=min(plan.seconds, 0.15))
    runners = _runners(durable=is_durable)
    del runners["lmdb, bare pairs"]
    return _compare(
        "durable-grid" if is_durable else "buffered-grid",
        [
            (cell(size, batch), size, batch, runners)
            for size, batch in itertools.product(SIZES, BATCHES)
            if size * batch <= _MAX_BATCH_BYTES
        ],
        plan,
    )


def large(plan: Plan) -> list[Result]:
    """One writer, one large entry at a time, durable: segments are rolled over every few calls."""
    chosen = (Floor.name, Ours.name, "sqlite3", "lmdb", "rocksdict")
    runners = {name: make for name, make in _runners(durable=True).items() if name in chosen}
    plan = replace(plan, seconds=plan.seconds * 2)
    return _compare(
        "large", [(f"{size >> 20} MiB", size, 1, runners) for size in (1 << 20, 4 << 20)], plan
    )


def tasks(plan: Plan) -> list[Result]:
    """Many tasks, each appending one entry durably and waiting for it."""
    cells: list[tuple[str, int, int, dict[str, Runner | None]]] = []
    for count in TASKS:
        runners: dict[str, Runner | None] = {}
        make = partial(Ours, durable=True)
        for runtime in RUNTIMES:
            runners[f"hqlwal {runtime}"] = (
                partial(_async_runner, make, runtime, count) if is_installed(runtime) else None
            )
        runners["plyvel threads"] = (
            partial(_thread_runner, Plyvel, count) if is_available(Plyvel) else None
        )
        runners["aiosqlite tasks"] = (
            partial(_async_runner, partial(Aiosqlite, durable=True), "asyncio", count)
            if is_available(Aiosqlite)
            else None
        )
        cells.append((f"{count} tasks", SIZE, 1, runners))
    return _compare("tasks", cells, plan)


def policies(plan: Plan) -> list[Result]:
    """Ours under each sync policy."""
    cells: list[tuple[str, int, int, dict[str, Runner | None]]] = []
    for count, batch in ((1, 1), (1, 64), (64, 1)):
        runners: dict[str, Runner | None] = {
            policy: partial(
                _async_runner, partial(Ours, durable=False, policy=policy), "asyncio", count
            )
            for policy in ("immediate", "immediate_async", "interval_20", "interval_200")
        }
        cells.append((f"{count} tasks x {batch}", SIZE, batch, runners))
    return _compare("policies", cells, plan)
