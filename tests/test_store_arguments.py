"""Every argument of every public call is judged before anything is touched.

A table: what each parameter does not take. The loops go over every public method of both faces
and every parameter that it has, so that a new one without a row fails here.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import enum
import inspect
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import Entry, LogId, LogState, LogSync, RaftLogReader, RaftLogStorage, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft.blocking import BlockingRaftLogReader, BlockingRaftLogStorage
from hqlwal_raft.testing import MemoryLogReader, MemoryLogStorage
from tests._support import Gate, HookedEnvironment, entries, on_both_backends, segments

HUGE = 10**5000
NO_TRUTH: list[Any] = [0, 1, "yes", "no", "", 1.0, [], object()]
#: what is no whole number, or none of those that a u64 holds
NO_NUMBER: list[Any] = [
    *(1.0, 1.5, math.nan, math.inf, True, False, None, "1", "", b"1", [], (1,), {}, 1j, object()),
    *(-1, -(1 << 63), -HUGE, 1 << 65, HUGE, range(1, 3), slice(1, 2), LogId, Entry(1, 1), print),
]
NO_U64: list[Any] = [*NO_NUMBER, 1 << 64]
NO_LOG_ID: list[Any] = [
    *(1, 1.5, True, "1", b"1", (1, 2), [1, 2], {}, Entry(1, 1), Vote(1), LogId, object()),
    *(LogId(1, number) for number in NO_U64),
    *(LogId(number, 1) for number in NO_U64),
    *(LogId(1, 1, number) for number in NO_U64),
]
NO_NODE_ID: list[Any] = [each for each in NO_U64 if each is not None and not isinstance(each, str)]
NO_VOTE: list[Any] = [
    *(None, 1, "1", (1, 2), {}, LogId(1, 1), Entry(1, 1), Vote, object()),
    *(Vote(number) for number in NO_U64),
    *(Vote(1, number) for number in [*NO_NODE_ID, "x" * 1025, "é" * 513, "\udcff"]),
    *(Vote(1, 1, truth) for truth in NO_TRUTH),
]


class Giving:
    """An iterable that is no list."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        yield from self._values


class Raising:
    """An iterable that raises in the middle."""

    def __iter__(self) -> Iterator[Entry]:
        yield Entry(1, 4)
        raise ZeroDivisionError


NO_PAYLOAD: list[Any] = ["x", None, 3, 1.5, [1], (1, 2), {}, object(), Entry]
NO_ENTRY: list[Any] = [
    *(None, 3, "x", b"x", (1, 4, b"", 0), [1, 4], {}, LogId(1, 4), Vote(1), Entry, object()),
    *(Entry(number, 4) for number in NO_U64),
    *(Entry(1, number) for number in NO_U64),
    *(Entry(1, 4, b"", number) for number in NO_U64),
    *(Entry(1, 4, payload) for payload in NO_PAYLOAD),
]
NO_ENTRIES: list[Any] = [
    *(None, 3, 1.5, True, object(), "xy", b"xy", Entry(1, 4), Entry, {1: Entry(1, 4)}, Giving(3)),
    *([each] for each in NO_ENTRY),
    *([Entry(1, 4), each] for each in NO_ENTRY),
    *([Entry(1, 4), each, Entry(1, 6)] for each in NO_ENTRY[:11]),
    *(Giving(Entry(1, 4), each) for each in NO_ENTRY[:11]),
]

#: by the name of the parameter: what it does not take
WRONG: dict[str, list[Any]] = {
    "start": NO_NUMBER,
    "stop": [each for each in NO_NUMBER if each is not None],
    "index": NO_U64,
    "max_bytes": NO_U64,
    "log_id": [None, *NO_LOG_ID],
    "log_id or None": NO_LOG_ID,
    "vote": NO_VOTE,
    "first": [
        each for each in [*NO_LOG_ID, *NO_U64] if (each is not None and each != 1) or each is True
    ],
    "entries": NO_ENTRIES,
    "callback": [3, "x", [], {}, True, 1.5, Entry(1, 1)],
    "wait": [*NO_TRUTH, None],
    "durable": [*NO_TRUTH, None],
    "data": [None, 3, 1.5, True, "x", [1], (1, 2), object(), b"x" * 2049, bytearray(3000)],
    "state": [3, 1.5, True, "x", [1], (1, 2), object(), b"x" * 2049, memoryview(bytes(9000))],
}
WRONG["last"] = WRONG["first"]
WRONG["prev_log_id"] = WRONG["log_id or None"]
#: methods whose log id may be None
TAKES_NONE = {"truncate_after", "save_committed"}
#: of the others: something that is right
RIGHT: dict[str, Any] = {
    "start": 0,
    "index": 1,
    "log_id": LogId(1, 2),
    "prev_log_id": LogId(1, 3),
    "vote": Vote(1, 1, committed=True),
    "entries": [Entry(1, 4)],
    "data": b"",
}
READERS = (RaftLogReader, BlockingRaftLogReader, MemoryLogReader)
STORES = (RaftLogStorage, BlockingRaftLogStorage, MemoryLogStorage)


def cases_of(*kinds: type) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """The method, the parameter, the wrong value, and all the arguments."""
    seen = set()
    for kind in kinds:
        for method, function in inspect.getmembers(kind, callable):
            if method.startswith(("_", "open")):
                continue
            parameters = inspect.signature(function).parameters
            for name in parameters:
                if name == "self" or (method, name) in seen:
                    continue
                seen.add((method, name))
                row = "log_id or None" if name == "log_id" and method in TAKES_NONE else name
                right = {
                    other: RIGHT[other]
                    for other, parameter in parameters.items()
                    if other not in ("self", name) and parameter.default is parameter.empty
                }
                for value in WRONG[row]:
                    yield method, name, value, {**right, name: value}


class Noting:
    """Notes every call on files and names."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def __call__(self, call: str, path: str) -> None:
        self.made.append((call, path))


def check_refusal(error: BaseException, method: str, name: str, value: Any) -> None:
    """It says which argument it is, and what is wanted."""
    where = (method, name, type(value), error)
    assert isinstance(error, (TypeError, ValueError)), where
    text = str(error)
    assert text.startswith(name), where
    assert "give" in text or "take" in text, where
    assert len(text) < 300, where


async def made(call: Callable[[], Any]) -> None:
    """Calls, and awaits or walks through what comes."""
    result = call()
    if inspect.isawaitable(result):
        await result
    elif hasattr(result, "__aiter__"):
        async with contextlib.aclosing(result):
            async for _ in result:
                pass
    elif inspect.isgenerator(result):
        list(result)


async def refuse_all(
    side: Any, held: Callable[[], Any], cases: list[Any], noting: Noting | None = None
) -> int:
    before = await held()
    count = 0
    if noting is not None:
        del noting.made[:]
    for method, name, value, arguments in cases:
        if not hasattr(side, method) or (name == "wait" and isinstance(side, RaftLogStorage)):
            continue
        if name == "wait" and isinstance(side, MemoryLogStorage):
            continue
        count += 1
        try:
            await made(lambda a=arguments, m=method: getattr(side, m)(**a))  # type: ignore[misc]
        except Exception as error:
            check_refusal(error, method, name, value)
        else:
            raise AssertionError((method, name, type(value), str(value)[:99]))
    if noting is not None:
        assert noting.made == [], "nothing is asked of the disk"
    assert await held() == before
    return count


def held_by(store: Any) -> Callable[[], Any]:
    async def held() -> list[Any]:
        found = [
            store.get_log_state(),
            store.try_get_log_entries(0),
            store.read_vote(),
            store.read_committed(),
        ]
        return [await each if inspect.isawaitable(each) else each for each in found]

    return held


def test_a_range_has_ends_that_lie_one_behind_the_highest_index() -> None:
    assert (1 << 64) not in WRONG["start"]
    assert (1 << 64) in WRONG["index"]


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "interval_1000"])
async def test_no_method_takes_a_wrong_argument(tmp_path: Path, policy: str) -> None:
    noting = Noting()
    environment = HookedEnvironment(noting)
    async with RaftLogStorage.open(tmp_path, sync=policy, environment=environment) as store:
        await store.append(entries(1, 4))
        await store.save_vote(Vote(1, 1, committed=True))
        await store.save_committed(LogId(1, 2))
        await store.flush()
        while not store._core.log.prepared:
            await anyio.lowlevel.checkpoint()
        cases = list(cases_of(*STORES))
        assert await refuse_all(store, held_by(store), cases, noting) > 1300
        reader = await store.get_log_reader()
        assert await refuse_all(reader, held_by(store), list(cases_of(*READERS)), noting) > 300
        await store.append(entries(4, 6))
        assert await store.try_get_log_entries(0) == entries(1, 6)
    async with RaftLogStorage.open(tmp_path) as store:
        assert await store.try_get_log_entries(0) == entries(1, 6)


async def test_no_method_of_the_blocking_store_takes_a_wrong_argument(tmp_path: Path) -> None:
    with BlockingRaftLogStorage.open(tmp_path) as store:
        store.append(entries(1, 4))
        store.save_vote(Vote(1, 1, committed=True))
        assert await refuse_all(store, held_by(store), list(cases_of(*STORES))) > 1300
        reader = store.get_log_reader()
        assert await refuse_all(reader, held_by(store), list(cases_of(*READERS))) > 300
        store.append(entries(4, 6))
        assert store.try_get_log_entries(0) == entries(1, 6)


@on_both_backends
async def test_no_method_of_the_memory_model_takes_a_wrong_argument() -> None:
    async with MemoryLogStorage.open() as store:
        await store.append(entries(1, 4))
        assert await refuse_all(store, held_by(store), list(cases_of(*STORES))) > 1300


@on_both_backends
async def test_an_iterable_that_raises_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path) as store, MemoryLogStorage.open() as model:
        for side in (store, model):
            await side.append(entries(1, 4))
            with pytest.raises(ZeroDivisionError):
                await side.append(Raising())
            with pytest.raises(ZeroDivisionError):
                await side.append_after(LogId(1, 3), Raising())
            assert await side.try_get_log_entries(0) == entries(1, 4)
    with BlockingRaftLogStorage.open(tmp_path) as blocking:
        with pytest.raises(ZeroDivisionError):
            blocking.append(Raising())
        with pytest.raises(ZeroDivisionError):
            blocking.append_after(LogId(1, 3), Raising())
        assert blocking.try_get_log_entries(0) == entries(1, 4)


def test_an_iterable_that_appends_is_appended_behind_what_it_appended(tmp_path: Path) -> None:
    with BlockingRaftLogStorage.open(tmp_path) as store:

        def appending() -> Iterator[Entry]:
            store.append(entries(1, 3))
            yield from entries(3, 5)

        store.append(appending())
        assert store.try_get_log_entries(0) == entries(1, 5)

        def stealing() -> Iterator[Entry]:
            yield from entries(5, 7)
            store.append(entries(5, 6))

        with pytest.raises(ValueError, match="entry 5 cannot follow entry 5"):
            store.append(stealing())
        assert store.try_get_log_entries(0) == entries(1, 6)


# --- what is taken -------------------------------------------------------------------------


class Term(enum.IntEnum):
    FIRST = 1


class OwnEntry(Entry):
    """A subclass."""


class OwnBytes(bytes):
    """A subclass."""


class OwnList(list[Entry]):
    """A subclass."""


PAYLOADS: dict[str, tuple[Callable[[], Any], bytes]] = {
    "bytes": (lambda: b"abcd", b"abcd"),
    "a subclass of bytes": (lambda: OwnBytes(b"abcd"), b"abcd"),
    "bytearray": (lambda: bytearray(b"abcd"), b"abcd"),
    "memoryview": (lambda: memoryview(b"abcd"), b"abcd"),
    "every second byte": (lambda: memoryview(b"aXbXcXdX")[::2], b"abcd"),
    "backwards": (lambda: memoryview(b"dcba")[::-1], b"abcd"),
    "two dimensions": (lambda: memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
    "no dimension": (lambda: memoryview(ctypes.c_uint8(7)), b"\x07"),
    "characters": (lambda: memoryview(b"abcd").cast("c"), b"abcd"),
    "doubles": (lambda: array.array("d", [0.0]), bytes(8)),
    "shorts": (lambda: memoryview(array.array("H", [1, 2])), array.array("H", [1, 2]).tobytes()),
    "a structure": (lambda: (ctypes.c_uint16 * 2)(1, 2), array.array("H", [1, 2]).tobytes()),
    "a pickle buffer": (lambda: pickle.PickleBuffer(b"abcd"), b"abcd"),
    "nothing": (bytearray, b""),
    "an empty view": (lambda: memoryview(b"abcd")[2:2], b""),
}


@on_both_backends
@pytest.mark.parametrize("name", PAYLOADS)
async def test_whatever_has_bytes_is_a_payload_and_bytes_come_out(
    tmp_path: Path, name: str
) -> None:
    make, want = PAYLOADS[name]
    batch = [Entry(1, 2, make()), OwnEntry(Term.FIRST, 3, make(), Term.FIRST)]
    got = [Entry(1, 2, want), Entry(1, 3, want, 1)]

    def check(found: list[Entry]) -> None:
        assert found == got
        for entry in found:
            assert type(entry) is Entry
            assert [type(part) for part in entry] == [int, int, bytes, int]

    async with RaftLogStorage.open(tmp_path / "a") as store, MemoryLogStorage.open() as model:
        for side in (store, model):
            await side.append(OwnList(batch))
            check(await side.try_get_log_entries(0))
    async with RaftLogStorage.open(tmp_path / "a") as store:
        check(await store.try_get_log_entries(0))
    with BlockingRaftLogStorage.open(tmp_path / "b") as blocking:
        blocking.append(tuple(batch))
        check(blocking.try_get_log_entries(0))


def test_a_view_that_was_released_is_refused(tmp_path: Path) -> None:
    view = memoryview(b"abcd")
    view.release()
    with BlockingRaftLogStorage.open(tmp_path) as store:
        with pytest.raises(ValueError, match=r"entries\[1\]\.payload cannot be read"):
            store.append([Entry(1, 1), Entry(1, 2, view)])  # type: ignore[arg-type]
        assert store.get_log_state() == LogState(None, None)


@on_both_backends
async def test_a_buffer_or_a_list_may_be_changed_while_its_append_waits(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        RaftLogStorage.open(
            tmp_path, max_unsynced_bytes=1, environment=HookedEnvironment(gate)
        ) as store,
        anyio.create_task_group() as tasks,
    ):
        gate.shut()
        buffers = [bytearray(b"%d" % index) for index in range(1, 9)]
        batches: list[Any] = [[Entry(1, n, buffer)] for n, buffer in enumerate(buffers, 1)]  # type: ignore[arg-type]
        for batch in batches:
            tasks.start_soon(store.append, batch)
            await anyio.wait_all_tasks_blocked()
        assert store.statistics().queue_depth >= 7  # all but the first one at least
        for buffer, batch in zip(buffers, batches, strict=True):
            buffer[:] = b"changed"
            batch.clear()
        gate.open()
    async with RaftLogStorage.open(tmp_path) as store:
        assert [entry.payload for entry in await store.try_get_log_entries(0)] == [
            b"%d" % index for index in range(1, 9)
        ]


# --- opening -------------------------------------------------------------------------------


class BadPath(os.PathLike[str]):
    def __fspath__(self) -> str:
        raise ZeroDivisionError


NO_SIZE: list[Any] = [*NO_NUMBER, 1 << 70]
OPTIONS: dict[str, list[Any]] = {
    "sync": [
        *(None, 5, 1.5, True, b"immediate", [], "", "never", "Immediate", "interval", "interval_"),
        *("interval_0", "interval_-1", "interval_1.5", "interval_1e3", "interval_٣", "interval_ 5"),
        *("interval_99999999999999", "interval_" + "9" * 5000, "immediate ", "interval_86400001"),
    ],
    "segment_size": [*NO_SIZE, 0, 8191, 1 << 32],
    "max_entry_size": [*NO_SIZE, 1 << 31],
    "max_unsynced_bytes": [*NO_SIZE, 0],
    "cache_bytes": NO_SIZE,
    "auto_heal": [None, *NO_TRUTH],
    "check_integrity": NO_TRUTH,
    "check_raft": [None, *NO_TRUTH],
    "fill_segments": [None, *NO_TRUTH],
    "stall_seconds": ["1", b"1", True, 0, -1, -1.0, math.nan, math.inf, HUGE, [], 1j, object()],
    "on_stall": [3, "x", [], True, 1.5, {}],
    "environment": [3, "x", object(), Environment],
}


def test_every_option_has_a_row() -> None:
    for kind in (RaftLogStorage, BlockingRaftLogStorage):
        options = set(inspect.signature(kind.open).parameters) - {"path"}
        assert options == OPTIONS.keys()


@on_both_backends
@pytest.mark.parametrize("option", OPTIONS)
async def test_no_option_takes_what_makes_no_sense(tmp_path: Path, option: str) -> None:
    for value in OPTIONS[option]:
        for opens in (blocking_open, async_open):
            with pytest.raises((TypeError, ValueError)) as caught:
                await opens(tmp_path / "log", **{option: value})
            text = str(caught.value)
            assert option in text, (value, text)
            assert "give" in text or "at least" in text, (value, text)
            assert len(text) < 300
    assert list(tmp_path.iterdir()) == []


async def async_open(path: Any, **options: Any) -> None:
    async with RaftLogStorage.open(path, **options) as store:
        await store.append(entries(1, 2))


async def blocking_open(path: Any, **options: Any) -> None:
    with BlockingRaftLogStorage.open(path, **options) as store:
        store.append(entries(1, 2))


@on_both_backends
async def test_no_path_that_is_none_is_taken(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path: Any
    for path in (None, 3, 1.5, True, [], object(), Path, "", b"", "a\0b", b"a\0b"):
        for opens in (blocking_open, async_open):
            with pytest.raises((TypeError, ValueError), match=r"^path ") as caught:
                await opens(path)
            assert "give" in str(caught.value) or "null" in str(caught.value)
    for opens in (blocking_open, async_open):
        with pytest.raises(ZeroDivisionError):
            await opens(BadPath())
    assert list(tmp_path.iterdir()) == []


@on_both_backends
async def test_a_path_may_be_text_bytes_or_a_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    class Own(os.PathLike[bytes]):
        def __fspath__(self) -> bytes:
            return b"own"

    path: Any
    for path, name in (
        ("a", "a"),
        (b"b", "b"),
        (Path("c"), "c"),
        (Own(), "own"),
        (b"\xff", "\udcff"),
    ):
        await async_open(path)
        assert segments(tmp_path / name)


@pytest.mark.parametrize("milliseconds", [0, -1, 86_400_001, HUGE], ids=["0", "-1", "day", "huge"])
def test_an_interval_is_between_a_millisecond_and_a_day(milliseconds: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        LogSync.interval(milliseconds)


@pytest.mark.parametrize("value", [1.0, "1", None, True, [], 1.5])
def test_an_interval_is_a_whole_number_of_milliseconds(value: Any) -> None:
    with pytest.raises(TypeError, match="interval"):
        LogSync.interval(value)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("bogus", -1.0), ("immediate", 1.0), ("interval_5", 0.0), ("interval_0", 0.0), ("", 0.0)],
)
def test_a_policy_that_is_none_cannot_be_made(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="is no sync policy"):
        LogSync(name, seconds)


def test_every_policy_that_can_be_named_is_itself() -> None:
    for milliseconds in (1, 3, 10, 33, 100, 333, 1000, 4999, 86_400_000):
        policy = LogSync.interval(milliseconds)
        assert LogSync.parse(str(policy)) == policy == LogSync.parse(policy)
