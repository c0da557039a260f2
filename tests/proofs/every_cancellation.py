"""Every call is cancelled at every step of its wait; then the store goes on.

Each public method is called, alone and among others, and cancelled after n steps of the event loop,
for every n until it returns first: by a cancel scope under asyncio and under trio, and by
``task.cancel()`` under asyncio. Jobs of the store's threads are done at once, or some steps later,
so that cancellations come before, while, and after them. A cancelled write is not taken back: when
all is quiet it is in the log like any other, and its callback was called once. ``run`` plays all; a
failure is replayed by the line that it prints. It must not know the engine.
"""

from __future__ import annotations

import asyncio
import copy
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel

from tests.torture.ledger import Ledger

from . import loops
from .ending import judge_disk
from .machine import Machine, Spinning
from .machine import play as run_on
from .store import Player, Problem, WasCancelled
from .turns import Deadlock

__all__ = ["KINDS", "MANNERS", "SCENES", "Finding", "Scene", "cancel", "replay", "run", "steps_of"]

#: more steps than any call takes
_MOST_STEPS = 400

#: how a call is cancelled: the event loop, and by what
MANNERS = ("asyncio scope", "asyncio task", "trio scope")

_WRITES = (
    *("append 300", "append! 300", "append 2000*9", "append! 2000*9", "append 20000"),
    *("receive 0 300", "receive 2 2000*9", "receive 5", "receive all 300*2", "mend"),
    *("truncate 2", "truncate 7", "truncate all", "after 2", "after none"),
    *("purge 1", "purge 6", "purge +3", "vote", "committed", "flush"),
)
_READS = ("read", "limited 2500", "stream", "leader", "keys", "state", "reader")
_CLOSES = ("aclose", "close")

_FILL = ("open", "append 2000*3", "append 2000*3", "append 2000*2", "vote", "close")


#: what went wrong once
KINDS = {"D.4": "a cancelled open leaves the lock to its thread, and the next open is refused"}


class Scene(NamedTuple):
    """A call, and what happens around it."""

    target: str
    #: the round in which it is called; the target is written as *
    around: str
    policy: str
    cache_bytes: int
    manner: str
    #: steps of the loop that a job of the store's threads waits
    delay: int

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Scene:
        target, around, policy, cache_bytes, manner, delay = text.split("/")
        return cls(target, around, policy, int(cache_bytes), manner, int(delay))


def _scenes() -> Iterator[Scene]:
    for manner in MANNERS:
        for delay in (0, 3):
            for policy in ("immediate", "immediate_async", "interval_20"):
                for target in _WRITES:
                    yield Scene(target, "*", policy, 0, manner, delay)
                    yield Scene(target, "append 300 | * | vote", policy, 0, manner, delay)
                    yield Scene(target, "vote | * | append! 300", policy, 0, manner, delay)
                for target in _CLOSES:
                    yield Scene(target, "*", policy, 0, manner, delay)
                    yield Scene(target, "append 300 | vote | *", policy, 0, manner, delay)
            for target in _READS:
                for cache_bytes in (0, 1 << 20):
                    yield Scene(target, "*", "immediate", cache_bytes, manner, delay)
                    around = "append 300 | * | purge 2"
                    yield Scene(target, around, "immediate", cache_bytes, manner, delay)
            # a slow disk, too: the next open comes while the thread of the first is at work
            for slow in (delay, delay + 12):
                yield Scene("open", "*", "immediate", 0, manner, slow)


SCENES = tuple(_scenes())


class Finding(NamedTuple):
    """A problem, and how to see it again."""

    scene: Scene
    step: int
    problem: Problem

    @property
    def kind(self) -> str:
        """One of KINDS, or "new"."""
        is_locked = self.scene.target == "open" and "WalLockedError" in self.problem.what
        return "D.4" if is_locked else "new"

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs cancellation {str(self.scene)!r} {self.step}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.problem}\n    cancelled after step {self.step}; replay: {self.replay}"


class _Canceller:
    """Cancels one call after so many steps of the loop."""

    def __init__(self, scene: Scene, step: int, tasks: anyio.abc.TaskGroup) -> None:
        self._scene = scene
        self._step = step
        self._tasks = tasks
        self.has_cancelled = False

    async def _count(self, cancel: Callable[[], Any]) -> None:
        for _ in range(self._step):
            await anyio.lowlevel.checkpoint()
        if not self._is_over:
            self.has_cancelled = True
            cancel()

    async def wrap(self, operation: str, call: Awaitable[Any]) -> Any:
        if operation != self._scene.target or self.has_cancelled:
            return await call
        self._is_over = False
        by_task = self._scene.manner == "asyncio task"
        try:
            return await (self._in_task(call) if by_task else self._in_scope(call))
        finally:
            self._is_over = True

    async def _in_scope(self, call: Awaitable[Any]) -> Any:
        with anyio.CancelScope() as scope:
            self._tasks.start_soon(self._count, scope.cancel, name="canceller")
            return await call
        raise WasCancelled

    async def _in_task(self, call: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.start_soon(self._count, task.cancel, name="canceller")
        try:
            return await call
        except asyncio.CancelledError:
            if not self.has_cancelled:
                raise
            task.uncancel()
            raise WasCancelled from None


@functools.cache
def _start() -> tuple[Machine, Ledger]:
    """A closed log of some segments."""
    machine = Machine()
    ledger = Ledger()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            player = Player(machine, {}, tasks, ledger)
            await player.play(_FILL)
            assert not player.problems, player.problems
            tasks.cancel_scope.cancel()

    run_on("asyncio", machine, main)
    return machine, ledger


def cancel(scene: Scene, step: int) -> tuple[list[Problem], bool]:
    """Plays a scene; the problems, and whether the call was still waiting at that step."""
    closed, ledger = _start()
    machine = closed.after_kill()
    machine.delay = scene.delay
    problems: list[Problem] = []
    has_cancelled = False

    async def main() -> None:
        nonlocal has_cancelled
        async with anyio.create_task_group() as tasks:
            canceller = _Canceller(scene, step, tasks)
            player = Player(
                machine,
                {"sync": scene.policy, "cache_bytes": scene.cache_bytes},
                tasks,
                copy.deepcopy(ledger),
                numbers=count(1000),
                may_raise=lambda error: isinstance(error, WasCancelled),
            )
            player.problems = problems
            await _live(player, scene, canceller)
            has_cancelled = canceller.has_cancelled
            machine.delay = 0
            await judge_disk(player, machine)
            tasks.cancel_scope.cancel()

    try:
        run_on(scene.manner.split()[0], machine, main)
    except Deadlock:
        problems.append(Problem("hang", scene.target, "somebody waits for ever at the end"))
        has_cancelled = True
    except Spinning:
        problems.append(Problem("hang", scene.target, "runs for ever"))
    except loops.DIED as died:
        problems.append(Problem("untyped", scene.target, f"the run died of {died.__cause__!r}"))
    return problems, has_cancelled


async def _live(player: Player, scene: Scene, canceller: _Canceller) -> None:
    if scene.target == "open":
        player.wrap = canceller.wrap
    await player.round("open")
    if player.store is None and isinstance(player.answers[-1].error, WasCancelled):
        await player.round("open")  # at once: nothing of the one before may be left
    if player.store is None:
        player.problem("lock", "open", f"opening again: {player.answers[-1].error!r}")
        await anyio.sleep(1)
        await player.round("open")
        assert player.store is not None
    await player.begin()
    if scene.target != "open":
        if scene.target in _READS and not scene.cache_bytes:
            await player.play(("close", "open"))  # who looked at everything has warmed it
            player.environment.is_cold = True  # type: ignore[attr-defined]
        await player.round("append! 300")
        player.wrap = canceller.wrap
        await player.round(scene.around.replace("*", scene.target))
    if scene.target in ("close", "aclose"):
        player.wrap = lambda _operation, call: call
        await player.round("aclose")
    else:
        for text in ("append 300", "vote | append 300", "flush", "read"):
            await player.round(text)
    if player.store is not None:
        await player.round("close")
    player.judge_end()


def steps_of(scene: Scene) -> int:
    """After how many steps the call returns first."""
    step = 0
    while step < _MOST_STEPS and cancel(scene, step)[1]:
        step += 1
    return step


def replay(scene: str, step: str | int) -> list[Finding]:
    """What ``Finding.replay`` calls for."""
    parsed = Scene.parse(scene)
    return [Finding(parsed, int(step), problem) for problem in cancel(parsed, int(step))[0]]


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None, stride: int = 1
) -> tuple[list[Finding], Counter[str]]:
    """Plays every ``stride``-th scene and all openings, cancelled at each step of the call."""
    chosen = [s for n, s in enumerate(SCENES) if n % stride == 0 or s.target == "open"]
    tried = Counter[str]()
    findings: list[Finding] = []
    for done, scene in enumerate(chosen):
        for step in range(_MOST_STEPS):
            problems, has_cancelled = cancel(scene, step)
            findings += [Finding(scene, step, problem) for problem in problems]
            tried["plays"] += 1
            tried[scene.manner] += 1
            if not has_cancelled:
                break
            tried["cancellations"] += 1
        progress(done + 1, len(chosen))
    tried["scenes"] = len(SCENES)
    return findings, tried
