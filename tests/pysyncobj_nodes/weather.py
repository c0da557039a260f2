"""Rounds of bad luck for a real cluster: what was acknowledged is there, once, on every node.

``python -m tests.pysyncobj_nodes.weather --rounds 30 [--stock] [--seed N] [--kind outages]``

Three processes with dump files that come often are written to at a steady pace. Meanwhile they are
stopped and continued (SIGSTOP, SIGCONT), killed (SIGKILL), also right after a dump and all at once,
their disks hiccup for 0.6 s, and the children that write their dumps are held up. Each kind of round
has its share of that. Then the faults end, every node runs, and within a bound each must be ready
and have every acknowledged number, no number twice, and the same numbers as the others.

A round has a seed, from which its faults and their moments come; processes and disk are real, so
the same seed is the same weather, not the same run. Disks hiccup inside the nodes: in the one
environment that a WAL directory asks, and in the writing methods of pysyncobj's own journal.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.pysyncobj_nodes.cluster import Cluster

SECONDS = 40.0
#: within so many seconds after the last fault every node must be ready, and again equal. Time in
#: which this process did not run does not count.
READY_SECONDS = 60.0
HICCUP_SECONDS = 0.6

#: what happens in a round of each kind, and how often in comparison
KINDS: dict[str, dict[str, int]] = {
    "pauses": {"pause": 4, "pause_all": 1},
    "kills": {"kill": 3, "kill_at_dump": 1},
    "hiccups": {"pause": 1, "hold_dump": 1, "nothing": 2},
    "dumps": {"hold_dump": 3, "kill_at_dump": 2, "pause": 1},
    "outages": {"outage": 1},
    "everything": {"pause": 3, "kill": 2, "kill_at_dump": 1, "hold_dump": 2, "outage": 1},
}
_HICCUPING = ("hiccups", "everything")


@dataclass
class Round:
    """What one round found."""

    seed: int
    kind: str
    acknowledged: int = 0
    #: of the acknowledged, on the node that has the fewest of them
    missing: int = 0
    twice: int = 0
    #: by name
    faults: Counter[str] = field(default_factory=Counter)
    ready_seconds: float = 0.0
    #: what else is not as it should be: nodes that are not ready, or not the same
    complaints: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.missing or self.twice or self.complaints)


class Weather:
    """One round: a cluster, and what happens to it."""

    def __init__(
        self,
        folder: pathlib.Path,
        seed: int,
        kind: str,
        *,
        is_stock: bool = False,
        seconds: float = SECONDS,
    ) -> None:
        self.found = Round(seed, kind)
        self._chance = chance = random.Random(f"{seed}/{kind}")
        self._until = time.monotonic() + seconds
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._children: set[int] = set()
        options: dict[str, Any] = {
            "stock": is_stock,
            "compaction": chance.choice((100, 400) if kind == "dumps" else (100, 400, 1500)),
            "batch": chance.random() < 0.5,
            "everyone": chance.random() < 0.5,
            "pace": chance.choice((200, 500)),
        }
        self._is_hiccuping = kind in _HICCUPING
        self.cluster = Cluster(folder, **options)

    def play(self) -> Round:
        try:
            self._start(*range(self.cluster.size))
            self._rage()
            self._calm_down()
            self._judge()
        finally:
            for child in self._children:
                _signal(child, signal.SIGCONT)
            self.cluster.close()
        return self.found

    # --- nodes ---------------------------------------------------------------------------

    def _start(self, *indexes: int) -> None:
        for index in indexes:
            if index in self.cluster.processes:
                continue
            if self._is_hiccuping:
                hiccups = [str(self._chance.random()), HICCUP_SECONDS, [0.5, 4.0], self._until]
                self.cluster.options_of[index] = {"hiccups": hiccups}
            self.cluster.start(index)
            self.cluster.tell(index, "write")

    def _pick(self, *, most: int = 1) -> list[int]:
        running = sorted(self.cluster.processes)
        return self._chance.sample(running, min(self._chance.randint(1, most), len(running)))

    def _at(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), call))

    # --- faults --------------------------------------------------------------------------

    def _rage(self) -> None:
        self._at(self._chance.uniform(1.0, 2.5), self._fault)
        while self._later[0][0] < self._until:
            when, _, call = heapq.heappop(self._later)
            time.sleep(max(0.0, when - time.monotonic()))
            call()

    def _fault(self) -> None:
        kinds = KINDS[self.found.kind]
        name = self._chance.choices(list(kinds), list(kinds.values()))[0]
        getattr(self, "_" + name)()
        self._at(self._chance.uniform(0.2, 3.5), self._fault)

    def _nothing(self) -> None:
        """Only the disks hiccup."""

    def _pause(self, most: int = 2) -> None:
        for index in self._pick(most=most):
            process = self.cluster.processes[index]
            process.send_signal(signal.SIGSTOP)
            self.found.faults["paused"] += 1
            seconds = self._chance.uniform(0.1, 3.0)
            self._at(seconds, lambda process=process: process.send_signal(signal.SIGCONT))  # type: ignore[misc]

    def _pause_all(self) -> None:
        self._pause(most=self.cluster.size)

    def _kill(self) -> None:
        killed = self._pick(most=2)
        self.found.faults["killed"] += len(killed)
        if killed:
            self.cluster.kill(*killed)
        for index in killed:
            self._at(self._chance.uniform(0.0, 2.0), lambda index=index: self._start(index))  # type: ignore[misc]

    def _kill_at_dump(self) -> None:
        before = self.cluster.dump_inodes()
        deadline = time.monotonic() + 3
        while self.cluster.dump_inodes() == before and time.monotonic() < deadline:
            time.sleep(0.001)
        self.found.faults["at dump"] += self.cluster.dump_inodes() != before
        self._outage() if self._chance.random() < 0.3 else self._kill()

    def _outage(self) -> None:
        """All at once, and again, in any order: as a data centre does it."""
        processes = self.cluster.processes
        self.found.faults["outages"] += 1
        for process in processes.values():
            process.send_signal(signal.SIGCONT)
        if self._chance.random() < 0.3:
            self.cluster.end(*processes)
        elif processes:
            self.cluster.kill()
        order = self._chance.sample(range(self.cluster.size), self.cluster.size)
        when = 0.0
        for index in order:
            self._at(when, lambda index=index: self._start(index))  # type: ignore[misc]
            when += self._chance.choice((0.0, self._chance.uniform(0.0, 2.0)))

    def _hold_dump(self) -> None:
        """The child that writes a dump is stopped for a while: its dump comes late."""
        for index in self._pick(most=2):
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                if found := children(self.cluster.processes[index].pid):
                    self._children.update(found)
                    self.found.faults["dumps held"] += 1
                    for child in found:
                        _signal(child, signal.SIGSTOP)
                    self._at(self._chance.uniform(0.3, 4.0), lambda f=found: self._let_go(f))  # type: ignore[misc]
                    break
                time.sleep(0.002)

    def _let_go(self, held: list[int]) -> None:
        for child in held:
            _signal(child, signal.SIGCONT)
        self._children.difference_update(held)

    # --- the end -------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self._let_go(list(self._children))
        for index, process in list(self.cluster.processes.items()):
            if process.poll() is not None:
                self.found.complaints.append(f"node {index} ended by itself")
                self.cluster.kill(index)
            process.send_signal(signal.SIGCONT)
        self._start(*range(self.cluster.size))
        for index in self.cluster.processes:
            self.cluster.tell(index, "stop")

    def _judge(self) -> None:
        began = time.monotonic()
        answers: dict[int, dict[str, Any]] = {}
        states: dict[int, dict[str, Any]] = {}
        is_same = False
        for _ in _awake(READY_SECONDS):
            for index in sorted(self.cluster.processes):
                with contextlib.suppress(AssertionError):  # not ready, or no leader
                    if index not in answers and self.cluster.ask(index, "status")["ready"]:
                        answers[index] = self.cluster.ask(index, "check")
            for index in answers:
                with contextlib.suppress(AssertionError):
                    states[index] = self.cluster.ask(index, "state")
            is_same = len({each["digest"] for each in states.values()}) == 1
            if len(answers) == self.cluster.size and is_same:
                break
        found = self.found
        found.ready_seconds = time.monotonic() - began
        found.acknowledged = self.cluster.acknowledged()
        found.missing = max((each["missing"] for each in answers.values()), default=0)
        found.twice = max((each["twice"] for each in states.values()), default=0)
        for index in range(self.cluster.size):
            if index not in answers:
                found.complaints.append(f"node {index} is not ready")
        if not is_same:
            counts = {index: each["held"] for index, each in states.items()}
            found.complaints.append(f"the nodes differ: {counts} numbers")


def _awake(seconds: float) -> Any:
    """Goes round for so many seconds of this process's own."""
    spent = 0.0
    while spent < seconds:
        began = time.monotonic()
        yield
        time.sleep(0.1)
        spent += min(time.monotonic() - began, 1.0)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """The forked children of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # a thread ended meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            listed = pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += [int(child) for child in listed.split()]
    return found


def kind_of(seed: int) -> str:
    """Each kind of round in turn."""
    return list(KINDS)[seed % len(KINDS)]


def replay_line(found: Round, options: argparse.Namespace) -> str:
    words = [
        f"python -m tests.pysyncobj_nodes.weather --rounds 1 --seed {found.seed}",
        f"--kind {found.kind} --seconds {options.seconds:g}",
    ]
    return " ".join([*words, *(["--stock"] if options.stock else [])])


def main() -> int:
    parser = argparse.ArgumentParser(description="Rounds of bad luck for a real cluster.")
    parser.add_argument("--rounds", type=int, default=len(KINDS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of faults, each round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of round")
    parser.add_argument("--stock", action="store_true", help="pysyncobj's own journal instead")
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    options = parser.parse_args()
    first = random.randrange(10**6) if options.seed is None else options.seed
    folder = options.folder or pathlib.Path(tempfile.mkdtemp(prefix="hqlwal-weather-"))
    bad: list[Round] = []
    acknowledged = missing = 0
    for seed in range(first, first + options.rounds):
        home = folder / str(seed)
        kind = options.kind or kind_of(seed)
        found = Weather(home, seed, kind, is_stock=options.stock, seconds=options.seconds).play()
        acknowledged += found.acknowledged
        missing += found.missing
        print(
            f"{kind:10} seed {seed}: acknowledged {found.acknowledged:6,}, missing {found.missing:6,}, "
            f"twice {found.twice:,}, all well after {found.ready_seconds:4.1f} s "
            f"({', '.join(f'{count} {name}' for name, count in found.faults.items())}) "
            f"{'; '.join(found.complaints)}",
            flush=True,
        )
        if found.is_clean:
            shutil.rmtree(home, ignore_errors=True)
            continue
        bad.append(found)
        print(f"replay: {replay_line(found, options)}", flush=True)
        if not options.stock:
            print(f"kept for inspection: {home}", flush=True)
    print(
        f"{options.rounds} rounds, {acknowledged:,} commands acknowledged, {missing:,} of them "
        f"missing; {len(bad)} rounds not clean"
    )
    if not bad or (options.stock and options.folder is None):
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad and not options.stock else 0


if __name__ == "__main__":
    sys.exit(main())
