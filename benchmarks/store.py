"""Measures the store against the floor and the alternatives: ``python benchmarks/store.py``.

Same work for everyone, rounds interleaved, medians shown. The floor is what the disk itself
takes: ``pwrite`` and ``fdatasync`` on an allocated file. A peer whose package is missing is
reported as missing. Only ratios within one run count.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import tempfile
from collections.abc import Callable
from functools import partial
from time import perf_counter

from _appends import SIZE, buffered, cell, durable, grid, policies, tasks
from _life import open_and_cut
from _loop import fairness, stall
from _measure import Plan, Result, describe_machine
from _reads import read
from _report import (
    Panel,
    Wanted,
    make_console,
    plot,
    show_machine,
    show_row,
    show_wanted,
    write_json,
)

#: name → (title, function, is in the quick mode, shown as one table of medians)
ROWS: dict[str, tuple[str, Callable[[Plan], list[Result]], bool, bool]] = {
    "durable": ("Durable append, one writer:", durable, True, False),
    "buffered": ("Buffered append, one writer:", buffered, True, False),
    "tasks": ("Durable append of one entry by many tasks", tasks, True, True),
    "policies": ("Sync policies", policies, True, True),
    "read": ("Reading back:", read, True, False),
    "open": ("A large log", open_and_cut, True, True),
    "stall": ("How late the event loop is:", stall, True, False),
    "fairness": ("Fairness", fairness, True, True),
    "durable-grid": ("Durable append", partial(grid, is_durable=True), False, True),
    "buffered-grid": ("Buffered append", partial(grid, is_durable=False), False, True),
}

_BARE = ("lmdb, bare pairs",)
PANELS = [
    Panel("durable, one entry at a time", "durable", cell(SIZE, 1), without=_BARE),
    Panel("durable, 64 entries at a time", "durable", cell(SIZE, 64), without=_BARE),
    Panel("durable, 64 tasks, one entry each", "tasks", "64 tasks"),
    Panel("buffered, one entry at a time", "buffered", cell(SIZE, 1), without=_BARE),
    Panel("buffered, 64 entries at a time", "buffered", cell(SIZE, 64), without=_BARE),
    Panel(
        "reading 64-entry ranges from files", "read", "ranges",
        without=(*_BARE, "FileJournal", "hqlwal, recent"),
    ),
]  # fmt: skip

_TITLE = f"Entries per second, {SIZE} bytes each; grey: what the disk itself takes"

PACKAGES = (
    "hqlwal_raft", "anyio", "uvloop", "trio", "crc32c",
    "lmdb", "plyvel", "rocksdict", "aiosqlite", "pysyncobj",
)  # fmt: skip


def quick(directory: str) -> Plan:
    return Plan(
        directory, is_quick=True, rounds=3, seconds=0.1, read_entries=50_000,
        big_entries=100_000, big_rounds=1, stall_seconds=3.0,
    )  # fmt: skip


def full(directory: str) -> Plan:
    return Plan(
        directory, is_quick=False, rounds=5, seconds=0.25, read_entries=200_000,
        big_entries=1_000_000, big_rounds=2, stall_seconds=30.0,
    )  # fmt: skip


# --- wanted values (docs/design/performance.md) ------------------------------------------


class _Verdicts:
    """Compares what was measured with what is wanted."""

    def __init__(self, results: list[Result], plan: Plan) -> None:
        self._found = {(r.row, r.cell, r.contestant): r for r in results if r.rounds}
        self._plan = plan
        self.lines: list[Wanted] = []

    def _median(self, row: str, cell_name: str, contestant: str) -> float | None:
        result = self._found.get((row, cell_name, contestant))
        return result.median if result else None

    def _p50(self, row: str, cell_name: str, contestant: str) -> float | None:
        result = self._found.get((row, cell_name, contestant))
        return result.latency.p50 if result and result.latency else None

    def _best(self, row: str, cell_name: str, *, excluded: str = "") -> float | None:
        """The best peer that does the whole work: neither the floor nor ours, nor bare."""
        return max(
            (
                result.median
                for (found_row, found_cell, name), result in self._found.items()
                if (found_row, found_cell) == (row, cell_name)
                and name != "floor"
                and not name.startswith("hqlwal")
                and name != excluded
                and "bare" not in name
            ),
            default=None,
        )

    def _line(self, work: str, want: str, got: float | None, shown: str, *, met: bool) -> None:
        if got is None:
            self.lines.append(Wanted(work, want, "-", None))
        else:
            self.lines.append(Wanted(work, want, shown.format(got), met))

    def ratio(
        self, work: str, want: float, ours: float | None, other: float | None, of: str
    ) -> None:
        got = ours / other if ours is not None and other else None
        self._line(
            work, f">= {want:g} x {of}", got, "{:.2f} x", met=got is not None and got >= want
        )

    def at_most(
        self, work: str, want: float, got: float | None, unit: str, scale: float = 1.0
    ) -> None:
        value = got * scale if got is not None else None
        self._line(
            work, f"<= {want:.4g} {unit}", value, f"{{:.2f}} {unit}",
            met=value is not None and value <= want,
        )  # fmt: skip

    def _beside_bare(self, work: str, row: str, cell_name: str) -> None:
        """For comparison, not as a verdict: a peer that handles no term and no entry."""
        ours = self._median(row, cell_name, "hqlwal")
        bare = self._median(row, cell_name, "lmdb, bare pairs")
        if ours is not None and bare:
            text = f"{ours / bare:.2f} x lmdb's bare pairs"
            self.lines.append(Wanted(work, "for comparison", text, None))

    def all(self) -> list[Wanted]:
        one, many = cell(SIZE, 1), cell(SIZE, 64)
        floor_p50, our_p50 = (self._p50("durable", one, name) for name in ("floor", "hqlwal"))
        times = our_p50 / floor_p50 if our_p50 and floor_p50 else None
        self.at_most("durable append, one task, one entry: p50", 1.5, times, "x the floor's")
        self.ratio(
            "durable append, one task, 64 entries", 0.9,
            self._median("durable", many, "hqlwal"), self._median("durable", many, "floor"),
            "the floor",
        )  # fmt: skip
        self.ratio(
            "durable append, 64 tasks, one entry each", 10,
            self._median("tasks", "64 tasks", "hqlwal asyncio"), self._best("durable", one),
            "the best peer's single writer",
        )  # fmt: skip
        for cell_name, want, work in ((one, 2, "one entry"), (many, 1.3, "64 entries")):
            self.ratio(
                f"buffered append, {work} per await", want,
                self._median("buffered", cell_name, "hqlwal"),
                self._best("buffered", cell_name), "the best peer",
            )  # fmt: skip
        self._beside_bare("buffered append, 64 entries per await", "buffered", many)
        cold = self._median("read", "ranges", "hqlwal")
        self.ratio("reading 64-entry ranges, cold", 1, cold, 1e6, "1 M entries/s")
        on_disk = self._best("read", "ranges", excluded="FileJournal")
        self.ratio("reading 64-entry ranges, cold", 1, cold, on_disk, "the best peer on disk")
        self._beside_bare("reading 64-entry ranges, cold", "read", "ranges")
        recent = self._median("read", "ranges", "hqlwal, recent")
        self.ratio("reading 64-entry ranges, recent", 1, recent, on_disk, "the best peer on disk")
        self.ratio(
            "reading one random entry", 1, self._median("read", "random", "hqlwal"), 1e5,
            "100 k entries/s",
        )  # fmt: skip
        self._large_log(floor_p50)
        self.at_most(
            "longest stall of the event loop", 10,
            self._median("stall", "longest", "hqlwal asyncio"), "ms", 1e3,
        )  # fmt: skip
        return self.lines

    def _large_log(self, floor_p50: float | None) -> None:
        held = f"{self._plan.big_entries:,} entries"

        def ours(cell_name: str) -> float | None:
            return self._median("open", cell_name, "hqlwal")

        self.at_most(f"opening {held}, closed", 50, ours("open after a close"), "ms", 1e3)
        self.at_most(f"opening {held}, killed", 1, ours("open after a kill"), "s")
        segments = ours("segments purged") or 0
        self.at_most(
            f"purging half of it, {segments:.0f} segments", 10 + segments, ours("purge half"),
            "ms", 1e3,
        )  # fmt: skip
        truncate = ours("truncate 10")
        syncs = truncate / floor_p50 if truncate and floor_p50 else None
        self.at_most("truncating 10 entries", 10, syncs, "syncs' time")
        for after in ("writing", "opening"):
            self.at_most(
                f"memory with {held}, after {after} it, above an empty store", 40,
                ours(f"resident memory after {after} it"), "MB", 1e-6,
            )  # fmt: skip


# --- the command -------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the main rows, under a minute")
    parser.add_argument(
        "--only", metavar="NAME", action="append",
        help=f"only this row (repeatable, * allowed): {', '.join(ROWS)}",
    )  # fmt: skip
    parser.add_argument("--directory", help="where the stores are made (default: a temporary one)")
    parser.add_argument("--json", default="bench-store.json", help="where the figures go")
    parser.add_argument("--svg", default="bench-store.svg", help="where the plot goes")
    parser.add_argument("--rounds", type=int, help="rounds of each row")
    parser.add_argument("--seconds", type=float, help="seconds of one contestant's turn")
    parser.add_argument("--entries", type=int, help="length of the logs read and opened")
    parser.add_argument("--stall-seconds", type=float, help="how long the event loop is watched")
    return parser.parse_args()


def _plan(arguments: argparse.Namespace, directory: str) -> Plan:
    plan = quick(directory) if arguments.quick else full(directory)
    changes: dict[str, object] = {}
    if arguments.rounds is not None:
        changes |= {"rounds": arguments.rounds, "big_rounds": arguments.rounds}
    if arguments.seconds is not None:
        changes["seconds"] = arguments.seconds
    if arguments.entries is not None:
        changes |= {"read_entries": arguments.entries, "big_entries": arguments.entries}
    if arguments.stall_seconds is not None:
        changes["stall_seconds"] = arguments.stall_seconds
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def main() -> None:
    arguments = _arguments()
    patterns = arguments.only or ["*"]
    chosen = [
        name
        for name in ROWS
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        and (ROWS[name][2] or arguments.only or not arguments.quick)
    ]
    if not chosen:
        raise SystemExit(f"no row is named {patterns}: there are {', '.join(ROWS)}")
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="hqlwal-bench-", dir=arguments.directory) as path:
        plan = _plan(arguments, path)
        machine = describe_machine(path, PACKAGES)
        show_machine(console, machine)
        results: list[Result] = []
        begin = perf_counter()
        for name in chosen:
            title, measure, _, as_pivot = ROWS[name]
            with console.status(f"{name} …"):
                found = measure(plan)
            show_row(console, title, found, as_pivot=as_pivot)
            results += found
        wanted = _Verdicts(results, plan).all()
    wanted = [line for line in wanted if line.got != "-"] if arguments.only else wanted
    show_wanted(console, wanted)
    machine["seconds"] = round(perf_counter() - begin, 1)
    write_json(arguments.json, machine, results, wanted)
    written = [arguments.json]
    if plot(arguments.svg, _TITLE, PANELS, results):
        written.append(arguments.svg)
    else:
        console.print("matplotlib is missing: no plot")
    console.print(f"{machine['seconds']} s; written: {', '.join(map(os.path.abspath, written))}")


if __name__ == "__main__":
    main()
