"""Roll-over: what a batch over many segments costs, and how many segments wait for their seal."""

from __future__ import annotations

import errno
import gc
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from hqlwal_raft import LogId, RaftLogStorage
from hqlwal_raft._format import DATA_START, SegmentHeader, segment_name
from hqlwal_raft.testing import MemoryKernel
from tests._catching import CatchingEnvironment
from tests._support import PATIENCE_SECONDS, HookedEnvironment, entries, on_both_backends

SEGMENT_SIZE = 8192
#: eight of these fill a segment
SIZE = 900
PER_SEGMENT = 8
SEALS_WAITING = 4


# --- a batch over many segments ----------------------------------------------------------


class Counting(CatchingEnvironment):
    """Counts the calls, and what the loop's thread does in the meantime."""

    def __init__(self) -> None:
        super().__init__(MemoryKernel())
        self.calls: Counter[str] = Counter()
        self.steps = 0

    def pass_on(self, call: str, path: str, perform: Callable[[], Any]) -> Any:
        if not path.startswith("/proc"):
            self.calls[call] += 1
        return super().pass_on(call, path, perform)

    def count_step(self, frame: Any, event: str, argument: Any) -> None:
        self.steps += event in ("call", "c_call")


async def cost_of(segments: int) -> tuple[Counter[str], int, list[str]]:
    """System calls, function calls on the loop, and plans of one append over so many segments."""
    environment = Counting()
    async with RaftLogStorage.open(
        "/log", environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        await store.append(entries(1, 1 + PER_SEGMENT, size=SIZE))
        batch = entries(1 + PER_SEGMENT, 1 + PER_SEGMENT * (segments + 1), size=SIZE)
        await store.truncate(LogId(1, 100))  # removes nothing, and waits for a quiet house
        environment.calls.clear()
        before = len(environment.plans())
        gc.collect()
        gc.disable()  # the finalizers of what other tests left are no steps of this one
        sys.setprofile(environment.count_step)
        try:
            await store.append(batch)
        finally:
            sys.setprofile(None)
            gc.enable()
        calls = environment.calls.copy()
        assert store.statistics().segments == segments + 1
        names = [plan.name for plan in environment.plans()[before:]]
    return calls, environment.steps, names


@on_both_backends
async def test_a_batch_over_many_segments_costs_what_its_segments_cost() -> None:
    small, few_steps, _ = await cost_of(100)
    large, many_steps, names = await cost_of(200)
    # what grows with the segments: they are made and written, each once
    for call in ("rename", "posix_fallocate"):
        assert 99 <= small[call] <= 102
        assert large[call] - small[call] == pytest.approx(100, abs=2)
    for call in ("pwrite", "pwritev", "fdatasync", "open", "fstat", "stat", "unlink", "close"):
        assert large[call] <= 2 * small[call] + 10, call
    assert many_steps <= 2.2 * few_steps
    # they are prepared by one plan, written by another
    assert names.count("commit") == 1
    assert names.count("prepare") <= 2  # the second is the one ahead
    assert 1 <= large["fsync"] <= 2


# --- seals -------------------------------------------------------------------------------


def waiting_for_their_seal(disk: MemoryKernel) -> int:
    """How many segments have records and no seal, the newest aside."""
    headers = [
        SegmentHeader.unpack(data[:64])
        for path, data in sorted(disk.contents().items())
        if path.endswith(".wal")
    ]
    used = [h for h in headers if isinstance(h, SegmentHeader) and not h.is_unused]
    return sum(not header.is_sealed for header in used[:-1])


class SealsFail(HookedEnvironment):
    """There is no space for what housekeeping writes to published segments."""

    def __init__(self, disk: MemoryKernel) -> None:
        super().__init__(self._fail, environment=disk)
        self.is_full = False
        self.failed = 0

    def _fail(self, call: str, path: str) -> None:
        is_housekeeping = threading.current_thread().name == "hqlwal-housekeeping"
        if self.is_full and is_housekeeping and call == "pwrite" and path.endswith(".wal"):
            self.failed += 1
            raise OSError(errno.ENOSPC, "no space")


@on_both_backends
async def test_no_more_than_four_segments_wait_for_their_seal() -> None:
    disk = MemoryKernel()
    async with RaftLogStorage.open("/log", environment=disk, segment_size=SEGMENT_SIZE) as store:
        for first in range(1, 1 + 40 * PER_SEGMENT, PER_SEGMENT):
            await store.append(entries(first, first + PER_SEGMENT, size=SIZE))
            assert waiting_for_their_seal(disk) <= SEALS_WAITING
    assert waiting_for_their_seal(disk) == 0


@on_both_backends
async def test_under_an_interval_a_sync_comes_before_a_roll_over_has_to_wait_for_a_seal() -> None:
    options: Any = {"environment": MemoryKernel(), "segment_size": SEGMENT_SIZE}
    async with RaftLogStorage.open("/log", sync="interval_3600000", **options) as store:
        begun = 3  # in the third segment two others wait
        for first in range(1, 1 + begun * PER_SEGMENT, PER_SEGMENT):
            await store.append(entries(first, first + PER_SEGMENT, size=SIZE))
        with anyio.fail_after(PATIENCE_SECONDS):
            await store.wait_durable(LogId(1, 2 * PER_SEGMENT + 1))


@on_both_backends
async def test_while_nothing_can_be_sealed_a_roll_over_is_refused_after_four() -> None:
    disk = MemoryKernel()
    environment = SealsFail(disk)
    async with RaftLogStorage.open(
        "/log", environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        environment.is_full = True
        last = 0
        error: OSError | None = None
        while error is None:
            try:
                with anyio.fail_after(20):
                    await store.append(entries(last + 1, last + 1 + PER_SEGMENT, size=SIZE))
                last += PER_SEGMENT
            except OSError as caught:
                error = caught
            assert waiting_for_their_seal(disk) <= SEALS_WAITING
        assert error.errno == errno.ENOSPC
        assert last == (SEALS_WAITING + 1) * PER_SEGMENT
        assert not store.statistics().is_poisoned
        assert await store.try_get_log_entries(0) == entries(1, last + 1, size=SIZE)
        # it passes
        environment.is_full = False
        with anyio.fail_after(20):
            for _ in range(10):
                await store.append(entries(last + 1, last + 1 + PER_SEGMENT, size=SIZE))
                last += PER_SEGMENT
                assert waiting_for_their_seal(disk) <= SEALS_WAITING
    assert environment.failed >= 1
    async with RaftLogStorage.open("/log", environment=disk, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, last + 1, size=SIZE)


@on_both_backends
async def test_a_segment_is_sealed_only_when_its_follower_has_a_durable_record() -> None:
    """When a seal is written, power cuts show whether that one is there for sure."""
    disk = MemoryKernel()
    rng = random.Random(1)
    seen: list[bool] = []

    def check(call: str, path: str) -> None:
        is_housekeeping = threading.current_thread().name == "hqlwal-housekeeping"
        if is_housekeeping and call == "pwrite" and path.endswith(".wal"):
            number = int(path.rpartition("/")[2].partition(".")[0])
            follower = f"/log/{segment_name(number + 1)}"
            images = disk.snapshot().images(rng, 8)
            held = [image.contents().get(follower, b"")[DATA_START:] for image in images]
            seen.extend(data.strip(b"\0") != b"" for data in held)

    environment = HookedEnvironment(check, environment=disk)
    async with RaftLogStorage.open(
        "/log", environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        for first in range(1, 1 + 10 * PER_SEGMENT, 5):
            await store.append(entries(first, first + 5, size=SIZE))
        await store.purge(LogId(1, 3))
    assert seen
    assert all(seen)
