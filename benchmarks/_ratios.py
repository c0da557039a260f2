"""Ratios within one run: round by round, so that a machine whose pace changes does not matter."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from _measure import Result

__all__ = ["Found", "Ratio"]

#: row, cell, contestant
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios, with the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio | None:
        if not ratios:
            return None
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0])
        lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(statistics.median(ratios), lower, upper)

    @classmethod
    def between(cls, ours: Sequence[float], others: Sequence[float]) -> Ratio | None:
        """Round by round where both have the same; of the medians otherwise."""
        if not ours or not others or not all(others):
            return None
        if len(ours) == len(others):
            return cls.of([one / other for one, other in zip(ours, others, strict=True)])
        return cls.of([statistics.median(ours) / statistics.median(others)])

    def __str__(self) -> str:
        if self.lower == self.upper:
            return f"{self.median:.2f} x"
        return f"{self.median:.2f} x ({self.lower:.2f} … {self.upper:.2f})"


class Found:
    """What a run measured, by row, cell and contestant."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = {
            (result.row, result.cell, result.contestant): result
            for result in results
            if result.rounds
        }

    def median(self, row: str, cell: str, contestant: str) -> float | None:
        result = self.results.get((row, cell, contestant))
        return result.median if result else None

    def p50(self, row: str, cell: str, contestant: str) -> float | None:
        result = self.results.get((row, cell, contestant))
        return statistics.median(result.p50s) if result and result.p50s else None

    def ratio(self, ours: Key, other: Key) -> Ratio | None:
        """Of what was measured: of rates, mostly."""
        one, two = self.results.get(ours), self.results.get(other)
        return Ratio.between(one.rounds, two.rounds) if one and two else None

    def p50_ratio(self, ours: Key, other: Key) -> Ratio | None:
        """Of the rounds' median calls."""
        one, two = self.results.get(ours), self.results.get(other)
        return Ratio.between(one.p50s, two.p50s) if one and two else None

    def best_peer(self, row: str, cell: str, *, without: str = "") -> str | None:
        """Who is the quickest that does the whole work: entries in, entries out."""
        peers = {
            name: result.median
            for (found_row, found_cell, name), result in self.results.items()
            if (found_row, found_cell) == (row, cell) and result.is_peer and name != without
        }
        return max(peers, key=peers.__getitem__, default=None)
