"""What happens to a cluster, drawn from a seed: the weather, and the actions that make it.

An action is plain data with a number, so that a history can be played again without some of them.
Whom it is about may be decided late (``leader``, ``follower``). Knows no node.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._clock import chance

__all__ = ["WEATHERS", "Action", "Plan", "make_plan"]


class Action(NamedTuple):
    """Something that happens at a time. ``arguments`` are numbers and words."""

    number: int
    when: float
    kind: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.number:3} at {self.when:6.2f} {self.kind} {' '.join(map(str, self.arguments))}"
        )


@dataclass(frozen=True)
class Plan:
    """A whole history before it is played."""

    seed: int
    weather: str
    nodes: int
    ends_at: float
    actions: tuple[Action, ...]
    compaction_entries: int
    dump_piece_bytes: int
    append_bytes: int
    pad_bytes: int
    uses_batches: bool
    forks: bool
    page_bytes: int
    cache_bytes: int

    def only(self, numbers: frozenset[int]) -> tuple[Action, ...]:
        return tuple([action for action in self.actions if action.number in numbers])


class _Draft:
    """Collects actions."""

    def __init__(self, rng: random.Random, nodes: int, ends_at: float) -> None:
        self.rng = rng
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.ends_at = ends_at
        self.actions: list[tuple[float, str, tuple[Any, ...]]] = []
        #: where a weather is about a log of another length
        self.compaction_entries: int | None = None
        self.cache_bytes = 32 << 20

    def add(self, when: float, kind: str, *arguments: Any) -> None:
        if when < self.ends_at:
            self.actions.append((round(when, 3), kind, arguments))

    def some(self) -> str:
        return self.rng.choice((*self.names, "leader", "follower"))

    def between(self, least: float, most: float) -> float:
        return round(self.rng.uniform(least, most), 3)

    def down(self) -> float:
        """How long a node stays down."""
        return self.between(0.05, 0.5) if self.rng.random() < 0.5 else self.between(0.5, 3)

    def death(self, when: float, target: str) -> None:
        kind = self.rng.choice(("kill", "power", "kill", "power", "stop"))
        if self.rng.random() < 0.4:
            self.add(when, "die at call", target, self.rng.randint(1, 60), kind, self.down())
        else:
            self.add(when, kind, target, self.down())


def _work(draft: _Draft, per_second: float, starts_at: float = 1.5) -> None:
    """Commands, to the leader mostly."""
    rng, when = draft.rng, starts_at
    while when < draft.ends_at:
        target = "leader" if rng.random() < 0.7 else rng.choice(draft.names)
        draft.add(when, "put", target, rng.choice((1, 1, 2, 5)))
        when += rng.expovariate(per_second)


def _pauses(draft: _Draft) -> None:
    """A leader stands still, with commands that it had not sent; the others go on and compact."""
    when = draft.between(2, 4)
    while when < draft.ends_at - 2:
        target = "leader" if draft.rng.random() < 0.8 else draft.some()
        seconds = draft.between(1.5, 4)
        if draft.rng.random() < 0.7:
            draft.add(when - 0.01, "put", target, draft.rng.randint(1, 5))
        if draft.rng.random() < 0.5:
            draft.add(when - 0.02, "isolate", target, seconds)
        draft.add(when, "pause", target, seconds)
        for _ in range(draft.rng.randint(1, 4)):
            draft.add(when + draft.between(1, seconds + 0.5), "put", "leader", 8)
        when += seconds + draft.between(1, 3)


def _stalls(draft: _Draft) -> None:
    """Disks hiccup."""
    when = draft.between(2, 3)
    while when < draft.ends_at - 1:
        target = "follower" if draft.rng.random() < 0.6 else draft.some()
        draft.add(when, "stall", target, draft.between(0.3, 1.6))
        draft.add(when + 0.01, "put", "leader", draft.rng.randint(1, 3))
        when += draft.between(1, 3)


def _dumps(draft: _Draft) -> None:
    """Dumps take long; meanwhile nodes fall behind, get the leader's dump, and start again."""
    rng = draft.rng
    for name in draft.names:
        if rng.random() < 0.8:
            least = draft.between(0.2, 2)
            draft.add(0.5, "slow dumps", name, least, least + draft.between(0.1, 2))
    when = draft.between(2, 4)
    while when < draft.ends_at - 1:
        target = draft.some()
        seconds = draft.between(0.5, 2.5)
        draft.add(when, rng.choice(("isolate", "pause", "stall")), target, seconds)
        for _ in range(rng.randint(1, 4)):
            draft.add(when + draft.between(0, seconds), "put", "leader", 10)
        if rng.random() < 0.7:
            draft.death(when + seconds + draft.between(0, 2), target)
        if rng.random() < 0.3:
            draft.add(when + draft.between(0, seconds), "compact", draft.some())
        when += seconds + draft.between(0.3, 2)


def _members(draft: _Draft) -> None:
    """Nodes join and leave, over slow links, while entries are sent again and again."""
    rng = draft.rng
    for name in draft.names:
        if rng.random() < 0.7:
            low = draft.between(0.02, 0.12)
            draft.add(0.5, "slow links", name, low, low + draft.between(0.01, 0.15))
    when, newest = draft.between(2, 3), len(draft.names)
    while when < draft.ends_at - 2:
        for _ in range(rng.randint(0, 3)):
            draft.add(when - draft.between(0, 0.3), "put", "leader", rng.randint(1, 6))
        if rng.random() < 0.65 and newest < 6:
            newest += 1
            draft.add(when, "add", f"n{newest}")
        else:
            draft.add(when, "remove", "follower")
        for _ in range(rng.randint(1, 4)):
            draft.add(when + draft.between(0, 0.4), "put", "leader", rng.randint(1, 6))
        for name in draft.names:
            if rng.random() < 0.7:
                armed = when + draft.between(0, 0.4)
                draft.add(armed, "reset after", "leader", name, rng.randint(1, 8))
        if rng.random() < 0.2:
            draft.add(
                when + draft.between(-0.2, 0.5), "isolate", draft.some(), draft.between(0.3, 2)
            )
        when += draft.between(1.5, 3.0)


def _rewinds(draft: _Draft) -> None:
    """One node answers late, so that its leader goes back to what it has sent already; there the
    connection breaks, with a membership change that was applied among what is sent again.
    """
    rng, names = draft.rng, draft.names
    draft.compaction_entries = 1000  # a dump would bring the members back
    far = rng.choice(names)
    low = draft.between(0.08, 0.2)
    draft.add(0.5, "slow links", far, low, low + draft.between(0.01, 0.1))
    when, newest = draft.between(2, 3), len(names)
    while when < draft.ends_at - 2:
        if newest < 6:
            newest += 1
            draft.add(when, "add", f"n{newest}")
        begin = when - 0.3
        while begin < when + 1.2:
            draft.add(begin, "put", "leader", rng.randint(1, 3))
            begin += draft.between(0.03, 0.12)
        draft.add(when + 0.05, "break resend", "leader", far)
        when += draft.between(2.0, 3.0)


def _outages(draft: _Draft) -> None:
    """All nodes end at once, or one after the other, and come again in any order."""
    rng, when = draft.rng, draft.between(2, 3)
    while when < draft.ends_at - 1:
        kind = rng.choice(("kill", "power", "stop"))
        names = rng.sample(draft.names, len(draft.names))
        spread = rng.choice((0.0, 0.0, 0.05, 0.5))
        for name in names:
            if rng.random() < 0.2:
                draft.death(when + draft.between(0, spread + 0.001), name)
            else:
                draft.add(when + draft.between(0, spread + 0.001), kind, name, draft.down())
        when += draft.between(1.5, 5)


def _disks(draft: _Draft) -> None:
    """Disks fail and fill."""
    rng, when = draft.rng, draft.between(2, 3)
    while when < draft.ends_at - 1:
        target = draft.some()
        if rng.random() < 0.5:
            call = rng.choice(("fdatasync", "fdatasync", "fsync", "pwrite", "pwritev", "open"))
            draft.add(when, "fail", target, call, rng.randint(1, 6))
        else:
            draft.add(when, "fill", target, rng.randint(0, 30), draft.between(0.5, 3))
        if rng.random() < 0.3:
            draft.death(when + draft.between(0, 2), draft.some())
        when += draft.between(1, 3)


def _damage(draft: _Draft) -> None:
    """Bits of logs flip, and dumps get lost or cut. What was wrong with a disk is mended once its
    node has given up.
    """
    rng, when = draft.rng, draft.between(2, 3)
    draft.compaction_entries = rng.choice((12, 40, 100))
    draft.cache_bytes = 300  # so that logs are read
    while when < draft.ends_at - 1:
        if rng.random() < 0.6:
            down = draft.between(0.3, 2)
            target = "leader" if rng.random() < 0.7 else draft.some()
            draft.add(when, "kill", "follower", down)
            for _ in range(rng.randint(1, 4)):
                draft.add(when + draft.between(0, down), "put", "leader", 8)
            draft.add(when + draft.between(0, down), "flip", target)
        else:
            how = rng.choice(("missing", "empty", "cut"))
            draft.add(when, "lose dump", draft.some(), how, draft.down())
        if rng.random() < 0.3:
            draft.death(when + draft.between(0, 2), draft.some())
        when += draft.between(1, 3)


def _partitions(draft: _Draft) -> None:
    rng, when = draft.rng, draft.between(2, 3)
    while when < draft.ends_at - 1:
        seconds = draft.between(0.3, 4)
        if rng.random() < 0.4:
            draft.add(when, "isolate", draft.some(), seconds)
        elif rng.random() < 0.3:
            draft.add(when, "reset", *rng.sample(draft.names, 2))
        else:
            draft.add(when, "cut", *rng.sample(draft.names, 2), seconds)
        when += draft.between(0.5, 3)


def _deaths(draft: _Draft) -> None:
    when = draft.between(2, 3)
    while when < draft.ends_at - 1:
        draft.death(when, draft.some())
        when += draft.between(0.5, 3)


def _everything(draft: _Draft) -> None:
    rng = draft.rng
    for part in rng.sample((_pauses, _stalls, _dumps, _outages, _disks, _partitions, _deaths), 3):
        part(draft)


#: what there is, and how often
WEATHERS = {
    "pauses": (_pauses, 4),
    "stalls": (_stalls, 3),
    "dumps": (_dumps, 4),
    "members": (_members, 4),
    "rewinds": (_rewinds, 2),
    "outages": (_outages, 3),
    "disks": (_disks, 2),
    "damage": (_damage, 3),
    "partitions": (_partitions, 2),
    "deaths": (_deaths, 2),
    "everything": (_everything, 4),
}


def make_plan(seed: int, weather: str | None = None) -> Plan:
    """The history of a seed. A weather of one's choice takes the place of the one drawn."""
    rng = chance(seed, "plan")
    drawn = rng.choices(list(WEATHERS), [share for _, share in WEATHERS.values()])[0]
    weather = weather or drawn
    nodes = 3 if rng.random() < 0.85 else 5
    draft = _Draft(rng, nodes, draft_seconds := round(rng.uniform(8, 14), 1))
    _work(draft, rng.choice((1.0, 3.0, 6.0)))
    WEATHERS[weather][0](draft)
    ordered = sorted(draft.actions, key=lambda action: action[0])
    actions = [Action(number, *action) for number, action in enumerate(ordered)]
    drawn_entries = rng.choice((6, 12, 25))
    return Plan(
        seed=seed,
        weather=weather,
        nodes=nodes,
        ends_at=draft_seconds,
        actions=tuple(actions),
        compaction_entries=draft.compaction_entries or drawn_entries,
        dump_piece_bytes=rng.choice((128, 512, 1 << 16)),
        append_bytes=rng.choice((300, 300, 1 << 16)),
        pad_bytes=rng.choice((0, 60, 120)),
        uses_batches=rng.random() < 0.6,
        forks=rng.random() < 0.9,
        page_bytes=rng.choice((512, 4096)),
        cache_bytes=draft.cache_bytes,
    )
