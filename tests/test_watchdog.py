"""A disk that does not answer is noticed while it does not: by the log, by ``on_stall``, by
``statistics()``. The tests look when they say so, at a clock that stands still.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from hqlwal_raft import LogId, RaftLogStorage
from hqlwal_raft._environment import Environment
from hqlwal_raft._watchdog import Watch, Watchdog
from hqlwal_raft.blocking import BlockingRaftLogStorage
from tests._leaks import Holdings, store_threads
from tests._loops import on_each_loop, run_on
from tests._support import PATIENCE_SECONDS, ColdEnvironment, Gate, StandingClock, entries

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Watched(ColdEnvironment):
    """Time stands still; the watchdog looks when a test has it look."""

    def __init__(self, *hooks: Any) -> None:
        self.clock = StandingClock()
        super().__init__(*hooks, environment=self.clock)
        self.watchdog = Watchdog(Environment(), has_thread=False)

    def look_after(self, watch: Watch) -> None:
        self.watchdog.watch(watch)

    def after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.watchdog.look()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def stalled(path: Path, name: str, seconds: float) -> str:
    return (
        f"{path}: the disk does not answer: {name!r} has taken {seconds:.1f} s so far. Look at "
        "the disk and at the kernel's log; abandon() lets go without waiting for it"
    )


async def settled(store: RaftLogStorage) -> None:
    """Waits until housekeeping is done: the clock jumps, and what is under way would stall."""
    core = store._core
    await ready(lambda: core.committer.watch.chore is None and bool(core.log.prepared))


async def ready(condition: Callable[[], bool]) -> None:
    """Waits until the loop has heard of it."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await anyio.lowlevel.checkpoint()


@on_each_loop
def test_a_sync_that_hangs_is_said_as_it_lasts_and_when_it_ends(
    tmp_path: Path, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    environment = Watched(gate)
    found: list[tuple[float, bool]] = []
    ident = threading.get_ident()

    def on_stall(seconds: float) -> None:
        found.append((seconds, threading.get_ident() == ident))

    async def main() -> None:
        async with RaftLogStorage.open(
            tmp_path, environment=environment, on_stall=on_stall, segment_size=8192
        ) as store:
            await store.append(entries(1, 4))
            await settled(store)
            gate.shut()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.append, entries(4, 5))
                await gate.held()
                caplog.clear()
                environment.after(0.9)
                assert warnings_of(caplog) == []
                assert store.statistics().under_way_seconds == pytest.approx(0.9)
                assert store.statistics().stalls == 0
                for seconds in (0.1, 0.5, 0.5, 1.9, 0.1, 3.9, 0.1):  # 1, 1.5, 2, 3.9, 4, 7.9, 8
                    environment.after(seconds)
                assert warnings_of(caplog) == [
                    stalled(tmp_path, "commit", seconds) for seconds in (1, 2, 4, 8)
                ]
                await ready(lambda: len(found) == 4)
                assert [seconds for seconds, _ in found] == pytest.approx([1, 2, 4, 8])
                assert all(is_on_loop for _, is_on_loop in found)
                during = store.statistics()
                assert during.under_way_seconds == pytest.approx(8)
                assert during.stalls == 1
                assert during.stall_max_seconds == pytest.approx(8)
                gate.open()
            caplog.clear()
            environment.after(0.5)
            assert warnings_of(caplog) == [
                f"{tmp_path}: the disk answers again: 'commit' took 8.5 s"
            ]
            after = store.statistics()
            assert after.stalls == 1
            assert after.stall_max_seconds == pytest.approx(8.5)

    run_on(loop, main)


STEPS: dict[str, tuple[Gate, Callable[[RaftLogStorage], Any]]] = {
    "save vote": (Gate("fdatasync", "meta.hql"), lambda store: store.purge(LogId(1, 1))),
    "prepare": (Gate("posix_fallocate", ".tmp"), lambda store: store.append(entries(4, 9, 4000))),
    "truncate": (Gate("fdatasync"), lambda store: store.truncate(LogId(1, 3))),
    "read": (Gate("pread"), lambda store: store.try_get_log_entries(1, 3)),
}
STEPS["purge"] = STEPS.pop("save vote")


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_disk_step_is_looked_at(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate, call = STEPS[name]
    environment = Watched(gate)

    async def main() -> None:
        async with RaftLogStorage.open(
            tmp_path, environment=environment, segment_size=8192, cache_bytes=0
        ) as store:
            await store.append(entries(1, 4))
            gate.shut()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, store)
                await gate.held()
                environment.after(3)
                gate.open()
            assert stalled(tmp_path, name, 3) in warnings_of(caplog)

    anyio.run(main)


def test_an_opening_that_hangs_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate("listdir", "log")
    environment = Watched(gate)

    async def main() -> None:
        gate.shut()

        async def use() -> None:
            async with RaftLogStorage.open(tmp_path / "log", environment=environment):
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await gate.held()
            environment.after(2)
            gate.open()

    anyio.run(main)
    assert warnings_of(caplog) == [stalled(tmp_path / "log", "open", 2)]


def test_a_loop_that_is_busy_is_no_stalled_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = Watched()

    async def main() -> None:
        async with RaftLogStorage.open(
            tmp_path, environment=environment, segment_size=8192
        ) as store:
            await store.append(entries(1, 2))
            await settled(store)
            before = store.statistics().syncs
            await store.append(entries(2, 3), lambda _error: None)
            watch = store._core.committer.watch
            for _ in range(100_000):  # the loop does nothing else, and hears of nothing
                if watch.lane is None:
                    break
                threading.Event().wait(0.001)
            environment.after(100)
            assert store.statistics().syncs == before
            assert warnings_of(caplog) == []

    anyio.run(main)


@pytest.mark.parametrize("is_main", [True, False])
def test_the_blocking_store_calls_on_stall_in_a_thread_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_main: bool
) -> None:
    gate = Gate()
    environment = Watched(gate)
    found: list[Any] = []
    has_called = threading.Event()

    def on_stall(seconds: float) -> None:
        found.append((seconds, threading.current_thread().name))
        store.statistics()  # it may call the store
        has_called.set()

    store = BlockingRaftLogStorage.open(
        tmp_path,
        environment=environment,
        segment_size=8192,
        stall_seconds=0.5,
        on_stall=on_stall,
    )

    def use() -> None:
        store.append(entries(1, 4))
        core = store._core
        while core.committer.watch.chore is not None or not core.log.prepared:
            threading.Event().wait(0.001)
        gate.shut()
        appending = threading.Thread(target=store.append, args=(entries(4, 5),))
        appending.start()
        anyio.run(gate.held)
        environment.after(0.6)
        assert has_called.wait(PATIENCE_SECONDS)
        assert store.statistics().stalls == 1
        gate.open()
        appending.join()
        store.close()

    if is_main:
        use()
    else:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert found == [(pytest.approx(0.6), "hqlwal-calls")]
    assert stalled(tmp_path, "commit", 0.6) in warnings_of(caplog)


@pytest.mark.parametrize("on_stall", [ValueError, anyio.ClosedResourceError])
def test_what_on_stall_raises_is_logged_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_stall: type[Exception]
) -> None:
    gate = Gate()
    environment = Watched(gate)

    def fail(_seconds: float) -> None:
        raise on_stall

    async def main() -> None:
        async with RaftLogStorage.open(tmp_path, environment=environment, on_stall=fail) as store:
            gate.shut()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.append, entries(1, 5))
                await gate.held()
                environment.after(2)
                await ready(lambda: f"{tmp_path}: on_stall raised" in caplog.text)
                gate.open()
            assert await store.try_get_log_entries(0) == entries(1, 5)

    anyio.run(main)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *(({"stall_seconds": value}, TypeError) for value in (None, "1", True, b"1")),
        *(({"stall_seconds": value}, ValueError) for value in (0, -1, 1e9, float("nan"))),
        *(({"on_stall": value}, TypeError) for value in (1, "call")),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        RaftLogStorage.open(tmp_path / "log", **options)
    with pytest.raises(error, match=name):
        BlockingRaftLogStorage.open(tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()


# --- the thread --------------------------------------------------------------------------


def watchdogs() -> list[threading.Thread]:
    return [each for each in store_threads() if each.name == "hqlwal-watchdog"]


def test_there_is_one_thread_while_stores_are_open_and_none_after(
    tmp_path: Path, leaves_nothing: Holdings
) -> None:
    async def main() -> None:
        assert watchdogs() == []
        async with RaftLogStorage.open(tmp_path / "a"):
            (thread,) = watchdogs()
            with BlockingRaftLogStorage.open(tmp_path / "b"):
                assert watchdogs() == [thread]
            assert watchdogs() == [thread]
        await anyio.to_thread.run_sync(thread.join, PATIENCE_SECONDS)
        assert watchdogs() == []
        async with RaftLogStorage.open(tmp_path / "a"):
            assert len(watchdogs()) == 1

    anyio.run(main)


def test_it_holds_no_store(tmp_path: Path, leaves_nothing: Holdings) -> None:
    async def main() -> None:
        store = await RaftLogStorage.open(tmp_path).__aenter__()
        (thread,) = watchdogs()
        with pytest.warns(ResourceWarning):
            del store
            gc.collect()
        await anyio.to_thread.run_sync(thread.join, PATIENCE_SECONDS)
        assert watchdogs() == []

    anyio.run(main)


def test_the_thread_itself_notices_a_hung_sync(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def main() -> None:
        called = anyio.Event()
        async with RaftLogStorage.open(
            tmp_path,
            environment=ColdEnvironment(gate),
            stall_seconds=0.01,
            on_stall=lambda _seconds: called.set(),
        ) as store:
            gate.shut()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.append, entries(1, 5))
                with anyio.fail_after(PATIENCE_SECONDS):
                    await called.wait()
                gate.open()

    anyio.run(main)
    assert "the disk does not answer: 'commit'" in caplog.text


class Counting(Environment):
    """Counts how often a thread waits for what is in a queue, and how long it would."""

    def __init__(self) -> None:
        self.waits: list[float | None] = []

    def queue(self) -> Any:
        waits = self.waits
        inner = super().queue()

        class Counted:
            put = staticmethod(inner.put)

            @staticmethod
            def get(block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT002
                waits.append(timeout)
                return inner.get(timeout=PATIENCE_SECONDS)

        return Counted()


def test_it_sleeps_as_long_as_no_stall_can_be_due() -> None:
    environment = Counting()
    watchdog = Watchdog(environment)
    now = 100.0
    watch = Watch("/log", 1.0, lambda: now)

    def step_on() -> None:
        """Has it look once more."""
        count = len(environment.waits)
        watchdog._wake()
        while len(environment.waits) == count:
            threading.Event().wait(0.001)

    watchdog.watch(watch)
    while not environment.waits:
        threading.Event().wait(0.001)
    watch.lane = watch.now("commit")
    now += 0.25
    step_on()
    now += 0.74
    step_on()
    now += 0.01
    step_on()  # a stall
    now += 100
    step_on()
    watch.lane = None
    step_on()
    assert environment.waits == [1.0, 0.75, 0.2, 0.2, 0.2, 1.0]
    watch.end()
