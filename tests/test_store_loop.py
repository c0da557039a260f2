"""The event loop never waits for the device under ``immediate``: no such call is made on its
thread, and while each of them waits the loop turns.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import LogId, RaftLogStorage, Vote
from hqlwal_raft.testing import PassingEnvironment
from tests._support import PATIENCE_SECONDS, entries, run_python

SEGMENT_SIZE = 8192
SIZE = 700

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "trio": {"backend": "trio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
}

#: what waits for no device
QUICK = {
    "preadv",  # with RWF_NOWAIT
    "close",  # of what was synced
    "lseek",
    "fstat",
    "fstatvfs",
}

T = TypeVar("T")


def on_each_loop(test: Callable[..., None]) -> Callable[..., None]:
    decorated: Callable[..., None] = pytest.mark.parametrize("loop", BACKENDS)(test)
    return decorated


def run(loop: str, main: Callable[[], Any]) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    anyio.run(main, **BACKENDS[loop])


async def use(store: RaftLogStorage) -> None:
    """Everything a store does."""
    state = await store.get_log_state()
    first = state.last_log_id.index + 1 if state.last_log_id else 1
    called: list[object] = []
    await store.append(entries(first, first + 40, size=SIZE))
    await store.append(entries(first + 40, first + 41, size=20_000))
    await store.append(entries(first + 41, first + 60, size=SIZE), called.append)
    await store.save_vote(Vote(first, "node"))
    await store.save_committed(LogId(1, first + 3))
    async with anyio.create_task_group() as tasks:
        for index in range(first + 60, first + 70):
            tasks.start_soon(store.append, entries(index, index + 1, size=SIZE))
            await anyio.lowlevel.checkpoint()
    await store.truncate(LogId(1, first + 65))
    await store.truncate(LogId(1, first + 50))
    await store.purge(LogId(1, first + 20))
    assert len(await store.try_get_log_entries(0)) == 29
    assert len([entry async for entry in store.entries_stream(0)]) == 29
    await store.limited_get_log_entries(0, max_bytes=3000)
    await store.get_key_log_ids()
    await store.read_committed()
    store.statistics()
    await store.flush()
    assert called == [None]


class Recorder(PassingEnvironment):
    """Notes in which thread each call is made, once it is told which is the loop's."""

    def __init__(self) -> None:
        super().__init__()
        self.loop_thread: int | None = None
        self.calls: Counter[str] = Counter()
        self.on_loop: list[tuple[str, str]] = []

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        self.calls[call] += 1
        if threading.get_ident() == self.loop_thread and call not in QUICK:
            self.on_loop.append((call, path))
        return perform()


@on_each_loop
@pytest.mark.parametrize("cache_bytes", [0, 4 << 20])
def test_no_call_that_could_wait_for_the_device_is_made_on_the_loops_thread(
    tmp_path: Path, loop: str, cache_bytes: int
) -> None:
    environment = Recorder()

    async def main() -> None:
        environment.loop_thread = threading.get_ident()
        options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": cache_bytes}
        for _ in range(2):
            async with RaftLogStorage.open(
                tmp_path / "log", environment=environment, **options
            ) as store:
                await use(store)

    run(loop, main)
    assert environment.on_loop == []
    # "pwritev" where large parts are gathered
    made = {"pwrite", "fdatasync", "fsync", "posix_fallocate", "rename", "unlink", "flock", "pread"}
    assert made <= set(environment.calls)


@on_each_loop
@pytest.mark.parametrize("policy", ["immediate_async", "interval_5"])
def test_a_buffered_policy_waits_on_the_loops_thread_for_nothing_but_the_page_cache(
    tmp_path: Path, loop: str, policy: str
) -> None:
    environment = Recorder()

    async def main() -> None:
        environment.loop_thread = threading.get_ident()
        options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, "sync": policy}
        for _ in range(2):
            async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
                await use(store)

    run(loop, main)
    assert {call for call, _ in environment.on_loop} <= {"pwrite", "pwritev", "store", "mmap"}


class Waiting(PassingEnvironment):
    """Every write and every sync waits until the loop has turned so often meanwhile."""

    CALLS = ("pwrite", "pwritev", "fdatasync", "fsync", "posix_fallocate", "rename", "unlink")
    TURNS = 20

    def __init__(self) -> None:
        super().__init__()
        self._news = threading.Condition()
        self._turns = 0
        self.waited = 0
        self.is_on = False

    def turn(self) -> None:
        with self._news:
            self._turns += 1
            self._news.notify_all()

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        if self.is_on and call in self.CALLS:
            with self._news:
                goal = self._turns + self.TURNS
                turned = self._news.wait_for(lambda: self._turns >= goal, PATIENCE_SECONDS)
                assert turned, f"the loop stands still while {call} waits on {path}"
                self.waited += 1
        return perform()


@on_each_loop
def test_while_any_write_or_sync_waits_the_loop_turns(tmp_path: Path, loop: str) -> None:
    environment = Waiting()

    async def turn() -> None:
        while True:
            environment.turn()
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turn)
            async with RaftLogStorage.open(
                tmp_path, environment=environment, segment_size=SEGMENT_SIZE, cache_bytes=0
            ) as store:
                environment.is_on = True
                await use(store)
            tasks.cancel_scope.cancel()

    run(loop, main)
    assert environment.waited > 50


IMPORTS = """
    import asyncio, sys
    import anyio
    from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote

    async def main():
        async with RaftLogStorage.open(sys.argv[1]) as store:
            before = set(sys.modules)
            for index in range(1, 101):
                await store.append([Entry(1, index, b"x")])
            for _ in range(300):
                await store.try_get_log_entries(1, 5)
            assert len([entry async for entry in store.entries_stream(1)]) == 100
            await store.save_vote(Vote(2, 1))
            print(sorted(set(sys.modules) - before))
        async with RaftLogStorage.open(sys.argv[1], cache_bytes=0) as store:
            before = set(sys.modules)
            assert len(await store.try_get_log_entries(1)) == 100
            assert len([entry async for entry in store.entries_stream(1)]) == 100
            await store.truncate(LogId(1, 90))
            await store.purge(LogId(1, 50))
            print(sorted(set(sys.modules) - before))

    if sys.argv[2] == "trio":
        import trio

        trio.run(main)
    elif sys.argv[2] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
"""


@on_each_loop
def test_nothing_is_imported_by_a_read_or_an_append(tmp_path: Path, loop: str) -> None:
    """What anyio imports at its first use would hold the loop up for some 20 ms."""
    assert run_python(IMPORTS, tmp_path, loop).split() == ["[]", "[]"]
