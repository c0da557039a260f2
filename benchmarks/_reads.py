"""Rows about reading back: ranges in order from the first call after opening, single entries at
random, the same in a log that is much longer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

from _contestants import Ours, OursBlocking, Peer, is_available
from _measure import Latency, Plan, Result, rotated, run
from _peers import PEERS, make

__all__ = ["RANGE", "random_reads", "read"]

#: entries of one read
RANGE = 64
#: of those appended last, which the cache still holds
RECENT = 2048
_PAYLOAD = bytes(256)


def _fill(contestant: type[Peer], path: str, payload: bytes, entries: int) -> None:
    peer = contestant(path, durable=False)
    peer.fill(payload, entries, 256)
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
            first = await ours.last() + 1
            await ours.store.append(ours.maker(_PAYLOAD, RECENT)(first))
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
    entries = plan.read_entries // 256 * 256
    contestants: list[type[Peer]] = [peer for peer in PEERS if peer.can_read]
    contestants.append(OursBlocking)
    results: dict[str, Result] = {}
    samples: dict[str, list[float]] = {}
    places = random.Random(5).choices(range(1, entries + 1), k=max(64, entries // 10))
    with plan.scratch() as base:
        for contestant in contestants:
            if is_available(contestant):
                _fill(contestant, os.path.join(base, contestant.name), _PAYLOAD, entries)
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


# --- a long log --------------------------------------------------------------------------

#: so that ten million of them are no more than the page cache holds
_SMALL_PAYLOAD = bytes(32)
#: one read in each so many: every segment was read once before the clock starts
_TOUCHED_ENTRIES = 20_000
_RANDOM_READS = 20_000
#: where a read looks through its whole segment, fewer say as much
_PATIENCE_SECONDS = 5.0


async def _ours_random(path: str, places: list[int], touched: list[int]) -> list[list[float]]:
    async with Ours(path, durable=False) as ours:
        read = ours.store.try_get_log_entries
        found = []
        for each in (touched, places):
            calls = []
            give_up = perf_counter() + _PATIENCE_SECONDS
            for place in each:
                before = perf_counter()
                await read(place, place + 1)
                now = perf_counter()
                calls.append(now - before)
                if now > give_up:
                    break
            found.append(calls)
        return found


def _peer_random(
    contestant: type[Peer], path: str, places: list[int], touched: list[int]
) -> list[list[float]]:
    peer = contestant(path, durable=False)
    try:
        return [_read_each(peer.read_one, each) for each in (touched, places)]
    finally:
        peer.close()


def random_reads(plan: Plan) -> list[Result]:
    """Single entries anywhere in a long log, each segment's first read aside."""
    entries = plan.random_entries // 256 * 256
    touched = list(range(1, entries + 1, _TOUCHED_ENTRIES))
    count = min(_RANDOM_READS, entries)
    places = random.Random(7).choices(range(1, entries + 1), k=count)
    results = []
    with plan.scratch() as base:
        for contestant in (make("lmdb"), OursBlocking):
            name = contestant.name
            result = Result("random", f"{entries:,} entries", name, "entries/s")
            results.append(result)
            if not is_available(contestant):
                result.missing = "missing"
                continue
            path = os.path.join(base, name)
            _fill(contestant, path, _SMALL_PAYLOAD, entries)
            samples: list[float] = []
            longest = 0.0
            for _ in range(plan.big_rounds):
                if contestant is OursBlocking:
                    work = partial(_ours_random, path, places, touched)
                    first, calls = run("asyncio", work)
                else:
                    first, calls = _peer_random(contestant, path, places, touched)
                longest = max(longest, *first)
                result.rounds.append(len(calls) / sum(calls))
                samples += calls
            result.latency = Latency.of(samples)
            result.note = f"longest first read of a segment: {longest * 1e3:.1f} ms"
    return results
