"""Nodes of a pysyncobj cluster, each a process, and the cluster of them. Judges nothing.

This file is also what a node's process runs: it takes orders on its standard input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from array import array
from dataclasses import asdict, dataclass
from time import perf_counter, sleep
from typing import Any

from _machine import resident_bytes
from _measure import Latency

__all__ = ["COMMAND", "NODES", "Cluster"]

COMMAND = bytes(100)
NODES = 3
WARM_UP_SECONDS = 0.5
#: for the answers that are under way when a load is over
PATIENCE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Node:
    """How one node is started."""

    kind: str
    number: int
    ports: list[int]
    directory: str
    uses_batch: bool


def _flush_every_add() -> None:
    """Makes pysyncobj's own journal durable the plain way."""
    import pysyncobj.journal
    import pysyncobj.syncobj

    class FlushedJournal(pysyncobj.journal.FileJournal):
        def add(self, command: bytes, idx: int, term: int) -> None:
            super().add(command, idx, term)
            self.flush()

    pysyncobj.syncobj.createJournal = FlushedJournal


def _start(node: Node) -> Any:
    from pysyncobj import SyncObj, SyncObjConf, replicated

    base = SyncObj
    if node.kind == "flush":
        _flush_every_add()
    elif node.kind == "wal":
        from hqlwal_raft.pysyncobj import WalSyncObj

        base = WalSyncObj

    class Sink(base):  # type: ignore[valid-type,misc]
        """Counts the commands and keeps none."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._count = 0

        @replicated
        def put(self, _: bytes) -> None:
            self._count += 1

    path = os.path.join(node.directory, f"node-{node.number}")
    addresses = [f"127.0.0.1:{port}" for port in node.ports]
    configuration = SyncObjConf(
        journalFile=path + ".journal",
        fullDumpFile=path + ".dump",
        appendEntriesUseBatch=node.uses_batch,
        connectionRetryTime=0.2,
        logCompactionMinEntries=1 << 40,
        logCompactionMinTime=1 << 30,
    )
    return Sink(addresses.pop(node.number), addresses, configuration)


def _load(sink: Any, window: int, seconds: float) -> dict[str, Any]:
    """Keeps ``window`` commands in flight; each answer sends the next one.

    Lasts until one command at least was answered.
    """
    calls = array("d")
    failures = 0
    is_over = threading.Event()
    begin = perf_counter() + WARM_UP_SECONDS
    end = begin + seconds
    last = end
    in_flight = window

    def send() -> None:
        sent = perf_counter()

        def answered(_: object, error: int) -> None:
            nonlocal failures, in_flight, last
            now = perf_counter()
            is_going_on = now < end or not calls
            if error:
                failures += 1
            elif begin <= now and is_going_on:
                calls.append(now - sent)
                last = now
            if is_going_on:
                send()
            else:
                in_flight -= 1
                if not in_flight:
                    is_over.set()

        sink.put(COMMAND, callback=answered)

    for _ in range(window):
        send()
    is_over.wait(WARM_UP_SECONDS + seconds + PATIENCE_SECONDS)
    latency = Latency.of(calls)
    return {
        "rate": len(calls) / (max(last, end) - begin),
        "failed": failures,
        "unanswered": in_flight,
        "latency": asdict(latency) if latency else None,
        "resident": sum(resident_bytes().values()),
    }


class _Faults(logging.Handler):
    """Counts the exceptions that pysyncobj's tick thread only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.count += 1
            self.first = self.first or f"{record.getMessage()}: {record.exc_info[1]!r}"


def serve(node: Node) -> None:
    faults = _Faults()
    logging.getLogger().addHandler(faults)  # and nothing goes to standard error
    sink = _start(node)
    for line in sys.stdin:
        order, *arguments = line.split()
        if order == "status":
            told = {
                "ready": bool(sink.isReady()),
                "leader": bool(sink._isLeader()),
                "faults": faults.count,
                "first": faults.first,
            }
        elif order == "load":
            told = _load(sink, int(arguments[0]), float(arguments[1]))
        else:
            break
        print(json.dumps(told), flush=True)
    sink.destroy()
    sleep(0.2)  # the tick thread closes the journal


# --- the cluster -------------------------------------------------------------------------


class Cluster:
    """Three node processes and the wires to them."""

    def __init__(self, kind: str, directory: str, *, uses_batch: bool) -> None:
        ports = _free_ports(NODES)
        self._processes = []
        for number in range(NODES):
            node = Node(kind, number, ports, directory, uses_batch)
            command = [sys.executable, os.path.abspath(__file__)]
            command.append(json.dumps(asdict(node)))
            self._processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )

    def _ask(self, number: int, order: str) -> dict[str, Any]:
        process = self._processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"node {number} ended with {process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def leader(self, timeout_seconds: float = 20) -> int:
        """Waits until every node is ready and one of them leads."""
        until = perf_counter() + timeout_seconds
        while perf_counter() < until:
            states = [self._ask(number, "status") for number in range(NODES)]
            leaders = [number for number, state in enumerate(states) if state["leader"]]
            if all(state["ready"] for state in states) and len(leaders) == 1:
                return leaders[0]
            sleep(0.05)
        raise TimeoutError("the cluster found no leader")

    def load(self, window: int, seconds: float) -> dict[str, Any]:
        return self._ask(self.leader(), f"load {window} {seconds}")

    def faults(self) -> str:
        """What the nodes logged as errors; empty where there was nothing."""
        states = [self._ask(number, "status") for number in range(NODES)]
        count = sum(state["faults"] for state in states)
        first = next((state["first"] for state in states if state["first"]), "")
        return f"{count} exceptions logged, the first: {first}" if count else ""

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    serve(Node(**json.loads(sys.argv[1])))
