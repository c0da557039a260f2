"""Shows where the time of one append goes: ``python benchmarks/breakdown.py``.

First what limits a durable append: the floor, and a bare hand-over to a thread and back around it (a
future, an eventfd each way). Then what ours adds to that, from one event to the next on its way
through the threads; then what the event loop computes for a buffered append.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from _contestants import Floor, HandOver
from _machine import describe_machine
from _measure import RUNTIMES, is_installed, run
from _ratios import Ratio
from _report import make_console, show_machine
from hqlwal_raft import Entry, RaftLogStorage
from hqlwal_raft._environment import Bell, Environment
from hqlwal_raft._records import encode

_PAYLOAD = bytes(256)
#: of each round, not counted
_WARM_UP_CALLS = 20

_FLOOR = "the floor: pwrite and fdatasync on the calling thread"
_IDLE = "a bare hand-over to a thread and back, idle there"
_BARE = "a bare hand-over to a thread and back, the floor's work there"
_APPEND = "one durable append"
_OURS = "ours together: neither system calls nor ways"
_ADDED = "what ours adds to the bare hand-over"


#: what happens in one durable append, in its order, and what the time until then is spent on
_SPANS = {
    ("called", "rings the thread"): "ours, on the loop: encode, keep the books, make the plan",
    ("rings the thread", "thread woke"): "the way to the thread",
    ("called", "thread woke"): "ours, on the loop, and the way to the thread",
    ("thread woke", "pwrite"): "ours, in the thread, before the write",
    ("pwrite", "pwrite done"): "pwrite",
    ("pwrite done", "fdatasync"): "ours, in the thread, between write and sync",
    ("fdatasync", "fdatasync done"): "fdatasync",
    ("fdatasync done", "rings the loop"): "ours, in the thread, after the sync",
    ("rings the loop", "loop woke"): "the way to the loop",
    ("loop woke", "returned"): "ours, on the loop: settle; the loop's turns; resume the task",
    ("fdatasync done", "returned"): "ours, after the sync, and the way to the loop",
}


class _TracedBell(Bell):
    def __init__(self, note: Callable[[str, str], None]) -> None:
        super().__init__()
        self._note = note

    def ring(self) -> None:
        self._note("rings the thread", "rings the loop")
        super().ring()

    def hush(self) -> None:
        super().hush()
        self._note("loop woke", "thread woke")


class _TracedQueue:
    """What stands in for a bell where the loop can watch no descriptor."""

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._note = note

    def put(self, item: Any, /) -> None:
        self._note("rings the thread", "rings the thread")
        self._queue.put(item)

    def get(self, *arguments: Any, **named: Any) -> Any:
        item = self._queue.get(*arguments, **named)
        self._note("thread woke", "thread woke")
        return item


class _Traced(Environment):
    """The real system, noting what happens when."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []
        self._loop_thread = threading.get_ident()
        for name in ("pwrite", "pwritev", "fdatasync"):
            setattr(self, name, self._traced(name))

    def _traced(self, name: str) -> Callable[..., Any]:
        real = getattr(super(), name)
        shown = "pwrite" if name == "pwritev" else name

        def call(*arguments: Any) -> Any:
            events = self.events
            events.append((perf_counter(), shown))
            result = real(*arguments)
            events.append((perf_counter(), f"{shown} done"))
            return result

        return call

    def _note(self, on_loop: str, in_thread: str) -> None:
        is_loop = threading.get_ident() == self._loop_thread
        self.events.append((perf_counter(), on_loop if is_loop else in_thread))

    def bell(self) -> Bell:
        return _TracedBell(self._note)

    def queue(self) -> Any:
        return _TracedQueue(self._note)


async def _durable(path: str, calls: int) -> dict[str, list[float]]:
    """One task appends one entry after the other: the calls in which the same happened, which are
    those without a roll-over or a housekeeping thread at work.
    """
    traced = _Traced()
    traces: list[list[tuple[float, str]]] = []
    async with RaftLogStorage.open(path, environment=traced) as store:
        for index in range(calls):
            batch = [Entry(1, index, _PAYLOAD)]
            events = traced.events = [(perf_counter(), "called")]
            await store.append(batch)
            events.append((perf_counter(), "returned"))
            traces.append(events)
    del traces[:_WARM_UP_CALLS]
    ways = [tuple(name for _, name in sorted(events)) for events in traces]
    usual = Counter(ways).most_common(1)[0][0]
    chosen = [sorted(events) for events, way in zip(traces, ways, strict=True) if way == usual]
    parts: dict[str, list[float]] = {}
    for place, pair in enumerate(itertools.pairwise(usual)):
        part = _SPANS.get(pair, " → ".join(pair))
        spans = [events[place + 1][0] - events[place][0] for events in chosen]
        before = parts.get(part)
        parts[part] = [sum(pair) for pair in zip(before, spans, strict=True)] if before else spans
    parts[_APPEND] = [events[-1][0] - events[0][0] for events in chosen]
    return parts


async def _untraced(path: str, calls: int) -> list[float]:
    """The same as it is, with nothing around it."""
    times = []
    async with RaftLogStorage.open(path) as store:
        for index in range(calls):
            batch = [Entry(1, index, _PAYLOAD)]
            begin = perf_counter()
            await store.append(batch)
            times.append(perf_counter() - begin)
    return times


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


async def _handed_over(path: str, calls: int, *, is_idle: bool) -> list[float]:
    """A bare way to a long-lived thread and back, with the floor's work there or nothing."""
    times = []
    async with HandOver(path, durable=True) as hand_over:
        append = hand_over.appender(_PAYLOAD, 1, is_idle=is_idle)
        for _ in range(calls):
            begin = perf_counter()
            await append(None)
            times.append(perf_counter() - begin)
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

    def note(part: str, times: list[float], warm_up: int = _WARM_UP_CALLS) -> None:
        found.setdefault(part, []).append(median(times[warm_up:]))

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as base:
            path = partial(os.path.join, base)
            note(_FLOOR, _floor(path("floor"), calls))
            for runtime in ("asyncio", "uvloop"):
                if is_installed(runtime):
                    way = partial(_handed_over, path(f"bare-{runtime}"), calls)
                    note(f"{_IDLE} ({runtime})", run(runtime, partial(way, is_idle=True)))
                    note(f"{_BARE} ({runtime})", run(runtime, partial(way, is_idle=False)))
            for runtime in filter(is_installed, RUNTIMES):
                suffix = f" ({runtime})"
                parts = run(runtime, partial(_durable, path(f"traced-{runtime}"), calls))
                traced = parts.pop(_APPEND)
                for part, times in parts.items():
                    note(part + suffix, times, 0)
                ours = [found[part + suffix][-1] for part in parts if part.startswith("ours")]
                found.setdefault(f"{_OURS}{suffix}", []).append(sum(ours))
                note(f"the append above, traced{suffix}", traced, 0)
                times = run(runtime, partial(_untraced, path(runtime), calls))
                note(_APPEND + suffix, times)
                bare = found.get(f"{_BARE}{suffix}")
                if bare is not None:
                    added = found[_APPEND + suffix][-1] - bare[-1]
                    found.setdefault(f"{_ADDED}{suffix}", []).append(added)
            for batch in (1, 64):
                work = partial(_buffered, path(f"buffered-{batch}"), calls, batch)
                for part, times in run("asyncio", work).items():
                    note(part, times)
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
    for column in ("median", "least", "most", "x the floor"):
        table.add_column(column, justify="right")
    for part, times in found.items():
        figures = (median(times), min(times), max(times))
        cells = [f"{each * 1e6:.1f}" for each in figures]
        is_whole = part.startswith((_FLOOR, _BARE, _APPEND))
        cells.append(str(Ratio.between(times, found[_FLOOR])) if is_whole else "")
        table.add_row(part, *cells, style="bold" if is_whole else "")
    console.print(table)
    told: dict[str, Any] = {"machine": machine, "median_seconds_of_rounds": found}
    with open(arguments.json, "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
