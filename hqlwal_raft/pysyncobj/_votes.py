"""How pysyncobj's current term and vote are kept as a Vote. Knows neither log nor node."""

from __future__ import annotations

import ast
from typing import Any

from .._types import Vote

__all__ = ["node_id_of", "vote_of"]

_LITERAL = "\x00literal:"


def vote_of(term: int, node_id: Any) -> Vote:
    """The vote that stands for pysyncobj's current term and whom it voted for.

    Ids of nodes are strings; a transport of one's own may have numbers, bytes, and tuples of
    them, which are kept as Python writes them. Raises TypeError for anything else: what is read
    when a log is opened must not be able to run code.
    """
    if node_id is None or (type(node_id) is int and 0 <= node_id < 1 << 64):
        return Vote(term, node_id)
    if type(node_id) is str and not node_id.startswith(_LITERAL):
        return Vote(term, node_id)
    literal = repr(node_id)
    try:
        is_kept = _same(ast.literal_eval(literal), node_id)
    except (ValueError, SyntaxError):
        is_kept = False
    if not is_kept:
        raise TypeError(
            f"a node's id must be a string, a number, bytes or a tuple of them to be voted for; "
            f"this one is a {type(node_id).__name__}"
        )
    return Vote(term, _LITERAL + literal)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: True is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def node_id_of(vote: Vote) -> Any:
    """The node id that :func:`vote_of` was given."""
    node_id = vote.node_id
    if isinstance(node_id, str) and node_id.startswith(_LITERAL):
        return ast.literal_eval(node_id[len(_LITERAL) :])
    return node_id
