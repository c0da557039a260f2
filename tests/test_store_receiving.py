"""``append_after``: what it syncs, reads and cuts, and what is left where the disk fails in between."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import (
    AppendOutcome,
    CorruptionError,
    Entry,
    LogGapError,
    LogId,
    RaftLogStorage,
    WalClosedError,
)
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment
from tests._support import (
    PATIENCE_SECONDS,
    ColdEnvironment,
    Gate,
    HookedEnvironment,
    Started,
    entries,
    on_both_backends,
    segments,
)
from tests.test_blocking import Threads, until

SEGMENT_SIZE = 8192
#: eight of them fill a segment
SIZE = 900


class Counting:
    """A hook that counts the calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, call: str, path: str) -> None:
        if path.endswith((".wal", ".hql")):
            self.calls[call] += 1

    def taken(self) -> Counter[str]:
        calls, self.calls = self.calls, Counter()
        return calls


def is_segment(path: str) -> bool:
    return path.endswith(".wal")


async def fill(path: Path, count: int = 30) -> list[Entry]:
    log = entries(1, count + 1, size=SIZE)
    async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
        await store.append(log)
    return log


# --- what it costs -------------------------------------------------------------------------


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "immediate_async", "interval_60000"])
async def test_where_nothing_changes_nothing_is_written_nor_synced(
    tmp_path: Path, policy: str
) -> None:
    await fill(tmp_path)
    counting = Counting()
    environment = ColdEnvironment(counting)
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "sync": policy, "cache_bytes": 0}
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        log = entries(1, 31, size=SIZE)
        while not store._core.log.prepared:
            await anyio.lowlevel.checkpoint()
        for prev, start, stop in ((None, 1, 31), (9, 10, 20), (30, 31, 31), (17, 18, 18)):
            counting.taken()
            log_id = None if prev is None else LogId(1, prev)
            outcome = await store.append_after(log_id, log[start - 1 : stop - 1])
            assert outcome == AppendOutcome(matched=True, last_log_id=LogId(1, 30))
            for unmatched in (LogId(2, 30), LogId(1, 99), LogId(0, 7)):
                assert not (await store.append_after(unmatched, [])).matched
            assert set(counting.taken()) <= {"open", "fstat", "preadv", "pread"}


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate_async", "interval_60000"])
async def test_it_has_nothing_synced_that_the_policy_leaves_for_later(
    tmp_path: Path, policy: str
) -> None:
    """Also where the disk must be asked what is held."""
    await fill(tmp_path)
    gate = Gate()
    environment = ColdEnvironment(gate)
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "sync": policy, "cache_bytes": 0}
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        gate.shut()  # no sync of a segment comes back
        with anyio.fail_after(PATIENCE_SECONDS):
            await store.append_after(LogId(1, 30), entries(31, 32))
            if policy == "interval_60000":
                more = entries(9, 31, size=SIZE) + entries(31, 33)
                outcome = await store.append_after(LogId(1, 8), more)
                assert outcome == AppendOutcome(matched=True, last_log_id=LogId(1, 32), appended=1)
                assert store.statistics().syncs == 0
        gate.open()


@on_both_backends
async def test_many_that_wait_at_once_share_syncs(tmp_path: Path) -> None:
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=1 << 20
    ) as store:
        await store.append(entries(1, 2))
        gate.shut()
        before = store.statistics().syncs
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            for index in range(1, 40):
                batch = entries(index + 1, index + 2)
                await started.start(
                    f"{index}", lambda i=index, b=batch: store.append_after(LogId(1, i), b)
                )
            await gate.held()
            gate.open()
        for index in range(1, 40):
            want = AppendOutcome(matched=True, last_log_id=LogId(1, index + 1), appended=1)
            assert started.outcomes[f"{index}"] == want
        assert store.statistics().syncs - before <= 3


@on_both_backends
async def test_a_hint_costs_few_reads_however_long_the_log_is(tmp_path: Path) -> None:
    log = [entry._replace(term=entry.index) for entry in entries(1, 400, size=SIZE)]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(log)
    counting = Counting()
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    environment = ColdEnvironment(counting)
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        for term in (1, 77, 255, 398):
            counting.taken()
            outcome = await store.append_after(LogId(term, 399), [])
            want = LogId(term, term)
            assert outcome == AppendOutcome(False, LogId(399, 399), want)
            # of each entry looked at: its records are found, and it is read
            assert counting.taken()["open"] <= 12


@on_both_backends
async def test_the_log_is_cut_once(tmp_path: Path) -> None:
    log = await fill(tmp_path)
    counting = Counting()
    environment = ColdEnvironment(counting)
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        epoch = store._core.log.epoch
        new = log[3:10] + entries(11, 40, size=SIZE, term=2)
        outcome = await store.append_after(LogId(1, 3), new)
        assert outcome == AppendOutcome(
            matched=True, last_log_id=LogId(2, 39), truncated_from=11, appended=29
        )
        assert store._core.log.epoch == epoch + 1
        assert await store.try_get_log_entries(0) == log[:3] + new


# --- what is durable -----------------------------------------------------------------------


@on_both_backends
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_what_is_there_and_not_durable_is_waited_for(tmp_path: Path, count: int) -> None:
    """A follower's answer to a heartbeat, too, says that it holds the previous log id."""
    gate = Gate()
    async with RaftLogStorage.open(
        tmp_path, environment=HookedEnvironment(gate), segment_size=SEGMENT_SIZE
    ) as store:
        await store.append(entries(1, 4))
        gate.shut()
        await store.append(entries(4, 6), lambda _: None)
        await gate.held()
        await store.append(entries(6, 8), lambda _: None)
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            last = {}
            for index in (3, 5, 7):
                batch = entries(index + 1 - count, index + 1)
                last[f"{index}"] = index
                await started.start(
                    f"{index}",
                    lambda i=index, b=batch: store.append_after(LogId(1, i - count), b),
                )
            await started.start("unmatched", lambda: store.append_after(LogId(1, 9), []))
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert set(started.outcomes) == {"3", "unmatched"}
            gate.open()
        want = AppendOutcome(matched=True, last_log_id=LogId(1, 7))
        assert all(started.outcomes[name] == want for name in last)
        assert store.statistics().last_durable_log_id == LogId(1, 7)


def test_threads_that_receive_and_append_at_once_all_have_their_answers(tmp_path: Path) -> None:
    """Each entry comes once, by whichever of the two calls was the first to have it next."""
    outcomes: list[AppendOutcome] = []
    with BlockingRaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        store.append(entries(1, 2, size=SIZE))

        def run(is_receiving: bool) -> None:
            for index in range(2, 60):
                batch = entries(index, index + 1, size=SIZE)
                if not is_receiving:
                    try:
                        store.append(batch)
                    except LogGapError:
                        continue
                    outcomes.append(AppendOutcome(True, batch[0].log_id, None, None, 1))
                    continue
                outcome = store.append_after(LogId(1, index - 1), batch)
                assert outcome.matched
                outcomes.append(outcome)

        threads = [threading.Thread(target=run, args=(n < 3,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert sum(outcome.appended for outcome in outcomes) == 58
        assert store.try_get_log_entries(0) == entries(1, 60, size=SIZE)


# --- where the disk fails ------------------------------------------------------------------


@on_both_backends
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
async def test_a_full_disk_behind_the_cut_leaves_the_log_cut(tmp_path: Path, call: str) -> None:
    log = await fill(tmp_path)
    files = FailingEnvironment()
    cut: list[str] = []

    def note(call: str, path: str) -> None:
        if call == "unlink" and is_segment(path):  # what is behind the border that is cut at
            cut.append(path)

    environment = HookedEnvironment(note, environment=files)
    async with RaftLogStorage.open(
        tmp_path, environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        while not store._core.log.prepared:
            await anyio.lowlevel.checkpoint()
        new = entries(9, 40, size=SIZE, term=2)
        if call == "posix_fallocate":
            files.fail(call, errno.ENOSPC, times=1000)
        else:
            for name in ("pwrite", "pwritev"):
                files.fail(
                    name, errno.ENOSPC, times=1000, where=lambda p: is_segment(p) and bool(cut)
                )
        with pytest.raises(OSError, match="No space") as caught:
            await store.append_after(LogId(1, 7), [log[7], *new])
        assert caught.value.errno == errno.ENOSPC
        assert cut
        assert await store.try_get_log_entries(0) == log[:8]
        assert (await store.get_log_state()).last_log_id == LogId(1, 8)
        files.heal()
        assert not store.statistics().is_poisoned
        outcome = await store.append_after(LogId(1, 7), [log[7], *new])
        assert outcome == AppendOutcome(matched=True, last_log_id=LogId(2, 39), appended=31)
        assert await store.try_get_log_entries(0) == log[:8] + new
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == log[:8] + new


@on_both_backends
@pytest.mark.parametrize("size", [20, 4000])  # within the tail, or in need of a segment
@pytest.mark.parametrize("bound", [1, 64 << 20])
async def test_what_it_was_to_follow_is_taken_back_and_so_it_does_not_match(
    tmp_path: Path, size: int, bound: int
) -> None:
    """Where the commit of what stands before it is refused, nothing is appended behind a gap:
    not either where the log is empty then, and takes any index.
    """
    files = FailingEnvironment()
    gate = Gate("pwrite")
    environment = HookedEnvironment(gate, environment=files)
    async with RaftLogStorage.open(
        tmp_path, environment=environment, segment_size=SEGMENT_SIZE, max_unsynced_bytes=bound
    ) as store:
        await store.append(entries(1, 2))
        await store.truncate(LogId(1, 1))
        for call in ("pwrite", "pwritev"):
            files.fail(call, errno.ENOSPC, times=1000, where=is_segment)
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("append", lambda: store.append(entries(1, 4)))
            await gate.held()
            batch = entries(4, 7, size=size)
            await started.start("more", lambda: store.append_after(LogId(1, 3), batch))
            held = entries(2, 4)
            await started.start("held", lambda: store.append_after(LogId(1, 1), held))
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            gate.open()
        assert isinstance(started.outcomes["append"], OSError)
        for name in ("more", "held"):
            outcome = started.outcomes[name]
            assert isinstance(outcome, OSError) or outcome == AppendOutcome(False, None), outcome
        assert await store.try_get_log_entries(0) == []
        assert not store.statistics().is_poisoned
        files.heal()
        await store.append_after(None, entries(1, 4) + batch)
        assert await store.try_get_log_entries(0) == entries(1, 4) + batch


@on_both_backends
async def test_damage_where_it_must_compare_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    log = await fill(tmp_path)
    second = segments(tmp_path)[1]
    data = bytearray(second.read_bytes())
    data[data.index(b"12.xxx") + 9] ^= 1
    second.write_bytes(data)
    async with RaftLogStorage.open(
        tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=0, environment=ColdEnvironment()
    ) as store:
        for prev, batch in (
            (LogId(1, 12), [Entry(2, 13)]),
            (LogId(1, 11), [log[11], Entry(2, 13)]),
            (LogId(1, 5), log[5:20]),
            (LogId(2, 12), []),
        ):
            with pytest.raises(CorruptionError, match="checksum") as caught:
                await store.append_after(prev, batch)
            assert caught.value.path == str(second)
        assert (await store.get_log_state()).last_log_id == LogId(1, 30)
        # what need not be looked at is no concern
        await store.append_after(LogId(1, 30), entries(31, 33))
        outcome = await store.append_after(LogId(1, 20), log[20:22] + entries(23, 24, term=2))
        assert outcome.truncated_from == 23
    second.write_bytes(bytes(data))


@on_both_backends
@pytest.mark.parametrize("is_cold", [False, True])
async def test_a_close_in_the_middle_answers_and_leaves_no_mixture(
    tmp_path: Path, *, is_cold: bool
) -> None:
    log = await fill(tmp_path)
    gate = Gate()
    environment: Any = (ColdEnvironment if is_cold else HookedEnvironment)(gate)
    new = entries(11, 14, size=SIZE, term=2)
    async with RaftLogStorage.open(
        tmp_path, environment=environment, segment_size=SEGMENT_SIZE, cache_bytes=0
    ) as store:
        gate.shut()
        async with anyio.create_task_group() as tasks:
            started = Started(tasks)
            await started.start("first", lambda: store.append_after(LogId(1, 8), log[8:10] + new))
            await started.start("second", lambda: store.append_after(LogId(2, 13), []))
            await gate.held()
            await started.start("close", store.aclose)
            gate.open()
        assert isinstance(started.outcomes["first"], WalClosedError)
        assert isinstance(started.outcomes["second"], WalClosedError)
        assert started.outcomes["close"] is None
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        held = await store.try_get_log_entries(0)
        assert held in ([*log[:10], *new][: len(held)], log)
        assert len(held) >= 10


class GateAt(Gate):
    """Shuts itself at the n-th sync of a segment from when it is armed on."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def __call__(self, call: str, path: str) -> None:
        if call == "fdatasync" and path.endswith(".wal"):
            self.left -= 1
            if self.left == 0:
                self.shut()
        super().__call__(call, path)


#: by the sync at which it is closed: what is answered, and the log that is left
CLOSED_AT: dict[int, tuple[Any, slice | None]] = {
    1: (WalClosedError, slice(10)),  # the mark of the cut
    2: (WalClosedError, slice(10)),  # the bytes behind it
    3: (AppendOutcome(True, LogId(2, 13), None, 11, 3), None),  # the rest: it was accepted
}


@on_both_backends
@pytest.mark.parametrize("face", ["async", "threads"])
@pytest.mark.parametrize("at", CLOSED_AT)
async def test_closed_in_the_middle_it_is_refused_though_the_log_is_cut_until_it_was_accepted(
    tmp_path: Path, face: str, at: int
) -> None:
    old, new = entries(1, 21), entries(11, 14, term=2)
    answer, left = CLOSED_AT[at]
    gate = GateAt()
    environment = HookedEnvironment(gate)
    batch = [*old[8:10], *new]
    if face == "async":
        async with RaftLogStorage.open(tmp_path, environment=environment) as store:
            await store.append(old)
            gate.left = at
            async with anyio.create_task_group() as tasks:
                started = Started(tasks)
                await started.start("receives", lambda: store.append_after(LogId(1, 8), batch))
                await gate.held()
                await started.start("closes", store.aclose)
                gate.open()
        outcomes = started.outcomes
    else:
        threads = Threads()
        plain = BlockingRaftLogStorage.open(tmp_path, environment=environment)
        plain.append(old)
        gate.left = at
        threads.start("receives", lambda: plain.append_after(LogId(1, 8), batch))
        await gate.held()
        waiting = len(plain._lane._waiters)
        threads.start("closes", plain.close)
        until(lambda: len(plain._lane._waiters) > waiting, "it does not close")
        gate.open()
        threads.join()
        outcomes = threads.outcomes
    assert outcomes["closes"] is None
    found = outcomes["receives"]
    assert found == answer or (isinstance(found, WalClosedError) and answer is WalClosedError)
    async with RaftLogStorage.open(tmp_path) as store:
        there = await store.try_get_log_entries(0)
    assert there == (old[left] if left is not None else [*old[:10], *new])


# --- what it reads -------------------------------------------------------------------------

FACES: dict[str, Callable[..., Any]] = {
    "cold": ColdEnvironment,
    "warm": HookedEnvironment,
}


@on_both_backends
@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("policy", ["immediate", "immediate_async"])
async def test_whatever_is_in_no_memory_is_compared_on_the_disk(
    tmp_path: Path, name: str, policy: str
) -> None:
    """At every place of a log of many segments, beside readers of the same segments."""
    log = await fill(tmp_path)
    async with RaftLogStorage.open(
        tmp_path,
        environment=FACES[name](),
        segment_size=SEGMENT_SIZE,
        cache_bytes=0,
        sync=policy,
    ) as store:
        last = log
        for first in range(30, 1, -1):
            new = [*log[first - 2 : first - 1], *entries(first, first + 12, size=SIZE, term=2)]
            prev = LogId(1, first - 2) if first > 2 else None
            found: list[list[Entry]] = []

            async def read(found: list[list[Entry]]) -> None:
                found.append(await store.try_get_log_entries(0))

            async with anyio.create_task_group() as tasks:
                started = Started(tasks)
                tasks.start_soon(read, found)
                await started.start("receive", lambda p=prev, b=new: store.append_after(p, b))
                tasks.start_soon(read, found)
            want = [*log[: first - 1], *new[1:]]
            for held in [*found, await store.try_get_log_entries(0)]:
                assert held in (last, want[: first - 1], want)
            last = want
            assert started.outcomes["receive"] == AppendOutcome(
                matched=True, last_log_id=LogId(2, first + 11), truncated_from=first, appended=12
            )
