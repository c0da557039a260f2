"""The demo's nodes as the demo sees them: processes to start, to talk to and to kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODE_PROGRAM = Path(__file__).with_name("demo_node.py")


class Node:
    """One node of the cluster: its address, its folder and its processes, one at a time."""

    def __init__(self, number: int, folder: Path, on_line: Callable[[Node, str], None]) -> None:
        self.name = f"node-{number}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self._on_line = on_line
        # Bound for as long as the demo runs, never listening: nobody else is given the port,
        # and the node may bind it too, since both say SO_REUSEADDR.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._reservation.getsockname()[1]}"
        self._processes: list[subprocess.Popen[str]] = []
        self._finished: list[dict[str, Any]] = []
        self.is_running = False
        self.status: dict[str, Any] = {}
        #: what it answered when it was asked what it holds
        self.state: dict[str, Any] | None = None
        self.is_asked = False

    def start(self, partners: list[str], options: list[str]) -> None:
        self.status, self.state, self.is_asked = {}, None, False
        with (self.folder / "messages.txt").open("ab") as messages:
            process = subprocess.Popen(
                [
                    *(sys.executable, str(NODE_PROGRAM), self.address, *partners),
                    *("--folder", str(self.folder), *options),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                process_group=0,  # Ctrl-C reaches the demo only, which then ends the nodes
            )
        self._processes.append(process)
        self.is_running = True
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):
                self._on_line(self, line[:-1])

    def send(self, lines: str) -> None:
        """Raises OSError where the process is gone."""
        stdin = self._processes[-1].stdin
        assert stdin is not None
        stdin.write(lines)
        stdin.flush()

    def kill(self) -> None:
        """SIGKILL; returns once the process is dead. A dump child it forked lives on."""
        process = self._processes[-1]
        process.kill()
        # Not reaped before the end: its number, which names the group, stays taken.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self.is_running = False
        self._finished.append(self.status)

    def end(self) -> None:
        """Kills whatever is left of any process of this node, its children too."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
        self._reservation.close()

    def dump_time(self) -> int:
        try:
            return (self.folder / "dump").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def total(self, name: str) -> int:
        """A counter of the status, over all the processes this node has had."""
        return sum(status.get(name, 0) for status in [*self._finished, self.status])
