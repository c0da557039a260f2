"""Virtual time, chance and the trace of a simulation: what makes a run the same every time.

Everything in a simulation happens in one thread, as calls that a :class:`Clock` makes in the
order of their times. For every part of a simulation; it must not know nodes, disks or networks.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["Clock", "Trace", "chance"]


def chance(seed: object, *names: str) -> random.Random:
    """A stream of random numbers of its own for each use, so that a change of one fault leaves
    the others as they were.
    """
    return random.Random("/".join([str(seed), *names]))  # noqa: S311 - no secret


class Clock:
    """Virtual time in seconds. It goes on only from one call to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], Any]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[..., Any], *arguments: Any) -> None:
        """Has a call made at ``when``, or as soon as possible where that is past.

        Calls of the same time are made in the order in which they were asked for.
        """
        self._count += 1
        made = partial(call, *arguments) if arguments else call
        heapq.heappush(self._calls, (max(when, self.now), self._count, made))

    def after(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: float, is_over: Callable[[], bool] | None = None) -> None:
        """Makes the calls up to ``until``, or until ``is_over`` says so after one of them."""
        calls = self._calls
        while calls and calls[0][0] <= until:
            self.now, _, call = heapq.heappop(calls)
            call()
            if is_over is not None and is_over():
                return
        self.now = max(self.now, until)


class Trace:
    """What happened, as a digest that two equal runs share, and as lines where they are kept."""

    def __init__(self, clock: Clock, *, keeps_lines: bool = False) -> None:
        self._clock = clock
        self._hash = hashlib.blake2b(digest_size=8)
        self._keeps_lines = keeps_lines
        self.lines: list[str] = []
        self.count = 0

    def note(self, *words: object) -> None:
        """Notes an event; its words must read the same in every process."""
        self.count += 1
        line = f"{self._clock.now:.6f} {' '.join(map(str, words))}"
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self._keeps_lines:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
