"""What pysyncobj asks of the machine, answered by a simulation: time, chance, files, forks, sockets.

pysyncobj knows no environment, so the names that its modules call are replaced while a
:class:`Upstream` is entered. Its own code runs, from the transport down to the serializer; what
it does is done by the host that runs. It must not know what is right.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pysyncobj.node
import pysyncobj.pickle
import pysyncobj.serializer
import pysyncobj.syncobj
import pysyncobj.transport
from pysyncobj.serializer import Serializer

from ...pysyncobj import _background, _dump
from ._host import Host, World
from ._machine import Child, Died, Process
from ._sockets import Connection, OnMessage, Poller, Server
from ._threads import Waited

__all__ = ["Upstream"]

_BUFFER_BYTES = 8192
# elsewhere than on Linux it is missing, and no node is run
_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)


class _Exit(BaseException):
    """``os._exit`` of a forked child."""


class _Writer(io.RawIOBase):
    """A file that is written from its beginning on, with a buffer as Python's files have."""

    def __init__(self, process: Process, descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._offset = 0
        self._buffer = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += bytes(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._drain()
        return len(data)

    def _drain(self) -> None:
        while self._buffer:
            count = self._process.pwrite(self._descriptor, self._buffer, self._offset)
            self._offset += count
            self._buffer = self._buffer[count:]

    def close(self) -> None:
        if self.closed:
            return
        super().close()  # a file whose end cannot be written is closed as well
        if not self._process.is_dead:
            try:
                self._drain()
            finally:
                self._process.close(self._descriptor)

    def __del__(self) -> None:
        # pysyncobj drops a file that it could not write; what its end meets, nobody can hear
        with contextlib.suppress(OSError, Died):
            self.close()


class Upstream:
    """See the module. To be entered around a whole simulation."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: how long a dump takes, per host
        self.dump_seconds: dict[str, tuple[float, float]] = {}
        self.on_message: OnMessage | None = None
        self._dumping: tuple[Serializer, Any, Any] | None = None
        self._child: Child | None = None
        self._children: dict[tuple[str, int], Child] = {}

    @property
    def host(self) -> Host:
        assert self.world.running is not None
        return self.world.running

    @property
    def process(self) -> Process:
        process = self.host.process
        assert process is not None
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[Upstream]:
        system = SimpleNamespace(
            fork=self._fork,
            waitpid=self._waitpid,
            WNOHANG=os.WNOHANG,
            _exit=self._exit,
            path=SimpleNamespace(isfile=self._isfile),
        )
        resolver = SimpleNamespace(
            resolve=lambda host: host,
            setTimeouts=lambda *_: None,
            setPreferredAddrFamily=lambda *_: None,
        )
        zipped = SimpleNamespace(GzipFile=_gzip_file)
        places: list[tuple[Any, str, Any]] = [
            (pysyncobj.syncobj, "monotonicTime", self._monotonic),
            (pysyncobj.syncobj, "random", SimpleNamespace(random=self._random)),
            (pysyncobj.syncobj, "os", system),
            (pysyncobj.syncobj, "createPoller", lambda _type: Poller(self.host, self.on_message)),
            # it is never closed, and a node that has commands is woken anyway
            (pysyncobj.syncobj, "PIPE_NOTIFIER_ENABLED", False),
            (pysyncobj.syncobj, "globalDnsResolver", lambda: resolver),
            (pysyncobj.node, "globalDnsResolver", lambda: resolver),
            (pysyncobj.transport, "globalDnsResolver", lambda: resolver),
            (pysyncobj.transport, "monotonicTime", self._monotonic),
            (pysyncobj.transport, "TcpConnection", Connection),
            (pysyncobj.transport, "TcpServer", Server),
            (pysyncobj.serializer, "os", system),
            (pysyncobj.serializer, "open", self._open),
            (pysyncobj.serializer, "gzip", zipped),
            (pysyncobj.serializer, "atomicReplace", self._rename),
            (_dump, "_rename", self._rename),
            (_background, "Future", self._future),
            (Serializer, "serialize", self._serialize(Serializer.serialize)),
        ]
        before = [(place, name, vars(place).get(name)) for place, name, _ in places]
        for place, name, value in places:
            setattr(place, name, value)
        try:
            yield self
        finally:
            for place, name, value in before:
                if value is None:
                    delattr(place, name)
                else:
                    setattr(place, name, value)

    # --- time, chance, files -------------------------------------------------------------

    def _monotonic(self) -> float:
        return self.process.monotonic()

    def _random(self) -> float:
        return self.process.chance.random()

    def _future(self) -> Waited:
        return self.process.future()

    def _isfile(self, path: str) -> bool:
        try:
            self.process.stat(path)
        except OSError:
            return False
        return True

    def _rename(self, source: str, target: str) -> None:
        self.process.rename(source, target)

    def _open(self, path: str, mode: str) -> Any:
        process, child = self.process, self._child
        if mode == "rb":
            descriptor = process.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = process.pread(descriptor, process.fstat(descriptor).st_size, 0)
            finally:
                process.close(descriptor)
            return io.BytesIO(data)
        if child is not None and child.descriptor is not None:
            # its own, which it opened when it began
            descriptor, child.descriptor, child.description = child.descriptor, None, None
        else:
            descriptor = process.open(path, _TO_WRITE)
        return _Writer(process, descriptor)

    # --- dumps by a forked child ---------------------------------------------------------

    def _serialize(self, original: Callable[..., None]) -> Callable[..., None]:
        def serialize(serializer: Serializer, data: Any, id: Any) -> None:  # noqa: A002
            self._dumping = (serializer, data, id)
            original(serializer, data, id)

        self._dump = original
        return serialize

    def _fork(self) -> int:
        """The child is a copy of the state; it writes half a file soon, the whole one later."""
        if self._child is not None:
            return 0
        assert self._dumping is not None
        serializer, data, number = self._dumping
        host, machine, now = self.host, self.host.machine, self.process.now
        memory = (copy.copy(serializer), pysyncobj.pickle.dumps(data), number)
        child = machine.fork()
        self._children[host.name, child.pid] = child
        fastest, slowest = self.dump_seconds.get(host.name, (0.002, 0.02))
        seconds = machine.chance.uniform(fastest, slowest)

        def run(when: float, step: Callable[..., None]) -> None:
            self._in_child(host, child, when, partial(step, child, *memory))

        begin = now + min(0.001, seconds / 2)
        machine.plan_step(child, begin, partial(run, begin, self._begin))
        end = now + seconds
        machine.plan_step(child, end, partial(run, end, self._finish))
        self.world.trace.note(host.name, "forks a dump of", number)
        return child.pid

    def _in_child(self, host: Host, child: Child, now: float, step: Callable[[], None]) -> None:
        """Makes a call in the child: a process of its own, on the same machine.

        Its memory is the parent's, so what there is the parent's environment is the child's.
        """
        machine, running = host.machine, self.world.running
        latest = host.process
        process = Process(machine, child.pid)
        process.now = now
        taken = [(each, each.__dict__) for each in host.processes]
        for each, _ in taken:
            each.__dict__ = process.__dict__
        self._child, self.world.running, host.process = child, host, process
        try:
            step()
        except _Exit as ended:
            machine.end_child(child, ended.args[0])
            self.world.trace.note(host.name, "ended a dump with", ended.args[0])
        finally:
            for each, own in taken:
                each.__dict__ = own
            host.process = latest
            self._child, self.world.running = None, running

    def _begin(self, child: Child, serializer: Any, data: bytes, _number: Any) -> None:
        process = self.process
        path = serializer._Serializer__fileName + ".tmp"
        try:
            descriptor = child.descriptor = process.open(path, _TO_WRITE)
            child.description = process.machine.kernel._descriptors[descriptor]
            process.pwrite(descriptor, data[: len(data) // 4], 0)
        except OSError:
            raise _Exit(255) from None

    def _finish(self, _child: Child, serializer: Any, data: bytes, number: Any) -> None:
        self._dump(serializer, pysyncobj.pickle.loads(data), number)

    def _exit(self, status: int) -> None:
        raise _Exit(status & 255)

    def _waitpid(self, pid: int, _options: int) -> tuple[int, int]:
        child = self._children[self.host.name, pid]
        if child.status is None:
            return 0, 0
        return pid, child.status << 8


def _gzip_file(*, fileobj: Any, mode: str = "rb") -> gzip.GzipFile:
    """Always the same bytes, quickly made."""
    return gzip.GzipFile(fileobj=fileobj, mode=mode, compresslevel=1, mtime=0)
