"""Every call of the operating system fails once, in every way in which it can.

A handful of histories that together cover every operation are played again and again over files in
memory; each time one call of the system fails. Then the history goes on, the store is closed, and
opened again: on what the disk shows, and on what a power cut would have left (nothing there that no
sync brought there). ``run`` plays all of it; a failure is replayed by
``python -m tests.proofs call 'history' '17:EIO after'``. It must not know the engine.
"""

from __future__ import annotations

import copy
import errno
import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import anyio

from hqlwal_raft import WalError, WalLockedError
from hqlwal_raft.testing._kernel import Image
from tests.torture.ledger import Ledger, View, Violation

from .faulty import Call, Fault, FaultyEnvironment, faults_of
from .machine import Machine, Spinning, oldest
from .machine import play as run_on
from .store import DIRECTORY, Player, Problem, look, opened
from .turns import Deadlock

__all__ = [
    "HISTORIES",
    "Finding",
    "History",
    "calls_of",
    "cases",
    "full_disks",
    "judge_disk",
    "play",
    "run",
]

_LOCK_PATH = f"{DIRECTORY}/lock.hql"


@dataclass(frozen=True, eq=False)
class History:
    """What is played: first ``before`` in peace, then ``rounds``, in which calls fail."""

    name: str
    rounds: tuple[str, ...]
    before: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    #: whether the process is killed after ``before``
    is_killed: bool = False
    #: has the closed files damaged
    damage: Callable[[dict[str, bytes]], dict[str, bytes]] | None = None


def _flip_last_record(files: dict[str, bytes]) -> dict[str, bytes]:
    """One bit of the last segment's records, all of which were durable."""
    path = max(path for path in files if path.endswith(".wal") and b"7.xxx" in files[path])
    data = bytearray(files[path])
    data[data.rindex(b"7.xxx") + 9] ^= 1
    return {**files, path: bytes(data)}


_FILL = ("open", "append 2000*3", "append 2000*3", "append 2000*2", "vote", "committed", "close")

HISTORIES = (
    History(
        "fresh directory, roll-over, batches, an oversized entry",
        (
            "open",
            "append 300",
            "append 1500*3",
            "vote | committed | append 300",
            "append 3000 | append! 3000 | append 3000",
            "append 1000*12",
            "append 20000",
            "append 300*2",
            "read",
            "close",
        ),
    ),
    History(
        "cuts: inside, at, across segments, everything",
        (
            "open",
            "append 300",
            "truncate 2",
            "append 500*2",
            "truncate 4",
            "append 2000",
            "append 20000",
            "truncate 1",
            "append 2000*3 | vote",
            "after 5",
            "append 2000*4 | truncate 1 | append 300",
            "after none",
            "append 300",
            "close",
        ),
        before=_FILL,
    ),
    History(
        "purges: inside, at, beyond, everything",
        (
            "open",
            "purge 1",
            "append 2000*3",
            "purge 2 | append 2000",
            "purge 3",
            "append 2000*2 | purge 4",
            "purge all",
            "append 2000*4",
            "purge +5",
            "append 300 | committed | vote",
            "read",
            "close",
        ),
        before=_FILL,
    ),
    History(
        "an existing directory: vote, committed, flush, cold and cached reads",
        (
            "open",
            "read",
            "limited 2500",
            "stream",
            "leader",
            "keys",
            "reader",
            "vote | vote | committed | append! 300 | committed",
            "flush",
            "read | append 300 | state",
            "committed",
            "close",
            "open",
            "read",
            "close",
        ),
        before=_FILL,
        options={"cache_bytes": 4096},
    ),
    History(
        "immediate_async",
        (
            "open",
            "append 300",
            "append! 300 | append 2000*3",
            "append 9000",
            "flush",
            "append 300 | vote | committed",
            "truncate 2",
            "append 300*3 | purge 2",
            "append 300",
            "close",
        ),
        options={"sync": "immediate_async"},
    ),
    History(
        "interval",
        (
            "open",
            "append 300",
            "append! 300 | append 2000*3",
            "append 9000 | flush",
            "append! 300",
            "truncate 1",
            "append 300",
            "close",
        ),
        before=_FILL,
        options={"sync": "interval_20"},
    ),
    History(
        "opened after a kill",
        ("open", "read", "append 2000*2", "vote", "close"),
        before=(
            *("open", "append 2000*3", "vote", "append 2000*5", "purge 2", "committed"),
            *("truncate 3", "append! 3000*2"),
        ),
        options={"sync": "immediate_async"},
        is_killed=True,
    ),
    History(
        "healing of a damaged directory",
        ("open", "append 2000*2", "read", "close"),
        before=_FILL,
        options={"auto_heal": True},
        damage=_flip_last_record,
    ),
)


class Finding(NamedTuple):
    """A problem, and what to do to see it again."""

    history: str
    fault: Fault | None
    call: Call | None
    #: the operation during which the fault came
    operation: str
    problem: Problem

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs call {self.history!r} {str(self.fault)!r}"

    def __str__(self) -> str:
        return (
            f"{self.problem}\n    {self.fault} at {self.call} during {self.operation!r}; "
            f"replay: {self.replay}"
        )


@dataclass
class _Start:
    """Where a history begins."""

    machine: Machine
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
    machine = Machine()
    player: Player | None = None

    async def main() -> None:
        nonlocal player
        async with anyio.create_task_group() as tasks:
            player = Player(machine, history.options, tasks)
            await player.play(history.before)
            tasks.cancel_scope.cancel()

    run_on("asyncio", machine, main)
    assert player is not None
    assert not player.problems, player.problems
    ledger = player.ledger
    if history.damage is not None:
        machine = Machine.of(history.damage(machine.contents()), page_bytes=machine.page_bytes)
        # what is to be kept is what is kept in peace; of the hints any that was saved
        kept = Ledger(_view(machine.after_kill(), history, is_healing=True))
        kept._committed = [(log_id, 0) for log_id, _ in ledger._committed]
        ledger = kept
    return _Start(machine.after_kill(), ledger, next(player.numbers))


def _view(machine: Machine, history: History, *, is_healing: bool = False) -> View:
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
    environment = FaultyEnvironment(machine, fault)
    environment.is_in_job = lambda: machine.jobs > 0
    played = Played(environment.calls, [], [])
    ledger = copy.deepcopy(start.ledger)
    try:
        run_on(
            "asyncio", machine, lambda: _live(history, environment, machine, ledger, start, played)
        )
    except Deadlock:
        played.problems.append(Problem("hang", played.operation, "waits for ever at the end"))
    except Spinning:
        played.problems.append(Problem("hang", played.operation, "runs for ever"))
    played.hit = environment.hit
    return played


async def _live(
    history: History,
    environment: FaultyEnvironment,
    machine: Machine,
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
        )
        player.problems = played.problems
        if history.before and history.damage is None:
            player.is_poisoned = history.is_killed
        before = machine.contents()
        for text in history.rounds:
            if environment.hit is None:
                played.operation = text
            if text == "open":
                await _open(player, machine, before, is_damaged=history.damage is not None)
            else:
                await player.round(text)
            played.rounds.extend([text] * (len(environment.calls) - len(played.rounds)))
        if player.store is not None:
            await player.round("close")
        environment.is_quiet = True
        player.judge_end()
        await judge_disk(
            player,
            machine,
            is_healing=bool(history.options.get("auto_heal")),
            is_interrupted=bool(fault and fault.interrupt),
        )
        tasks.cancel_scope.cancel()


def _is_of(error: OSError, fault: Fault, environment: FaultyEnvironment) -> bool:
    if error.errno == fault.errno:
        return True
    # access() says no more than no
    return fault.kind == "False" and error.errno in (errno.ENOENT, errno.ESTALE)


async def _open(
    player: Player, machine: Machine, before: dict[str, bytes], *, is_damaged: bool
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


async def judge_disk(
    player: Player, machine: Machine, *, is_healing: bool = False, is_interrupted: bool = False
) -> None:
    """What is there at the end: descriptors, the lock, the log."""
    player.store = None
    if machine.open_descriptors:
        gc.collect()
    # an interrupt between a call and the note of its result loses a descriptor: nobody can help it
    if machine.open_descriptors and not is_interrupted:
        player.problem("descriptor", "the end", f"left open: {machine.open_descriptors}")
    ledger = player.ledger
    is_exact = player.is_closed_cleanly and not player.has_unknown
    images = _images(machine)
    if is_interrupted:
        machine = machine.after_kill()
    view = await _reopen(player, machine, "opened again", is_healing=is_healing)
    if view is not None:
        _hold(player, ledger, view, "opened again", is_exact=is_exact)
    for story, image in images:
        view = await _reopen(player, Machine.of(image), story, is_healing=is_healing)
        if view is not None:
            _hold(player, ledger, view, story, is_power_lost=True)


def _hold(
    player: Player,
    ledger: Ledger,
    view: View,
    story: str,
    *,
    is_exact: bool = False,
    is_power_lost: bool = False,
) -> None:
    try:
        # of a store that was poisoned only what was durable is promised
        ledger.judge(view, is_power_lost=is_power_lost or player.is_poisoned)
        if is_exact:
            ledger.judge_closed(view)
    except Violation as violation:
        player.problem("lost", story, violation)


def _images(machine: Machine) -> list[tuple[str, Image]]:
    """What a power cut leaves, where that is anything else than what the disk shows."""
    shown = machine.image()
    snapshot = machine.snapshot()
    images: list[tuple[str, Image]] = []
    for story, has_new_names in (("power cut", False), ("power cut, names kept", True)):
        image = oldest(snapshot, has_new_names=has_new_names)
        if image != shown and all(image != other for _, other in images):
            images.append((story, image))
    return images


async def _reopen(player: Player, machine: Machine, story: str, *, is_healing: bool) -> View | None:
    """What a store shows there; it must open, and take one more entry."""
    try:
        async with opened(machine, auto_heal=is_healing) as store:
            view = await look(store)
            ledger = player.ledger.after(view)
            follower = Player(machine, {}, player.tasks, ledger, numbers=player.numbers)
            follower.store = store
            await follower.round("append 300")
            await follower.round("read")
    except WalLockedError as error:
        player.problem("lock", story, repr(error))
        return None
    except Exception as error:
        player.problem("refused", story, repr(error))
        return None
    for problem in follower.problems:
        player.problem(problem.kind, f"{story}, then {problem.where}", problem.what)
    return view


# --- all of them -----------------------------------------------------------------------------


def cases(history: History) -> Iterator[Fault]:
    for number, call in enumerate(calls_of(history).calls):
        yield from faults_of(number, call)


def findings_of(history: History, fault: Fault) -> list[Finding]:
    played = play(history, fault)
    return [
        Finding(history.name, fault, played.hit, played.operation, problem)
        for problem in played.problems
    ]


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None, stride: int = 1
) -> tuple[list[Finding], Counter[str]]:
    """Plays every ``stride``-th case; the findings, and how many cases of what kind there were."""
    everything = [(history, fault) for history in HISTORIES for fault in cases(history)]
    chosen = everything[::stride]
    tried = Counter[str]()
    findings: list[Finding] = []
    for done, (history, fault) in enumerate(chosen):
        found = findings_of(history, fault)
        findings += found
        tried["plays"] += 1
        tried[history.name] += 1
        tried[fault.kind] += 1
        progress(done + 1, len(chosen))
    tried["cases"] = len(everything)
    tried["calls"] = sum(len(calls_of(history).calls) for history in HISTORIES)
    return findings, tried


def full_disks() -> list[Problem]:
    """Opens every directory that a history leaves on a disk without a free inode, or block."""
    problems: list[Problem] = []
    for history in HISTORIES:
        if history.damage is not None:
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
