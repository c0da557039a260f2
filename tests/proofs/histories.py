"""The histories in which every call fails once: together they cover every operation.

Written as ``store`` reads them. They must not know the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["HISTORIES", "THREADED", "History"]


@dataclass(frozen=True, eq=False)
class History:
    """What is played: first ``before`` in peace, then ``rounds``, in which calls fail."""

    name: str
    rounds: tuple[str, ...]
    before: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    #: the kind of file system; "" where nobody can tell
    file_system: str = ""
    #: whether no read finds its bytes in memory
    is_cold: bool = False
    backend: str = "asyncio"
    #: whether it is played on the blocking face, a thread for each call
    is_threaded: bool = False
    #: whether the process is killed after ``before``
    is_killed: bool = False
    #: has the closed files damaged
    damage: Callable[[dict[str, bytes]], dict[str, bytes]] | None = None


def _flip_last_record(files: dict[str, bytes]) -> dict[str, bytes]:
    """One bit of the last segment's records, all of which were durable."""
    path = max(path for path in files if path.endswith(".wal") and b"7.xxx" in files[path])
    data = bytearray(files[path])
    data[data.rindex(b"7.xxx") + 9] ^= 1
    return {**files, path: bytes(data)}


_FILL = ("open", "append 2000*3", "append 2000*3", "append 2000*2", "vote", "committed", "close")

HISTORIES = (
    History(
        "fresh directory, roll-over, batches, an oversized entry",
        (
            "open",
            "append 300",
            "append 1500*3",
            "vote | committed | append 300",
            "append 3000 | append! 3000 | append 3000",
            # two of them wait while one writes
            "append 200 | append 200 | append 200 | append 200",
            "append 1000*12",
            "append 20000",
            # a replaced segment that was not given up would be written to by these
            "append 2000*4",
            "append 300*2",
            "read",
            "close",
        ),
    ),
    History(
        "cuts: inside, at, across segments, everything",
        (
            "open",
            "append 300",
            "truncate 2",
            "append 500*2",
            "truncate 4",
            "append 2000",
            "append 20000",
            "truncate 1",
            "append 2000*3 | vote",
            "after 5",
            "append 2000*4 | truncate 1 | append 300",
            "after none",
            "append 300",
            "close",
        ),
        before=_FILL,
    ),
    History(
        "purges: inside, at, beyond, everything",
        (
            "open",
            "purge 1",
            "append 2000*3",
            "purge 2 | append 2000",
            "purge 3",
            "append 2000*2 | purge 4",
            "purge all",
            "append 2000*4",
            "purge +5",
            "append 300 | committed | vote",
            "read",
            "close",
        ),
        before=_FILL,
    ),
    History(
        "a leader's entries: behind, held, in conflict inside, at, across segments, all",
        (
            "open",
            "receive 0 300*2",
            "receive 1 500*3",
            "receive 0",
            "receive 3 2000*4 | vote",
            "append! 300 | receive 1 300*2",
            "receive 9 300",
            "receive 1 20000 | committed",
            "receive 0 2000*9",
            "purge 2",
            "receive 7 2000*5",
            "read",
            "close",
        ),
        before=("open", "append 2000*3", "append 2000*3", "append 2000*2", "vote", "close"),
    ),
    History(
        "a leader's entries that are compared on the disk, into the page cache",
        (
            "open",
            "receive 0",
            "receive 4 300*2 | read",
            "receive 0 2000*3",
            "flush",
            "receive all 300*2",
            "receive 1 300*4",
            "close",
        ),
        before=("open", "append 2000*3", "append 2000*3", "append 2000*2", "close"),
        options={"sync": "immediate_async"},
        is_cold=True,
    ),
    History(
        "an existing directory: vote, committed, flush, cold and cached reads",
        (
            "open",
            "read",
            "limited 2500",
            "stream",
            "leader",
            "keys",
            "reader",
            "vote | vote | committed | append! 300 | committed",
            "flush",
            "read | append 300 | state",
            "committed",
            "close",
            "open",
            "read",
            "close",
        ),
        before=_FILL,
        options={"cache_bytes": 4096},
    ),
    History(
        "immediate_async",
        (
            "open",
            "append 300",
            "append! 300 | append 2000*3",
            "append 9000",
            "flush",
            "append 300 | vote | committed",
            "truncate 2",
            "append 300*3 | purge 2",
            "append 300",
            "close",
        ),
        options={"sync": "immediate_async"},
    ),
    History(
        "interval",
        (
            "open",
            "append 300",
            "append! 300 | append 2000*3",
            "append 9000 | flush",
            "append! 300",
            "truncate 1",
            "append 300",
            "close",
        ),
        before=_FILL,
        options={"sync": "interval_20"},
    ),
    History(
        "opened after a kill",
        ("open", "read", "append 2000*2", "vote", "close"),
        before=(
            *("open", "append 2000*3", "vote", "append 2000*5", "purge 2", "committed"),
            *("truncate 3", "append! 3000*2"),
        ),
        options={"sync": "immediate_async"},
        is_killed=True,
    ),
    History(
        "through the map, on ext4",
        (
            "open",
            "append 300 | append 300 | append! 300",
            "append 300 | vote | append 300",
            "append 2000*3 | append 300",
            "append 300*2 | append 300",
            "truncate 3",
            "append 300 | append 300",
            "append 9000",
            "append 300 | purge 3 | append 300",
            "read",
            "close",
        ),
        before=_FILL,
        options={"sync": "immediate_async"},
        file_system="ext4",
    ),
    History(
        "under trio, reads that have to wait for the disk",
        (
            "open",
            "read",
            "limited 2500 | stream | leader",
            "append 300 | read | truncate 2 | keys",
            "append! 2000*4 | vote | committed",
            "reader | purge 3 | append 300",
            "read",
            "close",
        ),
        before=_FILL,
        is_cold=True,
        backend="trio",
    ),
    History(
        "healing of a damaged directory",
        ("open", "append 2000*2", "read", "close"),
        before=_FILL,
        options={"auto_heal": True},
        damage=_flip_last_record,
    ),
)

#: the same on the other face
THREADED = tuple(
    replace(history, name=f"threads: {history.name}", backend="asyncio", is_threaded=True)
    for history in HISTORIES
)
