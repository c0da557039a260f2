"""Judges the arguments of every public call, before anything is touched.

For both faces, in any thread. Each function raises TypeError or ValueError, which say what was
given, which argument it is and what is wanted. Entries are judged where they are encoded
(``_records.refusal``). It must not know what a call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._format import U64_MAX, validate_vote
from ._types import LogId, Vote

if TYPE_CHECKING:
    from .protocols import AppendCallback

__all__ = [
    "check_budget",
    "check_callable",
    "check_callback",
    "check_index",
    "check_log_id",
    "check_number",
    "check_range",
    "check_seconds",
    "check_truth",
    "check_vote",
    "parse_truth",
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
        raise TypeError(f"{name} is {value!r}: give an int")
    if not least <= value <= most:
        most_text = "2**64 - 1" if most == U64_MAX else "2**64" if most == U64_MAX + 1 else most
        raise ValueError(f"{name} {value}: give {least} to {most_text}{unit}")


def check_index(name: str, value: object) -> None:
    check_number(name, value, 0, U64_MAX)


def check_range(start: object, stop: object) -> None:
    """Of a read: half-open, so that both may lie one behind the highest index."""
    check_number("start", start, 0, U64_MAX + 1)
    if stop is not None:
        check_number("stop", stop, 0, U64_MAX + 1)


def check_budget(max_bytes: object) -> None:
    check_number("max_bytes", max_bytes, 0, U64_MAX)


def check_log_id(log_id: object, *, is_none_allowed: bool = False) -> None:
    if type(log_id) is LogId:
        check_index("the log id's index", log_id.index)
        check_index("the log id's term", log_id.term)
        check_index("the log id's node_id", log_id.node_id)
    elif log_id is not None or not is_none_allowed:
        wanted = "a hqlwal_raft.LogId, or None" if is_none_allowed else "a hqlwal_raft.LogId"
        raise TypeError(f"log_id is {log_id!r}: give {wanted}")


def check_vote(vote: object) -> None:
    if type(vote) is not Vote:
        raise TypeError(f"vote is {vote!r}: give a hqlwal_raft.Vote")
    check_index("the vote's term", vote.term)
    check_truth("the vote's committed", vote.committed)
    if isinstance(vote.node_id, bool):
        raise TypeError(f"the vote's node id is {vote.node_id!r}: give an int, a str or None")
    validate_vote(vote)


def check_callback(callback: AppendCallback | None) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is {callback!r}: give something that can be called, or None")


def check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        kind = type(value).__name__
        raise TypeError(f"{name} is of the type {kind}: give something that can be called, or None")


def check_seconds(name: str, value: object) -> None:
    """A time that something may take: positive and finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is of the type {type(value).__name__}: give seconds as a float")
    if not 0 < value < _SECONDS_MAXIMUM:
        raise ValueError(f"{name} {value}: give more than 0, and less than {_SECONDS_MAXIMUM}")


def check_truth(name: str, value: object) -> None:
    if type(value) is not bool:
        raise TypeError(f"{name} is {value!r}: give True or False")


def parse_truth(name: str, text: str) -> bool:
    """Of the environment: a word that is not understood is no silent no."""
    try:
        return _TRUTHS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{name}={text}: give true or false") from None
