"""Every opcode is interrupted: KeyboardInterrupt or MemoryError at each instruction of ours that
runs on the thread of the loop, or on the main thread that calls the blocking face, one at a time;
then the store goes on, or says that it cannot. MemoryError, which any thread may meet, also at
each instruction that takes memory in the blocking face's other threads.

A history is run once to count the instructions, then once more for each of them that was chosen;
``interrupted`` judges. See docs/design/proofs.md.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import CodeType
from typing import NamedTuple

from . import interrupted
from .instructions import PACKAGE, Watcher, takes_memory, watching
from .interrupted import CALLS, Call, Interrupt, NoMemory, Scene

__all__ = [
    "CALLS",
    "SCENES",
    "Finding",
    "Point",
    "Scene",
    "count",
    "interrupt",
    "replay",
    "run",
    "shorten",
]

ERRORS: dict[str, type[BaseException]] = {
    "KeyboardInterrupt": Interrupt,
    "MemoryError": NoMemory,
}


class Point(NamedTuple):
    """One execution of one instruction."""

    #: counted from the beginning of the history
    step: int
    #: the call of the history during which it runs
    call: str
    where: str


SCENES = (
    Scene("asyncio", "immediate", 0),
    Scene("trio", "immediate", 0),
    Scene("asyncio", "immediate_async", 4096),
    Scene("trio", "immediate_async", 4096),
    Scene("threads", "immediate", 0),
    Scene("threads", "immediate_async", 4096),
    Scene("others", "immediate", 0),
)


@dataclass(frozen=True)
class Finding:
    """What an interrupt did that it must not do."""

    #: "wrong", "hang", "untyped", "locked"
    kind: str
    point: Point
    scene: Scene
    error: str
    what: str

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs opcode {self.scene} {self.point.step} {self.error}"

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.error} at {self.point.where} during {self.point.call} "
            f"({self.scene}, step {self.point.step}): {self.what}"
        )


#: a sample has so many times more of the blocking face, which has fewer points
_DENSER = 5

# --- the interrupts ------------------------------------------------------------------------


def _errors(scene: Scene) -> list[str]:
    """What may come there: signals' handlers raise in the main thread alone."""
    return ["MemoryError"] if scene.backend == "others" else list(ERRORS)


def _watching(scene: Scene) -> AbstractContextManager[Callable[[Watcher | None], None]]:
    return watching(others=scene.backend == "others")


class Tracer:
    """Counts the instructions of ours on the scene's threads, or raises at one of them."""

    def __init__(
        self, scene: Scene, stop_at: int | None = None, error: type[BaseException] = Interrupt
    ) -> None:
        self._scene = scene
        self.call = ""
        self.steps: list[tuple[str, CodeType, int]] = []
        self.hit: tuple[str, CodeType, int] | None = None
        self.hit_during: str | None = None
        self._stop_at = stop_at
        self._error = error
        self._count = 0
        self._watch: Callable[[Watcher | None], None] = lambda _watcher: None

    @contextlib.contextmanager
    def during(self, call: str) -> Iterator[None]:
        self.call = call
        with _watching(self._scene) as watch:
            self._watch = watch
            if self.hit is None:
                watch(self._step)
            yield

    def stop(self) -> None:
        """Where a run ended within a call."""
        self._watch(None)

    def _step(self, code: CodeType, offset: int) -> None:
        if self._stop_at is None:
            self.steps.append((self.call, code, offset))
        elif self._count == self._stop_at:
            self.hit = self.call, code, offset
            self.hit_during = self.call
            self._watch(None)
            raise self._error("at one instruction")
        self._count += 1


def _where(code: CodeType, offset: int, nth: int) -> str:
    line = next((line for start, end, line in code.co_lines() if start <= offset < end), 0)
    name = code.co_filename.removeprefix(PACKAGE)
    return f"{name}:{line} {code.co_qualname} +{offset} ({nth})"


# --- what is called from outside -----------------------------------------------------------


def count(scene: Scene, calls: Sequence[Call] = CALLS) -> list[Point]:
    """The points of a history: of each instruction, within each call, the first two executions
    and the last.
    """
    interrupted.run(scene, calls, Tracer(scene))  # what is done once in a process is done
    tracer = Tracer(scene)
    problems = interrupted.run(scene, calls, tracer)
    assert not problems, problems
    total = Counter(tracer.steps)
    seen = Counter[tuple[str, CodeType, int]]()
    points = []
    for step, key in enumerate(tracer.steps):
        seen[key] += 1
        if scene.backend == "others" and not takes_memory(*key[1:]):
            continue
        if seen[key] <= 2 or seen[key] == total[key]:
            call, code, offset = key
            points.append(Point(step, call, _where(code, offset, seen[key])))
    return points


def interrupt(
    scene: Scene, point: Point, error: str, calls: Sequence[Call] = CALLS
) -> list[Finding]:
    """Interrupts one point; what came of it that must not be."""
    tracer = Tracer(scene, point.step, ERRORS[error])
    problems = interrupted.run(scene, calls, tracer)
    assert tracer.hit is not None, f"{point} was not reached again"
    call, code, offset = tracer.hit
    where = _where(code, offset, 0).rpartition(" ")[0]
    assert (call, where) == (point.call, point.where.rpartition(" ")[0]), f"{where} is not {point}"
    return [Finding(kind, point, scene, error, what) for kind, what in problems]


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None, stride: int = 1
) -> tuple[list[Finding], Counter[str]]:
    """Interrupts every ``stride``-th point; the findings, and how many points there were."""
    with watching():  # begun and ended once: from 3.12 on that takes time
        return _run(progress, stride)


def _run(progress: Callable[[int, int], object], stride: int) -> tuple[list[Finding], Counter[str]]:
    chosen: list[tuple[Scene, Point, str]] = []
    tried = Counter[str]()
    for scene in SCENES:
        everything = [(scene, point, error) for point in count(scene) for error in _errors(scene)]
        tried["points"] += len(everything)
        chosen += everything[:: max(stride // _DENSER, 1) if scene.is_blocking else stride]
    findings: list[Finding] = []
    for done, (scene, point, error) in enumerate(chosen, 1):
        findings += interrupt(scene, point, error)
        tried["interrupts"] += 1
        tried[f"interrupts, {scene.backend}"] += 1
        tried[f"interrupts by {error}"] += 1
        if done % 100 == 0:
            gc.collect()  # what was abandoned keeps its descriptors
        progress(done, len(chosen))
    return findings, tried


def shorten(finding: Finding) -> str:
    """The shortest history, made by leaving out calls, in which the same place shows the same."""
    calls = list(CALLS)
    for call in reversed(CALLS):
        if call.name == finding.point.call:
            continue
        fewer = [each for each in calls if each is not call]
        same = [p for p in count(finding.scene, fewer) if p[1:] == finding.point[1:]]
        if any(
            found.kind == finding.kind
            for point in same
            for found in interrupt(finding.scene, point, finding.error, fewer)
        ):
            calls = fewer
    return ", ".join(["open", *(call.name for call in calls), "close"])


def replay(scene: str, step: str, error: str = "KeyboardInterrupt") -> list[Finding]:
    """One step again, as ``Finding.replay`` names it."""
    where = next(each for each in SCENES if str(each) == scene)
    point = next(each for each in count(where) if each.step == int(step))
    return interrupt(where, point, error)
