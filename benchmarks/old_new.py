"""Measures this version of the package against another: ``python benchmarks/old_new.py --against
DIR``, DIR being a checkout of the other one.

Rounds of the two are interleaved, each in a fresh process and a fresh directory, and the ratio is
taken round by round: the median of the ratios, with the quartiles. Rows that are slower by more
than 5 % are marked.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import _old_new_rows
from _machine import ask_child, describe_machine
from _old_new_rows import NEEDS_LOG, ROWS
from _ratios import Ratio
from _report import duration, make_console, show_machine

__all__ = ["SLOWER", "Compared"]

#: a speed below that share of the other's is marked
SLOWER = 0.95


@dataclass(slots=True)
class Compared:
    """One row: the seconds of each round, of the other version and of this one."""

    row: str
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)

    @property
    def speed(self) -> Ratio:
        """How many times as quick this version is."""
        ratio = Ratio.between(self.old, self.new)
        assert ratio is not None
        return ratio

    @property
    def verdict(self) -> str:
        """Surely so only where the quartiles say it, too."""
        speed = self.speed
        if speed.median < SLOWER:
            return "slower" if speed.upper < 1 else "slower?"
        return "faster" if speed.lower > 1 else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "old_seconds": self.old,
            "new_seconds": self.new,
            "speed": asdict(self.speed),
            "verdict": self.verdict,
        }


def _ask(folder: str, row: str, directory: str, seconds: float, entries: int) -> float:
    """One round in a fresh process that finds the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": folder}
    with tempfile.TemporaryDirectory(prefix="round-", dir=directory) as base:
        told = ask_child(
            _old_new_rows.__file__, row, os.path.join(base, "store"), str(seconds), str(entries),
            environment=environment,
        )  # fmt: skip
    if os.path.realpath(told["folder"]) != os.path.realpath(folder):
        raise RuntimeError(f"the package was found in {told['folder']} instead of {folder}")
    return float(told["seconds"])


def compare(
    rows: list[str], folders: tuple[str, str], directory: str, arguments: argparse.Namespace,
    console: Console,
) -> list[Compared]:  # fmt: skip
    """Every row, so many rounds; who is first changes from round to round."""
    found = []
    for row in rows:
        compared = Compared(row)
        entries = arguments.entries // 100 * 100 if row in NEEDS_LOG else 0
        with console.status(f"{row} …"):
            for turn in range(arguments.rounds):
                sides = [(folders[0], compared.old), (folders[1], compared.new)]
                for folder, rounds in sides if turn % 2 == 0 else sides[::-1]:
                    rounds.append(_ask(folder, row, directory, arguments.seconds, entries))
        found.append(compared)
    return found


def _show(console: Console, found: list[Compared]) -> None:
    table = Table(title="Speed of this version, the other's being 1", title_justify="left")
    table.add_column("work")
    for name in ("other", "this", "ratio", "quartiles"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for each in found:
        speed, verdict = each.speed, each.verdict
        style = "red" if verdict.startswith("slower") else "green" if verdict else ""
        table.add_row(
            each.row, duration(median(each.old)), duration(median(each.new)),
            f"{speed.median:.2f} x", f"{speed.lower:.2f} … {speed.upper:.2f}", verdict,
            style=style,
        )  # fmt: skip
    console.print(table)
    console.print(
        "Times are of one call, or of one entry where many are in flight, read or buffered.",
        style="dim",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures this version against another.")
    parser.add_argument("--against", required=True, metavar="DIR", help="a checkout of the other")
    parser.add_argument(
        "--only", metavar="ROW", action="append", help="only this row (repeatable, * allowed)"
    )
    parser.add_argument("--directory", help="where the stores are made (default: a temporary one)")
    parser.add_argument("--json", default="bench-old-new.json", help="where the figures go")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each version")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds of one round")
    parser.add_argument("--entries", type=int, default=200_000, help="length of the logs read")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    patterns = arguments.only or ["*"]
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row, each) for each in patterns)]
    if not rows:
        raise SystemExit(f"no row is named {patterns}: there are {', '.join(ROWS)}")
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = (os.path.abspath(arguments.against), here)
    if not os.path.isdir(os.path.join(folders[0], "hqlwal_raft")):
        raise SystemExit(f"{folders[0]} is no checkout: it has no folder hqlwal_raft")
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="hqlwal-bench-", dir=arguments.directory) as path:
        machine = describe_machine(path, ("anyio", "crc32c"))
        show_machine(console, machine)
        found = compare(rows, folders, path, arguments, console)
    _show(console, found)
    told = {"machine": machine, "rows": [each.as_json() for each in found]}
    with open(arguments.json, "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
