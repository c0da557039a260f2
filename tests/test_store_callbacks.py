"""What a callback lets out: the others are called all the same, and the run ends as it should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from hqlwal_raft import LogGapError, RaftLogStorage, Vote
from hqlwal_raft.blocking import BlockingRaftLogStorage
from tests._support import entries

#: logged, and nothing else
KEPT: dict[str, Callable[[], BaseException]] = {
    "ValueError": ValueError,
    "CancelledError": asyncio.CancelledError,
    "trio.Cancelled": lambda: trio.Cancelled._create(source="deadline", reason=None),
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "MemoryError": MemoryError,
    "BaseException": BaseException,
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError(), OSError()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [KeyboardInterrupt()]),
}
#: of these a run ends
ENDING: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
}


class Callbacks:
    """Three callbacks, one of which raises."""

    def __init__(self, error: Callable[[], BaseException], place: int) -> None:
        self.called: list[int] = []
        self._error = error
        self._place = place

    def __getitem__(self, number: int) -> Callable[[BaseException | None], None]:
        def call(error: BaseException | None) -> None:
            assert error is None
            self.called.append(number)
            if number == self._place:
                raise self._error()

        return call


async def use(path: Path, callbacks: Callbacks, done: list[str]) -> None:
    async with RaftLogStorage.open(path) as store:
        for number in (1, 2, 3):
            await store.append(entries(number, number + 1), callbacks[number])
        await store.save_vote(Vote(1, 1))
        done.append("vote")
        await store.flush()
        await store.append(entries(4, 5))
        done.append("append")


def check_what_is_there(path: Path, done: list[str]) -> None:
    """Nothing of the run is left, and what was acknowledged is there."""
    with BlockingRaftLogStorage.open(path) as store:
        assert store.try_get_log_entries(0)[:3] == entries(1, 4)
        if "vote" in done:
            assert store.read_vote() == Vote(1, 1)


on_each_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])
at_each_place = pytest.mark.parametrize("place", [1, 2, 3])


@on_each_backend
@at_each_place
@pytest.mark.parametrize("name", KEPT)
def test_whatever_a_callback_lets_out_the_others_are_called_and_all_goes_on(
    tmp_path: Path, name: str, place: int, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    callbacks, done = Callbacks(KEPT[name], place), list[str]()
    anyio.run(use, tmp_path, callbacks, done, backend=backend)
    assert callbacks.called == [1, 2, 3]
    assert done == ["vote", "append"]
    assert [record.exc_info for record in caplog.records if "callback" in record.getMessage()]
    check_what_is_there(tmp_path, done)


@on_each_backend
@at_each_place
@pytest.mark.parametrize("name", ENDING)
def test_an_interrupt_that_leaves_a_callback_ends_the_run_and_the_others_are_called(
    tmp_path: Path, name: str, place: int, backend: str
) -> None:
    callbacks, done = Callbacks(ENDING[name], place), list[str]()
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        anyio.run(use, tmp_path, callbacks, done, backend=backend)
    assert type(caught.value) is type(ENDING[name]())
    assert callbacks.called == [1, 2, 3]
    assert "append" not in done
    check_what_is_there(tmp_path, done)


@on_each_backend
@pytest.mark.parametrize("name", KEPT)
def test_the_callback_of_an_empty_batch_hinders_nobody_either(
    tmp_path: Path, name: str, backend: str
) -> None:
    callbacks = Callbacks(KEPT[name], 1)

    async def check() -> None:
        async with RaftLogStorage.open(tmp_path) as store:
            await store.append([], callbacks[1])

    anyio.run(check, backend=backend)
    with BlockingRaftLogStorage.open(tmp_path) as store:
        assert store.append([], callbacks[1]) is None
    assert callbacks.called == [1, 1]


@at_each_place
@pytest.mark.parametrize("name", [*KEPT, *ENDING])
def test_a_thread_of_callbacks_goes_on_whatever_one_lets_out(
    tmp_path: Path, name: str, place: int
) -> None:
    callbacks = Callbacks((KEPT | ENDING)[name], place)
    with BlockingRaftLogStorage.open(tmp_path) as store:
        for number in (1, 2, 3):
            store.append(entries(number, number + 1), callbacks[number])
        store.save_vote(Vote(1, 1))
    assert callbacks.called == [1, 2, 3]
    check_what_is_there(tmp_path, ["vote"])


async def test_a_refused_append_whose_task_is_cancelled_in_the_same_turn_is_called_back(
    tmp_path: Path,
) -> None:
    """Either the append raises, or its callback hears of it: never neither."""
    heard: list[Any] = []
    tasks: list[asyncio.Task[None]] = []

    async with RaftLogStorage.open(tmp_path) as store:
        await store.append(entries(1, 2))

        async def vote() -> None:
            await store.save_vote(Vote(1))
            tasks[1].cancel()  # the append behind it was refused just now

        tasks.append(asyncio.create_task(vote()))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(store.append(entries(77, 78), heard.append)))
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()
    assert [type(error) for error in heard] == [LogGapError]
