"""What must hold of a cluster at any time, whatever happens to it: Raft's promises.

Nodes of any make tell a :class:`Judge` what they do. It says :class:`Violation` at the first
thing that must not be; it must not know how a node works.
"""

from __future__ import annotations

from typing import NamedTuple

from ._clock import Trace
from ._host import Host

__all__ = ["Judge", "LogEntry", "Violation"]


class Violation(Exception):
    """A promise was broken. ``rule`` names it in a few words, the same for every seed."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(rule, detail)
        self.rule = rule
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


class LogEntry(NamedTuple):
    """An entry of a log; the digest stands for its command."""

    index: int  # type: ignore[assignment]  # a tuple's own is not needed
    term: int
    digest: int


class Judge:
    """See the module."""

    def __init__(self, trace: Trace) -> None:
        self.violation: Violation | None = None
        #: the term of the last leader, and who it was
        self.leader: tuple[int, str] = (0, "")
        self.acked: dict[str, int] = {}
        self._trace = trace
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        #: index → what every log must have there, once it is committed anywhere
        self._committed: dict[int, LogEntry] = {}
        #: (index, term) → the entry, and the term of the one before
        self._entries: dict[tuple[int, int], tuple[int, int | None]] = {}
        #: index → the command applied there, and the state after it
        self._applied: dict[int, tuple[str, int]] = {}
        #: per node: the terms by index that its log was seen with
        self._logs: dict[str, dict[int, int]] = {}
        self._ends: dict[str, tuple[int, int]] = {}
        self._asked: set[str] = set()
        #: per node: when a leader's message arrived last, and its time lost to its disk then
        self._heard: dict[str, tuple[float, float, float]] = {}
        self.shortest_timeout_seconds = 0.4

    def fail(self, rule: str, detail: str) -> None:
        """The first violation counts: it is kept, and ends the simulation."""
        if self.violation is None:
            self.violation = Violation(rule, detail)
            self._trace.note("VIOLATION", rule, detail)

    # --- terms and votes -----------------------------------------------------------------

    def became_leader(self, name: str, term: int, log: list[LogEntry]) -> None:
        """A node leads a term, with this log."""
        self._trace.note(name, "leads term", term)
        before = self._leaders.setdefault(term, name)
        if before != name:
            self.fail("two leaders of one term", f"{before} and {name} lead term {term}")
        self.leader = max(self.leader, (term, name))
        if log:
            held = {entry.index: entry for entry in log}
            last = log[-1].index
            for index, entry in self._committed.items():
                if index >= log[0].index and held.get(index) != entry:
                    what = "ends at" if index > last else "differs before"
                    self.fail(
                        "a leader lacks what is committed",
                        f"{name} leads term {term}, its log {what} {last}; {entry} is committed",
                    )
                    return

    def voted(self, name: str, term: int, candidate: str) -> None:
        before = self._votes.setdefault((name, term), candidate)
        if before != candidate:
            self.fail(
                "two votes in one term", f"{name} voted for {before} and {candidate} in {term}"
            )

    def heard_leader(self, host: Host) -> None:
        """A leader's message has arrived at a node, which may not have read it yet."""
        process = host.process
        if process is not None:
            lost = host.paused_seconds
            now = host.world.clock.now
            self._heard[host.name] = (now, lost, process.stalled_seconds)

    def stands_for_election(self, host: Host) -> None:
        """A node takes silence for the end of its leader."""
        process, heard = host.process, self._heard.get(host.name)
        if process is None or heard is None or host.paused_seconds > heard[1]:
            return
        silence = process.now - heard[0]
        if silence < self.shortest_timeout_seconds * 0.8 and self.lost_to_disk(host) > 0.3:
            self.fail(
                "its own disk's silence was taken for the leader's",
                f"{host.name} heard its leader {silence:.3f} s before it stood for election",
            )

    def lost_to_disk(self, host: Host) -> float:
        """Seconds of the last few that a node has waited for its stalled disk."""
        process = host.process
        if process is None or process.now - process.last_stall_ended > 0.3:
            return 0.0
        return process.last_stall_seconds

    # --- logs ----------------------------------------------------------------------------

    def knows_log(self, name: str, last: int, term: int) -> bool:
        """Whether a log that ends so was judged already."""
        return self._ends.get(name) == (last, term)

    def saw_log(self, name: str, log: list[LogEntry], commit: int) -> None:
        """A node's log, and up to where it says that it is committed."""
        if not log:
            return
        seen = self._logs.setdefault(name, {})
        self._ends[name] = (log[-1].index, log[-1].term)
        for position in range(len(log) - 1, -1, -1):
            index, term, digest = log[position]
            if seen.get(index) == term:
                break
            before = log[position - 1].term if position else None
            known = self._entries.get((index, term))
            if known is None:
                self._entries[index, term] = (digest, before)
            elif known[0] != digest or (None not in (known[1], before) and known[1] != before):
                self.fail("logs do not match", f"{name} has another entry {index} of term {term}")
            elif known[1] is None:
                self._entries[index, term] = (digest, before)
            seen[index] = term
        for index in [each for each in seen if each > log[-1].index]:
            del seen[index]
        for entry in log:
            if entry.index > commit:
                break
            if self._committed.setdefault(entry.index, entry) != entry:
                self.fail(
                    "what was committed is another entry now",
                    f"{name} has {entry} committed, {self._committed[entry.index]} was",
                )

    def forget(self, name: str) -> None:
        """A node begins anew: what was not durable of its log may be gone."""
        self._logs.pop(name, None)
        self._ends.pop(name, None)
        self._heard.pop(name, None)

    # --- commands ------------------------------------------------------------------------

    def asked(self, key: str) -> None:
        self._asked.add(key)

    def applied(self, name: str, index: int, key: str, chain: int, times: int) -> None:
        if times != 1:
            self.fail("a command was applied twice", f"{name} applied {key} at {index} again")
        before = self._applied.setdefault(index, (key, chain))
        if before[0] != key:
            self.fail(
                "another command was applied",
                f"{name} applied {key} at {index}, where {before[0]} was applied",
            )
        elif before[1] != chain:
            self.fail("states differ", f"{name} has another state after {index} ({key})")

    def acknowledged(self, name: str, key: str, index: int) -> None:
        self.acked[key] = index
        self._trace.note(name, "acknowledged", key, "at", index)
        if self._applied.get(index, (key,))[0] != key:
            self.fail(
                "what was acknowledged is lost",
                f"{key} was acknowledged at {index}, where {self._applied[index][0]} is",
            )

    def check_state(self, name: str, seen: dict[str, int]) -> None:
        """A node's whole state, once it has everything."""
        missing = sorted(set(self.acked) - set(seen))
        if missing:
            self.fail(
                "what was acknowledged is lost", f"{name} lacks {len(missing)}, {missing[0]} first"
            )
        if strange := sorted(set(seen) - self._asked):
            self.fail("a command that nobody gave", f"{name} has {strange[0]}")
