"""The cases of callbacks: when, how often, in which order and where they are called.

It must not know any storage.
"""

from __future__ import annotations

import functools
import threading

import anyio

from ._case import Calls, Trial, case, equal, holds, ignore

__all__: list[str] = []


@case
async def a_callback_is_called_once_with_none(trial: Trial) -> None:
    """The callback is called exactly once, with None when the entries are durable."""
    entries = trial.entries(1, 6)
    async with trial.open() as storage:
        called = Calls()
        await storage.append(entries, called)
        equal(await called.wait_for(1), [None], "the calls")
        await storage.append(trial.entries(6, 8))
    equal(called.seen, [None], "the calls, once the storage is closed")


@case
async def callbacks_come_in_the_order_of_the_appends(trial: Trial) -> None:
    """Callbacks are called in the order of their appends, each once."""
    order: list[int] = []
    done = anyio.Event()
    count = 20

    def remember(number: int, _error: BaseException | None) -> None:
        order.append(number)
        if number == count - 1:
            done.set()

    async with trial.open() as storage:
        for number in range(count):
            callback = functools.partial(remember, number)
            await storage.append([trial.entry(number + 1)], callback)
        await done.wait()
        equal(order, list(range(count)), "the order of the callbacks")
    equal(order, list(range(count)), "the callbacks, once the storage is closed")


@case
async def callbacks_are_called_on_the_event_loop(trial: Trial) -> None:
    """A callback runs in the event loop's thread, so that it needs no lock."""
    async with trial.open() as storage:
        called = Calls()
        await storage.append(trial.entries(1, 4), called)
        await called.wait_for(1)
        equal(called.threads, {threading.get_ident()}, "the callback's thread")


@case
async def an_append_with_a_callback_is_readable_when_it_returns(trial: Trial) -> None:
    """An append with a callback returns once every reader can read the entries."""
    entries = trial.entries(1, 11)
    async with trial.open() as storage:
        reader = await storage.get_log_reader()
        for number, entry in enumerate(entries, 1):
            await storage.append([entry], ignore)
            await holds(reader, entries[:number], f"a reader after the append of {number}")
            await holds(storage, entries[:number], f"the storage after the append of {number}")


@case
async def every_callback_has_come_when_the_storage_is_closed(trial: Trial) -> None:
    """Closing makes durable what was accepted and calls the callbacks that are due."""
    seen: list[BaseException | None] = []
    entries = trial.entries(1, 9)
    async with trial.open() as storage:
        for entry in entries:
            await storage.append([entry], seen.append)
    equal(seen, [None] * len(entries), "the callbacks at the end of the close")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def flush_makes_everything_durable(trial: Trial) -> None:
    """flush() returns, of an unused storage as well, and what was accepted stays."""
    entries = trial.entries(1, 6)
    async with trial.open() as storage:
        await storage.flush()
        await storage.append(entries, ignore)
        await storage.flush()
        await storage.wait_durable(entries[-1].log_id)
        await holds(storage, entries, "after the flush")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")
