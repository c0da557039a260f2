"""Plays simulated clusters: ``python -m hqlwal_raft.testing.simulation --seconds 60 --seed 1``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from ..._environment import Environment
from ._cluster import Outcome, play
from ._faults import WEATHERS, Plan, make_plan
from ._shorten import shorten

_SAY_SECONDS = 5.0


def replay_line(plan: Plan, numbers: frozenset[int] | None) -> str:
    """The command that plays a history again."""
    words = [f"python -m hqlwal_raft.testing.simulation --seed {plan.seed} --once"]
    if plan.weather != make_plan(plan.seed).weather:
        words.append(f"--weather {plan.weather}")
    if numbers is not None:
        words.append("--keep " + ",".join(map(str, sorted(numbers))))
    return " ".join(words)


def shortened(plan: Plan, rule: str) -> frozenset[int]:
    """The numbers of those actions of a failing plan that it takes to break the same rule."""

    def still_fails(numbers: frozenset[int]) -> bool:
        violation = play(plan, numbers).violation
        return violation is not None and violation.rule == rule

    return shorten(frozenset(action.number for action in plan.actions), still_fails)


def report(outcome: Outcome, numbers: frozenset[int] | None) -> str:
    """What is said of a history that was found to break a promise."""
    plan = outcome.plan
    actions = plan.actions if numbers is None else plan.only(numbers)
    return "\n".join(
        [
            f"seed {plan.seed} ({plan.weather}, {plan.nodes} nodes): {outcome.violation}",
            *(f"  {action}" for action in actions),
            f"replay: {replay_line(plan, numbers)}",
        ]
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hqlwal_raft.testing.simulation")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to go on")
    parser.add_argument("--seeds", type=int, help="so many seeds, whatever time it takes")
    parser.add_argument("--weather", choices=sorted(WEATHERS), help="only this kind of faults")
    parser.add_argument(
        "--once", action="store_true", help="only this seed, and its trace's digest"
    )
    parser.add_argument("--keep", help="only these actions of it, by their numbers")
    parser.add_argument("--trace", action="store_true", help="print every event of it")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _play_once(options: argparse.Namespace) -> int:
    plan = make_plan(options.seed, options.weather)
    numbers = None
    if options.keep is not None:
        numbers = frozenset(int(each) for each in options.keep.split(",") if each)
    outcome = play(plan, numbers, keeps_lines=options.trace)
    for line in outcome.lines:
        _say(line)
    _say(f"seed {plan.seed} digest {outcome.digest} acknowledged {outcome.acknowledged}")
    if outcome.violation is None:
        return 0
    _say(report(outcome, numbers))
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Plays seeds until the time is over, or one fails: that one is shortened and printed."""
    options = _parse(arguments)
    if options.once:
        return _play_once(options)
    monotonic = Environment().monotonic
    began = said = monotonic()
    weathers: Counter[str] = Counter()
    acknowledged, seed = 0, options.seed
    while True:
        now = monotonic()
        if options.seeds is not None and seed - options.seed >= options.seeds:
            break
        if options.seeds is None and now - began >= options.seconds:
            break
        outcome = play(make_plan(seed, options.weather))
        if outcome.violation is not None:
            _say(f"seed {seed} fails: {outcome.violation}; it is being shortened")
            numbers = shortened(outcome.plan, outcome.violation.rule)
            _say(report(play(outcome.plan, numbers), numbers))
            return 1
        weathers[outcome.plan.weather] += 1
        acknowledged += outcome.acknowledged
        seed += 1
        if monotonic() - said >= _SAY_SECONDS:
            said = monotonic()
            _say(f"{seed - options.seed} seeds in {said - began:.0f} s, the last was {seed - 1}")
    _say(
        f"{seed - options.seed} seeds from {options.seed}, {acknowledged} commands acknowledged, "
        f"nothing broken ({', '.join(f'{n} {w}' for w, n in sorted(weathers.items()))})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
