"""Every call of every plan fails once: refused, or poison that leaves readers what is durable."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import pytest

from hqlwal_raft import Entry, LogId, LogState, RaftLogStorage, Vote, WalPoisonedError
from hqlwal_raft._files import open_files
from hqlwal_raft.testing import MemoryKernel, PassingEnvironment
from tests._support import PATIENCE_SECONDS, Started, entries, on_both_backends

#: eight of these fill a segment of 8 KiB
SIZE = 900
COUNT = 30
LOG = entries(1, COUNT + 1, size=SIZE)
VOTE = Vote(1, "me", committed=True)

CHANGING = {
    *("pwrite", "pwritev", "fdatasync", "fsync", "unlink", "rename", "posix_fallocate", "stat"),
    *("open", "pread"),
}
DISK, HOUSEKEEPING = "hqlwal-disk", "hqlwal-housekeeping"

T = TypeVar("T")


class FailsOnce(PassingEnvironment):
    """The ``number``-th call of one of the store's threads fails, once it is armed."""

    def __init__(self, environment: MemoryKernel, thread: str, number: int, code: int) -> None:
        super().__init__(environment)
        self._thread = thread
        self._number = number
        self._code = code
        self._is_armed = False
        self._lock = threading.Lock()
        #: what was made to fail
        self.failed: str | None = None

    def arm(self) -> None:
        self._is_armed = True

    def disarm(self) -> None:
        self._is_armed = False

    def _fail(self, call: str, path: str) -> None:
        with self._lock:
            if not self._is_armed or call not in CHANGING or path.startswith("/proc"):
                return
            if threading.current_thread().name != self._thread:
                return
            self._number -= 1
            if self._number == 0:
                self.failed = f"{call} {os.path.basename(path)}"
                raise OSError(self._code, os.strerror(self._code))

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        self._fail(call, path)
        return perform()

    def fdatasync(self, descriptor: int, /) -> None:
        try:
            self._fail("fdatasync", self.path_of(descriptor))
        except OSError:
            self.forget_sync(descriptor)
            raise
        self.environment.fdatasync(descriptor)


@dataclass(frozen=True)
class Case:
    """A write: how it is made, and what the log holds afterwards."""

    write: Callable[[RaftLogStorage], Awaitable[Any]]
    entries: list[Entry]
    frontier: int = 0
    vote: Vote = VOTE
    #: it takes entries away: readers may be left without those
    cuts: bool = False
    #: what it may leave where only its beginning was done
    between: list[Entry] | None = None
    checks_raft: bool = True

    @property
    def surviving(self) -> list[Entry]:
        """What both logs hold."""
        return [entry for entry in LOG if entry in self.entries]


def replacing(index: int, count: int) -> Case:
    """A leader's entries that take the place of those from ``index`` on."""
    new = entries(index, index + count, size=SIZE, term=2)

    async def write(store: RaftLogStorage) -> None:
        await store.append_after(LogId(1, index - 3), LOG[index - 3 : index - 1] + new)

    kept = LOG[: index - 1]
    # what is committed is never cut
    return Case(write, kept + new, cuts=True, between=kept, checks_raft=False)


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    """Files are let go of by whoever is done with them, not by a garbage collection later."""
    gc.disable()
    yield
    gc.enable()


#: cases without a write that could poison
UNWRITING = {"flush", "save committed", "receive what is there", "mend where nothing is damaged"}
MORE = entries(COUNT + 1, COUNT + 2, size=SIZE)
MANY = entries(COUNT + 1, COUNT + 30, size=SIZE)
LARGE = entries(COUNT + 1, COUNT + 2, size=20_000)

CASES = {
    "append": Case(lambda store: store.append(MORE), LOG + MORE),
    "append across segments": Case(lambda store: store.append(MANY), LOG + MANY),
    "append of a large entry": Case(lambda store: store.append(LARGE), LOG + LARGE),
    "truncate the tail": Case(lambda s: s.truncate(LogId(1, COUNT - 1)), LOG[:-2], cuts=True),
    "truncate at a border": Case(lambda s: s.truncate(LogId(1, 17)), LOG[:16], cuts=True),
    "truncate a sealed one": Case(lambda s: s.truncate(LogId(1, 12)), LOG[:11], cuts=True),
    "truncate all": Case(lambda s: s.truncate_after(None), [], cuts=True),
    "replace the tail": replacing(COUNT - 1, 1),
    "replace at a border": replacing(17, 4),
    "replace in a sealed one": replacing(12, 30),
    "receive": Case(lambda s: s.append_after(LogId(1, COUNT - 1), LOG[-1:] + MORE), LOG + MORE),
    "receive what is there": Case(lambda s: s.append_after(LogId(1, 9), LOG[9:25]), LOG),
    "mend where nothing is damaged": Case(lambda s: s.mend(LOG), LOG),
    "purge": Case(lambda s: s.purge(LogId(1, 12)), LOG[12:], frontier=12),
    "purge beyond": Case(lambda s: s.purge(LogId(1, 90)), [], frontier=90),
    "save vote": Case(lambda s: s.save_vote(Vote(2)), LOG, vote=Vote(2)),
    "save committed": Case(lambda s: s.save_committed(LogId(1, 20)), LOG),
    "flush": Case(lambda s: s.flush(), LOG),
}


def state_of(held: list[Entry], frontier: int) -> LogState:
    purged = LogId(1, frontier) if frontier else None
    return LogState(purged, held[-1].log_id if held else purged)


def frontier_of(state: LogState) -> int:
    return state.last_purged_log_id.index if state.last_purged_log_id is not None else 0


async def reads(side: Any) -> list[list[Entry]]:
    """The whole log in every way that it can be read, some more than once."""
    return [
        await side.try_get_log_entries(0),
        [entry async for entry in side.entries_stream(0)],
        await side.limited_get_log_entries(0, max_bytes=1 << 30),
        await side.try_get_log_entries(0),
    ]


@on_both_backends
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("policy", ["immediate", "immediate_async"])
@pytest.mark.parametrize("name", CASES)
async def test_a_failed_write_is_refused_or_leaves_readers_the_durable_log(
    name: str, policy: str, code: int
) -> None:
    kinds = set()
    for number in itertools.count(1):
        kind = await fail(CASES[name], policy, DISK, number, code)
        if kind is None:
            break
        kinds.add(kind)
    if name not in UNWRITING:
        assert "poisoned" in kinds, number


@on_both_backends
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(
    "name",
    ["append across segments", "append of a large entry", "replace in a sealed one", "purge"],
)
async def test_a_failed_chore_is_refused_or_leaves_readers_the_durable_log(
    name: str, code: int
) -> None:
    for number in range(1, 25):  # how many there are is for the threads to settle
        await fail(CASES[name], "immediate", HOUSEKEEPING, number, code)


async def fail(case: Case, policy: str, thread: str, number: int, code: int) -> str | None:
    """Says what the failure of the call with the number meant; None where there is no such."""
    disk = MemoryKernel()
    environment = FailsOnce(disk, thread, number, code)
    options: dict[str, Any] = {"segment_size": 8192, "cache_bytes": 0}
    async with RaftLogStorage.open("/log", environment=disk, **options) as store:
        await store.append(LOG)
        await store.save_vote(VOTE)
        await store.save_committed(LogId(1, COUNT))
    error: BaseException | None = None
    files = open_files()
    with anyio.fail_after(PATIENCE_SECONDS):
        try:
            async with RaftLogStorage.open(
                "/log",
                environment=environment,
                sync=policy,
                check_raft=case.checks_raft,
                **options,
            ) as store:
                reader = await store.get_log_reader()
                environment.arm()
                error = await outcome(case.write(store))
                late = await outcome(store.flush())  # a chore may have failed meanwhile
                environment.disarm()
                if policy != "immediate":
                    error = error or late
                where = (environment.failed, error)
                await check(store, reader, case, error, where)
                is_poisoned = store.statistics().is_poisoned
                if isinstance(error, WalPoisonedError):
                    assert error.path == "/log" and "/log" in str(error), where
                if error is not None and not is_poisoned:  # it passes
                    await case.write(store)
                    await store.flush()
                    for side in (store, reader):
                        assert await reads(side) == [case.entries] * 4, where
        except WalPoisonedError as at_close:
            assert environment.failed, at_close
    assert open_files() == files, (environment.failed, error)  # without the help of a collection
    if environment.failed is None:
        return None
    await reopen(disk.after_kill(), case, is_done=error is None, where=environment.failed)
    if error is None:
        return "unnoticed"
    return "poisoned" if isinstance(error, WalPoisonedError) else "refused"


async def outcome(call: Awaitable[None]) -> BaseException | None:
    try:
        await call
    except (OSError, WalPoisonedError) as error:
        return error
    return None


async def check(
    store: RaftLogStorage, reader: Any, case: Case, error: BaseException | None, where: Any
) -> None:
    """What all that read see, each time: the log before the write, or after it."""
    state = await store.get_log_state()
    allowed = [(case.entries, case.frontier, case.vote)]
    if error is not None:
        allowed = [(LOG, 0, VOTE)]
        if case.between is not None:
            allowed.append((case.between, 0, VOTE))
        if case.cuts and isinstance(error, WalPoisonedError):
            allowed.append((case.entries, case.frontier, case.vote))
    seen = [each for each in allowed if state == state_of(each[0], each[1])]
    assert seen, (where, state)
    held, _, vote = seen[0]
    for side in (store, reader):
        assert await reads(side) == [held] * 4, where
        assert await side.read_vote() == vote, where
        ids = await side.get_key_log_ids()
        assert ids == list({entry.term: entry.log_id for entry in held}.values())
    committed = await store.read_committed()
    if committed is not None:  # never beyond the end, whatever a truncation that failed left
        assert state.last_log_id is not None, (where, committed)
        assert committed.index <= max(state.last_log_id.index, frontier_of(state)), where
    if error is not None:
        assert store.statistics().last_durable_log_id == state.last_log_id, where
        assert store.statistics().entries == len(held), where


async def reopen(disk: MemoryKernel, case: Case, *, is_done: bool, where: str) -> None:
    """What was acknowledged is there after a kill."""
    async with RaftLogStorage.open("/log", environment=disk, segment_size=8192) as store:
        held = await store.try_get_log_entries(0)
        state = await store.get_log_state()
        if is_done:
            assert held == case.entries, where
            assert await store.read_vote() == case.vote, where
        elif state.last_purged_log_id is None:
            assert held in (LOG[: len(held)], case.entries[: len(held)]), where
            assert len(held) >= len(case.surviving), where
        assert await store.read_vote() in (VOTE, case.vote)
        saved = (None, LogId(1, COUNT), LogId(1, 20), state.last_log_id)
        cut = case.between[-1].log_id if case.between else None
        assert await store.read_committed() in (*saved, cut), where


# --- many at once ------------------------------------------------------------------------


@on_both_backends
async def test_those_behind_a_write_that_poisons_are_all_told_and_none_before_it() -> None:
    poisons = 0
    for number in range(1, 16):
        environment = FailsOnce(MemoryKernel(), DISK, number, errno.EIO)
        with anyio.fail_after(PATIENCE_SECONDS):
            try:
                async with RaftLogStorage.open(
                    "/log", environment=environment, segment_size=8192
                ) as store:
                    poisons += await many(store, environment)
            except WalPoisonedError:
                assert environment.failed
    assert poisons > 5


async def many(store: RaftLogStorage, environment: FailsOnce) -> bool:
    """Writes of all kinds, called one right after the other; says whether one poisoned."""
    seen: list[BaseException | None] = []
    more = entries(20, 22, size=SIZE, term=2)
    calls: dict[str, Callable[[], Awaitable[None]]] = {
        "append": lambda: store.append(MORE),
        "vote": lambda: store.save_vote(Vote(2)),
        "cut": lambda: store.truncate(LogId(1, 20)),
        "more": lambda: store.append(more, seen.append),
        "purge": lambda: store.purge(LogId(1, 9)),
        "flush": store.flush,
    }
    await store.append(LOG)
    environment.arm()
    async with anyio.create_task_group() as tasks:
        started = Started(tasks)
        for name, call in calls.items():
            await started.start(name, call)
    environment.disarm()
    assert sorted(started.outcomes) == sorted(calls)
    answers = [started.outcomes[name] for name in calls]
    if not store.statistics().is_poisoned:
        assert seen in ([None], [])
        return False
    # the append with a callback returns when it is readable, whatever comes then
    answers[3] = seen[0] if seen else answers[3]
    assert len(seen) <= 1
    first = next(place for place, answer in enumerate(answers) if answer is not None)
    assert all(isinstance(answer, WalPoisonedError) for answer in answers[first:])
    return True
