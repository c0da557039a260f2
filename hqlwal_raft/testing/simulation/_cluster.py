"""A simulated cluster of pysyncobj nodes, played from a plan and judged all along.

:func:`play` is the whole of it: the same plan gives the same :class:`Outcome`, its digest
included, in every process.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ...errors import CorruptionError, WalError
from ._faults import Action, Plan
from ._host import Host, Node, World
from ._judge import Judge, Violation
from ._node import Options, PySyncObjNode, is_membership
from ._upstream import Upstream

__all__ = ["Cluster", "Outcome", "play"]

#: within so much virtual time after the last fault every node must be ready
READY_SECONDS = 40.0
#: how long an operator takes to see to a node that gave up
_REPAIR_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a simulation ended."""

    plan: Plan
    violation: Violation | None
    digest: str
    seconds: float
    events: int
    acknowledged: int
    lines: list[str]
    #: what nodes raised that is no violation by itself, and how often
    errors: dict[str, int]


class Cluster:
    """The hosts of one simulation, and what happens to them."""

    def __init__(self, plan: Plan, actions: Iterable[Action], *, keeps_lines: bool = False) -> None:
        self.plan = plan
        self.world = World(plan.seed, keeps_lines=keeps_lines)
        self.judge = Judge(self.world.trace)
        self.upstream = Upstream(self.world)
        self.upstream.on_message = self._sent
        self.options = Options(
            compaction_entries=plan.compaction_entries,
            dump_piece_bytes=plan.dump_piece_bytes,
            append_bytes=plan.append_bytes,
            pad_bytes=plan.pad_bytes,
            uses_batches=plan.uses_batches,
            forks=plan.forks,
            cache_bytes=plan.cache_bytes,
        )
        self.hosts: dict[str, Host] = {}
        #: who is to run, as the operator has it
        self.members: list[str] = [f"n{number}" for number in range(1, plan.nodes + 1)]
        self.errors: dict[str, int] = {}
        #: links that break where a membership change is sent again
        self._armed: set[tuple[str, str]] = set()
        #: per link: the index of the entry that was sent last
        self._sent_up_to: dict[tuple[str, str], int] = {}
        self._keys = 0
        self._is_over = False
        self._is_probed = False
        for name in self.members:
            self._make_host(name)
        for action in actions:
            self.world.clock.at(action.when, self._act, action)

    # --- hosts ---------------------------------------------------------------------------

    def _make_host(self, name: str) -> Host:
        host = self.hosts[name] = Host(self.world, name, self._make_node)
        host.machine.kernel.page_bytes = self.plan.page_bytes
        host.on_error = self._failed
        host.on_end = lambda ended: self.judge.forget(ended.name)
        host.on_run = self._ran
        return host

    def _make_node(self, host: Host) -> Node:
        others = [name for name in self.members if name != host.name]
        return PySyncObjNode(host, self.judge, others, self.options)

    def node(self, name: str) -> PySyncObjNode | None:
        host = self.hosts.get(name)
        return None if host is None else cast("PySyncObjNode | None", host.node)

    def start(self, host: Host) -> None:
        host.start()
        if host.endpoint is not None:
            host.endpoint.on_arrival = lambda _sender, label: self._arrived(host, label)

    def start_later(self, host: Host, seconds: float) -> None:
        def start() -> None:
            if host.name in self.members:
                self.start(host)

        self.world.clock.after(seconds, start)

    def _failed(self, host: Host, error: BaseException) -> None:
        kind = type(error).__name__
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.world.trace.note(host.name, "raised", kind)
        process, node = host.process, self.node(host.name)
        assert process is not None
        if host.node is not None and not isinstance(error, WalError | OSError):
            return  # as pysyncobj's own thread does it: it ticks again
        if isinstance(error, CorruptionError) and node is not None and not node.has_failed:
            self.judge.fail("a node goes on with a damaged log", f"{host.name}: {error}")
        if not (process.had_disk_fault or host.machine.is_damaged):
            rule = "a node gave up" if host.node is not None else "a node cannot be started"
            self.judge.fail(f"{rule} on a healthy disk", f"{host.name}: {kind}: {error}")
        host.die(has_power=True)
        host.machine.mend()
        self.start_later(host, _REPAIR_SECONDS)

    def _ran(self, host: Host) -> None:
        if host.node is not None:
            cast("PySyncObjNode", host.node).observe()

    def _sent(self, host: Host, receiver: str, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if message["type"] == "request_vote":
            self.judge.voted(host.name, message["term"], host.name)
        elif message["type"] == "response_vote":
            self.judge.voted(host.name, message["term"], receiver)
        elif message.get("entries"):
            self._sent_entries((host.name, receiver), message["entries"])

    def _sent_entries(self, link: tuple[str, str], entries: Sequence[Any]) -> None:
        before = self._sent_up_to.get(link)
        self._sent_up_to[link] = entries[-1][1]
        if link not in self._armed or before != entries[0][1] - 1:
            return
        changes = [index for command, index, _ in entries if is_membership(command)]

        def is_late() -> bool:
            node = self.node(link[1])
            is_applied = node is not None and any(index <= node.applied for index in changes)
            if is_applied:
                self._armed.discard(link)
            return is_applied

        if changes:
            self.world.network.reset_behind(*link, is_late)

    def _arrived(self, host: Host, label: str) -> None:
        node = self.node(host.name)
        word, _, term = label.partition(" ")
        if node is not None and word == "append_entries" and int(term) >= node.term:
            self.judge.heard_leader(host)

    # --- actions -------------------------------------------------------------------------

    def _find(self, target: str) -> Host | None:
        leader = self.judge.leader[1]
        if target == "leader":
            target = leader
        elif target == "follower":
            up = [n for n in self.members if n != leader and self.hosts[n].is_up]
            target = up[0] if up else leader
        return self.hosts.get(target) if target in self.members else None

    def _act(self, action: Action) -> None:
        self.world.trace.note("--", action.kind, *action.arguments)
        getattr(self, "do_" + action.kind.replace(" ", "_"))(*action.arguments)

    def do_put(self, target: str, count: int) -> None:
        host = self._find(target)
        if host is None or host.node is None:
            return
        node = cast("PySyncObjNode", host.node)
        for _ in range(count):
            self._keys += 1
            key = f"k{self._keys}"
            host.call_soon(lambda key=key: node.put(key))  # type: ignore[misc]

    def do_pause(self, target: str, seconds: float) -> None:
        if (host := self._find(target)) is not None:
            host.pause(seconds)

    def do_kill(self, target: str, down: float) -> None:
        self._end(target, down, "kill")

    def do_power(self, target: str, down: float) -> None:
        self._end(target, down, "power")

    def do_stop(self, target: str, down: float) -> None:
        self._end(target, down, "stop")

    def _end(self, target: str, down: float, kind: str) -> None:
        host = self._find(target)
        if host is None:
            return
        if kind == "stop":
            host.stop()
        else:
            host.die(has_power=kind == "kill")
        self.start_later(host, down)

    def do_die_at_call(self, target: str, calls: int, kind: str, down: float) -> None:
        host = self._find(target)
        if host is None or host.process is None:
            return
        process, machine = host.process, host.machine
        process.death = machine.cut_power if kind == "power" else machine.kill
        process.dies_at_call = process.disk_calls + calls

        def end(ended: Host) -> None:
            self.judge.forget(ended.name)
            host.on_end = lambda each: self.judge.forget(each.name)
            self.start_later(host, down)

        host.on_end = end

    def do_isolate(self, target: str, seconds: float) -> None:
        host = self._find(target)
        if host is not None:
            for name in self.hosts:
                if name != host.name:
                    self.do_cut(host.name, name, seconds)
                    self.do_cut(name, host.name, seconds)

    def do_cut(self, sender: str, receiver: str, seconds: float) -> None:
        network = self.world.network
        network.cut(sender, receiver)
        self.world.clock.after(seconds, network.mend, sender, receiver)

    def do_reset(self, one: str, other: str) -> None:
        first, second = self._find(one), self._find(other)
        if first is not None and second is not None and first is not second:
            self.world.network.reset(first.name, second.name)

    def do_reset_after(self, one: str, other: str, packets: int) -> None:
        first, second = self._find(one), self._find(other)
        if first is not None and second is not None and first is not second:
            self.world.network.reset_after(first.name, second.name, packets)

    def do_break_resend(self, one: str, other: str) -> None:
        """The link breaks once what lies before an applied membership change was sent again, and
        before that is.
        """
        first, second = self._find(one), self._find(other)
        if first is not None and second is not None and first is not second:
            self._armed.add((first.name, second.name))

    def do_slow_links(self, name: str, least: float, most: float) -> None:
        for other in self.hosts:
            self.world.network.slow[name, other] = (least, most)
            self.world.network.slow[other, name] = (least, most)

    def do_stall(self, target: str, seconds: float) -> None:
        if (host := self._find(target)) is not None:
            host.machine.stalled_until = self.world.clock.now + seconds

    def do_fail(self, target: str, call: str, nth: int) -> None:
        host = self._find(target)
        if host is not None and host.process is not None:
            host.process.fail(call, 5, nth=nth)

    def do_fill(self, target: str, pages: int, seconds: float) -> None:
        if (host := self._find(target)) is not None:
            host.machine.fill(pages)
            self.world.clock.after(seconds, host.machine.make_room)

    def do_flip(self, target: str) -> None:
        """A bit of a log is another one from now on."""
        if (host := self._find(target)) is not None:
            host.machine.flip(f"/{host.name}/wal")

    def do_lose_dump(self, target: str, how: str, down: float) -> None:
        """A node is killed, and finds its dump missing, empty or cut."""
        host = self._find(target)
        if host is not None and host.process is not None:
            host.die(has_power=True)
            host.machine.spoil(f"/{host.name}/dump", how)
            self.start_later(host, down)

    def do_slow_dumps(self, name: str, least: float, most: float) -> None:
        self.upstream.dump_seconds[name] = (least, most)

    def do_compact(self, target: str) -> None:
        host = self._find(target)
        if host is not None and host.node is not None:
            cast("PySyncObjNode", host.node).ledger.forceLogCompaction()

    def do_add(self, name: str) -> None:
        leader = self._find("leader")
        if leader is None or leader.node is None or name in self.members:
            return
        node = cast("PySyncObjNode", leader.node)
        self.members.append(name)
        host = self.hosts.get(name) or self._make_host(name)
        self.start(host)
        leader.call_soon(lambda: node.change("add", name, lambda _is_done: None))

    def do_remove(self, target: str) -> None:
        leader, host = self._find("leader"), self._find(target)
        if leader is None or leader.node is None or host in (None, leader):
            return
        assert host is not None
        node, name = cast("PySyncObjNode", leader.node), host.name

        def done(is_done: bool) -> None:  # noqa: FBT001
            if is_done and name in self.members:
                self.members.remove(name)
                self.world.clock.after(0.0, partial(host.die, has_power=True))

        leader.call_soon(lambda: node.change("remove", name, done))

    # --- the end -------------------------------------------------------------------------

    def run(self) -> None:
        """Plays everything, until the first violation or until all is well again."""
        clock = self.world.clock
        for number, name in enumerate(self.members):
            self.world.clock.at(0.01 * number, self.start, self.hosts[name])

        def is_over() -> bool:
            return self.judge.violation is not None or self._is_over

        clock.run(self.plan.ends_at, is_over)
        if not is_over():
            self._heal()
            clock.run(self.plan.ends_at + READY_SECONDS, is_over)
            if not is_over():
                self.judge.fail("not every healthy node became ready", self._standing())

    def end(self) -> None:
        """Nothing of it does anything any more, whoever collects it."""
        for host in self.hosts.values():
            if host.process is not None:
                host.process.is_dead = True

    def _heal(self) -> None:
        self.world.trace.note("-- all faults end")
        self.world.network.mend_all()
        self.upstream.dump_seconds.clear()
        for name, host in self.hosts.items():
            host.machine.stalled_until = 0.0
            host.machine.make_room()
            if not host.is_up:
                host.machine.mend()
            if host.process is not None:
                host.process.heal()
                host.process.dies_at_call = 0
            if name in self.members and host.process is None:
                self.start(host)
        self._probe()

    def _probe(self) -> None:
        """Asks for one more command, and whether everybody has everything."""
        if self._check_end():
            self._is_over = True
        else:
            if not self._is_probed:
                self.do_put("leader", 1)
            self.world.clock.after(0.5, self._probe)

    def _check_end(self) -> bool:
        leader = self._find("leader")
        if leader is None or leader.node is None:
            return False
        first = cast("PySyncObjNode", leader.node)
        config = {leader.name, *first.others}
        nodes = [self.node(name) for name in sorted(config)]
        self._is_probed = f"k{self._keys}" in self.judge.acked
        if not self._is_probed or not all(node is not None and node.is_ready for node in nodes):
            return False
        found = [node for node in nodes if node is not None]
        if len({node.applied for node in found}) > 1:
            return False
        for name, node in zip(sorted(config), found, strict=True):
            if node.others != config - {name}:
                self.judge.fail(
                    "nodes know different members",
                    f"{name} knows {sorted(node.others)}, its leader {sorted(config)}",
                )
            self.judge.check_state(name, node.ledger.seen)
        return True

    def _standing(self) -> str:
        words = []
        for name in self.members:
            node = self.node(name)
            state = "is down" if node is None else f"applied {node.applied}"
            words.append(f"{name} {state}{'' if node is None or node.is_ready else ', not ready'}")
        return "; ".join(words)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines, and no collection of garbage in the middle of something."""
    level, is_enabled = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        yield
    finally:
        logging.disable(level)
        if is_enabled:
            gc.enable()


def play(
    plan: Plan, numbers: frozenset[int] | None = None, *, keeps_lines: bool = False
) -> Outcome:
    """Plays a plan, or only some of its actions."""
    actions = plan.actions if numbers is None else plan.only(numbers)
    cluster = Cluster(plan, actions, keeps_lines=keeps_lines)
    with _quiet(), cluster.upstream.entered():
        try:
            cluster.run()
        finally:
            cluster.end()
    world = cluster.world
    return Outcome(
        plan,
        cluster.judge.violation,
        world.trace.digest,
        world.clock.now,
        world.trace.count,
        len(cluster.judge.acked),
        world.trace.lines,
        cluster.errors,
    )
