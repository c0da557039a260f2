"""The cases of following a log, batch by batch.

It must not know any storage.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio

from hqlwal_raft._types import Entry, LogId
from hqlwal_raft.errors import LogRangeError, LogTruncatedError, WalClosedError

from ._case import Trial, all_started, case, closing, equal, filled, ignore, refused

__all__: list[str] = []


async def _take(stream: AsyncGenerator[list[Entry]], count: int) -> list[Entry]:
    """As many entries, or a few more, of the batches that come."""
    got: list[Entry] = []
    while len(got) < count:
        batch = await anext(stream)
        equal(bool(batch), True, "whether there is something in a batch")
        got += batch
    return got


@case
async def who_follows_gets_what_there_is_and_then_what_comes(trial: Trial) -> None:
    """Every entry from the start on, once and in order, by whatever call it came."""
    async with filled(trial, 1, 6) as storage:
        reader = await storage.get_log_reader()
        for side in (storage, reader):
            for start, durable in ((0, True), (3, True), (3, False), (6, True), (8, False)):
                await storage.truncate(LogId(1, 6))
                first = max(start, 1)
                async with closing(side.follow(start, durable=durable)) as stream:
                    if first < 6:
                        got = await _take(stream, 6 - first)
                        equal(got, trial.entries(first, 6), f"what there is from {start} on")
                    got = []

                    async def take(stream: AsyncGenerator[list[Entry]], count: int) -> list[Entry]:
                        return await _take(stream, count)

                    count = 11 - max(first, 6)
                    results = await all_started(
                        [
                            lambda s=stream, c=count: take(s, c),  # type: ignore[misc]
                            lambda: storage.append(trial.entries(6, 8)),
                            lambda: storage.append_after(LogId(1, 7), trial.entries(8, 10)),
                            lambda: storage.append([trial.entry(10)], ignore),
                        ]
                    )
                    want = trial.entries(max(first, 6), 11)
                    equal(results[0], want, f"what comes from {start} on")


@case
async def who_follows_is_woken(trial: Trial) -> None:
    """One who waits gets what is appended then, batch after batch."""
    async with trial.open() as storage:
        got: list[Entry] = []
        changed = [anyio.Event()]

        async def run() -> None:
            async with closing(storage.follow(1)) as stream:
                async for batch in stream:
                    got.extend(batch)
                    changed[0].set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for index in range(1, 20, 2):
                await storage.append(trial.entries(index, index + 2))
                while len(got) < index + 1:
                    changed[0] = anyio.Event()
                    await changed[0].wait()
                equal(got, trial.entries(1, index + 2), "what came")
            tasks.cancel_scope.cancel()


@case
async def who_follows_is_told_of_a_purge_that_overtakes(trial: Trial) -> None:
    """What was given may be purged; where what comes next was, that is LogRangeError."""
    async with filled(trial, 1, 11) as storage:
        async with closing(storage.follow(1)) as stream:
            await _take(stream, 10)
            await storage.purge(LogId(1, 10))
            await storage.append(trial.entries(11, 13))
            equal(await _take(stream, 2), trial.entries(11, 13), "behind a purge of what was given")
            await storage.purge(LogId(1, 20))
            with refused(LogRangeError, "the next batch"):
                await anext(stream)
        async with closing(storage.follow(20)) as stream:
            with refused(LogRangeError, "following from what was purged"):
                await anext(stream)


@case
async def who_follows_is_told_of_a_truncation_of_what_was_given(trial: Trial) -> None:
    """Also where other entries took the place; what was not given yet is no concern."""
    for number, replaces in enumerate((False, True)):
        async with trial.open(str(number)) as storage:
            await storage.append(trial.entries(1, 9))
            async with closing(storage.follow(1)) as stream, closing(storage.follow(9)) as later:
                await _take(stream, 8)
                if replaces:
                    await storage.append_after(LogId(1, 6), trial.entries(7, 12, term=2))
                else:
                    await storage.truncate(LogId(1, 8))
                with refused(LogTruncatedError, "the next batch"):
                    await anext(stream)
                if replaces:
                    want = trial.entries(9, 12, term=2)
                    equal(await _take(later, 3), want, "what one got who had got nothing")


@case
async def who_follows_is_told_of_the_close(trial: Trial) -> None:
    """It never ends but with an error: closing wakes whoever waits."""
    async with trial.open() as storage:
        await storage.append(trial.entries(1, 4))
        errors: list[Exception] = []

        async def run() -> None:
            async with closing(storage.follow(1)) as stream:
                try:
                    async for _ in stream:
                        waits.set()
                except Exception as error:
                    errors.append(error)

        waits = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await waits.wait()
            await storage.aclose()
        equal([type(error) for error in errors], [WalClosedError], "what it was ended with")
