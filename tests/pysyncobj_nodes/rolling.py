"""Rolling changes of a real cluster: node by node to other journals and other pysyncobjs, and back.

``python -m tests.pysyncobj_nodes.rolling --older .venv-pysyncobj-0.3.11/bin/python``

Nodes with pysyncobj's own journal, with WAL directories, and with an older pysyncobj stand side by
side on the way. It is written to, with dumps; after each step every node must be ready, and have
every acknowledged number once, as the others have.

Nodes with pysyncobj's own journal pause while a node is changed, and are ended in order: those that
lose their leader while a dump is on its way may report success for commands that are then lost,
and those that are killed may lose what they acknowledged. WAL directories go on, and are killed.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hqlwal_raft.pysyncobj import export_in_place, import_in_place
from tests.pysyncobj_nodes.cluster import Cluster, wait_until


class Kind(NamedTuple):
    """What a node is."""

    is_older: bool
    is_stock: bool

    def __str__(self) -> str:
        journal = "own journal" if self.is_stock else "WAL"
        return f"{'older' if self.is_older else 'newest'}, {journal}"


OLD_STOCK, OLD_WAL = Kind(is_older=True, is_stock=True), Kind(is_older=True, is_stock=False)
NEW_STOCK, NEW_WAL = Kind(is_older=False, is_stock=True), Kind(is_older=False, is_stock=False)

#: what the nodes are at first, and at last again
BEGINNING = (OLD_STOCK, NEW_STOCK, OLD_STOCK)
#: which node becomes what, one after the other
STEPS: tuple[tuple[int, Kind], ...] = (
    (0, NEW_WAL),
    (2, OLD_WAL),
    (1, NEW_WAL),
    (2, NEW_WAL),
    (0, OLD_STOCK),
    (2, OLD_WAL),
    (1, NEW_STOCK),
    (2, OLD_STOCK),
)


class Rolling:
    """A cluster that is changed node by node."""

    def __init__(self, folder: pathlib.Path, older: str | None = None) -> None:
        self._folder = folder
        self._older = older
        self._kinds = list(BEGINNING)
        self.versions: set[str] = set()
        self.cluster = Cluster(folder, compaction=300, pace=500, everyone=True)
        for index, kind in enumerate(BEGINNING):
            self._configure(index, kind)

    def _configure(self, index: int, kind: Kind) -> None:
        self._kinds[index] = kind
        options: dict[str, object] = {"stock": kind.is_stock}
        if kind.is_older and self._older is not None:
            options["python"] = self._older
        self.cluster.options_of[index] = options

    def roll(
        self,
        report: Callable[[str], object] = lambda _words: None,
        steps: Iterable[tuple[int, Kind]] = STEPS,
    ) -> None:
        """Makes the steps. Raises AssertionError where something is missing or not the same."""
        try:
            self.cluster.start()
            self._check()
            for index, kind in steps:
                before = self._kinds[index]
                self._write_more()
                self._pause_stock()
                if before.is_stock or kind.is_stock:
                    self.cluster.end(index)
                else:
                    self.cluster.kill(index)
                self._convert(index, before, kind)
                self._configure(index, kind)
                self.cluster.start(index)
                self._check()
                report(f"node {index}: {before} -> {kind}; now {[str(k) for k in self._kinds]}")
        finally:
            self.cluster.close()

    def _convert(self, index: int, before: Kind, after: Kind) -> None:
        journal = self._folder / f"{index}.wal"
        if before.is_stock and not after.is_stock:
            import_in_place(journal)
            for name in (f"{index}.wal.stock", f"{index}.wal.meta.stock"):
                (self._folder / name).unlink(missing_ok=True)
        elif after.is_stock and not before.is_stock:
            export_in_place(journal, dump=self._folder / f"{index}.dump")
            shutil.rmtree(self._folder / f"{index}.wal.wal")

    def _write_more(self) -> None:
        before = self.cluster.acknowledged()
        self.cluster.ask_all("write")
        wait_until(lambda: self.cluster.acknowledged() > before + 700, "700 more", 60)

    def _pause_stock(self) -> None:
        for index, kind in enumerate(self._kinds):
            if kind.is_stock:
                self.cluster.ask(index, "stop")
                self._ask_check(index)  # whatever it put before is done

    def _ask_check(self, index: int) -> dict[str, Any]:
        """Asks until a leader takes the barrier."""
        found: list[dict[str, Any]] = []

        def is_answered() -> bool:
            with contextlib.suppress(AssertionError):
                found.append(self.cluster.ask(index, "check"))
            return bool(found)

        wait_until(is_answered, f"node {index} checked", 90)
        return found[0]

    def _check(self) -> None:
        wait_until(
            lambda: all(answer["ready"] for answer in self.cluster.ask_all("status")), "ready", 60
        )
        self._write_more()
        self.cluster.ask_all("stop")
        answers = [self._ask_check(index) for index in range(3)]
        assert [answer["missing"] for answer in answers] == [0, 0, 0], answers

        def is_same() -> bool:
            states = self.cluster.ask_all("state")
            assert [state["twice"] for state in states] == [0, 0, 0]
            return len({state["digest"] for state in states}) == 1

        wait_until(is_same, "all nodes the same")
        self.versions |= {answer["version"] for answer in self.cluster.ask_all("status")}


def main() -> int:
    parser = argparse.ArgumentParser(description="Rolling changes of a real cluster, and back.")
    parser.add_argument("--older", help="the Python in whose environment an older pysyncobj is")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hqlwal-rolling-"))
    rolling = Rolling(folder, options.older)
    try:
        rolling.roll(lambda words: print(words, flush=True))
    except AssertionError as error:
        print(f"{error}\nkept for inspection: {folder}")
        return 1
    print(
        f"pysyncobj {', '.join(sorted(rolling.versions))}: {len(STEPS)} steps, "
        f"{rolling.cluster.acknowledged():,} commands acknowledged, none missing"
    )
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
