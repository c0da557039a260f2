"""Nodes of pysyncobj in one process, on WAL directories: any host, any way of use."""

from __future__ import annotations

import errno
import gc
import gzip
import itertools
import logging
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
import pytest
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjException, replicated
from pysyncobj.batteries import (
    ReplCounter,
    ReplDict,
    ReplList,
    ReplLockManager,
    ReplPriorityQueue,
    ReplQueue,
    ReplSet,
)
from pysyncobj.journal import FileJournal
from pysyncobj.transport import TCPTransport

from hqlwal_raft import WalLockedError, WalPoisonedError
from hqlwal_raft.pysyncobj import (
    SUPPORTED_VERSIONS,
    StockJournalError,
    WalJournal,
    WalSyncObj,
    _checks,
    install,
    journal_of,
    uninstall,
)
from hqlwal_raft.pysyncobj._stepping_out import UNKNOWN_OUTCOME
from hqlwal_raft.testing import FailingEnvironment
from tests.pysyncobj_nodes.cluster import free_addresses, stop, wait_until
from tests.pysyncobj_nodes.gate import GatedEnvironment

# pysyncobj leaves dump files that it sends to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Sum(WalSyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.total = 0

    @replicated
    def plus(self, value: int, pad: Any = None) -> int:
        self.total += value
        return self.total


class PlainSum(SyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.total = 0

    @replicated
    def plus(self, value: int, pad: Any = None) -> int:
        self.total += value
        return self.total


class Nodes:
    """Nodes with their folder and addresses, and the thread or threads that tick them."""

    def __init__(self, folder: Path, size: int = 3) -> None:
        self.folder = folder
        self.addresses = free_addresses(size)
        self.alive: list[Any] = []

    def conf(self, index: int, **options: Any) -> SyncObjConf:
        settings: dict[str, Any] = {
            "journalFile": str(self.folder / f"{index}.wal"),
            "fullDumpFile": str(self.folder / f"{index}.dump"),
            "logCompactionMinEntries": 10**9,
            "logCompactionMinTime": 10**9,
            "appendEntriesPeriod": 0.03,
            "raftMinTimeout": 0.15,
            "raftMaxTimeout": 0.4,
            "connectionRetryTime": 0.05,
            "autoTickPeriod": 0.02,
        }
        return SyncObjConf(**settings | options)

    def make(
        self, index: int, base: Any = Sum, others: list[int] | None = None, **named: Any
    ) -> Any:
        conf = named.pop("conf", {})
        known = range(len(self.addresses)) if others is None else others
        node = base(
            self.addresses[index],
            [self.addresses[i] for i in known if i != index],
            self.conf(index, **conf),
            **named,
        )
        self.alive.append(node)
        return node

    def make_all(self, base: Any = Sum, **named: Any) -> list[Any]:
        return [self.make(index, base, **named) for index in range(len(self.addresses))]

    def close(self, *nodes: Any) -> None:
        for node in nodes or list(self.alive):
            self.alive.remove(node)
            stop(node)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, size=2)
    yield made
    made.close()


@pytest.fixture
def installed() -> Iterator[Callable[..., None]]:
    yield install
    uninstall()


def ready(*found: Any) -> None:
    wait_until(lambda: all(node.isReady() for node in found), "all ready")


def agree(found: list[Any], total: int) -> None:
    wait_until(lambda: all(node.total == total for node in found), f"all at {total}")


def tick(found: list[Any], is_done: Callable[[], bool], what: str = "done") -> None:
    """Ticks each node from a new thread, as an application may."""
    stop = threading.Event()

    def run(node: Any) -> None:
        while not stop.is_set():
            node.doTick(0.02)

    threads = [threading.Thread(target=run, args=(node,)) for node in found]
    for thread in threads:
        thread.start()
    try:
        wait_until(is_done, what)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# --- WalSyncObj ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_batched", [True, False])
def test_a_cluster_goes_on_where_it_was_after_each_of_two_restarts(
    nodes: Nodes, *, is_batched: bool
) -> None:
    total = 0
    for restart in range(3):
        found = nodes.make_all(conf={"appendEntriesUseBatch": is_batched})
        ready(*found)
        agree(found, total)
        for node, value in itertools.product(found, range(40)):
            node.plus(value, "x" * 3000)
            total += value
        assert found[restart].plus(1, sync=True, timeout=20) <= total + 1
        total += 1
        agree(found, total)
        assert all(os.path.isdir(node.conf.journalFile) for node in found)
        nodes.close()


def test_destroyed_nodes_can_be_made_again_on_their_directories_at_once(nodes: Nodes) -> None:
    found = nodes.make_all()
    ready(*found)
    found[0].plus(5, sync=True, timeout=20)
    agree(found, 5)
    for node in found:
        nodes.alive.remove(node)
        node.destroy()  # only tells the tick thread
    ready(*(again := nodes.make_all()))
    agree(again, 5)


def test_a_directory_of_a_living_node_is_refused(pair: Nodes) -> None:
    node = pair.make(0)
    with pytest.raises(WalLockedError):
        pair.make(0)
    assert node.isReady() is False


def test_a_node_whose_thread_ended_gives_its_directory_up(pair: Nodes) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(pair.make(0)))
    thread.start()
    thread.join()
    wait_until(lambda: not made[0]._SyncObj__thread.is_alive(), "the tick thread ended")
    pair.alive.clear()
    pair.make(0)


def test_a_node_that_was_forgotten_gives_its_directory_up(pair: Nodes) -> None:
    node = pair.make(0, conf={"autoTick": False})
    pair.alive.clear()
    del node
    gc.collect()
    pair.make(0)


def test_a_node_that_cannot_be_made_gives_its_directory_up(pair: Nodes) -> None:
    blocked = pair.make(0)
    journal = str(pair.folder / "1.wal")
    for _ in range(2):
        with pytest.raises(SyncObjException):
            Sum(pair.addresses[0], [], pair.conf(1, autoTick=False, maxBindRetries=1))
    assert blocked is not None
    bare = WalJournal(journal)
    bare._destroy()


def test_an_application_may_tick_from_new_threads_every_time(nodes: Nodes) -> None:
    found = nodes.make_all(conf={"autoTick": False, "appendEntriesUseBatch": False})
    tick(found, lambda: all(node.isReady() for node in found))
    for round_number in range(1, 4):
        for node in found:
            node.plus(1)
        tick(found, lambda: {node.total for node in found} == {3 * round_number})  # noqa: B023
    journal = journal_of(found[0])
    assert journal is not None
    assert not journal.is_closed
    nodes.close(found[0])
    assert found[0].getStatus()["log_len"] > 9  # a late look


def test_batteries_are_consumers_as_ever(nodes: Nodes) -> None:
    def consumers() -> list[Any]:
        return [
            ReplCounter(),
            ReplList(),
            ReplDict(),
            ReplSet(),
            ReplQueue(),
            ReplPriorityQueue(),
            ReplLockManager(autoUnlockTime=60),
        ]

    sets = [consumers() for _ in range(3)]
    found = [nodes.make(i, WalSyncObj, consumers=sets[i]) for i in range(3)]
    ready(*found)
    counter, items, table, members, queue, heap, locks = sets[0]
    assert counter.add(41, sync=True) == 41
    counter.inc(sync=True)
    items.append("a", sync=True)
    items.extend(["c", "b"], sync=True)
    items.sort(sync=True)
    table.set("key", {"nested": [1, 2]}, sync=True)
    members.add(7, sync=True)
    queue.put("first", sync=True)
    queue.put("second", sync=True)
    assert queue.get(sync=True) == "first"
    heap.put((2, "later"), sync=True)
    heap.put((1, "sooner"), sync=True)
    assert locks.tryAcquire("lock", sync=True)
    for node in found:
        node.forceLogCompaction()
    wait_until(
        lambda: all((nodes.folder / f"{i}.dump").exists() for i in range(3)), "dumps written"
    )
    counter.inc(sync=True)
    for one in sets:
        one[-1].destroy()
    nodes.close()

    sets = [consumers() for _ in range(3)]
    found = [nodes.make(i, WalSyncObj, consumers=sets[i]) for i in range(3)]
    ready(*found)
    for counter, items, table, members, queue, heap, locks in sets:
        wait_until(lambda: counter.get() == 43, "the counter restored")  # noqa: B023
        assert items.rawData() == ["a", "b", "c"]
        assert table["key"] == {"nested": [1, 2]}
        assert members.rawData() == {7}
        assert (len(queue), len(heap)) == (1, 2)
        locks.destroy()


def test_a_node_joins_and_leaves_with_its_journal(nodes: Nodes) -> None:
    conf = {"dynamicMembershipChange": True}
    found = [nodes.make(i, others=[0, 1], conf=conf) for i in range(2)]
    ready(*found)
    found[0].plus(7, sync=True, timeout=20)
    answers: list[int] = []
    found[0].addNodeToCluster(nodes.addresses[2], callback=lambda _r, error: answers.append(error))
    wait_until(lambda: bool(answers), "the node added")
    assert answers == [FAIL_REASON.SUCCESS]
    third = nodes.make(2, conf=conf)
    ready(third)
    agree([*found, third], 7)
    nodes.close()

    # the two remember the third from their journals, though nobody tells them of it
    found = [nodes.make(i, others=[0, 1], conf=conf) for i in range(2)]
    third = nodes.make(2, conf=conf)
    ready(*found, third)
    agree([*found, third], 7)
    third.plus(3, sync=True, timeout=20)
    agree([*found, third], 10)
    assert {node.address for node in found[0].otherNodes} == set(nodes.addresses[1:])
    leaving = next(node for node in found if not node._isLeader())
    address = leaving.selfNode.address

    def is_removed() -> bool:
        for node in [*found, third]:
            if node._isLeader() and node is not leaving:
                node.removeNodeFromCluster(address)
        return all(address not in [n.address for n in node.otherNodes] for node in [*found, third])

    wait_until(is_removed, "the node removed")


class CountingTransport(TCPTransport):
    sent = 0

    def send(self, node: Any, message: Any) -> bool:
        if isinstance(message, dict) and message["type"] == "next_node_idx":
            type(self).sent += 1
        return bool(super().send(node, message))


def test_answers_leave_through_a_transport_of_ones_own(nodes: Nodes) -> None:
    CountingTransport.sent = 0
    found = nodes.make_all(transportClass=CountingTransport)
    ready(*found)
    assert found[0].plus(2, sync=True, timeout=20) == 2
    assert CountingTransport.sent > 0


def test_one_node_alone_commits_only_what_is_durable(tmp_path: Path) -> None:
    alone = Nodes(tmp_path, size=1)
    try:
        node = alone.make(0)
        ready(node)
        journal = journal_of(node)
        assert journal is not None
        for value in range(1, 6):
            node.plus(value, sync=True, timeout=20)
            last = journal.statistics().last_durable_log_id
            assert last is not None
            assert last.index >= node.raftLastApplied
    finally:
        alone.close()


@pytest.mark.parametrize("is_leaders", [True, False])
@pytest.mark.parametrize("is_installed", [True, False])
def test_nothing_is_acknowledged_before_a_majority_has_it_on_disk(
    pair: Nodes, installed: Callable[..., None], *, is_leaders: bool, is_installed: bool
) -> None:
    disks = [GatedEnvironment(), GatedEnvironment()]
    found = []
    for index in range(2):
        if is_installed:
            installed(environment=disks[index])
            found.append(pair.make(index, PlainSum))
        else:
            found.append(pair.make(index, Sum, environment=disks[index]))
    ready(*found)
    leader = next(node for node in found if node._isLeader())
    slow = leader if is_leaders else next(node for node in found if node is not leader)
    disk = disks[found.index(slow)]
    disk.gate.clear()
    disk.waiting.clear()
    acknowledged = threading.Event()
    try:
        leader.plus(1, callback=lambda _r, _e: acknowledged.set())
        assert disk.waiting.wait(10)
        assert not acknowledged.wait(0.3)
        assert leader.total == 0
    finally:
        disk.gate.set()
    assert acknowledged.wait(20)
    agree(found, 1)


def test_the_journal_is_applied_before_the_network_is_there(pair: Nodes) -> None:
    found = pair.make_all()
    ready(*found)
    found[0].plus(150, sync=True, timeout=20)
    found[1].plus(200, sync=True, timeout=20)
    agree(found, 350)
    pair.close()
    alone = pair.make(0)  # has no quorum, and no dump; knows what was committed
    wait_until(lambda: alone.total == 350, "the committed entries applied")
    assert not alone.isReady()


def test_elections_at_random_lose_nothing(nodes: Nodes) -> None:
    chance = random.Random(5)
    conf = {
        "autoTick": False,
        "appendEntriesUseBatch": False,
        "appendEntriesPeriod": 0.02,
        "raftMinTimeout": 0.1,
        "raftMaxTimeout": 0.2,
    }
    found = nodes.make_all(conf=conf)
    acknowledged: list[int] = []

    def note(value: int) -> Callable[[Any, int], None]:
        return lambda _r, error: acknowledged.append(value) if error == 0 else None

    end = time.monotonic() + 6
    leaders: dict[int, Any] = {}
    while time.monotonic() < end:
        some = chance.sample(found, chance.choice([2, 2, 3]))
        until = time.monotonic() + chance.random() * 0.25
        tick(some, lambda: time.monotonic() > until)  # noqa: B023
        for node in found:
            if node._isLeader():
                assert leaders.setdefault(node._getTerm(), node) is node
        for _ in range(chance.randint(0, 3)):
            value = chance.randint(1, 9)
            chance.choice(found).plus(value, callback=note(value))
    tick(found, lambda: all(node.isReady() for node in found))
    tick(found, lambda: len({node.total for node in found}) == 1)
    total = found[0].total
    assert len(leaders) > 3
    assert total >= sum(acknowledged) > 0
    nodes.close()
    found = nodes.make_all(conf=conf)
    tick(found, lambda: all(node.total >= total for node in found))


def test_a_follower_far_behind_catches_up_by_entries(nodes: Nodes) -> None:
    found = [nodes.make(0, cache_bytes=100_000), nodes.make(1, cache_bytes=100_000)]
    ready(*found)
    done = threading.Event()
    for number in range(1, 20_001):
        found[0].plus(1, callback=(lambda _r, _e: done.set()) if number == 20_000 else None)
    assert done.wait(30)
    late = nodes.make(2)
    agree([*found, late], 20_000)
    assert not (nodes.folder / "0.dump").exists()
    journal = journal_of(found[0])
    assert journal is not None
    assert journal._writer.view.recent_bytes < 1_000_000


def test_a_follower_behind_the_dump_gets_the_dump(nodes: Nodes) -> None:
    found = [nodes.make(0), nodes.make(1)]
    ready(*found)
    for _ in range(50):
        found[0].plus(1)
    agree(found, 50)
    for node in found:
        node.forceLogCompaction()
    wait_until(lambda: all(node._getRaftLogSize() < 10 for node in found), "compacted")
    found[0].plus(1, sync=True, timeout=20)
    late = nodes.make(2)
    ready(late)
    agree([*found, late], 51)
    assert late._getRaftLogSize() < 10
    nodes.close()
    again = nodes.make_all()
    ready(*again)
    agree(again, 51)


def test_a_dump_holds_nothing_of_the_adapter(nodes: Nodes) -> None:
    found = nodes.make_all()
    ready(*found)
    found[0].plus(9, sync=True, timeout=20)
    for node in found:
        node.forceLogCompaction()
    dumps = [nodes.folder / f"{i}.dump" for i in range(3)]
    wait_until(lambda: all(dump.exists() for dump in dumps), "dumps written")
    for dump in dumps:
        data = gzip.decompress(dump.read_bytes())
        assert b"hqlwal" not in data
        assert set(pickle.loads(data)[0]) == {"total", "_SyncObj__enabledCodeVersion"}


def test_compaction_by_fork_goes_on_under_writing(nodes: Nodes) -> None:
    found = nodes.make_all(conf={"logCompactionMinEntries": 300})
    ready(*found)
    leader = next(node for node in found if node._isLeader())
    dump = nodes.folder / f"{found.index(leader)}.dump"
    seen: set[int] = set()
    written = 0
    deadline = time.monotonic() + 30
    while len(seen) < 4:  # dumps replaced one another
        for _ in range(200):
            leader.plus(1)
        written += 200
        leader.plus(0, sync=True, timeout=20)
        if dump.exists():
            seen.add(dump.stat().st_mtime_ns)
        assert time.monotonic() < deadline
    agree(found, written)
    journal = journal_of(leader)
    assert journal is not None
    wait_until(
        lambda: journal.get_log_reader().get_log_state().last_purged_log_id is not None,
        "the log purged",
    )
    nodes.close()
    again = nodes.make_all()
    ready(*again)
    agree(again, written)


def test_a_node_without_a_journal_is_a_syncobj_as_ever(pair: Nodes) -> None:
    found = pair.make_all(conf={"journalFile": None, "fullDumpFile": None})
    ready(*found)
    assert found[0].plus(3, sync=True, timeout=20) == 3
    assert journal_of(found[0]) is None


def test_a_journal_without_a_dump_file_is_refused_unless_allowed(pair: Nodes) -> None:
    for options in ({"fullDumpFile": None}, {"fullDumpFile": None, "useFork": False}):
        with pytest.raises(ValueError, match="fullDumpFile"):
            pair.make(0, conf=options)
    assert not (pair.folder / "0.wal").exists()
    never = {
        "fullDumpFile": None,
        "logCompactionMinEntries": float("inf"),
        "logCompactionMinTime": float("inf"),
    }
    pair.close(pair.make(0, conf=never))
    node = pair.make(0, conf={"fullDumpFile": None}, allow_no_dump=True)
    assert node.conf.journalFile == str(pair.folder / "0.wal")


def test_a_stock_journal_is_refused_and_left_alone(pair: Nodes) -> None:
    path = pair.folder / "0.wal"
    FileJournal(str(path))._destroy()
    with pytest.raises(StockJournalError, match="import-pysyncobj"):
        pair.make(0)
    assert path.read_bytes().startswith(b"PYSYNCOBJ")


# --- a node whose log fails ------------------------------------------------------------------


def test_a_node_whose_log_fails_steps_out_and_the_others_go_on(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    disks = [FailingEnvironment() for _ in range(3)]
    found = [nodes.make(i, environment=disks[i]) for i in range(3)]
    ready(*found)
    found[0].plus(1, sync=True, timeout=20)
    leader = next(node for node in found if node._isLeader())
    rest = [node for node in found if node is not leader]
    term = leader._getTerm()
    disks[found.index(leader)].fail("fdatasync", errno.EIO, times=1000)
    outcomes: list[int] = []
    leader.plus(10, callback=lambda _r, error: outcomes.append(error))
    wait_until(lambda: any(node._isLeader() for node in rest), "another leader")
    assert not leader._isLeader()
    wait_until(lambda: bool(outcomes), "the caller told")
    assert outcomes == [UNKNOWN_OUTCOME]
    leader.plus(100, callback=lambda _r, error: outcomes.append(error))
    wait_until(lambda: len(outcomes) == 2, "the next caller told")
    assert outcomes[1] == FAIL_REASON.REQUEST_DENIED
    assert rest[0].plus(1000, sync=True, timeout=20) >= 1001
    assert max(node._getTerm() for node in rest) > term
    status = leader.getStatus()
    assert "Input/output error" in status["journal_failure"]
    assert (status["has_quorum"], status["leader"]) == (False, None)
    assert not leader.isReady()
    said = [r for r in caplog.records if r.name == "hqlwal_raft.pysyncobj"]
    assert len(said) == 1
    assert not [r for r in caplog.records if "failed _onTick" in r.message]

    nodes.close(leader)
    disks[found.index(leader)].heal()
    back = nodes.make(found.index(leader))
    ready(back)
    agree([*rest, back], rest[0].total)


def test_an_application_that_ticks_itself_is_told_of_the_failure(tmp_path: Path) -> None:
    alone = Nodes(tmp_path, size=1)
    files = FailingEnvironment()
    node = alone.make(0, conf={"autoTick": False}, environment=files)
    tick([node], node.isReady)
    files.fail("fdatasync", errno.EIO, times=1000)
    node.plus(1)
    with pytest.raises(WalPoisonedError, match="restart the node"):
        for _ in range(100):
            node.doTick(0.01)
    alone.close()


# --- install ---------------------------------------------------------------------------------


def test_install_serves_every_subclass_and_uninstall_takes_it_back(
    nodes: Nodes, installed: Callable[..., None]
) -> None:
    before = dict(vars(SyncObj))
    installed(segment_size=1 << 16)
    found = nodes.make_all(PlainSum, transportClass=CountingTransport)
    ready(*found)
    assert found[1].plus(4, sync=True, timeout=20) == 4
    agree(found, 4)
    assert all(isinstance(node._SyncObj__raftLog, WalJournal) for node in found)
    assert (nodes.folder / "0.wal" / "0000000000000001.wal").stat().st_size == 1 << 16
    nodes.close()
    uninstall()
    assert dict(vars(SyncObj)) == before
    bare = pysyncobj.createJournal(str(nodes.folder / "stock"))
    assert isinstance(bare, FileJournal)
    bare._destroy()


def test_install_replaces_create_journal_wherever_it_is_bound(
    tmp_path: Path, installed: Callable[..., None]
) -> None:
    installed()
    for number, module in enumerate((pysyncobj, pysyncobj.journal, pysyncobj.syncobj)):
        journal = module.createJournal(str(tmp_path / str(number)))
        assert isinstance(journal, WalJournal)
        journal.add(b"command", 1, 0)
        journal._destroy()
        assert isinstance(module.createJournal(), pysyncobj.journal.MemoryJournal)


def test_nodes_made_under_install_keep_their_hooks_after_uninstall(
    pair: Nodes, installed: Callable[..., None]
) -> None:
    installed()
    found = pair.make_all(PlainSum)
    ready(*found)
    uninstall()
    assert found[0].plus(4, sync=True, timeout=20) == 4
    agree(found, 4)
    for node in found:
        journal = journal_of(node)
        assert journal is not None
        assert journal._log.is_attached
    pair.close()
    uninstall()
    assert "_SyncObj__raftLog" not in vars(SyncObj)


def test_install_and_walsyncobj_go_together(pair: Nodes, installed: Callable[..., None]) -> None:
    installed()
    found = [pair.make(0, Sum), pair.make(1, PlainSum)]
    ready(*found)
    assert found[0].plus(4, sync=True, timeout=20) == 4
    agree(found, 4)


def test_install_refuses_a_node_without_a_dump_file_and_lets_its_directory_go(
    pair: Nodes, installed: Callable[..., None]
) -> None:
    installed()
    with pytest.raises(ValueError, match="allow_no_dump=True"):
        pair.make(0, PlainSum, conf={"fullDumpFile": None})
    installed(allow_no_dump=True)
    pair.make(0, PlainSum, conf={"fullDumpFile": None})


def test_install_refuses_a_policy_that_there_is_not(installed: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="sync policy"):
        installed(sync="sometimes")
    assert pysyncobj.createJournal is pysyncobj.journal.createJournal
    assert "_SyncObj__raftLog" not in vars(SyncObj)


# --- what is relied on -----------------------------------------------------------------------


def test_another_version_of_pysyncobj_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checks, "VERSION", "9.9.9")
    with pytest.raises(ImportError, match=f"pysyncobj {SUPPORTED_VERSIONS[0]}.*9.9.9"):
        _checks.check_private_names()


@pytest.mark.parametrize("name", sorted(_checks.RELIED_ON))
def test_a_method_that_changed_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Any) -> None: ...

    for other in (changed, None):
        monkeypatch.setattr(SyncObj, name, other)
        with pytest.raises(ImportError, match=name):
            _checks.check_private_names()


def test_a_journal_method_that_is_new_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pysyncobj.journal.Journal, "flushEverything", lambda _self: None, raising=False
    )
    with pytest.raises(ImportError, match="flushEverything"):
        _checks.check_private_names()
