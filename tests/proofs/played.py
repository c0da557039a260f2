"""One history played once, while one call of the system fails; and what is wrong with what follows.

For ``every_call``. It must not know the engine.
"""

from __future__ import annotations

import copy
import errno
import functools
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import anyio

from hqlwal_raft import WalError, WalLockedError
from tests.torture.ledger import Ledger, View, Violation

from . import loops, threaded
from .ending import Moment, images, judge_disk, judge_moment
from .faulty import Call, Fault, FaultyEnvironment
from .histories import History
from .machine import Kernel, Machine, Spinning
from .machine import play as run_on
from .store import DIRECTORY, Player, Problem, look, opened
from .threaded import ThreadedMachine
from .turns import Deadlock

__all__ = ["Played", "calls_of", "play", "start_of", "view_of"]

AnyMachine = Machine | ThreadedMachine

_LOCK_PATH = f"{DIRECTORY}/lock.hql"


@dataclass
class _Start:
    """Where a history begins."""

    machine: AnyMachine
    ledger: Ledger
    numbers: int


@dataclass
class Played:
    """What one play came to."""

    calls: list[Call]
    #: by call: the round during which it was made
    rounds: list[str]
    problems: list[Problem]
    hit: Call | None = None
    operation: str = ""


@functools.cache
def start_of(history: History) -> _Start:
    machine: AnyMachine = ThreadedMachine() if history.is_threaded else Machine()
    player: Player | None = None

    async def main() -> None:
        nonlocal player
        async with anyio.create_task_group() as tasks:
            player = Player(machine, history.options, tasks, opened=_opener(history))
            await player.play(history.before)
            if history.is_killed:
                player.kill()
            tasks.cancel_scope.cancel()

    run_on("asyncio", machine, main)
    running, machine = machine, machine.after_kill()
    with loops.silence():
        running.drop_threads()
    assert player is not None
    assert not player.problems, player.problems
    ledger = player.ledger
    if history.damage is not None:
        machine = type(machine).of(
            history.damage(machine.contents()), page_bytes=machine.page_bytes
        )
        # what is to be kept is what is kept in peace; of the hints any that was saved
        kept = Ledger(view_of(machine.after_kill(), history, is_healing=True))
        kept._committed = [(log_id, 0) for log_id, _ in ledger._committed]
        ledger = kept
    return _Start(machine.after_kill(), ledger, next(player.numbers))


def _opener(history: History) -> Callable[..., Any]:
    return threaded.opened if history.is_threaded else opened


def view_of(machine: AnyMachine, history: History, *, is_healing: bool = False) -> View:
    views: list[View] = []

    async def main() -> None:
        async with opened(machine, auto_heal=is_healing) as store:
            views.append(await look(store))

    run_on("asyncio", machine, main)
    return views[0]


def calls_of(history: History) -> Played:
    """The calls of a history in which nothing fails; it must be without a problem."""
    played = play(history, None)
    assert not played.problems, f"{history.name}: {played.problems}"
    return played


def play(history: History, fault: Fault | None) -> Played:
    start = start_of(history)
    machine = start.machine.after_kill()
    machine.now = 1000.0
    machine.file_system, machine.is_cold = history.file_system, history.is_cold
    environment = FaultyEnvironment(machine, fault)
    environment.is_in_job = lambda: history.is_threaded or machine.jobs > 0
    played = Played(environment.calls, [], [])
    ledger = copy.deepcopy(start.ledger)
    try:
        run_on(
            history.backend,
            machine,
            lambda: _live(history, environment, machine, ledger, start, played),
        )
    except loops.DIED as died:
        played.problems.append(
            Problem("untyped", played.operation, f"the run died of {died.__cause__!r}")
        )
    except Deadlock:
        played.problems.append(Problem("hang", played.operation, "waits for ever at the end"))
    except Spinning:
        played.problems.append(Problem("hang", played.operation, "runs for ever"))
    finally:
        with loops.silence():
            machine.drop_threads()
    played.hit = environment.hit
    return played


async def _live(
    history: History,
    environment: FaultyEnvironment,
    machine: AnyMachine,
    ledger: Ledger,
    start: _Start,
    played: Played,
) -> None:
    fault = environment.fault

    def may_raise(error: BaseException) -> bool:
        if fault is None:
            return False
        if fault.interrupt is not None:
            return isinstance(error, fault.interrupt)
        return isinstance(error, OSError) and _is_of(error, fault, environment)

    def quiet(is_quiet: bool) -> None:
        environment.is_quiet = is_quiet

    async with anyio.create_task_group() as tasks:
        player = Player(
            environment,
            history.options,
            tasks,
            ledger,
            quiet,
            may_raise,
            numbers=count(start.numbers),
            opened=_opener(history),
        )
        player.problems = played.problems
        if history.before and history.damage is None:
            player.is_poisoned = history.is_killed
        before = machine.contents()
        moment: Moment | None = None
        for text in history.rounds:
            if environment.hit is None:
                played.operation = text
            if text == "open":
                await _open(player, machine, before, is_damaged=history.damage is not None)
            else:
                await player.round(text)
            if environment.hit is not None and moment is None:
                moment = Moment(images(machine), copy.deepcopy(player.ledger))
            played.rounds.extend([text] * (len(environment.calls) - len(played.rounds)))
        if player.store is not None:
            await player.round("close")
        environment.is_quiet = True
        player.judge_end()
        is_healing = bool(history.options.get("auto_heal"))
        if moment is not None:
            await judge_moment(player, moment, is_healing=is_healing)
        await judge_disk(
            player,
            machine,
            is_healing=is_healing,
            is_interrupted=bool(fault and fault.interrupt),
        )
        tasks.cancel_scope.cancel()


def _is_of(error: OSError, fault: Fault, environment: FaultyEnvironment) -> bool:
    if error.errno == fault.errno:
        return True
    # who is told that a name is not there believes it
    hit = environment.hit
    is_told = fault.errno == errno.ENOENT and hit is not None and hit.name in ("open", "stat")
    return is_told and error.errno == errno.ESTALE


async def _open(
    player: Player, machine: Kernel, before: dict[str, bytes], *, is_damaged: bool
) -> None:
    """Opens; where that fails, once more, which must succeed: the fault came once."""
    for attempt in range(2):
        await player.round("open")
        error = player.answers[-1].error
        if player.store is not None:
            try:
                await player.begin()
            except Violation as violation:
                player.problem("lost", "open", violation)
            except Exception as failure:
                player.problem("refused", "open", f"and then reading: {failure!r}")
            return
        if attempt == 1:
            player.problem("refused", "open", f"opening again: {error!r}")
        gc.collect()
        if (
            isinstance(error, WalError)
            and not isinstance(error, WalLockedError)
            and (_without_lock(machine.contents()) != _without_lock(before))
        ):
            player.problem("refused", "open", f"{error!r}, and yet the directory was changed")


def _without_lock(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path != _LOCK_PATH}
