"""What was measured against what is wanted (docs/design/performance.md)."""

from __future__ import annotations

from _appends import SIZE, cell
from _delays import CALL, slow_disk
from _delays_run import POLICIES, SCENARIOS
from _loop import LONGEST_CALL
from _measure import RUNTIMES, Plan, Result
from _purging import ALONE, MEANWHILE, P50, RETURNS
from _ratios import Found, Key, Ratio
from _report import Wanted

__all__ = ["verdicts"]

_ONE, _MANY = cell(SIZE, 1), cell(SIZE, 64)
_FLOOR: Key = ("durable", _ONE, "floor")
_COMPARED = "for comparison"


class _Verdicts:
    def __init__(self, found: Found, plan: Plan) -> None:
        self._found = found
        self._plan = plan
        self.lines: list[Wanted] = []

    # --- kinds of lines --------------------------------------------------------------------

    def _line(self, work: str, want: str, got: str | None, *, is_met: bool) -> None:
        self.lines.append(
            Wanted(work, want, "-", None) if got is None else Wanted(work, want, got, is_met)
        )

    def _at_least(self, work: str, want: float, ratio: Ratio | None, of: str) -> None:
        is_met = ratio is not None and ratio.median >= want
        shown = str(ratio) if ratio else None
        self._line(work, f">= {want:.2f} x {of}", shown, is_met=is_met)

    def _no_more(self, work: str, want: float, ratio: Ratio | None, of: str) -> None:
        is_met = ratio is not None and ratio.median <= want
        shown = str(ratio) if ratio else None
        self._line(work, f"<= {want:.2f} x {of}", shown, is_met=is_met)

    def _at_most(
        self, work: str, want: float, got: float | None, unit: str, scale: float = 1.0
    ) -> None:
        value = got * scale if got is not None else None
        shown = f"{value:.2f} {unit}" if value is not None else None
        is_met = value is not None and value <= want
        self._line(work, f"<= {want:.4g} {unit}", shown, is_met=is_met)

    def _reaches(self, work: str, want: float, got: float | None) -> None:
        shown = f"{got:,.0f}/s" if got is not None else None
        self._line(work, f">= {want:,.0f}/s", shown, is_met=got is not None and got >= want)

    def _compared(self, work: str, ratio: Ratio | None, of: str) -> None:
        if ratio is not None:
            self.lines.append(Wanted(work, _COMPARED, f"{ratio} {of}", None))

    def _best_of(self, row: str, cell_name: str, *, without: str = "") -> tuple[Key | None, str]:
        """The best peer that also holds entries, and what to call it."""
        name = self._found.best_peer(row, cell_name, without=without)
        return (row, cell_name, name) if name else None, f"the best peer ({name or 'none is here'})"

    def _against(self, ours: Key, other: Key | None) -> Ratio | None:
        return self._found.ratio(ours, other) if other else None

    # --- the goals, in the order of the page -----------------------------------------------

    def durable(self) -> None:
        found = self._found
        ours: Key = ("durable", _ONE, "hqlwal")
        work = "durable, one task, one entry: p50"
        ratio = found.p50_ratio(ours, _FLOOR)
        self._no_more(work, 1.35, ratio, "the floor's")
        self._no_more(f"{work}, the least that counts as met", 1.45, ratio, "the floor's")
        if ratio is not None:
            elsewhere = "1.33 and 1.64 x the floor's"
            self.lines.append(Wanted("hiqlite-wal, two runs elsewhere", _COMPARED, elsewhere, None))
        bare = found.p50_ratio(("durable", _ONE, "bare hand-over"), _FLOOR)
        self._compared("a bare hand-over to a thread and back: p50", bare, "the floor's")
        ours, floor = ("durable", _MANY, "hqlwal"), ("durable", _MANY, "floor")
        work = "durable, one task, 64 entries"
        self._at_least(work, 1.0, found.ratio(ours, floor), "the floor")
        best, of = self._best_of("durable", _MANY)
        self._at_least(work, 1.0, self._against(ours, best), of)
        for tasks, want in ((64, 7.5), (512, 11.0)):
            ours = ("tasks", f"{tasks} tasks", "hqlwal asyncio")
            work = f"durable, {tasks} tasks, one entry each"
            self._at_least(work, want, found.ratio(ours, _FLOOR), "the floor's single writer")
            best, of = self._best_of("durable", _ONE)
            self._compared(work, self._against(ours, best), f"{of}'s single writer")

    def buffered(self) -> None:
        for cell_name, want, count in ((_ONE, 1.0, "one"), (_MANY, 0.75, "64")):
            work = f"buffered, {count} per await"
            ours: Key = ("buffered", cell_name, "hqlwal")
            best, of = self._best_of("buffered", cell_name)
            self._at_least(work, want, self._against(ours, best), of)
            bare = self._found.ratio(ours, ("buffered", cell_name, "lmdb, bare pairs"))
            self._compared(work, bare, "lmdb's bare pairs")

    def reads(self) -> None:
        ours: Key = ("read", "ranges", "hqlwal")
        self._at_least(
            f"cold ranges of 64, checksummed, {self._plan.read_entries:,} entries from the first "
            "call after opening",
            0.7, self._found.ratio(ours, ("read", "ranges", "lmdb")), "the unchecked peer lmdb",
        )  # fmt: skip
        held = f"{self._plan.random_entries // 256 * 256:,} entries"
        self._reaches(
            f"random single reads, {held}, each segment's first aside", 100_000,
            self._found.median("random", held, "hqlwal"),
        )  # fmt: skip

    def large(self) -> None:
        for size in ("1 MiB", "4 MiB"):
            times = self._found.ratio(("large", size, "floor"), ("large", size, "hqlwal"))
            self._no_more(f"durable, entries of {size}", 1.5, times, "the floor's time")

    def purge(self) -> None:
        found = self._found
        held = f"{self._plan.big_entries:,} entries"
        self._at_most(
            f"purge of half of {held} returns", 10, found.median("purge", RETURNS, "hqlwal"),
            "ms", 1e3,
        )  # fmt: skip
        parts = [found.results.get(("purge", each, "hqlwal")) for each in (MEANWHILE, ALONE, P50)]
        delays = Ratio.of(
            [
                max(0.0, meanwhile - alone) / p50
                for meanwhile, alone, p50 in zip(
                    *(part.rounds if part else [] for part in parts), strict=True
                )
                if p50
            ]
        )
        self._no_more("an append meanwhile is delayed by", 1.0, delays, "a durable append's time")

    def stores(self) -> None:
        work = f"{self._plan.stores} stores in one process, one task each"
        row = f"{self._plan.stores} stores"
        self._reaches(work, 20_000, self._found.median("stores", row, "hqlwal asyncio"))
        threads = f"{row}: threads in all"
        self._at_most(
            f"{work}", 10, self._found.median("stores", threads, "hqlwal asyncio"), "threads"
        )

    def delays(self) -> None:
        self._delay(
            f"{self._plan.stall_seconds:g} s of 64 durable writers", "stall", "longest",
            LONGEST_CALL,
        )  # fmt: skip
        for cell_name in (*SCENARIOS, slow_disk(self._plan, POLICIES[0])):
            self._delay(cell_name, "delay", cell_name, cell_name + CALL)
        for policy in POLICIES[1:]:
            cell_name = slow_disk(self._plan, policy)
            worst = self._worst("delay", cell_name)
            if worst is not None:
                shown = f"{worst[0] * 1e3:.2f} ms ({worst[1]})"
                self.lines.append(Wanted(f"delay of the loop: {cell_name}", _COMPARED, shown, None))

    def _worst(self, row: str, cell_name: str) -> tuple[float, str] | None:
        values = [
            (value, runtime)
            for runtime in RUNTIMES
            if (value := self._found.median(row, cell_name, f"hqlwal {runtime}")) is not None
        ]
        return max(values, default=None)

    def _delay(self, work: str, row: str, beat: str, call: str) -> None:
        for what, cell_name in (("delay of the loop", beat), ("system call on the loop", call)):
            worst = self._worst(row, cell_name)
            shown = f"{worst[0] * 1e3:.2f} ms ({worst[1]})" if worst else None
            is_met = worst is not None and worst[0] <= 0.01
            self._line(f"longest {what}: {work}", "<= 10 ms", shown, is_met=is_met)

    def opened(self) -> None:
        held = f"{self._plan.big_entries:,} entries"

        def ours(cell_name: str, row: str = "open") -> float | None:
            return self._found.median(row, cell_name, "hqlwal")

        self._at_most(f"opening {held}, closed", 50, ours("open after a close"), "ms", 1e3)
        self._at_most(f"opening {held}, killed", 1, ours("open after a kill"), "s")
        for after in ("writing", "opening"):
            self._at_most(
                f"memory with {held}, after {after} it, above an empty store", 40,
                ours(f"resident memory after {after} it"), "MB", 1e-6,
            )  # fmt: skip
        size = f"{self._plan.huge_segment_bytes >> 20:,} MiB"
        work = f"a segment of {size} with one entry, opened after a kill"
        self._at_most(work, 0.5, ours("open after a kill", "huge"), "s")
        resident = ours("resident memory after opening it", "huge")
        self._at_most(f"{work}: memory", 50, resident, "MB", 1e-6)


def verdicts(results: list[Result], plan: Plan) -> list[Wanted]:
    every = _Verdicts(Found(results), plan)
    every.durable()
    every.buffered()
    every.reads()
    every.large()
    every.purge()
    every.stores()
    every.delays()
    every.opened()
    return every.lines
