"""How pysyncobj's current term and vote are kept as a Vote. Knows neither log nor node."""

from __future__ import annotations

import base64
import pickle
from typing import Any

from .._types import Vote

__all__ = ["node_id_of", "vote_of"]

_PICKLED_NODE = "\x00pickle:"


def vote_of(term: int, node_id: Any) -> Vote:
    """The vote that stands for pysyncobj's current term and whom it voted for.

    A node id that is neither a string nor a u64, which a transport of one's own may have, is
    pickled.
    """
    if node_id is None or (type(node_id) is int and 0 <= node_id < 1 << 64):
        return Vote(term, node_id)
    if type(node_id) is str and not node_id.startswith(_PICKLED_NODE):
        return Vote(term, node_id)
    return Vote(term, _PICKLED_NODE + base64.b85encode(pickle.dumps(node_id)).decode())


def node_id_of(vote: Vote) -> Any:
    """The node id that :func:`vote_of` was given."""
    node_id = vote.node_id
    if isinstance(node_id, str) and node_id.startswith(_PICKLED_NODE):
        return pickle.loads(base64.b85decode(node_id[len(_PICKLED_NODE) :]))  # noqa: S301
    return node_id
