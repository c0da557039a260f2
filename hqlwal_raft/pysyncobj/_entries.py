"""How pysyncobj's entries become the log's, and back. Knows neither."""

from __future__ import annotations

from .._types import Entry
from ..blocking import BlockingRaftLogStorage

__all__ = ["PlainEntry", "read_entries", "to_batch", "to_plain"]

#: an entry as pysyncobj has it: command, index, term
PlainEntry = tuple[bytes, int, int]

#: how many entries one read gives at the most
_READ_ENTRIES = 8192


def to_batch(entries: list[PlainEntry]) -> list[Entry]:
    # past Entry's own constructor, which takes twice the time, for every command there is
    new = tuple.__new__
    return [new(Entry, (term, index, command, 0)) for command, index, term in entries]


def to_plain(entry: Entry) -> PlainEntry:
    return entry.payload, entry.index, entry.term


def read_entries(
    store: BlockingRaftLogStorage, start: int, stop: int, max_bytes: int
) -> list[PlainEntry]:
    """The first entries of ``[start, stop)``, at least one; waits for the disk."""
    found = store.limited_get_log_entries(start, min(stop, start + _READ_ENTRIES), max_bytes)
    return [(payload, index, term) for term, index, payload, _ in found]
