"""The cases of appending: what a log takes, what it refuses.

It must not know any storage.
"""

from __future__ import annotations

import array
from collections.abc import Iterator

from hqlwal_raft._types import Entry, LogId, LogState
from hqlwal_raft.errors import LogGapError

from ._case import Calls, Trial, case, equal, holds, ignore, refused, require

__all__: list[str] = []

_U64_MAX = (1 << 64) - 1


@case
async def an_unused_storage_is_empty(trial: Trial) -> None:
    """A storage that was never written to holds no entry, no vote and no log id."""
    for moment in ("at the first open", "after a reopen"):
        async with trial.open() as storage:
            equal(await storage.get_log_state(), LogState(None, None), f"log state {moment}")
            equal(await storage.try_get_log_entries(0), [], f"entries {moment}")
            equal(await storage.get_key_log_ids(), [], f"key log ids {moment}")
            equal(await storage.read_vote(), None, f"vote {moment}")
            equal(await storage.read_committed(), None, f"committed {moment}")


@case
async def an_empty_log_takes_index_0(trial: Trial) -> None:
    """The first entry ever may have the index 0."""
    entries = trial.entries(0, 5, term=0)
    async with trial.open() as storage:
        await storage.append(entries)
        await holds(storage, entries, "after the append")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def an_empty_log_takes_any_first_index(trial: Trial) -> None:
    """The first entry ever may have any index."""
    entries = trial.entries(1_000_000_007, 1_000_000_012)
    async with trial.open() as storage:
        await storage.append(entries)
        await holds(storage, entries, "after the append")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def an_append_continues_the_log(trial: Trial) -> None:
    """The next append begins at the last index + 1, also after a reopen."""
    entries = trial.entries(1, 13)
    async with trial.open() as storage:
        for start in range(0, 6, 2):
            await storage.append(entries[start : start + 2])
            await holds(storage, entries[: start + 2], f"after the append of {start + 1}")
    async with trial.open() as storage:
        await storage.append(entries[6:])
        await holds(storage, entries, "after an append to the reopened log")


@case
async def entries_come_back_as_they_were_appended(trial: Trial) -> None:
    """Term, index, node id and payload are kept, in an Entry with bytes."""
    entries = [trial.entry(7 + n, term=1 + n // 2, node_id=n // 3) for n in range(8)]
    async with trial.open() as storage:
        await storage.append(entries)
    async with trial.open() as storage:
        got = await storage.try_get_log_entries(0)
        equal(got, entries, "the entries")
        for entry in got:
            require(isinstance(entry, Entry), f"{type(entry)} came back instead of an Entry")
            require(type(entry.payload) is bytes, f"the payload is a {type(entry.payload)}")


@case
async def a_gap_is_refused_and_nothing_is_written(trial: Trial) -> None:
    """An append that leaves a gap raises LogGapError and changes nothing."""
    entries = trial.entries(1, 6)
    async with trial.open() as storage:
        await storage.append(entries)
        for first in (7, 8, 1_000):
            with refused(LogGapError, f"an append of {first} behind 5"):
                await storage.append(trial.entries(first, first + 2))
            await holds(storage, entries, f"after the refused append of {first}")
        more = trial.entries(6, 8)
        await storage.append(more)
        await holds(storage, [*entries, *more], "after the next append")
    async with trial.open() as storage:
        await holds(storage, [*entries, *more], "after a reopen")


@case
async def an_index_that_is_taken_is_refused(trial: Trial) -> None:
    """Appending an index the log already holds raises LogGapError: it is truncated first."""
    entries = trial.entries(3, 8)
    async with trial.open() as storage:
        await storage.append(entries)
        for first in (0, 2, 3, 5, 7):
            with refused(LogGapError, f"an append of {first} to a log of 3 to 7"):
                await storage.append(trial.entries(first, first + 2, term=2))
        await holds(storage, entries, "after the refused appends")


@case
async def a_batch_with_a_gap_inside_is_refused_whole(trial: Trial) -> None:
    """A batch whose indexes are not consecutive raises LogGapError, nothing is written."""
    entries = trial.entries(1, 4)
    async with trial.open() as storage:
        for empty in (True, False):
            if not empty:
                await storage.append(entries)
            for indexes in ([4, 5, 7], [4, 4], [4, 5, 4], [4, 3]):
                with refused(LogGapError, f"a batch with the indexes {indexes}"):
                    await storage.append([trial.entry(index) for index in indexes])
                await holds(storage, [] if empty else entries, f"after the batch {indexes}")


@case
async def an_append_of_nothing_returns_at_once(trial: Trial) -> None:
    """An empty batch is legal, changes nothing, and its callback is called with None."""
    entries = trial.entries(5, 8)
    async with trial.open() as storage:
        for before in ([], entries):
            if before:
                await storage.append(before)
            await storage.append([])
            await storage.append(iter(()))
            called = Calls()
            await storage.append([], called)
            equal(await called.wait_for(1), [None], "the calls of the empty batch's callback")
            await holds(storage, before, "after the empty appends")


@case
async def any_iterable_of_entries_is_taken(trial: Trial) -> None:
    """A tuple, an iterator or a generator of entries is as good as a list."""
    entries = trial.entries(1, 10)
    async with trial.open() as storage:
        await storage.append(tuple(entries[:3]))
        await storage.append(iter(entries[3:6]))
        await storage.append(entry for entry in entries[6:])
        await holds(storage, entries, "after the appends")


@case
async def an_iterable_that_raises_writes_nothing(trial: Trial) -> None:
    """Where the iterable of entries raises, the error comes out and nothing is written."""

    def failing() -> Iterator[Entry]:
        yield from trial.entries(4, 6)
        raise LookupError

    entries = trial.entries(1, 4)
    async with trial.open() as storage:
        await storage.append(entries)
        with refused(LookupError, "an append from a failing generator"):
            await storage.append(failing())
        await holds(storage, entries, "after the failed append")
        await storage.append(trial.entries(4, 5))
        await holds(storage, trial.entries(1, 5), "after the next append")


@case
async def numbers_that_are_no_u64_are_refused(trial: Trial) -> None:
    """A term, index or node id outside [0, 2**64) raises ValueError, nothing is written."""
    async with trial.open() as storage:
        for number in (-1, 1 << 64):
            for entry in (Entry(number, 1), Entry(1, number), Entry(1, 1, b"", number)):
                with refused(ValueError, f"an append of {entry}"):
                    await storage.append([entry])
        good = trial.entry(1)
        with refused(ValueError, "a batch with a bad second entry"):
            await storage.append([good, Entry(1 << 64, 2)])
        await holds(storage, [], "after the refused appends")
        await storage.append([good])
        await holds(storage, [good], "after a good append")


@case
async def a_payload_that_is_not_bytes_like_is_refused(trial: Trial) -> None:
    """A payload without a buffer raises TypeError, nothing is written."""
    good = trial.entry(1)
    async with trial.open() as storage:
        for payload in ("text", 5, None, [1, 2]):
            with refused(TypeError, f"a payload of {payload!r}"):
                await storage.append([good, Entry(1, 2, payload)])  # type: ignore[arg-type]
            await holds(storage, [], f"after the refused payload {payload!r}")
        await storage.append([good])
        await holds(storage, [good], "after a good append")


@case
async def the_largest_numbers_are_kept(trial: Trial) -> None:
    """Every u64 is legal as term, node id and index; behind the largest index nothing fits."""
    entries = [
        trial.entry(_U64_MAX - 2, term=0, node_id=_U64_MAX),
        trial.entry(_U64_MAX - 1, term=1 << 63, node_id=1 << 32),
        trial.entry(_U64_MAX, term=_U64_MAX, node_id=_U64_MAX),
    ]
    async with trial.open() as storage:
        await storage.append(entries[:2])
        await storage.append(entries[2:])
        with refused(ValueError, "an append behind the largest index"):
            await storage.append([trial.entry(_U64_MAX + 1)])
        await holds(storage, entries, "after the appends")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")
        equal(await storage.try_get_log_entries(_U64_MAX), entries[2:], "the last entry")
        await storage.truncate_after(LogId(0, _U64_MAX))
        await holds(storage, entries, "after a truncation behind the largest index")
        await storage.truncate(LogId(0, _U64_MAX))
        await holds(storage, entries[:2], "after the truncation of the largest index")
        end = LogId(_U64_MAX, _U64_MAX, _U64_MAX)
        await storage.purge(end)
        await holds(storage, [], "after the purge of every index", purged=end)
        with refused(ValueError, "an append behind the largest frontier"):
            await storage.append([trial.entry(1)])
    async with trial.open() as storage:
        await holds(storage, [], "after the purge and a reopen", purged=end)


@case
async def empty_payloads_are_kept(trial: Trial) -> None:
    """An empty payload is an entry like any other."""
    entries = [Entry(1, 1), Entry(1, 2), trial.entry(3), Entry(2, 4), Entry(2, 5)]
    async with trial.open() as storage:
        await storage.append(entries[:1])
        await storage.append(entries[1:])
        await holds(storage, entries, "after the appends")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def big_payloads_are_kept(trial: Trial) -> None:
    """A payload of a megabyte is kept, between small ones and in one batch with them."""
    sizes = [1, 1 << 20, 0, 100_000, 7, (1 << 20) + 1]
    entries = [Entry(1, n, bytes([n]) * size) for n, size in enumerate(sizes, 1)]
    more = [Entry(1, n + len(sizes), bytes([n]) * size) for n, size in enumerate(sizes, 1)]
    async with trial.open() as storage:
        for entry in entries:
            await storage.append([entry])
        await storage.append(more)
        await holds(storage, entries + more, "after the appends")
    async with trial.open() as storage:
        await holds(storage, entries + more, "after a reopen")


@case
async def payloads_may_be_any_bytes(trial: Trial) -> None:
    """A payload is opaque: zeros, ones and what looks like a log are kept as they are."""
    plain = trial.entry(1).payload
    payloads = [b"\0", b"\0" * 100, b"\xff" * 100, bytes(range(256)), plain * 2, b"HQL_WAL\x02"]
    entries = [Entry(1, index, payload) for index, payload in enumerate(payloads, 1)]
    async with trial.open() as storage:
        await storage.append(entries)
        await holds(storage, entries, "after the append")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")


@case
async def bytes_like_payloads_come_back_as_bytes(trial: Trial) -> None:
    """Whatever has a buffer is taken, all its bytes in order, and comes back as bytes."""
    numbers = array.array("I", [1, 2, 3])
    given = [
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(b"a-b-c-d-e")[::2],
        memoryview(numbers),
        memoryview(bytes(range(12))).cast("B", (3, 4)),
        numbers,
    ]
    want = [b"bytearray", b"memoryview", b"abcde", numbers.tobytes(), bytes(range(12))]
    want.append(numbers.tobytes())
    async with trial.open() as storage:
        await storage.append(
            Entry(1, index, payload)  # type: ignore[arg-type]
            for index, payload in enumerate(given)
        )
        for moment in ("after the append", "again"):
            got = [entry.payload for entry in await storage.try_get_log_entries(0)]
            equal(got, want, f"the payloads {moment}")
            require(all(type(payload) is bytes for payload in got), "a payload is not bytes")


@case
async def a_buffer_changed_after_the_append_changes_nothing(trial: Trial) -> None:
    """The log keeps what the payload was during the call, not the caller's buffer."""
    buffer = bytearray(trial.entry(1).payload)
    want = Entry(1, 1, bytes(buffer))
    async with trial.open() as storage:
        await storage.append([Entry(1, 1, buffer)])  # type: ignore[arg-type]
        buffer[:] = b"?" * len(buffer)
        await holds(storage, [want], "after the buffer was changed")
    async with trial.open() as storage:
        await holds(storage, [want], "after a reopen")


@case
async def many_appends_in_a_row_are_kept(trial: Trial) -> None:
    """A hundred appends of single entries and batches are one log."""
    entries = trial.entries(1, 101)
    async with trial.open() as storage:
        index = 0
        while index < len(entries):
            step = 1 + index % 7
            await storage.append(entries[index : index + step], ignore)
            index += step
        await holds(storage, entries, "after the appends")
    async with trial.open() as storage:
        await holds(storage, entries, "after a reopen")
