"""Measures three-node pysyncobj clusters: ``python benchmarks/pysyncobj_cluster.py``.

Real processes on loopback, 100-byte commands, and three journals: pysyncobj's own as it ships
(never synced), its own with a flush per add, and ours, where what was acknowledged is durable.
Rounds are interleaved: each round starts a fresh cluster of each kind. Log compaction is put
off, so that the journals are measured and not the dumps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from _machine import describe_machine, resident_bytes
from _measure import Latency, Result, rotated
from _nodes import COMMAND, NODES, Cluster
from _report import (
    Panel,
    Wanted,
    make_console,
    plot,
    show_machine,
    show_row,
    show_wanted,
    write_json,
)

#: the journals, and what the figures call them
KINDS = {
    "stock": "FileJournal, no sync",
    "flush": "FileJournal, flush per add",
    "wal": "hqlwal, durable",
}
#: cell of the row "cluster" → (commands in flight, appendEntriesUseBatch)
LOADS = {
    "window 10,000, batched": (10_000, True),
    "window 1,000, unbatched": (1_000, False),
    "one command at a time, unbatched": (1, False),
}
THROUGHPUT_BATCHED, THROUGHPUT_UNBATCHED, LATENCY = LOADS
#: pysyncobj's appendEntriesBatchSizeBytes
MESSAGE_BYTES = 1 << 16


@contextlib.contextmanager
def _cluster(kind: str, directory: str, *, uses_batch: bool) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="cluster-", dir=directory) as path:
        cluster = Cluster(kind, path, uses_batch=uses_batch)
        try:
            yield cluster
        finally:
            cluster.close()


def _measure_clusters(
    kinds: list[str], directory: str, rounds: int, seconds: float
) -> list[Result]:
    found: dict[tuple[str, str], Result] = {}
    latencies: dict[tuple[str, str], list[Latency]] = {}
    for turn in range(rounds):
        for uses_batch in (True, False):
            for kind in rotated(kinds, turn):
                with _cluster(kind, directory, uses_batch=uses_batch) as cluster:
                    for cell, (window, load_uses_batch) in LOADS.items():
                        if load_uses_batch is not uses_batch:
                            continue
                        unit = "seconds" if cell == LATENCY else "commands/s"
                        result = found.setdefault(
                            (cell, kind), Result("cluster", cell, KINDS[kind], unit)
                        )
                        told = cluster.load(window, seconds)
                        if told["latency"]:
                            latency = Latency(**told["latency"])
                            latencies.setdefault((cell, kind), []).append(latency)
                            result.rounds.append(
                                latency.p50 if cell == LATENCY else float(told["rate"])
                            )
                        elif cell != LATENCY:
                            result.rounds.append(0.0)
                        if told["failed"] or told["unanswered"]:
                            result.note = (
                                f"the leader fell: {told['failed']} commands failed, "
                                f"{told['unanswered']} were never answered in round {turn + 1}"
                            )
                        result.note = cluster.faults() or result.note
    for key, several in latencies.items():
        ordered = sorted(several, key=lambda latency: latency.p50)
        found[key].latency = ordered[len(ordered) // 2]  # of the middle round
    return sorted(found.values(), key=lambda result: list(LOADS).index(result.cell))


# --- a long journal ----------------------------------------------------------------------


def _build(kind: str, path: str, entries: int) -> None:
    from pysyncobj.journal import FileJournal

    stock = path if kind == "stock" else path + ".stock"
    journal = FileJournal(stock)
    for index in range(1, entries + 1):
        journal.add(COMMAND, index, 1)
    journal.setCurrentTerm(1, None)
    journal._destroy()
    if kind == "wal":
        from hqlwal_raft.pysyncobj import import_file_journal

        import_file_journal(stock, path)


def _weigh(kind: str, path: str, entries: int) -> dict[str, float]:
    """Opens the journal in this process, which does nothing else."""
    journal: Any
    if kind == "wal":
        from hqlwal_raft.pysyncobj import WalJournal

        WalJournal(path + ".empty")._destroy()
        before, begin = resident_bytes(), perf_counter()
        journal = WalJournal(path)
    else:
        from pysyncobj.journal import FileJournal

        before, begin = resident_bytes(), perf_counter()
        journal = FileJournal(path)
    length, last = len(journal), journal[-1]
    seconds = perf_counter() - begin
    assert length == entries, f"{length} entries instead of {entries}"
    assert tuple(last) == (COMMAND, entries, 1)
    opened = resident_bytes()
    begin = perf_counter()
    messages = _catch_up(journal)
    message = (perf_counter() - begin) / messages
    caught_up = resident_bytes()
    journal._destroy()
    return {
        "open": seconds,
        "private": opened["anon"] - before["anon"],
        "resident": sum(opened.values()) - sum(before.values()),
        "message": message,
        "private, caught up": caught_up["anon"] - before["anon"],
    }


def _catch_up(journal: Any) -> int:
    """Reads as a leader does for a follower that lacks everything; how many messages it makes."""
    position = messages = 0
    while position < len(journal):
        size = count = 0
        rest = journal[position:]
        for entry in rest:
            size += len(entry[0])
            count += 1
            if size >= MESSAGE_BYTES:
                break
        assert rest[:count][-1] == (COMMAND, position + count, 1)
        position += count
        messages += 1
    return messages


def _measure_journals(kinds: list[str], directory: str, rounds: int, entries: int) -> list[Result]:
    found: dict[tuple[str, str], Result] = {}
    with tempfile.TemporaryDirectory(prefix="journal-", dir=directory) as base:
        chosen = [kind for kind in kinds if kind != "flush"]
        for kind in chosen:
            _build(kind, os.path.join(base, kind), entries)
        for turn in range(rounds):
            for kind in rotated(chosen, turn):
                command = [sys.executable, os.path.abspath(__file__), "--weigh", kind]
                command += [os.path.join(base, kind), str(entries)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                told = json.loads(done.stdout)
                for cell, unit, value in (
                    ("opening", "seconds", told["open"]),
                    ("private memory", "bytes", told["private"]),
                    ("resident memory", "bytes", told["resident"]),
                    ("reads for a message of 64 KB", "seconds", told["message"]),
                    ("private, caught up", "bytes", told["private, caught up"]),
                ):
                    name = "FileJournal" if kind == "stock" else "hqlwal"
                    result = found.setdefault((cell, kind), Result("journal", cell, name, unit))
                    result.rounds.append(value)
    return list(found.values())


# --- the command -------------------------------------------------------------------------


def _verdicts(results: list[Result]) -> list[Wanted]:
    """Against the stock journal without sync (docs/design/performance.md)."""
    found = {(result.cell, result.contestant): result.median for result in results}
    lines = []
    for cell, want in ((THROUGHPUT_BATCHED, 1.0), (THROUGHPUT_UNBATCHED, 1.15), (LATENCY, 2.0)):
        ours, stock = found.get((cell, KINDS["wal"])), found.get((cell, KINDS["stock"]))
        sign = "<=" if cell == LATENCY else ">="
        text = f"{sign} {want:g} x stock without sync"
        if ours is None or not stock:
            lines.append(Wanted(cell, text, "-", None))
            continue
        ratio = ours / stock
        is_met = ratio <= want if cell == LATENCY else ratio >= want
        lines.append(Wanted(cell, text, f"{ratio:.2f} x", is_met))
    return lines


PANELS = [
    Panel("window of 10,000, default batching", "cluster", THROUGHPUT_BATCHED, "commands/s"),
    Panel("window of 1,000, appendEntriesUseBatch=False", "cluster", THROUGHPUT_UNBATCHED,
          "commands/s"),
    Panel("one command at a time: median latency", "cluster", LATENCY, "seconds"),
    Panel("memory of a long journal", "journal", "private memory", "bytes"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, help="rounds, each with fresh clusters")
    parser.add_argument("--seconds", type=float, help="seconds of each load")
    parser.add_argument("--entries", type=int, help="length of the journal opened; 0 for none")
    parser.add_argument("--directory", help="where the journals are made")
    parser.add_argument("--json", default="bench-cluster.json", help="where the figures go")
    parser.add_argument("--svg", default="bench-cluster.svg", help="where the plot goes")
    parser.add_argument("--weigh", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weigh:
        kind, path, count = arguments.weigh
        print(json.dumps(_weigh(kind, path, int(count))))
        return
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    seconds = arguments.seconds or (1.5 if arguments.quick else 3.0)
    entries = arguments.entries
    if entries is None:
        entries = 100_000 if arguments.quick else 1_000_000
    console = make_console()
    begin = perf_counter()
    with tempfile.TemporaryDirectory(prefix="hqlwal-cluster-", dir=arguments.directory) as path:
        machine = describe_machine(path, ("hqlwal_raft", "pysyncobj", "anyio", "crc32c"))
        show_machine(console, machine)
        with console.status("clusters …"):
            results = _measure_clusters(arguments.kinds, path, rounds, seconds)
        show_row(console, "Three nodes:", results, as_pivot=False)
        if entries:
            with console.status("a long journal …"):
                journals = _measure_journals(arguments.kinds, path, min(rounds, 3), entries)
            show_row(console, f"A journal of {entries:,} entries", journals, as_pivot=True)
            results += journals
    wanted = _verdicts(results)
    show_wanted(console, wanted)
    machine["seconds"] = round(perf_counter() - begin, 1)
    write_json(arguments.json, machine, results, wanted)
    title = f"pysyncobj, {NODES} nodes, {len(COMMAND)}-byte commands"
    if not plot(arguments.svg, title, PANELS, results):
        console.print("matplotlib is missing: no plot")
    console.print(f"{machine['seconds']} s; written: {os.path.abspath(arguments.json)}")


if __name__ == "__main__":
    main()
