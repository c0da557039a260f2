"""Votes and committed log ids in our store: what is refused, what they cost, which slot counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import LogId, RaftLogStorage, Vote
from tests._support import HookedEnvironment, entries, on_both_backends

SEGMENT_SIZE = 8192


@on_both_backends
async def test_a_vote_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    bad: list[tuple[Any, type[Exception]]] = [
        (Vote(-1), ValueError),
        (Vote(1 << 64), ValueError),
        (Vote(1, -1), ValueError),
        (Vote(1, 1 << 64), ValueError),
        (Vote(1, "n" * 1025), ValueError),
        (Vote(1, "é" * 513), ValueError),
        (Vote(1, 1.5), TypeError),  # type: ignore[arg-type]
        (Vote(1, b"node"), TypeError),  # type: ignore[arg-type]
    ]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.save_vote(Vote(3, "kept"))
        for vote, error_type in bad:
            with pytest.raises(error_type, match="vote"):
                await store.save_vote(vote)
            assert await store.read_vote() == Vote(3, "kept")
        await store.save_vote(Vote(4, "é" * 512))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.read_vote() == Vote(4, "é" * 512)


@on_both_backends
async def test_a_vote_is_synced_in_both_slots_before_it_is_acknowledged(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    files = HookedEnvironment(lambda call, path: calls.append((call, Path(path).name)))
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, environment=files) as store:
        await store.append(entries(1, 3))
        del calls[:]
        await store.save_vote(Vote(5))
        made = [call for call, name in calls if name == "meta.hql"]
        # and then it is looked whether it is still the file at the path
        assert made == ["pwrite", "fdatasync", "pwrite", "fdatasync", "stat"]
        assert ("stat", tmp_path.name) in calls


@on_both_backends
@pytest.mark.parametrize("slot", [0, 4096])
async def test_damage_to_one_slot_loses_no_vote(tmp_path: Path, slot: int) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for term in range(1, 5):
            await store.save_vote(Vote(term, "me"))
    meta = tmp_path / "meta.hql"
    for damage in (b"\0" * 4096, b"\xff" * 4096, meta.read_bytes()[slot : slot + 20] + b"?" * 4076):
        data = meta.read_bytes()
        meta.write_bytes(data[:slot] + damage + data[slot + 4096 :])
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            assert await store.read_vote() == Vote(4, "me")
        # the slot was mended, so the other may be damaged now
        other = 4096 - slot
        data = meta.read_bytes()
        meta.write_bytes(data[:other] + damage + data[other + 4096 :])
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            assert await store.read_vote() == Vote(4, "me")


@on_both_backends
async def test_a_damaged_committed_record_falls_back_to_an_older_one(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 11))
        for index in (3, 4, 5):
            await store.save_committed(LogId(1, index))
    meta = tmp_path / "meta.hql"
    whole = meta.read_bytes()
    seen = set()
    for offset in (8192, 8704):
        meta.write_bytes(whole[:offset] + b"?" * 512 + whole[offset + 512 :])
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            seen.add(await store.read_committed())
            assert await store.try_get_log_entries(0) == entries(1, 11)
    assert seen == {LogId(1, 5), LogId(1, 4)}
    meta.write_bytes(whole[:8192] + b"?" * 4096)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.read_committed() is None


@on_both_backends
async def test_many_changes_of_meta_do_not_let_it_grow(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31))
        for index in range(1, 31):
            await store.save_vote(Vote(index, "x" * index))
            await store.save_committed(LogId(1, index))
    assert (tmp_path / "meta.hql").stat().st_size == 12288
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.read_vote() == Vote(30, "x" * 30)
        assert await store.read_committed() == LogId(1, 30)


@on_both_backends
@pytest.mark.parametrize(
    ("cut", "purged", "left"), [(10, 0, 9), (9, 0, 8), (7, 3, 6), (4, 3, 3), (1, 0, None)]
)
async def test_a_truncation_cuts_the_committed_log_id_with_the_entries(
    tmp_path: Path, cut: int, purged: int, left: int | None
) -> None:
    committed = LogId(1, left) if left is not None else None
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 11))
        await store.save_committed(LogId(1, 4))
        await store.save_committed(LogId(1, 9))
        if purged:
            await store.purge(LogId(1, purged))
        await store.truncate(LogId(1, cut))
        assert await store.read_committed() == committed
        await store.append(entries(cut, 21, term=2))  # it does not come back when these are there
        assert await store.read_committed() == committed
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.read_committed() == committed
