"""Judges the arguments of every public call, before anything is touched.

For both faces, in any thread. Each function raises TypeError or ValueError, which say what was
given, which argument it is and what is wanted, but never a payload. Entries are judged where
they are encoded (``_entry_rules.refusal``). It must not know what a call does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._format import NODE_ID_BYTES_MAX, STATE_BYTES_MAX, U64_MAX
from ._types import Entry, LogId, Vote
from .errors import given

if TYPE_CHECKING:
    from .protocols import AppendCallback

__all__ = [
    "check_budget",
    "check_callable",
    "check_callback",
    "check_index",
    "check_log_id",
    "check_number",
    "check_path",
    "check_range",
    "check_seconds",
    "check_truth",
    "check_vote",
    "copied_state",
    "index_of",
    "listed",
    "parse_truth",
    "viewed",
]

#: what a thread can wait for at all lies not far above
_SECONDS_MAXIMUM = 1_000_000

_TRUTHS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0", ""), False),
}


def check_number(name: str, value: object, least: int, most: int, unit: str = "") -> None:
    """A whole number; no bool, which is one by accident, and no float, however round."""
    if type(value) is not int and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} is {given(value)}: give an int")
    if not least <= value <= most:
        most_text = "2**64 - 1" if most == U64_MAX else "2**64" if most == U64_MAX + 1 else most
        raise ValueError(f"{name} is {given(int(value))}: give {least} to {most_text}{unit}")


def check_index(name: str, value: object) -> None:
    check_number(name, value, 0, U64_MAX)


def check_range(start: object, stop: object) -> None:
    """Of a read: half-open, so that both may lie one behind the highest index."""
    check_number("start", start, 0, U64_MAX + 1)
    if stop is not None:
        check_number("stop", stop, 0, U64_MAX + 1)


def check_budget(max_bytes: object) -> None:
    check_number("max_bytes", max_bytes, 0, U64_MAX)


def index_of(name: str, place: object, default: int) -> int:
    """Of the ends of a range that may be given as log ids, or as indexes."""
    if place is None:
        return default
    if type(place) is LogId:
        check_log_id(place, name=name)
        return place.index
    if isinstance(place, int) and not isinstance(place, bool):
        check_index(name, place)
        return place
    raise TypeError(f"{name} is {given(place)}: give a hqlwal_raft.LogId, an index, or None")


def check_log_id(log_id: object, *, is_none_allowed: bool = False, name: str = "log_id") -> None:
    if type(log_id) is LogId:
        check_index(f"{name}.index", log_id.index)
        check_index(f"{name}.term", log_id.term)
        check_index(f"{name}.node_id", log_id.node_id)
    elif log_id is not None or not is_none_allowed:
        wanted = "a hqlwal_raft.LogId, or None" if is_none_allowed else "a hqlwal_raft.LogId"
        raise TypeError(f"{name} is {given(log_id)}: give {wanted}")


def check_vote(vote: object) -> None:
    if type(vote) is not Vote:
        raise TypeError(f"vote is {given(vote)}: give a hqlwal_raft.Vote")
    check_index("vote.term", vote.term)
    check_truth("vote.committed", vote.committed)
    if isinstance(vote.node_id, str):
        try:
            size = len(vote.node_id.encode())
        except UnicodeEncodeError:
            raise ValueError(
                "vote.node_id is no text, it has lone surrogates: give a str that is UTF-8"
            ) from None
        if size > NODE_ID_BYTES_MAX:
            raise ValueError(
                f"vote.node_id has {size} bytes as UTF-8: give at most {NODE_ID_BYTES_MAX}"
            )
    elif vote.node_id is not None:
        check_index("vote.node_id (an int, a str or None)", vote.node_id)


def check_callback(callback: AppendCallback | None) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback is {given(callback)}: give something that can be called, or None"
        )


def check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        kind = type(value).__name__
        raise TypeError(f"{name} is of the type {kind}: give something that can be called, or None")


def check_seconds(name: str, value: object) -> None:
    """A time that something may take: positive and finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is of the type {type(value).__name__}: give seconds as a float")
    if not 0 < value < _SECONDS_MAXIMUM:
        raise ValueError(
            f"{name} is {given(value)}: give more than 0, and less than {_SECONDS_MAXIMUM}"
        )


def check_truth(name: str, value: object) -> None:
    if type(value) is not bool:
        raise TypeError(f"{name} is {given(value)}: give True or False")


def check_path(path: object) -> str:
    """The absolute path that was given: str, bytes or an os.PathLike. Touches no disk."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path is {given(path)}: give a str, bytes or an os.PathLike")
    text = os.fsdecode(path)
    if not text:
        raise ValueError("path is empty: give the log's directory, '.' for the present one")
    if "\0" in text:
        raise ValueError("path has a null character: no directory can be named so")
    return os.path.abspath(text)


def listed(entries: Iterable[Entry]) -> list[Entry]:
    """What an iterable of entries gives, as a list of one's own. What it raises comes out."""
    if isinstance(entries, Entry):
        raise TypeError("entries is one Entry: give an iterable of them, [entry]")
    try:
        iterator = iter(entries)
    except TypeError:
        raise TypeError(
            f"entries is {given(entries)}: give an iterable of hqlwal_raft.Entry"
        ) from None
    return list(iterator)


def copied_state(name: str, data: object) -> bytes:
    """The node's own state, as bytes that nobody can change any more."""
    try:
        with memoryview(data) as view:  # type: ignore[arg-type]
            size = view.nbytes
            if size <= STATE_BYTES_MAX:
                return view.tobytes()
    except TypeError:
        raise TypeError(f"{name} is {given(data)}: give bytes, or something bytes-like") from None
    raise ValueError(f"{name} has {size} bytes: give at most {STATE_BYTES_MAX}")


def viewed(name: str, data: object) -> memoryview:
    """The bytes of something bytes-like, without a copy where they lie in a row."""
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {given(data)}: give bytes, or something bytes-like") from None
    if not view.nbytes or not view.c_contiguous:
        return memoryview(view.tobytes())
    return view.cast("B")


def parse_truth(name: str, text: str) -> bool:
    """Of the environment: a word that is not understood is no silent no."""
    try:
        return _TRUTHS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{name}={text}: give true or false") from None
