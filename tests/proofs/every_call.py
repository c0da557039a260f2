"""Every call of the operating system fails once, in every way in which it can.

A handful of histories that together cover every operation are played again and again over files in
memory; each time one call of the system fails. Then the history goes on, the store is closed, and
opened again: on what the disk shows, and on what a power cut would have left (nothing there that no
sync brought there), at the end and right after the calls during which the fault came. ``run`` plays
all of it; a failure is replayed by ``python -m tests.proofs call 'history' '17:EIO after'``. It must
not know the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from .faulty import WRITES, Call, Fault, faults_of
from .histories import HISTORIES, THREADED, History
from .mutants import Mutant
from .played import calls_of, play, start_of, view_of
from .store import DIRECTORY, Problem

__all__ = [
    "HISTORIES",
    "KINDS",
    "Finding",
    "History",
    "calls_of",
    "cases",
    "first_of",
    "full_disks",
    "play",
    "replay",
    "run",
    "shorten",
]


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
        start = start_of(history)
        for what in ("inodes", "bytes"):
            machine = start.machine.after_kill()
            if what == "inodes":
                machine.capacity_inodes = machine.inodes
            else:
                machine.capacity_bytes = 0
            try:
                view_of(machine, history)
            except Exception as error:
                story = f"no free {what}: {history.name}"
                problems.append(Problem("full", story, repr(error)))
    return problems
