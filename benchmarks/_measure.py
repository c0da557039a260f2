"""Clocks, stints, percentiles, and the entries made for them. Knows no store."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import statistics
import tempfile
import threading
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import anyio

__all__ = [
    "RUNTIMES",
    "Latency",
    "Limits",
    "Plan",
    "Result",
    "Stint",
    "Supply",
    "async_stint",
    "is_installed",
    "rotated",
    "run",
    "stint",
    "tasks_stint",
    "thread_stint",
]

T = TypeVar("T")

#: the event loops that ours is measured on; uvloop and trio may be missing
RUNTIMES = ("asyncio", "uvloop", "trio")

#: a stint ends early after that many bytes, so that dirty pages do not throttle the next
MAX_STINT_BYTES = 192 << 20
#: calls before the clock starts
WARM_UP_CALLS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    #: where the stores are made; its file system is what is measured
    directory: str
    is_quick: bool
    rounds: int
    #: of one stint
    seconds: float
    #: in the log that is read back
    read_entries: int
    #: in the log that is opened, purged and truncated
    big_entries: int
    #: rounds of the same
    big_rounds: int
    #: of the watch on the event loop
    stall_seconds: float
    #: in the log that is read at random
    random_entries: int
    #: open in one process
    stores: int
    #: what each write and sync of the delayed disk takes
    delay_seconds: float
    #: of the segment that holds one entry
    huge_segment_bytes: int

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """A fresh directory, removed afterwards (and its dirty pages with it)."""
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.directory) as path:
            yield os.path.join(path, "store")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one stint lasts: whatever comes first."""

    seconds: float
    #: entries and bytes one call brings
    entries_per_call: int
    bytes_per_call: int

    @property
    def calls(self) -> int:
        return max(1, MAX_STINT_BYTES // self.bytes_per_call)


@dataclass(slots=True)
class Stint:
    """What one contestant did in one round."""

    entries: int
    seconds: float
    #: seconds of each call
    calls: array[float] = field(default_factory=lambda: array("d"))

    @property
    def rate(self) -> float:
        return self.entries / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one call: percentiles, the longest, and how many there were."""

    p50: float
    p99: float
    p999: float
    longest: float
    calls: int

    @classmethod
    def of(cls, calls: Iterable[float]) -> Latency | None:
        ordered = sorted(calls)
        if not ordered:
            return None

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(at(0.5), at(0.99), at(0.999), ordered[-1], len(ordered))


@dataclass(slots=True)
class Result:
    """One contestant in one cell of one row, all its rounds."""

    row: str
    #: what distinguishes cells of a row: size, batch, tasks, ...
    cell: str
    contestant: str
    unit: str
    rounds: list[float] = field(default_factory=list)
    #: the median seconds of a call, round by round
    p50s: list[float] = field(default_factory=list)
    latency: Latency | None = None
    #: why there are no figures: a missing package, an unsupported operation
    missing: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds) if self.rounds else float("nan")

    @property
    def is_peer(self) -> bool:
        """Another's store that does the whole work: neither ours, nor the floor, nor bare."""
        return "bare" not in self.contestant and not self.contestant.startswith(("floor", "hqlwal"))

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "row": self.row,
            "cell": self.cell,
            "contestant": self.contestant,
            "unit": self.unit,
        }
        if self.missing:
            return {**shown, "missing": self.missing}
        shown |= {"median": self.median if self.rounds else None, "rounds": self.rounds}
        if self.p50s:
            shown["p50s"] = self.p50s
        if self.note:
            shown["note"] = self.note
        if self.latency is not None:
            shown["latency_seconds"] = {
                "p50": self.latency.p50,
                "p99": self.latency.p99,
                "p99.9": self.latency.p999,
                "max": self.latency.longest,
                "calls": self.latency.calls,
            }
        return shown


# --- entries -----------------------------------------------------------------------------


class Supply:
    """What the calls of a stint bring, made outside its time.

    Most of it is ahead of the stint; what is needed beyond that is made in small lots, and
    ``seconds`` says how long that took, for the clock to leave out. The collector does not look at
    what was made ahead: where an application makes its entries one by one it has no such heap.
    """

    #: entries a second for which enough is there from the beginning, and the most that is
    _AHEAD_PER_SECOND = 400_000
    _AHEAD_ENTRIES = 200_000
    _LOT_ENTRIES = 512

    def __init__(self, make: Callable[[int], Any], entries_per_call: int, first: int = 1) -> None:
        self._make = make
        self._step = entries_per_call
        self._next = first
        #: the next one stands last
        self._ready: list[Any] = []
        self.seconds = 0.0

    def take(self) -> Any:
        if not self._ready:
            begin = perf_counter()
            self._make_ready(self._LOT_ENTRIES)
            self.seconds += perf_counter() - begin
        return self._ready.pop()

    def _make_ready(self, entries: int) -> None:
        calls = max(1, entries // self._step)
        step = self._step
        stop = self._next + calls * step
        made = [self._make(first) for first in range(self._next, stop, step)]
        self._next = stop
        self._ready = [*reversed(made), *self._ready]

    @contextlib.contextmanager
    def ahead(self, limits: Limits) -> Iterator[None]:
        """While the stint lasts."""
        wanted = int(limits.seconds * self._AHEAD_PER_SECOND)
        self._make_ready(min(wanted, limits.calls * self._step, self._AHEAD_ENTRIES))
        gc.freeze()
        gc.collect()
        try:
            yield
        finally:
            self._ready.clear()
            gc.unfreeze()


# --- stints ------------------------------------------------------------------------------


def stint(append: Callable[[Any], object], supply: Supply, limits: Limits) -> Stint:
    """Calls ``append`` again and again, one after the other: the time of the calls alone."""
    take = supply.take
    for _ in range(WARM_UP_CALLS):
        append(take())
    calls = array("d")
    note = calls.append
    with supply.ahead(limits):
        end = perf_counter() + limits.seconds
        for _ in range(limits.calls):
            batch = take()
            before = perf_counter()
            append(batch)
            now = perf_counter()
            note(now - before)
            if now >= end:
                break
    return Stint(len(calls) * limits.entries_per_call, sum(calls), calls)


async def async_stint(
    append: Callable[[Any], Awaitable[object]], supply: Supply, limits: Limits
) -> Stint:
    """The same for a coroutine function."""
    take = supply.take
    for _ in range(WARM_UP_CALLS):
        await append(take())
    calls = array("d")
    note = calls.append
    with supply.ahead(limits):
        end = perf_counter() + limits.seconds
        for _ in range(limits.calls):
            batch = take()
            before = perf_counter()
            await append(batch)
            now = perf_counter()
            note(now - before)
            if now >= end:
                break
    return Stint(len(calls) * limits.entries_per_call, sum(calls), calls)


async def tasks_stint(
    append: Callable[[Any], Awaitable[object]], supply: Supply, limits: Limits, tasks: int
) -> Stint:
    """``tasks`` tasks that each append and wait; they share one sequence of entries."""
    if tasks == 1:
        return await async_stint(append, supply, limits)
    left = limits.calls
    calls = array("d")
    note = calls.append
    take = supply.take

    async def work() -> None:
        nonlocal left
        before = perf_counter()
        while left > 0:
            left -= 1
            await append(take())
            now = perf_counter()
            note(now - before)
            before = now
            if now >= end:
                break

    with supply.ahead(limits):
        left_out = supply.seconds
        begin = perf_counter()
        end = begin + limits.seconds
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(work)
        seconds = perf_counter() - begin - (supply.seconds - left_out)
    return Stint(len(calls) * limits.entries_per_call, seconds, calls)


def thread_stint(
    append: Callable[[Any], object], supply: Supply, limits: Limits, threads: int
) -> Stint:
    """The same with threads, for stores whose own group commit serves threads."""
    lock = threading.Lock()
    calls = array("d")
    start = threading.Barrier(threads + 1)
    end = 0.0
    failures: list[BaseException] = []

    def work() -> None:
        mine: list[float] = []
        start.wait()
        before = perf_counter()
        try:
            while True:
                with lock:
                    batch = supply.take()
                append(batch)
                now = perf_counter()
                mine.append(now - before)
                before = now
                if now >= end:
                    break
        except BaseException as error:
            failures.append(error)
        with lock:
            calls.extend(mine)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    with supply.ahead(limits):
        begin = perf_counter()
        end = begin + limits.seconds
        start.wait()
        for worker in workers:
            worker.join()
        seconds = perf_counter() - begin
    if failures:
        raise failures[0]
    return Stint(len(calls) * limits.entries_per_call, seconds, calls)


# --- surroundings ------------------------------------------------------------------------


def is_installed(runtime: str) -> bool:
    return importlib.util.find_spec(runtime) is not None


def run(runtime: str, work: Callable[[], Awaitable[T]]) -> T:
    """Runs a coroutine function on one of RUNTIMES."""
    if runtime == "trio":
        return anyio.run(work, backend="trio")
    return anyio.run(work, backend="asyncio", backend_options={"use_uvloop": runtime == "uvloop"})


def rotated(items: list[T], by: int) -> list[T]:
    """The items in another order each round, so that none always follows the same one."""
    by %= max(1, len(items))
    return items[by:] + items[:by]
