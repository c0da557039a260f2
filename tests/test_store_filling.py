"""Segments that are filled with zeros ahead: when, where, and what a failure of it means."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import LogId, RaftLogStorage
from hqlwal_raft._format import segment_name
from hqlwal_raft._plans import Create, Plan
from hqlwal_raft.testing import MemoryKernel
from tests._catching import CatchingEnvironment
from tests._support import entries, on_both_backends

SEGMENT_SIZE = 1 << 20
#: from so many on it pays
SYNCS = 180
BEYOND = LogId(1, 10**9)


def machine(file_system: str = "ext4") -> CatchingEnvironment:
    kernel = MemoryKernel()
    kernel.file_system = file_system
    return CatchingEnvironment(kernel)


def filled(plans: list[Plan]) -> list[str]:
    """The names of the files that were made full of zeros."""
    steps = [step for plan in plans for step in plan.steps]
    return [step.name for step in steps if isinstance(step, Create) and step.is_filled]


async def append_one_by_one(store: RaftLogStorage, number: int) -> None:
    last = (await store.get_log_state()).last_log_id
    first = 1 if last is None else last.index + 1
    for entry in entries(first, first + number, size=64):
        await store.append([entry])
    await store.truncate(BEYOND)  # removes nothing, and waits for a quiet house


@on_both_backends
async def test_what_is_prepared_gives_way_to_a_filled_segment_where_syncs_are_many() -> None:
    environment = machine()
    async with RaftLogStorage.open(
        "/log", environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        await append_one_by_one(store, SYNCS - 1)
        assert filled(environment.plans()) == []
        await append_one_by_one(store, 2)
        assert filled(environment.plans()) == [segment_name(2)]
        await append_one_by_one(store, SYNCS)
        assert filled(environment.plans()) == [segment_name(2)]
    names = sorted(environment.listdir("/log"))
    assert [name for name in names if name.endswith(".wal")] == [segment_name(1), segment_name(2)]


@on_both_backends
async def test_after_a_segment_of_many_syncs_the_next_ones_are_filled_from_the_start() -> None:
    environment = machine()
    async with RaftLogStorage.open(
        "/log", environment=environment, segment_size=SEGMENT_SIZE
    ) as store:
        await append_one_by_one(store, SYNCS)
        last = (await store.get_log_state()).last_log_id
        assert last is not None
        large = entries(last.index + 1, last.index + 2, size=SEGMENT_SIZE - 8192)
        await store.append(large)
        await store.truncate(BEYOND)
        assert filled(environment.plans()) == [segment_name(2), segment_name(3)]


@pytest.mark.parametrize(
    ("file_system", "options"),
    [
        ("btrfs", {}),
        ("tmpfs", {}),
        ("ext4", {"fill_segments": False}),
        ("ext4", {"sync": "immediate_async"}),
        ("ext4", {"segment_size": 1 << 16}),
    ],
)
@on_both_backends
async def test_nothing_is_filled_where_it_does_not_pay_or_is_not_wanted(
    file_system: str, options: dict[str, Any]
) -> None:
    environment = machine(file_system)
    options = {"segment_size": SEGMENT_SIZE, **options}
    async with RaftLogStorage.open("/log", environment=environment, **options) as store:
        for entry in entries(1, 2 * SYNCS, size=64):
            await store.append([entry])
            await store.flush()
        await store.truncate(BEYOND)
    assert filled(environment.plans()) == []


class _Failing(CatchingEnvironment):
    """The nth call that concerns the second segment's file fails."""

    def __init__(self, number: int, code: int) -> None:
        kernel = MemoryKernel()
        kernel.file_system = "ext4"
        super().__init__(kernel)
        self.left = number
        self.code = code
        self.is_armed = False

    def pass_on(self, call: str, path: str, perform: Any) -> Any:
        if self.is_armed and segment_name(2) in path:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, "not now")
        return super().pass_on(call, path, perform)


@on_both_backends
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_filling_that_fails_changes_nothing_for_who_appends(code: int) -> None:
    for number in range(1, 30):
        environment = _Failing(number, code)
        async with RaftLogStorage.open(
            "/log", environment=environment, segment_size=SEGMENT_SIZE
        ) as store:
            await append_one_by_one(store, SYNCS - 2)
            environment.is_armed = True
            await append_one_by_one(store, 6)
            environment.is_armed = False
            assert not store.statistics().is_poisoned
            last = (await store.get_log_state()).last_log_id
            assert last is not None
            await store.append(entries(last.index + 1, last.index + 3, size=SEGMENT_SIZE - 8192))
        async with RaftLogStorage.open(
            "/log", environment=environment, check_integrity=True
        ) as store:
            assert len(await store.try_get_log_entries(0)) == SYNCS + 6
        if environment.left > 0:
            return
    raise AssertionError("there are more calls than were tried")


@on_both_backends
async def test_a_filled_segment_has_all_its_blocks_written(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        if not store._core.log.directory.allows_filling:
            pytest.skip(f"{tmp_path} is on neither ext4 nor XFS: nothing is filled there")
        await append_one_by_one(store, SYNCS - 1)
        assert not is_written(tmp_path / segment_name(2), SEGMENT_SIZE // 2)
        await append_one_by_one(store, 2)
        assert is_written(tmp_path / segment_name(2), SEGMENT_SIZE // 2)


def is_written(path: Path, offset: int) -> bool:
    """Whether the block at the offset was ever written; an allocated one alone is a hole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what was read ahead is no hole
        return os.lseek(descriptor, offset, os.SEEK_DATA) == offset
    except OSError as error:
        assert error.errno == errno.ENXIO, error  # nothing but a hole from there on
        return False
    finally:
        os.close(descriptor)
