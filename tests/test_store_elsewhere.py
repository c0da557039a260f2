"""Every public method of our stores where it must not be called: in another thread, on another
event loop, after its own has ended, in a forked child. Each is answered at once, by an error that
says so, and the store is as it was.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import (
    LogId,
    RaftLogReader,
    RaftLogStorage,
    Vote,
    WalClosedError,
    WrongLoopError,
)
from hqlwal_raft.blocking import BlockingRaftLogReader, BlockingRaftLogStorage
from tests._leaks import Holdings, is_locked
from tests._loops import on_each_loop, run_on
from tests._support import PATIENCE_SECONDS, entries, run_python

#: what is given for a parameter that has no default
ARGUMENTS: dict[str, Any] = {
    "entries": entries(4, 6),
    "log_id": LogId(1, 3),
    "prev_log_id": LogId(1, 3),
    "vote": Vote(2, 1, committed=True),
    "index": 2,
    "start": 1,
    "data": b"state",
    "state": b"state",
}

#: these end a store, or open one
ENDS = {"open", "open_with", "aclose", "close", "abandon"}
#: what is not for users, or no method
OTHERS = {"answer_in_forked_child", "close_at_exit", "poison", "is_closed"}


def names_of(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_") and name not in ENDS | OTHERS]


def call_of(owner: Any, name: str) -> Callable[[], Any]:
    """Makes the call with arguments that are right."""
    method = getattr(owner, name)
    parameters = inspect.signature(method).parameters.values()
    given = {each.name: ARGUMENTS[each.name] for each in parameters if each.default is each.empty}
    return lambda: method(**given)


def calls_of(store: Any, reader: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    for owner in (store, reader):
        for name in names_of(type(owner)):
            yield f"{type(owner).__name__}.{name}", call_of(owner, name)


async def finish(result: Any) -> Any:
    if inspect.isasyncgen(result):
        return await anext(result)
    if inspect.isawaitable(result):
        return await result
    if inspect.isgenerator(result):
        return next(result)
    return result


async def answers_to(calls: list[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
    """What each call raises, or gives; one that waits is a failure."""
    answers: dict[str, Any] = {}
    for name, call in calls:
        try:
            with anyio.fail_after(PATIENCE_SECONDS):
                answers[name] = await finish(call())
        except Exception as error:
            answers[name] = error
    return answers


def assert_all_wrong(answers: dict[str, Any], path: Path, says: str) -> None:
    assert answers
    for name, answer in answers.items():
        assert isinstance(answer, WrongLoopError), (name, answer)
        assert says in str(answer), (name, answer)
        assert answer.path == str(path)
        assert str(path) in str(answer)


async def assert_untouched(store: RaftLogStorage) -> None:
    assert await store.try_get_log_entries(0) == entries(1, 4)
    assert await store.read_vote() is None
    await store.append(entries(4, 5))


def test_the_table_has_every_public_method() -> None:
    for kind in (
        RaftLogStorage,
        RaftLogReader,
        BlockingRaftLogStorage,
        BlockingRaftLogReader,
    ):
        for name in names_of(kind):
            for each in list(inspect.signature(getattr(kind, name)).parameters.values())[1:]:
                is_given = each.default is not each.empty or each.name in ARGUMENTS
                assert is_given, f"{name} needs {each.name}"


async def use(path: Path, then: Callable[..., Awaitable[None]]) -> None:
    async with RaftLogStorage.open(path) as store:
        await store.append(entries(1, 4))
        await then(store, await store.get_log_reader())
        await assert_untouched(store)


@on_each_loop
@pytest.mark.parametrize("other", ["asyncio", "trio"])
@pytest.mark.usefixtures("leaves_nothing")
def test_called_in_another_thread_each_method_says_so(
    tmp_path: Path, loop: str, other: str
) -> None:
    async def then(store: RaftLogStorage, reader: RaftLogReader) -> None:
        calls = [*calls_of(store, reader), ("aclose", store.aclose)]
        found: list[Any] = []

        def run() -> None:
            found.append(run_on(other, answers_to, calls))

        thread = threading.Thread(target=run)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert_all_wrong(found[0], tmp_path, str(thread.ident))

    run_on(loop, use, tmp_path, then)


@on_each_loop
def test_called_in_a_thread_without_a_loop_it_says_so(tmp_path: Path, loop: str) -> None:
    async def then(store: RaftLogStorage, _reader: RaftLogReader) -> None:
        def call() -> None:
            with pytest.raises(WrongLoopError, match="thread"):
                store.statistics()

        await anyio.to_thread.run_sync(call)

    run_on(loop, use, tmp_path, then)


@pytest.mark.usefixtures("leaves_nothing")
def test_called_on_another_loop_of_the_same_thread_each_method_says_so(tmp_path: Path) -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        block = RaftLogStorage.open(tmp_path)
        store = first.run_until_complete(block.__aenter__())
        first.run_until_complete(store.append(entries(1, 4)))
        reader = first.run_until_complete(store.get_log_reader())
        calls = [*calls_of(store, reader), ("aclose", store.aclose)]
        assert_all_wrong(
            second.run_until_complete(answers_to(calls)), tmp_path, "outside of the event loop"
        )
        first.run_until_complete(assert_untouched(store))
        first.run_until_complete(block.__aexit__(None, None, None))
    finally:
        first.close()
        second.close()


@on_each_loop
@pytest.mark.parametrize("other", ["asyncio", "trio"])
@pytest.mark.usefixtures("leaves_nothing")
def test_after_its_loop_has_ended_each_method_says_so_and_abandon_lets_go(
    tmp_path: Path, loop: str, other: str
) -> None:
    async def leave_open() -> tuple[Any, RaftLogStorage, RaftLogReader]:
        block = RaftLogStorage.open(tmp_path)
        store = await block.__aenter__()
        await store.append(entries(1, 4))
        return block, store, await store.get_log_reader()

    block, store, reader = run_on(loop, leave_open)
    calls = [*calls_of(store, reader), ("aclose", store.aclose)]
    assert_all_wrong(run_on(other, answers_to, calls), tmp_path, "has ended")
    store.abandon()
    store.abandon()
    for name, answer in run_on(other, answers_to, calls[:-1]).items():
        assert isinstance(answer, WalClosedError), name
        assert "abandoned" in str(answer)

    async def again() -> None:
        async with RaftLogStorage.open(tmp_path) as opened:
            assert await opened.try_get_log_entries(0) == entries(1, 4)

    run_on(other, again)
    del block, store, reader, calls


FORK = """
    import os, sys, traceback, anyio
    from pathlib import Path
    from hqlwal_raft import RaftLogStorage, WalError
    from tests.test_store_elsewhere import answers_to, calls_of, entries
    from tests._loops import LOOPS

    async def main():
        async with RaftLogStorage.open(sys.argv[1]) as store:
            await store.append(entries(1, 4))
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    calls = list(calls_of(store, store))
                    for name, call in calls:
                        try:
                            result = call()
                            if hasattr(result, "__anext__"):
                                result = result.__anext__()
                            result.send(None)
                        except WalError as error:
                            assert "fork" in str(error), error
                        else:
                            raise AssertionError(name)
                    try:
                        store.aclose().send(None)
                    except StopIteration:
                        pass
                    store.abandon()
                    status = 0
                finally:
                    if status:
                        traceback.print_exc()
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            await store.append(entries(4, 6))
            print(os.waitstatus_to_exitcode(status))

    anyio.run(main, **LOOPS[sys.argv[2]])
"""


@on_each_loop
def test_in_a_forked_child_each_method_says_so_and_the_ends_do_nothing(
    tmp_path: Path, loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    assert run_python(FORK, tmp_path, loop).strip() == "0"


BLOCKING_FORK = """
    import inspect, os, sys, threading, traceback
    from hqlwal_raft import WalClosedError
    from hqlwal_raft.blocking import BlockingRaftLogStorage
    from tests.test_store_elsewhere import calls_of, entries

    def use():
        with BlockingRaftLogStorage.open(sys.argv[1]) as store:
            store.append(entries(1, 4))
            reader = store.get_log_reader()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for name, call in calls_of(store, reader):
                        try:
                            result = call()
                            if inspect.isgenerator(result):
                                next(result)
                        except WalClosedError as error:
                            assert "fork" in str(error), error
                        else:
                            raise AssertionError(name)
                    store.close()
                    store.abandon()
                    status = 0
                finally:
                    if status:
                        traceback.print_exc()
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            store.append(entries(4, 6))
            print(os.waitstatus_to_exitcode(status))

    if sys.argv[2] == "main":
        use()
    else:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
"""


@pytest.mark.parametrize("thread", ["main", "another"])
def test_in_a_forked_child_each_method_of_the_blocking_store_says_so(
    tmp_path: Path, thread: str
) -> None:
    assert run_python(BLOCKING_FORK, tmp_path, thread).strip() == "0"


def test_a_block_whose_task_nobody_runs_any_more_lets_go(
    tmp_path: Path, leaves_nothing: Holdings
) -> None:
    async def use() -> None:
        async with RaftLogStorage.open(tmp_path) as store:
            await store.append(entries(1, 4))
            reached.append(True)
            await asyncio.sleep(1e6)

    reached: list[bool] = []
    loop = asyncio.new_event_loop()
    coroutine = use()
    task = loop.create_task(coroutine)
    while not reached:
        loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    coroutine.close()
    del task, coroutine
    leaves_nothing.assert_nothing_new()
    assert not is_locked(tmp_path)


@on_each_loop
def test_abandon_may_be_called_in_another_thread(
    tmp_path: Path, loop: str, leaves_nothing: Holdings
) -> None:
    async def main() -> None:
        block = RaftLogStorage.open(tmp_path)
        store = await block.__aenter__()
        await store.append(entries(1, 4))
        await anyio.to_thread.run_sync(store.abandon)
        with pytest.raises(WalClosedError, match="abandoned"):
            await store.flush()
        await block.__aexit__(None, None, None)

    run_on(loop, main)
    leaves_nothing.assert_nothing_new()
    assert not is_locked(tmp_path)


@on_each_loop
def test_a_closed_store_may_be_closed_again_from_anywhere(tmp_path: Path, loop: str) -> None:
    async def main() -> RaftLogStorage:
        async with RaftLogStorage.open(tmp_path) as store:
            await store.append(entries(1, 4))
        return store

    store = run_on(loop, main)
    run_on("asyncio", store.aclose)
    run_on("trio", store.aclose)
    store.abandon()
