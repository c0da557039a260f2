"""What a journal asks of its storage: entries, and the operations that a Driver queues.

Values only. ``number`` is what others wait for.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._types import Entry, Vote

__all__ = [
    "Append",
    "Operation",
    "PlainEntry",
    "Purge",
    "Restart",
    "SaveCommitted",
    "SaveVote",
    "Truncate",
    "to_batch",
    "to_plain",
]

#: what pysyncobj calls an entry: command, index, term
PlainEntry = tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class Append:
    number: int
    entries: list[PlainEntry]


@dataclass(frozen=True, slots=True)
class Truncate:
    number: int
    index: int


@dataclass(frozen=True, slots=True)
class Restart:
    number: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class SaveVote:
    number: int
    vote: Vote


@dataclass(frozen=True, slots=True)
class SaveCommitted:
    index: int


@dataclass(frozen=True, slots=True)
class Purge:
    index: int


Operation = Append | Truncate | Restart | SaveVote | SaveCommitted | Purge


def to_batch(entries: list[PlainEntry]) -> list[Entry]:
    # past Entry's own constructor, which takes twice the time, for every command there is
    new = tuple.__new__
    return [new(Entry, (term, index, command, 0)) for command, index, term in entries]


def to_plain(entry: Entry) -> PlainEntry:
    return entry.payload, entry.index, entry.term
