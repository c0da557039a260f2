"""A log that is followed: what there is, then what comes, once each and in order; and every end."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import (
    Entry,
    LogId,
    LogRangeError,
    LogTruncatedError,
    RaftLogStorage,
    WalClosedError,
    WalPoisonedError,
)
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment
from tests._support import PATIENCE_SECONDS, Gate, HookedEnvironment, entries, on_both_backends


class Followed:
    """What one who follows got; it can be waited for."""

    def __init__(self, stream: AsyncGenerator[list[Entry]]) -> None:
        self._stream = stream
        self._changed = anyio.Event()
        self.got: list[Entry] = []
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            async with contextlib.aclosing(self._stream):
                async for batch in self._stream:
                    assert batch
                    self.got += batch
                    self._changed.set()
        except Exception as error:
            self.error = error
        self._changed.set()

    async def wait(self, count: int) -> list[Entry]:
        with anyio.fail_after(PATIENCE_SECONDS):
            while len(self.got) < count and self.error is None:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.got

    async def end(self) -> Exception | None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while self.error is None:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.error


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "immediate_async", "interval_5"])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_every_entry_comes_once_and_in_order(
    tmp_path: Path, policy: str, cache_bytes: int
) -> None:
    options: dict[str, Any] = {"segment_size": 8192, "cache_bytes": cache_bytes, "sync": policy}
    async with (
        RaftLogStorage.open(tmp_path, **options) as store,
        anyio.create_task_group() as tasks,
    ):
        await store.append(entries(1, 30, size=900))
        reader = await store.get_log_reader()
        followed = [
            Followed(side.follow(start, durable=durable))
            for side in (store, reader)
            for start in (0, 5)
            for durable in (True, False)
        ]
        for each in followed:
            tasks.start_soon(each.run)
        for index in range(30, 60, 3):
            await store.append(entries(index, index + 3, size=900))
            await anyio.lowlevel.checkpoint()
        for number, each in enumerate(followed):
            first = 1 if number % 4 < 2 else 5
            assert await each.wait(60 - first) == entries(first, 60, size=900)
        tasks.cancel_scope.cancel()


@on_both_backends
async def test_only_what_is_durable_comes_unless_it_is_asked_for(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        RaftLogStorage.open(tmp_path, environment=HookedEnvironment(gate)) as store,
        anyio.create_task_group() as tasks,
    ):
        await store.append(entries(1, 3))
        durable, readable = Followed(store.follow(1)), Followed(store.follow(1, durable=False))
        tasks.start_soon(durable.run)
        tasks.start_soon(readable.run)
        await durable.wait(2)
        gate.shut()
        await store.append(entries(3, 5), lambda _: None)
        await gate.held()
        assert await readable.wait(4) == entries(1, 5)
        assert durable.got == entries(1, 3)
        gate.open()
        assert await durable.wait(4) == entries(1, 5)
        tasks.cancel_scope.cancel()


@on_both_backends
async def test_who_follows_from_beyond_the_end_waits_for_it(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path) as store, anyio.create_task_group() as tasks:
        followed = Followed(store.follow(4))
        tasks.start_soon(followed.run)
        await store.append(entries(1, 3))
        await store.truncate(LogId(1, 2))  # none of it was given
        await store.append(entries(2, 7, term=2))
        assert await followed.wait(3) == entries(4, 7, term=2)
        tasks.cancel_scope.cancel()


ENDS: dict[str, tuple[Any, type[Exception]]] = {
    "purge": (lambda s: s.purge(LogId(1, 20)), LogRangeError),
    "truncate": (lambda s: s.truncate(LogId(1, 5)), LogTruncatedError),
    "truncate all": (lambda s: s.truncate_after(None), LogTruncatedError),
    "close": (lambda s: s.aclose(), WalClosedError),
}


@on_both_backends
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("name", ENDS)
async def test_whatever_ends_it_is_said(tmp_path: Path, name: str, durable: bool) -> None:
    call, kind = ENDS[name]
    async with RaftLogStorage.open(tmp_path) as store, anyio.create_task_group() as tasks:
        await store.append(entries(1, 9))
        followed = Followed(store.follow(1, durable=durable))
        tasks.start_soon(followed.run)
        await followed.wait(8)
        await call(store)
        assert type(await followed.end()) is kind
        assert followed.got == entries(1, 9)


@on_both_backends
async def test_what_was_replaced_is_said_and_what_was_not_given_is_no_concern(
    tmp_path: Path,
) -> None:
    async with RaftLogStorage.open(tmp_path) as store, anyio.create_task_group() as tasks:
        await store.append(entries(1, 9))
        stream, early = store.follow(1), store.follow(1)
        assert await anext(stream) == entries(1, 9)
        await store.truncate(LogId(1, 7))
        await store.append(entries(7, 12, term=2))
        with pytest.raises(LogTruncatedError) as caught:
            await anext(stream)
        assert caught.value.log_id == LogId(1, 8)
        assert caught.value.found == LogId(2, 8)
        assert await anext(early) == entries(1, 7) + entries(7, 12, term=2)
        await store.purge(LogId(2, 8))  # what was given may go
        await store.append(entries(12, 14, term=2))
        assert await anext(early) == entries(12, 14, term=2)
        with pytest.raises(LogRangeError):
            await anext(store.follow(8))
        await early.aclose()
        tasks.cancel_scope.cancel()


@on_both_backends
async def test_of_a_poisoned_log_what_is_durable_comes_and_then_the_error(tmp_path: Path) -> None:
    environment = FailingEnvironment()
    async with (
        RaftLogStorage.open(tmp_path, environment=environment) as store,
        anyio.create_task_group() as tasks,
    ):
        await store.append(entries(1, 5))
        followed = Followed(store.follow(1))
        tasks.start_soon(followed.run)
        await followed.wait(4)
        environment.fail("fdatasync", errno.EIO, times=10)  # the next segment may be being prepared
        with pytest.raises(WalPoisonedError):
            await store.append(entries(5, 7))
        assert type(await followed.end()) is WalPoisonedError
        late = Followed(store.follow(1))
        await late.run()
        assert late.got == followed.got == entries(1, 5)
        assert type(late.error) is WalPoisonedError


def test_a_thread_follows_until_the_store_is_closed(tmp_path: Path) -> None:
    got: list[Entry] = []
    errors: list[Exception] = []
    reached = threading.Event()
    with BlockingRaftLogStorage.open(tmp_path) as store:

        def follow() -> None:
            try:
                for batch in store.follow(1):
                    got.extend(batch)
                    if len(got) == 40:
                        reached.set()
            except WalClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        for index in range(1, 41):
            store.append(entries(index, index + 1))
        assert reached.wait(PATIENCE_SECONDS)
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert got == entries(1, 41)
    assert len(errors) == 1
