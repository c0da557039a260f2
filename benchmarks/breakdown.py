"""Shows where the time of one append goes: ``python benchmarks/breakdown.py``.

First the way of one durable append through the threads, beside a bare ``fdatasync`` and a
bare way to a thread and back; then what the event loop computes for a buffered append.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from _contestants import Floor
from _machine import describe_machine
from _measure import RUNTIMES, is_installed, run
from _report import make_console, show_machine
from hqlwal_raft import Entry, RaftLogStorage
from hqlwal_raft._environment import Environment
from hqlwal_raft._records import encode

_PAYLOAD = bytes(256)
#: of each round, not counted
_WARM_UP_CALLS = 20


class _Timed(Environment):
    """The real system, noting when the last sync of a file began and ended."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def fdatasync(self, descriptor: int, /) -> None:
        began = perf_counter()
        super().fdatasync(descriptor)
        self.began, self.ended = began, perf_counter()


async def _durable(path: str, calls: int) -> dict[str, list[float]]:
    """One task appends one entry after the other."""
    timed = _Timed()
    parts: dict[str, list[float]] = {
        "append: encode, store, wake the disk thread": [],
        "fdatasync in the disk thread": [],
        "wake the loop, resume the task": [],
        "one durable append": [],
    }
    async with RaftLogStorage.open(path, environment=timed) as store:
        for index in range(calls):
            called = perf_counter()
            await store.append([Entry(1, index, _PAYLOAD)])
            returned = perf_counter()
            times = (called, timed.began, timed.ended, returned)
            spans = [later - sooner for sooner, later in itertools.pairwise(times)]
            for part, seconds in zip(parts, [*spans, returned - called], strict=True):
                parts[part].append(seconds)
    return parts


def _floor(path: str, calls: int) -> list[float]:
    floor = Floor(path, durable=True)
    append = floor.appender(_PAYLOAD, 1)
    times = [_timed(partial(append, 1)) for _ in range(calls)]
    floor.close()
    return times


def _timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


async def _handed_over(path: str, calls: int, *, is_synced: bool) -> list[float]:
    """A bare way to a long-lived thread and back, with the floor's work there or nothing."""
    loop = asyncio.get_running_loop()
    floor = Floor(path, durable=True)
    append = floor.appender(_PAYLOAD, 1) if is_synced else int
    jobs: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def work() -> None:
        while (waiting := jobs.get()) is not None:
            append(1)
            loop.call_soon_threadsafe(waiting.set_result, None)

    thread = threading.Thread(target=work)
    thread.start()
    times = []
    for _ in range(calls):
        begin = perf_counter()
        future: asyncio.Future[None] = loop.create_future()
        jobs.put(future)
        await future
        times.append(perf_counter() - begin)
    jobs.put(None)
    thread.join()
    floor.close()
    return times


async def _buffered(path: str, calls: int, batch: int) -> dict[str, list[float]]:
    """What an append costs that waits for nothing; shares of it are timed by themselves."""
    label = "one entry" if batch == 1 else f"{batch} entries"
    parts: dict[str, list[float]] = {
        f"{label}: make the entries": [],
        f"{label}: encode, checksums included": [],
        f"{label}: append": [],
    }
    made, encoded, appended = parts.values()
    async with RaftLogStorage.open(path, sync="interval_1000") as store:
        for first in range(0, calls * batch, batch):
            begin = perf_counter()
            entries = [Entry(1, index, _PAYLOAD) for index in range(first, first + batch)]
            made.append(perf_counter() - begin)
            encoded.append(_timed(partial(encode, entries, first, 7, 64, 1 << 20, is_settled=True)))
            begin = perf_counter()
            await store.append(entries)
            appended.append(perf_counter() - begin)
    return parts


def _measure(directory: str, rounds: int, calls: int) -> dict[str, list[float]]:
    """Interleaved rounds: part → the median seconds of each round."""
    found: dict[str, list[float]] = {}

    def note(part: str, times: list[float]) -> None:
        found.setdefault(part, []).append(median(times[_WARM_UP_CALLS:]))

    def notes(parts: dict[str, list[float]], suffix: str = "") -> None:
        for part, times in parts.items():
            note(part + suffix, times)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as base:
            path = partial(os.path.join, base)
            note("the floor: pwrite and fdatasync", _floor(path("a"), calls))
            way = "a bare way to a thread and back"
            note(way, run("asyncio", partial(_handed_over, path("b"), calls, is_synced=False)))
            way += ", the floor's work there"
            note(way, run("asyncio", partial(_handed_over, path("c"), calls, is_synced=True)))
            for runtime in filter(is_installed, RUNTIMES):
                parts = run(runtime, partial(_durable, path(runtime), calls))
                notes(parts, f" ({runtime})")
            notes(run("asyncio", partial(_buffered, path("d"), calls, 1)))
            notes(run("asyncio", partial(_buffered, path("e"), calls, 64)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", help="where the stores are made (default: a temporary one)")
    parser.add_argument("--json", default="bench-breakdown.json", help="where the figures go")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=500, help="calls of each part in a round")
    arguments = parser.parse_args()
    calls = arguments.calls + _WARM_UP_CALLS
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="hqlwal-", dir=arguments.directory) as directory:
        machine = describe_machine(directory, ("hqlwal_raft", "anyio", "crc32c"))
        show_machine(console, machine)
        with console.status("measuring …"):
            found = _measure(directory, arguments.rounds, calls)
    table = Table("part", title="Medians of rounds, microseconds", title_justify="left")
    for column in ("median", "least", "most"):
        table.add_column(column, justify="right")
    for part, times in found.items():
        figures = (median(times), min(times), max(times))
        is_sum = part.startswith("one durable append")
        table.add_row(
            part, *(f"{each * 1e6:.1f}" for each in figures), style="bold" if is_sum else ""
        )
    console.print(table)
    told: dict[str, Any] = {"machine": machine, "median_seconds_of_rounds": found}
    with open(arguments.json, "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
