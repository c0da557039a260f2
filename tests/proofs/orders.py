"""Which goes next: choosers for ``turns``, and how their choices are counted through.

A chooser is asked only where there is a choice. It must not know what the things do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from .turns import Spins, Thing

__all__ = [
    "ORDERS",
    "Chooser",
    "Chosen",
    "Demotions",
    "Departures",
    "Drawn",
    "Told",
    "choices",
    "departures",
]

#: how things are ranked that nobody demoted yet: by kind, then as they came to be
ORDERS: dict[str, Sequence[str]] = {
    "loop": ("calls", "task", "thread", "read"),
    "threads": ("thread", "read", "calls", "task"),
    "readers": ("read", "task", "calls", "thread"),
}
#: past these a history is taken for one that spins
MOST_STEPS = 5000

#: where the order departs from the rank: (place among the choices, what): ``"-"`` demotes the
#: thing whose turn it is below all others, a number delivers that cancellation
Departures = tuple[tuple[int, str], ...]


class Chooser:
    def __init__(self) -> None:
        #: at each choice, how many could go
        self.widths: list[int] = []
        self._steps = 0

    def __call__(self, things: list[Thing]) -> Thing:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Spins
        if len(things) == 1:
            return things[0]
        thing = self._choose(things)
        self.widths.append(len(things))
        return thing

    def _choose(self, things: list[Thing]) -> Thing:
        raise NotImplementedError


class Demotions(Chooser):
    """The highest in rank goes until it waits; it departs from that at the given places."""

    def __init__(self, order: str, departures_: Departures = ()) -> None:
        super().__init__()
        self._kinds = ORDERS[order]
        self._departures = dict(departures_)
        self._demoted: dict[str, int] = {}
        #: at each choice, how many cancellations could be delivered
        self.cancellations: list[int] = []

    def _rank(self, thing: Thing) -> tuple[int, int]:
        kind = thing.name.split()[0]
        return (
            self._demoted.get(thing.name, 0),
            self._kinds.index(kind if kind in self._kinds else "thread"),
        )

    def _choose(self, things: list[Thing]) -> Thing:
        cancels = [each for each in things if each.name.startswith("cancel")]
        movers = [each for each in things if each not in cancels]
        what = self._departures.get(len(self.widths))
        self.cancellations.append(len(cancels))
        if what is not None and what != "-" and int(what) < len(cancels):
            return cancels[int(what)]
        first = min(movers, key=self._rank)
        if what == "-":
            self._demoted[first.name] = max(self._demoted.values(), default=0) + 1
            first = min(movers, key=self._rank)
        return first


class Chosen(Chooser):
    """Takes the given choices, then always the first."""

    def __init__(self, taken: Sequence[int] = ()) -> None:
        super().__init__()
        self.taken = list(taken)

    def _choose(self, things: list[Thing]) -> Thing:
        place = len(self.widths)
        if place == len(self.taken):
            self.taken.append(0)
        return things[self.taken[place]]


class Drawn(Chooser):
    """By lot: for an even seed each choice, for an odd one the ranks, with some demotions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._is_ranked = bool(seed % 2)
        self._ranks: dict[str, float] = {}

    def _choose(self, things: list[Thing]) -> Thing:
        # a cancellation is one thing among many, but comes once
        if not self._is_ranked:
            return self._rng.choice(things)
        for thing in things:
            self._ranks.setdefault(thing.name, self._rng.random())
        first = min(things, key=lambda thing: self._ranks[thing.name])
        if self._rng.random() < 0.1:
            self._ranks[first.name] = 1 + len(self.widths)
        return first


class Told(Chooser):
    """One after the other goes until it stands where it is told to, or cannot go on; then the
    others, as they came to be.
    """

    def __init__(self, legs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._legs = list(legs)
        self._has_gone = False

    def __call__(self, things: list[Thing]) -> Thing:
        while self._legs:
            name, at = self._legs[0]
            thing = next((each for each in things if each.name == name), None)
            if thing is not None and not (self._has_gone and getattr(thing, "at", "") == at):
                self._has_gone = True
                return thing
            self._has_gone = False
            del self._legs[0]
        return super().__call__(things)

    def _choose(self, things: list[Thing]) -> Thing:
        return things[0]


def departures(
    run: Callable[[Departures], Demotions], at_most: int, stride: int
) -> Iterator[tuple[Departures, Demotions]]:
    """Runs every order with fewer departures and every ``stride``-th with ``at_most``; those with
    fewer first.
    """
    level: list[Departures] = [()]
    for depth in range(at_most + 1):
        following: list[Departures] = []
        for each in level[::stride] if depth == at_most else level:
            chooser = run(each)
            yield each, chooser
            if depth == at_most:
                continue
            first = each[-1][0] + 1 if each else 0
            for place in range(first, len(chooser.widths)):
                following.append((*each, (place, "-")))
                following += [(*each, (place, str(n))) for n in range(chooser.cancellations[place])]
        level = following


def choices(run: Callable[[Sequence[int]], Chosen]) -> Iterator[tuple[Sequence[int], Chosen]]:
    """Runs every order there is, depth first."""
    taken: list[int] | None = []
    while taken is not None:
        chooser = run(taken)
        yield chooser.taken, chooser
        taken = chooser.taken
        for place in reversed(range(len(taken))):
            if taken[place] + 1 < chooser.widths[place]:
                taken = [*taken[:place], taken[place] + 1]
                break
        else:
            taken = None
