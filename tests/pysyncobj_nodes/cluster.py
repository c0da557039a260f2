"""Starts, kills and asks the processes of ``node``."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent
#: an answer that takes longer will not come
ANSWER_SECONDS = 120.0


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} seconds: not {what}")
        time.sleep(0.02)


def stop(node: Any) -> None:
    """Destroys a SyncObj and waits for its thread; older versions have no method for that."""
    node.destroy()
    if node.conf.autoTick:
        node._SyncObj__thread.join()


class Cluster:
    """Nodes in one folder, each a process; their acknowledgements in one file."""

    def __init__(self, folder: pathlib.Path, size: int = 3, **options: Any) -> None:
        self.folder = folder
        self.size = size
        self.log = folder / "acknowledged"
        self._options = options
        #: of single nodes, from their next start on; ``python`` is the interpreter that runs it
        self.options_of: dict[int, dict[str, Any]] = {}
        self._addresses = free_addresses(size)
        self._boots = 0
        self.processes: dict[int, subprocess.Popen[str]] = {}
        #: answers that nobody waited for
        self._unread: dict[int, int] = {}
        self._read_bytes: dict[int, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.log.touch()

    def start(self, *indexes: int) -> None:
        for index in indexes or range(self.size):
            self._boots += 1
            self._unread[index] = 0
            self._read_bytes[index] = b""
            options = {
                "index": index,
                "addresses": self._addresses,
                "folder": str(self.folder),
                "log": str(self.log),
                "first": self._boots * 10**9,
                **self._options,
                **self.options_of.get(index, {}),
            }
            python = str(options.pop("python", sys.executable))
            self.processes[index] = subprocess.Popen(
                [python, "-m", "tests.pysyncobj_nodes.node", json.dumps(options)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def tell(self, index: int, command: str) -> None:
        """Sends a command whose answer nobody waits for; the next that is asked for skips it."""
        process = self.processes[index]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(command + "\n")
            process.stdin.flush()
        self._unread[index] = self._unread.get(index, 0) + 1

    def ask(self, index: int, command: str) -> dict[str, Any]:
        self.tell(index, command)
        while self._unread[index] > 1:
            self._read(index, command)
        return self._read(index, command)

    def _read(self, index: int, command: str) -> dict[str, Any]:
        stdout = self.processes[index].stdout
        assert stdout is not None
        lines = self._read_bytes
        while b"\n" not in lines[index]:
            if not select.select([stdout], [], [], ANSWER_SECONDS)[0]:
                raise AssertionError(f"node {index} does not answer to {command}")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                log = (self.folder / f"{index}.log").read_text()
                raise AssertionError(f"node {index} died: {log}")
            lines[index] += data
        line, _, lines[index] = lines[index].partition(b"\n")
        self._unread[index] -= 1
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"node {index} could not {answer['command']}: {answer['error']}")
        return answer

    def ask_all(self, command: str) -> list[dict[str, Any]]:
        return [self.ask(index, command) for index in sorted(self.processes)]

    def wait_ready(self) -> None:
        wait_until(
            lambda: all(answer["ready"] for answer in self.ask_all("status")), "every node ready"
        )

    def leader(self) -> int:
        leaders: list[int] = []

        def is_found() -> bool:
            leaders[:] = [i for i in self.processes if self.ask(i, "status")["leads"]]
            return bool(leaders)

        wait_until(is_found, "a leader elected")
        return leaders[0]

    def kill(self, *indexes: int) -> None:
        """SIGKILL, at once, for all of them or those named; dump children live on."""
        self._end(signal.SIGKILL, indexes or sorted(self.processes))

    def end(self, *indexes: int) -> None:
        """Ends them in order, at once; one that does not end is killed."""
        ended = indexes or sorted(self.processes)
        for index in ended:
            self.tell(index, "quit")
        deadline = time.monotonic() + 10
        for index in ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[index].wait(max(0.0, deadline - time.monotonic()))
        self._end(signal.SIGKILL, ended)

    def _end(self, number: int, indexes: Iterable[int]) -> None:
        ended = [self.processes.pop(index) for index in indexes]
        for process in ended:
            process.send_signal(number)
        for process in ended:
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def acknowledged(self) -> int:
        """How many commands were acknowledged so far."""
        return self.log.read_bytes().count(b"\n")

    def dump_inodes(self) -> list[int]:
        """Changes whenever a node replaced its dump file."""
        inodes = []
        for index in range(self.size):
            try:
                inodes.append(os.stat(self.folder / f"{index}.dump").st_ino)
            except FileNotFoundError:
                inodes.append(0)
        return inodes

    def close(self) -> None:
        """Kills what is left, forked dump children included."""
        for process in list(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.kill(*self.processes)


@contextlib.contextmanager
def running_cluster(folder: pathlib.Path, **options: Any) -> Iterator[Cluster]:
    cluster = Cluster(folder, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
