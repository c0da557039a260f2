"""A model test: our store against the memory model, through any history hypothesis finds.

The log is tiny (segments of 8 KiB) and the entries range from empty to larger than a segment.
A kill is a copy of the directory, taken by the thread that is about to make a chosen call on
the file system, with all other calls held: the state that SIGKILL at that instant would leave.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hqlwal_raft import (
    Entry,
    LogGapError,
    LogId,
    LogRangeError,
    RaftLogStorage,
    RaftRuleError,
    Vote,
)
from hqlwal_raft.testing import MemoryDisk, MemoryLogStorage, PassingEnvironment
from hqlwal_raft.testing._case import all_started
from tests._mutants import KeepsThePurgedEntryItself

SEGMENT_SIZE = 8192
T = TypeVar("T")
CHANGING = {
    *("mkdir", "open", "posix_fallocate", "rename", "unlink", "fsync"),
    *("ftruncate", "pwrite", "pwritev", "store", "fdatasync"),
}

sizes = st.lists(st.sampled_from([0, 10, 700, 3000, 9000]), min_size=1, max_size=5)
policies = st.sampled_from(["immediate", "immediate_async", "interval_5", "interval_60000"])
caches = st.sampled_from([0, 5000, 1 << 20])
#: with a bound of one byte every append waits for the one before
bounds = st.sampled_from([1, 64 << 20])
votes = st.builds(
    Vote,
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["", "a", "node"])),
    st.booleans(),
)
#: a place in the log: 0 at its beginning, 10 at its end, beyond on both sides
places = st.integers(-1, 12)


class KillableEnvironment(PassingEnvironment):
    """The real system; copies its directory just before the n-th change from now."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._one_at_a_time = threading.RLock()
        self._countdown = 0
        self._copy_to = directory
        self._note: Callable[[], None] = lambda: None
        self.is_copied = False

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        if call not in CHANGING:
            return perform()
        with self._one_at_a_time:
            self._countdown -= 1
            if self._countdown == 0:
                self.copy_now()
            if call != "fdatasync":  # it changes nothing that a copy can see
                return perform()
        return perform()

    def arm(self, countdown: int, copy_to: Path, note: Callable[[], None]) -> None:
        """``note`` is called right before the copy is made."""
        with self._one_at_a_time:
            self._countdown = countdown
            self._copy_to = copy_to
            self._note = note
            self.is_copied = False

    def copy_now(self) -> None:
        with self._one_at_a_time:
            self._countdown = 0
            self._note()
            shutil.copytree(self._directory, self._copy_to)
            self.is_copied = True


class Machine(RuleBasedStateMachine):
    """Every rule does the same to the store and to the model."""

    readers = Bundle("readers")
    model: type[MemoryLogStorage] = MemoryLogStorage

    def __init__(self, parent: Path, backend: str) -> None:
        super().__init__()
        self._parent = parent
        self._count = 0
        self._stack = contextlib.ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(backend))
        self._opened = contextlib.ExitStack()
        self._disk = MemoryDisk()
        self._saved_committed: list[LogId | None] = [None]
        self._term = 1
        self._acknowledged = 0
        self._checks_raft = True

    def _new_directory(self) -> Path:
        self._count += 1
        return self._parent / f"{id(self)}-{self._count}"

    def _open(self, directory: Path, **options: Any) -> None:
        self._directory = directory
        self._options = options
        self._files = KillableEnvironment(directory)
        self._opened = contextlib.ExitStack()
        rules = self._checks_raft
        opening = RaftLogStorage.open(
            directory,
            segment_size=SEGMENT_SIZE,
            environment=self._files,
            check_raft=rules,
            **options,
        )
        self._store = self._enter(opening)
        self._model = self._enter(self.model.open(self._disk, check_raft=rules))
        self._callbacks: list[list[BaseException | None]] = []

    def _enter(self, manager: contextlib.AbstractAsyncContextManager[Any]) -> Any:
        return self._opened.enter_context(self._portal.wrap_async_context_manager(manager))

    def _close(self) -> None:
        self._opened.close()
        assert self._callbacks == [[None]] * len(self._callbacks)

    def teardown(self) -> None:
        try:
            self._opened.close()
        finally:
            self._stack.close()
            for path in self._parent.glob(f"{id(self)}-*"):
                shutil.rmtree(path)

    # --- tools -----------------------------------------------------------------------------

    def _both(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Makes the call on store and model; result or kind of error must agree."""
        return self._portal.call(self._compare, call)

    async def _compare(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        want, got = await _outcome(call, self._model), await _outcome(call, self._store)
        assert got == want
        return want

    def _index(self, place: int) -> int:
        entries = self._disk.entries
        if not entries:
            last = self._disk.last_log_id
            return max(0, place + (last.index - 3 if last else 0))
        first = entries[0].index
        return max(0, first + place * len(entries) // 10)

    def _log_id(self, place: int) -> LogId:
        """The log id of the entry there, if there is one."""
        index = self._index(place)
        held = [entry.log_id for entry in self._disk.entries if entry.index == index]
        return held[0] if held else LogId(self._term, index, self._term % 3)

    def _new(self, payload_sizes: list[int], start: int | None = None) -> list[Entry]:
        if start is None:
            last = self._disk.last_log_id
            start = 1 if last is None else last.index + 1
        return [
            Entry(
                self._term, index, (b"%d/%d " % (self._term, index) * size)[:size], self._term % 3
            )
            for index, size in enumerate(payload_sizes, start)
        ]

    # --- rules -----------------------------------------------------------------------------

    @initialize(
        policy=policies,
        cache=caches,
        bound=bounds,
        first=st.sampled_from([0, 1, 1000, 1 << 63]),
        checks_raft=st.booleans(),
    )
    def begin(self, policy: str, cache: int, bound: int, first: int, checks_raft: bool) -> None:
        self._checks_raft = checks_raft
        directory = self._new_directory()
        self._open(directory, sync=policy, cache_bytes=cache, max_unsynced_bytes=bound)
        batch = self._new([10], first)
        self._both(lambda side: side.append(batch))

    def is_short(self) -> bool:
        return len(self._disk.entries) < 60

    @precondition(is_short)
    @rule(payload_sizes=sizes, next_term=st.booleans())
    def append(self, payload_sizes: list[int], next_term: bool) -> None:
        self._term += next_term
        batch = self._new(payload_sizes)
        self._both(lambda side: side.append(batch))

    @precondition(is_short)
    @rule(payload_sizes=sizes)
    def append_with_a_callback(self, payload_sizes: list[int]) -> None:
        batch = self._new(payload_sizes)
        calls: list[BaseException | None] = []
        self._callbacks.append(calls)
        self._portal.call(self._model.append, batch)
        self._portal.call(self._store.append, batch, calls.append)

    @rule(place=places, payload_sizes=sizes)
    def append_anywhere(self, place: int, payload_sizes: list[int]) -> None:
        batch = self._new(payload_sizes, self._index(place))
        self._both(lambda side: side.append(batch))

    @precondition(is_short)
    @rule(
        batches=st.lists(sizes, min_size=2, max_size=8),
        cancelled=st.sets(st.integers(0, 7)),
        place=places,
        truncates=st.booleans(),
    )
    def write_at_once(
        self, batches: list[list[int]], cancelled: set[int], place: int, truncates: bool
    ) -> None:
        """Many tasks append, some are cancelled; a truncation may come in between."""
        payloads = [size for batch in batches for size in batch]
        entries = self._new(payloads)
        calls: list[Callable[[Any], Awaitable[Any]]] = []
        for batch in batches:
            some, entries = entries[: len(batch)], entries[len(batch) :]
            calls.append(functools.partial(_append, some))
        if truncates:
            cut = LogId(self._term, self._index(place))
            calls.append(lambda side: side.truncate(cut))
            calls.append(lambda side: side.save_vote(Vote(99)))

        async def run() -> None:
            want = [await _outcome(call, self._model) for call in calls]
            got = await all_started(
                [functools.partial(call, self._store) for call in calls],
                cancelled=[number for number in cancelled if number < len(batches)],
            )
            assert [_kind(one) for one in got] == want
            # behind whatever was cancelled while it waited for its turn
            await self._store.flush()

        self._portal.call(run)

    @rule(
        place=st.one_of(st.none(), places),
        payload_sizes=st.one_of(st.just([]), sizes),
        held=st.integers(0, 4),
        next_term=st.booleans(),
        is_exact=st.booleans(),
        moves=st.sampled_from([0, 0, 0, -1, 3]),
    )
    def append_after(
        self,
        place: int | None,
        payload_sizes: list[int],
        held: int,
        next_term: bool,
        is_exact: bool,
        moves: int,
    ) -> None:
        """As a leader sends them: some that the log holds, then new ones, or others in their place."""
        self._term += next_term
        prev, start = None, self._index(0)
        if place is not None:
            prev = self._log_id(place)
            if not is_exact:
                prev = LogId(max(prev.term - 1, 0), prev.index, prev.node_id)
            start = prev.index + 1
        batch = [e for e in self._disk.entries if start <= e.index < start + held]
        batch += self._new(payload_sizes, max(start + len(batch) + moves, 0))
        self._both(lambda side: side.append_after(prev, batch))
        self._saved_committed.append(self._disk.committed)  # it may have been cut

    @rule(place=places)
    def truncate(self, place: int) -> None:
        cut = LogId(self._term, self._index(place))
        self._both(lambda side: side.truncate(cut))
        self._saved_committed.append(self._disk.committed)  # it may have been cut

    @rule(place=st.one_of(st.none(), places))
    def truncate_after(self, place: int | None) -> None:
        kept = None if place is None else LogId(self._term, self._index(place))
        self._both(lambda side: side.truncate_after(kept))
        self._saved_committed.append(self._disk.committed)

    @rule(place=places, is_exact=st.booleans())
    def purge(self, place: int, is_exact: bool) -> None:
        frontier = self._log_id(place) if is_exact else LogId(self._term, self._index(place), 2)
        self._both(lambda side: side.purge(frontier))

    @rule(vote=votes)
    def save_vote(self, vote: Vote) -> None:
        self._both(lambda side: side.save_vote(vote))

    @rule(place=st.one_of(st.none(), places), is_exact=st.booleans())
    def save_committed(self, place: int | None, is_exact: bool) -> None:
        last = self._disk.last_log_id
        committed = None
        if place is not None and last is not None:
            committed = LogId(1, min(self._index(place), last.index))
            if is_exact:
                committed = min(self._log_id(place), last, key=lambda log_id: log_id.index)
        if self._both(lambda side: side.save_committed(committed)) is None:
            self._saved_committed.append(committed)

    @rule()
    def flush(self) -> None:
        self._portal.call(self._store.flush)
        assert self._callbacks == [[None]] * len(self._callbacks)

    # --- reading ---------------------------------------------------------------------------

    @rule(target=readers)
    def take_a_reader(self) -> Any:
        return self._store, self._portal.call(self._store.get_log_reader)

    @rule(reader=readers, start=places, stop=st.one_of(st.none(), places), budget=st.integers(0, 9))
    def read(self, reader: Any, start: int, stop: int | None, budget: int) -> None:
        """However old a reader is, it shows what the model shows."""
        owner, side = reader
        if owner is not self._store:
            return
        first = self._index(start)
        end = None if stop is None else self._index(stop)

        async def check() -> None:
            want = await self._model.try_get_log_entries(first, end)
            assert await side.try_get_log_entries(first, end) == want
            assert [entry async for entry in side.entries_stream(first, end)] == want
            for store in (side, self._store):
                got = await store.limited_get_log_entries(first, end, budget * 1000)
                assert got == want[: len(got)]
                assert bool(got) == bool(want)
                assert sum(len(entry.payload) for entry in got[1:]) <= budget * 1000

        self._portal.call(check)

    @invariant()
    def both_hold_the_same(self) -> None:
        async def held(side: Any) -> list[Any]:
            return [
                await side.get_log_state(),
                await side.try_get_log_entries(0),
                await side.get_key_log_ids(),
                await side.read_vote(),
                await side.read_committed(),
            ]

        async def check() -> None:
            assert await held(self._store) == await held(self._model)

        if self._count:
            self._portal.call(check)

    # --- reopening and kills ---------------------------------------------------------------

    @rule(policy=policies, cache=caches, bound=bounds, checks=st.booleans())
    def reopen(self, policy: str, cache: int, bound: int, checks: bool) -> None:
        self._close()
        self._open(
            self._directory,
            sync=policy,
            cache_bytes=cache,
            max_unsynced_bytes=bound,
            check_integrity=checks,
        )
        self._adopt_committed()

    def _adopt_committed(self) -> None:
        """After a reopen committed may be an older one, never one beyond the last log id."""
        committed = self._portal.call(self._store.read_committed)
        last = self._disk.last_log_id
        assert committed in [*self._saved_committed, self._disk.committed]
        assert committed is None or (last is not None and committed.index <= last.index)
        saved = self._disk.committed
        if saved is not None and last is not None and saved.index <= last.index:
            assert committed == saved
        self._disk.committed = committed

    def _replacing(self, log_id: LogId, batch: list[Entry]) -> tuple[LogId | None, list[Entry]]:
        """What a leader of the next term sends for the entries from ``log_id`` on."""
        held = [e.log_id for e in self._disk.entries if e.index == log_id.index - 1]
        prev = held[0] if held else self._disk.last_log_id
        start = log_id.index if prev is None else prev.index + 1
        return prev, [e._replace(index=n, term=e.term + 1) for n, e in enumerate(batch, start)]

    @precondition(is_short)
    @rule(
        countdown=st.integers(1, 12),
        kind=st.sampled_from(["appends", "append", "receive", "truncate", "purge", "vote"]),
        payload_sizes=sizes,
        place=places,
        vote=votes,
        policy=policies,
        goes_on=st.booleans(),
    )
    def kill(
        self,
        countdown: int,
        kind: str,
        payload_sizes: list[int],
        place: int,
        vote: Vote,
        policy: str,
        goes_on: bool,
    ) -> None:
        """A copy taken in mid-flight opens and holds what was acknowledged by then."""
        batch = self._new(payload_sizes)
        log_id = self._log_id(place)
        received = self._replacing(log_id, batch)
        if self._options["sync"] == "immediate":  # what has a callback may not be written yet
            self._portal.call(self._store.flush)
        before = self._disk.copy()
        acknowledged: list[Entry] = []
        by_then: list[Entry] = []

        async def append_one(side: Any, entry: Entry) -> None:
            await side.append([entry])
            if side is self._store:
                acknowledged.append(entry)

        kinds: dict[str, list[Callable[[Any], Awaitable[Any]]]] = {
            "appends": [functools.partial(_call, append_one, entry) for entry in batch],
            "append": [functools.partial(_append, batch)],
            "receive": [lambda side: side.append_after(*received)],
            "truncate": [lambda side: side.truncate(log_id)],
            "purge": [lambda side: side.purge(log_id)],
            "vote": [lambda side: side.save_vote(vote)],
        }
        self._term += kind == "receive"
        calls = kinds[kind]
        copy = self._new_directory()
        self._files.arm(countdown, copy, lambda: by_then.extend(acknowledged))

        async def run() -> None:
            want = [await _outcome(call, self._model) for call in calls]
            got = await all_started([functools.partial(call, self._store) for call in calls])
            assert [_kind(one) for one in got] == want

        self._portal.call(run)
        with self._files._one_at_a_time:
            if not self._files.is_copied:
                self._files.copy_now()
                before = self._disk.copy()
        after = self._disk.copy()
        survivor = self._portal.call(_contents, copy)
        _check_survivor(survivor, before, after, by_then)
        self._saved_committed.append(after.committed)
        assert survivor.committed in self._saved_committed
        if goes_on:
            self._close()
            self._disk = survivor
            self._open(copy, sync=policy, cache_bytes=0)
            self._adopt_committed()
        else:
            shutil.rmtree(copy)


async def _append(entries: list[Entry], side: Any) -> None:
    await side.append(entries)


async def _call(function: Any, argument: Any, side: Any) -> None:
    await function(side, argument)


def _kind(result: Any) -> Any:
    return type(result) if isinstance(result, Exception) else result


async def _outcome(call: Callable[[Any], Awaitable[Any]], side: Any) -> Any:
    """The result, or the kind of error."""
    try:
        return await call(side)
    except (LogGapError, LogRangeError, RaftRuleError) as error:
        return type(error)


async def _contents(directory: Path) -> MemoryDisk:
    """What a store opened on the directory holds."""
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE) as store:
        state = await store.get_log_state()
        disk = MemoryDisk(
            await store.try_get_log_entries(0),
            state.last_purged_log_id,
            await store.read_vote(),
            await store.read_committed(),
        )
        assert disk.last_log_id == state.last_log_id
        return disk


def _check_survivor(
    survivor: MemoryDisk, before: MemoryDisk, after: MemoryDisk, acknowledged: list[Entry]
) -> None:
    """What survived a kill during one write lies between the log before it and after it."""
    assert survivor.vote in (before.vote, after.vote)
    assert survivor.last_purged in (before.last_purged, after.last_purged)
    indexes = [entry.index for entry in survivor.entries]
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
    known = before.entries + after.entries
    assert all(entry in known for entry in survivor.entries)
    frontier = survivor.last_purged
    least = 0 if frontier is None else frontier.index + 1
    # Never a mixture: one of the two logs, or its beginning.
    assert any(
        survivor.entries
        == [entry for entry in disk.entries if entry.index >= least][: len(indexes)]
        for disk in (before, after)
    )
    for entry in [*(entry for entry in before.entries if entry in after.entries), *acknowledged]:
        if frontier is None or entry.index > frontier.index:
            assert entry in survivor.entries


SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=40,
)


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 50), ("trio", 25)])
def test_the_store_and_the_model_never_differ(tmp_path: Path, backend: str, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Machine(tmp_path, backend),  # type: ignore[arg-type]
        settings=settings(SETTINGS, max_examples=examples),
    )


class Mistaken(Machine):
    """Holds our store against a model in which a purge keeps the purged entry itself."""

    model = KeepsThePurgedEntryItself


def test_a_difference_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            lambda: Mistaken(tmp_path, "asyncio"),  # type: ignore[arg-type]
            settings=settings(SETTINGS, max_examples=30, phases=[Phase.generate]),
        )
