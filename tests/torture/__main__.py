"""``python -m tests.torture --seconds N --seed S``: power cuts and kills for as long as one likes.

Every seed is one history. A seed that fails is printed with the command that replays it alone,
and the directory of a failing kill is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .concurrent import ConcurrentHistory
from .histories import History
from .kills import Killer
from .ledger import Violation
from .mutations import MUTATIONS

KINDS = ("stepwise", "failing", "concurrent", "kill", "mutations")
#: how a share of the time is given to each kind of history, in turns
TURNS = ("stepwise", "failing", "concurrent", "stepwise", "concurrent")

console = Console()


def main() -> int:
    options = _parse()
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000 * 1000
    console.print(f"first seed [bold]{seed}[/]")
    tried = Counter[str]()
    started = time.monotonic()
    failures = 0
    if options.kind in (None, "mutations"):
        failures += _mutate()
    if options.kind in (None, "kill"):
        failures += _kill(seed, options.kills, tried)
    if options.kind not in ("kill", "mutations"):
        failures += _cut(seed, options, started, tried)
    _report(tried, failures, time.monotonic() - started)
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="for the power cuts (300)")
    parser.add_argument("--seed", type=int, help="the first seed (from the clock)")
    parser.add_argument("--kind", choices=KINDS, help="only this (all)")
    parser.add_argument("--kills", type=int, default=200, help="how often to kill (200)")
    parser.add_argument("--once", action="store_true", help="this one seed, no other")
    parser.add_argument("--mutate", metavar="WORD", help="switch off the rule that has this word")
    return parser.parse_args()


def _history(kind: str, seed: int, mutation: str | None) -> History | ConcurrentHistory:
    wrap = next((m.wrap for m in MUTATIONS if mutation and mutation in m.name), None)
    match kind:
        case "concurrent":
            return ConcurrentHistory(seed, wrap=wrap)
        case "failing":
            return History(seed, failing_share=0.5, wrap=wrap)
        case _:
            return History(seed, wrap=wrap)


def _cut(seed: int, options: argparse.Namespace, started: float, tried: Counter[str]) -> int:
    failures = 0
    begun = time.monotonic()
    turns = (options.kind,) if options.kind else TURNS
    meddling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if options.mutate:
        meddling = next(m for m in MUTATIONS if options.mutate in m.name).applied()
    with meddling, _progress() as progress:
        total = None if options.once else options.seconds
        task = progress.add_task("power cuts", total=total, note="")
        while True:
            kind = turns[seed % len(turns)]
            history = _history(kind, seed, options.mutate)
            try:
                history.run()
            except Exception as error:
                failures += 1
                _show_failure(progress.console, kind, seed, error, options.mutate)
            tried += history.examiner.tried
            tried["histories"] += 1
            tried["lives that met a failed sync"] += history.steps["failed sync"]
            elapsed = time.monotonic() - begun
            progress.update(
                task,
                completed=min(elapsed, options.seconds),
                note=f"seed {seed}, {tried['images']:,} images, {failures} failures",
            )
            seed += 1
            if options.once or elapsed >= options.seconds:
                return failures


def _show_failure(
    to: Console, kind: str, seed: int, error: Exception, mutation: str | None
) -> None:
    what = error if isinstance(error, Violation) else repr(error)
    to.print(f"[bold red]seed {seed} ({kind})[/]: {what}", highlight=False)
    meddled = f" --mutate {mutation!r}" if mutation else ""
    to.print(
        f"  replay: python -m tests.torture --kind {kind} --seed {seed} --once{meddled}",
        highlight=False,
        soft_wrap=True,
    )


def _kill(seed: int, kills: int, tried: Counter[str]) -> int:
    directory = Path(tempfile.mkdtemp(prefix="torture-"))
    killer = Killer(directory / "node", seed)
    with _progress() as progress:
        task = progress.add_task("kills", total=kills, note="")
        for _ in range(kills):
            try:
                killer.kill_once()
            except Violation as violation:
                progress.console.print(f"[bold red]kill, seed {seed}[/]: {violation}")
                progress.console.print(f"  the directory is kept: {killer.directory}")
                progress.console.print(
                    f"  again: python -m tests.torture --kind kill --seed {seed} --kills {kills}"
                )
                return 1
            progress.update(task, advance=1, note=f"{killer.answers:,} answers kept and compared")
    tried["kills"] = killer.kills
    tried["kills before the store was open"] = killer.early
    tried["answers compared after kills"] = killer.answers
    shutil.rmtree(directory)
    return 0


def _mutate() -> int:
    """Switches each rule off once; a rule whose absence is not found is a failure."""
    table = Table("rule", "switched off", "found at", "images", "as")
    missed = 0
    with _progress() as progress:
        task = progress.add_task("mutations", total=len(MUTATIONS), note="")
        for mutation in MUTATIONS:
            progress.update(task, note=mutation.name)
            images, found, seed = 0, "[bold red]not found[/]", 0
            with mutation.applied():
                for seed in range(80):
                    history = History(
                        seed, failing_share=mutation.failing_share, wrap=mutation.wrap
                    )
                    try:
                        history.run()
                    except Violation as violation:
                        found = str(violation)[:110]
                    images += history.examiner.images
                    if not found.startswith("["):
                        break
                else:
                    missed += 1
            rule = "recovery" if mutation.rule is None else str(mutation.rule)
            table.add_row(rule, mutation.what, f"seed {seed}", f"{images:,}", found)
            progress.advance(task)
    console.print(table)
    return missed


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _report(tried: Counter[str], failures: int, seconds: float) -> None:
    table = Table("tried", "how many", title=f"{seconds:.0f} seconds")
    for what, number in sorted(tried.items(), key=lambda item: -item[1]):
        table.add_row(what, f"{number:,}")
    if tried:
        console.print(table)
    verdict = f"[bold red]{failures} failures[/]" if failures else "[bold green]no violation[/]"
    console.print(verdict)


if __name__ == "__main__":
    sys.exit(main())
