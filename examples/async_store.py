"""The store by itself, in asyncio: append, a conflict, a purge after a snapshot, reopening.

Run it as ``python examples/async_store.py [DIRECTORY]``; it takes the part of a Raft node
that is a follower first and then hears from a new leader.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote


async def be_a_follower(directory: str) -> None:
    async with RaftLogStorage.open(directory) as store:
        # The leader of term 1 sends four entries. Each call is durable when it returns.
        await store.save_vote(Vote(term=1, node_id=1, committed=True))
        await store.append(
            [Entry(term=1, index=i, payload=f"x = {i}".encode()) for i in range(1, 5)]
        )
        await store.save_committed(LogId(term=1, index=2))

        # Many tasks may append and wait at once; one sync serves all that wait.
        async with asyncio.TaskGroup() as group:
            for i in range(5, 21):
                group.create_task(store.append([Entry(1, i, f"x = {i}".encode())]))
        statistics = store.statistics()
        print(f"{statistics.appended_entries} entries took {statistics.syncs} syncs")


async def follow_a_new_leader(directory: str) -> None:
    async with RaftLogStorage.open(directory) as store:
        state = await store.get_log_state()
        print(f"reopened: the log ends at {state.last_log_id}")
        assert state.last_log_id == LogId(term=1, index=20)

        # The leader of term 2 tries what it has before its own first entry. That is not here, and
        # the hint says what is.
        await store.save_vote(Vote(term=2, node_id=3, committed=True))
        outcome = await store.append_after(LogId(term=1, index=24), [Entry(2, 25, b"y = 25")])
        assert not outcome.matched
        assert outcome.hint == LogId(term=1, index=20)

        # Then from index 3 on: what is held already is skipped, what conflicts goes.
        sent = [Entry(1, 3, b"x = 3"), Entry(2, 4, b"y = 4"), Entry(2, 5, b"y = 5")]
        outcome = await store.append_after(LogId(term=1, index=2), sent)
        assert outcome.truncated_from == 4
        assert outcome.appended == 2
        for entry in await store.try_get_log_entries(3, 6):
            print(f"  {entry.index}: term {entry.term}, {entry.payload!r}")

        # A reader of its own, for the task that sends the log to other nodes, say. An entry
        # is readable by every reader before its append returns.
        reader = await store.get_log_reader()
        assert [e.index async for e in reader.entries_stream(1)] == [1, 2, 3, 4, 5]

        # A snapshot stands for everything up to index 4 now: the entries may go.
        await store.purge(LogId(term=2, index=4))
        state = await store.get_log_state()
        print(f"purged up to {state.last_purged_log_id}")


async def come_back(directory: str) -> None:
    async with RaftLogStorage.open(directory) as store:
        assert await store.read_vote() == Vote(term=2, node_id=3, committed=True)
        assert await store.try_get_log_entries(0) == [Entry(2, 5, b"y = 5")]
        print("reopened again: the vote and the last entry are as they were")


async def main(directory: str) -> None:
    await be_a_follower(directory)
    await follow_a_new_leader(directory)
    await come_back(directory)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(f"{folder}/log"))
