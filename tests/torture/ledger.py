"""What was begun and what was acknowledged, kept outside of the store. Knows no disk.

Every log that a history ever held is a path in a tree: an entry's parent is the entry that
stood before it when it was appended. A recovered log is therefore judged by its last entry:
the rest of it must be that entry's path, entry for entry, down to the purge frontier.

Times are ticks of a clock that only this module advances; "never" is a tick past all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hqlwal_raft import Entry, LogId, Vote

__all__ = ["Frontier", "Ledger", "Node", "SavedVote", "Span", "View", "Violation"]

NEVER = 1 << 62


class Violation(AssertionError):
    """A promise of the store was broken."""


class Span(NamedTuple):
    """When a snapshot was taken: between these two ticks, both included.

    What was acknowledged by the first must be in it, what was begun after the last cannot.
    """

    earliest: int
    latest: int


@dataclass(frozen=True, slots=True)
class View:
    """What a store shows once it is open."""

    frontier: LogId | None
    last: LogId | None
    entries: tuple[Entry, ...]
    vote: Vote | None
    committed: LogId | None


@dataclass(eq=False, slots=True)
class Node:
    """One entry that some append brought."""

    entry: Entry
    parent: Node | None
    #: the frontier's index when this entry became the first of an empty log
    base: int | None
    begun: int
    readable: int = NEVER
    durable: int = NEVER
    cut_begun: int = NEVER
    cut_durable: int = NEVER


@dataclass(slots=True)
class Frontier:
    log_id: LogId | None
    begun: int = 0
    durable: int = 0
    live_before: Sequence[Node] = ()


@dataclass(slots=True)
class SavedVote:
    vote: Vote | None
    begun: int = 0
    durable: int = 0


def _index(log_id: LogId | None) -> int:
    return -1 if log_id is None else log_id.index


class Ledger:
    """The facts of one life of a store, from one opening to the next."""

    def __init__(self, view: View | None = None) -> None:
        self.clock = 0
        #: the term of the entries to come
        self.term = 1
        #: by (index, term, node id): histories give every entry a node id of its own
        self._nodes: dict[LogId, Node] = {}
        self._order: list[Node] = []
        #: the log as it is when all that was begun is done
        self.live: list[Node] = []
        self._frontiers = [Frontier(view.frontier if view else None)]
        self._votes = [SavedVote(view.vote if view else None)]
        self._committed: list[tuple[LogId | None, int]] = [(view.committed if view else None, 0)]
        if view:
            # What an open shows is durable: a Raft node builds on it without asking again.
            self.durable(self.append(view.entries))

    def after(self, view: View) -> Ledger:
        """The ledger of the next life, which began with ``view``."""
        ledger = Ledger(view)
        ledger.term = self.term
        # as a hint, the committed log id may go back to any that was saved
        earlier = [(None, 0), *((log_id, 0) for log_id, _ in self._committed)]
        ledger._committed = [*earlier, (view.committed, 0)]
        return ledger

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    # --- what was begun ------------------------------------------------------------------

    @property
    def frontier(self) -> LogId | None:
        return self._frontiers[-1].log_id

    @property
    def last(self) -> LogId | None:
        return self.live[-1].entry.log_id if self.live else self.frontier

    @property
    def vote(self) -> Vote | None:
        return self._votes[-1].vote

    def append(self, entries: Sequence[Entry]) -> list[Node]:
        begun = self.tick()
        nodes = []
        for entry in entries:
            parent = self.live[-1] if self.live else None
            base = None if self.live or self.frontier is None else self.frontier.index
            node = Node(entry, parent, base, begun)
            assert entry.log_id not in self._nodes, "a history must not repeat a log id"
            self._nodes[entry.log_id] = node
            self._order.append(node)
            self.live.append(node)
            nodes.append(node)
        return nodes

    def truncate(self, index: int) -> list[Node]:
        begun = self.tick()
        kept = [node for node in self.live if node.entry.index < index]
        cut = self.live[len(kept) :]
        for node in cut:
            node.cut_begun = begun
        self.live = kept
        if cut and _index(self._committed[-1][0]) >= index:
            self._committed.append((self.last, begun))  # it is cut with the entries
        return cut

    def withdraw_entries(self, nodes: Sequence[Node]) -> None:
        """The append of the last entries was refused, and changed nothing."""
        at = self.tick()
        self.live = self.live[: len(self.live) - len(nodes)]
        for node in nodes:
            node.cut_begun = node.cut_durable = at

    def restore(self, cut: Sequence[Node]) -> None:
        """The truncation was refused, and changed nothing."""
        self.tick()
        if cut and self._committed[-1][1] == cut[0].cut_begun:
            self._committed.pop()
        for node in cut:
            node.cut_begun = NEVER
        self.live += cut

    def purge(self, log_id: LogId) -> Frontier:
        assert log_id.index > _index(self.frontier)
        frontier = Frontier(log_id, self.tick(), NEVER, tuple(self.live))
        self._frontiers.append(frontier)
        self.live = [node for node in self.live if node.entry.index > log_id.index]
        return frontier

    def withdraw(self, frontier: Frontier) -> None:
        """The purge was refused, and changed nothing."""
        self.tick()
        self._frontiers.remove(frontier)
        self.live = list(frontier.live_before)

    def save_vote(self, vote: Vote) -> SavedVote:
        saved = SavedVote(vote, self.tick(), NEVER)
        self._votes.append(saved)
        return saved

    def save_committed(self, log_id: LogId | None) -> None:
        self._committed.append((log_id, self.tick()))

    # --- what was acknowledged -----------------------------------------------------------

    def readable(self, nodes: Sequence[Node]) -> None:
        at = self.tick()
        for node in nodes:
            node.readable = min(node.readable, at)

    def durable(self, nodes: Sequence[Node]) -> None:
        at = self.tick()
        for node in nodes:
            node.readable = min(node.readable, at)
            node.durable = min(node.durable, at)

    def cut_durable(self, nodes: Sequence[Node]) -> None:
        at = self.tick()
        for node in nodes:
            node.cut_durable = at

    def saved(self, item: Frontier | SavedVote) -> None:
        item.durable = self.tick()

    # --- the judgement -------------------------------------------------------------------

    def find_saved(self, saved: LogId | Vote | None) -> Frontier | SavedVote:
        """The purge or vote that was begun last with this value."""
        for frontier in reversed(self._frontiers):
            if frontier.log_id == saved:
                return frontier
        return next(vote for vote in reversed(self._votes) if vote.vote == saved)

    def node(self, log_id: LogId) -> Node:
        return self._nodes[log_id]

    @property
    def now(self) -> Span:
        return Span(self.clock, self.clock)

    def judge(self, view: View, at: Span | None = None, *, is_power_lost: bool = True) -> None:
        """Raises Violation where ``view`` cannot be what a crash at ``at`` left.

        Where only the process died, what was readable must still be there.
        """
        at = at or self.now
        problems = list(self._problems(view, at, is_power_lost=is_power_lost))
        if problems:
            raise Violation("; ".join(problems))

    def judge_closed(self, view: View) -> None:
        """Raises Violation where ``view`` is not exactly what was there at a clean close."""
        if list(view.entries) != [node.entry for node in self.live]:
            raise Violation(f"closed with {self.last} as the last log id, opened with {view.last}")
        committed, begun = self._committed[-1]
        # what an open showed may be older than what was saved last before it
        if begun == 0:
            return
        if _index(committed) <= _index(view.last) and view.committed != committed:
            raise Violation(f"closed with {committed} committed, opened with {view.committed}")

    def _problems(self, view: View, at: Span, *, is_power_lost: bool) -> Iterator[str]:
        frontiers = [each for each in self._frontiers if each.begun <= at.latest]
        oldest = max(i for i, each in enumerate(frontiers) if each.durable <= at.earliest)
        if view.frontier not in [each.log_id for each in frontiers[oldest:]]:
            yield f"frontier {view.frontier}, at least {frontiers[oldest].log_id} was durable"
        votes = [each for each in self._votes if each.begun <= at.latest]
        oldest = max(i for i, each in enumerate(votes) if each.durable <= at.earliest)
        if view.vote not in [each.vote for each in votes[oldest:]]:
            yield f"vote {view.vote}, at least {votes[oldest].vote} was durable"
        if view.committed is not None:
            if view.committed not in [
                log_id for log_id, begun in self._committed if begun <= at.latest
            ]:
                yield f"committed {view.committed} was never saved"
            if view.committed.index > _index(view.last):
                yield f"committed {view.committed} is beyond the last log id {view.last}"
        yield from self._log_problems(view, at, is_power_lost=is_power_lost)

    def _log_problems(self, view: View, at: Span, *, is_power_lost: bool) -> Iterator[str]:
        edge = _index(view.frontier)
        shown = view.entries[-1].log_id if view.entries else view.frontier
        if shown != view.last:
            yield f"last log id {view.last}, but the entries end with {shown}"
        path: set[int] = set()
        if view.entries:
            node = self._nodes.get(view.entries[-1].log_id)
            for entry in reversed(view.entries):
                if entry.index <= edge:
                    yield f"entry {entry.index} is shown below the frontier {edge}"
                if node is None or node.begun > at.latest:
                    yield f"entry {entry.log_id} does not belong there"
                    return
                if node.entry != entry:
                    yield f"entry {entry.log_id} is not {node.entry.log_id} or not its payload"
                    return
                if node.cut_durable <= at.earliest:
                    yield f"entry {entry.log_id} is back, its truncation was acknowledged"
                path.add(id(node))
                first, node = node, node.parent
            if first.entry.index != edge + 1 and (node is not None or first.base is not None):
                yield f"the first entry is {first.entry.index} but the frontier is {edge}"
        held = next(
            (
                node
                for node in reversed(self._order)
                if (node.durable if is_power_lost else node.readable) <= at.earliest
                and node.cut_begun > at.latest
            ),
            None,
        )
        if held is not None and held.entry.index > edge and id(held) not in path:
            what = "durable" if is_power_lost else "readable"
            yield f"entry {held.entry.log_id} was {what}, the log ends with {view.last}"
