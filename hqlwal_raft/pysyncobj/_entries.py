"""How pysyncobj's entries become the log's, and back. Knows neither."""

from __future__ import annotations

from .._segment import PlainEntry
from .._types import Entry

__all__ = ["PlainEntry", "to_batch", "to_plain"]


def to_batch(entries: list[PlainEntry]) -> list[Entry]:
    # past Entry's own constructor, which takes twice the time, for every command there is
    new = tuple.__new__
    return [new(Entry, (term, index, command, 0)) for command, index, term in entries]


def to_plain(entry: Entry) -> PlainEntry:
    return entry.payload, entry.index, entry.term
