"""WalJournal, used bare and as a node's: the contract of pysyncobj's Journal, and durability."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pysyncobj import SyncObjConf, serializer
from pysyncobj.journal import FileJournal

from hqlwal_raft import (
    EntryTooLargeError,
    LogGapError,
    LogId,
    WalClosedError,
    WalLockedError,
    WalPoisonedError,
)
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import unpack_lock
from hqlwal_raft.pysyncobj import StockJournalError, WalJournal, _answers, _dump, _node
from hqlwal_raft.testing import FailingEnvironment, PassingEnvironment
from tests.pysyncobj_nodes.gate import GatedEnvironment

LEADER, FOLLOWER = 2, 0

pytestmark = pytest.mark.usefixtures("calling_thread")


class FakeNode:
    """As much of a node as a journal asks about."""

    def __init__(self, folder: Path, *, is_starting: bool = False, is_leader: bool = False) -> None:
        self.conf = SyncObjConf(journalFile="x", fullDumpFile=str(folder / "dump"))
        self._SyncObj__needLoadDumpFile = is_starting
        self._SyncObj__raftState = LEADER if is_leader else FOLLOWER

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802 - as pysyncobj has it
        return 1.0


def entry(index: int, term: int = 1) -> tuple[bytes, int, int]:
    return b"command %d" % index, index, term


def entries(first: int, last: int, term: int = 1) -> list[tuple[bytes, int, int]]:
    return [entry(index, term) for index in range(first, last + 1)]


def fill(journal: WalJournal, first: int, last: int, term: int = 1) -> None:
    for one in entries(first, last, term):
        journal.add(*one)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


@pytest.fixture
def journals() -> Iterator[Any]:
    """Opens journals, and closes them in the end."""
    opened: list[WalJournal] = []

    def open_journal(path: str, **options: Any) -> WalJournal:
        journal = WalJournal(path, segment_size=1 << 16, **options)
        opened.append(journal)
        return journal

    yield open_journal
    for journal in opened:
        with contextlib.suppress(WalPoisonedError):
            journal._destroy()


def attached(
    journals: Any,
    path: str,
    tmp_path: Path,
    *,
    environment: Environment | None = None,
    **options: Any,
) -> tuple[WalJournal, Any]:
    node = FakeNode(tmp_path, **options)
    (tmp_path / "dump").write_bytes(b"a dump")
    journal = journals(path, environment=environment)
    journal.attach(node)
    return journal, node


# --- the contract of pysyncobj's Journal -----------------------------------------------------


def test_a_fresh_journal_is_empty_and_votes_for_nobody(path: str, journals: Any) -> None:
    journal = journals(path)
    assert len(journal) == 0
    assert journal[:] == []
    assert journal[0:1] == []
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)
    assert journal.getRaftCommitIndex() == 1
    for position in (0, -1, 7):
        with pytest.raises(IndexError):
            journal[position]


def test_entries_survive_two_restarts_with_deletions_at_both_ends(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 6, term=0)
    journal._destroy()

    journal = journals(path)
    assert list(journal) == entries(1, 6, term=0)
    journal.deleteEntriesFrom(4)
    assert (len(journal), journal[-1]) == (4, entry(4, term=0))
    journal._destroy()

    journal = journals(path)
    assert list(journal) == entries(1, 4, term=0)
    journal.deleteEntriesTo(2)
    assert (len(journal), journal[0]) == (2, entry(3, term=0))
    journal._destroy()

    journal = journals(path)
    assert list(journal) == entries(3, 4, term=0)
    fill(journal, 5, 5, term=2)
    assert journal[1:] == [entry(4, term=0), entry(5, term=2)]


def test_term_vote_and_commit_index_survive_a_restart(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.setCurrentTerm(7, "host:4321")
    journal.setRaftCommitIndex(5)
    journal._destroy()
    journal = journals(path)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (7, "host:4321")
    assert journal.getRaftCommitIndex() == 5


@pytest.mark.parametrize(
    "node_id",
    [
        None,
        "host:1",
        "",
        0,
        1 << 63,
        -1,
        1 << 70,
        ("host", 1),
        "\x00literal:x",
        True,
        b"id",
        (True, 1.5),
    ],
)
def test_any_node_id_can_be_voted_for(path: str, journals: Any, node_id: Any) -> None:
    journal = journals(path)
    journal.setCurrentTerm(3, node_id)
    journal._destroy()
    found = journals(path).getVotedForNodeId()
    assert (found, type(found)) == (node_id, type(node_id))


class Address(tuple[str, int]):
    """A tuple to ``==``, and something else to who reads it back."""

    __slots__ = ()


@pytest.mark.parametrize("node_id", [object(), Address(("host", 1)), ("host", Address())])
def test_a_vote_for_a_node_that_only_code_could_bring_back_is_refused(
    path: str, journals: Any, node_id: Any
) -> None:
    journal = journals(path)
    with pytest.raises(TypeError, match="voted for"):
        journal.setCurrentTerm(3, node_id)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)


def test_the_commit_index_is_saved_every_second(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.setRaftCommitIndex(4)
    journal.onOneSecondTimer()
    fill(journal, 10, 10)
    saved = journal._store.read_committed()
    assert (saved.index, saved.term) == (4, 1)


def test_a_commit_index_beyond_the_end_of_the_log_is_clamped(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.setRaftCommitIndex(8)
    journal.onOneSecondTimer()
    journal.deleteEntriesFrom(3)
    assert journal.getRaftCommitIndex() == 3
    journal._destroy()
    assert journals(path).getRaftCommitIndex() == 3


def test_a_commit_index_that_was_clamped_does_not_come_true_when_the_log_has_grown(
    path: str, journals: Any
) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.setRaftCommitIndex(8)
    journal.onOneSecondTimer()
    journal._store.truncate(LogId(1, 4))  # as if never durable
    journal._background.close()
    journal.health.is_closed = True

    journal = journals(path)
    assert journal.getRaftCommitIndex() <= 3
    fill(journal, 4, 20, term=2)
    journal._background.close()  # a kill: nothing is saved at the end
    journal.health.is_closed = True
    assert journals(path).getRaftCommitIndex() <= 3


def test_entries_are_plain_tuples_with_bytes(path: str, journals: Any) -> None:
    journal = journals(path)
    journal.add("text", 1, 0)
    fill(journal, 2, 3)
    journal._destroy()
    journal = journals(path, cache_bytes=0)
    for one in [journal[0], journal[-1], journal[1], *journal[0:2], *journal[:]]:
        assert (type(one), type(one[0])) == (tuple, bytes)
    assert type(journal[0:2]) is list
    assert journal[0] == (b"text", 1, 0)


def test_every_slice_is_as_a_list_would_have_it(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 5, 24)
    journal._destroy()
    journal = journals(path)  # nothing is in memory yet
    for more in (0, 1, 12):  # then the newest few are
        fill(journal, 25, 24 + more) if len(journal) == 20 else fill(journal, 26, 24 + more)
        model = entries(5, 24 + more)
        bounds = [None, 0, 1, 7, 19, 20, 21, 27, 99, -1, -7, -20, -99]
        for start, stop in itertools.product(bounds, bounds):
            for step in (None, 1, 3, -1, -4):
                assert list(journal[start:stop:step]) == model[start:stop:step]


def test_an_entry_that_does_not_follow_is_refused(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    for index in (0, 3, 5, 99):
        with pytest.raises(LogGapError):
            journal.add(*entry(index))
    assert list(journal) == entries(1, 3)


def test_a_command_that_is_too_large_is_refused_and_nothing_else_is(
    path: str, journals: Any
) -> None:
    journal = journals(path, max_entry_size=100)
    fill(journal, 1, 1)
    with pytest.raises(EntryTooLargeError):
        journal.add(b"x" * 101, 2, 1)
    journal.add(b"x" * 100, 2, 1)
    assert len(journal) == 2


def test_after_destroy_the_ends_can_be_read_and_nothing_can_be_added(
    path: str, journals: Any
) -> None:
    journal = journals(path)
    fill(journal, 1, 4)
    journal._destroy()
    journal._destroy()
    assert (len(journal), journal[0], journal[-1]) == (4, entry(1), entry(4))
    journal.setRaftCommitIndex(4)
    journal.onOneSecondTimer()
    changes: list[Any] = [
        lambda: journal.add(*entry(5)),
        lambda: journal.setCurrentTerm(9, None),
        lambda: journal.deleteEntriesFrom(1),
        lambda: journal.deleteEntriesTo(1),
        journal.clear,
    ]
    for change in changes:
        with pytest.raises(WalClosedError):
            change()


def test_used_bare_an_entry_is_durable_when_add_returns(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    assert journal.statistics().last_durable_log_id.index == 3


def test_the_log_can_be_read_beside_its_node_from_any_thread(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    found = journal.get_log_reader().try_get_log_entries(2, 4)
    assert [(e.payload, e.index, e.term) for e in found] == entries(2, 3)


# --- hidden, not gone ------------------------------------------------------------------------


def stored_last(journal: WalJournal) -> int:
    """Tells a log that was cut from one that was not: the storage still holds everything."""
    last = journal.get_log_reader().get_log_state().last_log_id
    assert last is not None
    return last.index


def test_deleted_entries_added_again_come_back_without_being_written(
    path: str, journals: Any
) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    before = journal.statistics().appended_entries
    journal.deleteEntriesFrom(3)
    assert list(journal) == entries(1, 3)
    fill(journal, 4, 6)
    assert list(journal) == entries(1, 6)
    assert stored_last(journal) == 9
    fill(journal, 7, 9)
    fill(journal, 10, 10)
    assert list(journal) == entries(1, 10)
    assert journal.statistics().appended_entries == before + 1


def test_a_different_entry_truncates_for_real(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.deleteEntriesFrom(3)
    fill(journal, 4, 5)
    journal.add(*entry(6, term=2))
    assert list(journal) == [*entries(1, 5), entry(6, term=2)]
    assert stored_last(journal) == 6
    journal._destroy()
    assert list(journals(path)) == [*entries(1, 5), entry(6, term=2)]


def test_the_same_index_and_term_with_another_command_is_a_different_entry(
    path: str, journals: Any
) -> None:
    journal = journals(path)
    fill(journal, 1, 9)
    journal.deleteEntriesFrom(3)
    journal.add(b"another", 4, 1)
    assert list(journal) == [*entries(1, 3), (b"another", 4, 1)]
    assert stored_last(journal) == 4


def test_entries_of_a_list_long_in_the_storage_come_back_too(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 40)
    journal._destroy()
    journal = journals(path)
    journal.deleteEntriesFrom(10)
    fill(journal, 11, 30)
    journal.add(*entry(31, term=3))
    assert list(journal) == [*entries(1, 30), entry(31, term=3)]


def test_a_list_emptied_from_the_front_goes_on_where_it_ended(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 5)
    journal.deleteEntriesTo(5)
    assert list(journal) == []
    journal._destroy()
    journal = journals(path)
    assert len(journal) == 0
    fill(journal, 6, 7)
    assert list(journal) == entries(6, 7)


def test_hidden_entries_of_the_leaders_term_are_shown_at_the_end_of_the_tick(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path)
    journal.setCurrentTerm(5, None)
    fill(journal, 1, 4, term=4)
    fill(journal, 5, 9, term=5)
    journal.deleteEntriesFrom(6)  # an older message of the leader, sent again
    assert len(journal) == 6
    journal.release_answers()
    assert list(journal) == [*entries(1, 4, term=4), *entries(5, 9, term=5)]


def test_hidden_entries_of_an_older_term_stay_hidden_until_a_new_term(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path)
    journal.setCurrentTerm(4, None)
    fill(journal, 1, 9, term=4)
    journal.setCurrentTerm(5, None)
    journal.deleteEntriesFrom(6)  # the new leader may have others there
    journal.release_answers()
    assert list(journal) == entries(1, 6, term=4)
    journal.setCurrentTerm(6, "another")  # now this node votes, and its log counts whole
    assert list(journal) == entries(1, 9, term=4)


# --- loading a dump --------------------------------------------------------------------------


def load_dump(journal: WalJournal, *dump: tuple[bytes, int, int]) -> None:
    """What pysyncobj does with the two entries that a dump ends with."""
    journal.clear()
    assert len(journal) == 0
    for one in dump:
        journal.add(*one)


def test_a_dump_that_the_log_has_keeps_what_follows_it(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path, is_starting=True)
    fill(journal, 1, 20)
    load_dump(journal, entry(10), entry(11))
    assert list(journal) == entries(10, 20)
    journal._destroy()
    assert list(journals(path)) == entries(10, 20)


def test_a_dump_received_from_a_leader_leaves_what_follows_hidden(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path)
    journal.setCurrentTerm(3, None)
    fill(journal, 1, 20)
    load_dump(journal, entry(10), entry(11))
    assert list(journal) == entries(10, 11)
    fill(journal, 12, 15)
    journal.add(*entry(16, term=3))
    assert list(journal) == [*entries(10, 15), entry(16, term=3)]


@pytest.mark.parametrize(
    "dump",
    [
        (entry(10, term=2), entry(11, term=2)),
        (entry(20), entry(21)),
        (entry(21), entry(22)),
        (entry(500), entry(501)),
    ],
)
def test_a_dump_that_the_log_does_not_have_replaces_it(
    path: str, journals: Any, tmp_path: Path, dump: Any
) -> None:
    journal, _node = attached(journals, path, tmp_path, is_starting=True)
    fill(journal, 1, 20)
    load_dump(journal, *dump)
    assert list(journal) == list(dump)
    following = entry(dump[1][1] + 1, term=2)
    journal.add(*following)
    journal._destroy()
    assert list(journals(path)) == [*dump, following]


def test_a_dump_whose_last_entry_differs_cuts_the_log_there(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path, is_starting=True)
    fill(journal, 1, 20)
    load_dump(journal, entry(10), entry(11, term=2))
    assert list(journal) == [entry(10), entry(11, term=2)]
    journal._destroy()
    assert list(journals(path)) == [entry(10), entry(11, term=2)]


def test_a_kill_between_the_dump_and_its_entries_is_mended_by_loading_it_again(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path)
    fill(journal, 1, 20)
    journal.hand_over()
    journal._log.restart_at(501, 1)
    journal._background.close()  # and nothing after it
    journal.health.is_closed = True

    journal, _node = attached(journals, path, tmp_path, is_starting=True)
    assert len(journal) == 0
    journal.add(b"\x01", 1, 0)  # pysyncobj never leaves a journal empty
    assert (len(journal), journal[-1], journal[0:1]) == (1, (b"\x01", 1, 0), [(b"\x01", 1, 0)])
    load_dump(journal, entry(501), entry(502))
    fill(journal, 503, 503)
    assert list(journal) == entries(501, 503)
    journal._destroy()
    assert list(journals(path)) == entries(501, 503)


def test_an_older_dump_than_the_log_begins_with_stops_the_node(
    path: str, journals: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, _node = attached(journals, path, tmp_path, is_starting=True)
    fill(journal, 1, 20)
    journal.deleteEntriesTo(15)
    journal.clear()
    with pytest.raises(WalPoisonedError, match="older than what was purged"):
        journal.add(*entry(3))
    with pytest.raises(WalPoisonedError):
        journal[0]
    assert [r.levelname for r in caplog.records] == ["CRITICAL"]


def test_the_dump_and_its_directory_are_synced_before_the_log_is_purged(
    path: str, journals: Any, tmp_path: Path
) -> None:
    synced: list[tuple[str, int]] = []
    is_opened = False

    class Noting(PassingEnvironment):
        def fsync(self, descriptor: int, /) -> None:
            name = self.path_of(descriptor)
            if is_opened and name in (str(tmp_path), str(tmp_path / "dump")):
                frontier = journal._store._core.log.last_purged_log_id
                synced.append((name, -1 if frontier is None else frontier.index))
            super().fsync(descriptor)

    journal, _node = attached(journals, path, tmp_path, environment=Noting())
    fill(journal, 1, 20)
    is_opened = True
    journal.deleteEntriesTo(10)
    assert list(journal) == entries(11, 20)  # the view does not wait
    journal._destroy()
    assert synced == [(str(tmp_path / "dump"), -1), (str(tmp_path), -1)]
    journal = journals(path)
    assert journal[0] == entry(11)
    purged = journal.get_log_reader().get_log_state().last_purged_log_id
    assert (purged.index, purged.term) == (10, 1)


def test_a_dump_is_synced_before_it_replaces_the_last_one(
    path: str, journals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = serializer.atomicReplace
    done: list[str] = []
    rename = _dump._rename

    class Noting(PassingEnvironment):
        def fsync(self, descriptor: int, /) -> None:
            done.append("sync " + os.path.basename(self.path_of(descriptor)))
            super().fsync(descriptor)

    def note_rename(old: str, new: str) -> None:
        done.append("rename to " + os.path.basename(new))
        rename(old, new)

    journal, _node = attached(journals, path, tmp_path, environment=Noting())
    monkeypatch.setattr(_dump, "_rename", note_rename)
    del done[:]
    for name in ("dump", "somebody else's"):
        (tmp_path / "new").write_bytes(b"new")
        serializer.atomicReplace(str(tmp_path / "new"), str(tmp_path / name))
    assert [d for d in done if "dump" in d or "else" in d or "new" in d] == [
        "sync new",
        "rename to dump",
        "rename to somebody else's",
    ]
    monkeypatch.undo()
    journal._destroy()
    assert serializer.atomicReplace is original


def test_without_a_dump_that_can_be_synced_nothing_is_purged(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _node = attached(journals, path, tmp_path)
    fill(journal, 1, 20)
    (tmp_path / "dump").unlink()
    journal.deleteEntriesTo(10)
    assert list(journal) == entries(11, 20)
    journal._destroy()
    assert list(journals(path)) == entries(1, 20)


# --- lazy answers ----------------------------------------------------------------------------


@pytest.fixture(params=[0, 1 << 20], ids=["from storage", "from memory"])
def long(request: pytest.FixtureRequest, path: str, journals: Any, tmp_path: Path) -> WalJournal:
    journal, node = attached(journals, path, tmp_path)
    fill(journal, 1, 3000)
    journal._destroy()
    if request.param:
        os.rename(path, path + ".old")
    journal = journals(path, cache_bytes=request.param)
    node = FakeNode(tmp_path)
    journal.attach(node)
    journal.keep_alive = node
    if request.param:
        fill(journal, 1, 3000)
    return journal  # type: ignore[no-any-return]


def test_the_rest_of_a_long_log_is_answered_without_fetching_it(long: WalJournal) -> None:
    rest: Any = long[10:]
    assert not isinstance(rest, list)
    assert (len(rest), bool(rest), rest[0], rest[-1]) == (2990, True, entry(11), entry(3000))
    assert rest == entries(11, 3000)
    assert list(enumerate(rest))[-1] == (2989, entry(3000))
    assert list(reversed(rest))[:2] == [entry(3000), entry(2999)]
    assert list(reversed(rest[1:]))[-1] == entry(12)
    with pytest.raises(IndexError):
        rest[2990]
    with pytest.raises(IndexError):
        rest[-2991]


def test_a_bounded_slice_of_a_lazy_answer_is_a_list_that_can_be_sent(long: WalJournal) -> None:
    rest: Any = long[10:]
    for stop in (1, 600, 2990, 5000):
        part = rest[:stop]
        assert type(part) is list
        assert part == entries(11, min(10 + stop, 3000))
        assert pickle.loads(pickle.dumps(part)) == part
    assert b"hqlwal" not in pickle.dumps(rest)
    assert pickle.loads(pickle.dumps(rest)) == entries(11, 3000)


def test_a_slice_that_begins_beyond_the_end_is_empty(long: WalJournal) -> None:
    rest: Any = long[10:]
    for empty in (long[3000:], long[9999:], long[3000:3001], rest[2990:], rest[5000:]):
        assert len(empty) == 0
        assert not empty
        assert list(empty) == []


def test_a_lazy_answer_stays_as_it_was_while_the_log_grows(long: WalJournal) -> None:
    rest: Any = long[10:]
    fill(long, 3001, 3010)
    assert len(rest) == 2990
    assert list(rest) == entries(11, 3000)


def test_memory_holds_no_more_than_it_may(path: str, journals: Any, tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    journal = journals(path, cache_bytes=100_000)
    journal.attach(node)
    fill(journal, 1, 5600)
    journal.hold_answer("leader", reset=False, next_index=None, success=True)
    journal.release_answers()
    assert journal._writer.view.recent_bytes <= 100_000
    assert len(journal._writer.view.recent) < 700
    assert list(journal) == entries(1, 5600)


# --- attached: what waits for what -----------------------------------------------------------


@pytest.fixture
def gated(path: str, tmp_path: Path) -> Iterator[tuple[WalJournal, GatedEnvironment, FakeNode]]:
    files = GatedEnvironment()
    journal = WalJournal(path, environment=files)
    node = FakeNode(tmp_path)
    journal.attach(node)
    try:
        yield journal, files, node
    finally:
        files.gate.set()
        journal._destroy()


def test_attached_add_only_queues_and_is_seen_at_once(gated: Any) -> None:
    journal, files, _node = gated
    files.gate.clear()
    fill(journal, 1, 300)
    journal.hand_over()
    assert files.waiting.wait(10)
    assert list(journal) == entries(1, 300)


def test_an_answer_that_acknowledges_waits_until_it_is_true(gated: Any) -> None:
    journal, files, _node = gated
    files.gate.clear()
    fill(journal, 1, 3)
    assert journal.hold_answer("leader", reset=False, next_index=4, success=True)
    released: list[Any] = []
    thread = threading.Thread(target=lambda: released.extend(journal.release_answers()))
    thread.start()
    assert files.waiting.wait(10)
    assert released == []
    files.gate.set()
    thread.join(10)
    assert [(a.node, a.next_index, a.success) for a in released] == [("leader", 4, True)]
    assert journal.statistics().last_durable_log_id.index == 3


def test_answers_of_one_tick_share_one_sync_and_the_highest_stands_for_all(gated: Any) -> None:
    journal, _files, _node = gated
    for index in range(1, 101):
        fill(journal, index, index)
        journal.hold_answer("leader", reset=False, next_index=index + 1, success=True)
    released = journal.release_answers()
    assert [(a.next_index, a.success) for a in released] == [(101, True)]
    assert journal.statistics().syncs == 1


def test_in_a_long_poll_answers_leave_before_its_end(
    gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _files, node = gated
    node.__dict__["_SyncObj__raftLog"] = journal
    sent: list[int] = []

    def send(*_: Any, **answer: Any) -> None:
        sent.append(answer["nextNodeIdx"])

    monkeypatch.setattr(_node, "_send_answer", send)

    def message(index: int) -> None:
        fill(journal, index, index)
        _node.on_answer(send, node, "leader", nextNodeIdx=index + 1, success=True)

    monkeypatch.setattr(_answers, "_HELD_SECONDS", 1000)
    message(1)
    message(2)
    assert sent == []
    monkeypatch.setattr(_answers, "_HELD_SECONDS", 0)
    message(3)
    assert sent == [4]
    assert journal.statistics().last_durable_log_id.index == 3
    monkeypatch.setattr(_answers, "_HELD_SECONDS", 1000)
    message(4)
    assert sent == [4]
    fill(journal, 5, 300)
    message(301)
    assert sent == [4, 302]


def test_an_answer_that_acknowledges_nothing_leaves_at_once_unless_it_would_overtake(
    gated: Any,
) -> None:
    journal, _files, _node = gated
    fill(journal, 1, 3)
    assert not journal.hold_answer("leader", reset=True, next_index=None, success=False)
    assert journal.hold_answer("leader", reset=False, next_index=4, success=True)
    assert journal.hold_answer("leader", reset=True, next_index=None, success=False)
    released = journal.release_answers()
    assert [(a.next_index, a.reset, a.success) for a in released] == [
        (4, False, True),
        (4, True, False),
    ]


def test_answers_to_different_leaders_are_not_merged(gated: Any) -> None:
    journal, _files, _node = gated
    fill(journal, 1, 3)
    journal.hold_answer("one", reset=False, next_index=4, success=True)
    journal.setCurrentTerm(2, None)
    journal.hold_answer("another", reset=False, next_index=3, success=True)
    assert [(a.node, a.next_index) for a in journal.release_answers()] == [
        ("one", 4),
        ("another", 3),
    ]


def test_an_answer_from_before_the_log_was_cut_does_not_raise_a_later_one(gated: Any) -> None:
    journal, _files, _node = gated
    fill(journal, 1, 9)
    journal.hold_answer("leader", reset=False, next_index=10, success=True)
    journal.deleteEntriesFrom(4)
    journal.add(*entry(5, term=2))
    journal.hold_answer("leader", reset=False, next_index=6, success=True)
    assert [a.next_index for a in journal.release_answers()] == [10, 6]


def test_a_leader_waits_for_its_own_copy_before_it_commits(gated: Any) -> None:
    journal, files, node = gated
    node._SyncObj__raftState = LEADER
    fill(journal, 1, 2)
    journal.setRaftCommitIndex(2)
    assert journal.statistics().last_durable_log_id.index == 2
    files.gate.clear()
    files.waiting.clear()
    fill(journal, 3, 3)
    journal.hand_over()
    assert files.waiting.wait(10)
    journal.setRaftCommitIndex(2)  # what is durable already is not waited for
    committed = threading.Event()

    def commit() -> None:
        journal.setRaftCommitIndex(3)
        committed.set()

    thread = threading.Thread(target=commit)
    thread.start()
    assert not committed.is_set()
    files.gate.set()
    assert committed.wait(10)
    thread.join()
    assert journal.statistics().last_durable_log_id.index == 3


def test_a_follower_does_not_wait_to_note_a_commit_index(gated: Any) -> None:
    journal, files, _node = gated
    files.gate.clear()
    fill(journal, 1, 2)
    journal.setRaftCommitIndex(2)
    assert journal.getRaftCommitIndex() == 2


def test_term_and_vote_are_durable_when_set(path: str, journals: Any) -> None:
    journal = journals(path)
    journal.setCurrentTerm(4, "candidate")
    assert journal.get_log_reader().read_vote().term == 4
    meta = Path(path, "meta.hql").read_bytes()
    assert meta.count(b"candidate") == 2  # in both slots, each of them synced


# --- failures --------------------------------------------------------------------------------


def test_after_a_failed_sync_every_method_raises_and_the_log_says_it_once(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FailingEnvironment()
    journal = WalJournal(path, environment=files)
    node = FakeNode(tmp_path)
    journal.attach(node)
    fill(journal, 1, 3)
    files.fail("fdatasync", errno.EIO, where=lambda name: name.endswith(".wal"))
    journal.hold_answer("leader", reset=False, next_index=4, success=True)
    calls: list[Any] = [
        journal.release_answers,
        lambda: journal[0],
        lambda: journal[-1],
        lambda: journal[0:1],
        lambda: journal.add(*entry(4)),
        lambda: journal.deleteEntriesFrom(1),
        lambda: journal.deleteEntriesTo(1),
        journal.clear,
        lambda: journal.setRaftCommitIndex(1),
        journal.getRaftCommitIndex,
        lambda: journal.setCurrentTerm(2, None),
        journal.getCurrentTerm,
        journal.getVotedForNodeId,
        journal.onOneSecondTimer,
    ]
    for call in calls:
        with pytest.raises(WalPoisonedError, match=path):
            call()
    assert len(journal) == 3  # for the node's status
    said = [r for r in caplog.records if r.levelno >= logging.ERROR]
    # once by the store, for the operator of the disk, and once for the operator of the node
    assert [r.name for r in said] == ["hqlwal_raft", "hqlwal_raft.pysyncobj"]
    journal._destroy()
    journal = WalJournal(path)
    assert len(journal) in (0, 3)
    journal._destroy()


def test_a_disk_too_full_for_a_segment_stops_the_node_and_not_the_log(
    path: str, tmp_path: Path
) -> None:
    files = FailingEnvironment()
    journal = WalJournal(path, environment=files, segment_size=8192)
    node = FakeNode(tmp_path)
    journal.attach(node)
    files.fail("posix_fallocate", errno.ENOSPC, times=1000)
    with pytest.raises(WalPoisonedError, match="No space"):
        for index in range(1, 2000):
            fill(journal, index, index)
            journal.hold_answer("leader", reset=False, next_index=index + 1, success=True)
            journal.release_answers()
    files.heal()
    journal._destroy()
    journal = WalJournal(path, segment_size=8192)
    assert list(journal) == entries(1, len(journal))
    journal._destroy()


def test_a_stock_journal_file_is_refused_with_the_way_to_import_it(tmp_path: Path) -> None:
    path = str(tmp_path / "stock")
    stock = FileJournal(path)
    stock.add(b"command", 1, 0)
    stock._destroy()
    before = Path(path).read_bytes()
    with pytest.raises(StockJournalError, match="hqlwal import-pysyncobj"):
        WalJournal(path)
    assert Path(path).read_bytes() == before


def test_a_directory_in_use_is_refused_at_once(path: str, journals: Any) -> None:
    journals(path)
    with pytest.raises(WalLockedError):
        WalJournal(path)


def test_a_journal_that_nobody_holds_any_more_lets_go(path: str, tmp_path: Path) -> None:
    journal = WalJournal(path)
    fill(journal, 1, 3)
    del journal
    again = WalJournal(path)
    assert list(again) == entries(1, 3)
    again._destroy()


def test_a_forked_child_does_not_keep_the_lock(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # lives until the parent closes the pipe, with everything it inherited
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        os.close(reader)
        journal._destroy()
        assert list(journals(path)) == entries(1, 3)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_a_forked_child_is_refused_at_once(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        status = 0
        for call in (journal.statistics, lambda: journal.add(*entry(4)), journal.get_log_reader):
            try:
                call()
            except WalClosedError:
                status += 1
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    fill(journal, 4, 4)
    assert list(journal) == entries(1, 4)


def test_a_forked_child_that_ends_in_the_ordinary_way_leaves_the_journal_alone(path: str) -> None:
    program = f"""
import os, sys
from hqlwal_raft.pysyncobj import WalJournal
journal = WalJournal({path!r})
journal.add(b"before", 1, 0)
pid = os.fork()
if pid == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert os.path.exists({path!r} + "/lock.hql")
journal.add(b"after", 2, 0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    journal = WalJournal(path)
    assert len(journal) == 2
    journal._destroy()


def test_a_dump_that_a_killed_node_left_running_is_waited_for(tmp_path: Path) -> None:
    temporary = tmp_path / "dump.tmp"
    program = f"f = open({str(temporary)!r}, 'w'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        opened: list[WalJournal] = []
        thread = threading.Thread(
            target=lambda: opened.append(
                WalJournal(tmp_path / "journal", dump_file=str(tmp_path / "dump"))
            )
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        orphan.communicate("\n")
        thread.join(10)
        opened[0]._destroy()


def test_a_process_that_ends_without_a_word_closes_its_journal(path: str) -> None:
    program = f"""
import threading
from hqlwal_raft.pysyncobj import WalJournal
journal = WalJournal({path!r})
for index in range(1, 400):
    journal.add(b"x" * 1000, index, 0)
journal[0:200]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert unpack_lock(Path(path, "lock.hql").read_bytes()) is True  # closed cleanly
    journal = WalJournal(path)
    assert len(journal) == 399
    journal._destroy()


def test_weaker_policies_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    for number, sync in enumerate(("immediate_async", "interval_60000")):
        files = GatedEnvironment()
        journal = WalJournal(tmp_path / str(number), environment=files, sync=sync)
        files.gate.clear()
        fill(journal, 1, 3)
        files.gate.set()
        journal._destroy()
        journal = WalJournal(tmp_path / str(number))
        assert list(journal) == entries(1, 3)
        journal._destroy()


def test_a_node_without_a_dump_file_is_refused_unless_allowed(path: str, journals: Any) -> None:
    node: Any = types.SimpleNamespace(conf=SyncObjConf(journalFile=path))
    with pytest.raises(ValueError, match="allow_no_dump=True"):
        journals(path).attach(node)


# --- threads ---------------------------------------------------------------------------------


def test_whoever_waits_for_the_disk_syncs_itself_unless_a_signal_may_interrupt_it(
    gated: Any,
) -> None:
    journal, files, _node = gated
    fill(journal, 1, 1)
    journal.hold_answer("leader", reset=False, next_index=2, success=True)
    journal.release_answers()
    files.threads.clear()
    fill(journal, 2, 2)
    journal.hold_answer("leader", reset=False, next_index=3, success=True)
    journal.release_answers()
    is_main = threading.current_thread() is threading.main_thread()
    assert files.threads == ["hqlwal-calls" if is_main else threading.current_thread().name]


def test_a_leaders_own_copy_is_synced_while_it_goes_on(gated: Any) -> None:
    journal, files, _node = gated
    files.gate.clear()
    fill(journal, 1, 1)
    journal.hand_over()  # returns, though no sync can end
    assert files.waiting.wait(10)


def test_calls_from_several_threads_keep_their_order(path: str, journals: Any) -> None:
    journal, _ = attached(journals, path, Path(path).parent)
    for index in range(1, 200):
        fill(journal, index, index)
        thread = threading.Thread(target=journal.hand_over)
        if index % 3:
            journal.hand_over()
        thread.start()
        thread.join()
    journal._destroy()
    assert list(journals(path)) == entries(1, 199)


def test_a_destroyed_journal_gives_neither_readers_nor_statistics(path: str, journals: Any) -> None:
    journal = journals(path)
    fill(journal, 1, 3)
    journal._destroy()
    for call in (journal.get_log_reader, journal.get_async_log_reader, journal.statistics):
        with pytest.raises(WalClosedError):
            call()


def test_tasks_of_an_event_loop_read_beside_a_node_that_writes_and_purges(
    path: str, journals: Any, tmp_path: Path
) -> None:
    journal, _ = attached(journals, path, tmp_path)
    fill(journal, 1, 1)
    is_over = threading.Event()

    async def read() -> int:
        reader, count = journal.get_async_log_reader(), 0
        while not is_over.is_set():
            last = (await reader.get_log_state()).last_log_id
            start = max(0, last.index - 700) if last else 0
            found = [entry async for entry in reader.entries_stream(start)]
            numbers = [entry.index for entry in found]
            assert numbers == list(range(numbers[0], numbers[0] + len(found))) if found else True
            assert all(one.payload == entry(one.index)[0] for one in found)
            count += len(found)
        return count

    counted: list[int] = []
    thread = threading.Thread(target=lambda: counted.append(anyio.run(read)))
    thread.start()
    for index in range(2, 6000, 40):
        fill(journal, index, index + 39)
        journal.hold_answer("leader", reset=False, next_index=None, success=True)
        journal.release_answers()
        if index % 1000 == 2 and index > 1000:
            journal.deleteEntriesTo(200)
    is_over.set()
    thread.join(20)
    assert counted[0] > 0
