"""A disk that fails: typed errors, no hang, no acknowledgement of what is not durable.

One fixed history is run again and again, each time with another call failing; afterwards the
images of a power cut must hold what was acknowledged, and the store must open and go on.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Awaitable
from itertools import count

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalError, WalPoisonedError
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests.torture.core import DIRECTORY
from tests.torture.images import Examiner
from tests.torture.ledger import Ledger, Node, View

SEGMENT_SIZE = 8192

#: a call that fails, and how
FAULTS = (
    ("fdatasync", errno.EIO),
    ("fsync", errno.EIO),
    ("posix_fallocate", errno.ENOSPC),
    ("open", errno.EMFILE),
    ("rename", errno.EACCES),
    ("unlink", errno.EROFS),
    ("pread", errno.EIO),
    ("pwrite", errno.EIO),
    ("pwrite", errno.ENOSPC),
    ("preadv", errno.EIO),
    ("lseek", errno.EIO),
    ("fstat", errno.EIO),
    ("stat", errno.EIO),
    ("stat", errno.ENOENT),
    ("close", errno.EIO),
    ("listdir", errno.EACCES),
    ("flock", errno.EROFS),
    ("mkdir", errno.EACCES),
)

#: what a name that is not there any more is told as
MEANS = {errno.ENOENT: errno.ESTALE}


class Fixed:
    """The fixed history: everything a store does, every answer noted in a ledger."""

    segment_size = SEGMENT_SIZE

    def __init__(self, files: Environment) -> None:
        self.files = files
        self.ledger = Ledger()
        self.errors: list[BaseException] = []
        self._numbers = count(1)

    async def run(self) -> None:
        for _ in range(2):
            try:
                async with self._open() as store:
                    await self._begin(store)
                    await self._use(store)
            except (OSError, WalPoisonedError) as error:
                self.errors.append(error)

    def _open(self) -> contextlib.AbstractAsyncContextManager[RaftLogStorage]:
        return RaftLogStorage.open(
            DIRECTORY, segment_size=self.segment_size, cache_bytes=0, environment=self.files
        )

    async def _begin(self, store: RaftLogStorage) -> None:
        state = await store.get_log_state()
        entries = await store.try_get_log_entries(0)
        view = View(
            state.last_purged_log_id,
            state.last_log_id,
            tuple(entries),
            await store.read_vote(),
            await store.read_committed(),
        )
        self.ledger.judge(view)
        self.ledger = self.ledger.after(view)

    async def _use(self, store: RaftLogStorage) -> None:
        ledger = self.ledger
        await self._vote(store)
        for _ in range(8):
            await self._append(store, 1500)
        await self._append(store, *[300] * 30)
        await self._append(store, 20_000)
        if not store.statistics().is_poisoned:
            ledger.save_committed(ledger.last)
            await self._saying(store.save_committed(ledger.last))
        await self._read(store)
        if ledger.live:
            await self._truncate(store, ledger.live[2].entry.log_id)
        await self._append(store, 1500, 1500)
        if ledger.live:
            await self._purge(store, ledger.live[1].entry.log_id)
        await self._vote(store)
        await self._append(store, *[1500] * 8)
        if ledger.last is not None:
            await self._purge(store, LogId(9, ledger.last.index + 5))
        await self._append(store, *[1500] * 7)
        await self._read(store)

    async def _saying(self, call: Awaitable[None]) -> bool:
        """Whether the call was answered well; notes a typed error."""
        try:
            await call
        except (OSError, WalPoisonedError) as error:
            self.errors.append(error)
            return False
        return True

    async def _append(self, store: RaftLogStorage, *sizes: int) -> None:
        last = self.ledger.last
        index = last.index + 1 if last else 1
        entries = [
            Entry(9, index + i, b"x" * size, next(self._numbers)) for i, size in enumerate(sizes)
        ]
        nodes = self.ledger.append(entries)
        if await self._saying(store.append(entries)):
            self.ledger.durable(nodes)
        elif not isinstance(self.errors[-1], WalPoisonedError):
            self._refused(nodes)

    def _refused(self, nodes: list[Node]) -> None:
        # nothing was written: what follows takes the same place
        self.ledger.cut_durable(self.ledger.truncate(nodes[0].entry.index))

    async def _truncate(self, store: RaftLogStorage, log_id: LogId) -> None:
        cut = self.ledger.truncate(log_id.index)
        if await self._saying(store.truncate(log_id)):
            self.ledger.cut_durable(cut)
        elif not isinstance(self.errors[-1], WalPoisonedError):
            self.ledger.restore(cut)

    async def _purge(self, store: RaftLogStorage, log_id: LogId) -> None:
        frontier = self.ledger.purge(log_id)
        if await self._saying(store.purge(log_id)):
            self.ledger.saved(frontier)
        elif not isinstance(self.errors[-1], WalPoisonedError):
            if (await store.get_log_state()).last_purged_log_id == log_id:
                self.ledger.saved(frontier)  # only the space could not be freed
            else:
                self.ledger.withdraw(frontier)

    async def _vote(self, store: RaftLogStorage) -> None:
        vote = self.ledger.save_vote(Vote(next(self._numbers), "n", committed=True))
        assert vote.vote is not None
        if await self._saying(store.save_vote(vote.vote)):
            self.ledger.saved(vote)

    async def _read(self, store: RaftLogStorage) -> None:
        state = await store.get_log_state()
        try:
            entries = await store.try_get_log_entries(0)
        except OSError as error:
            self.errors.append(error)
        else:
            assert (entries[-1].log_id if entries else state.last_purged_log_id) == (
                state.last_log_id
            )


def _count_calls() -> dict[str, int]:
    files = FailingEnvironment(MemoryKernel())
    fixed = Fixed(files)
    anyio.run(fixed.run)
    assert not fixed.errors
    return dict(files.calls)


@pytest.fixture(scope="module")
def calls() -> dict[str, int]:
    """How often the fixed history makes each call when nothing fails."""
    return _count_calls()


def _examine(disk: MemoryKernel, ledger: Ledger) -> None:
    """What was acknowledged is on the disk, whatever a power cut leaves, and after a restart."""
    examiner = Examiner(random.Random(1), SEGMENT_SIZE, count(10_000), 300)
    for image in disk.snapshot().images(examiner.rng, 4):
        examiner.hold(image, ledger, ledger.now, "power cut after a fault", depth=1)
    examiner.hold(disk.after_kill(), ledger, ledger.now, "restart after a fault", depth=1)


@pytest.mark.parametrize(
    ("call", "number"), FAULTS, ids=[f"{call}-{errno.errorcode[number]}" for call, number in FAULTS]
)
async def test_any_call_may_fail_once_and_nothing_false_is_acknowledged(
    call: str, number: int, calls: dict[str, int]
) -> None:
    assert calls[call] > 0
    for nth in range(1, calls[call] + 1):
        disk = MemoryKernel()
        files = FailingEnvironment(disk)
        files.fail(call, number, nth=nth)
        fixed = Fixed(files)
        with anyio.fail_after(20):
            await fixed.run()
        assert files.failed <= 1
        for error in fixed.errors:
            cause = error if isinstance(error, OSError) else error.__cause__
            assert isinstance(cause, OSError), f"{call} {nth}: {error!r}"
            assert cause.errno in (number, MEANS.get(number)), f"{call} {nth}: {error!r}"
        _examine(disk, fixed.ledger)


class Gathering(Fixed):
    """Batches that are so large that they are not joined before they are written."""

    segment_size = 1 << 20

    async def _use(self, store: RaftLogStorage) -> None:
        await self._vote(store)
        for _ in range(3):
            await self._append(store, 140_000, 10, 140_000)
        await self._read(store)
        if self.ledger.live:
            await self._truncate(store, self.ledger.live[1].entry.log_id)
        await self._append(store, 140_000, 140_000)
        await self._read(store)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_gathered_write_may_fail_once_and_nothing_false_is_acknowledged(
    number: int,
) -> None:
    failed = []
    for nth in range(1, 9):
        disk = MemoryKernel()
        files = FailingEnvironment(disk)
        files.fail("pwritev", number, nth=nth)
        fixed = Gathering(files)
        with anyio.fail_after(20):
            await fixed.run()
        failed.append(files.failed)
        for error in fixed.errors:
            cause = error if isinstance(error, OSError) else error.__cause__
            assert isinstance(cause, OSError)
            assert cause.errno == number
        _examine(disk, fixed.ledger)
    assert sum(failed) >= 4


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_disk_that_fails_from_some_sync_on_leaves_what_was_acknowledged(
    call: str, calls: dict[str, int]
) -> None:
    for nth in range(1, calls[call] + 1, 3):
        disk = MemoryKernel()
        files = FailingEnvironment(disk)
        files.fail(call, errno.EIO, nth=nth, times=1 << 30)
        fixed = Fixed(files)
        with anyio.fail_after(20):
            await fixed.run()
        # the last one may concern a segment that was prepared for later and is not needed
        assert fixed.errors or files.failed <= 1
        _examine(disk, fixed.ledger)


async def test_after_a_failed_sync_the_store_is_poisoned_until_it_is_opened_again() -> None:
    files = FailingEnvironment(MemoryKernel())
    with anyio.fail_after(10):
        async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=files) as store:
            await store.append([Entry(1, 1, b"first")])
            files.fail("fdatasync", errno.EIO, where=lambda path: path.endswith(".wal"))
            told: list[BaseException | None] = []
            await store.append([Entry(1, 2)], told.append)
            for write in (
                store.append([Entry(1, 3)]),
                store.save_vote(Vote(1)),
                store.truncate(LogId(1, 1)),
                store.purge(LogId(1, 1)),
                store.flush(),
            ):
                with pytest.raises(WalPoisonedError) as caught:
                    await write
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == errno.EIO
            assert len(told) == 1
            assert isinstance(told[0], WalPoisonedError)
            assert store.statistics().is_poisoned
            assert [entry.index for entry in await store.try_get_log_entries(1, 2)] == [1]
        async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=files) as store:
            state = await store.get_log_state()
            assert state.last_log_id is not None
            await store.append([Entry(1, state.last_log_id.index + 1)])


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_all_who_wait_are_told_when_a_sync_fails(nth: int) -> None:
    disk = MemoryKernel()
    files = FailingEnvironment(disk)
    ledger = Ledger()
    told = Counter[str]()

    async def append(store: RaftLogStorage, index: int) -> None:
        nodes = ledger.append([Entry(1, index, b"x" * 500, index)])

        def callback(error: BaseException | None) -> None:
            told["callback"] += 1
            if error is None:
                ledger.durable(nodes)
            else:
                assert isinstance(error, WalPoisonedError)

        try:
            if index % 2:
                await store.append([node.entry for node in nodes], callback)
            else:
                await store.append([node.entry for node in nodes])
                ledger.durable(nodes)
        except WalPoisonedError:
            told["error"] += 1
        else:
            told["returned"] += 1

    with anyio.fail_after(10):
        with contextlib.suppress(WalPoisonedError):
            async with RaftLogStorage.open(
                DIRECTORY, segment_size=8192, environment=files
            ) as store:
                files.fail(
                    "fdatasync", errno.EIO, nth=nth, where=lambda path: path.endswith(".wal")
                )
                async with anyio.create_task_group() as tasks:
                    for index in range(1, 41):
                        tasks.start_soon(append, store, index)
                        await anyio.lowlevel.checkpoint()
                        if index % 8 == 0:
                            tasks.start_soon(_flush, store)
    assert files.failed == 1
    assert told["error"] + told["returned"] == 40
    assert told["error"] > 0
    _examine(disk, ledger)


async def _flush(store: RaftLogStorage) -> None:
    with contextlib.suppress(WalPoisonedError):
        await store.flush()


async def test_a_full_disk_refuses_the_append_and_takes_it_once_there_is_room() -> None:
    disk = MemoryKernel(capacity_bytes=12288 + 3 * SEGMENT_SIZE)
    with anyio.fail_after(20):
        async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=disk) as store:
            last = await fill(store)
            assert not store.statistics().is_poisoned
            assert len(await store.try_get_log_entries(0)) == last
            await store.save_vote(Vote(5))
        # opening needs no room
        async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=disk) as store:
            assert len(await store.try_get_log_entries(0)) == last
            assert await store.read_vote() == Vote(5)
            with pytest.raises(OSError, match="space"):
                await store.append([Entry(1, last + 1, b"x" * 2000)])
            await store.purge(LogId(1, last - 1))
            await store.append([Entry(1, last + 1, b"x" * 2000)])
            disk.capacity_bytes = None
            await store.append([Entry(1, last + 2, b"x" * 20_000)])
            entries = await store.try_get_log_entries(0)
    assert [entry.index for entry in entries] == [last, last + 1, last + 2]


async def fill(store: RaftLogStorage) -> int:
    """Appends until the disk is full; the last index that was acknowledged."""
    for index in range(1, 10_000):
        try:
            await store.append([Entry(1, index, b"x" * 2000)])
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EFBIG), repr(error)
            return index - 1
    raise AssertionError("the disk was never full")


async def test_many_appends_that_meet_a_full_disk_are_all_answered() -> None:
    disk = MemoryKernel(capacity_bytes=12288 + 2 * SEGMENT_SIZE)
    answers: list[object] = []

    async def append(store: RaftLogStorage, index: int) -> None:
        try:
            await store.append([Entry(1, index, b"x" * 2000)])
        except (OSError, WalError) as error:
            answers.append(error)
        else:
            answers.append(index)

    with anyio.fail_after(10):
        async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=disk) as store:
            async with anyio.create_task_group() as tasks:
                for index in range(1, 30):
                    tasks.start_soon(append, store, index)
            shown = await store.try_get_log_entries(0)
    assert len(answers) == 29
    acknowledged = [answer for answer in answers if isinstance(answer, int)]
    assert [entry.index for entry in shown] == sorted(acknowledged)
    assert 0 < len(acknowledged) < 29


async def test_a_read_that_fails_says_so_and_can_be_repeated() -> None:
    files = FailingEnvironment(MemoryKernel())
    async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=files) as store:
        await store.append([Entry(1, index, b"x" * 2000) for index in range(1, 20)])
    async with RaftLogStorage.open(DIRECTORY, segment_size=8192, environment=files) as store:
        for call, number in (("open", errno.EMFILE), ("pread", errno.EIO)):
            files.fail(call, number)
            with pytest.raises(OSError) as caught:
                await store.try_get_log_entries(0)
            assert caught.value.errno == number
            assert not store.statistics().is_poisoned
        assert len(await store.try_get_log_entries(0)) == 19
