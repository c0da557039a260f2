"""Real processes, killed for real: what was acknowledged is still there."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from hqlwal_raft._format import unpack_lock
from tests.pysyncobj_nodes.cluster import Cluster, running_cluster, wait_until
from tests.pysyncobj_nodes.rolling import NEW_STOCK, NEW_WAL, OLD_STOCK, Rolling
from tests.pysyncobj_nodes.torture import torture
from tests.pysyncobj_nodes.weather import KINDS, Weather, kind_of


@pytest.mark.parametrize(("is_batched", "rounds"), [(True, 2), (False, 1)])
def test_nothing_acknowledged_is_missing_after_all_nodes_were_killed(
    tmp_path: Path, *, is_batched: bool, rounds: int
) -> None:
    found = torture(tmp_path, rounds, is_batched=is_batched)
    assert [one.missing for one in found] == [0] * rounds
    assert all(one.acknowledged > 3000 for one in found)


def dump_child(cluster: Cluster, index: int) -> int:
    """The forked child of a node that is writing a dump; stopped, so that it stays."""
    pid = cluster.processes[index].pid
    children: list[int] = []

    def is_found() -> bool:
        for task in os.listdir(f"/proc/{pid}/task"):
            listed = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            children[:] = [int(child) for child in listed]
            with contextlib.suppress(OSError):  # it ended
                if children and is_at_work(children[0]):
                    os.kill(children[0], signal.SIGSTOP)
                    return True
        return False

    wait_until(is_found, "a dump begun")
    return children[0]


def is_at_work(pid: int) -> bool:
    """Past its first instruction, until which it holds the lock that it inherited; not ended."""
    files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return bool(files) and not any(file.endswith("lock.hql") for file in files)


def test_a_node_killed_while_its_dump_child_lives_comes_back(tmp_path: Path) -> None:
    with running_cluster(tmp_path, compaction=2000) as cluster:
        cluster.wait_ready()
        cluster.ask_all("write")
        child = dump_child(cluster, 1)
        try:
            cluster.kill(1)
            cluster.start(1)
            lock = tmp_path / "1.wal" / "lock.hql"
            pid = cluster.processes[1].pid
            wait_until(lambda: unpack_lock(lock.read_bytes()) == pid, "the lock taken")
        finally:
            os.kill(child, signal.SIGCONT)
        cluster.wait_ready()
        before = cluster.acknowledged()
        wait_until(lambda: cluster.acknowledged() > before + 1000, "writing going on")
        cluster.ask_all("stop")
        for answer in cluster.ask_all("check"):
            assert (answer["missing"], answer["acknowledged"] > 1000) == (0, True)


def test_a_cluster_goes_on_while_one_node_after_the_other_is_killed(tmp_path: Path) -> None:
    with running_cluster(tmp_path, compaction=2000, batch=False) as cluster:
        cluster.wait_ready()
        cluster.ask_all("write")
        for victim in (cluster.leader(), 0, 1, 2):
            before = cluster.acknowledged()
            wait_until(lambda: cluster.acknowledged() > before + 500, "500 more")  # noqa: B023
            cluster.kill(victim)
            cluster.start(victim)
            cluster.wait_ready()
            cluster.ask(victim, "write")
        cluster.ask_all("stop")
        answers = cluster.ask_all("check")
        assert [answer["missing"] for answer in answers] == [0, 0, 0]
        wait_until(
            lambda: len({answer["held"] for answer in cluster.ask_all("check")}) == 1,
            "all nodes the same",
        )


def test_nothing_is_missing_or_there_twice_after_a_few_seconds_of_bad_luck(tmp_path: Path) -> None:
    found = Weather(tmp_path, 5, "everything", seconds=6).play()
    assert found.is_clean, found
    assert found.acknowledged > 100
    assert found.faults["paused"] + found.faults["killed"] + found.faults["outages"] > 0


def test_each_kind_of_bad_luck_has_its_turn() -> None:
    assert {kind_of(seed) for seed in range(len(KINDS))} == set(KINDS)


def test_nodes_change_their_journals_one_by_one_and_back(tmp_path: Path) -> None:
    rolling = Rolling(tmp_path)
    rolling.roll(steps=[(0, NEW_WAL), (1, NEW_WAL), (0, OLD_STOCK), (1, NEW_STOCK)])
    assert (tmp_path / "0.wal").is_file()
    assert rolling.cluster.acknowledged() > 4 * 700
