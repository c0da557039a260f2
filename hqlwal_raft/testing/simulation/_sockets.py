"""Sockets for pysyncobj: the classes that its transport takes for TCP, on a simulated network.

``_upstream`` puts them in the place of pysyncobj's own. They must not know what is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pysyncobj.pickle
from pysyncobj.tcp_connection import CONNECTION_STATE

from ._host import Host
from ._network import Packet, StreamEnd

__all__ = ["Connection", "OnMessage", "Poller", "Server"]

#: told of each message that is sent: who, to whom, what
OnMessage = Callable[[Host, str, Any], None]

_SEND_SECONDS = 0.0005


class Connection:
    """In the place of pysyncobj's TcpConnection."""

    def __init__(
        self,
        poller: Poller,
        onMessageReceived: Any = None,  # noqa: N803
        onConnected: Any = None,  # noqa: N803
        onDisconnected: Any = None,  # noqa: N803
        socket: Any = None,
        timeout: float = 10.0,
        sendBufferSize: int = 0,  # noqa: N803
        recvBufferSize: int = 0,  # noqa: N803
        keepalive: Any = None,
    ) -> None:
        self.sendRandKey = self.recvRandKey = self.encryptor = None
        self.setOnMessageReceivedCallback(onMessageReceived)
        self.setOnConnectedCallback(onConnected)
        self.setOnDisconnectedCallback(onDisconnected)
        self._host = poller.host
        self._on_sent = poller.on_message
        self._timeout = timeout
        self._end: StreamEnd | None = None
        self.state = CONNECTION_STATE.DISCONNECTED
        self._last_read = self._now()
        if socket is not None:
            self._take(socket)
            self.state = CONNECTION_STATE.CONNECTED

    def _now(self) -> float:
        assert self._host.process is not None
        return self._host.process.now

    def _take(self, end: StreamEnd) -> None:
        self._end, end.owner = end, self

    def setOnConnectedCallback(self, call: Any) -> None:  # noqa: N802
        self._on_connected = call

    def setOnMessageReceivedCallback(self, call: Any) -> None:  # noqa: N802
        self._on_message = call

    def setOnDisconnectedCallback(self, call: Any) -> None:  # noqa: N802
        self._on_disconnected = call

    def connect(self, host: str, port: int) -> bool:
        endpoint = self._host.endpoint
        assert endpoint is not None
        self._last_read = self._now()
        self.state = CONNECTION_STATE.CONNECTING
        self._take(endpoint.connect(host, self._now()))
        return True

    def send(self, message: Any) -> None:
        if self.state == CONNECTION_STATE.DISCONNECTED or self._end is None:
            return
        if self._now() - self._last_read > self._timeout:
            self.disconnect()
            return
        # pysyncobj may send until a time is over: sending has to take some
        self._host.machine.work(_SEND_SECONDS)
        is_raft = isinstance(message, dict)
        label = f"{message['type']} {message.get('term', '')}" if is_raft else "hello"
        if self._on_sent is not None and self._end.peer is not None:
            self._on_sent(self._host, self._end.peer.endpoint.name, message)
        self._end.send(Packet(pysyncobj.pickle.dumps(message), label), self._now())

    def disconnect(self) -> None:
        was_connected = self.state != CONNECTION_STATE.DISCONNECTED
        self.state = CONNECTION_STATE.DISCONNECTED
        self.sendRandKey = self.recvRandKey = None
        if self._end is not None:
            self._end.close(self._now())
            self._end = None
        if was_connected and self._on_disconnected is not None:
            self._on_disconnected()

    def arrived(self, kind: str, end: StreamEnd, data: bytes) -> None:
        if end is not self._end:
            return
        if kind == "closed" or self._now() - self._last_read > self._timeout:
            self.disconnect()
        elif kind == "opened":
            if self._on_connected is not None:
                self._on_connected()
            if self.state != CONNECTION_STATE.DISCONNECTED:
                self.state = CONNECTION_STATE.CONNECTED
                self._last_read = self._now()
        else:
            self._last_read = self._now()
            if self._on_message is not None:
                self._on_message(pysyncobj.pickle.loads(data))


class Server:
    """In the place of pysyncobj's TcpServer."""

    def __init__(
        self,
        poller: Poller,
        host: str,
        port: int,
        onNewConnection: Any,  # noqa: N803
        **options: Any,
    ) -> None:
        self._poller = poller
        self._on_new_connection = onNewConnection
        self._timeout = options["connectionTimeout"]

    def bind(self) -> None:
        assert self._poller.host.endpoint is not None
        self._poller.host.endpoint.is_listening = True
        self._poller.server = self

    def unbind(self) -> None:
        if self._poller.host.endpoint is not None:
            self._poller.host.endpoint.is_listening = False
        self._poller.server = None

    def accepted(self, end: StreamEnd) -> None:
        connection = Connection(self._poller, socket=end, timeout=self._timeout)
        self._on_new_connection(connection)


class Poller:
    """In the place of pysyncobj's pollers: looks at what has arrived, and never waits."""

    def __init__(self, host: Host, on_message: OnMessage | None) -> None:
        self.host = host
        self.on_message = on_message
        self.server: Server | None = None
        self.has_delivered = False

    def subscribe(self, descr: int, callback: Any, eventMask: int) -> None:  # noqa: N803
        """The notifier's pipe: a node that has commands is woken anyway."""

    def unsubscribe(self, descr: int) -> None:
        pass

    def poll(self, timeout: float) -> None:
        endpoint = self.host.endpoint
        self.has_delivered = endpoint is not None and bool(endpoint.inbox)
        # what arrives while these are read waits for the next time
        for _ in range(0 if endpoint is None else len(endpoint.inbox)):
            assert endpoint is not None
            arrival = endpoint.inbox.popleft()
            end = arrival.stream
            assert end is not None
            if arrival.kind == "accepted":
                if self.server is not None:
                    self.server.accepted(end)
            elif end.owner is not None:
                end.owner.arrived(arrival.kind, end, arrival.data)
