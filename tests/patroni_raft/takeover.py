"""A Raft cluster of Patroni's, taken over to WAL directories and back, member by member.

Run by ``make test-patroni``, which installs patroni[raft]; ``make test`` does not collect it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft.pysyncobj import export_in_place, import_in_place
from tests.pysyncobj_nodes.cluster import ROOT, free_addresses, wait_until

SCRIPT = Path(__file__).with_name("controller.py")


class Members:
    """Three members, each a process with the journal that Patroni names itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses = free_addresses(3)
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.keys: set[str] = set()

    def start(self, index: int, kind: str) -> None:
        partners = ",".join(a for a in self.addresses if a != self.addresses[index])
        with (self.folder / f"{index}.log").open("a") as log:
            self.processes[index] = subprocess.Popen(
                [sys.executable, SCRIPT, kind, self.addresses[index], partners, self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    def ask(self, index: int, line: str) -> Any:
        process = self.processes[index]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, (self.folder / f"{index}.log").read_text()[-2000:]
        return json.loads(answer)

    def kill(self, *indexes: int) -> None:
        for index in indexes:
            self.processes[index].kill()
        for index in indexes:
            with self.processes.pop(index) as process:
                process.wait()

    def settle(self, *kinds: str) -> None:
        """Every member is ready, has every key, and has the journal that it should have."""
        wait_until(lambda: all(self.ask(i, "ready") for i in range(3)), "ready", 60)
        keys = sorted(self.keys)
        wait_until(lambda: all(self.ask(i, "keys") == keys for i in range(3)), "all keys", 60)
        names = {"stock": "FileJournal", "wal": "WalJournal"}
        assert [self.ask(i, "journal") for i in range(3)] == [names[kind] for kind in kinds]

    def put(self, index: int, key: str) -> None:
        assert self.ask(index, f"set {key}")
        self.keys.add(key)

    def journal(self, index: int) -> Path:
        return self.folder / f"{self.addresses[index]}.journal"


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    made = Members(tmp_path)
    yield made
    made.kill(*list(made.processes))


def test_a_cluster_is_taken_over_survives_outages_and_is_taken_back(members: Members) -> None:
    kinds = ["stock"] * 3
    for index in range(3):
        members.start(index, "stock")
    members.settle(*kinds)
    for number in range(20):
        members.put(number % 3, f"/before/{number}")

    for index in range(3):
        members.kill(index)
        import_in_place(members.journal(index))
        members.start(index, "wal")
        kinds[index] = "wal"
        members.settle(*kinds)
        members.put(index, f"/taken-over/{index}")

    for number, order in enumerate(itertools.permutations(range(3))):
        members.kill(*range(3))  # a complete outage
        for index in order:
            members.start(index, "wal")
        members.settle(*kinds)
        members.put(order[0], f"/outage/{number}")

    for index in range(3):
        members.kill(index)
        export_in_place(members.journal(index))
        members.start(index, "stock")
        kinds[index] = "stock"
        members.settle(*kinds)
        members.put(index, f"/taken-back/{index}")
