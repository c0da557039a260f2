"""The pool's threads and two owners, moved line by line in many orders: no job is lost, done twice,
or done beside another of its strand.

What they share has no lock, so any line may come between any two of another thread.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hqlwal_raft import _pool
from hqlwal_raft._environment import Environment
from hqlwal_raft._pool import Pool, Strand, Thread, pool_of
from tests.proofs.turns import SteppedThread, Turns, here

#: orders that are tried of each history
SEEDS = 100


class SteppedLock:
    """A lock for stepped threads: who finds it taken stops until it is free."""

    def __init__(self) -> None:
        self._holder: object = None

    @property
    def items(self) -> list[bool]:
        return [] if self._holder else [True]

    def __enter__(self) -> None:
        thread = here()
        while self._holder is not None:
            assert thread is not None
            thread.waits_for = self
            thread.stop_at("lock")
            thread.waits_for = None
        self._holder = thread or self

    def __exit__(self, *_: object) -> None:
        self._holder = None


def _trace(frame: Any, event: str, _argument: Any) -> Any:
    if frame.f_code.co_filename not in (_pool.__file__, __file__):
        return None
    thread = here()
    if event == "line" and thread is not None and frame.f_code.co_filename == _pool.__file__:
        thread.stop_at("line")
    return _trace


def _traced(run: Callable[[], None]) -> None:
    sys.settrace(_trace)
    try:
        run()
    finally:
        sys.settrace(None)


class Lines(Turns):
    """Threads stop at each line of the pool's."""

    def __init__(self) -> None:
        super().__init__()
        self.chooser = lambda things: things[0]  # they move when they are told alone

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        self.threads.append(SteppedThread(name, partial(_traced, run)))

    def lock(self) -> Any:
        return SteppedLock()


class Jobs(Strand):
    """A strand that notes what was done, and by how many at once."""

    def __init__(self, environment: Environment, *, can_wait: bool = False) -> None:
        self.jobs: deque[int] = deque()
        self.mailbox = self
        self.outcomes: list[int] = []
        self.done: list[int] = []
        self.running = self.most = 0
        self._can_wait = can_wait
        self.pool: Pool = pool_of(environment, "hqlwal-lines", self, has_bells=False)

    @property
    def can_wait(self) -> bool:
        return self._can_wait

    def ask(self, count: int) -> None:
        for job in range(count):
            self.jobs.append(job)
            self.pool.wake(self)

    def run(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        thread = here()
        if thread is not None:
            thread.stop_at("job")
        self.done.append(self.jobs.popleft())
        self.running -= 1

    def deliver(self, *, is_again: bool = False) -> None:
        pass

    def look_at_alarms(self) -> None:
        pass


def play(seed: int, asked: list[tuple[int, bool]]) -> None:
    """Owners ask each for so many jobs of a strand of their own, some of them patient."""
    lines, rng = Lines(), random.Random(seed)
    share = rng.choice((0.02, 0.1, 0.5))
    strands = [Jobs(lines, can_wait=can_wait) for _, can_wait in asked]
    for strand, (count, _) in zip(strands, asked, strict=True):
        lines.start_thread(partial(strand.ask, count), "owner")
    try:
        last: SteppedThread | None = None
        for _ in range(20_000):
            runnable = lines.runnable()
            if not runnable:
                break
            # Mostly the same one: what is rare is that one stands still while others do a lot.
            if last not in runnable or rng.random() < share:
                last = rng.choice(runnable)
            last.go()
        else:
            raise AssertionError(f"seed {seed}: it does not come to rest")
        for strand, (count, _) in zip(strands, asked, strict=True):
            assert strand.done == list(range(count)), f"seed {seed}: {strand.done}, {strand.jobs}"
            assert strand.most == 1, f"seed {seed}"
            assert not strand.runner, f"seed {seed}"
    finally:
        lines.drop_threads()


@pytest.mark.parametrize(
    "asked",
    [
        [(3, False)],
        [(2, False), (2, False)],
        [(2, False), (1, True), (1, True)],
        [(1, False)] * 6,
    ],
    ids=["one", "two", "patient", "more than threads"],
)
def test_in_no_order_of_lines_a_job_is_lost_or_done_beside_another(
    asked: list[tuple[int, bool]],
) -> None:
    for seed in range(SEEDS):
        play(seed, asked)


def test_the_orders_find_a_call_that_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mend taken out: who gives a strand up does not look whether it was let go."""
    wake = Pool.wake

    def wake_unless_given_up(self: Pool, strand: Strand) -> None:
        if sys._getframe(1).f_code is not Thread._go_on.__code__:
            wake(self, strand)

    monkeypatch.setattr(Pool, "wake", wake_unless_given_up)
    with pytest.raises(AssertionError, match="seed"):
        for seed in range(20 * SEEDS):
            play(seed, [(2, False)] * 4)
