"""Clocks, stints, percentiles, memory and the machine's description. Knows no store."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
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
    "async_stint",
    "describe_machine",
    "is_installed",
    "resident_bytes",
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
    latency: Latency | None = None
    #: why there are no figures: a missing package, an unsupported operation
    missing: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds) if self.rounds else float("nan")

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


# --- stints ------------------------------------------------------------------------------


def stint(append: Callable[[int], object], limits: Limits, first: int = 1) -> Stint:
    """Calls ``append(first index)`` again and again, one after the other."""
    step = limits.entries_per_call
    index = first
    for _ in range(WARM_UP_CALLS):
        append(index)
        index += step
    calls = array("d")
    note = calls.append
    gc.collect()
    begin = before = perf_counter()
    end = begin + limits.seconds
    for _ in range(limits.calls):
        append(index)
        index += step
        now = perf_counter()
        note(now - before)
        before = now
        if now >= end:
            break
    return Stint(len(calls) * step, before - begin, calls)


async def async_stint(
    append: Callable[[int], Awaitable[object]], limits: Limits, first: int = 1
) -> Stint:
    """The same for a coroutine function."""
    step = limits.entries_per_call
    index = first
    for _ in range(WARM_UP_CALLS):
        await append(index)
        index += step
    calls = array("d")
    note = calls.append
    gc.collect()
    begin = before = perf_counter()
    end = begin + limits.seconds
    for _ in range(limits.calls):
        await append(index)
        index += step
        now = perf_counter()
        note(now - before)
        before = now
        if now >= end:
            break
    return Stint(len(calls) * step, before - begin, calls)


async def tasks_stint(
    append: Callable[[int], Awaitable[object]], limits: Limits, tasks: int, first: int = 1
) -> Stint:
    """``tasks`` tasks that each append and wait; they share one sequence of indexes."""
    if tasks == 1:
        return await async_stint(append, limits, first)
    step = limits.entries_per_call
    index = first
    left = limits.calls
    calls = array("d")
    note = calls.append
    gc.collect()
    begin = perf_counter()
    end = begin + limits.seconds

    async def work() -> None:
        nonlocal index, left
        before = perf_counter()
        while before < end and left > 0:
            left -= 1
            mine = index
            index += step
            await append(mine)
            now = perf_counter()
            note(now - before)
            before = now

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work)
    return Stint(len(calls) * step, perf_counter() - begin, calls)


def thread_stint(append: Callable[[int], object], limits: Limits, threads: int) -> Stint:
    """The same with threads, for stores whose own group commit serves threads."""
    step = limits.entries_per_call
    lock = threading.Lock()
    index = 1
    calls = array("d")
    start = threading.Barrier(threads + 1)
    end = 0.0
    failures: list[BaseException] = []

    def work() -> None:
        nonlocal index
        mine: list[float] = []
        start.wait()
        before = perf_counter()
        try:
            while before < end:
                with lock:
                    taken = index
                    index += step
                append(taken)
                now = perf_counter()
                mine.append(now - before)
                before = now
        except BaseException as error:
            failures.append(error)
        with lock:
            calls.extend(mine)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    gc.collect()
    begin = perf_counter()
    end = begin + limits.seconds
    start.wait()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return Stint(len(calls) * step, perf_counter() - begin, calls)


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


def resident_bytes() -> dict[str, int]:
    """Resident memory of this process: private (``anon``) and mapped from files (``file``)."""
    found = {"anon": 0, "file": 0}
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                found["anon"] = int(line.split()[1]) * 1024
            elif line.startswith("RssFile:"):
                found["file"] = int(line.split()[1]) * 1024
    return found


def _file_system(path: str) -> str:
    best, kind = "", "unknown"
    path = os.path.realpath(path)
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, where, what, *_ = line.split()
            inside = where in ("/", path) or path.startswith(where + "/")
            if inside and len(where) >= len(best):
                best, kind = where, what
    return kind


def describe_machine(directory: str, packages: Iterable[str]) -> dict[str, Any]:
    """What the figures were taken on, as data."""
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "kernel": platform.release().split("-")[0],
        "file_system": _file_system(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions,
        "command": " ".join(
            ["python", f"benchmarks/{os.path.basename(sys.argv[0])}", *sys.argv[1:]]
        ),
    }
