"""The examples run, and the demo finds nothing missing and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO = EXAMPLES / "demo_cluster.py"


# Whoever runs the tests in the background has SIGINT ignored, for all that they start.
INTERRUPTIBLE = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def processes_that_name(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            continue
        if text in command:
            found.append(command)
    return found


def test_the_store_example_runs() -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "async_store.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "the vote and the last entry are as they were" in result.stdout


def test_the_snapshot_example_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "snapshots.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "taken over: the state after entry 10000" in result.stdout


@pytest.mark.parametrize("program", ["counter_cluster.py", "demo_cluster.py"])
def test_a_program_explains_itself(program: str) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / program, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--folder" in result.stdout


def test_the_demo_finds_nothing_missing_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = subprocess.run(
        [sys.executable, DEMO, "--commands", "2000", "--folder", folder],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing that was acknowledged is missing" in result.stdout
    assert len(re.findall(r"node-\d .*2,000", result.stdout)) == 3
    assert processes_that_name(str(folder)) == []


def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            INTERRUPTIBLE,
            DEMO,
            "--commands",
            "100000",
            "--folder",
            folder,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    with demo.stdout:
        for line in demo.stdout:
            if "writing to a healthy cluster" in line:
                break
        assert len(processes_that_name(str(folder))) >= 4
        demo.send_signal(signal.SIGINT)
        assert "interrupted" in demo.stdout.read()
    assert demo.wait(30) == 130
    assert processes_that_name(str(folder)) == []


def test_a_demo_in_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    result = subprocess.run(
        [sys.executable, DEMO, "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert os.listdir(tmp_path) == ["precious"]


@pytest.fixture
def first_port() -> int:
    """The first of three ports in a row that nobody has."""
    for port in range(21000, 30000, 3):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return port
    raise AssertionError("no free ports")


class Terminal:
    """A node of the counter example, as somebody at a terminal sees it."""

    def __init__(self, number: int, folder: Path, first_port: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, EXAMPLES / "counter_cluster.py", str(number)),
                *("--folder", folder, "--first-port", str(first_port)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read_until(self, text: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the node ended before it showed {text!r}")

    def insist(self, line: str, text: str) -> str:
        """Types until it is acknowledged: at first there is no leader."""
        assert self._process.stdout is not None
        self.type(line)
        for shown in self._process.stdout:
            if text in shown:
                return shown
            if "not acknowledged" in shown:
                self.type(line)
        raise AssertionError(f"the node ended before it showed {text!r}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def terminals(tmp_path: Path, first_port: int) -> Iterator[list[Terminal]]:
    opened = [Terminal(number, tmp_path, first_port) for number in (1, 2, 3)]
    yield opened
    for terminal in opened:
        terminal.kill()


def test_the_counter_counts_and_goes_on_after_all_nodes_were_killed(
    terminals: list[Terminal], tmp_path: Path, first_port: int
) -> None:
    for terminal in terminals:
        terminal.read_until("type + and Enter")
    terminals[0].insist("5", "counter = 5")
    terminals[1].insist("+", "counter = 6")
    for terminal in terminals:
        terminal.kill()
    terminals[:] = [Terminal(number, tmp_path, first_port) for number in (1, 2, 3)]
    terminals[2].read_until("type + and Enter")
    terminals[2].insist("+", "counter = 7")
