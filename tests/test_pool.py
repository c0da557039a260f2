"""The stores of a process share a few threads, and none has to wait for another's disk."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import LogId, RaftLogStorage
from hqlwal_raft._environment import Environment
from hqlwal_raft._pool import Pool, Strand, Thread, pool_of
from hqlwal_raft._threads import Outcomes
from hqlwal_raft.blocking import BlockingRaftLogStorage
from tests._leaks import store_threads
from tests._support import PATIENCE_SECONDS, Gate, HookedEnvironment, entries, on_both_backends

# --- stores ------------------------------------------------------------------------------------


@on_both_backends
async def test_a_hundred_stores_share_ten_threads_and_each_append_is_durable(
    tmp_path: Path,
) -> None:
    before = store_threads()
    environment = Environment()
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                RaftLogStorage.open(tmp_path / str(number), environment=environment)
            )
            for number in range(100)
        ]

        async def write(store: RaftLogStorage) -> None:
            for index in range(1, 4):
                await store.append(entries(index, index + 1))
                assert store.statistics().last_durable_log_id == LogId(1, index)

        async with anyio.create_task_group() as tasks:
            for store in stores:
                tasks.start_soon(write, store)
        assert len(store_threads() - before) <= 9  # and the main thread
    for thread in store_threads() - before:
        if thread.name != "hqlwal-watchdog":
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


async def test_stores_of_one_loop_have_no_bell_each(tmp_path: Path) -> None:
    environment = Environment()

    def bells() -> int:
        found = 0
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += "eventfd" in os.readlink(f"/proc/self/fd/{number}")
        return found

    before = bells()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(40):
            await stack.enter_async_context(
                RaftLogStorage.open(tmp_path / str(number), environment=environment)
            )
        # one for the loop, one a thread
        assert bells() - before <= 1 + 4 + 3


class Hanging(HookedEnvironment):
    """The syncs of one store hang, those of the others do not."""

    def __init__(self, folder: str) -> None:
        self.gate = Gate()
        super().__init__(lambda call, path: self.gate(call, path) if folder in path else None)


@on_both_backends
async def test_of_ten_stores_on_one_hung_disk_the_others_go_on(tmp_path: Path) -> None:
    environment = Hanging("/hung/")
    names = ["hung", *map(str, range(9))]
    async with contextlib.AsyncExitStack() as stack:
        hung, *others = [
            await stack.enter_async_context(
                RaftLogStorage.open(tmp_path / name, environment=environment, stall_seconds=0.2)
            )
            for name in names
        ]
        environment.gate.shut()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hung.append, entries(1, 2))
                await environment.gate.held()
                with anyio.fail_after(PATIENCE_SECONDS):
                    for index in range(1, 20):
                        for store in others:
                            await store.append(entries(index, index + 1))
                assert hung.statistics().last_durable_log_id is None
                environment.gate.open()
        finally:
            environment.gate.open()
        assert hung.statistics().last_durable_log_id == LogId(1, 1)


async def test_as_many_hung_disks_as_there_are_threads_stop_nobody_for_longer_than_a_stall(
    tmp_path: Path,
) -> None:
    environment, before = Hanging("/hung"), store_threads()
    names = [*(f"hung{number}" for number in range(6)), "other"]
    async with contextlib.AsyncExitStack() as stack:
        *hung, other = [
            await stack.enter_async_context(
                RaftLogStorage.open(tmp_path / name, environment=environment, stall_seconds=0.2)
            )
            for name in names
        ]
        environment.gate.shut()
        try:
            async with anyio.create_task_group() as tasks:
                for store in hung:
                    tasks.start_soon(store.append, entries(1, 2))
                with anyio.fail_after(PATIENCE_SECONDS):
                    await other.append(entries(1, 2))
                    await other.append(entries(2, 3))
                there = [thread.name for thread in store_threads() - before]
                assert there.count("hqlwal-disk") <= 4 + len(hung)
                environment.gate.open()
        finally:
            environment.gate.open()
        assert [store.statistics().last_durable_log_id for store in hung] == [LogId(1, 1)] * 6


def test_blocking_stores_share_the_threads_as_well(tmp_path: Path) -> None:
    before = store_threads()
    environment = Environment()
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(
                BlockingRaftLogStorage.open(tmp_path / str(number), environment=environment)
            )
            for number in range(30)
        ]
        for store in stores:
            store.append(entries(1, 4))
        names = [thread.name for thread in store_threads() - before]
        assert names.count("hqlwal-housekeeping") <= 3


@on_both_backends
async def test_a_segment_is_prepared_while_others_unlink(tmp_path: Path) -> None:
    gate = Gate("unlink", ".wal")
    environment = HookedEnvironment(gate)
    async with contextlib.AsyncExitStack() as stack:
        *purged, other = [
            await stack.enter_async_context(
                RaftLogStorage.open(
                    tmp_path / str(number), environment=environment, segment_size=8192
                )
            )
            for number in range(6)
        ]
        for store in purged:
            await store.append(entries(1, 40, size=900))
        gate.shut()
        try:
            async with anyio.create_task_group() as tasks:
                for store in purged:
                    tasks.start_soon(store.purge, LogId(1, 30))
                await gate.held()
                with anyio.fail_after(PATIENCE_SECONDS):
                    await other.append(entries(1, 40, size=900))
                gate.open()
        finally:
            gate.open()


# --- outcomes ----------------------------------------------------------------------------------


def test_what_is_added_while_outcomes_are_applied_is_for_the_next_turn_of_the_loop() -> None:
    outcomes, applied = Outcomes(), [0]

    def again() -> None:  # as a disk does that is quicker than the loop
        applied[0] += 1
        outcomes.add(partial(again))

    outcomes.add(again)
    outcomes.add(again)
    outcomes.deliver()
    assert applied == [2]
    outcomes.deliver()
    assert applied == [4]


# --- strands -----------------------------------------------------------------------------------


class Notes(Strand):
    """A strand of plain calls."""

    def __init__(self, environment: Environment, name: str = "hqlwal-test") -> None:
        self.jobs: deque[Callable[[], Any]] = deque()
        self.mailbox = self
        self.outcomes: list[object] = []
        self.patient = False
        self.pool: Pool = pool_of(environment, name, self, has_bells=False)

    @property
    def can_wait(self) -> bool:
        return self.patient

    def do(self, job: Callable[[], Any]) -> None:
        self.jobs.append(job)
        self.pool.wake(self)

    def run(self) -> None:
        self.jobs[0]()
        self.jobs.popleft()

    def deliver(self, *, is_again: bool = False) -> None:
        pass

    def look_at_alarms(self) -> None:
        pass


def test_a_strand_is_run_by_one_thread_at_a_time_and_loses_no_job() -> None:
    environment = Environment()
    strands = [Notes(environment) for _ in range(12)]
    done: list[list[int]] = [[] for _ in strands]
    running: list[int] = [0] * len(strands)
    overlaps: list[int] = []
    ended = threading.Event()
    count = 400

    def job(place: int, number: int) -> None:
        running[place] += 1
        if running[place] > 1:
            overlaps.append(place)
        done[place].append(number)
        environment.sleep(0)
        running[place] -= 1
        if sum(map(len, done)) == count * len(strands):
            ended.set()

    def submit(places: range) -> None:
        for number in range(count):
            for place in places:
                strands[place].do(partial(job, place, number))

    senders = [
        threading.Thread(target=submit, args=(range(first, first + 4),)) for first in (0, 4, 8)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert ended.wait(PATIENCE_SECONDS)
    assert done == [list(range(count))] * len(strands)
    assert overlaps == []
    for strand in strands:
        strand.pool.leave(strand)


class Still(Environment):
    """Its threads do not run by themselves."""

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        pass


class Claims(dict[int, Thread]):
    """Something happens right after a thread has looked who runs a strand."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def setdefault(self, key: int, thread: Any, /) -> Any:
        found = super().setdefault(key, thread)
        if found is not thread:
            self._then()
        return found


def test_a_job_that_comes_while_another_thread_gives_a_strand_up_is_not_lost() -> None:
    environment = Still()
    strand, done = Notes(environment), list[int]()
    pool = strand.pool
    first, second = (Thread(pool, environment.queue()) for _ in range(2))

    def ended_and_asked_again() -> None:
        """The first thread has let the strand go, and then the owner has a job again."""
        pool.took(strand)
        strand.jobs.popleft()
        strand.runner.pop(0)
        strand.do(partial(done.append, 2))

    strand.runner = Claims(ended_and_asked_again)
    strand.do(partial(done.append, 1))
    strand.runner[0] = first
    assert second._go_on()
    assert pool.first_ready(second) is strand
    assert second._go_on()
    assert done == [2]
    pool.leave(strand)


@pytest.mark.parametrize("hanging", [1, 4, 6])
def test_a_thread_that_hangs_gives_up_its_place_and_takes_it_again(hanging: int) -> None:
    environment = Environment()
    held = [Notes(environment) for _ in range(hanging)]
    other = Notes(environment)
    gate, begun = threading.Event(), [threading.Event() for _ in held]

    def hang(event: threading.Event) -> None:
        event.set()
        assert gate.wait(PATIENCE_SECONDS)

    for strand, event in zip(held, begun, strict=True):
        strand.do(partial(hang, event))
    went = threading.Event()
    for strand, event in zip(held, begun, strict=True):
        assert event.wait(PATIENCE_SECONDS)
        strand.pool.replace(strand)
        strand.pool.replace(strand)
    other.do(went.set)
    assert went.wait(PATIENCE_SECONDS)
    assert other.pool._limit == 4 + hanging
    gate.set()
    again = [threading.Event() for _ in held]
    for strand, event in zip(held, again, strict=True):
        strand.do(event.set)
        assert event.wait(PATIENCE_SECONDS)
    assert other.pool._limit == 4
    before = [thread for thread in threading.enumerate() if thread.name == "hqlwal-test"]
    for strand in [*held, other]:
        strand.pool.leave(strand)
    for thread in before:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
