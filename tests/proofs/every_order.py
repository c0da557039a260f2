"""Every order: the loop's tasks and calls, the store's threads and cancellations take turns in
every order of small histories, and by lot in long ones; on the blocking face callers are threads.

``judging`` runs one history in one order and judges it; ``orders`` counts the orders through. See
docs/design/proofs.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from .callers import History
from .judging import judge
from .order_histories import (
    HISTORIES,
    SMALLEST,
    SMALLEST_THREADED,
    THREADED,
    drawn_history,
)
from .orders import (
    ORDERS,
    Chooser,
    Chosen,
    Demotions,
    Departures,
    Drawn,
    Told,
    choices,
    departures,
)

__all__ = [
    "HISTORIES",
    "SMALLEST",
    "SMALLEST_THREADED",
    "THREADED",
    "Finding",
    "drawn_history",
    "replay",
    "run",
    "shorten",
]


class Finding(NamedTuple):
    """What an order did that must not be."""

    #: "read", "lost", "answer", "stream", "error"
    kind: str
    history: History
    #: as it is given to replay it
    order: str
    what: str
    steps: Sequence[str] = ()

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs order {self.history.name!r} {self.order}"

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.history}, order {self.order}: {self.what}\n"
            f"    {', '.join(_joined(self.steps))}"
        )


def _joined(steps: Sequence[str]) -> Iterator[str]:
    """Steps of one thing that follow each other, as one."""
    last, count = "", 0
    for step in [*steps, ""]:
        if step == last:
            count += 1
            continue
        if last:
            yield last if count == 1 else f"{count} times {last}"
        last, count = step, 1


# --- one order -----------------------------------------------------------------------------


def _chooser(order: str) -> Chooser:
    """The chooser that an order is written of: ``loop-3-7c0``, ``all-0-1-0``, ``seed-17``,
    ``told: task 0 to pwrite, task 1``.
    """
    if order.startswith("told: "):
        legs = [leg.partition(" to ") for leg in order.removeprefix("told: ").split(", ")]
        return Told([(name, at) for name, _, at in legs])
    kind, *rest = order.split("-")
    if kind == "seed":
        return Drawn(int(rest[0]))
    if kind == "all":
        return Chosen([int(each) for each in rest])
    return Demotions(kind, tuple(map(_departure, rest)))


def _departure(text: str) -> tuple[int, str]:
    place, _, cancelled = text.partition("c")
    return int(place), cancelled or "-"


def _written(order: str, departed: Departures) -> str:
    texts = [f"{place}" if what == "-" else f"{place}c{what}" for place, what in departed]
    return "-".join([order, *texts])


def _find(history: History, order: str, chooser: Chooser) -> list[Finding]:
    judged = judge(history, chooser)
    return [Finding(kind, history, order, what, judged.steps) for kind, what in judged.problems]


# --- all of them ---------------------------------------------------------------------------


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None,
    stride: int = 1,
    seeds: Sequence[int] = range(2000),
) -> tuple[list[Finding], Counter[str]]:
    """Every order with one departure and every ``stride``-th with two; every order there is of
    the smallest histories, or as many as a stride allows; and every ``stride``-th seed.
    """
    findings: list[Finding] = []
    tried = Counter[str]()
    planned = [(each, order) for each in HISTORIES for order in ORDERS]
    planned += [(each, order) for each in THREADED for order in ORDERS if order != "readers"]
    smallest = *SMALLEST, *SMALLEST_THREADED
    parts = len(planned) + len(smallest) + 1
    done = 0
    for history, order in planned:
        most, every = (2, stride) if history.face == "async" or stride == 1 else (1, stride // 40)
        for departed in _departures(history, order, most, max(every, 1), findings):
            tried[f"orders with {len(departed)} departures, {history.face}"] += 1
        progress(done := done + 1, parts)
    for history in THREADED:
        if history.told:
            findings += _find(history, history.told, _chooser(history.told))
            tried["orders told"] += 1
        for seed in seeds[: 200 : max(stride // 10, 1)]:
            findings += _find(history, f"seed-{seed}", Drawn(seed))
            tried["drawn orders"] += 1
    for history in smallest:
        findings += _all(history, None if stride == 1 else 20_000 // stride, tried)
        progress(done := done + 1, parts)
    for seed in seeds[::stride]:
        for face in ("async", "blocking"):
            findings += _find(drawn_history(seed, face), f"seed-{seed}", Drawn(seed))
            tried[f"drawn histories, {face}"] += 1
    progress(parts, parts)
    return findings, tried


def _all(history: History, at_most: int | None, tried: Counter[str]) -> Iterator[Finding]:
    found: list[Finding] = []

    def run_one(taken: Sequence[int]) -> Chosen:
        chooser = Chosen(taken)
        some = _find(history, "", chooser)
        order = "-".join(["all", *map(str, chooser.taken)])
        found.extend(each._replace(order=order) for each in some)
        return chooser

    for _ in islice(choices(run_one), at_most):
        tried[f"orders of {history.name!r}"] += 1
    yield from found


def replay(name: str, order: str) -> list[Finding]:
    """One order again, as ``Finding.replay`` names it."""
    known = (*HISTORIES, *THREADED, *SMALLEST, *SMALLEST_THREADED)
    history = next((each for each in known if each.name == name), None)
    if history is None:
        is_blocking = name.startswith("threads: ")
        face = "blocking" if is_blocking else "async"
        history = drawn_history(int(name.removeprefix("threads: ").removeprefix("seed ")), face)
    return _find(history, order, _chooser(order))


def shorten(finding: Finding, seconds: float = 20) -> Finding:
    """The same kind of finding in a shorter history, made by leaving out calls: the shortest that
    was found in so many seconds.
    """
    best, end = finding, time.monotonic() + seconds
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for history in _smaller(best.history):
            found = next(_like(history, finding, end), None)
            if found is not None:
                best, is_smaller = found, True
                break
    return best


def _smaller(history: History) -> Iterator[History]:
    """Without one task, and without one call."""
    for number, ops in enumerate(history.tasks):
        before, behind = history.tasks[:number], history.tasks[number + 1 :]
        if ops:
            yield replace(history, tasks=(*before, (), *behind))
    for number, ops in enumerate(history.tasks):
        before, behind = history.tasks[:number], history.tasks[number + 1 :]
        for place in range(len(ops)) if len(ops) > 1 else ():
            fewer = ops[:place] + ops[place + 1 :]
            yield replace(history, tasks=(*before, fewer, *behind))


def _like(history: History, finding: Finding, end: float) -> Iterator[Finding]:
    """Findings of the kind, in orders with one departure and in some by lot."""
    found: list[Finding] = []

    def drawn() -> Iterator[Departures]:
        for seed in range(20):
            found.extend(_find(history, f"seed-{seed}", Drawn(seed)))
            yield ()

    counted = (_departures(history, order, 1, 1, found) for order in ORDERS)
    for _ in chain(drawn(), *counted):
        if time.monotonic() > end:
            return
        yield from (each for each in found if each.kind == finding.kind)
        found.clear()


def _departures(
    history: History, order: str, at_most: int, stride: int, found: list[Finding]
) -> Iterator[Departures]:
    """Runs a history in an order and with what departs from it; fills ``found``."""

    def run_one(departed: Departures) -> Demotions:
        chooser = Demotions(order, departed)
        found.extend(_find(history, _written(order, departed), chooser))
        return chooser

    for departed, _ in departures(run_one, at_most, stride):
        yield departed
