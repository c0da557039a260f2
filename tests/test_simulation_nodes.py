"""A node of another make in the simulation: the example of the documentation, and the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft.testing.simulation import (
    Arrival,
    Clock,
    Endpoint,
    Host,
    Network,
    Packet,
    Trace,
    World,
    chance,
)

PAGE = Path(__file__).parent.parent / "docs" / "testing-your-own-raft.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_documented_elections_keep_their_promises_where_votes_are_synced(
    example: dict[str, Any],
) -> None:
    for seed in range(30):
        _, judge = example["play"](seed, syncs=True)
        assert judge.violation is None
        assert judge.leader[0] > 0, "nobody was elected"


def test_the_documented_elections_break_them_where_votes_are_not(example: dict[str, Any]) -> None:
    found = {example["play"](seed, syncs=False)[1].violation for seed in range(10)}
    assert "two votes in one term" in {each.rule for each in found if each is not None}


def test_the_documented_elections_are_the_same_again(example: dict[str, Any]) -> None:
    assert example["play"](3, syncs=True)[0] == example["play"](3, syncs=True)[0]
    assert example["play"](3, syncs=True)[0] != example["play"](4, syncs=True)[0]


# --- the network -----------------------------------------------------------------------------


class Lan:
    """Two endpoints, ``a`` and ``b``; b listens."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, chance(seed), Trace(self.clock))
        self.a = self.network.attach("a", lambda: None)
        self.b = self.network.attach("b", lambda: None)
        self.b.is_listening = True

    def found(self, endpoint: Endpoint) -> list[bytes]:
        return [each.data for each in endpoint.inbox if each.kind in ("data", "datagram")]

    def connect(self) -> tuple[Any, Any]:
        end = self.a.connect("b", self.clock.now)
        self.clock.run(self.clock.now + 1)
        accepted: Arrival = self.b.inbox.popleft()
        assert self.a.inbox.popleft().kind == "opened"
        return end, accepted.stream


def test_datagrams_are_lost_doubled_and_overtake_each_other() -> None:
    lan = Lan()
    lan.network.loss = lan.network.duplication = 0.3
    for number in range(100):
        lan.a.send("b", Packet(b"%d" % number), number * 1e-4)
    lan.clock.run(1)
    found = [int(each) for each in lan.found(lan.b)]
    assert len(set(found)) < 100
    assert len(set(found)) < len(found)
    assert found != sorted(found)


def test_a_stream_brings_everything_once_and_in_order_also_over_a_partition() -> None:
    lan = Lan()
    end, other = lan.connect()
    for number in range(50):
        if number == 20:
            lan.network.cut("a", "b")
        if number == 40:
            lan.clock.run(2)
            assert len(lan.found(lan.b)) <= 20
            lan.network.mend("a", "b")
        end.send(Packet(b"%d" % number), lan.clock.now)
    other.send(Packet(b"back"), lan.clock.now)
    lan.clock.run(10)
    assert lan.found(lan.b) == [b"%d" % number for number in range(50)]
    assert lan.found(lan.a) == [b"back"]


def test_a_way_that_is_cut_is_open_the_other_way() -> None:
    lan = Lan()
    lan.network.cut("a", "b")
    lan.a.send("b", Packet(b"lost"), 0)
    lan.b.send("a", Packet(b"found"), 0)
    lan.clock.run(1)
    assert lan.found(lan.b) == []
    assert lan.found(lan.a) == [b"found"]


def test_a_killed_host_resets_its_connections_and_one_without_power_says_nothing() -> None:
    for has_power in (True, False):
        lan = Lan()
        end, _ = lan.connect()
        lan.network.detach(lan.b, lan.clock.now, has_power=has_power)
        lan.clock.run(lan.clock.now + 1)
        assert [each.kind for each in lan.a.inbox] == (["closed"] if has_power else [])
        assert end.is_open is not has_power


def test_a_connection_breaks_at_the_packet_that_was_named() -> None:
    lan = Lan()
    end, _ = lan.connect()
    lan.network.reset_after("a", "b", 3)
    for number in range(5):
        end.send(Packet(b"%d" % number), lan.clock.now)
    lan.clock.run(lan.clock.now + 1)
    assert lan.found(lan.b) == [b"0", b"1", b"2"]
    assert lan.a.inbox[-1].kind == lan.b.inbox[-1].kind == "closed"


# --- hosts -----------------------------------------------------------------------------------


class Sleeper:
    """Notes when it is woken."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.woken: list[float] = []

    def wake(self) -> float:
        assert self.host.process is not None
        self.woken.append(self.host.process.now)
        return 0.1

    def stop(self) -> None:
        pass


def test_a_paused_host_is_not_woken_and_finds_everything_afterwards() -> None:
    world = World(1)
    host = Host(world, "a", Sleeper)
    host.start()
    world.clock.run(1)
    host.pause(2)
    world.network.throw("b", "a", Packet(b"meanwhile"), world.clock.now)
    world.clock.run(2.9)
    node, endpoint = host.node, host.endpoint
    assert isinstance(node, Sleeper)
    assert endpoint is not None
    assert node.woken[-1] <= 1
    assert [each.data for each in endpoint.inbox] == [b"meanwhile"]
    world.clock.run(4)
    assert node.woken[-1] > 3


def test_a_power_cut_takes_what_was_not_synced_and_a_kill_does_not() -> None:
    found: list[bytes] = []
    for has_power in (True, False):
        world = World(3)
        host = Host(world, "a", Sleeper)
        host.machine.kernel.mkdir("/d")
        host.machine.kernel.fsync(host.machine.kernel.open("/", 0))
        host.start()
        assert host.process is not None
        descriptor = host.process.open("/d/file", 66)
        host.process.pwrite(descriptor, b"written", 0)
        host.die(has_power=has_power)
        assert host.node is None
        found.append(host.machine.kernel.contents().get("/d/file", b""))
    assert found[0] == b"written"
    assert found[1] != b"written"
