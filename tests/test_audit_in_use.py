"""How a directory is read: in pieces, while a store is in use; salvage."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import (
    DATA_START,
    META_NAME,
    SegmentHeader,
    segment_name,
)
from hqlwal_raft._types import FindingKind
from hqlwal_raft.audit import examine, salvage
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._audited import DAMAGE, ids, kinds, log_of_three, obstacle
from tests._directories import LENGTH, PATH, File, Store, entry, group, meta
from tests._slots import agree, churn, draw

# --- in pieces ---------------------------------------------------------------------------


class Counting(Environment):
    """Counts the bytes that are read."""

    read = 0

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        data = super().pread(descriptor, length, offset)
        self.read += len(data)
        return data


@pytest.mark.parametrize("is_allocated", [False, True], ids=["a hole", "allocated"])
def test_time_and_memory_grow_with_what_was_written(tmp_path: Path, *, is_allocated: bool) -> None:
    # What is allocated and was never written is told as written once it was read, or read ahead.
    length = 64 << 20 if is_allocated else 1 << 30
    file = File(1, group(1, 1), length=1024)
    header = SegmentHeader(file.salt, length, 1, 0, DATA_START, DATA_START)
    path = tmp_path / segment_name(1)
    path.write_bytes(header.pack() + file.content[DATA_START:])
    with path.open("r+b") as segment:
        if is_allocated:
            os.posix_fallocate(segment.fileno(), 0, length)
        else:
            os.truncate(segment.fileno(), length)
        os.fsync(segment.fileno())
        os.posix_fadvise(segment.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (tmp_path / META_NAME).write_bytes(meta(1))
    environment = Counting()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = examine(tmp_path, deep=True, environment=environment)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert ids(report) == [1]
    assert grown < 50 << 10
    assert environment.read < 8 << 20


def test_progress_ends_with_all_there_is() -> None:
    calls: list[tuple[int, int]] = []
    kernel = log_of_three().kernel()
    examine(PATH, deep=True, environment=kernel, progress=lambda *call: calls.append(call))
    assert calls[-1] == (4 * LENGTH, 4 * LENGTH)
    assert calls == sorted(calls)


# --- in use ------------------------------------------------------------------------------


class Meddled(MemoryKernel):
    """Has something happen whenever somebody waits."""

    on_sleep: Callable[[int], None] = staticmethod(lambda count: None)
    sleeps = 0

    def sleep(self, seconds: float, /) -> None:
        self.sleeps += 1
        self.on_sleep(self.sleeps)


def meddled(store: Store) -> Meddled:
    files = {f"{PATH}/{name}": bytes(data) for name, data in store.files.items()}
    return Meddled.of(files, [PATH])


def put(kernel: MemoryKernel, number: int, data: bytes) -> None:
    descriptor = kernel.open(f"{PATH}/{segment_name(number)}", os.O_RDWR)
    kernel.pwrite(descriptor, data, 0)
    kernel.close(descriptor)


def test_the_lock_is_asked_not_the_pid() -> None:
    kernel = log_of_three().kernel()
    assert examine(PATH, environment=kernel).lock.is_clean
    holder = Directory(kernel, PATH)
    holder.lock.take()
    holder.lock.say_held()
    report = examine(PATH, environment=kernel)
    assert report.lock.is_held
    assert report.lock.pid == kernel.getpid()
    holder.close()
    report = examine(PATH, environment=kernel)
    assert not report.lock.is_held
    assert not report.lock.is_clean
    assert str(report.lock) == "not closed cleanly"
    again = Directory(kernel, PATH)
    again.lock.take()  # whoever asked left nothing behind
    again.say_clean()
    again.close()
    assert str(examine(PATH, environment=kernel).lock) == "closed"


def test_what_looks_damaged_once_is_not_damage_if_it_changes() -> None:
    file = File(3, group(9, 2) + group(11, 2), marked=2)
    store = log_of_three()
    store.flip(3, file.offset(0) + 20)
    kernel = meddled(store)
    kernel.on_sleep = lambda count: put(kernel, 3, bytes(file.content))
    report = examine(PATH, environment=kernel)
    assert report.first_obstacle is None
    assert kernel.sleeps == 1


def test_what_looks_damaged_twice_the_same_is_damage_in_a_store_in_use_too() -> None:
    store = log_of_three()
    store.flip(3, 100)
    kernel = meddled(store)
    holder = Directory(kernel, PATH)
    holder.lock.take()
    report = examine(PATH, environment=kernel)
    assert obstacle(report).kind is DAMAGE
    assert kernel.sleeps == 1


def test_a_segment_is_known_by_its_salt_when_two_looks_are_compared() -> None:
    """The same place looks damaged in both looks, but of two files under one name."""
    store = log_of_three()
    store.flip(3, 100)
    kernel = meddled(store)
    holder = Directory(kernel, PATH)
    holder.lock.take()

    def replace(count: int) -> None:
        header = SegmentHeader(count, LENGTH, 9, 10, DATA_START, DATA_START + 144, 0)
        put(kernel, 3, header.pack())

    kernel.on_sleep = replace
    report = examine(PATH, environment=kernel)
    assert report.first_obstacle is None
    assert FindingKind.IN_USE in kinds(report)
    assert kernel.sleeps < 20


def test_a_torn_tail_of_a_store_in_use_is_in_the_making() -> None:
    file = File(1, group(1, 2))
    store = Store(file)
    store.flip(1, file.offset(1) + 20)
    kernel = store.kernel()
    holder = Directory(kernel, PATH)
    holder.lock.take()
    assert kinds(examine(PATH, environment=kernel)) == {FindingKind.IN_USE}


def test_a_file_that_vanishes_between_two_calls_is_looked_for_again() -> None:
    kernel = log_of_three().kernel()

    class Vanishing(Environment):
        pass

    names = kernel.listdir

    def listdir(path: object) -> list[str]:
        return [*names(path), segment_name(5)]  # type: ignore[arg-type]

    kernel.listdir = listdir  # type: ignore[method-assign]
    assert examine(PATH, environment=kernel).first_obstacle is None


# --- salvage -----------------------------------------------------------------------------


def test_what_lies_behind_damage_can_be_read_from_the_broken_files() -> None:
    file = File(2, group(5, 3) + group(8, 4, 200))
    store = Store()
    data = file.content
    data[file.offset(1) + 30] ^= 1
    data[file.offset(4) + 12] ^= 1
    store.files[segment_name(2) + ".broken"] = data
    other = File(3, group(20, 2))
    headless = other.content
    headless[9] ^= 1
    store.files[segment_name(3) + ".broken.2"] = headless
    found = list(salvage(PATH, environment=store.kernel()))
    assert [each.entry for each in found] == [
        *(entry(index, 40) for index in (5, 7)),
        *(entry(index, 200) for index in (8, 10, 11)),
        *(entry(index, 40) for index in (20, 21)),
    ]
    assert [each.offset for each in found][:3] == [file.offset(n) for n in (0, 2, 3)]


def test_salvage_reads_many_records_at_the_pace_of_the_disk() -> None:
    file = File(1, group(1, 20_000, 8), length=1 << 20)
    store = Store()
    store.files[segment_name(1) + ".broken"] = file.content
    kernel = store.kernel()
    started = time.perf_counter()
    assert sum(1 for _ in salvage(PATH, environment=kernel)) == 20_000
    assert time.perf_counter() - started < 5


# --- against the reference ---------------------------------------------------------------


def test_random_directories_are_judged_as_the_reference_judges_them() -> None:
    rng = random.Random(11)
    verdicts = [agree(draw(rng)) for _ in range(4000)]
    assert 400 < sum(verdicts) < 3600


class Interleaved(Environment):
    """The store writes on while it is looked at: between any two calls."""

    def __init__(self, path: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.writer = churn(path, self.rng)
        self.sleeps = 0

    def go_on(self) -> None:
        for _ in range(self.rng.choice((0, 0, 0, 1, 3, 40))):
            next(self.writer)

    def sleep(self, seconds: float, /) -> None:
        self.sleeps += 1
        self.go_on()

    def listdir(self, path: str | int, /) -> list[str]:
        self.go_on()
        return os.listdir(path)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        self.go_on()
        return os.pread(descriptor, length, offset)


def test_a_store_that_is_written_to_is_never_called_damaged(tmp_path: Path) -> None:
    looks_again = 0
    for seed in range(30):
        path = tmp_path / str(seed)
        path.mkdir()
        environment = Interleaved(str(path), seed)
        for _ in range(20):
            report = examine(path, deep=True, environment=environment)
            assert report.first_obstacle is None, report.first_obstacle
        looks_again += environment.sleeps
    assert looks_again > 100  # a single look would have been mistaken
