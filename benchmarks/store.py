"""Measures the store against the floor and the alternatives: ``python benchmarks/store.py``.

Same work for everyone: entries made outside the time, rounds interleaved, medians shown. The floor
is what the disk itself takes: ``pwrite`` and ``fdatasync`` on an allocated file. A peer whose package is missing is
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

from _appends import SIZE, buffered, cell, durable, grid, large, policies, tasks
from _delays import delay
from _life import huge, open_and_cut
from _loop import fairness, stall
from _machine import describe_machine
from _measure import Plan, Result
from _natives import natives_beside
from _purging import purge
from _ratios import Found
from _reads import random_reads, read
from _report import (
    Panel,
    make_console,
    plot,
    show_beside,
    show_machine,
    show_row,
    show_wanted,
    write_json,
)
from _stores import many_stores
from _verdicts import verdicts

#: name → (title, function, is in the quick mode, shown as one table of medians)
ROWS: dict[str, tuple[str, Callable[[Plan], list[Result]], bool, bool]] = {
    "durable": ("Durable append, one writer:", durable, True, False),
    "buffered": ("Buffered append, one writer:", buffered, True, False),
    "tasks": ("Durable append of one entry by many tasks", tasks, True, True),
    "policies": ("Sync policies", policies, True, True),
    "large": ("Durable append of large entries, one writer:", large, True, False),
    "stores": ("Many stores in one process", many_stores, True, True),
    "read": ("Reading back:", read, True, False),
    "random": ("Random single reads of a long log:", random_reads, True, False),
    "open": ("A large log", open_and_cut, True, True),
    "huge": ("A huge segment with one entry", huge, True, True),
    "purge": ("Purging half of a log beside one durable writer", purge, True, True),
    "delay": ("How late the event loop is at first use, and beside a slow disk", delay, True, True),
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

_TITLE = (
    f"Entries per second, {SIZE} bytes each; grey: the disk itself, a bare hand-over to a thread"
)

PACKAGES = (
    "hqlwal_raft", "anyio", "uvloop", "trio", "crc32c",
    "lmdb", "plyvel", "rocksdict", "aiosqlite", "pysyncobj",
)  # fmt: skip


def quick(directory: str) -> Plan:
    return Plan(
        directory, is_quick=True, rounds=3, seconds=0.1, read_entries=50_000,
        big_entries=100_000, big_rounds=1, stall_seconds=3.0, random_entries=500_000,
        stores=20, delay_seconds=0.05, huge_segment_bytes=64 << 20,
    )  # fmt: skip


def full(directory: str) -> Plan:
    return Plan(
        directory, is_quick=False, rounds=9, seconds=0.25, read_entries=200_000,
        big_entries=1_000_000, big_rounds=3, stall_seconds=30.0, random_entries=10_000_000,
        stores=100, delay_seconds=0.2, huge_segment_bytes=1 << 30,
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
    parser.add_argument("--stores", type=int, help="how many are open in one process")
    parser.add_argument(
        "--delay-seconds", type=float, help="what each write and sync of the slow disk takes"
    )
    return parser.parse_args()


def _plan(arguments: argparse.Namespace, directory: str) -> Plan:
    plan = quick(directory) if arguments.quick else full(directory)
    changes: dict[str, object] = {}
    if arguments.rounds is not None:
        changes |= {"rounds": arguments.rounds, "big_rounds": arguments.rounds}
    if arguments.seconds is not None:
        changes["seconds"] = arguments.seconds
    if arguments.entries is not None:
        changes |= dict.fromkeys(
            ("read_entries", "big_entries", "random_entries"), arguments.entries
        )
    if arguments.stall_seconds is not None:
        changes["stall_seconds"] = arguments.stall_seconds
    if arguments.stores is not None:
        changes["stores"] = arguments.stores
    if arguments.delay_seconds is not None:
        changes["delay_seconds"] = arguments.delay_seconds
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
    wanted = verdicts(results, plan)
    beside = natives_beside(Found(results), plan.stores)
    wanted = [line for line in wanted if line.got != "-"] if arguments.only else wanted
    show_wanted(console, wanted)
    show_beside(console, beside)
    machine["seconds"] = round(perf_counter() - begin, 1)
    write_json(arguments.json, machine, results, wanted, beside)
    written = [arguments.json]
    if plot(arguments.svg, _TITLE, PANELS, results):
        written.append(arguments.svg)
    else:
        console.print("matplotlib is missing: no plot")
    console.print(f"{machine['seconds']} s; written: {', '.join(map(os.path.abspath, written))}")


if __name__ == "__main__":
    main()
