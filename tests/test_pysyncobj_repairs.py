"""pysyncobj's costly habits, each in a scenario on a real node: it holds with the repair, and does
not without it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysyncobj
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from hqlwal_raft import WalClosedError, WalError, WalLockedError, WalPoisonedError
from hqlwal_raft.pysyncobj import _node, _repairs, install, uninstall
from hqlwal_raft.pysyncobj._stepping_out import UNKNOWN_OUTCOME, step_down
from hqlwal_raft.pysyncobj._unsaved_votes import SAVES_VOTES
from tests.pysyncobj_nodes.cluster import wait_until
from tests.pysyncobj_nodes.fed import Counter, Fed, StandingClock, StockCounter
from tests.pysyncobj_nodes.gate import GatedEnvironment

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:GzipFile was opened for writing:FutureWarning",  # pysyncobj 0.3.11
)

MEMBERSHIP = b"\x02"
#: of a follower that has the leader's first entry
ANSWER = {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True}


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # files that pysyncobj leaves open are forgotten here, and not in another test


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fed]]:
    made: list[Fed] = []

    def make_one(**conf: Any) -> Fed:
        made.append(Fed(tmp_path, monkeypatch, **conf))
        return made[-1]

    yield make_one
    for fed in made:
        fed.node.destroy()


# --- the scenarios ---------------------------------------------------------------------------


def an_older_dump_of_a_leader_does_not_replace_a_newer_one(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.tick()
    fed.grow(220)
    fed.feed(1, 101, 101)
    fed.compact()
    older = (fed.folder / "dump").read_bytes()
    fed.feed(101, 201, 201)
    fed.compact()
    fed.feed(201, 211, 211)
    fed.send_dump(older, 211)
    assert fed.journal.failure is None
    fed.feed(201, 221, 221)
    assert fed.applied == fed.node.count + 1 == 221
    fed.restart()
    assert fed.journal.failure is None
    fed.feed(221, 221, 221)
    assert fed.applied == fed.node.count + 1 == 221


class Slow(Counter):
    """Its dump takes until a byte comes through a pipe."""

    gate: Any = None


class Gate:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def __reduce__(self) -> Any:
        os.read(self.reader, 1)
        return (int, ())


def a_dump_of_the_nodes_own_that_took_long_does_not_replace_a_newer_one(
    make: Callable[..., Fed],
) -> None:
    ahead = make(useFork=False)
    ahead.tick()
    ahead.grow(300)
    ahead.feed(1, 301, 301)
    ahead.compact()
    newer = (ahead.folder / "dump").read_bytes()
    ahead.node.destroy()
    shutil.rmtree(ahead.folder / "log")
    (ahead.folder / "dump").unlink()

    fed = make(base=Slow, useFork=True)
    fed.tick()
    fed.entries = ahead.entries
    fed.feed(1, 101, 101)
    fed.node.gate = gate = Gate()
    fed.node.forceLogCompaction()
    fed.tick()
    child = fed.node._SyncObj__serializer._Serializer__pid
    assert child > 0
    fed.send_dump(newer, 301)
    assert fed.applied == 301
    os.write(gate.writer, b"x")
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    fed.node.gate = None
    fed.tick(3)
    assert not (fed.folder / "dump.tmp").exists()
    fed.restart()
    assert fed.journal.failure is None
    assert fed.applied == fed.node.count + 1 == 301


def a_membership_change_that_was_hidden_is_applied_again(make: Callable[..., Fed]) -> None:
    for starts_election in (False, True):
        fed = make(dynamicMembershipChange=True)
        fed.tick()
        fed.grow(2)
        fed.grow(1, command=MEMBERSHIP + _pickle(["add", "X", Node("X")]))
        fed.grow(1)
        fed.feed(1, 5, 5)
        assert _others(fed) == {"L", "F", "X"}
        if starts_election:
            fed.wire.receive(fed.leader, _append(fed, 2, 3))
            vote = {"type": "request_vote", "term": 2, "last_log_index": 3, "last_log_term": 1}
            sent = fed.receive(vote, fed.other)
            assert "response_vote" not in [message["type"] for _, message in sent]
        else:
            fed.feed(2, 3, 5)  # an older message: entry 4 is taken back
        assert fed.journal[-1][1] == 5
        assert _others(fed) == {"L", "F", "X"}
        fed.node.destroy()
        shutil.rmtree(fed.folder / "log")


def a_piece_of_a_snapshot_does_not_raise_the_commit_index(make: Callable[..., Fed]) -> None:
    fed = make(leaderFallbackTimeout=1000)
    fed.become_leader()
    fed.receive(ANSWER, fed.other)
    fed.tick()
    outcomes: list[Any] = []
    fed.node.inc(callback=lambda result, error: outcomes.append((result, error)))
    fed.tick()
    assert (fed.journal[-1][1], fed.node.raftCommitIndex) == (3, 2)
    for piece in ((b"xx", True, False), None, (b"yy", False, False)):
        fed.receive({"type": "append_entries", "term": 9, "commit_index": 500, "serialized": piece})
        fed.tick()
        assert outcomes == []
        assert fed.node.raftCommitIndex == 2


def a_log_that_differs_over_more_than_a_message_is_mended(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.tick()
    fed.grow(20)
    fed.feed(1, 21, 5)
    del fed.entries[5:]
    fed.grow(20, term=2)
    wanted, end = 24, len(fed.entries)  # where a leader begins that was elected with 23 entries
    for _ in range(20):
        starts = range(wanted - 1, end, 4)
        messages = [_append(fed, start, min(start + 4, end), 2) for start in starts]
        del fed.wire.sent[:]
        for message in messages:
            fed.wire.receive(fed.leader, message)
        fed.tick()
        for _, answer in fed.wire.sent:
            wanted = answer["next_node_idx"]
    assert fed.journal[-1] == fed.entries[-1]


def damage_that_a_read_meets_makes_a_leader_step_out(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.node.destroy()
    fed.options |= {"segment_size": 1 << 16, "cache_bytes": 1 << 10}
    fed.start()
    fed.become_leader()
    for _ in range(20):
        fed.journal.add(b"\x00" + b"x" * 10_000, fed.journal[-1][1] + 1, 1)
        fed.tick()
    fed.journal.setRaftCommitIndex(fed.journal[-1][1])  # waits until all of it is on disk
    segment = min((fed.folder / "log").glob("*.wal"))
    with segment.open("r+b") as file:  # one bit, under the open log
        file.seek(30_000)
        bit = bytes([file.read(1)[0] ^ 1])
        file.seek(30_000)
        file.write(bit)
    fed.wire.receive(fed.other, {**ANSWER, "reset": True, "success": False})
    for _ in range(3):
        fed.clock.now += 1
        with contextlib.suppress(WalError):
            fed.tick()
    assert fed.journal.failure is not None
    assert not fed.node._isLeader()
    assert fed.wire.is_destroyed


def a_node_whose_dump_cannot_be_loaded_takes_no_part(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.tick()
    fed.grow(100)
    fed.feed(1, 101, 101)
    fed.compact()
    fed.feed(101, 101, 101)
    fed.node.destroy()
    whole = (fed.folder / "dump").read_bytes()
    for cut in (whole[: len(whole) // 2], b"no dump at all"):
        (fed.folder / "dump").write_bytes(cut)
        fed.start()
        vote = {"type": "request_vote", "term": 9, "last_log_index": 900, "last_log_term": 8}
        try:
            fed.tick()
            sent = fed.receive(vote, fed.other)
        except WalError as error:
            assert "Either put the dump back" in str(error.__cause__)
            sent = []
        assert fed.journal.failure is not None
        assert [to for to, message in sent if message["type"] == "response_vote"] == []
        fed.node.destroy()
    (fed.folder / "dump").write_bytes(whole)
    fed.start()
    fed.tick()
    assert fed.applied == 101


def a_node_without_the_dump_that_its_log_needs_is_not_made(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.tick()
    fed.grow(100)
    fed.feed(1, 101, 101)
    fed.compact()
    fed.node.destroy()
    for is_empty in (True, False):
        if is_empty:
            (fed.folder / "dump").write_bytes(b"")
        else:
            (fed.folder / "dump").unlink()
        refused: list[str] = []
        try:
            fed.start()
        except WalError as error:
            refused.append(str(error))
        assert refused
        assert "Either put the dump back" in refused[0]


def waiting_for_the_own_disk_is_not_the_leaders_silence(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.tick()
    fed.grow(9)
    fed.feed(1, 5, 5)
    fed.clock.sync_seconds = 5.0
    answers = fed.feed(5, 8, 8)
    assert [message["type"] for _, message in answers] == ["next_node_idx"]
    fed.clock.sync_seconds = 0.0
    fed.tick(2)
    assert fed.node.raftCurrentTerm == 1
    fed.clock.now += 2.0  # real silence
    fed.tick()
    assert fed.node.raftCurrentTerm == 2


def _others(fed: Fed) -> set[str]:
    return {node.id for node in fed.node.otherNodes}


def _append(fed: Fed, previous: int, last: int, term: int = 1) -> dict[str, Any]:
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": last,
        "entries": fed.entries[previous:last],
        "prevLogIdx": previous,
        "prevLogTerm": fed.entries[previous - 1][2],
    }


def _pickle(value: Any) -> bytes:
    import pickle

    return pickle.dumps(value)


def a_leader_that_gave_up_its_post_lets_another_be_elected(make: Callable[..., Fed]) -> None:
    fed = make()
    fed.become_leader()
    # a leader looks at no election deadline: its own is of before it was elected
    fed.node.__dict__["_SyncObj__raftElectionDeadline"] = pysyncobj.syncobj.monotonicTime() - 10
    term = fed.node.__dict__["_SyncObj__raftCurrentTerm"]
    step_down(fed.node, fed.journal)
    fed.tick()
    assert not fed.node._isLeader()
    assert fed.node.__dict__["_SyncObj__raftCurrentTerm"] == term


#: the scenario, the repair that it needs, and what stands for its absence
SCENARIOS: list[tuple[Callable[..., None], str, Callable[..., Any]]] = [
    (
        an_older_dump_of_a_leader_does_not_replace_a_newer_one,
        "is_newer_dump",
        lambda _end, _than: True,
    ),
    (
        a_dump_of_the_nodes_own_that_took_long_does_not_replace_a_newer_one,
        "is_newer_dump",
        lambda _end, _than: True,
    ),
    (
        a_membership_change_that_was_hidden_is_applied_again,
        "apply_membership_again",
        lambda _node, _entries: None,
    ),
    (
        a_piece_of_a_snapshot_does_not_raise_the_commit_index,
        "keep_commit_index",
        lambda commit, *_, **__: commit,
    ),
    (
        a_log_that_differs_over_more_than_a_message_is_mended,
        "go_back_to_commit",
        lambda next_index, _committed: next_index,
    ),
    (damage_that_a_read_meets_makes_a_leader_step_out, "is_damage", lambda _error: False),
    (a_node_whose_dump_cannot_be_loaded_takes_no_part, "lacks_its_dump", lambda *_: False),
    (a_node_without_the_dump_that_its_log_needs_is_not_made, "lacks_its_dump", lambda *_: False),
    (
        waiting_for_the_own_disk_is_not_the_leaders_silence,
        "push_election_deadline",
        lambda _node, _seconds: None,
    ),
    (
        a_leader_that_gave_up_its_post_lets_another_be_elected,
        "wait_for_another_leader",
        lambda _node: None,
    ),
]
NAMES = [scenario.__name__ for scenario, _, _ in SCENARIOS]


@pytest.mark.parametrize(("scenario", "repair", "absence"), SCENARIOS, ids=NAMES)
def test_a_node_keeps_its_promise_where(
    scenario: Any, repair: str, absence: Any, make: Callable[..., Fed]
) -> None:
    scenario(make)


@pytest.mark.parametrize(("scenario", "repair", "absence"), SCENARIOS, ids=NAMES)
def test_without_the_repair_it_would_not_be_that(
    scenario: Any,
    repair: str,
    absence: Any,
    make: Callable[..., Fed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_repairs, repair, absence)
    with pytest.raises((AssertionError, WalError)):
        scenario(make)


def test_every_repair_has_a_scenario() -> None:
    assert {repair for _, repair, _ in SCENARIOS} == set(_repairs.__all__)


# --- dumps that are kept in another way ------------------------------------------------------


def test_an_older_dump_that_an_application_loads_by_itself_leads_back_to_the_own_one(
    tmp_path: Path, make: Callable[..., Fed]
) -> None:
    state = {"count": 0}

    def serializer(path: str, data: Any) -> None:
        with open(path, "wb") as file:
            file.write(_pickle((state["count"], *data)))

    def deserializer(path: str) -> Any:
        import pickle

        with open(path, "rb") as file:
            state["count"], *data = pickle.load(file)
        return tuple(data)

    fed = make(serializer=serializer, deserializer=deserializer)
    fed.tick()
    fed.grow(220)

    def feed(previous: int, last: int) -> None:
        fed.feed(previous, last, last)
        state["count"] = fed.applied - 1

    feed(1, 101)
    fed.compact()
    older = (tmp_path / "dump").read_bytes()
    feed(101, 201)
    fed.compact()
    newer = (tmp_path / "dump").read_bytes()
    feed(201, 211)
    fed.send_dump(older, 211)
    assert (tmp_path / "dump").read_bytes() == newer
    assert state["count"] == 200  # the own dump, and then the log again
    fed.feed(211, 211, 211)
    assert fed.applied == 211
    assert fed.journal.failure is None


def test_an_older_dump_does_not_replace_a_newer_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(tmp_path, monkeypatch, options={"allow_no_dump": True}, fullDumpFile=None)
    fed.tick()
    fed.grow(220)
    fed.feed(1, 101, 101)
    fed.compact()
    serializer = fed.node._SyncObj__serializer
    older = serializer._Serializer__inMemorySerializedData
    fed.feed(101, 201, 201)
    fed.compact()
    fed.send_dump(older, 201)
    assert fed.applied == fed.node.count + 1 == 201
    assert serializer._Serializer__inMemorySerializedData != older
    fed.node.destroy()


def test_a_dump_of_a_leader_that_cannot_be_read_changes_nothing(
    make: Callable[..., Fed], caplog: pytest.LogCaptureFixture
) -> None:
    fed = make()
    fed.tick()
    fed.grow(9)
    fed.feed(1, 5, 5)
    assert fed.send_dump(b"no dump at all", 9) == []
    assert (fed.applied, fed.node.raftCommitIndex) == (5, 5)
    assert not list(fed.folder.glob("dump*"))
    assert ["cannot be read" in r.getMessage() for r in caplog.records] == [True]


def test_a_newer_dump_of_a_leader_is_taken_and_survives_a_restart(make: Callable[..., Fed]) -> None:
    ahead = make()
    ahead.tick()
    ahead.grow(300)
    ahead.feed(1, 301, 301)
    ahead.compact()
    newer = (ahead.folder / "dump").read_bytes()
    ahead.node.destroy()
    shutil.rmtree(ahead.folder / "log")
    (ahead.folder / "dump").unlink()
    fed = make()
    fed.tick()
    fed.entries = ahead.entries
    fed.feed(1, 101, 101)
    answers = fed.send_dump(newer, 301)
    assert [message["next_node_idx"] for _, message in answers] == [302]
    assert fed.applied == fed.node.raftCommitIndex == fed.node.count + 1 == 301
    fed.restart()
    assert fed.applied == fed.node.count + 1 == 301


# --- a node whose log failed -----------------------------------------------------------------


def failing(fed: Fed) -> None:
    """The leader's own copy cannot be synced: it waits for that before it commits."""
    fed.clock.fail("fdatasync", errno.EIO, times=1000)
    fed.node.inc(callback=lambda _result, error: fed.outcomes.append(error))
    with pytest.raises(WalPoisonedError, match="restart the node"):
        fed.tick()
        fed.receive({**ANSWER, "next_node_idx": 4}, fed.other)
        fed.tick()


def test_a_failed_node_answers_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def note(journal: Any) -> None:
        called.append(journal)
        raise RuntimeError("a mistake of the application's")

    fed = Fed(tmp_path, monkeypatch, options={"on_failure": note})
    fed.become_leader()
    fed.receive(ANSWER, fed.other)
    fed.tick()
    assert fed.node.isReady()
    assert fed.node.hasQuorum
    assert fed.node.getStatus()["journal_failure"] is None
    failing(fed)
    assert fed.outcomes == [UNKNOWN_OUTCOME]
    assert called == [fed.journal]
    assert isinstance(fed.journal.failure, OSError)
    status = fed.node.getStatus()
    assert "Input/output error" in status["journal_failure"]
    assert (status["has_quorum"], status["leader"], status["state"]) == (False, None, 0)
    assert (fed.node.isReady(), fed.node.hasQuorum, fed.node._isLeader()) == (False, False, False)
    fed.node.printStatus()
    assert fed.node._getRaftLogSize() == 3
    fed.tick(3)
    assert called == [fed.journal]


def test_a_failed_node_that_is_ticked_waits_its_time_and_raises_once_a_minute(
    make: Callable[..., Fed], caplog: pytest.LogCaptureFixture
) -> None:
    fed = make()
    fed.become_leader()
    failing(fed)
    raised: list[BaseException] = []
    began = fed.clock.now
    for _ in range(20 * 60 * 10):  # ten minutes of Patroni's controller
        try:
            fed.node.doTick(0.05)
        except WalPoisonedError as error:
            raised.append(error)
    assert fed.clock.now - began == pytest.approx(600, abs=1)
    assert len(raised) in (9, 10)
    assert all(error.__cause__ is None for error in raised)
    assert len([r for r in caplog.records if r.name == "hqlwal_raft.pysyncobj"]) == 1


# --- a leader whose disk does not answer -----------------------------------------------------


def test_a_leader_whose_disk_stalls_gives_up_its_post_and_answers_its_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stalled = threading.Event()
    disk = GatedEnvironment()
    now = [0.0]  # the clock moves when the test says so: a slow machine is no stall
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    options = {
        "environment": disk,
        "step_down_seconds": 0.1,
        "on_step_down": lambda _journal: stalled.set(),
    }
    fed = Fed(tmp_path, monkeypatch, options=options)
    fed.become_leader()
    outcomes: list[int] = []
    fed.node.inc(callback=lambda _result, error: outcomes.append(error))
    fed.tick()
    disk.gate.clear()
    fed.node.inc(callback=lambda _result, error: outcomes.append(error))
    fed.tick()
    fed.wire.receive(fed.other, {**ANSWER, "next_node_idx": 5})
    ticking = threading.Thread(target=fed.tick)
    ticking.start()  # it waits for its own copy before it commits
    try:
        wait_until(lambda: fed.journal._writer.waiting_since is not None, "waiting for the disk")

        def is_stalled() -> bool:
            now[0] += 1.0  # more than once: what it was seen to wait for may have been its vote
            return stalled.wait(0.1)

        wait_until(is_stalled, "the post given up")
        assert outcomes == [UNKNOWN_OUTCOME] * 2
        assert not fed.node._isLeader()
        assert fed.node._getLeader() is None
        refused = threading.Event()

        def refuse(_result: Any, error: int) -> None:
            outcomes.append(error)
            refused.set()

        fed.node.inc(callback=refuse)
        assert refused.wait(20)
        assert outcomes[2:] == [FAIL_REASON.MISSING_LEADER]
    finally:
        disk.gate.set()
        ticking.join()
    assert fed.journal.failure is None
    assert len([r for r in caplog.records if "gives up its post" in r.message]) == 1
    fed.node.destroy()


# --- false alarms ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_filtered", [True, False])
def test_what_is_never_true_over_this_journal_is_not_logged(
    make: Callable[..., Fed], caplog: pytest.LogCaptureFixture, *, is_filtered: bool
) -> None:
    upstream = logging.getLogger("pysyncobj.syncobj")
    alarms = [f for f in upstream.filters if isinstance(f, _node._FalseAlarms)]
    assert len(alarms) == 1
    is_said = SAVES_VOTES and not is_filtered  # older versions do not say it
    if not is_filtered:
        upstream.removeFilter(alarms[0])
    try:
        fed = make()
        fed.tick()
        fed.grow(9)
        fed.feed(1, 9, 9)
        fed.feed(3, 9, 9)
        assert ["truncating" in r.msg for r in caplog.records] == [True] * is_said
    finally:
        if not is_filtered:
            upstream.addFilter(alarms[0])
    upstream.critical("truncating already-applied log entries")  # of a node without a WAL
    assert "truncating already-applied log entries" in [r.msg for r in caplog.records]


# --- votes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["a subclass", "installed", "installed, then uninstalled"])
def test_no_node_votes_twice_in_one_term_though_it_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def votes(sender: Any) -> list[str]:
        vote = {"type": "request_vote", "term": 7, "last_log_index": 9, "last_log_term": 6}
        return [to for to, m in fed.receive(vote, sender) if m["type"] == "response_vote"]

    def begin() -> None:
        if way != "a subclass":
            install(environment=StandingClock(), step_down_seconds=None)

    try:
        begin()
        base = Counter if way == "a subclass" else StockCounter
        fed = Fed(tmp_path, monkeypatch, base=base)
        if way == "installed, then uninstalled":
            uninstall()  # the node lives on
        fed.tick()
        assert votes(fed.other) == ["F"]
        begin()
        fed.restart()
        assert fed.node.raftCurrentTerm == 7
        assert votes(fed.leader) == []
        fed.node.destroy()
        fed.start()
        fed.become_leader()
        assert fed.node.raftCurrentTerm == 8
        fed.restart()
        assert fed.node.raftCurrentTerm == 8
        assert fed.journal.getVotedForNodeId() == "me"
        fed.node.destroy()
    finally:
        uninstall()


# --- forks -----------------------------------------------------------------------------------


def in_a_child(call: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if call() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_node_that_is_ticked_may_be_made_before_its_process_forks(
    make: Callable[..., Fed], tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    fed = make()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)  # ends by itself
        assert not thread.is_alive()

    def daemon() -> bool:
        fed.tick()
        fed.grow(100)
        fed.feed(1, 101, 101)
        fed.compact()  # its own dump, in the child of the child
        fed.node.destroy()
        return fed.applied == 101 and (tmp_path / "dump").exists()

    assert in_a_child(daemon)
    fed.node.destroy()
    again = make()
    again.tick()
    assert again.applied == 101


def test_a_node_that_ticked_before_its_process_forked_says_what_to_do(
    make: Callable[..., Fed],
) -> None:
    fed = make()
    fed.tick()

    def daemon() -> bool:
        with pytest.raises(WalClosedError, match="opened before this process was forked: make"):
            fed.tick()
        return True

    assert in_a_child(daemon)
    fed.tick()


def test_a_log_that_another_node_changed_before_the_first_tick_is_not_used(
    make: Callable[..., Fed],
) -> None:
    first, second = make(), make()
    second.become_leader()
    with pytest.raises(WalLockedError):
        first.tick()
    second.node.destroy()
    with pytest.raises(WalPoisonedError, match="another process changed"):
        first.tick()
