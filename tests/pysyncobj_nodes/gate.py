"""A disk whose syncs of segments can be held up."""

from __future__ import annotations

import threading

from hqlwal_raft.testing import FailingEnvironment


class GatedEnvironment(FailingEnvironment):
    """Lets syncs of segments through only while the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        #: set once a sync was asked for
        self.waiting = threading.Event()
        #: which threads synced segments
        self.threads: list[str] = []

    def due(self, call: str, path: str) -> int | None:
        if call == "fdatasync" and path.endswith(".wal"):
            self.threads.append(threading.current_thread().name)
            self.waiting.set()
            assert self.gate.wait(20), "the gate stayed shut"
        return super().due(call, path)
