"""Every crash: all histories up to a length, cut at every step, in every way the disk allows.

Breadth first over histories: each is one letter longer than one that led to a state not met
before, so what is reported is shortest. While the last letter is carried out a snapshot is taken
after every call that changes anything; each image that a power cut at that moment could leave is
opened and judged, the cuts within that recovery too, to any depth; then one more entry is
appended to what was recovered, with a cut at each of its steps. Equal images are opened once:
what an image shows depends on nothing else, only what it should show does.

``run`` is for tests and the command line, ``replay`` shows one image again. It knows the engine
only through ``core``, and does not see: bits that flip, calls that fail, threads, interrupts.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hqlwal_raft.testing import Image

from .alphabet import SEGMENT_BYTES, Expected, Life, Model, letters
from .core import Core, View, damage
from .disk import Images, Moment, Recorder, all_images, present, started
from .replay import KILLED, Violation, after, replay

__all__ = ["FULL", "NARROW", "OF_STORES", "ROOTS", "Crashes", "Scope", "Violation", "replay", "run"]


@dataclass(frozen=True)
class Scope:
    """Which histories."""

    #: what they begin with
    roots: tuple[str, ...]
    #: the letters that follow, at most ``depth`` of them
    letters: tuple[str, ...]
    depth: int
    #: False: nothing is cut, histories are only carried out, which is much quicker
    has_crashes: bool = True
    #: True: appends are put into the page cache when they are accepted (``immediate_async``)
    is_buffered: bool = False
    #: what carries histories out: "log", "async" or "blocking"; images are opened by the log
    face: str = "log"


#: segment after segment: none; one full, one with an entry; two full, one with an entry
ROOTS = ("", "A2 A2", "A2 A2 A2 A1")
NARROW = ("A1", "A2", "a1", "G+1", "F+1", "T", "P", "V", "H", "S", "K", "R")
FULL = (
    *("A1", "A2", "a1", "a2", "O", "F-1", "F+0", "F+1", "G-1", "G+1", "F-64", "F+64"),
    *("T", "L", "P", "V", "C", "H", "S", "K", "R"),
)
#: of the stores of both faces: with what their committer does late
OF_STORES = (
    *("A1", "A2", "a1", "a2", "G+1", "F+1", "O", "T", "L", "P", "V", "C", "H", "S", "K", "R"),
)


#: how often the power is cut again within the recovery from a cut
RECOVERIES = 2


def _kind(message: str) -> str:
    message = re.sub(r"/[\w./]*/", "", message)
    message = re.sub(r"LogId\([^)]*\)|Vote\([^)]*\)|None|\[[\d, ]*\]", "…", message)
    return re.sub(r"\d+", "#", message)[:100]


@dataclass(slots=True)
class Outcome:
    """What opening an image shows."""

    view: View | None = None
    #: what is wrong with it whatever was expected; empty where nothing is
    problem: str = ""
    #: cuts during the opening, and the image that each leaves
    cuts: tuple[tuple[str, int], ...] = ()
    #: what a power cut may leave once it is open
    afterwards: tuple[int, ...] = ()
    #: what a killed process would leave then
    opened: int = -1


class Crashes:
    """The loop and what it has found so far."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        #: by kind, the first of it
        self.violations: dict[str, Violation] = {}
        self.counts: Counter[str] = Counter()
        #: up to which length all histories were carried out
        self.length = 0
        self.is_complete = False
        self._views: dict[View, View] = {}
        self._images = Images()
        #: of those that were opened, what they showed
        self._outcomes: list[Outcome | None] = []
        #: how many different ones were opened
        self.images = 0
        self._expected: dict[Expected, int] = {}
        #: image and what was expected of it → how many cuts within its recovery were judged too
        self._judged: dict[tuple[int, int], int] = {}
        #: images after a recovery that were appended to
        self._gone_on: set[int] = set()
        self._states: set[object] = set()

    def __str__(self) -> str:
        counts = self.counts
        whole = "" if self.is_complete else f", not all of length {self.length + 1}"
        return (
            f"length {self.length}{whole}: {counts['histories']} histories, "
            f"{len(self._states)} states, {counts['cuts']} cuts, {self.images} different images, "
            f"{len(self._judged)} judgements, {sum(self.counts_by_kind.values())} violations of "
            f"{len(self.violations)} kinds"
        )

    @property
    def counts_by_kind(self) -> dict[str, int]:
        return {kind: self.counts[f"! {kind}"] for kind in self.violations}

    # --- histories -----------------------------------------------------------------------

    def walk(self) -> Iterator[None]:
        """The whole loop; yields after every history."""
        layer: list[tuple[tuple[str, ...], list[str]]] = []
        for root in self.scope.roots:
            word = tuple(root.split())
            for length in range(len(word)):
                self._extend(word[:length], word[length])
                yield
            life = self._after(word)
            self._states.add(_state(life))
            layer.append((word, list(letters(life, self.scope.letters))))
            life.end()
        for length in range(1, self.scope.depth + 1):
            following = []
            for word, nexts in layer:
                for letter in nexts:
                    more = self._extend(word, letter)
                    if more is not None:
                        following.append(((*word, letter), more))
                    yield
            self.length, layer = length, following
        self.is_complete = True

    def _after(self, word: tuple[str, ...]) -> Life:
        return after(word, is_buffered=self.scope.is_buffered, face=self.scope.face)

    def _extend(self, word: tuple[str, ...], letter: str) -> list[str] | None:
        """Carries out one more letter; the letters that may follow, None where it ends here."""
        self.counts["histories"] += 1
        life = self._after(word)
        try:
            if not self._carry_out(life, letter, " ".join((*word, letter)), (), goes_on=True):
                return None
            state = _state(life)
            if state in self._states:
                return None
            self._states.add(state)
            return list(letters(life, self.scope.letters))
        finally:
            life.end()

    def _carry_out(
        self, life: Life, letter: str, history: str, cuts: tuple[str, ...], *, goes_on: bool
    ) -> bool:
        """One letter and every crash within it; whether it did without a crash what it should."""
        recorder = Recorder(life.kernel)
        within = life.model.within(letter)
        killed = life.model.within(letter, is_power_cut=False)
        try:
            with recorder if self.scope.has_crashes else contextlib.nullcontext():
                life.perform(letter)
            life.model.acknowledge(letter)
            problem = life.model.exactly.problem(life.core.view())
            if not problem and letter in "RK":
                found = damage(life.kernel)
                problem = found[0] if found else None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        for step, moment in enumerate(recorder.moments):
            self._judge_moment(moment, within, killed, history, cuts, step, goes_on=goes_on)
        if problem:
            self._violated(f"without a crash: {problem}", history, cuts)
        elif self.scope.has_crashes:
            # acknowledged: from now on less is allowed
            last = Recorder(life.kernel)
            last.take("the end")
            at_least, exactly = life.model.at_least, life.model.after_kill
            step = len(recorder.moments)
            self._judge_moment(
                last.moments[0], at_least, exactly, history, cuts, step, goes_on=goes_on
            )
        return not problem

    def _judge_moment(
        self,
        moment: Moment,
        cut: Expected,
        killed: Expected,
        history: str,
        cuts: tuple[str, ...],
        step: int,
        *,
        goes_on: bool,
    ) -> None:
        for place, image in enumerate(moment.images()):
            self.counts["cuts"] += 1
            more = (*cuts, f"{step}:{place}")
            self._judge(self._number(image), cut, history, more, RECOVERIES, goes_on=goes_on)
        assert moment.present is not None
        more = (*cuts, f"{step}:{KILLED}")
        self._judge(self._number(moment.present), killed, history, more, 0, goes_on=goes_on)

    # --- images --------------------------------------------------------------------------

    def _number(self, image: Image) -> int:
        """The number under which the image and its outcome stand."""
        number = self._images.add(image)
        if number == len(self._outcomes):
            self._outcomes.append(None)
        return number

    def _outcome(self, number: int) -> Outcome:
        """What opening the image shows; it is opened once."""
        outcome = self._outcomes[number]
        if outcome is None:
            self.images += 1
            outcome = self._outcomes[number] = self._open(self._images[number], number)
            if outcome.view is not None and not outcome.problem:
                outcome.problem = self._forgotten(outcome)
            outcome.afterwards = ()  # there may be millions of outcomes
        return outcome

    def _open(self, image: Image, number: int) -> Outcome:
        outcome = Outcome()
        kernel = started(image)
        recorder = Recorder(kernel, is_recovery=True)
        try:
            with recorder:
                core = Core(kernel, SEGMENT_BYTES)
            view = core.view()
            outcome.view = self._views.setdefault(view, view)
        except Exception as error:
            outcome.problem = f"{type(error).__name__}: {error}"
            if present(kernel) != image:
                outcome.problem = f"refused after a change: {outcome.problem}"
        outcome.cuts = tuple(
            (sys.intern(f"{step}:{place}"), found)
            for step, moment in enumerate(recorder.moments)
            for place, cut in enumerate(moment.images())
            if (found := self._number(cut)) != number
        )
        if outcome.view is not None:
            outcome.afterwards = tuple(map(self._number, all_images(kernel)))
            outcome.opened = self._number(present(kernel))
        return outcome

    def _forgotten(self, outcome: Outcome) -> str:
        """What an open has shown is durable."""
        view = outcome.view
        assert view is not None
        for number in outcome.afterwards:
            other = self._outcome(number).view
            if other is not None and other != view:
                mine = Model.of(view).exactly
                wrong = mine._replace(committed=frozenset((other.committed,))).problem(other)
                if wrong:
                    return f"what an open showed is forgotten: {wrong}"
        return ""

    def _judge(
        self,
        image: int,
        expected: Expected,
        history: str,
        cuts: tuple[str, ...],
        depth: int,
        *,
        goes_on: bool,
    ) -> None:
        """Holds an image, and what is left by ``depth`` cuts while it is opened, to a promise."""
        pair = image, self._expected.setdefault(expected, len(self._expected))
        reach = depth + (RECOVERIES + 1 if goes_on else 0)
        if self._judged.get(pair, -1) >= reach:
            return
        self._judged[pair] = reach
        outcome = self._outcome(image)
        problem = outcome.problem
        if not problem and outcome.view is not None:
            problem = expected.problem(outcome.view) or ""
        if problem:
            self._violated(problem, history, cuts)
        elif goes_on:
            self._go_on(outcome, history, cuts)
        if depth:
            for cut, found in outcome.cuts:
                more = (*cuts, cut)
                self._judge(found, expected, history, more, depth - 1, goes_on=goes_on)

    def _go_on(self, outcome: Outcome, history: str, cuts: tuple[str, ...]) -> None:
        """Appends to what was recovered; that must survive the next cut."""
        assert outcome.view is not None
        if outcome.opened in self._gone_on:
            return
        self._gone_on.add(outcome.opened)
        image = self._images[outcome.opened]
        model = Model.of(outcome.view, is_buffered=self.scope.is_buffered)
        life = Life(started(image), model)
        found = damage(life.kernel)
        if found:
            self._violated(f"unhealthy after recovery: {found[0]}", history, cuts)
        self._carry_out(life, "A1", history, (*cuts, "+"), goes_on=False)

    def _violated(self, message: str, history: str, cuts: tuple[str, ...]) -> None:
        kind = _kind(message)
        self.counts[f"! {kind}"] += 1
        scope = self.scope
        found = Violation(kind, message, history, cuts, scope.face, scope.is_buffered)
        self.violations.setdefault(kind, found)


def _state(life: Life) -> object:
    return life.kernel.snapshot().key(), life.core.memory(), life.model.state


def run(
    scope: Scope,
    *,
    budget_seconds: float = 1e9,
    progress: Callable[[Crashes], object] | None = None,
    stops_at_first: bool = False,
) -> Crashes:
    """The loop, until it is complete, or the time is over."""
    crashes = Crashes(scope)
    end = time.monotonic() + budget_seconds
    for _ in crashes.walk():
        if progress is not None:
            progress(crashes)
        if time.monotonic() > end or (stops_at_first and crashes.violations):
            break
    return crashes
