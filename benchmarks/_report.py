"""Tables, JSON and the plot. Measures nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from _measure import Result
from _ratios import Ratio

__all__ = [
    "Beside",
    "Panel",
    "Wanted",
    "duration",
    "make_console",
    "plot",
    "show_beside",
    "show_machine",
    "show_row",
    "show_wanted",
    "write_json",
]


#: what the disk takes, and the way to a thread
_NO_STORES = ("floor", "bare hand-over")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One wanted value and what came of it."""

    work: str
    want: str
    got: str
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class Beside:
    """One kind of work: ours in this run, and natives elsewhere, as ratios to the floor."""

    work: str
    #: whether less is better: the ratio is one of times
    is_time: bool
    ours: Ratio | None
    hand_over: Ratio | None
    #: None: not measured, or not to be had
    natives: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One group of bars in the plot."""

    title: str
    row: str
    cell: str
    unit: str = "entries/s"
    #: contestants left out
    without: tuple[str, ...] = ()


def make_console() -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    return Console(width=None if sys.stdout.isatty() else 132)


def _amount(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "seconds":
        return duration(value)
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if unit.endswith("/s"):
        return f"{value:,.0f}/s" if value < 1e6 else f"{value / 1e6:,.2f} M/s"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.1f} µs"
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _style(contestant: str) -> str:
    if contestant.startswith(("hqlwal", "ours")):
        return "bold green"
    return "dim" if contestant in _NO_STORES else ""


def _best_peer(results: Iterable[Result]) -> float:
    return max(
        (result.median for result in results if result.rounds and result.is_peer),
        default=float("nan"),
    )


def _detail(console: Console, title: str, results: list[Result]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    is_rate = all(result.unit.endswith("/s") for result in results if result.rounds)
    has_latency = any(result.latency for result in results)
    best = _best_peer(results)
    table.add_column("contestant", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("rounds (min … max)", justify="right", no_wrap=True)
    if is_rate:
        table.add_column("x best peer", justify="right")
    if has_latency:
        for name in ("p50", "p99", "p99.9", "longest call"):
            table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        cells = [result.contestant]
        if result.missing:
            table.add_row(*cells, result.missing, style="dim")
            continue
        low, high = min(result.rounds), max(result.rounds)
        cells += [
            _amount(result.median, result.unit),
            f"{_amount(low, result.unit)} … {_amount(high, result.unit)}",
        ]
        if is_rate:
            cells.append(f"{result.median / best:.2f}" if best > 0 else "-")
        if has_latency and (latency := result.latency):
            cells += [
                duration(value)
                for value in (latency.p50, latency.p99, latency.p999, latency.longest)
            ]
        table.add_row(*cells, style=_style(result.contestant))
    console.print(table)
    for result in results:
        if result.note:
            console.print(f"  {result.contestant}: {result.note}", style="dim")


def _pivot(console: Console, title: str, results: list[Result]) -> None:
    """Cells down, contestants across: medians only."""
    missing = [result.contestant for result in results if result.missing]
    results = [result for result in results if not result.missing]
    cells = list(dict.fromkeys(result.cell for result in results))
    contestants = list(dict.fromkeys(result.contestant for result in results))
    found = {(result.cell, result.contestant): result for result in results}
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for contestant in contestants:
        table.add_column(contestant, justify="right", style=_style(contestant))
    for cell in cells:
        row = [cell]
        for contestant in contestants:
            result = found.get((cell, contestant))
            row.append(_pivot_cell(result, is_detailed=len(contestants) <= 5) if result else "")
        table.add_row(*row)
    if cells:
        console.print(table)
    if missing:
        console.print(f"missing: {', '.join(dict.fromkeys(missing))}", style="dim")


def _pivot_cell(result: Result, *, is_detailed: bool) -> str:
    shown = _amount(result.median, result.unit)
    if is_detailed and result.latency:
        return f"{shown}\np99 {duration(result.latency.p99)}"
    return shown


def show_row(console: Console, title: str, results: list[Result], *, as_pivot: bool) -> None:
    if as_pivot:
        _pivot(console, title, results)
        return
    for cell in dict.fromkeys(result.cell for result in results):
        _detail(console, f"{title} {cell}", [result for result in results if result.cell == cell])


def show_wanted(console: Console, wanted: list[Wanted]) -> None:
    if not wanted:
        return
    table = Table(title="Wanted values", title_justify="left", title_style="bold")
    table.add_column("work")
    table.add_column("wanted")
    table.add_column("measured", justify="right")
    table.add_column("")
    for line in wanted:
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
        table.add_row(line.work, line.want, line.got, verdict[line.is_met])
    console.print(table)


def show_beside(console: Console, lines: list[Beside]) -> None:
    """Ours in this run beside the natives elsewhere; nothing where ours was not measured."""
    lines = [line for line in lines if line.ours is not None]
    if not lines:
        return
    table = Table(
        title="Ratios to the floor: ours in this run, native programs on another machine and in "
        "another run (t: of times, less is better)",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    table.add_column("work")
    table.add_column("hqlwal", justify="right", style="bold green")
    table.add_column("bare hand-over", justify="right", style="dim")
    names = list(lines[0].natives)
    for name in names:
        table.add_column(f"{name}, elsewhere", justify="right")
    for line in lines:
        natives = (line.natives[name] for name in names)
        table.add_row(
            f"{line.work}{' (t)' if line.is_time else ''}",
            str(line.ours),
            str(line.hand_over or "-"),
            *("-" if each is None else f"{each:.2f} x" for each in natives),
        )
    console.print(table)


def show_machine(console: Console, machine: dict[str, Any]) -> None:
    console.print(
        f"{machine['python']} ({machine['build']}), {machine['cores']} x {machine['cpu']}, "
        f"{machine['file_system']}, Linux {machine['kernel']}",
        style="dim",
    )
    if machine["load_at_start"] > machine["cores"] / 4:
        console.print(
            f"The machine was busy before the start (load {machine['load_at_start']}): "
            "do not trust the figures.",
            style="yellow",
        )


def write_json(
    path: str,
    machine: dict[str, Any],
    results: list[Result],
    wanted: list[Wanted],
    beside: Iterable[Beside] = (),
) -> None:
    told = {
        "machine": machine,
        "results": [result.as_json() for result in results],
        "wanted": [asdict(line) for line in wanted],
    }
    if lines := [asdict(line) for line in beside]:
        told["natives, measured elsewhere"] = lines
    _make_parent(path)
    with open(path, "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


# --- the plot ----------------------------------------------------------------------------


def plot(path: str, title: str, panels: list[Panel], results: list[Result]) -> bool:
    """Writes an SVG of horizontal bars, one panel a piece; False where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hqlwal"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    shown = []
    for panel in panels:
        bars = [
            result
            for result in results
            if (result.row, result.cell) == (panel.row, panel.cell)
            and result.rounds
            and result.contestant not in panel.without
        ]
        if bars:
            shown.append((panel, sorted(bars, key=lambda bar: bar.median)))
    columns = 2 if len(shown) > 1 else 1
    lines = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.5 * columns, 2.6 * lines + 0.4), squeeze=False
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (panel, bars) in zip(axes.flat, shown, strict=False):
        axis.set_visible(True)
        names = [bar.contestant for bar in bars]
        colors = [_color(name) for name in names]
        drawn = axis.barh(names, [bar.median for bar in bars], color=colors)
        axis.bar_label(
            drawn, [_amount(bar.median, panel.unit) for bar in bars], padding=3, fontsize=8
        )
        axis.set_title(panel.title, fontsize=10, loc="left")
        axis.margins(x=0.22)
        axis.tick_params(axis="y", labelsize=8)
        axis.xaxis.set_visible(False)
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    figure.tight_layout()
    _make_parent(path)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return True


def _color(contestant: str) -> str:
    if contestant.startswith(("hqlwal", "ours")):
        return "#2a7f62"
    return "#c9c9c9" if contestant in _NO_STORES else "#8aa5c4"
