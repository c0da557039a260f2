"""The demo's client: writes through the leader and remembers what was acknowledged."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from _demo_nodes import Node

#: commands on their way at any time
WINDOW = 256
#: a command without an answer for this long is submitted again; it is idempotent
ANSWER_SECONDS = 3.0


def value_of(key: int) -> str:
    return hashlib.sha256(str(key).encode()).hexdigest()


@dataclass
class Client:
    """Writes ``key -> value_of(key)`` through the leader and remembers what was acknowledged.

    All attributes are guarded by ``changed``.
    """

    nodes: list[Node] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    #: keys below it may be written now
    limit: int = 0
    is_paused: bool = False
    is_done: bool = False
    next_key: int = 0
    acknowledged: set[int] = field(default_factory=set)
    acknowledged_by: Node | None = None
    #: on their way: key -> (node, time of submission)
    pending: dict[int, tuple[Node, float]] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    waited_seconds: list[float] = field(default_factory=list)

    def on_line(self, node: Node, line: str) -> None:
        verb, _, rest = line.partition(" ")
        with self.changed:
            if verb == "ack":
                key = int(rest)
                entry = self.pending.pop(key, None)
                if entry is not None:
                    self.waited_seconds.append(time.monotonic() - entry[1])
                self.acknowledged.add(key)
                self.acknowledged_by = node
            elif verb == "no":
                key = int(rest.partition(" ")[0])
                if self.pending.pop(key, None) is not None:
                    self.again.append(key)
            elif verb == "status":
                node.status = json.loads(rest)
            elif verb == "state":
                node.state = json.loads(rest)
                node.is_asked = False
            self.changed.notify_all()

    def forget(self, node: Node) -> None:
        """The node died: what was on its way there has to be submitted again."""
        with self.changed:
            lost = [key for key, (target, _) in self.pending.items() if target is node]
            for key in lost:
                del self.pending[key]
            self.again.extend(lost)

    def leader(self) -> Node | None:
        """The running node that most of the running nodes name as their leader."""
        running = {node.address: node for node in self.nodes if node.is_running}
        named = [node.status.get("leader") for node in running.values()]
        best = max(running, key=named.count, default=None)
        return (
            running[best] if best is not None and named.count(best) * 2 > len(self.nodes) else None
        )

    def run(self) -> None:
        while True:
            with self.changed:
                batch = self._next_batch()
                target = self.leader()
                if self.is_done:
                    return
                if not batch or target is None:
                    self.again.extend(batch)
                    self.changed.wait(0.05)
                    continue
                now = time.monotonic()
                self.pending.update((key, (target, now)) for key in batch)
            try:
                target.send("".join(f"put {key} {value_of(key)}\n" for key in batch))
            except OSError:
                self.forget(target)

    def _next_batch(self) -> list[int]:
        if self.is_paused:
            return []
        late = time.monotonic() - ANSWER_SECONDS
        overdue = [key for key, (_, since) in self.pending.items() if since < late]
        for key in overdue:
            del self.pending[key]
        self.again.extend(overdue)
        batch: list[int] = []
        while len(batch) < 64 and len(self.pending) + len(batch) < WINDOW:
            if self.again:
                key = self.again.popleft()
                if key not in self.acknowledged:
                    batch.append(key)
            elif self.next_key < self.limit:
                batch.append(self.next_key)
                self.next_key += 1
            else:
                break
        return batch
