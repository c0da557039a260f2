"""Histories as words over a small alphabet, and what each letter lets a crash leave.

A history is written as letters with blanks between them, and means the same in every run:

=========  ==================================================================================
``A2``     appends two entries and syncs; ``a2`` leaves them unsynced
``F-1``    appends an entry whose record fills an empty segment but for one byte (any number)
``G+1``    appends an entry whose record is one byte longer than a common one (any number)
``O``      appends an entry that is larger than a segment
``S``      syncs
``T4``     truncates from entry 4 on
``L4``     receives from the leader of the next term: what is held before entry 4, then two entries
``P4``     purges up to 4
``V``      saves a new vote
``C``      saves the last log id as committed
``Hseal``  one step of housekeeping that the engine would do at some later time; on a store
           (``faces``) what one of its threads has to do
``R``      closes and opens again
``K``      the process dies and is started again; what it wrote is in the kernel's memory
=========  ==================================================================================

A segment has room for three common records. A page is shorter than a record, so that a header and
records lie on different pages and every record straddles two.

It knows no disk: what a log should be is kept here in three numbers and a list of entries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hqlwal_raft import Entry, LogId, Vote
from hqlwal_raft.testing import MemoryKernel

from .core import HEADER_BYTES, RECORD_OVERHEAD_BYTES, Core, View
from .faces import AsyncCore, BlockingCore

__all__ = [
    "FACES",
    "PAGE_BYTES",
    "SEGMENT_BYTES",
    "Allowed",
    "Expected",
    "Life",
    "Model",
    "letters",
]

#: what a history is carried out on: the log alone, or a store with its committer and threads
FACES: dict[str, Any] = {"log": Core, "async": AsyncCore, "blocking": BlockingCore}
PAGE_BYTES = 64
RECORD_BYTES = 72
ROOM_BYTES = 3 * RECORD_BYTES
SEGMENT_BYTES = HEADER_BYTES + ROOM_BYTES
#: of what is appended after a recovery: no history gets there by itself
LATER_TERM = 15
#: the letters that append; the small ones do not sync
APPENDS = "AaFfGgOo"


class Allowed(NamedTuple):
    """A log that may be found: the first ``at_least`` entries or more, in order, to the end."""

    frontier: LogId | None
    entries: tuple[Entry, ...]
    at_least: int


class Expected(NamedTuple):
    """All that a crash at some moment may leave."""

    logs: tuple[Allowed, ...]
    votes: tuple[Vote | None, ...]
    committed: frozenset[LogId | None]

    def problem(self, view: View) -> str | None:
        """What is wrong with what a store shows; the first words name the kind."""
        if view.vote not in self.votes:
            return f"the vote is wrong: {view.vote} instead of {self.votes[-1]}"
        last = view.entries[-1].log_id if view.entries else view.frontier
        if view.last != last:
            return f"the last log id is wrong: {view.last} where the entries end with {last}"
        if view.committed not in self.committed:
            return f"the committed log id is wrong: {view.committed} was never saved"
        if view.committed and (last is None or view.committed.index > last.index):
            return f"the committed log id is wrong: {view.committed} is beyond {last}"
        worst = f"the frontier is wrong: {view.frontier} is not {self.logs[-1].frontier}"
        count = len(view.entries)
        for frontier, entries, at_least in self.logs:
            if view.frontier != frontier:
                continue
            if view.entries != entries[:count]:
                worst = f"entries that do not belong there: the log ends with {last}"
            elif count < at_least:
                ids = [entry.index for entry in entries[count:at_least]]
                return f"acknowledged entries are lost: {ids}"
            else:
                return None
        return worst


class Model:
    """What a log should hold while a history goes on, kept outside of the store."""

    def __init__(self, *, is_buffered: bool = False) -> None:
        #: what was accepted is in the page cache, not only in the store's memory
        self.is_buffered = is_buffered
        self.log: list[Entry] = []
        #: how many of them are durable
        self.durable = 0
        self.frontier: LogId | None = None
        self.vote: Vote | None = None
        self.votes = 0
        #: all that were ever saved: as a hint it may go back
        self.committed: frozenset[LogId | None] = frozenset((None,))
        self.term = 1

    @classmethod
    def of(cls, view: View, *, is_buffered: bool = False) -> Model:
        """The model of a log that an open showed: a node builds on it, so all of it is durable."""
        model = cls(is_buffered=is_buffered)
        model.log = list(view.entries)
        model.durable = len(model.log)
        model.frontier, model.vote, model.term = view.frontier, view.vote, LATER_TERM
        model.committed |= {view.committed}
        return model

    @property
    def frontier_index(self) -> int:
        return self.frontier.index if self.frontier else 0

    @property
    def last_index(self) -> int:
        return self.log[-1].index if self.log else self.frontier_index

    @property
    def last(self) -> LogId | None:
        return self.log[-1].log_id if self.log else self.frontier

    @property
    def next_vote(self) -> Vote:
        return Vote(self.votes + 1, 7, self.votes % 2 == 1)

    @property
    def state(self) -> object:
        """Equal for two histories that expect the same of all that follows."""
        log, votes = tuple(self.log), (self.vote, self.votes)
        return log, self.durable, self.frontier, votes, self.committed, self.term

    @property
    def kept(self) -> int:
        """How many entries survive where only the process dies."""
        return len(self.log) if self.is_buffered else self.durable

    @property
    def exactly(self) -> Expected:
        """What the store itself must show now."""
        return self._expected(len(self.log))

    @property
    def after_kill(self) -> Expected:
        """What a reopened store must show where the process dies now."""
        return self._expected(self.kept)

    @property
    def at_least(self) -> Expected:
        """What a crash may leave while nothing is going on."""
        return self._expected(self.durable)

    def _expected(self, durable: int) -> Expected:
        entries = tuple(self.log)
        return Expected((Allowed(self.frontier, entries, durable),), (self.vote,), self.committed)

    def entries(self, letter: str) -> list[Entry]:
        """The entries that a letter appends."""
        kind, number = letter[0].upper(), letter[1:]
        if kind == "A":
            sizes = [RECORD_BYTES] * int(number)
        elif kind == "F":
            sizes = [ROOM_BYTES + int(number)]
        elif kind == "G":
            sizes = [RECORD_BYTES + int(number)]
        else:
            sizes = [ROOM_BYTES + 2 * RECORD_BYTES]
        index = self.last_index + 1
        return [
            Entry(
                self.term, i, bytes((16 * self.term + i & 0xFF,)) * (size - RECORD_OVERHEAD_BYTES)
            )
            for i, size in enumerate(sizes, index)
        ]

    def received(self, letter: str) -> tuple[LogId | None, list[Entry], list[Entry]]:
        """What a leader sends: the log id before, all entries, and those that are new."""
        index, term = int(letter[1:]), self.term + 1
        new = [
            Entry(term, i, bytes((16 * term + i & 0xFF,)) * (RECORD_BYTES - RECORD_OVERHEAD_BYTES))
            for i in (index, index + 1)
        ]
        before = [entry for entry in self.log if entry.index < index]
        kept = before[-1:]
        prev = before[-2].log_id if before[1:] else self.frontier
        return prev, kept + new, new

    def purged_to(self, index: int) -> LogId:
        found = next((entry.log_id for entry in self.log if entry.index == index), None)
        return found or LogId(self.term, index)

    def within(self, letter: str, *, is_power_cut: bool = True) -> Expected:
        """What a crash within the letter may leave.

        Where only the process died, all that was written before must still be there.
        """
        durable = self.durable if is_power_cut else self.kept
        now = self._expected(durable)
        kind = letter[0]
        if kind in APPENDS:
            added = (*self.log, *self.entries(letter))
            return now._replace(logs=(Allowed(self.frontier, added, durable),))
        if kind == "T":
            kept = sum(entry.index < int(letter[1:]) for entry in self.log)
            allowed = Allowed(self.frontier, tuple(self.log), min(durable, kept))
            return now._replace(logs=(allowed,))
        if kind == "L":
            before = [entry for entry in self.log if entry.index < int(letter[1:])]
            after = (*before, *self.received(letter)[2])
            logs = (tuple(self.log), after)  # or the beginning of one: never a mixture
            at_least = min(durable, len(before))
            allowed_logs = tuple(Allowed(self.frontier, log, at_least) for log in logs)
            return now._replace(logs=allowed_logs)
        if kind == "P":
            log_id = self.purged_to(int(letter[1:]))
            rest = tuple(entry for entry in self.log if entry.index > log_id.index)
            gone = len(self.log) - len(rest)
            allowed = Allowed(log_id, rest, max(durable - gone, 0))
            return now._replace(logs=(*now.logs, allowed))
        if kind == "V":
            return now._replace(votes=(self.vote, self.next_vote))
        if kind == "C":
            return now._replace(committed=now.committed | {self.last})
        return now

    def acknowledge(self, letter: str) -> None:
        """The call has returned."""
        kind = letter[0]
        if kind in APPENDS:
            self.log += self.entries(letter)
        elif kind == "K":
            del self.log[self.kept :]
        elif kind == "T":
            self.log = [entry for entry in self.log if entry.index < int(letter[1:])]
            self.term += 1
        elif kind == "L":
            before = [entry for entry in self.log if entry.index < int(letter[1:])]
            self.log = before + self.received(letter)[2]
            self.term += 1
        elif kind == "P":
            self.frontier = self.purged_to(int(letter[1:]))
            self.log = [entry for entry in self.log if entry.index > self.frontier.index]
        elif kind == "V":
            self.vote = self.next_vote
            self.votes += 1
        elif kind == "C":
            self.committed |= {self.last}
        # a truncation, a purge, an end and an opening make durable what was accepted before; where
        # it is kept in memory until then, a vote and the next commit do as well
        if kind in ("AFGOTLPSRK" if self.is_buffered else "AFGOTLPSRKVC"):
            self.durable = len(self.log)


class Life:
    """A store and what it should hold. ``kernel`` is the memory in which it lives."""

    def __init__(
        self, kernel: MemoryKernel, model: Model | None = None, *, face: str = "log"
    ) -> None:
        self.kernel = kernel
        self.model = model or Model()
        self._face = FACES[face]
        self.core = self._open()

    def _open(self) -> Any:
        return self._face(self.kernel, SEGMENT_BYTES, is_buffered=self.model.is_buffered)

    def end(self) -> None:
        """Nothing of it goes on."""
        with contextlib.suppress(Exception):  # it may have failed in the middle
            self.core.abandon()

    def perform(self, letter: str) -> None:
        """Has the store do what the letter says; the model is the caller's business."""
        core, model, kind = self.core, self.model, letter[0]
        if kind in APPENDS:
            core.append(model.entries(letter), sync=kind.isupper())
        elif kind == "T":
            core.truncate(int(letter[1:]))
        elif kind == "L":
            prev, entries, _ = model.received(letter)
            core.append_after(prev, entries)
        elif kind == "P":
            core.purge(model.purged_to(int(letter[1:])))
        elif kind == "V":
            core.save_vote(model.next_vote)
        elif kind == "C":
            core.save_committed(model.last)
        elif kind == "H":
            core.housekeeping(letter[1:])
        elif kind == "S":
            core.sync()
        else:
            (core.close if kind == "R" else core.abandon)()
            self.core = self._open()
            if kind == "K" and self._face is not Core:
                self._learn()

    def _learn(self) -> None:
        """How much a store's threads had made durable, of what nobody waited for."""
        model, shown = self.model, self.core.view().entries
        if len(shown) >= model.durable and tuple(model.log[: len(shown)]) == shown:
            model.durable = len(shown)


def letters(life: Life, families: Sequence[str]) -> Iterator[str]:
    """The letters that may come next. ``T``, ``L``, ``P``, ``H`` stand for every one that makes sense."""
    model = life.model
    last = model.last_index
    for family in families:
        if family == "T":
            # a node never truncates what is committed
            held = max(log_id.index if log_id else 0 for log_id in model.committed)
            yield from (f"T{entry.index}" for entry in model.log if entry.index > held)
        elif family == "L":
            held = max(log_id.index if log_id else 0 for log_id in model.committed)
            first = max(held, model.frontier_index) + 1
            yield from (f"L{index}" for index in range(first, last + 2))
        elif family == "P":
            ends = [*range(model.frontier_index + 1, last + 2), last + 3]
            yield from (f"P{index}" for index in ends)
        elif family == "H":
            yield from (f"H{name}" for name in life.core.due())
        elif family != "S" or model.durable < len(model.log):
            yield family
