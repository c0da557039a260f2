"""Budgets of reads at their edges: the first, the last and every entry larger than the budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import Entry, RaftLogStorage, Vote
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import MemoryDisk, MemoryKernel, MemoryLogStorage
from tests._support import ColdEnvironment, on_both_backends

VOTE = Vote(1, 1, committed=True)
#: payloads around what a chunk of a stream takes (256 KiB) and around a segment's length
LARGE, CHUNK = 300_000, 256 << 10
SIZES: dict[str, list[int]] = {
    "large first": [LARGE, 1, 0, 5],
    "large last": [5, 0, 1, LARGE],
    "large between": [5, LARGE, 0, LARGE, 7],
    "large alone": [LARGE],
    "nothing but large": [LARGE] * 4,
    "a chunk and its neighbours": [CHUNK - 33, CHUNK - 32, CHUNK - 31, CHUNK, CHUNK + 1, 1],
    "empty ones": [0] * 40,
    "around a segment": [8192 - 96 + n for n in (-1, 0, 1)] + [3, 8192 - 64, 0],
    "many": [n * 37 % 900 for n in range(60)],
}
#: how a log is opened for reading: nothing, or everything in memory, in the page cache or not
OPENINGS: dict[str, dict[str, Any]] = {
    "tiny segments": {"segment_size": 8192, "cache_bytes": 0},
    "one segment": {"segment_size": 8 << 20, "cache_bytes": 0},
    "cached": {"segment_size": 8192, "cache_bytes": 64 << 20},
}


def log_of(sizes: list[int]) -> list[Entry]:
    return [Entry(1, index, bytes([index]) * size) for index, size in enumerate(sizes, 1)]


def budgets_of(sizes: list[int]) -> list[int]:
    """Sums of what the log begins with, one more and one less, and the usual suspects."""
    sums = list(itertools.accumulate(sizes))
    edges = {n + d for n in [*sizes[:6], *sums[:6]] for d in (-1, 0, 1)}
    return sorted({0, 1, 1000, (1 << 64) - 1} | {n for n in edges if n >= 0})


async def walked(store: Any, budget: int) -> list[Entry]:
    """The whole log, by limited reads one after the other."""
    got: list[Entry] = []
    while some := await store.limited_get_log_entries(len(got) + 1, None, budget):
        got += some
    return got


@on_both_backends
@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
async def test_a_limited_read_gives_what_the_model_gives_at_every_edge_of_its_budget(
    name: str, opening: str, is_cold: bool
) -> None:
    log = log_of(SIZES[name])
    disk = MemoryKernel()
    options = OPENINGS[opening]
    kind = {"environment": ColdEnvironment(lambda _call, _path: None, environment=disk)}
    async with RaftLogStorage.open("/log", environment=disk, **options) as store:
        for entry in log:  # each in a group of its own
            await store.append([entry])
        await store.save_vote(VOTE)
    options = {**options, **(kind if is_cold else {"environment": disk})}
    async with (
        RaftLogStorage.open("/log", **options) as store,
        MemoryLogStorage.open(MemoryDisk(list(log))) as model,
    ):
        for budget in budgets_of(SIZES[name]):
            for start in {1, 2, len(log) // 2, len(log)}:
                want = await model.limited_get_log_entries(start, None, budget)
                got = await store.limited_get_log_entries(start, None, budget)
                assert got == want, (budget, start)
        for budget in budgets_of(SIZES[name])[:5]:
            assert await walked(store, budget) == log
        for start in range(1, len(log) + 2):
            want = log[start - 1 :]
            assert await store.try_get_log_entries(start) == want
            assert [entry async for entry in store.entries_stream(start)] == want
            bounded = store.leader_bounded_stream(VOTE, start)
            assert [entry async for entry in bounded] == want


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("name", SIZES)
def test_so_does_one_of_a_blocking_store(tmp_path: Path, name: str, opening: str) -> None:
    log = log_of(SIZES[name])
    with BlockingRaftLogStorage.open(tmp_path, **OPENINGS[opening]) as store:
        store.append(log)
    with BlockingRaftLogStorage.open(tmp_path, **OPENINGS[opening]) as store:
        for budget in budgets_of(SIZES[name]):
            got = store.limited_get_log_entries(1, None, budget)
            sums = list(itertools.accumulate(SIZES[name]))
            fitting = sum(1 for each in sums if each <= budget)
            assert got == log[: max(fitting, 1)], budget
        assert list(store.entries_stream(1)) == log
