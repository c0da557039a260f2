"""``python -m tests.proofs``: every loop whole, then random histories for as long as one likes.

``--only crash,call`` names the loops to run, ``--stride 100`` takes a hundredth of each. A failure
is printed with the line that replays it alone, which has the loop's name and then what the loop
knows it by: ``python -m tests.proofs opcode asyncio,immediate,0 5431 MemoryError``.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import itertools
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

#: each is a module with ``run``, and where it has them ``replay`` and ``shorten``
LOOPS = {
    name: f"{__package__}.every_{name}"
    for name in ("crash", "bit", "call", "answer", "cancellation", "opcode", "order")
}
RANDOM = "random"
#: of one kind are printed; all are counted
_SHOWN_OF_A_KIND = 3

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    options, words = _parse()
    logging.disable(logging.CRITICAL)  # what the stores say of the damage that is done to them
    if options.loop is not None:
        return _replay(options.loop, [*options.step, *words])
    chosen = options.only.split(",") if options.only else [*LOOPS, RANDOM]
    if unknown := set(chosen) - {*LOOPS, RANDOM}:
        console.print(f"no such loop: {', '.join(sorted(unknown))}; there are {[*LOOPS, RANDOM]}")
        return 2
    failures = sum(_run(name, options) for name in LOOPS if name in chosen)
    if RANDOM in chosen:
        failures += _torture(options)
    console.print(f"[bold red]{failures} findings[/]" if failures else "[bold green]none found[/]")
    return 1 if failures else 0


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__)
    parser.add_argument("loop", nargs="?", choices=LOOPS, help="the loop of a step to replay")
    parser.add_argument("step", nargs="*", help="what to replay, as a failure prints it")
    parser.add_argument("--only", metavar="LOOPS", help=f"of {','.join([*LOOPS, RANDOM])} (all)")
    parser.add_argument("--stride", type=int, default=1, help="every so manieth case only (1)")
    parser.add_argument("--depth", type=int, default=3, help="letters of a cut history (3)")
    parser.add_argument("--seconds", type=float, default=300, help="for random histories (300)")
    parser.add_argument("--seed", type=int, help="the first random history (from the clock)")
    return parser.parse_known_args()


def _run(name: str, options: argparse.Namespace) -> int:
    if importlib.util.find_spec(LOOPS[name]) is None:
        console.print(f"{name}: there is no such loop yet")
        return 0
    loop = importlib.import_module(LOOPS[name])
    gc.freeze()  # the collector, called often, does not look at all that again
    started = time.monotonic()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task(f"every {name}", total=None, note="")

        def show(done: int, total: int | None) -> None:
            of = "" if total is None else f" of {total:,}"
            progress.update(task, completed=done, total=total, note=f"{done:,}{of}")

        findings, tried = _call(loop, name, options, show)
    _report(loop, name, findings, tried, time.monotonic() - started)
    return len(findings)


def _call(
    loop: Any, name: str, options: argparse.Namespace, show: Callable[[int, int | None], None]
) -> tuple[list[Any], Counter[str]]:
    """Runs a loop; gives its findings, and what it tried."""
    if name == "crash":
        return _cut(loop, options, show)
    if name == "bit":
        bits = loop.run(
            stride=options.stride, progress=lambda bits: show(bits.counts["flips"], None)
        )
        console.print(str(bits))
        return list(bits.flaws.values()), bits.counts
    findings, tried = loop.run(show, options.stride)
    return findings, Counter(cases=tried) if isinstance(tried, int) else tried


def _cut(
    loop: Any, options: argparse.Namespace, show: Callable[[int, int | None], None]
) -> tuple[list[Any], Counter[str]]:
    """The log, and the stores of both faces, whose histories are a letter shorter."""
    scopes = [loop.Scope(loop.ROOTS, loop.FULL, options.depth)] + [
        loop.Scope(
            loop.ROOTS, loop.OF_STORES, options.depth - 1, face=face, is_buffered=is_buffered
        )
        for face in ("blocking", "async")
        for is_buffered in (False, True)
    ]
    violations: list[Any] = []
    counts = Counter[str]()
    for scope in scopes:
        crashes = loop.run(
            scope,
            budget_seconds=3600 / options.stride,
            progress=lambda crashes: show(crashes.images, None),
        )
        console.print(f"{scope.face}, {'page cache' if scope.is_buffered else 'memory'}: {crashes}")
        violations += crashes.violations.values()
        counts += crashes.counts
    return violations, counts


def _report(loop: Any, name: str, findings: list[Any], tried: Counter[str], seconds: float) -> None:
    table = Table(f"every {name}", "how many", title=f"{seconds:.0f} seconds")
    for what, number in tried.most_common():
        table.add_row(what, f"{number:,}")
    kinds = Counter(_kind(finding) for finding in findings)
    for kind, number in kinds.most_common():
        table.add_row(f"[bold red]found: {kind}[/]", f"{number:,}")
    console.print(table)
    shown = Counter[str]()
    for finding in findings:
        kind = _kind(finding)
        shown[kind] += 1
        if shown[kind] <= _SHOWN_OF_A_KIND:
            _show(loop, finding, is_first=shown[kind] == 1)


def _kind(finding: Any) -> str:
    kind: str = finding.kind if hasattr(finding, "kind") else finding.problem.kind
    return kind


def _show(loop: Any, finding: Any, *, is_first: bool) -> None:
    console.print(str(finding), markup=False)
    replay = getattr(finding, "replay", "")
    if replay and replay not in str(finding):
        console.print(f"    replay: {replay}", markup=False)
    if is_first and hasattr(loop, "shorten"):
        console.print(f"    shortened: {loop.shorten(finding)}", markup=False)


def _replay(name: str, words: list[str]) -> int:
    loop = importlib.import_module(LOOPS[name])
    # "--step 5" is an argument by name
    named = {
        word.removeprefix("--"): int(value) if value.lstrip("-").isdigit() else value
        for word, value in itertools.pairwise(words)
        if word.startswith("--")
    }
    plain = [
        word
        for before, word in itertools.pairwise(["", *words])
        if not word.startswith("--") and not before.startswith("--")
    ]
    found = loop.replay(*plain, **named)
    if isinstance(found, str):
        console.print(found, markup=False)
        return 0
    if not found:
        console.print("[bold green]nothing is wrong[/]")
        return 0
    for number, finding in enumerate(found):
        _show(loop, finding, is_first=number == 0)
    return 1


def _torture(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tests.torture", "--seconds", str(options.seconds)]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
