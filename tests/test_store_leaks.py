"""However a store ends, nothing of it is left: no lock, no thread, no descriptor, nobody waiting."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from hqlwal_raft import (
    RaftLogStorage,
    WalClosedError,
    WalLockedError,
    WalPoisonedError,
)
from hqlwal_raft._environment import Environment
from tests._leaks import Holdings, is_locked
from tests._loops import on_each_loop, run_on
from tests._support import PATIENCE_SECONDS, Gate, HookedEnvironment, Started, entries

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SYNC = ("fdatasync", ".wal")


async def assert_usable(path: Path, count: int | None = None) -> None:
    """It opens at once."""
    async with RaftLogStorage.open(path) as store:
        found = await store.try_get_log_entries(0)
        if count is not None:
            assert found == entries(1, count + 1)


async def steps(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def moments(count: int) -> None:
    """So many steps; those behind the fiftieth take a millisecond each."""
    await steps(min(count, 50))
    for _ in range(50, count):
        await anyio.sleep(0.001)


def test_what_was_held_before_is_counted_once_the_threads_of_earlier_tests_have_ended() -> None:
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait, args=[PATIENCE_SECONDS], name="hqlwal-late")
    thread.start()
    opener = threading.Timer(0.05, may_end.set)
    opener.start()
    Holdings()
    assert may_end.is_set()
    opener.join()


# --- opening -----------------------------------------------------------------------------


async def _by_scope(path: Path, count: int) -> bool:
    is_open = False

    async def use() -> None:
        nonlocal is_open
        async with RaftLogStorage.open(path):
            is_open = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await moments(count)
        tasks.cancel_scope.cancel()
    return is_open


async def _by_task(path: Path, count: int) -> bool:
    is_open = False

    async def use() -> None:
        nonlocal is_open
        async with RaftLogStorage.open(path):
            is_open = True

    task = asyncio.create_task(use())
    await moments(count)
    task.cancel()
    await asyncio.wait([task])
    return is_open


CANCELS: dict[str, Callable[[Path, int], Awaitable[bool]]] = {"scope": _by_scope, "task": _by_task}


@pytest.mark.parametrize(
    ("loop", "manner"),
    [
        *(("asyncio", "scope"), ("asyncio", "task"), ("trio", "scope")),
        *(("uvloop", "scope"), ("uvloop", "task")),
    ],
)
def test_an_open_cancelled_after_any_step_leaves_nothing(
    tmp_path: Path, loop: str, manner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a busy disk is none that does not answer
    monkeypatch.setattr("hqlwal_raft._block.PATIENCE_SECONDS", PATIENCE_SECONDS)

    async def main(count: int) -> bool:
        was_open = await CANCELS[manner](tmp_path / "log", count)
        assert not (tmp_path / "log").exists() or not is_locked(tmp_path / "log")
        return was_open

    count, opened = 0, 0
    while opened < 2:  # from before the first step to behind the last
        opened += run_on(loop, main, count)
        count = count + 1 if count < 50 else count * 2
        assert count < PATIENCE_SECONDS * 2000
    run_on(loop, assert_usable, tmp_path / "log", 0)


@on_each_loop
def test_of_two_opens_at_once_one_gets_the_store(tmp_path: Path, loop: str) -> None:
    outcomes: list[Any] = []

    async def use(is_held: anyio.Event) -> None:
        try:
            async with RaftLogStorage.open(tmp_path) as store:
                outcomes.append(store)
                await is_held.wait()
        except WalLockedError as error:
            outcomes.append(error)
            is_held.set()

    async def main() -> None:
        is_held = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, is_held)
            tasks.start_soon(use, is_held)
        assert sorted(type(each).__name__ for each in outcomes) == [
            "RaftLogStorage",
            "WalLockedError",
        ]
        await assert_usable(tmp_path)

    run_on(loop, main)


class FewThreads(Environment):
    """No thread can be started any more after the first few."""

    def __init__(self, left: int) -> None:
        self.left = left

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        if self.left == 0:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        super().start_thread(run, name)


@on_each_loop
def test_an_open_that_cannot_start_its_threads_leaves_nothing(tmp_path: Path, loop: str) -> None:
    async def main(left: int) -> bool:
        try:
            async with RaftLogStorage.open(tmp_path, environment=FewThreads(left)):
                return True
        except RuntimeError as error:
            assert "thread" in str(error)
            assert not is_locked(tmp_path)
            return False

    left = 0
    while not run_on(loop, main, left):
        left += 1
    assert left >= 2


@on_each_loop
def test_an_open_given_up_while_the_disk_does_not_answer_leaves_nothing_when_it_does(
    tmp_path: Path, loop: str, leaves_nothing: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hqlwal_raft._block.PATIENCE_SECONDS", 0.01)
    gate = Gate("listdir", "log")

    async def main() -> None:
        gate.shut()
        async with anyio.create_task_group() as tasks:
            block = RaftLogStorage.open(tmp_path / "log", environment=HookedEnvironment(gate))
            tasks.start_soon(block.__aenter__)
            await gate.held()
            tasks.cancel_scope.cancel()
        assert is_locked(tmp_path / "log")  # until the disk answers

    run_on(loop, main)
    gate.open()
    leaves_nothing.assert_nothing_new()
    run_on(loop, assert_usable, tmp_path / "log", 0)


# --- dropping ----------------------------------------------------------------------------


@on_each_loop
@pytest.mark.parametrize("is_read", [False, True], ids=["", "with a reader"])
def test_a_store_dropped_on_a_running_loop_warns_and_lets_go(
    tmp_path: Path, loop: str, leaves_nothing: Holdings, *, is_read: bool
) -> None:
    async def use() -> Any:
        store = await RaftLogStorage.open(tmp_path).__aenter__()
        await store.append(entries(1, 4))
        return await store.get_log_reader() if is_read else None

    async def main() -> None:
        with pytest.warns(ResourceWarning, match=f"{tmp_path} was never closed"):
            reader = await use()
            if reader is not None:
                assert await reader.try_get_log_entries(0) == entries(1, 4)
            del reader
            leaves_nothing.join_threads()
            await steps(3)  # the loop hears of it
            leaves_nothing.assert_nothing_new()
        await assert_usable(tmp_path, 3)

    run_on(loop, main)


@on_each_loop
def test_a_store_whose_loop_ended_warns_and_lets_go_when_it_is_dropped(
    tmp_path: Path, loop: str, leaves_nothing: Holdings
) -> None:
    async def leave_open() -> RaftLogStorage:
        store = await RaftLogStorage.open(tmp_path).__aenter__()
        await store.append(entries(1, 4))
        return store

    with pytest.warns(ResourceWarning, match="never closed"):
        store = run_on(loop, leave_open)
        del store
        leaves_nothing.assert_nothing_new()
    run_on(loop, assert_usable, tmp_path, 3)


def test_a_task_that_is_dropped_in_the_block_lets_go(
    tmp_path: Path, leaves_nothing: Holdings
) -> None:
    """Nothing can be awaited in a coroutine that is closed."""

    class Suspend:
        def __await__(self) -> Any:
            yield

    async def main() -> None:
        async def use() -> None:
            async with RaftLogStorage.open(tmp_path) as store:
                await store.append(entries(1, 4))
                is_in.set()
                await asyncio.Event().wait()

        is_in = asyncio.Event()
        coroutine = use()
        task = asyncio.create_task(coroutine)
        await is_in.wait()
        task.cancel()
        await asyncio.wait([task])
        # and one that is closed from outside, at the end of its block
        block = RaftLogStorage.open(tmp_path)
        store = await block.__aenter__()
        store.append  # noqa: B018 - held
        leaving = block.__aexit__(None, None, None)
        leaving.send(None)
        leaving.close()
        del leaving
        with pytest.raises(WalClosedError):
            await store.flush()

    asyncio.run(main())
    leaves_nothing.assert_nothing_new()
    asyncio.run(assert_usable(tmp_path, 3))


# --- abandoning --------------------------------------------------------------------------


@on_each_loop
def test_abandon_answers_all_who_wait_though_the_disk_does_not(
    tmp_path: Path, loop: str, leaves_nothing: Holdings
) -> None:
    gate = Gate(*SYNC)
    called: list[Any] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            environment = HookedEnvironment(gate)
            async with RaftLogStorage.open(tmp_path, environment=environment) as store:
                await store.append(entries(1, 4))
                started = Started(tasks)
                gate.shut()
                await started.start("first", lambda: store.append(entries(4, 6)))
                await gate.held()
                await store.append(entries(6, 7), called.append)
                await started.start("second", lambda: store.append(entries(7, 8)))
                await started.start("flush", store.flush)
                await started.start("cut", lambda: store.truncate_after(None))
                await started.start("behind", lambda: store.append(entries(8, 9)))
                await started.start("close", store.aclose)
                store.abandon()
                store.abandon()
                await steps(20)
                assert set(started.outcomes) == {
                    *("first", "second", "flush", "cut", "behind", "close")
                }
                assert started.outcomes.pop("close") is None
                for name, outcome in started.outcomes.items():
                    assert isinstance(outcome, WalClosedError), name
                assert [type(each) for each in called] == [WalClosedError]
                with pytest.raises(WalClosedError, match="abandoned"):
                    await store.get_log_state()
            assert is_locked(tmp_path)  # until the disk answers

    run_on(loop, main)
    gate.open()
    leaves_nothing.assert_nothing_new()
    run_on(loop, assert_usable, tmp_path)


@on_each_loop
def test_abandon_waits_with_the_lock_for_a_chore_that_is_under_way(
    tmp_path: Path, loop: str, leaves_nothing: Holdings
) -> None:
    gate = Gate("posix_fallocate", ".wal.tmp")

    async def main() -> None:
        environment = HookedEnvironment(gate)
        async with RaftLogStorage.open(
            tmp_path, segment_size=8192, environment=environment
        ) as store:
            await store.append(entries(1, 3))
            gate.shut()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_append_until_refused, store)
                await gate.held()
                store.abandon()
            # Who had the lock now would meet what the chore still writes.
            with pytest.raises(WalLockedError):
                async with RaftLogStorage.open(tmp_path):
                    pass

    run_on(loop, main)
    gate.open()
    leaves_nothing.assert_nothing_new()
    run_on(loop, assert_usable, tmp_path)


async def _append_until_refused(store: RaftLogStorage) -> None:
    index = 3
    try:
        while True:
            await store.append(entries(index, index + 1, size=4000))
            index += 1
    except WalClosedError:
        pass


@on_each_loop
@pytest.mark.parametrize("phase", ["open", "poisoned", "closing", "closed"])
def test_abandon_is_idempotent_in_every_phase(
    tmp_path: Path, loop: str, phase: str, leaves_nothing: Holdings
) -> None:
    def fail(call: str, path: str) -> None:
        if phase == "poisoned" and is_failing and call == "fdatasync" and path.endswith(".wal"):
            raise OSError(5, "it failed")

    gate = Gate(*SYNC)
    is_failing = False

    async def main() -> None:
        nonlocal is_failing
        environment = HookedEnvironment(fail, gate)
        block = RaftLogStorage.open(tmp_path, environment=environment)
        store = await block.__aenter__()
        await store.append(entries(1, 4))
        async with anyio.create_task_group() as tasks:
            if phase == "poisoned":
                is_failing = True
                with pytest.raises(WalPoisonedError):
                    await store.append(entries(4, 5))
                is_failing = False
            elif phase == "closing":
                gate.shut()
                started = Started(tasks)
                await started.start("append", lambda: store.append(entries(4, 5)))
                await gate.held()
                await started.start("close", store.aclose)
            elif phase == "closed":
                await store.aclose()
            for _ in range(3):
                store.abandon()
            gate.open()
        await store.aclose()
        await block.__aexit__(None, None, None)
        store.abandon()

    run_on(loop, main)
    leaves_nothing.assert_nothing_new()
    run_on(loop, assert_usable, tmp_path)


# --- a disk that never answers -----------------------------------------------------------


@on_each_loop
def test_a_close_can_be_given_up_and_goes_on_when_the_disk_answers(
    tmp_path: Path, loop: str, leaves_nothing: Holdings
) -> None:
    gate = Gate(*SYNC)

    async def main() -> None:
        block = RaftLogStorage.open(tmp_path, environment=HookedEnvironment(gate))
        store = await block.__aenter__()
        await store.append(entries(1, 4))
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("append", lambda: store.append(entries(4, 5)))
            await gate.held()
            for _ in range(2):
                with anyio.move_on_after(0) as scope:
                    await store.aclose()
                assert scope.cancelled_caught
            assert is_locked(tmp_path)
            gate.open()
        await store.aclose()
        assert started.outcomes == {"append": None}
        del block

    run_on(loop, main)
    leaves_nothing.assert_nothing_new()
    assert (tmp_path / "lock.hql").read_text().strip() == "clean"


@on_each_loop
@pytest.mark.parametrize("is_abandoned", [False, True], ids=["cancelled", "abandoned"])
def test_a_block_can_be_left_though_the_disk_never_answers(
    tmp_path: Path,
    loop: str,
    leaves_nothing: Holdings,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_abandoned: bool,
) -> None:
    monkeypatch.setattr("hqlwal_raft._block.PATIENCE_SECONDS", 0.01 if not is_abandoned else 1e9)
    gate = Gate(*SYNC)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def use() -> None:
                environment = HookedEnvironment(gate)
                async with RaftLogStorage.open(tmp_path, environment=environment) as store:
                    await store.append(entries(1, 4))
                    gate.shut()
                    tasks.start_soon(end, store)
                    await store.append(entries(4, 5))

            async def end(store: RaftLogStorage) -> None:
                await gate.held()
                if is_abandoned:
                    store.abandon()
                tasks.cancel_scope.cancel()

            tasks.start_soon(use)

    try:
        run_on(loop, main)
    except BaseExceptionGroup as group:
        assert group.subgroup(WalClosedError) is not None
    assert is_locked(tmp_path)
    gate.open()
    leaves_nothing.assert_nothing_new()  # though the loop has ended
    run_on(loop, assert_usable, tmp_path)


# --- callbacks, eager tasks --------------------------------------------------------------


def start_soon(call: Callable[[], Awaitable[None]]) -> None:
    """Starts a task from a callback: where no task runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        trio.lowlevel.spawn_system_task(call)
    else:
        started.append(loop.create_task(call()))  # type: ignore[arg-type]


started: list[asyncio.Task[None]] = []


@on_each_loop
def test_a_callback_may_have_the_store_reopened(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        first = RaftLogStorage.open(tmp_path)
        store = await first.__aenter__()
        reopened = anyio.Event()

        async def reopen() -> None:
            await first.__aexit__(None, None, None)
            await assert_usable(tmp_path, 3)
            reopened.set()

        await store.append(entries(1, 4), lambda _error: start_soon(reopen))
        await reopened.wait()

    run_on(loop, main)
    started.clear()


@on_each_loop
def test_a_callback_may_abandon_the_store(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with RaftLogStorage.open(tmp_path) as store:
            is_called = anyio.Event()

            def end(_error: BaseException | None) -> None:
                store.abandon()
                is_called.set()

            await store.append(entries(1, 4), end)
            await is_called.wait()
            with pytest.raises(WalClosedError):
                await store.flush()

    run_on(loop, main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12 brought eager tasks")
@pytest.mark.parametrize("loop", ["asyncio"])  # uvloop calls the factory in a way of its own
def test_eager_tasks_use_a_store_as_others_do(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(
            asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        )

        async def use() -> None:
            async with RaftLogStorage.open(tmp_path) as store:
                called: list[Any] = []
                await store.append(entries(1, 2), called.append)
                await asyncio.gather(
                    *(asyncio.create_task(store.append(entries(n, n + 1))) for n in range(2, 20)),
                    asyncio.create_task(store.flush()),
                )
                assert called == [None]
                read = asyncio.create_task(store.try_get_log_entries(0))
                assert await read == entries(1, 20)

        await asyncio.create_task(use())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.create_task(_never(tmp_path)), 0.01)
        await asyncio.create_task(assert_usable(tmp_path, 19))

    run_on(loop, main)


async def _never(path: Path) -> None:
    async with RaftLogStorage.open(path):
        await asyncio.sleep(PATIENCE_SECONDS)
