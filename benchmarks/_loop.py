"""Rows about the event loop and about fairness: stalls, readers against writers, scans."""

from __future__ import annotations

import random
from functools import partial
from time import perf_counter

import anyio

from _contestants import Ours
from _measure import RUNTIMES, Latency, Plan, Result, is_installed, run
from _watched import WatchedEnvironment
from hqlwal_raft import LogId

__all__ = ["LONGEST_CALL", "fairness", "stall"]

#: the longest system call that was made in the thread of the loop
LONGEST_CALL = "longest call"

_PAYLOAD = bytes(256)
_SIZE_ON_DISK = 288
#: small, so that roll-overs come several times a second
_SEGMENT_BYTES = 4 << 20
_WRITERS = 64
_BEAT_SECONDS = 0.001


async def _watch(until: float, lateness: list[float]) -> None:
    """How much later than due a timer of one millisecond fires, all the time."""
    now = perf_counter()
    while True:
        before = now
        await anyio.sleep(_BEAT_SECONDS)
        now = perf_counter()
        lateness.append(now - before - _BEAT_SECONDS)
        if now >= until:
            return


async def _purge_now_and_then(ours: Ours, until: float, counts: dict[str, int]) -> None:
    while perf_counter() < until:
        await anyio.sleep(0.25)
        last = (await ours.store.get_log_state()).last_log_id
        if last is not None and last.index > 20_000:
            await ours.store.purge(LogId(1, last.index - 10_000))
            counts["purges"] += 1


async def _stalls(
    path: str, seconds: float, counts: dict[str, int]
) -> tuple[list[float], dict[str, float]]:
    lateness: list[float] = []
    calls: list[float] = []
    watched = WatchedEnvironment()
    async with Ours(path, durable=True, segment_size=_SEGMENT_BYTES, environment=watched) as ours:
        until = perf_counter() + seconds
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, until, lateness)
            group.start_soon(_purge_now_and_then, ours, until, counts)
            group.start_soon(_write, ours, 1, until, calls)
        counts["appends"] = len(calls)
    return lateness, watched.longest


async def _idle(seconds: float) -> list[float]:
    lateness: list[float] = []
    await _watch(perf_counter() + seconds, lateness)
    return lateness


def stall(plan: Plan) -> list[Result]:
    """How late the loop is while 64 tasks append durably, with roll-overs and purges."""
    results = []
    for runtime in RUNTIMES:
        # the whole time on the default loop, a third on each of the others
        seconds = plan.stall_seconds if runtime == "asyncio" else plan.stall_seconds / 3
        if runtime == "asyncio":
            idle = Result("stall", "longest", "an idle loop", "seconds")
            lateness = run(runtime, partial(_idle, seconds / 3))
            idle.rounds, idle.latency = [max(lateness)], Latency.of(lateness)
            results.append(idle)
        result = Result("stall", "longest", f"hqlwal {runtime}", "seconds")
        results.append(result)
        if not is_installed(runtime):
            result.missing = "missing"
            continue
        counts = {"purges": 0, "appends": 0}
        with plan.scratch() as path:
            lateness, longest = run(runtime, partial(_stalls, path, seconds, counts))
        result.rounds, result.latency = [max(lateness)], Latency.of(lateness)
        result.note = (
            f"{seconds:.0f} s, {counts['appends']:,} appends, "
            f"{counts['appends'] * _SIZE_ON_DISK // _SEGMENT_BYTES} roll-overs, "
            f"{counts['purges']} purges, {sum(late > 0.01 for late in lateness)} beats "
            "more than 10 ms late"
        )
        slowest = max(longest, key=longest.__getitem__, default="")
        call = Result("stall", LONGEST_CALL, result.contestant, "seconds")
        call.rounds, call.note = [longest.get(slowest, 0.0)], slowest
        results.append(call)
    return results


# --- fairness ----------------------------------------------------------------------------


async def _write(ours: Ours, first: int, until: float, calls: list[float]) -> None:
    """Many tasks append durably, one entry each, until the time is over."""
    append, make = ours.store.append, ours.maker(_PAYLOAD, 1)
    index = first

    async def work() -> None:
        nonlocal index
        before = perf_counter()
        while True:
            mine = index
            index += 1
            await append(make(mine))
            now = perf_counter()
            calls.append(now - before)
            before = now
            if now >= until:
                break

    async with anyio.create_task_group() as group:
        for _ in range(_WRITERS):
            group.start_soon(work)


async def _read(ours: Ours, entries: int, until: float, calls: list[float], seed: int) -> None:
    """One task reads 64-entry ranges anywhere in the old log."""
    place = random.Random(seed)
    before = perf_counter()
    while before < until:
        start = place.randrange(1, entries - 64)
        found = await ours.store.try_get_log_entries(start, start + 64)
        assert len(found) == 64
        now = perf_counter()
        calls.append(now - before)
        before = now
        await anyio.lowlevel.checkpoint()


async def _scan(ours: Ours, entries: int, until: float, calls: list[float]) -> None:
    """Streams the whole log, again and again; a call here is 1000 entries."""
    before = perf_counter()
    while before < until:
        count = 0
        async for _ in ours.store.entries_stream(1, entries + 1):
            count += 1
            if count % 1000 == 0:
                now = perf_counter()
                calls.append(now - before)
                before = now
                if now >= until:
                    return


async def _together(
    path: str, entries: int, seconds: float, kinds: tuple[str, ...]
) -> dict[str, list[float]]:
    calls: dict[str, list[float]] = {kind: [] for kind in kinds}
    async with Ours(path, durable=True) as ours:
        first = await ours.last() + 1
        until = perf_counter() + seconds
        async with anyio.create_task_group() as group:
            if "writers" in kinds:
                group.start_soon(_write, ours, first, until, calls["writers"])
            if "readers" in kinds:
                for seed in range(4):
                    group.start_soon(_read, ours, entries, until, calls["readers"], seed)
            if "scan" in kinds:
                group.start_soon(_scan, ours, entries, until, calls["scan"])
    return calls


async def _fill(path: str, entries: int) -> None:
    async with Ours(path, durable=False) as ours:
        await ours.fill(_PAYLOAD, entries, 256)


def fairness(plan: Plan) -> list[Result]:
    """4 readers of ranges and 64 durable writers, a full scan and the writers: alone, together."""
    per_call = {"writers": 1, "readers": 64, "scan": 1000}
    entries = plan.read_entries // 256 * 256
    seconds = max(plan.seconds * 2, 0.02)
    results: dict[tuple[str, str], Result] = {}
    samples: dict[tuple[str, str], list[float]] = {}
    with plan.scratch() as path:
        run("asyncio", partial(_fill, path, entries))
        for _ in range(plan.rounds):
            for kinds in (
                ("writers",),
                ("readers",),
                ("scan",),
                ("writers", "readers"),
                ("writers", "scan"),
            ):
                done = run("asyncio", partial(_together, path, entries, seconds, kinds))
                for kind, calls in done.items():
                    others = [other for other in kinds if other != kind]
                    cell = f"with {others[0]}" if others else "alone"
                    result = results.setdefault(
                        (kind, cell), Result("fairness", cell, kind, "entries/s")
                    )
                    result.rounds.append(len(calls) * per_call[kind] / seconds)
                    samples.setdefault((kind, cell), []).extend(calls)
    for key, calls in samples.items():
        results[key].latency = Latency.of(calls)
    return sorted(results.values(), key=lambda result: result.contestant)
