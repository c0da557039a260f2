"""A disk that fails under our store: poisoning, a full disk that passes, failing reads."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import LogGapError, LogId, RaftLogStorage, Vote, WalPoisonedError
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests._support import (
    PATIENCE_SECONDS,
    ColdEnvironment,
    Gate,
    HookedEnvironment,
    entries,
    on_both_backends,
)

SEGMENT_SIZE = 8192

Write = Callable[[RaftLogStorage], Awaitable[Any]]

WRITES: dict[str, Write] = {
    "append": lambda store: store.append(entries(11, 12)),
    "append with a callback": lambda store: store.append(entries(11, 12), lambda error: None),
    "append_after": lambda store: store.append_after(LogId(1, 10), entries(11, 12)),
    "append_after with a conflict": lambda s: s.append_after(LogId(1, 8), entries(9, 12, term=2)),
    "truncate": lambda store: store.truncate(LogId(1, 8)),
    "truncate_after": lambda store: store.truncate_after(None),
    "purge": lambda store: store.purge(LogId(1, 3)),
    "save_vote": lambda store: store.save_vote(Vote(7)),
    "save_committed": lambda store: store.save_committed(LogId(1, 4)),
    "flush": lambda store: store.flush(),
}


def is_segment(path: str) -> bool:
    return path.endswith(".wal")


def is_meta(path: str) -> bool:
    return path.endswith("meta.hql")


async def raised(call: Awaitable[Any]) -> BaseException | None:
    try:
        await call
    except (Exception, ExceptionGroup) as error:
        return error
    return None


def assert_poisoned(error: object, number: int) -> None:
    assert isinstance(error, WalPoisonedError), error
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == number
    assert "reopen it" in str(error)


async def close_poisoned(store: RaftLogStorage) -> None:
    """Closing may tell of the failure again; it must end."""
    with anyio.fail_after(20):
        with contextlib.suppress(WalPoisonedError):
            await store.aclose()


# --- poisoning ---------------------------------------------------------------------------


@on_both_backends
async def test_a_failed_sync_poisons_the_append_and_every_later_write(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=8192) as store:
        await store.append(entries(1, 11))
        await store.save_vote(Vote(3))
        files.fail("fdatasync", errno.EIO, where=is_segment)
        assert_poisoned(await raised(store.append(entries(11, 12))), errno.EIO)
        assert store.statistics().is_poisoned
        files.heal()
        for name, write in WRITES.items():
            error = await raised(write(store))
            assert isinstance(error, WalPoisonedError), (name, error)
            assert_poisoned(error, errno.EIO)


@on_both_backends
async def test_a_poisoned_store_is_still_read(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, cache_bytes=0) as store:
        await store.append(entries(1, 11))
        await store.save_vote(Vote(3, committed=True))
        await store.save_committed(LogId(1, 4))
        reader = await store.get_log_reader()
        files.fail("fdatasync", errno.EIO, where=is_segment)
        assert_poisoned(await raised(store.append(entries(11, 12))), errno.EIO)
        for side in (store, reader):
            assert (await side.try_get_log_entries(0))[:10] == entries(1, 11)
            assert await side.limited_get_log_entries(1, 3) == entries(1, 3)
            assert [entry async for entry in side.entries_stream(1, 11)] == entries(1, 11)
            assert await side.read_vote() == Vote(3, committed=True)
            assert await side.get_key_log_ids() == [LogId(1, 10)]
        assert await store.read_committed() == LogId(1, 4)
        assert store.statistics().last_durable_log_id == LogId(1, 10)


@on_both_backends
async def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    files = FailingEnvironment()
    calls: list[tuple[str, str]] = []

    def note(call: str, path: str) -> None:
        if call in ("fdatasync", "pwrite", "pwritev", "store") and not path.endswith(".tmp"):
            calls.append((call, path))

    hooked = HookedEnvironment(note, environment=files)
    async with RaftLogStorage.open(tmp_path, environment=hooked, segment_size=8192) as store:
        await store.append(entries(1, 11))
        files.fail("fdatasync", errno.EIO, where=is_segment)
        assert_poisoned(await raised(store.append(entries(11, 12))), errno.EIO)
        del calls[:]
        for write in WRITES.values():
            await raised(write(store))
        await close_poisoned(store)
    assert calls == []


@on_both_backends
async def test_all_who_wait_for_a_failing_sync_are_told(tmp_path: Path) -> None:
    files = FailingEnvironment()
    gate = Gate()
    told: list[BaseException | None] = []
    outcomes: list[BaseException | None] = []
    options: dict[str, Any] = {"environment": HookedEnvironment(gate, environment=files)}
    async with RaftLogStorage.open(tmp_path, **options) as store:
        await store.append(entries(1, 2))
        gate.shut()

        async def append(index: int, *, task_status: Any) -> None:
            task_status.started()
            outcomes.append(await raised(store.append(entries(index, index + 1))))

        async with anyio.create_task_group() as tasks:
            for index in range(2, 8):
                await tasks.start(append, index)
            await store.append(entries(8, 9), told.append)
            await store.append(entries(9, 10), told.append)
            await gate.held()
            files.fail("fdatasync", errno.EIO, where=is_segment)
            gate.open()
        assert len(outcomes) == 6
        for error in [*outcomes, *told]:
            assert_poisoned(error, errno.EIO)
        assert len(told) == 2
        assert len({id(error) for error in outcomes}) == 6  # each has its own traceback
    assert len(told) == 2


@on_both_backends
@pytest.mark.parametrize("name", ["truncate", "purge", "save_vote", "append"])
async def test_a_failing_write_of_any_kind_poisons(tmp_path: Path, name: str) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 11))
        where = is_meta if name in ("purge", "save_vote") else is_segment
        files.fail("fdatasync", errno.EIO, where=where)
        assert_poisoned(await raised(WRITES[name](store)), errno.EIO)
        files.heal()
        assert_poisoned(await raised(store.append(entries(11, 12))), errno.EIO)
        assert_poisoned(await raised(store.save_vote(Vote(9))), errno.EIO)


@on_both_backends
async def test_a_vote_that_could_not_be_saved_is_not_shown(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=8192) as store:
        await store.save_vote(Vote(3))
        files.fail("fdatasync", errno.EIO, where=is_meta)
        assert_poisoned(await raised(store.save_vote(Vote(4))), errno.EIO)
        assert await store.read_vote() == Vote(3)
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.read_vote() in (Vote(3), Vote(4))


@on_both_backends
async def test_leaving_a_poisoned_store_ends_and_what_was_acknowledged_is_there(
    tmp_path: Path,
) -> None:
    files = FailingEnvironment()

    async def use() -> None:
        async with RaftLogStorage.open(tmp_path, environment=files, segment_size=8192) as store:
            await store.append(entries(1, 11))
            files.fail("fdatasync", errno.EIO, where=is_segment, times=1000)
            await raised(store.append(entries(11, 12)))

    with anyio.fail_after(20):
        error = await raised(use())
    assert error is None or isinstance(error, WalPoisonedError)
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        got = await store.try_get_log_entries(0)
        assert got[:10] == entries(1, 11)
        await store.append(entries(got[-1].index + 1, got[-1].index + 4))


@on_both_backends
async def test_the_first_failing_sync_at_the_close_is_raised_by_it(tmp_path: Path) -> None:
    files = FailingEnvironment()
    told: list[BaseException | None] = []
    with pytest.raises(WalPoisonedError) as caught:
        async with RaftLogStorage.open(tmp_path, sync="interval_60000", environment=files) as store:
            await store.append(entries(1, 11), told.append)
            files.fail("fdatasync", errno.EIO, where=is_segment, times=1000)
    assert_poisoned(caught.value, errno.EIO)
    assert len(told) == 1
    assert_poisoned(told[0], errno.EIO)
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        assert await store.read_vote() is None


@on_both_backends
async def test_the_cause_names_the_file(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=8192) as store:
        await store.append(entries(1, 2))
        files.fail("fdatasync", errno.EIO, where=is_segment)
        error = await raised(store.append(entries(2, 3)))
        assert isinstance(error, WalPoisonedError)
        assert str(tmp_path) in str(error)


# --- a full disk -------------------------------------------------------------------------


@on_both_backends
async def test_a_full_disk_refuses_the_append_and_passes(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 2))
        files.fail("posix_fallocate", errno.ENOSPC, times=1000)
        index = 2
        error = None
        while error is None:
            error = await raised(store.append(entries(index, index + 1, size=3000)))
            index += error is None
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOSPC
        assert str(tmp_path) in str(error) + "".join(getattr(error, "__notes__", []))
        held = [*entries(1, 2), *entries(2, index, size=3000)]
        assert await store.try_get_log_entries(0) == held
        assert not store.statistics().is_poisoned
        # while it is full, what needs no new segment works
        await store.save_vote(Vote(1))
        await store.truncate(LogId(1, index - 1))
        files.heal()
        more = entries(index - 1, index + 20, size=3000)
        await store.append(more)
        assert await store.try_get_log_entries(0) == [*held[:-1], *more]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == [*held[:-1], *more]


@on_both_backends
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("size", [20, 4000])  # within the tail, or across segments
async def test_a_write_for_which_there_is_no_block_refuses_all_that_waited_for_it(
    tmp_path: Path, number: int, size: int
) -> None:
    """As where a copy of the open store came to share its blocks."""
    files = FailingEnvironment()
    gate = Gate("pwrite")
    told: list[BaseException | None] = []
    hooked = HookedEnvironment(gate, environment=files)
    async with RaftLogStorage.open(
        tmp_path, environment=hooked, segment_size=SEGMENT_SIZE
    ) as store:
        await store.append(entries(1, 3))
        for _ in range(2):
            for call in ("pwrite", "pwritev"):
                files.fail(call, number, times=1000, where=is_segment)
            gate.shut()
            outcomes: dict[int, BaseException | None] = {}

            async def append(index: int, outcomes: dict[int, BaseException | None]) -> None:
                outcomes[index] = await raised(store.append(entries(index, index + 1, size=size)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append, 3, outcomes)
                await gate.held()
                for index in range(4, 9):  # accepted while that one is written
                    tasks.start_soon(append, index, outcomes)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                gate.open()
            assert set(outcomes) == set(range(3, 9))
            for error in outcomes.values():
                assert isinstance(error, OSError | LogGapError), error
                assert getattr(error, "errno", number) == number
            assert isinstance(outcomes[3], OSError)
            assert str(tmp_path) in "".join(outcomes[3].__notes__)
            told.clear()
            answered = anyio.Event()

            def tell(error: BaseException | None, answered: anyio.Event = answered) -> None:
                told.append(error)
                answered.set()

            error = await raised(store.append(entries(3, 5, size=size), tell))
            await raised(store.flush())
            assert error is None or isinstance(error, OSError)
            if error is None:
                await answered.wait()  # by a call of the loop of its own
            assert [type(error) for error in told] == ([OSError] if error is None else [])
            assert await store.try_get_log_entries(0) == entries(1, 3)
            assert (await store.get_log_state()).last_log_id == LogId(1, 2)
            assert not store.statistics().is_poisoned
            await store.save_vote(Vote(1))
            files.heal()
        await store.append(entries(3, 30, size=size))
        assert await store.try_get_log_entries(0) == [*entries(1, 3), *entries(3, 30, size=size)]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == [*entries(1, 3), *entries(3, 30, size=size)]


@on_both_backends
async def test_a_write_of_which_a_part_was_stored_poisons(tmp_path: Path) -> None:
    class Torn(FailingEnvironment):
        """The system takes the half of a write, and then has no room."""

        is_on = False

        def pwrite(self, descriptor: int, data: Any, offset: int, /) -> int:
            if self.is_on and is_segment(self.path_of(descriptor)):
                if len(data) < 3000:
                    raise OSError(errno.ENOSPC, "no space")
                data = memoryview(data)[: len(data) // 2]
            return super().pwrite(descriptor, data, offset)

    files = Torn()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
        files.is_on = True
        assert_poisoned(await raised(store.append(entries(3, 4, size=5000))), errno.ENOSPC)
        assert await store.try_get_log_entries(0) == entries(1, 3)
        assert (await store.get_log_state()).last_log_id == LogId(1, 2)
        await close_poisoned(store)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 3)


@on_both_backends
async def test_a_mark_for_which_there_is_no_room_stays_behind(tmp_path: Path) -> None:
    class NoMarks(FailingEnvironment):
        """Nothing can be written to the headers of published segments."""

        refused = 0

        def pwrite(self, descriptor: int, data: Any, offset: int, /) -> int:
            if offset == 0 and is_segment(self.path_of(descriptor)) and len(data) == 64:
                self.refused += 1
                raise OSError(errno.ENOSPC, "no space")
            return super().pwrite(descriptor, data, offset)

        def monotonic(self) -> float:  # every commit's mark is due
            self._now = getattr(self, "_now", 1000.0) + 0.02
            return self._now

    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
    files = NoMarks()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        for index in range(3, 9):
            await store.append(entries(index, index + 1))
        assert not store.statistics().is_poisoned
    assert files.refused > 3
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 9)


@on_both_backends
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
async def test_what_was_to_follow_a_refused_append_does_not_become_the_first_entry(
    tmp_path: Path, call: str
) -> None:
    files, gate = FailingEnvironment(), Gate("posix_fallocate", ".wal.tmp")
    outcomes: dict[int, BaseException | None] = {}
    gate.shut()
    async with RaftLogStorage.open(
        tmp_path,
        environment=HookedEnvironment(gate, environment=files),
        segment_size=SEGMENT_SIZE,
    ) as store:

        async def append(index: int) -> None:
            outcomes[index] = await raised(store.append(entries(index, index + 1, size=3000)))

        async with anyio.create_task_group() as tasks:
            await gate.held()  # the segment that is prepared ahead
            # There is no room for that one. Whoever asks next would find some.
            files.fail(call, errno.ENOSPC, where=lambda path: path.endswith(".wal.tmp"))
            for index in (5, 6, 7):
                tasks.start_soon(append, index)
                while store.statistics().queue_depth < index - 4:
                    await anyio.lowlevel.checkpoint()
            gate.open()
        assert await store.try_get_log_entries(0) == []
        assert isinstance(outcomes[5], OSError)
        assert isinstance(outcomes[6], LogGapError)
        assert isinstance(outcomes[7], LogGapError)
        await store.append(entries(6, 8, size=3000))  # whoever asks later may begin anywhere


@on_both_backends
async def test_a_batch_for_which_the_disk_is_too_full_is_refused_whole(tmp_path: Path) -> None:
    files = FailingEnvironment()
    told: list[object] = []
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
        files.fail("posix_fallocate", errno.ENOSPC, nth=3, times=1000)
        batch = entries(3, 40, size=3000)
        error = await raised(store.append(batch, told.append))
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOSPC
        assert await store.try_get_log_entries(0) == entries(1, 3)
        jumbo = await raised(store.append(entries(3, 4, size=100_000)))
        assert isinstance(jumbo, OSError)
        assert await store.try_get_log_entries(0) == entries(1, 3)
        files.heal()
        await store.append(batch, told.append)
        await store.append(entries(40, 41, size=100_000))
        assert await store.try_get_log_entries(0) == [
            *entries(1, 3),
            *batch,
            *entries(40, 41, size=100_000),
        ]
    assert told == [None]


@on_both_backends
async def test_of_waiting_appends_only_those_that_find_no_room_fail(tmp_path: Path) -> None:
    files = FailingEnvironment()
    outcomes: dict[str, BaseException | None] = {}
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
        files.fail("posix_fallocate", errno.ENOSPC, times=1000)

        async def write(name: str, call: Awaitable[Any], *, task_status: Any) -> None:
            task_status.started()
            outcomes[name] = await raised(call)

        async with anyio.create_task_group() as tasks:
            await tasks.start(write, "jumbo", store.append(entries(3, 4, size=50_000)))
            await tasks.start(write, "vote", store.save_vote(Vote(5)))
            await tasks.start(write, "small", store.append(entries(3, 5)))
        assert isinstance(outcomes.pop("jumbo"), OSError)
        assert outcomes == {"vote": None, "small": None}
        assert await store.try_get_log_entries(0) == entries(1, 5)


@on_both_backends
async def test_opening_works_on_a_full_disk(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=900))
        await store.save_vote(Vote(2))
    files = FailingEnvironment()
    files.fail("posix_fallocate", errno.ENOSPC, times=1000)
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 31, size=900)
        error = await raised(store.append(entries(31, 60, size=900)))
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOSPC
        files.heal()
        await store.append(entries(31, 60, size=900))
        assert await store.try_get_log_entries(0) == entries(1, 60, size=900)


@on_both_backends
async def test_a_failed_rename_while_preparing_passes_too(tmp_path: Path) -> None:
    files = FailingEnvironment()
    async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 3))
        files.fail("rename", errno.EMFILE, times=1000)
        error = await raised(store.append(entries(3, 30, size=3000)))
        assert isinstance(error, OSError)
        assert error.errno == errno.EMFILE
        files.heal()
        await store.append(entries(3, 30, size=3000))
    assert not list(tmp_path.glob("*.tmp"))


# --- failing reads and opens -------------------------------------------------------------


@on_both_backends
async def test_a_failed_read_is_an_oserror_and_no_poison(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=900))
    files = FailingEnvironment()
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    async with RaftLogStorage.open(
        tmp_path, environment=ColdEnvironment(environment=files), **options
    ) as store:
        files.fail("pread", errno.EIO, where=is_segment)
        error = await raised(store.try_get_log_entries(1, 31))
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
        assert await store.try_get_log_entries(1, 31) == entries(1, 31, size=900)
        await store.append(entries(31, 33))


@on_both_backends
@pytest.mark.parametrize("call", ["listdir", "flock", "open", "pread", "fsync"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
async def test_an_open_that_fails_leaves_a_store_that_opens(
    tmp_path: Path, call: str, number: int
) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=900))
    files = FailingEnvironment()
    files.fail(call, number, where=lambda path: path.startswith(str(tmp_path)))

    async def use() -> None:
        async with RaftLogStorage.open(tmp_path, environment=files, segment_size=SEGMENT_SIZE):
            pass

    error = await raised(use())
    assert isinstance(error, OSError), error
    assert error.errno == number
    assert str(tmp_path) in str(error) + "".join(getattr(error, "__notes__", []))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 31, size=900)


# --- unlinks that are waited for ---------------------------------------------------------


@on_both_backends
async def test_an_append_that_lacks_space_waits_for_the_unlinks_before_it_gives_up() -> None:
    disk = MemoryKernel()
    gate = Gate("unlink")
    hooked = HookedEnvironment(gate, environment=disk)
    async with RaftLogStorage.open("/log", environment=hooked, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=1000))
        gate.shut()
        await store.purge(LogId(1, 20))
        await gate.held()
        disk.capacity_bytes = 64 << 10
        appended: list[int] = []

        async def append() -> None:
            for last in range(31, 41):
                await store.append(entries(last, last + 1, size=1000))
                appended.append(last)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                gate.open()
        assert len(appended) == 10


@on_both_backends
async def test_an_append_is_refused_where_neither_space_nor_unlinks_can_be_had() -> None:
    disk = MemoryKernel()
    files = FailingEnvironment(disk)
    async with RaftLogStorage.open("/log", environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=1000))
        files.fail("unlink", errno.EIO, times=1 << 30, where=is_segment)
        files.fail("posix_fallocate", errno.ENOSPC, times=1 << 30)
        await store.purge(LogId(1, 20))
        with anyio.fail_after(10), pytest.raises(OSError) as caught:
            for last in range(31, 61):
                await store.append(entries(last, last + 1, size=1000))
        assert caught.value.errno in (errno.ENOSPC, errno.EIO)  # a name left over cannot go either
        files.heal()


@on_both_backends
async def test_an_unlink_that_fails_is_tried_again_once_after_each_commit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = MemoryKernel()
    files = FailingEnvironment(disk)
    async with RaftLogStorage.open("/log", environment=files, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=1000))
        files.fail("unlink", errno.EIO, times=1 << 30, where=is_segment)
        await store.purge(LogId(1, 20))
        for last in range(31, 34):
            await store.append(entries(last, last + 1))
        await store.save_vote(Vote(1))
        with anyio.fail_after(PATIENCE_SECONDS):
            while not files.failed:
                await anyio.lowlevel.checkpoint()
        await store.truncate(LogId(1, 100))  # removes nothing, and waits for a quiet house
        files.heal()
        failed = [record for record in caplog.records if "housekeeping" in record.message]
        assert 1 <= len(failed) <= 6  # the purge, three commits, the vote, the truncation
        await store.append(entries(34, 35))
    async with RaftLogStorage.open("/log", environment=disk, segment_size=SEGMENT_SIZE) as store:
        assert [entry.index for entry in await store.try_get_log_entries(0)] == [*range(21, 35)]
