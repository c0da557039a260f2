"""Measures whether costs stay flat as the log grows: ``python benchmarks/scale.py``.

A log of 100 million entries in ordinary segments is simulated by small segments: what could
grow with the log is the number of segments and of entries in the index. At 100, 1,000 and
10,000 segments a fresh process opens the log, appends, reads and purges.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
from functools import partial
from time import perf_counter
from typing import Any

from _contestants import Ours
from _machine import ask_child, describe_machine, resident_bytes
from _measure import Latency, Limits, Result, Stint, Supply, async_stint, run
from _report import Wanted, make_console, show_machine, show_row, show_wanted, write_json
from hqlwal_raft import LogId

SEGMENT_BYTES = 8192
#: with it, a segment holds 127 records
_PAYLOAD = bytes(32)
_BATCH = 64
LEVELS = (100, 1_000, 10_000)
#: how much dearer than at the first level something may be
FLAT = 1.5


# --- in the process that does one step ---------------------------------------------------


async def _grow(path: str, segments: int) -> dict[str, Any]:
    """Appends until the log has that many segments; ends with a kill."""
    async with Ours(path, durable=False, segment_size=SEGMENT_BYTES) as ours:
        append, make = ours.store.append, ours.maker(_PAYLOAD, _BATCH)
        last = (await ours.store.get_log_state()).last_log_id
        index = begun = last.index + 1 if last else 1
        begin = perf_counter()
        while ours.store.statistics().segments < segments:
            await append(make(index))
            index += _BATCH
        await ours.store.flush()
        seconds = perf_counter() - begin
        told = {"growing, per entry": seconds / max(1, index - begun), "entries": index - 1}
        print(json.dumps(told), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return told


async def _stint(path: str, *, durable: bool, batch: int, seconds: float) -> Stint:
    async with Ours(path, durable=durable, segment_size=SEGMENT_BYTES) as ours:
        last = (await ours.store.get_log_state()).last_log_id
        limits = Limits(seconds, batch, batch * 64)
        append = ours.appender(_PAYLOAD, batch)
        supply = Supply(ours.maker(_PAYLOAD, batch), batch, last.index + 1 if last else 1)
        return await async_stint(append, supply, limits)


async def _open(path: str) -> dict[str, Any]:
    """Opens the log, and weighs it before and after every index was built by reading."""
    async with Ours(path + ".empty", durable=True):
        pass  # imports and first use are not what is timed
    before = resident_bytes()
    begin = perf_counter()
    async with Ours(path, durable=True, segment_size=SEGMENT_BYTES) as ours:
        seconds = perf_counter() - begin
        opened = resident_bytes()
        state = await ours.store.get_log_state()
        entries = ours.store.statistics().entries
        begin = perf_counter()
        count = 0
        async for _ in ours.store.entries_stream(0):
            count += 1
        scanned = perf_counter() - begin
        assert count == entries
        full = resident_bytes()
        last = state.last_log_id.index if state.last_log_id else 0
        places = random.Random(3).choices(range(last - entries + 1, last + 1), k=2000)
        singles = []
        for place in places:
            begin = perf_counter()
            await ours.store.try_get_log_entries(place, place + 1)
            singles.append(perf_counter() - begin)
        return {
            "open": seconds,
            "entries": entries,
            "last": last,
            "segments": ours.store.statistics().segments,
            "scan, per entry": scanned / max(1, count),
            "one random entry, p50": sorted(singles)[len(singles) // 2],
            "memory, opened": opened["anon"] - before["anon"],
            "memory, all read": full["anon"] - before["anon"],
        }


async def _purge(path: str) -> dict[str, Any]:
    async with Ours(path, durable=True, segment_size=SEGMENT_BYTES) as ours:
        statistics = ours.store.statistics()
        last = statistics.last_log_id.index if statistics.last_log_id else 0
        first = last - statistics.entries + 1
        begin = perf_counter()
        await ours.store.purge(LogId(1, first + statistics.entries // 20))
        seconds = perf_counter() - begin
        gone = statistics.segments - ours.store.statistics().segments
        return {"purge, per segment": seconds / max(1, gone), "purged": gone}


async def _append(path: str, seconds: float) -> dict[str, Any]:
    buffered = await _stint(path, durable=False, batch=1, seconds=seconds)
    durable = await _stint(path, durable=True, batch=1, seconds=seconds)
    batches = await _stint(path, durable=True, batch=_BATCH, seconds=seconds)
    latency, buffered_latency = Latency.of(durable.calls), Latency.of(buffered.calls)
    assert latency is not None
    assert buffered_latency is not None
    return {
        "durable append, p50": latency.p50,
        "durable append, p99": latency.p99,
        "durable append of 64, per entry": 1 / batches.rate,
        "buffered append, p50": buffered_latency.p50,
        "buffered append, roll-overs included": 1 / buffered.rate,
    }


def _step(arguments: argparse.Namespace) -> None:
    step, path = arguments.step
    works = {
        "grow": partial(_grow, path, arguments.segments),
        "open": partial(_open, path),
        "append": partial(_append, path, arguments.seconds),
        "purge": partial(_purge, path),
    }
    print(json.dumps(run("asyncio", works[step])), flush=True)


# --- in the process that measures --------------------------------------------------------


def _run(step: str, path: str, *options: str) -> dict[str, Any]:
    told: dict[str, Any] = ask_child(__file__, "--step", step, path, *options)
    return told


def _level(path: str, segments: int, seconds: float) -> dict[str, tuple[str, float]]:
    grown = _run("grow", path, "--segments", str(segments))
    killed = _run("open", path)
    opened = _run("open", path)
    appended = _run("append", path, "--seconds", str(seconds))
    purged = _run("purge", path)
    return {
        "open after a kill": ("seconds", killed["open"]),
        "open after a close": ("seconds", opened["open"]),
        "growing, per entry": ("seconds", grown["growing, per entry"]),
        **{work: ("seconds", value) for work, value in appended.items()},
        "scan, per entry": ("seconds", opened["scan, per entry"]),
        "one random entry, p50": ("seconds", opened["one random entry, p50"]),
        "purge, per segment": ("seconds", purged["purge, per segment"]),
        "entries": ("entries", float(opened["entries"])),
        "memory, opened": ("bytes", opened["memory, opened"]),
        "memory, all read": ("bytes", opened["memory, all read"]),
    }


def _verdicts(results: list[Result], levels: tuple[int, ...]) -> list[Wanted]:
    found = {(result.cell, result.contestant): result.median for result in results}
    small, large = (f"{level:,} segments" for level in (levels[0], levels[-1]))
    lines = []
    for work in ("open after a close", "open after a kill"):
        got = found[work, large]
        lines.append(Wanted(f"{work}, {large}", "<= 1 s", f"{got:.3f} s", got <= 1))
    for work in dict.fromkeys(result.cell for result in results if result.unit == "seconds"):
        if work.startswith("open") or "p99" in work:
            continue
        ratio = found[work, large] / found[work, small]
        lines.append(
            Wanted(
                f"{work}: {large} against {small}",
                f"<= {FLAT:g} x",
                f"{ratio:.2f} x",
                ratio <= FLAT,
            )
        )
    for work in ("memory, opened", "memory, all read"):
        each = found[work, large] / found["entries", large]
        lines.append(Wanted(f"{work}, per entry", "<= 8 bytes", f"{each:.1f} bytes", each <= 8))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 segments")
    parser.add_argument("--directory", help="where the log is made (default: a temporary one)")
    parser.add_argument("--json", default="bench-scale.json", help="where the figures go")
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds of appending")
    parser.add_argument("--levels", type=int, nargs="+", help="numbers of segments")
    parser.add_argument("--segments", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _step(arguments)
        return
    levels = tuple(arguments.levels or (LEVELS[:2] if arguments.quick else LEVELS))
    console = make_console()
    results: list[Result] = []
    begin = perf_counter()
    with tempfile.TemporaryDirectory(prefix="hqlwal-scale-", dir=arguments.directory) as path:
        machine = describe_machine(path, ("hqlwal_raft", "anyio", "crc32c"))
        show_machine(console, machine)
        for level in levels:
            with console.status(f"{level:,} segments …"):
                figures = _level(os.path.join(path, "log"), level, arguments.seconds)
            results += [
                Result("scale", work, f"{level:,} segments", unit, [value])
                for work, (unit, value) in figures.items()
            ]
    show_row(console, "As the log grows", results, as_pivot=True)
    wanted = _verdicts(results, levels)
    show_wanted(console, wanted)
    machine["seconds"] = round(perf_counter() - begin, 1)
    write_json(arguments.json, machine, results, wanted)
    console.print(f"{machine['seconds']} s; written: {os.path.abspath(arguments.json)}")


if __name__ == "__main__":
    main()
