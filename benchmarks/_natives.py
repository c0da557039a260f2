"""Native programs, measured elsewhere: on another machine, in a run of their own. Their ratios to
the floor of that run are all that can stand beside ours.

Each in its own language, entries of 256 bytes, ext4, medians of three rounds on a quiet machine:
etcd's wal 3.6.16, hashicorp/raft-wal 0.4.0 and pebble 2.1.7 in Go; raft-engine 0.4.2 and
hiqlite-wal 0.15.1, whose place this package takes, in Rust.
"""

from __future__ import annotations

from _appends import SIZE, cell
from _ratios import Found, Key
from _report import Beside

__all__ = ["NAMES", "natives_beside"]

NAMES = ("hiqlite-wal", "etcd wal", "raft-wal", "raft-engine", "pebble")

_ONE, _MANY = cell(SIZE, 1), cell(SIZE, 64)
_FLOOR: Key = ("durable", _ONE, "floor")
#: there, the floor made so many entries durable in a second, one at a time
_SINGLE = 1 / 144e-6


def _natives(floor: float, *figures: float | None) -> dict[str, float | None]:
    return {
        name: None if figure is None else figure / floor
        for name, figure in zip(NAMES, figures, strict=True)
    }


def natives_beside(found: Found, stores: int) -> list[Beside]:
    alone: Key = ("durable", _ONE, "hqlwal")
    batches: Key = ("durable", _MANY, "hqlwal")
    floor_batches: Key = ("durable", _MANY, "floor")
    callers: Key = ("tasks", "64 tasks", "hqlwal asyncio")
    buffered: Key = ("buffered", _ONE, "hqlwal")
    logs: Key = ("stores", f"{stores} stores", "hqlwal asyncio")
    hand_over = "bare hand-over"
    return [
        Beside(
            "durable, one entry: p50", True, found.p50_ratio(alone, _FLOOR),
            found.p50_ratio(("durable", _ONE, hand_over), _FLOOR),
            _natives(144, 192, 130, 138, 130, 252),
        ),
        Beside(
            "durable, 64 entries: throughput", False, found.ratio(batches, floor_batches),
            found.ratio(("durable", _MANY, hand_over), floor_batches),
            _natives(197, 127, 176, 163, 188, 137),
        ),
        Beside(
            "64 callers, one entry each, gathered where they can: floor's single writer", False,
            found.ratio(callers, _FLOOR), None,
            _natives(_SINGLE, 4.1e3, 92e3, 76e3, 35e3, 79e3),
        ),
        Beside(
            "buffered, one entry: throughput", False,
            found.ratio(buffered, ("buffered", _ONE, "floor")), None,
            _natives(432, 20, 337, None, 395, 316),
        ),
        Beside(
            "100 logs in one process, 64 threads: floor's single writer", False,
            found.ratio(logs, _FLOOR), None, _natives(_SINGLE, None, None, None, 47e3, None),
        ),
    ]  # fmt: skip
