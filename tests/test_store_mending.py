"""``mend``: damaged records of an open store are given back by copies that prove themselves."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import (
    CorruptionError,
    Entry,
    LogId,
    MendOutcome,
    RaftLogStorage,
    WalPoisonedError,
)
from hqlwal_raft._format import record_bytes
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment
from tests._support import entries, on_both_backends, segments

SEGMENT_SIZE = 8192
#: eight of them fill a segment
SIZE = 900
LOG = entries(1, 31, size=SIZE)
RECORD_BYTES = record_bytes(SIZE)
#: the record in the middle of the second segment
INDEX = 12
OPTIONS: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}


@pytest.fixture
def second(tmp_path: Path) -> tuple[Path, bytes, int]:
    """A sealed segment, what is in it, and where the record begins."""
    with BlockingRaftLogStorage.open(tmp_path, **OPTIONS) as store:
        store.append(LOG)
    path = segments(tmp_path)[1]
    data = path.read_bytes()
    return path, data, data.index(b"12.xxx") - (RECORD_BYTES - SIZE)


def damaged(second: tuple[Path, bytes, int], *places: int) -> None:
    path, data, start = second
    changed = bytearray(data)
    for place in places:
        changed[start + place] ^= 0x10
    path.write_bytes(changed)


def flips() -> Iterator[int]:
    """Every byte of the record's head, and some of its payload."""
    yield from range(RECORD_BYTES - SIZE)
    yield from (RECORD_BYTES - SIZE, RECORD_BYTES - SIZE + 7, RECORD_BYTES - 1)


@pytest.mark.parametrize("index", [9, 12])
async def test_a_settled_bit_is_given_back_as_it_was(tmp_path: Path, index: int) -> None:
    # the first record of a commit has it, the others do not; each is flipped
    async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
        for start in range(0, 30, 8):
            await store.append(LOG[start : start + 8])
    path = segments(tmp_path)[1]
    data = path.read_bytes()
    place = data.index(b"%d.xxx" % index) - (RECORD_BYTES - SIZE) + 12
    assert data[place] == (0x80 if index == 9 else 0)
    path.write_bytes(data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])
    async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
        assert await store.mend(LOG) == MendOutcome(mended=(index,))
    assert path.read_bytes() == data


@on_both_backends
async def test_every_byte_of_a_record_is_given_back(
    tmp_path: Path, second: tuple[Path, bytes, int]
) -> None:
    path, data, _ = second
    for place in flips():
        damaged(second, place)
        async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
            with pytest.raises(CorruptionError):
                await store.try_get_log_entries(0)
            reader = await store.get_log_reader()
            assert await store.mend(LOG[10:14]) == MendOutcome(mended=(INDEX,)), place
            for side in (store, reader):
                assert await side.try_get_log_entries(0) == LOG, place
            assert await store.mend(LOG) == MendOutcome()
            assert path.read_bytes() == data, place
        async with RaftLogStorage.open(tmp_path, check_integrity=True, **OPTIONS) as store:
            assert await store.try_get_log_entries(0) == LOG


@on_both_backends
async def test_what_does_not_prove_itself_is_refused_and_changes_nothing(
    tmp_path: Path, second: tuple[Path, bytes, int]
) -> None:
    path, _, _ = second
    right = LOG[INDEX - 1]
    wrong = [
        right._replace(term=2),
        right._replace(node_id=1),
        right._replace(payload=right.payload[:-1] + b"y"),
        right._replace(payload=right.payload + b"x"),
        right._replace(payload=right.payload[:-1]),
        right._replace(payload=b""),
    ]
    for place in flips():
        damaged(second, place)
        before = path.read_bytes()
        async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
            for copy in wrong:
                assert await store.mend([copy]) == MendOutcome(refused=(INDEX,)), (place, copy)
            assert await store.mend([]) == MendOutcome()
            assert path.read_bytes() == before
            assert await store.mend([*wrong, right]) == MendOutcome(mended=(INDEX,))


@on_both_backends
async def test_healthy_records_and_what_the_log_does_not_hold_are_left_alone(
    tmp_path: Path, second: tuple[Path, bytes, int]
) -> None:
    files = {path: path.read_bytes() for path in segments(tmp_path)}
    async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
        others = entries(0, 60, size=SIZE, term=7)
        assert await store.mend(others) == MendOutcome()
        assert await store.mend(LOG) == MendOutcome()
        assert {path: path.read_bytes() for path in files} == files
        await store.append(entries(31, 33, size=SIZE))  # not written before it is durable
        assert await store.mend(entries(30, 34, size=SIZE)) == MendOutcome()
        await store.purge(LogId(1, 16))
        assert await store.mend(others) == MendOutcome()


@pytest.mark.parametrize("places", list(itertools.permutations((13, 9, 40, 25), 2)))
def test_two_records_side_by_side_are_given_back(
    tmp_path: Path, second: tuple[Path, bytes, int], places: tuple[int, int]
) -> None:
    """Also where the length of the first leads astray, whatever the order of the copies."""
    path, data, _ = second
    first, then = places
    damaged(second, first, RECORD_BYTES + then)
    with BlockingRaftLogStorage.open(tmp_path, **OPTIONS) as store:
        with contextlib.suppress(CorruptionError):
            store.try_get_log_entries(0)
        assert store.mend(LOG[::-1]) == MendOutcome(mended=(INDEX, INDEX + 1))
        assert store.try_get_log_entries(0) == LOG
    assert path.read_bytes() == data


@on_both_backends
async def test_a_write_that_fails_poisons(tmp_path: Path, second: tuple[Path, bytes, int]) -> None:
    damaged(second, 50)
    files = FailingEnvironment()
    with contextlib.suppress(WalPoisonedError):
        async with RaftLogStorage.open(tmp_path, environment=files, **OPTIONS) as store:
            files.fail("fdatasync", errno.EIO, where=lambda p: p.endswith(".wal"))
            with pytest.raises(WalPoisonedError):
                await store.mend(LOG)
            with pytest.raises(WalPoisonedError):
                await store.append([Entry(1, 31)])
    async with RaftLogStorage.open(tmp_path, **OPTIONS) as store:
        await store.mend(LOG)
        assert await store.try_get_log_entries(0) == LOG
