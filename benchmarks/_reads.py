"""Rows about reading back: ranges in order, single entries at random."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from _contestants import Ours, OursBlocking, Peer, is_available
from _measure import Latency, Plan, Result, rotated, run
from _peers import PEERS

__all__ = ["RANGE", "read"]

#: entries of one read
RANGE = 64
#: of those appended last, which the cache still holds
RECENT = 2048
_PAYLOAD = bytes(256)


def _fill(contestant: type[Peer], path: str, entries: int) -> None:
    peer = contestant(path, durable=False)
    batch = 256
    append = peer.appender(_PAYLOAD, batch)
    for first in range(1, entries + 1, batch):
        append(first)
    peer.sync()
    peer.close()


def _read_all(read: Callable[[int, int], list[Any]], entries: int) -> list[float]:
    calls = []
    before = perf_counter()
    for start in range(1, entries - RANGE + 2, RANGE):
        found = read(start, start + RANGE)
        now = perf_counter()
        calls.append(now - before)
        before = now
        assert len(found) == RANGE
    return calls


def _read_each(read_one: Callable[[int], Any], places: list[int]) -> list[float]:
    calls = []
    before = perf_counter()
    for place in places:
        read_one(place)
        now = perf_counter()
        calls.append(now - before)
        before = now
    return calls


async def _ours_read_all(
    read: Callable[[int, int], Awaitable[list[Any]]], first: int, entries: int, times: int = 1
) -> list[float]:
    calls = []
    before = perf_counter()
    for _ in range(times):
        for start in range(first, first + entries - RANGE + 1, RANGE):
            found = await read(start, start + RANGE)
            now = perf_counter()
            calls.append(now - before)
            before = now
            assert len(found) == RANGE
    return calls


def _ours(path: str, entries: int, places: list[int]) -> dict[str, list[float]]:
    """A reopened store has an empty cache: what is read is read from its segments."""

    async def work() -> dict[str, list[float]]:
        calls: dict[str, list[float]] = {}
        async with Ours(path, durable=False) as ours:
            read = ours.store.try_get_log_entries
            calls["ranges hqlwal"] = await _ours_read_all(read, 1, entries)
        async with Ours(path, durable=False) as ours:
            read = ours.store.try_get_log_entries
            single = []
            before = perf_counter()
            for place in places:
                await read(place, place + 1)
                now = perf_counter()
                single.append(now - before)
                before = now
            calls["random hqlwal"] = single
            last = (await ours.store.get_log_state()).last_log_id
            append = ours.appender(_PAYLOAD, RECENT)
            first = last.index + 1 if last else 1
            await append(first)
            times = max(1, entries // RECENT)
            calls["ranges hqlwal, recent"] = await _ours_read_all(read, first, RECENT, times)
        return calls

    return run("asyncio", work)


def _peer(contestant: type[Peer], path: str, entries: int, places: list[int]) -> dict[str, Any]:
    peer = contestant(path, durable=False)
    try:
        return {
            f"ranges {contestant.name}": _read_all(peer.read, entries),
            f"random {contestant.name}": _read_each(peer.read_one, places),
        }
    finally:
        peer.close()


def read(plan: Plan) -> list[Result]:
    """64-entry ranges in order, then single entries at random; all files in the page cache."""
    entries = plan.read_entries // RANGE * RANGE
    contestants: list[type[Peer]] = [peer for peer in PEERS if peer.can_read]
    contestants.append(OursBlocking)
    results: dict[str, Result] = {}
    samples: dict[str, list[float]] = {}
    places = random.Random(5).choices(range(1, entries + 1), k=max(64, entries // 10))
    with plan.scratch() as base:
        for contestant in contestants:
            if is_available(contestant):
                _fill(contestant, os.path.join(base, contestant.name), entries)
        for turn in range(plan.rounds):
            for contestant in rotated(contestants, turn):
                if not is_available(contestant):
                    for kind in ("ranges", "random"):
                        results[f"{kind} {contestant.name}"] = Result(
                            "read", kind, contestant.name, "entries/s", missing="missing"
                        )
                    continue
                path = os.path.join(base, contestant.name)
                if contestant is OursBlocking:
                    done = _ours(path, entries, places)
                else:
                    done = _peer(contestant, path, entries, places)
                for label, calls in done.items():
                    kind, name = label.split(" ", 1)
                    result = results.setdefault(label, Result("read", kind, name, "entries/s"))
                    per_call = RANGE if kind == "ranges" else 1
                    result.rounds.append(len(calls) * per_call / sum(calls))
                    samples.setdefault(label, []).extend(calls)
    for label, calls in samples.items():
        results[label].latency = Latency.of(calls)
    return sorted(results.values(), key=lambda result: result.cell, reverse=True)
