"""The histories that are run in every order; those of the blocking face are called "threads: ...".

For ``every_order``. They say what is called, not what must come of it.
"""

from __future__ import annotations

import random
from dataclasses import replace

from .callers import History, Op

__all__ = ["HISTORIES", "SMALLEST", "SMALLEST_THREADED", "THREADED", "drawn_history"]

HISTORIES = (
    History(
        "a cold read under a cut",
        (
            (Op("read", 1, 4),),
            (Op("vote", 2), Op("truncate", 11), Op("append", 2, 64), Op("append", 1, 64)),
        ),
        fault="C.1",
    ),
    History(
        "appends and a cut",
        ((Op("append", 1, 64),), (Op("append", 2, 3000), Op("truncate", 1)), (Op("append", 1, 9),)),
    ),
    History(
        "cancelled calls",
        ((Op("append", 3, 3000),), (Op("truncate", 2),), (Op("vote", 2), Op("read", 3, 99))),
        cancelled=(0, 1),
    ),
    History(
        "what leaders send among appends and reads",
        (
            (Op("receive", 3, 3000), Op("receive", 0, 64)),
            (Op("append", 1, 64), Op("receive", 1, 64)),
            (Op("read", 8, 14), Op("limited", 9, 5000)),
        ),
    ),
    History(
        "what a leader sends, cancelled",
        ((Op("receive", 3, 64),), (Op("receive", 1, 3000),), (Op("vote", 2), Op("read", 8, 99))),
        cancelled=(0, 1),
    ),
    History(
        "a purge under reads",
        ((Op("read", 1, 9), Op("limited", 2, 3000)), (Op("purge", 6),), (Op("append", 1, 64),)),
    ),
    History(
        "a stream under a purge",
        ((Op("stream", 1),), (Op("vote", 2), Op("vote", 3), Op("purge", 6))),
        sizes=(100_000,) * 6,
        fault="D.2",
    ),
    History(
        "closing under calls",
        ((Op("append", 1, 64), Op("read", 1, 4)), (Op("append", 1, 9000),), (Op("close"),)),
    ),
    History(
        "back-pressure",
        ((Op("append", 1, 64),), (Op("append", 1, 64),), (Op("append", 2, 64), Op("truncate", 1))),
        policy="immediate_async",
        max_unsynced_bytes=1,
        cache_bytes=4096,
    ),
    History(
        "an interval",
        ((Op("append", 1, 64), Op("append", 1, 5000)), (Op("flush"), Op("vote", 3))),
        policy="interval_10",
    ),
    History(
        "a sync that fails",
        ((Op("append", 1, 64), Op("append", 1, 64)), (Op("append", 1, 5000),), (Op("vote", 2),)),
        failing_sync=2,
    ),
    History(
        "callbacks that raise",
        ((Op("callback", 1, 1), Op("callback", 1, 0)), (Op("callback", 1, 0), Op("vote", 1))),
        fault="D.1",
    ),
)


def _on_threads(history: History) -> History:
    return replace(history, name=f"threads: {history.name}", face="blocking")


#: only of the blocking face
_OF_THREADS = (
    History("four appends", ((Op("append", 1, 64),),) * 4),
    History(
        "answered with a job in hand",
        ((Op("append", 1, 64),), (Op("vote", 2),), (Op("abandon"),)),
        told="told: task 0 to pwrite, task 1 to unlock, task 0, task 2",
    ),
    History(
        "a truncation in flight under readers",
        (
            (Op("read", 9, 13), Op("limited", 10, 3000)),
            (Op("truncate", 3), Op("append", 1, 64)),
            (Op("stream", 8),),
        ),
    ),
    History(
        "votes and a purge between appends",
        ((Op("append", 1, 64), Op("vote", 2)), (Op("purge", 6), Op("vote", 3)), (Op("flush"),)),
    ),
    History(
        "a sync that fails under followers",
        ((Op("append", 1, 64),), (Op("append", 1, 64),), (Op("append", 1, 64), Op("flush"))),
        failing_sync=1,
    ),
    History(
        "a sync that fails under readers and a vote",
        ((Op("vote", 2),), (Op("append", 2, 3000),), (Op("read", 1, 14), Op("callback", 1))),
        failing_sync=2,
    ),
    History(
        "abandoning under calls",
        ((Op("append", 1, 64), Op("vote", 2)), (Op("append", 1, 9000),), (Op("abandon"),)),
    ),
    History(
        "abandoning under a cut, a reader and a callback",
        ((Op("truncate", 3), Op("read", 1, 4)), (Op("callback", 1),), (Op("abandon"),)),
    ),
    History(
        "abandoning while others close",
        ((Op("append", 1, 64),), (Op("close"),), (Op("abandon"),)),
    ),
    History(
        "a disk that hangs, and abandoning",
        ((Op("append", 1, 64), Op("vote", 2)), (Op("append", 1, 64),), (Op("abandon"),)),
        hanging_sync=1,
    ),
    History(
        "a disk that hangs under a cut, and abandoning",
        (
            (Op("truncate", 3),),
            (Op("callback", 1), Op("vote", 2)),
            (Op("read", 1, 4), Op("abandon")),
        ),
        hanging_sync=2,
    ),
    History(
        "one append larger than the bound",
        ((Op("append", 1, 9000),), (Op("append", 1, 64),), (Op("callback", 1), Op("flush"))),
        policy="immediate_async",
        max_unsynced_bytes=100,
    ),
)
THREADED = tuple(map(_on_threads, (*(h for h in HISTORIES if not h.cancelled), *_OF_THREADS)))

#: small enough for every order there is; jobs of threads are not taken apart
SMALLEST = (
    History("two appends", ((Op("append", 1, 64),), (Op("append", 1, 64),)), is_fine=False),
    History("a read and a cut", ((Op("read", 1, 4),), (Op("truncate", 11),)), is_fine=False),
    History("an append and a vote", ((Op("append", 1, 64),), (Op("vote", 2),)), is_fine=False),
)
SMALLEST_THREADED = tuple(
    map(
        _on_threads,
        (
            *SMALLEST,
            History(
                "an append and abandoning",
                ((Op("append", 1, 64),), (Op("abandon"),)),
                is_fine=False,
            ),
        ),
    )
)


def drawn_history(seed: int, face: str = "async") -> History:
    """A long history by lot."""
    rng = random.Random(seed)
    calls = [
        lambda: Op("append", rng.randint(1, 4), rng.choice((9, 64, 700, 3000, 9000))),
        lambda: Op("append", 1, 64),
        lambda: Op("callback", rng.randint(1, 3)),
        lambda: Op("receive", rng.randint(0, 5), rng.choice((9, 700, 3000))),
        lambda: Op("truncate", rng.randint(1, 9)),
        lambda: Op("purge", rng.randint(1, 5)),
        lambda: Op("vote", rng.randint(1, 99)),
        lambda: Op("flush"),
        lambda: Op("read", start := rng.randint(0, 12), start + rng.randint(1, 20)),
        lambda: Op("limited", rng.randint(0, 12), rng.choice((0, 100, 5000, 1 << 20))),
        lambda: Op("stream", rng.randint(0, 12)),
    ]
    tasks = tuple(
        tuple(rng.choice(calls)() for _ in range(rng.randint(2, 8)))
        for _ in range(rng.randint(2, 5))
    )
    history = History(
        f"seed {seed}",
        tasks,
        (rng.choice((100, 700, 2000)),) * 12,
        policy=rng.choice(("immediate", "immediate", "immediate_async", "interval_5")),
        cache_bytes=rng.choice((0, 3000, 1 << 20)),
        max_unsynced_bytes=rng.choice((1, 5000, 64 << 20)),
        cancelled=tuple(n for n in range(len(tasks)) if rng.random() < 0.2),
        failing_sync=rng.randint(1, 12) if rng.random() < 0.1 else 0,
    )
    if face == "async":
        return history
    if rng.random() < 0.1:
        tasks = (*tasks, (Op("read", 1, 4), Op(rng.choice(("abandon", "close")))))
    return _on_threads(replace(history, tasks=tasks, cancelled=()))
