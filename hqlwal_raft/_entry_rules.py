"""Which entries a log takes: plain values, with the index and term that may come next.

Pure functions, for the owner of a log before anything is changed. What a record is made of, and
the file it goes to, are no business of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ._format import U64_MAX, record_bytes
from ._types import Entry
from .errors import EntryTooLargeError, LogGapError, LogRangeError, RaftRuleError, given

__all__ = ["NotPlainError", "plain", "record_sizes", "refusal"]


class NotPlainError(TypeError):
    """Something is no plain Entry, or its payload not bytes; ``plain`` makes it so if it can be."""


def plain(entries: Iterable[Entry]) -> list[Entry]:
    """The entries with ints and bytes that nobody can change any more; what is of a subclass is
    made anew. Raises TypeError where something is nothing of the kind.
    """
    return [_plain(entry, place) for place, entry in enumerate(entries)]


def _plain(entry: Entry, place: int) -> Entry:
    if type(entry) is not Entry and not isinstance(entry, Entry):
        raise TypeError(f"entries[{place}] is {given(entry)}: give a hqlwal_raft.Entry")
    term, index, payload, node_id = entry
    if type(payload) is not bytes:
        payload = _copied(payload, place)
    return Entry(
        _plain_number("term", term, place),
        _plain_number("index", index, place),
        payload,
        _plain_number("node_id", node_id, place),
    )


def _plain_number(name: str, value: object, place: int) -> int:
    if type(value) is not int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"entries[{place}].{name} is {given(value)}: give an int")
        value = int(value)
    if not 0 <= value <= U64_MAX:
        raise ValueError(f"entries[{place}].{name} is {given(value)}: give 0 to 2**64 - 1")
    return value


def _copied(payload: object, place: int) -> bytes:
    """The bytes of whatever has any, in the order of its elements."""
    try:
        view = memoryview(payload)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"entries[{place}].payload is {given(payload)}: give bytes, or something bytes-like"
        ) from None
    except (ValueError, BufferError) as error:
        raise ValueError(f"entries[{place}].payload cannot be read: {error}") from None
    with view:
        return view.tobytes()


def refusal(
    entry: Entry, index: int, max_payload_bytes: int, least_term: int | None = None
) -> Exception | None:
    """Why the entry cannot be appended as number ``index``; None where it can.

    ``least_term``: the one of the entry before it; None where terms may fall.
    """
    if type(entry) is not Entry or type(entry.payload) is not bytes:
        return NotPlainError()
    term, found, payload, node_id = entry
    for number in (term, found, node_id):
        if type(number) is not int or not 0 <= number <= U64_MAX:
            return NotPlainError()  # which says what is wrong with it, and which one it is
    if index > U64_MAX:
        return LogRangeError(
            "the log is full: its last entry has the highest index that there is, 2**64 - 1",
            index=index,
        )
    if found != index:
        return LogGapError(
            f"entry {found} cannot follow entry {index - 1}: the next index must be {index}",
            index=found,
            expected=index,
        )
    if len(payload) > max_payload_bytes:
        return EntryTooLargeError(
            f"entry {index} has a payload of {len(payload)} bytes, the store takes at most "
            f"{max_payload_bytes}: open it with a larger max_entry_size or split the entry",
            index=index,
            size=len(payload),
            max_entry_size=max_payload_bytes,
        )
    if least_term is not None and term < least_term:
        return RaftRuleError(
            f"entry {index} is of term {term}, behind an entry of term {least_term}: the terms of "
            "entries never fall. Truncate what the leader of the later term does not have, or "
            "find out who appends with an old term (check_raft=False takes any)",
            rule="term",
            given=term,
            held=least_term,
        )
    return None


def record_sizes(
    entries: Sequence[Entry], index: int, max_payload_bytes: int, least_term: int | None = None
) -> list[int]:
    """The bytes that each record takes; raises what :func:`refusal` says of the first bad one."""
    sizes = []
    for expected, entry in enumerate(entries, index):
        if (error := refusal(entry, expected, max_payload_bytes, least_term)) is not None:
            raise error
        if least_term is not None:
            least_term = entry.term
        sizes.append(record_bytes(len(entry.payload)))
    return sizes
