"""A real SyncObj that is fed by a test: no sockets, no threads of its own, a clock that stands.

What the node sends is noted, and messages are handed to it as its transport would.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysyncobj.syncobj
import pytest
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from hqlwal_raft.pysyncobj import WalJournal, WalSyncObj, journal_of
from hqlwal_raft.testing import FailingEnvironment

NO_OP = b"\x01"
REGULAR = b"\x00" + pickle.dumps(0)


class StandingClock(FailingEnvironment):
    """The time of a node and of its disk. Sleeping lets it pass; so may a sync."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.slept: list[float] = []
        #: how long each sync takes
        self.sync_seconds = 0.0
        self.monotonic = lambda: self.now  # type: ignore[method-assign]
        self.sleep = self._sleep  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def due(self, call: str, path: str) -> int | None:
        if call == "fdatasync":
            self.now += self.sync_seconds
        return super().due(call, path)


class Wire(Transport):
    """Notes what is sent; nothing arrives by itself."""

    ready = True

    def __init__(self, node: Any, self_node: Any, others: Any) -> None:
        super().__init__(node, self_node, others)
        self.sent: list[tuple[str, Any]] = []
        self.is_destroyed = False
        self.receive: Callable[[Any, Any], None]

    def setOnMessageReceivedCallback(self, callback: Any) -> None:
        self.receive = callback

    def setOnNodeConnectedCallback(self, callback: Any) -> None:
        self.connect = callback

    def tryGetReady(self) -> None: ...
    def addNode(self, node: Any) -> None: ...
    def dropNode(self, node: Any) -> None: ...

    def send(self, node: Any, message: Any) -> bool:
        self.sent.append((node.id, message))
        return True

    def destroy(self) -> None:
        self.is_destroyed = True


class Counter(WalSyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.count = 0

    @replicated
    def inc(self) -> int:
        self.count += 1
        return self.count


class StockCounter(SyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.count = 0

    @replicated
    def inc(self) -> int:
        self.count += 1
        return self.count


class Fed:
    """One node called ``me``; ``L`` and ``F`` are the others, played by the test."""

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        base: Any = Counter,
        options: dict[str, Any] | None = None,
        **conf: Any,
    ) -> None:
        self.folder = folder
        self.clock = StandingClock()
        patch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.clock.now)
        self._base, self._conf = base, conf
        self.leader, self.other = Node("L"), Node("F")
        self.outcomes: list[int] = []
        #: what the leader's log holds, from entry 1 on
        self.entries = [(NO_OP, 1, 0)]
        self.options: dict[str, Any] = {"environment": self.clock, "step_down_seconds": None}
        self.options |= options or {}
        self.start()

    def start(self) -> None:
        settings: dict[str, Any] = {
            "autoTick": False,
            "journalFile": str(self.folder / "log"),
            "fullDumpFile": str(self.folder / "dump"),
            "useFork": False,
            "logCompactionMinEntries": 10**9,
            "logCompactionMinTime": 10**9,
            "raftMinTimeout": 1.0,
            "raftMaxTimeout": 1.5,
            "connectionTimeout": 3.0,
        }
        self.node = self._base(
            Node("me"),
            [self.leader, self.other],
            SyncObjConf(**settings | self._conf),
            nodeClass=Node,
            transportClass=Wire,
            **(self.options if issubclass(self._base, WalSyncObj) else {}),
        )
        self.wire: Wire = self.node._SyncObj__transport
        self.wire.connect(self.leader)
        self.wire.connect(self.other)

    @property
    def journal(self) -> WalJournal:
        journal = journal_of(self.node)
        assert journal is not None
        return journal

    @property
    def applied(self) -> int:
        return int(self.node.raftLastApplied)

    def restart(self) -> None:
        self.node.destroy()
        self.start()
        self.tick()

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.node.doTick(0.0)

    def receive(self, message: dict[str, Any], sender: Any = None) -> list[Any]:
        """Hands a message in, ends the tick, and gives what was sent because of it."""
        del self.wire.sent[:]
        self.wire.receive(sender or self.leader, message)
        self.tick()
        return list(self.wire.sent)

    # --- what a leader sends ----------------------------------------------------------------

    def grow(self, count: int, term: int = 1, command: bytes = REGULAR) -> None:
        """The leader's log grows by so many entries."""
        for _ in range(count):
            self.entries.append((command, len(self.entries) + 1, term))

    def feed(self, previous: int, last: int, commit: int, term: int = 1) -> list[Any]:
        """The leader sends the entries after ``previous`` up to ``last``."""
        return self.receive(
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "entries": self.entries[previous:last],
                "prevLogIdx": previous,
                "prevLogTerm": self.entries[previous - 1][2],
            }
        )

    def send_dump(self, data: bytes, commit: int, term: int = 1, pieces: int = 3) -> list[Any]:
        """The leader sends a dump piece by piece, then the empty last piece."""
        size = len(data) // pieces + 1
        answers: list[Any] = []
        for start in [*range(0, len(data), size), len(data)]:
            piece = data[start : start + size]
            answers += self.receive(
                {
                    "type": "append_entries",
                    "term": term,
                    "commit_index": commit,
                    "serialized": (piece, start == 0, not piece),
                }
            )
        return answers

    def compact(self) -> None:
        self.node.forceLogCompaction()
        self.tick(3)

    def become_leader(self) -> None:
        self.clock.now += 10
        self.tick()
        self.receive({"type": "response_vote", "term": self.node.raftCurrentTerm}, self.other)
        assert self.node._isLeader()
