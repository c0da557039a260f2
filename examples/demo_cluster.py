"""The demo: three nodes, a writing client, kill -9 of one node, of the leader, of all.

What the client was told is durable is compared with what every node holds afterwards; the
exit code is 0 where nothing is missing, else 1. The nodes are real processes
(``demo_node.py``) that form a pysyncobj cluster on loopback, each on its own WAL directory.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from _demo_client import WINDOW, Client, value_of
from _demo_nodes import Node

NODES = 3
#: how long any single step of the demo may take
STEP_SECONDS = 40.0
#: how long the nodes may take to hold the same before they are compared all the same
AGREEMENT_SECONDS = 15.0


class DemoError(Exception):
    """A step did not come about."""


@dataclass(frozen=True)
class Event:
    """One kill and what came of it."""

    what: str
    acknowledged: int
    lost: int
    back_after_seconds: float


class Demo:
    """The course of events. Everything waits for something that happens, never for a time."""

    def __init__(self, options: argparse.Namespace, folder: Path, console: Console) -> None:
        self.options = options
        self.console = console
        self.client = Client()
        self.nodes = self.client.nodes
        self.events: list[Event] = []
        self.commands_per_second = 0.0
        self.progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("acknowledged"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=options.commands)
        for number in range(1, NODES + 1):
            self.nodes.append(Node(number, folder, self.client.on_line))

    # --- steps ---------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        self.progress.update(self.task, description=text)
        self.console.print(f"{len(self.client.acknowledged):>8}  {text}", highlight=False)

    def start(self, node: Node) -> None:
        partners = [other.address for other in self.nodes if other is not node]
        compact_after = max(self.options.commands // 40, 50)
        node.start(
            partners, ["--journal", self.options.journal, "--compact-after", str(compact_after)]
        )

    def wait(
        self, what: str, predicate: Callable[[], bool], limit_seconds: float = STEP_SECONDS
    ) -> float:
        """Waits until the predicate, evaluated under the lock, holds; how long it took."""
        begun = time.monotonic()
        with self.client.changed:
            while not predicate():
                self.client.changed.wait(0.05)
                self.progress.update(self.task, completed=len(self.client.acknowledged))
                if time.monotonic() - begun > limit_seconds:
                    raise DemoError(f"{what} did not come about in {limit_seconds:.0f} s")
        return time.monotonic() - begun

    def write(self, fraction: float) -> None:
        """Lets the client write up to a fraction of all commands, and waits for it."""
        self.open_gate(fraction)
        self.wait("writing", lambda: len(self.client.acknowledged) >= self.client.limit)

    def open_gate(self, fraction: float) -> None:
        with self.client.changed:
            self.client.limit = int(self.options.commands * fraction)
            self.client.changed.notify_all()

    def kill(self, *nodes: Node) -> int:
        """Kills; returns how many commands were acknowledged by then."""
        with self.client.changed:
            for node in nodes:
                node.kill()
            self.client.acknowledged_by = None
        for node in nodes:
            self.client.forget(node)
        return len(self.client.acknowledged)

    def is_caught_up(self, node: Node, applied: int) -> bool:
        return bool(node.status.get("ready")) and node.status["applied"] >= applied

    def compare(self) -> int:
        """How many acknowledged commands some node lacks, once all nodes have settled."""
        client = self.client
        with client.changed:
            client.is_paused = True
            for node in self.nodes:
                node.state, node.is_asked = None, False
        try:
            self.wait("agreement of all nodes", self.do_all_agree, AGREEMENT_SECONDS)
        except DemoError as error:
            self.tell(str(error))  # the comparison says what that means
            self.ask_all()
            self.wait("an answer of all nodes", lambda: not any(n.is_asked for n in self.nodes))
        with client.changed:
            client.is_paused = False
            client.changed.notify_all()
            return len(set().union(*(self.missing(node) for node in self.nodes)))

    def do_all_agree(self) -> bool:
        """Whether the nodes, asked after the last acknowledgement, have applied the same."""
        if any(target.is_running for target, _ in self.client.pending.values()):
            return False
        if not all(node.status.get("ready") for node in self.nodes):
            return False
        answers = [node.state for node in self.nodes]
        if all(answers) and len({answer["applied"] for answer in answers if answer}) == 1:
            return True
        self.ask_all()
        return False

    def ask_all(self) -> None:
        for node in self.nodes:
            if not node.is_asked:
                node.is_asked = True
                node.send("read\n")

    def missing(self, node: Node) -> set[int]:
        held = node.state["entries"] if node.state else {}
        return {key for key in self.client.acknowledged if held.get(str(key)) != value_of(key)}

    # --- the course ----------------------------------------------------------------------

    def run(self) -> None:
        client = self.client
        self.tell(f"starting {NODES} nodes")
        for node in self.nodes:
            self.start(node)
        self.wait("a leader", lambda: client.leader() is not None)
        self.wait("readiness", lambda: all(node.status.get("ready") for node in self.nodes))
        threading.Thread(target=client.run, daemon=True).start()

        self.tell("writing to a healthy cluster")
        begun = time.monotonic()
        self.write(0.25)
        self.commands_per_second = len(client.acknowledged) / (time.monotonic() - begun)

        follower = next(node for node in self.nodes if node is not client.leader())
        self.open_gate(0.4)
        self.reach(0.35)
        self.tell(f"kill -9 {follower.name}, a follower")
        acknowledged = self.kill(follower)
        self.open_gate(0.5)
        self.reach(0.45)
        self.tell(f"{follower.name} starts again")
        applied = max(node.status.get("applied", 0) for node in self.nodes)
        self.start(follower)
        seconds = self.wait("its return", lambda: self.is_caught_up(follower, applied))
        self.events.append(Event("a follower", acknowledged, self.compare(), seconds))

        leader = self.wait_for_leader()
        self.open_gate(0.65)
        self.reach(0.6)
        self.tell(f"kill -9 {leader.name}, the leader")
        acknowledged = self.kill(leader)
        self.open_gate(0.7)
        seconds = self.wait(
            "an acknowledgement by another leader",
            lambda: client.acknowledged_by not in (None, leader),
        )
        self.tell(f"another node leads; {leader.name} starts again")
        applied = max(node.status.get("applied", 0) for node in self.nodes)
        self.start(leader)
        self.wait("its return", lambda: self.is_caught_up(leader, applied))
        self.events.append(Event("the leader", acknowledged, self.compare(), seconds))

        # The worst moment: two nodes have just replaced their dump file, which makes them
        # drop the part of the log that it stands for.
        before = [node.dump_time() for node in self.nodes]

        def have_two_dumped() -> bool:
            return sum(n.dump_time() > t for n, t in zip(self.nodes, before, strict=True)) > 1

        self.open_gate(0.8)
        self.wait("a dump", lambda: have_two_dumped() or len(client.acknowledged) >= client.limit)
        where = "just after a dump" if have_two_dumped() else "at rest"
        self.kill_all(f"all nodes, {where}", 0.95)
        self.reach(0.85)
        self.kill_all("all nodes, while writing", 1.0)

        self.tell("writing the rest")
        self.write(1.0)
        self.compare()
        self.tell("compared what every node holds with what was acknowledged")

    def kill_all(self, what: str, next_fraction: float) -> None:
        client = self.client
        self.tell(f"kill -9 {what}")
        with client.changed:
            client.is_paused = True  # so that what comes next shows what the disks hold
        acknowledged = self.kill(*self.nodes)
        self.tell("all nodes start again")
        begun = time.monotonic()
        for node in self.nodes:
            self.start(node)
        lost = self.compare()
        client.acknowledged_by = None
        self.open_gate(next_fraction)
        self.wait("an acknowledgement", lambda: client.acknowledged_by is not None)
        self.events.append(Event(what, acknowledged, lost, time.monotonic() - begun))

    def reach(self, fraction: float) -> None:
        count = self.options.commands * fraction
        self.wait("writing", lambda: len(self.client.acknowledged) >= count)

    def wait_for_leader(self) -> Node:
        self.wait("a leader", lambda: self.client.leader() is not None)
        leader = self.client.leader()
        assert leader is not None
        return leader

    # --- the report ----------------------------------------------------------------------

    def report(self) -> int:
        """Prints the tables; returns how many commands are missing."""
        kills = Table(title="kill -9", title_justify="left")
        for name in ("killed", "acknowledged before", "lost", "back after"):
            kills.add_column(name, justify="left" if name == "killed" else "right")
        for event in self.events:
            kills.add_row(
                event.what,
                f"{event.acknowledged:,}",
                _count_of_lost(event.lost),
                f"{event.back_after_seconds:.2f} s",
            )
        nodes = Table(title="the nodes at the end", title_justify="left")
        for name in ("node", "acknowledged", "lost", "syncs", "commands per sync", "segments"):
            nodes.add_column(name, justify="left" if name == "node" else "right")
        for node in self.nodes:
            syncs = node.total("syncs")
            nodes.add_row(
                node.name,
                f"{len(self.client.acknowledged):,}",
                _count_of_lost(len(self.missing(node))),
                f"{syncs:,}" if syncs else "-",
                f"{node.total('appended') / syncs:.1f}" if syncs else "-",
                str(node.status.get("segments", "-")),
            )
        waited = sorted(self.client.waited_seconds)
        self.console.print(kills, nodes)
        self.console.print(
            f"{self.commands_per_second:,.0f} commands/s while all nodes were up "
            f"({WINDOW} on their way); median wait {1000 * waited[len(waited) // 2]:.1f} ms.",
            highlight=False,
        )
        lost = set().union(*(self.missing(node) for node in self.nodes))
        count = max(len(lost), *(event.lost for event in self.events))
        if count:
            self.console.print(f"[bold red]{count:,} acknowledged commands are missing.[/]")
        else:
            self.console.print("[bold green]Nothing that was acknowledged is missing.[/]")
        return count

    def end(self) -> None:
        with self.client.changed:
            self.client.is_done = True
            self.client.changed.notify_all()
        for node in self.nodes:
            node.end()


def _count_of_lost(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


@contextlib.contextmanager
def working_folder(chosen: Path | None) -> Iterator[Path]:
    """The folder asked for, which is kept, or a temporary one, which is not."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    folder = Path(tempfile.mkdtemp(prefix="hqlwal-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Three nodes, a writing client, kill -9 of one node, the leader, all nodes; "
        "then a comparison of what every node holds with what was acknowledged."
    )
    parser.add_argument(
        "--commands", type=int, default=24_000, metavar="N", help="how many to write (%(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the nodes' files here; must be empty"
    )
    parser.add_argument(
        "--journal",
        choices=["wal", "stock"],
        default="wal",
        help="stock: pysyncobj's own file journal, for comparison",
    )
    options = parser.parse_args()
    if options.commands < 200:
        parser.error("--commands: give at least 200, or the kills find nothing to interrupt")
    if options.folder is not None and options.folder.exists():
        if not options.folder.is_dir():
            parser.error(f"--folder: {options.folder} is not a directory")
        if any(options.folder.iterdir()):
            parser.error(f"--folder: {options.folder} is not empty")
    return options


def main() -> int:
    options = parse_arguments()
    console = Console(soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with working_folder(options.folder) as folder:
        demo = Demo(options, folder, console)
        try:
            with demo.progress:
                demo.run()
            return 1 if demo.report() else 0
        except DemoError as error:
            console.print(f"[bold red]{error}[/]")
            for node in demo.nodes:
                messages = (node.folder / "messages.txt").read_text(errors="replace")
                console.print(f"{node.name}: {node.status}\n{messages[-2000:]}", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130
        finally:
            demo.end()


if __name__ == "__main__":
    sys.exit(main())
