"""Rows about how late the loop is at first use, beside a scan, and with a disk that is slow.

Each is measured in a process of its own, with the bare loop: what the package imports or starts at
its first use is part of it. Two figures: how late a timer of one millisecond was, and the longest
system call that was made in the loop's thread.
"""

from __future__ import annotations

from functools import partial

import _delays_run
from _contestants import Ours
from _delays_run import POLICIES, SCENARIOS
from _machine import ask_child
from _measure import RUNTIMES, Latency, Plan, Result, is_installed, run

__all__ = ["CALL", "delay", "slow_disk"]

#: behind the name of a cell: its longest system call in the loop's thread
CALL = ": longest call"


def slow_disk(plan: Plan, policy: str) -> str:
    return f"disk {plan.delay_seconds * 1e3:g} ms slower, {policy}"


async def _build(path: str, entries: int) -> None:
    async with Ours(path, durable=False) as ours:
        await ours.fill(bytes(256), entries, 100)


def delay(plan: Plan) -> list[Result]:
    """The longest delay of the loop, and the longest system call made on it."""
    cells = {each: each for each in SCENARIOS}
    cells |= {policy: slow_disk(plan, policy) for policy in POLICIES}
    results: dict[tuple[str, str], Result] = {}
    samples: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], dict[str, float]] = {}
    with plan.scratch() as path:
        run("asyncio", partial(_build, path, plan.big_entries // 100 * 100))
        for scenario, cell in cells.items():
            for _ in range(plan.big_rounds):
                for runtime in RUNTIMES:
                    key = (cell, f"hqlwal {runtime}")
                    result = results.setdefault(key, Result("delay", *key, "seconds"))
                    if not is_installed(runtime):
                        result.missing = "missing"
                        continue
                    with plan.scratch() as fresh:
                        where = fresh if scenario in POLICIES else path
                        seconds = str(plan.delay_seconds)
                        told = ask_child(_delays_run.__file__, runtime, where, scenario, seconds)
                    result.rounds.append(max(told["lateness"], default=0.0))
                    samples.setdefault(key, []).extend(told["lateness"])
                    longest = calls.setdefault(key, {})
                    for name, took in told["calls"].items():
                        longest[name] = max(longest.get(name, 0.0), took)
    for key, lateness in samples.items():
        results[key].latency = Latency.of(lateness)
    return [*results.values(), *(_call(*key, longest) for key, longest in calls.items())]


def _call(cell: str, contestant: str, longest: dict[str, float]) -> Result:
    name = max(longest, key=longest.__getitem__, default="")
    result = Result("delay", cell + CALL, contestant, "seconds", [longest.get(name, 0.0)])
    result.note = name
    return result
