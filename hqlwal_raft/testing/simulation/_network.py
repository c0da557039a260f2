"""A network in memory: datagrams and streams between named hosts, in virtual time.

*Datagrams* are delayed, lost, doubled and overtake each other. *Streams* are TCP's: in order, each
once, or not at all; what a partition holds back arrives when it has ended; a host that was killed
answers with a reset, one without power not at all; and what an older connection still holds may
arrive after what a newer one brought. Links can be cut one way. It must not know who speaks.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ._clock import Clock, Trace

__all__ = ["Arrival", "Endpoint", "Network", "Packet", "StreamEnd"]

#: when a connection that is not answered is asked for again, and given up
_SYN_SECONDS = (1.0, 2.0, 4.0, 8.0)
#: how long after the end of a partition TCP tries again, at most
_RETRANSMIT_SECONDS = 0.4


class Packet(NamedTuple):
    """What is sent: bytes, and a word on them for the trace and for judges."""

    data: bytes
    label: str = ""


class Arrival(NamedTuple):
    """What an endpoint finds in its inbox.

    ``kind`` is ``datagram``, ``accepted``, ``opened``, ``data`` or ``closed``.
    """

    kind: str
    sender: str
    data: bytes = b""
    stream: StreamEnd | None = None


@dataclass(eq=False)
class StreamEnd:
    """One end of a connection."""

    endpoint: Endpoint
    peer: StreamEnd | None = None
    is_open: bool = True
    #: closed in good order: what was sent before still arrives
    is_closing: bool = False
    #: for the one who holds it
    owner: Any = None
    #: when the last thing sent from here arrives
    _arrives: float = 0.0
    #: what a partition holds back
    _held: deque[tuple[str, Packet]] = field(default_factory=deque)
    _is_flushing: bool = False

    def send(self, packet: Packet, now: float) -> None:
        if self.is_open and self.peer is not None:
            self.endpoint.network.carry(self, "data", packet, now)

    def close(self, now: float) -> None:
        """What was sent still arrives, and then the end of it; nothing arrives here any more."""
        if self.is_open:
            self.is_open, self.is_closing = False, True
            if self.peer is not None:
                self.endpoint.network.carry(self, "closed", Packet(b"", "closed"), now)


class Endpoint:
    """A process on the network; :attr:`inbox` is what has arrived for it."""

    def __init__(self, network: Network, name: str, wake: Callable[[], Any]) -> None:
        self.network = network
        self.name = name
        self.inbox: deque[Arrival] = deque()
        self.is_listening = False
        self._wake = wake
        self.streams: list[StreamEnd] = []
        #: called with each arrival's sender and label
        self.on_arrival: Callable[[str, str], object] | None = None

    def send(self, receiver: str, packet: Packet, now: float) -> None:
        """Sends a datagram."""
        self.network.throw(self.name, receiver, packet, now)

    def connect(self, receiver: str, now: float) -> StreamEnd:
        """Asks for a stream; ``opened`` or ``closed`` comes later."""
        end = StreamEnd(self)
        self.streams.append(end)
        self.network.knock(end, receiver, now, 0)
        return end

    def put(self, arrival: Arrival, label: str = "") -> None:
        self.inbox.append(arrival)
        if self.on_arrival is not None:
            self.on_arrival(arrival.sender, label)
        self._wake()


class Network:
    """See the module. Hosts have names; ``delay_seconds`` is drawn for each packet anew."""

    def __init__(self, clock: Clock, rng: random.Random, trace: Trace) -> None:
        self.delay_seconds = (0.0005, 0.005)
        #: shares of the datagrams
        self.loss = 0.0
        self.duplication = 0.0
        self._clock = clock
        self._rng = rng
        self._trace = trace
        self._endpoints: dict[str, Endpoint] = {}
        self._without_power: set[str] = set()
        #: (sender, receiver) → how many faults cut the way
        self._cuts: dict[tuple[str, str], int] = {}
        self._held_back: dict[StreamEnd, None] = {}
        self._fuses: dict[tuple[str, str], int] = {}
        #: links with a delay of their own
        self.slow: dict[tuple[str, str], tuple[float, float]] = {}

    # --- hosts ---------------------------------------------------------------------------

    def attach(self, name: str, wake: Callable[[], Any]) -> Endpoint:
        """A process begins; ``wake`` is called when something has arrived for it."""
        endpoint = self._endpoints[name] = Endpoint(self, name, wake)
        self._without_power.discard(name)
        return endpoint

    def detach(self, endpoint: Endpoint, now: float, *, has_power: bool) -> None:
        """A process ended. Its kernel closes its streams, if it has power."""
        if self._endpoints.get(endpoint.name) is endpoint:
            del self._endpoints[endpoint.name]
        if not has_power:
            self._without_power.add(endpoint.name)
        for end in endpoint.streams:
            if has_power:
                end.close(now)
            end.is_open = False

    # --- partitions ----------------------------------------------------------------------

    def cut(self, sender: str, receiver: str) -> None:
        """From now on nothing gets from one to the other; it may the other way."""
        way = (sender, receiver)
        self._cuts[way] = self._cuts.get(way, 0) + 1

    def mend(self, sender: str, receiver: str) -> None:
        """Takes one :meth:`cut` back."""
        way = (sender, receiver)
        if self._cuts.get(way, 0) > 1:
            self._cuts[way] -= 1
        else:
            self._cuts.pop(way, None)
            self._release()

    def reset(self, one: str, other: str) -> None:
        """Breaks the connections between two hosts, with what is under way in them."""
        endpoint = self._endpoints.get(one)
        for end in [] if endpoint is None else list(endpoint.streams):
            peer = end.peer
            if end.is_open and peer is not None and peer.endpoint.name == other:
                self._reset(end)
                self._reset(peer)

    def reset_after(self, sender: str, receiver: str, packets: int) -> None:
        """Breaks the connections between two hosts once so many more packets have arrived."""
        self._fuses[sender, receiver] = packets

    def reset_behind(self, sender: str, receiver: str, is_due: Callable[[], bool]) -> None:
        """Breaks the connections between two hosts behind what was sent up to now, if it is due
        once that has arrived.
        """

        def break_it() -> None:
            if is_due():
                self.reset(sender, receiver)

        endpoint = self._endpoints.get(sender)
        for end in [] if endpoint is None else endpoint.streams:
            if end.is_open and end.peer is not None and end.peer.endpoint.name == receiver:
                self._clock.at(end._arrives + 5e-7, break_it)

    def _burn(self, sender: str, receiver: str) -> None:
        left = self._fuses.get((sender, receiver))
        if left is not None:
            if left > 1:
                self._fuses[sender, receiver] = left - 1
            else:
                del self._fuses[sender, receiver]
                self.reset(sender, receiver)

    def mend_all(self) -> None:
        self._cuts.clear()
        self._fuses.clear()
        self.slow.clear()
        self._release()

    def _release(self) -> None:
        for end in self._held_back:
            if not end._is_flushing and not self._is_cut(end):
                end._is_flushing = True
                wait = self._rng.uniform(0, _RETRANSMIT_SECONDS)
                self._clock.after(wait, self._flush, end)

    def _flush(self, end: StreamEnd) -> None:
        end._is_flushing = False
        while end._held and not self._is_cut(end):
            self._hand_in(end, *end._held.popleft())
        if not end._held:
            self._held_back.pop(end, None)

    def _is_cut(self, end: StreamEnd) -> bool:
        assert end.peer is not None
        return (end.endpoint.name, end.peer.endpoint.name) in self._cuts

    def _delay(self, sender: str, receiver: str) -> float:
        return self._rng.uniform(*self.slow.get((sender, receiver), self.delay_seconds))

    # --- datagrams -----------------------------------------------------------------------

    def throw(self, sender: str, receiver: str, packet: Packet, now: float) -> None:
        """Sends a datagram."""
        copies = 1 + (self._rng.random() < self.duplication)
        for _ in range(copies):
            if self._rng.random() >= self.loss:
                when = now + self._delay(sender, receiver)
                self._clock.at(when, self._catch, sender, receiver, packet)

    def _catch(self, sender: str, receiver: str, packet: Packet) -> None:
        endpoint = self._endpoints.get(receiver)
        if endpoint is not None and (sender, receiver) not in self._cuts:
            self._note(sender, receiver, packet)
            endpoint.put(Arrival("datagram", sender, packet.data), packet.label)

    def _note(self, sender: str, receiver: str, packet: Packet) -> None:
        self._trace.note(sender, ">", receiver, packet.label, zlib.crc32(packet.data))

    # --- streams -------------------------------------------------------------------------

    def knock(self, end: StreamEnd, receiver: str, now: float, attempt: int) -> None:
        """Asks for a connection, again and again."""
        when = now + self._delay(end.endpoint.name, receiver)
        self._clock.at(when, self._answer, end, receiver, attempt)

    def _answer(self, end: StreamEnd, receiver: str, attempt: int) -> None:
        sender = end.endpoint.name
        if not end.is_open:
            return
        is_cut = (sender, receiver) in self._cuts or (receiver, sender) in self._cuts
        if is_cut or receiver in self._without_power:
            if attempt < len(_SYN_SECONDS):
                self._clock.after(_SYN_SECONDS[attempt], self._answer, end, receiver, attempt + 1)
            else:
                self._reset(end)
            return
        endpoint = self._endpoints.get(receiver)
        if endpoint is None or not endpoint.is_listening:
            self._reset(end)
            return
        other = end.peer = StreamEnd(endpoint, end)
        endpoint.streams.append(other)
        self._trace.note(sender, ">", receiver, "connected")
        endpoint.put(Arrival("accepted", sender, stream=other))
        back = self._clock.now + self._delay(receiver, sender)
        other._arrives = back
        self._clock.at(back, self._opened, end, receiver)

    def _opened(self, end: StreamEnd, receiver: str) -> None:
        if end.is_open:
            end.endpoint.put(Arrival("opened", receiver, stream=end))

    def carry(self, end: StreamEnd, kind: str, packet: Packet, now: float) -> None:
        """Has something arrive at the other end, after all that was sent before."""
        assert end.peer is not None
        when = now + self._delay(end.endpoint.name, end.peer.endpoint.name)
        end._arrives = when = max(when, end._arrives + 1e-6)
        self._clock.at(when, self._arrive, end, kind, packet)

    def _arrive(self, end: StreamEnd, kind: str, packet: Packet) -> None:
        if end._held or end._is_flushing or self._is_cut(end):
            end._held.append((kind, packet))
            self._held_back[end] = None
        else:
            self._hand_in(end, kind, packet)

    def _hand_in(self, end: StreamEnd, kind: str, packet: Packet) -> None:
        other = end.peer
        assert other is not None
        if not end.is_open and kind == "data" and not end.is_closing:
            return  # it was under way when the connection broke
        endpoint, sender = other.endpoint, end.endpoint.name
        if other.is_open:
            if kind == "closed":
                self._reset(other)
            else:
                self._note(sender, endpoint.name, packet)
                endpoint.put(Arrival(kind, sender, packet.data, other), packet.label)
                self._burn(sender, endpoint.name)
        elif endpoint.name not in self._without_power:
            self._reset(end)

    def _reset(self, end: StreamEnd) -> None:
        """Tells an end that there is no other any more."""
        if end.is_open:
            end.is_open = False
            peer = end.endpoint.name if end.peer is None else end.peer.endpoint.name
            end.endpoint.put(Arrival("closed", peer, stream=end), "closed")
