"""Rows about a large log: opening it after a close and after a kill, memory, purge, truncate.

Each step runs in a process of its own (this file is also what that process runs), so that a
kill is a kill and memory is the store's alone.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from time import perf_counter, sleep
from typing import Any

from _contestants import OursBlocking, Peer, is_available
from _machine import ask_child, resident_bytes
from _measure import Plan, Result, rotated
from _peers import PEERS, make

__all__ = ["huge", "open_and_cut"]

_BATCH = 1000
_PAYLOAD = bytes(256)
#: between two steps, so that background work of the one is not counted to the other
SETTLE_SECONDS = 0.2
#: how often the end is cut off, and how many entries each time
CUTS = 5
TRUNCATED = 10


# --- in the process that does one step ---------------------------------------------------


def _timed_open(contestant: type[Peer], path: str) -> tuple[Peer, float, int]:
    begin = perf_counter()
    peer = contestant(path, durable=False)
    last = peer.last()
    return peer, perf_counter() - begin, last


def _segments(peer: Peer) -> int:
    return peer.statistics().segments if isinstance(peer, OursBlocking) else 0


def _warm_imports(contestant: type[Peer], path: str) -> None:
    """Opens another, empty store first: importing and first use are not what is timed."""
    contestant(path + ".empty", durable=False).close()


def _step(step: str, contestant: type[Peer], path: str, entries: int) -> dict[str, Any]:
    _warm_imports(contestant, path)
    before = resident_bytes()
    peer, seconds, last = _timed_open(contestant, path)
    told: dict[str, Any] = {"open": seconds}
    if step == "build":
        peer.fill(_PAYLOAD, entries, _BATCH)
        peer.sync()
    elif step != "empty":
        assert last == entries, f"{contestant.name}: {last} entries instead of {entries}"
    told["resident"] = {kind: count - before[kind] for kind, count in resident_bytes().items()}
    if step == "change":
        sleep(SETTLE_SECONDS)
        told["segments"] = _segments(peer)
        begin = perf_counter()
        peer.purge(entries // 2)
        told["purge"] = perf_counter() - begin
        told["purged segments"] = told["segments"] - _segments(peer)
        sleep(SETTLE_SECONDS)
        cuts = []
        for _ in range(CUTS):
            entries -= TRUNCATED
            begin = perf_counter()
            peer.truncate(entries + 1)
            cuts.append(perf_counter() - begin)
            assert peer.last() == entries
        told["truncate"] = statistics.median(cuts)
    if step in ("build", "open"):
        print(json.dumps(told), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    peer.close()
    return told


def _huge_step(path: str, segment_bytes: int) -> dict[str, Any]:
    """Opens a log of one huge segment, appends its only entry the first time; ends with a kill."""
    _warm_imports(OursBlocking, path)
    before = resident_bytes()
    begin = perf_counter()
    peer = OursBlocking(path, durable=True, segment_size=segment_bytes)
    last = peer.last()
    told: dict[str, Any] = {"open": perf_counter() - begin, "last": last}
    told["resident"] = sum(resident_bytes().values()) - sum(before.values())
    if not last:
        peer.fill(_PAYLOAD, 1, 1)
    print(json.dumps(told), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return told


def main() -> None:
    step, name, path, entries = sys.argv[1:5]
    if step == "huge":
        _huge_step(path, int(entries))
    print(json.dumps(_step(step, make(name), path, int(entries))), flush=True)


# --- in the process that measures --------------------------------------------------------


def _run(step: str, name: str, path: str, entries: int) -> dict[str, Any]:
    told: dict[str, Any] = ask_child(__file__, step, name, path, str(entries))
    return told


def _one_round(name: str, path: str, entries: int) -> dict[str, tuple[str, float]]:
    os.makedirs(path)
    store = os.path.join(path, "store")
    empty = _run("empty", name, store, 0)["resident"]
    built = _run("build", name, store, entries)["resident"]
    killed = _run("open", name, store, entries)  # ends with a kill, too
    _run("close", name, store, entries)
    changed = _run("change", name, store, entries)
    figures = {
        "open after a kill": ("seconds", killed["open"]),
        "open after a close": ("seconds", changed["open"]),
        "purge half": ("seconds", changed["purge"]),
        "truncate 10": ("seconds", changed["truncate"]),
    }
    for label, resident in (("writing it", built), ("opening it", changed["resident"])):
        figures[f"private memory after {label}"] = ("bytes", resident["anon"] - empty["anon"])
        figures[f"resident memory after {label}"] = (
            "bytes",
            sum(resident.values()) - sum(empty.values()),
        )
    if changed["segments"]:
        figures["segments purged"] = ("segments", changed["purged segments"])
    return figures


def open_and_cut(plan: Plan) -> list[Result]:
    """A log of many 256-byte entries: opened, held, purged by half, cut by ten entries."""
    entries = plan.big_entries // _BATCH * _BATCH
    contestants: list[type[Peer]] = [peer for peer in PEERS if peer.can_read and not peer.is_bare]
    contestants.append(OursBlocking)
    results: dict[tuple[str, str], Result] = {}
    for turn in range(plan.big_rounds):
        for contestant in rotated(contestants, turn):
            name = contestant.name
            if not is_available(contestant):
                results[("-", name)] = Result("open", "-", name, "", missing="missing")
                continue
            with plan.scratch() as path:
                for cell, (unit, value) in _one_round(name, path, entries).items():
                    result = results.setdefault((cell, name), Result("open", cell, name, unit))
                    result.rounds.append(value)
    order = list(dict.fromkeys(cell for cell, _ in results))
    return sorted(results.values(), key=lambda result: order.index(result.cell))


def huge(plan: Plan) -> list[Result]:
    """A huge segment that holds one entry, opened after a kill: ours alone."""
    opened = Result("huge", "open after a kill", OursBlocking.name, "seconds")
    resident = Result("huge", "resident memory after opening it", OursBlocking.name, "bytes")
    for _ in range(plan.big_rounds):
        with plan.scratch() as base:
            os.makedirs(base)
            path = os.path.join(base, "store")
            for _ in range(2):
                told = _run("huge", OursBlocking.name, path, plan.huge_segment_bytes)
        assert told["last"] == 1, f"{told['last']} entries instead of one"
        opened.rounds.append(told["open"])
        resident.rounds.append(told["resident"])
    return [opened, resident]


if __name__ == "__main__":
    main()
