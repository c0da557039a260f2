"""What ``check_raft`` means beyond the conformance suite: off, at open, imports, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, RaftRuleError, Vote
from hqlwal_raft._format import DATA_START
from hqlwal_raft._recovery import recover
from hqlwal_raft._types import FindingKind
from hqlwal_raft.audit import examine
from hqlwal_raft.pysyncobj import WalJournal
from hqlwal_raft.testing import MemoryKernel, MemoryLogStorage
from hqlwal_raft.testing._case import all_started
from tests._support import ColdEnvironment, contents, entries, on_both_backends

SEGMENT_SIZE = 8192


async def write(directory: Path, terms: list[int], size: int = 20) -> None:
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE, check_raft=False) as store:
        for index, term in enumerate(terms, 1):
            await store.append([Entry(term, index, b"x" * size)])


@on_both_backends
async def test_unchecked_everything_is_taken(tmp_path: Path) -> None:
    for opening in (
        RaftLogStorage.open(tmp_path, check_raft=False),
        MemoryLogStorage.open(check_raft=False),
    ):
        async with opening as store:
            await store.append(entries(1, 4, term=5))
            await store.append(entries(4, 6, term=1))
            for vote in (Vote(5, 1, committed=True), Vote(5, 2), Vote(3), Vote(3, 7)):
                await store.save_vote(vote)
                assert await store.read_vote() == vote
            for log_id in (LogId(9, 99), LogId(9, 1), LogId(1, 1)):
                await store.save_committed(log_id)
                assert await store.read_committed() == log_id
            await store.purge(LogId(8, 2))
            assert (await store.get_log_state()).last_purged_log_id == LogId(8, 2)


@on_both_backends
@pytest.mark.parametrize(
    ("terms", "size", "falls"),
    [
        ([1, 2, 2, 1, 1, 3], 20, {4}),
        ([3, 1], 20, {2}),
        ([1] * 8 + [9] * 8 + [7] * 8, 900, {17}),  # where the next segment begins
        ([5, 6, 4], 300_000, {3}),  # in segments of their own, longer than a piece that is read
        ([1, 1, 2, 2, 1 << 63], 20, set()),
    ],
    ids=["within", "second", "border", "large", "rising"],
)
async def test_a_directory_whose_terms_fall_opens_with_a_finding(
    tmp_path: Path, terms: list[int], size: int, falls: set[int]
) -> None:
    await write(tmp_path, terms, size)
    report = examine(str(tmp_path), deep=True)
    found = [f for f in report.all_findings if f.kind is FindingKind.RAFT_RULE]
    assert {finding.first_id for finding in found} == falls
    assert all("lower" in finding.message for finding in found)
    assert report.verdict.name == "INTACT"
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert [entry.term for entry in await store.try_get_log_entries(0)] == terms
        with pytest.raises(RaftRuleError):
            await store.append([Entry(terms[-1] - 1, len(terms) + 1)])
        await store.append([Entry(terms[-1], len(terms) + 1)])


def test_what_an_open_finds_of_falling_terms_it_hands_on() -> None:
    disk = MemoryKernel()

    async def make() -> None:
        async with RaftLogStorage.open("/log", environment=disk, check_raft=False) as store:
            await store.append([Entry(2, 1), Entry(1, 2)])

    anyio.run(make)
    recovered = recover(disk, "/log")
    assert [f.first_id for f in recovered.findings if f.kind is FindingKind.RAFT_RULE] == [2]
    recovered.directory.close()


def written(directory: Path) -> dict[str, bytes]:
    """All bytes but the headers of segments: a mark may come at any time."""
    return {
        name: data[DATA_START:] if name.endswith(".wal") else data
        for name, (_, data) in contents(directory).items()
    }


@on_both_backends
async def test_what_is_refused_changes_no_byte(tmp_path: Path) -> None:
    """Neither where the answer is in memory nor where the disk must be asked."""
    await write(tmp_path, [2] * 30, size=900)
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    environment = ColdEnvironment(lambda _call, _path: None)
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        await store.save_vote(Vote(2, 1))
        await store.save_committed(LogId(2, 7))
        await store.flush()
        before = written(tmp_path)
        calls: list[Any] = [
            lambda: store.append([Entry(1, 31)]),
            lambda: store.save_vote(Vote(1, 1)),
            lambda: store.save_committed(LogId(1, 5)),
            lambda: store.save_committed(LogId(2, 31)),
            lambda: store.purge(LogId(1, 5)),
            lambda: store.purge(LogId(3, 30)),
        ]
        for call in calls:
            with pytest.raises(RaftRuleError) as caught:
                await call()
            assert caught.value.rule in ("term", "vote", "committed", "purge")
            assert caught.value.given is not None
            assert caught.value.held is not None or "ends with" in str(caught.value)
        assert written(tmp_path) == before
        await store.append([Entry(2, 31)])
        await store.purge(LogId(2, 5))
        assert await store.read_committed() == LogId(2, 7)


@on_both_backends
async def test_a_committed_log_id_keeps_its_place_in_the_order_though_the_disk_is_asked(
    tmp_path: Path,
) -> None:

    await write(tmp_path, [2] * 30, size=900)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=0) as store:
        got = await all_started(
            [
                lambda: store.append([Entry(2, 31)]),
                lambda: store.save_committed(LogId(2, 3)),
                lambda: store.save_committed(LogId(9, 3)),
                lambda: store.save_committed(LogId(2, 31)),
                lambda: store.truncate(LogId(2, 20)),
                lambda: store.save_committed(LogId(2, 25)),
                lambda: store.append([Entry(5, 20)]),
                lambda: store.save_committed(LogId(2, 20)),
                lambda: store.save_committed(LogId(5, 20)),
            ]
        )
        assert [type(one) for one in got] == [
            *(type(None), type(None), RaftRuleError, type(None), type(None)),
            *(RaftRuleError, type(None), RaftRuleError, type(None)),
        ]
        assert await store.read_committed() == LogId(5, 20)
    async with RaftLogStorage.open(tmp_path) as store:
        assert await store.read_committed() == LogId(5, 20)


def test_a_journal_is_not_checked_unless_it_is_told_to(tmp_path: Path) -> None:
    journal = WalJournal(str(tmp_path / "a"))
    journal.setCurrentTerm(5, "a")
    journal.setCurrentTerm(5, "b")
    journal.setCurrentTerm(4, None)
    journal._destroy()
    checked = WalJournal(str(tmp_path / "b"), check_raft=True)
    checked.setCurrentTerm(5, "a")
    with pytest.raises(Exception, match="another node was voted for"):
        checked.setCurrentTerm(5, "b")
    checked._destroy()
