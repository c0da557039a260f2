"""Snapshots beside a log: written, purged by, found damaged, and taken over from a leader.

Run it as ``python examples/snapshots.py [DIRECTORY]``; the node's state is a counter of words.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator

from hqlwal_raft import Entry, LogId, RaftLogStorage
from hqlwal_raft.snapshots import SnapshotStore

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]


def encode(state: Counter[str]) -> list[bytes]:
    """The state in pieces, as a large one would be written."""
    return [json.dumps(item).encode() + b"\n" for item in sorted(state.items())]


def decode(data: bytes) -> Counter[str]:
    return Counter(dict(map(json.loads, data.splitlines())))


async def restore(log: RaftLogStorage, snapshots: SnapshotStore) -> tuple[Counter[str], LogId]:
    """The newest state: the snapshot's, and then the entries behind it."""
    state, applied = Counter[str](), LogId(0, 0)
    newest = await snapshots.latest()
    if newest is not None:
        async with snapshots.read(newest) as reader:
            state = decode(b"".join([block async for block in reader]))
        applied = newest.log_id
    purged = (await log.get_log_state()).last_purged_log_id
    if purged is not None and purged.index > applied.index:
        raise LookupError(f"the log begins behind {purged}, the snapshot ends at {applied}")
    async for entry in log.entries_stream(applied.index + 1):
        state[entry.payload.decode()] += 1
        applied = entry.log_id
    return state, applied


async def work(folder: str) -> None:
    async with (
        RaftLogStorage.open(f"{folder}/log") as log,
        SnapshotStore.open(f"{folder}/snapshots") as snapshots,
    ):
        await log.append([Entry(1, i, word.encode()) for i, word in enumerate(WORDS, 1)])
        state, applied = await restore(log, snapshots)
        async with snapshots.create(applied) as writer:
            for piece in encode(state):
                await writer.write(piece)
        await log.purge(applied)  # first the snapshot, then the cut
        await log.append([Entry(1, applied.index + 1, b"question")])
        print(f"a snapshot at {applied.index} stands for the first {applied.index} entries")


async def come_back(folder: str) -> None:
    async with (
        RaftLogStorage.open(f"{folder}/log") as log,
        SnapshotStore.open(f"{folder}/snapshots") as snapshots,
    ):
        state, applied = await restore(log, snapshots)
        assert state == Counter([*WORDS, "question"])
        print(f"restored up to entry {applied.index}: {state['be']} times 'be'")


async def received() -> AsyncIterator[bytes]:
    """A leader's snapshot, as it comes over the network."""
    for piece in encode(Counter(WORDS * 1000)):
        yield piece


async def take_over(folder: str) -> None:
    async with (
        RaftLogStorage.open(f"{folder}/log") as log,
        SnapshotStore.open(f"{folder}/snapshots") as snapshots,
    ):
        newest = snapshots.snapshots()[-1]
        with open(newest.path, "r+b") as file:  # noqa: ASYNC230 - somebody damages it
            file.seek(100)
            file.write(b"!")
        assert await snapshots.latest() is None
        print(f"found: {snapshots.findings[0].kind.value}")
        try:
            await restore(log, snapshots)
        except LookupError as error:
            print(f"so the leader is asked for a snapshot: {error}")
        log_id = LogId(2, 10_000)
        async with snapshots.create(log_id) as writer:
            async for piece in received():
                await writer.write(piece)
        await log.purge(log_id)  # beyond the end: the log follows the snapshot
        state, applied = await restore(log, snapshots)
        assert (state["be"], applied) == (2000, log_id)
        print(f"taken over: the state after entry {applied.index}")


async def main(folder: str) -> None:
    await work(folder)
    await come_back(folder)
    await take_over(folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            asyncio.run(main(made))
