"""Every call of the operating system fails once, in every way in which it can.

A handful of histories that together cover every operation are played again and again over files in
memory; each time one call of the system fails. Then the history goes on, the store is closed, and
opened again: on what the disk shows, and on what a power cut would have left (nothing there that no
sync brought there), at the end and right after the calls during which the fault came. ``run`` plays
all of it; a failure is replayed by ``python -m tests.proofs call 'history' '17:EIO after'``. It must
not know the engine.
"""

from __future__ import annotations

import copy
import errno
import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import anyio

from hqlwal_raft import WalError, WalLockedError
from tests.torture.ledger import Ledger, View, Violation

from . import loops, threaded
from .ending import Moment, images, judge_disk, judge_moment
from .faulty import WRITES, Call, Fault, FaultyEnvironment, faults_of
from .histories import HISTORIES, THREADED, History
from .machine import Kernel, Machine, Spinning
from .machine import play as run_on
from .mutants import Mutant
from .store import DIRECTORY, Player, Problem, look, opened
from .threaded import ThreadedMachine
from .turns import Deadlock

__all__ = [
    "HISTORIES",
    "KINDS",
    "Finding",
    "History",
    "cases",
    "first_of",
    "full_disks",
    "play",
    "replay",
    "run",
    "shorten",
]

AnyMachine = Machine | ThreadedMachine

_LOCK_PATH = f"{DIRECTORY}/lock.hql"


class Finding(NamedTuple):
    """A problem, and what to do to see it again."""

    #: one of KINDS, or "new"
    kind: str
    history: str
    fault: Fault
    call: Call | None
    #: the operation during which the fault came
    operation: str
    problem: Problem

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs call {self.history!r} {str(self.fault)!r}"

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.problem}\n    {self.fault} at {self.call} during {self.operation!r}; "
            f"replay: {self.replay}"
        )


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


# --- one play ------------------------------------------------------------------------------


@functools.cache
def _start(history: History) -> _Start:
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
        kept = Ledger(_view(machine.after_kill(), history, is_healing=True))
        kept._committed = [(log_id, 0) for log_id, _ in ledger._committed]
        ledger = kept
    return _Start(machine.after_kill(), ledger, next(player.numbers))


def _opener(history: History) -> Callable[..., Any]:
    return threaded.opened if history.is_threaded else opened


def _view(machine: AnyMachine, history: History, *, is_healing: bool = False) -> View:
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
    start = _start(history)
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


# --- all of them -----------------------------------------------------------------------------

#: what went wrong once; a finding of none of these kinds is "new"
KINDS = {
    "A.2": "a directory's sync that fails after a rename is taken for 'nothing changed'",
    "B.committed": "a failed write of the committed hint neither answers nor poisons",
    "B.purge": "a purge whose unlink fails says that it failed, and is done",
    "B.internal": "an error of no system call, in a job of the disk, never poisons",
    "C.2": "an interrupt on the thread of the loop leaves memory changed half-way",
    "look": "a look at a name that failed is taken for its absence, or for another kind of file",
    "F.6": "the parent of a directory that exists is never synced, though an open that failed made it",
    "descriptor": "files stay open after a store that failed was closed",
}


def kind_of(fault: Fault, call: Call | None, problems: list[Problem]) -> str:
    """The kind that the problems of one play are of."""
    if call is None:
        return "new"
    if fault.interrupt is not None:
        return "C.2" if call.is_on_loop else "B.internal"
    if all(problem.kind == "descriptor" for problem in problems):
        return "descriptor"
    if call.name == "fsync" and DIRECTORY.startswith(call.path) and call.path != DIRECTORY:
        return "F.6"
    if call.name in ("stat", "access"):
        return "look"
    if call.name == "unlink":
        return "B.purge"
    if call.name in WRITES and call.path.endswith("/meta.hql") and call.is_on_loop:
        return "B.committed"
    if call.name == "rename" or call.path == DIRECTORY:
        return "A.2"
    return "new"


def cases(history: History) -> Iterator[Fault]:
    for number, call in enumerate(calls_of(history).calls):
        yield from faults_of(number, call)


def is_in_focus(fault: Fault, call: Call) -> bool:
    """Whether it is like something that went wrong once: samples have more of these."""
    return (
        (call.path == DIRECTORY and (call.name, fault.kind) in _FOCUS_DIRECTORY)
        or (call.path.endswith("/meta.hql") and call.is_on_loop and fault.kind == "EIO")
        or (call.path.endswith(".wal") and (call.name, fault.kind) == ("close", "ENOSPC"))
        or (call.name, fault.kind) in _FOCUS
    )


#: so many times as often as others
_FOCUS_DENSITY = 10
_FOCUS_DIRECTORY = (("open", "EMFILE"), ("close", "EIO"), ("fsync", "EIO after"))
_FOCUS = (
    ("fsync", "EDQUOT"),
    ("unlink", "EACCES"),
    ("rename", "EIO after"),
    ("stat", "ESTALE"),
    ("access", "MemoryError"),
    ("rename", "MemoryError after"),
)


def findings_of(history: History, fault: Fault) -> list[Finding]:
    played = play(history, fault)
    kind = kind_of(fault, played.hit, played.problems)
    return [
        Finding(kind, history.name, fault, played.hit, played.operation, problem)
        for problem in played.problems
    ]


def replay(name: str, fault: str) -> list[Finding]:
    """What ``Finding.replay`` calls for."""
    history = _named(name)
    number, _, kind = fault.partition(":")
    return findings_of(history, Fault(int(number), kind))


def shorten(finding: Finding) -> str:
    """The fewest rounds in which the same call failing leads to a fault of the same kind."""
    history = next(
        history for history in (*HISTORIES, *THREADED) if history.name == finding.history
    )
    # what came with the fault must stay; the others are left out, the last first
    for place in reversed(range(len(history.rounds))):
        text = history.rounds[place]
        if text in ("open", finding.operation):
            continue
        shorter = replace(history, rounds=history.rounds[:place] + history.rounds[place + 1 :])
        if _shows(shorter, finding):
            history = shorter
    return f"{' / '.join(history.rounds)} after {' / '.join(history.before) or 'nothing'}"


def _shows(history: History, finding: Finding) -> bool:
    played = play(history, None)
    return not played.problems and any(
        found.kind == finding.kind and found.problem.kind == finding.problem.kind
        for number, call in enumerate(played.calls)
        if finding.call is not None
        and call.name == finding.call.name
        and played.rounds[number : number + 1] == [finding.operation]
        for found in findings_of(history, Fault(number, finding.fault.kind))
    )


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None,
    stride: int = 1,
    histories: tuple[History, ...] = (*HISTORIES, *THREADED),
) -> tuple[list[Finding], Counter[str]]:
    """Plays every ``stride``-th case, and more of those in focus; the findings, and what was tried."""
    everything = []
    chosen, focused = [], []
    for history in histories:
        calls = calls_of(history).calls
        for fault in cases(history):
            everything.append((history, fault))
            if len(everything) % stride == 0:
                chosen.append(everything[-1])
            elif is_in_focus(fault, calls[fault.number]):
                focused.append(everything[-1])
    chosen += focused[:: max(stride // _FOCUS_DENSITY, 1)]
    tried = Counter[str]()
    findings: list[Finding] = []
    for done, (history, fault) in enumerate(chosen):
        findings += findings_of(history, fault)
        tried["plays"] += 1
        tried[fault.kind] += 1
        progress(done + 1, len(chosen))
    tried["cases"] = len(everything)
    tried["calls"] = sum(len(calls_of(history).calls) for history in histories)
    return findings, tried


def first_of(mutant: Mutant, name: str, call: str) -> Finding | None:
    """The first finding in a history where the engine has a fault, and a call fails."""
    history = _named(name)
    for number, made in enumerate(calls_of(history).calls):
        for fault in faults_of(number, made) if made.name == call else ():
            with mutant.applied():
                findings = findings_of(history, fault)
            if findings:
                return findings[0]
    return None


def _named(name: str) -> History:
    return next(history for history in (*HISTORIES, *THREADED) if history.name == name)


def full_disks() -> list[Problem]:
    """Opens every directory that a history leaves on a disk without a free inode, or block."""
    problems: list[Problem] = []
    for history in HISTORIES:
        if history.damage is not None or not history.before:
            continue
        start = _start(history)
        for what in ("inodes", "bytes"):
            machine = start.machine.after_kill()
            if what == "inodes":
                machine.capacity_inodes = machine.inodes
            else:
                machine.capacity_bytes = 0
            try:
                _view(machine, history)
            except Exception as error:
                story = f"no free {what}: {history.name}"
                problems.append(Problem("full", story, repr(error)))
    return problems
