"""One member of Patroni's Raft cluster: its own KVStoreTTL, ticked as its raft controller does.

Run as ``python controller.py KIND ADDRESS PARTNERS FOLDER`` with ``stock`` or ``wal``; obeys lines
on its standard input: ``ready``, ``set KEY``, ``keys``, ``journal``. Needs patroni[raft].
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import hqlwal_raft.pysyncobj

kind, address, partners, folder = sys.argv[1:]
if kind == "wal":
    hqlwal_raft.pysyncobj.install()

from patroni.dcs.raft import KVStoreTTL  # noqa: E402
from patroni.raft_controller import RaftController  # noqa: E402


class Controller(RaftController):
    """RaftController without a configuration file and signals."""

    def __init__(self) -> None:
        self._raft = KVStoreTTL(
            None, None, None, self_addr=address, partner_addrs=partners.split(","), data_dir=folder
        )

    def run(self) -> None:
        while True:
            self._run_cycle()


def main() -> None:
    controller = Controller()
    raft: Any = controller._raft
    threading.Thread(target=controller.run, daemon=True).start()
    for line in sys.stdin:
        command, _, key = line.strip().partition(" ")
        if command == "ready":
            answer: Any = raft.isReady()
        elif command == "set":
            answer = bool(raft.set(key, "value of " + key))
        elif command == "keys":
            answer = sorted(raft.get("", recursive=True))
        else:
            answer = type(raft._SyncObj__raftLog).__name__
        print(json.dumps(answer), flush=True)


main()
