"""Every public coroutine lets others run: a task that calls one again and again stops nobody."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import LogId, RaftLogStorage, Vote
from hqlwal_raft.testing import MemoryLogStorage
from tests._support import entries, on_both_backends

VOTE = Vote(1, 1, committed=True)
#: calls in a row that another task may have to wait for: some hundred, whatever they do
PATIENCE_CALLS = 1000


async def walk(stream: Any) -> None:
    async for _ in stream:
        pass


async def first(stream: Any) -> None:
    async with contextlib.aclosing(stream):
        await anext(stream)


#: by the method: calls that have next to nothing to do
CALLS: dict[str, list[Callable[[Any], Awaitable[Any]]]] = {
    "append": [lambda s: s.append([]), lambda s: s.append([], lambda _: None)],
    "append_after": [
        lambda s: s.append_after(LogId(1, 8), []),
        lambda s: s.append_after(LogId(1, 4), entries(5, 9)),
        lambda s: s.append_after(LogId(7, 6), []),
    ],
    "mend": [lambda s: s.mend([]), lambda s: s.mend(entries(3, 5))],
    "truncate": [lambda s: s.truncate(LogId(1, 99))],
    "truncate_after": [lambda s: s.truncate_after(LogId(1, 99))],
    "purge": [lambda s: s.purge(LogId(1, 1))],
    "save_vote": [lambda s: s.save_vote(VOTE)],
    "read_vote": [lambda s: s.read_vote()],
    "save_committed": [lambda s: s.save_committed(LogId(1, 5)), lambda s: s.save_committed(None)],
    "read_committed": [lambda s: s.read_committed()],
    "save_state": [lambda s: s.save_state(b"")],
    "read_state": [lambda s: s.read_state()],
    "get_log_state": [lambda s: s.get_log_state()],
    "try_get_log_entries": [
        lambda s: s.try_get_log_entries(99),
        lambda s: s.try_get_log_entries(2, 4),
        lambda s: s.try_get_log_entries(0),
        lambda s: s.try_get_log_entries(5, 3),
    ],
    "limited_get_log_entries": [
        lambda s: s.limited_get_log_entries(99),
        lambda s: s.limited_get_log_entries(2, 4),
        lambda s: s.limited_get_log_entries(0, None, 0),
    ],
    "try_get_log_entry": [lambda s: s.try_get_log_entry(99), lambda s: s.try_get_log_entry(3)],
    "log_id_at": [lambda s: s.log_id_at(0), lambda s: s.log_id_at(3)],
    "get_key_log_ids": [lambda s: s.get_key_log_ids(), lambda s: s.get_key_log_ids(99)],
    "entries_stream": [lambda s: walk(s.entries_stream(99)), lambda s: walk(s.entries_stream(0))],
    "leader_bounded_stream": [
        lambda s: walk(s.leader_bounded_stream(VOTE, 99)),
        lambda s: walk(s.leader_bounded_stream(VOTE, 0)),
    ],
    "wait_durable": [lambda s: s.wait_durable(LogId(1, 5)), lambda s: s.wait_durable(LogId(1, 1))],
    "follow": [lambda s: first(s.follow(3)), lambda s: first(s.follow(5, durable=False))],
    "flush": [lambda s: s.flush()],
    "get_log_reader": [lambda s: s.get_log_reader()],
}


def test_every_coroutine_and_stream_has_a_row() -> None:
    for kind in (RaftLogStorage, MemoryLogStorage):
        public = {
            name
            for name, method in inspect.getmembers(kind, callable)
            if not name.startswith("_") and name not in ("open", "aclose", "statistics", "abandon")
        }
        assert public <= CALLS.keys()


async def another_task_runs(call: Callable[[], Awaitable[Any]]) -> bool:
    has_run = False

    async def other() -> None:
        nonlocal has_run
        has_run = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(PATIENCE_CALLS):
            if has_run:
                return True
            await call()
    return False


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "immediate_async", "memory"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_task_that_calls_again_and_again_lets_others_run(
    tmp_path: Path, name: str, policy: str
) -> None:
    opening: Any = MemoryLogStorage.open()
    if policy != "memory":
        opening = RaftLogStorage.open(tmp_path, sync=policy)
    async with opening as store:
        await store.append(entries(1, 9))
        await store.purge(LogId(1, 2))
        await store.save_vote(VOTE)
        await store.flush()
        reader = await store.get_log_reader()
        for side in (store, reader):
            for call in CALLS[name]:
                if hasattr(side, name):
                    assert await another_task_runs(lambda s=side, c=call: c(s))  # type: ignore[misc]


@on_both_backends
async def test_who_closes_again_and_again_lets_others_run(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path) as store, MemoryLogStorage.open() as model:
        for side in (store, model):
            await side.aclose()
            assert await another_task_runs(side.aclose)
