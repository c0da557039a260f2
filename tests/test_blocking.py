"""The store for threads: the same contract, who does the disk's work, signals, forks, the end."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from hqlwal_raft import (
    Entry,
    LogId,
    LogRangeError,
    LogState,
    LogTruncatedError,
    RaftLogReader,
    RaftLogStorage,
    Vote,
    WalClosedError,
    WalLockedError,
    WalPoisonedError,
)
from hqlwal_raft._commit import Committer
from hqlwal_raft._format import unpack_lock
from hqlwal_raft._log import Log
from hqlwal_raft.blocking import BlockingRaftLogReader, BlockingRaftLogStorage
from hqlwal_raft.protocols import LogStorage
from hqlwal_raft.testing import CASES, Case, FailingEnvironment, MemoryKernel
from tests._awaited import open_awaited
from tests._support import PATIENCE_SECONDS, Gate, HookedEnvironment, entries, run_python

#: as in ``test_conformance``: options of open, and the size the payloads are padded to
CONFIGURATIONS: dict[str, tuple[dict[str, Any], int]] = {
    "tiny-segments": ({"segment_size": 8192}, 3000),
    "small-entries": ({}, 0),
    "immediate_async": ({"sync": "immediate_async", "segment_size": 8192}, 1500),
    "interval": ({"sync": "interval_5", "segment_size": 8192}, 1500),
    "back-pressure": ({"max_unsynced_bytes": 1, "cache_bytes": 0, "segment_size": 8192}, 700),
}

open_store = BlockingRaftLogStorage.open


class Threads:
    """Calls in threads of their own; each outcome is kept."""

    def __init__(self) -> None:
        self.threads: dict[str, threading.Thread] = {}
        self.outcomes: dict[str, Any] = {}

    def start(self, name: str, call: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.outcomes[name] = call()
            except BaseException as error:
                self.outcomes[name] = error

        self.threads[name] = threading.Thread(target=run, name=name, daemon=True)
        self.threads[name].start()

    def join(self, *names: str) -> None:
        for name in names or list(self.threads):
            self.threads[name].join(PATIENCE_SECONDS)
            assert name in self.outcomes, f"{name} does not end"

    def clear(self) -> None:
        """Forgets them, once they have ended: a traceback holds what was being read."""
        self.join()
        self.threads.clear()
        self.outcomes.clear()


def until(condition: Callable[[], Any], what: str) -> None:
    """For what no event tells of: what another thread has come to."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def held(gate: Gate) -> None:
    until(lambda: gate._held, "nobody came to the gate")


def store_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hqlwal")]


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.join()


def in_a_thread(call: Callable[[], Any]) -> Any:
    threads = Threads()
    threads.start("called", call)
    threads.join()
    if isinstance(threads.outcomes["called"], BaseException):
        raise threads.outcomes["called"]
    return threads.outcomes["called"]


# --- the contract ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_blocking_store_keeps_the_contract(configuration: str, name: str, case: Case) -> None:
    options, payload_bytes = CONFIGURATIONS[configuration]
    disk = MemoryKernel()

    async def check() -> None:
        await case(
            lambda name: open_awaited(f"/{name}", environment=disk, **options),
            payload_bytes=payload_bytes,
        )

    anyio.run(check)


def test_it_has_the_methods_and_the_options_of_the_other_store(tmp_path: Path) -> None:
    for other, own in (
        (RaftLogReader, BlockingRaftLogReader),
        (RaftLogStorage, BlockingRaftLogStorage),
    ):
        for name, method in inspect.getmembers(other, callable):
            if not name.startswith("_"):
                mine = getattr(own, {"aclose": "close"}.get(name, name))
                theirs = inspect.signature(method).parameters
                added = ["wait"] if name == "append" else []
                assert list(inspect.signature(mine).parameters) == [*theirs, *added], name
    ours = inspect.signature(BlockingRaftLogStorage.open).parameters
    assert {name: each.default for name, each in ours.items()} == {
        name: each.default
        for name, each in inspect.signature(RaftLogStorage.open).parameters.items()
    }

    async def check() -> None:
        async with open_awaited(tmp_path) as storage:
            assert isinstance(storage, LogStorage)

    anyio.run(check)


# --- who does the disk's work --------------------------------------------------------------


def test_a_thread_that_waits_does_the_disks_work_and_another_for_the_main_thread(
    tmp_path: Path,
) -> None:
    syncing: list[str] = []

    def note(call: str, path: str) -> None:
        if call == "fdatasync" and path.endswith(".wal"):
            syncing.append(threading.current_thread().name)

    with open_store(tmp_path, environment=HookedEnvironment(note)) as store:
        store.append(entries(1, 2))  # the segment is there now
        del syncing[:]
        store.append(entries(2, 3))
        assert syncing == ["hqlwal-calls"]
        in_a_thread(lambda: store.append(entries(3, 4)))
        assert syncing[1:] == ["called"]
        last = store.append(entries(4, 5), wait=False)
        assert last is not None
        until(lambda: len(syncing) == 3, "nobody synced what nobody waits for")
        assert syncing[2] == "hqlwal-disk"
        store.wait_durable(last)


def test_one_sync_serves_all_threads_that_wait(tmp_path: Path, threads: Threads) -> None:
    gate = Gate()
    with open_store(tmp_path, environment=HookedEnvironment(gate)) as store:
        store.append(entries(1, 2))
        syncs = store.statistics().syncs
        gate.shut()
        threads.start("first", lambda: store.append(entries(2, 3)))
        held(gate)
        for index in range(3, 11):
            threads.start(str(index), functools.partial(store.append, entries(index, index + 1)))
            accepted = LogState(None, LogId(1, index))
            until(
                functools.partial(lambda state: store.get_log_state() == state, accepted),
                "an append is not accepted beside a sync",
            )
        assert not threads.outcomes
        gate.open()
        threads.join()
        assert store.statistics().syncs == syncs + 2
        assert store.statistics().last_durable_log_id == LogId(1, 10)


def test_the_main_thread_never_changes_the_log_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[threading.Thread] = []
    for kind in (Log, Committer):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if name == "__init__" or kind is Committer:

                def noted(*arguments: Any, method: Any = method, **options: Any) -> Any:
                    callers.append(threading.current_thread())
                    return method(*arguments, **options)

                monkeypatch.setattr(kind, name, noted)
    with open_store(tmp_path, segment_size=8192) as store:
        for index in range(1, 9):
            store.append(entries(index, index + 1, size=3000))
        store.append(entries(9, 10), lambda _error: None)
        store.truncate(LogId(1, 8))
        store.truncate_after(LogId(1, 6))
        store.purge(LogId(1, 2))
        store.save_vote(Vote(2))
        store.save_committed(LogId(1, 3))
        store.flush()
        assert [entry.index for entry in store.entries_stream(0)] == [3, 4, 5, 6]
        assert store.statistics().entries == 4
    assert len(callers) > 50
    assert threading.main_thread() not in callers


# --- waiting for what others wrote ---------------------------------------------------------


def test_an_append_that_does_not_wait_is_readable_and_can_be_waited_for(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    with open_store(tmp_path, environment=HookedEnvironment(gate)) as store:
        store.append(entries(1, 2))
        gate.shut()
        assert store.append([], wait=False) is None
        last = store.append(entries(2, 5), wait=False)
        assert last == LogId(1, 4)
        assert store.try_get_log_entries(2) == entries(2, 5)
        assert store.statistics().last_durable_log_id == LogId(1, 1)
        store.wait_durable(LogId(1, 1))
        threads.start("waits", lambda: store.wait_durable(LogId(1, 4)))
        held(gate)
        assert not threads.outcomes
        gate.open()
        threads.join()
        assert threads.outcomes == {"waits": None}
        assert store.statistics().last_durable_log_id == LogId(1, 4)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_that_very_entry_is_waited_for_and_no_other(tmp_path: Path, cache_bytes: int) -> None:
    with open_store(tmp_path, cache_bytes=cache_bytes) as store:
        with pytest.raises(LogRangeError, match="no entry 1"):
            store.wait_durable(LogId(1, 1))
        store.append(entries(1, 6))
        store.truncate(LogId(1, 4))
        store.append(entries(4, 5, term=2))
        store.wait_durable(LogId(2, 4))
        with pytest.raises(LogTruncatedError, match="term=2"):
            store.wait_durable(LogId(1, 4))
        with pytest.raises(LogTruncatedError, match="none there") as truncated:
            store.wait_durable(LogId(1, 5))
        assert (truncated.value.log_id, truncated.value.found) == (LogId(1, 5), None)
        with pytest.raises(LogRangeError, match="no entry 6"):
            store.wait_durable(LogId(1, 6))
        store.purge(LogId(1, 2))
        store.wait_durable(LogId(1, 1))


def test_waiting_asks_for_no_sync_of_its_own(tmp_path: Path, threads: Threads) -> None:
    with open_store(tmp_path, sync="interval_200") as store:
        last = store.append(entries(1, 2))
        assert last is not None
        started = time.monotonic()
        store.wait_durable(last)
        assert time.monotonic() - started > 0.1
        assert store.statistics().syncs == 1


# --- callbacks -----------------------------------------------------------------------------


def test_callbacks_come_one_by_one_in_a_thread_of_their_own_that_may_call_the_store(
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, str, BaseException | None]] = []
    with open_store(tmp_path) as store:

        def called(number: int, error: BaseException | None) -> None:
            seen.append((number, threading.current_thread().name, error))
            if number == 3:
                raise ZeroDivisionError
            if number == 5:  # not before: then all that stands below was appended
                store.append(entries(6, 7))

        for index in range(1, 6):
            store.append(entries(index, index + 1), functools.partial(called, index))
        until(lambda: store.get_log_state().last_log_id == LogId(1, 6), "not all are called")
        assert seen == [(index, "hqlwal-callbacks", None) for index in range(1, 6)]
        store.append(entries(7, 8), lambda error: seen.append((7, "", error)))
    assert seen[5:] == [(7, "", None)]  # called before the close returned


def test_a_callback_may_close_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(entries(1, 2), lambda _error: store.close())
    until(lambda: not store_threads(), "it was not closed")
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0) == entries(1, 2)


# --- signals -------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def on_alarm(handler: Callable[[], Any]) -> Iterator[Callable[[float], Any]]:
    before = signal.signal(signal.SIGALRM, lambda _signal, _frame: handler())
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt() -> None:
    raise Interrupted


def test_a_handler_that_raises_ends_the_waiting_and_nothing_else(tmp_path: Path) -> None:
    gate = Gate()
    with open_store(tmp_path, environment=HookedEnvironment(gate)) as store:
        store.append(entries(1, 2))
        gate.shut()
        with on_alarm(interrupt) as set_alarm:
            set_alarm(0.05)
            with pytest.raises(Interrupted):
                store.append(entries(2, 3))
        assert store.append(entries(3, 4), wait=False) == LogId(1, 3)
        assert store.try_get_log_entries(0) == entries(1, 4)
        gate.open()
        store.wait_durable(LogId(1, 3))


def test_a_handler_may_call_the_store_in_the_middle_of_a_call(tmp_path: Path) -> None:
    gate = Gate()
    read: list[Any] = []
    with open_store(tmp_path, environment=HookedEnvironment(gate)) as store:
        store.append(entries(1, 2))
        gate.shut()

        def handle() -> None:
            store.append(entries(3, 4), wait=False)
            read.append(store.try_get_log_entries(0))
            gate.open()
            store.append(entries(4, 5))

        with on_alarm(handle) as set_alarm:
            set_alarm(0.05)
            store.append(entries(2, 3))
        assert read == [entries(1, 4)]
        assert store.try_get_log_entries(0) == entries(1, 5)


def test_calls_of_the_main_thread_keep_their_order_though_each_is_interrupted(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path) as store:
        store.append(entries(1, 2))
        lock = store._lane.lock
        in_a_thread(lock.acquire)  # no call can begin
        with on_alarm(interrupt) as set_alarm:
            for index in range(2, 6):
                set_alarm(0.01)
                with pytest.raises(Interrupted):
                    store.append(entries(index, index + 1))
        in_a_thread(lock.release)
        store.append(entries(6, 7))
        assert store.try_get_log_entries(0) == entries(1, 7)


def test_whenever_a_handler_raises_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged, interruptions = 0, 0
    with on_alarm(interrupt) as set_alarm:
        store = open_store(tmp_path, segment_size=8192)
        for attempt in range(400):
            try:
                set_alarm(10e-6 * (attempt % 40 + 1))
                last = store.get_log_state().last_log_id
                index = 1 if last is None else last.index + 1
                store.append(entries(index, index + 1, size=900))
                set_alarm(0)
                acknowledged = index
            except Interrupted:
                interruptions += 1
                store.flush()  # what was interrupted is over now
        store.close()
    assert interruptions > 20
    with open_store(tmp_path) as store:
        found = store.try_get_log_entries(0)
    assert found == entries(1, len(found) + 1, size=900)
    assert len(found) >= acknowledged > 20


def test_an_open_that_is_interrupted_leaves_nothing_open(tmp_path: Path) -> None:
    gate = Gate("listdir", "")
    gate.shut()
    with on_alarm(interrupt) as set_alarm:
        set_alarm(0.05)
        with pytest.raises(Interrupted):
            open_store(tmp_path, environment=HookedEnvironment(gate))
    gate.open()
    until(lambda: not store_threads(), "its threads stay")
    open_store(tmp_path).close()


# --- failures ------------------------------------------------------------------------------


def test_a_failed_sync_answers_all_who_wait_and_reading_goes_on(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    files = FailingEnvironment()
    with open_store(tmp_path, environment=HookedEnvironment(gate, environment=files)) as store:
        store.append(entries(1, 3))
        assert store.poison is None
        gate.shut()
        threads.start("leads", lambda: store.append(entries(3, 4)))
        held(gate)
        threads.start("follows", lambda: store.append(entries(4, 5)))
        threads.start("truncates", lambda: store.truncate(LogId(1, 1)))
        until(lambda: store.statistics().queue_depth == 1, "the truncation does not wait")
        threads.start("waits", lambda: store.wait_durable(LogId(1, 3)))
        files.fail("fdatasync", errno.EIO, where=lambda path: path.endswith(".wal"))
        gate.open()
        threads.join()
        for name, outcome in threads.outcomes.items():
            assert isinstance(outcome, WalPoisonedError), (name, outcome)
            assert isinstance(outcome.__cause__, OSError)
        assert len({id(outcome) for outcome in threads.outcomes.values()}) == 4
        assert store.poison is threads.outcomes["leads"].__cause__
        files.heal()
        with pytest.raises(WalPoisonedError):
            store.append(entries(3, 4))
        with pytest.raises(WalPoisonedError):
            store.wait_durable(LogId(1, 3))
        assert store.try_get_log_entries(0) == entries(1, 3)
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0)[:2] == entries(1, 3)


def test_a_full_disk_refuses_an_append_and_passes(tmp_path: Path) -> None:
    files = FailingEnvironment()
    with open_store(tmp_path, environment=files, segment_size=8192) as store:
        store.append(entries(1, 3, size=3000))
        files.fail("posix_fallocate", errno.ENOSPC, times=1000)
        with pytest.raises(OSError, match="No space"):
            for index in range(3, 9):
                store.append(entries(index, index + 1, size=3000))
        there = store.try_get_log_entries(0)
        assert there == entries(1, len(there) + 1, size=3000)
        files.heal()
        store.append(entries(len(there) + 1, 10, size=3000))
        assert store.try_get_log_entries(0) == entries(1, 10, size=3000)


# --- the end -------------------------------------------------------------------------------


def test_closing_makes_durable_what_was_accepted_and_refuses_what_was_not(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    store = open_store(tmp_path, environment=HookedEnvironment(gate))
    store.append(entries(1, 2))
    gate.shut()
    threads.start("leads", lambda: store.append(entries(2, 3)))
    held(gate)
    threads.start("follows", lambda: store.append(entries(3, 4)))
    until(lambda: store.get_log_state().last_log_id == LogId(1, 3), "it is not accepted")
    threads.start("truncates", lambda: store.truncate(LogId(1, 1)))
    until(lambda: store.statistics().queue_depth == 1, "the truncation does not wait")
    threads.start("closes", store.close)
    threads.join("truncates")
    assert isinstance(threads.outcomes["truncates"], WalClosedError)
    with pytest.raises(WalClosedError):
        store.get_log_state()
    gate.open()
    threads.join()
    assert threads.outcomes["leads"] == LogId(1, 2)
    assert threads.outcomes["follows"] == LogId(1, 3)
    assert threads.outcomes["closes"] is None
    store.close()  # idempotent
    until(lambda: not store_threads(), "its threads stay")
    assert unpack_lock((tmp_path / "lock.hql").read_bytes()) is True  # says that it is clean
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0) == entries(1, 4)


def test_abandoning_answers_all_at_once_and_the_lock_goes_when_the_disk_answers(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    store = open_store(tmp_path, environment=HookedEnvironment(gate))
    store.append(entries(1, 2))
    gate.shut()
    threads.start("leads", lambda: store.append(entries(2, 3)))
    held(gate)
    threads.start("follows", lambda: store.append(entries(3, 4)))
    threads.start("truncates", lambda: store.truncate(LogId(1, 1)))
    until(lambda: store.statistics().queue_depth == 1, "the truncation does not wait")
    store.abandon()
    threads.join("follows", "truncates")
    assert isinstance(threads.outcomes["follows"], WalClosedError)
    assert isinstance(threads.outcomes["truncates"], WalClosedError)
    assert "leads" not in threads.outcomes  # it is inside the system's call
    with pytest.raises(WalClosedError, match="abandoned"):
        store.append(entries(4, 5))
    with pytest.raises(WalLockedError):
        open_store(tmp_path)
    gate.open()
    threads.join()
    assert isinstance(threads.outcomes["leads"], WalClosedError)
    store.abandon()
    store.close()
    until(lambda: not store_threads(), "its threads stay")
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0)[:1] == entries(1, 2)


def test_abandoning_answers_the_main_thread_which_never_leads(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    store = open_store(tmp_path, environment=HookedEnvironment(gate))
    store.append(entries(1, 2))
    gate.shut()

    def abandon() -> None:
        held(gate)
        store.abandon()

    threads.start("abandons", abandon)
    with pytest.raises(WalClosedError):
        store.append(entries(2, 3))
    gate.open()
    threads.join()
    until(lambda: not store_threads(), "its threads stay")


def test_a_store_that_is_dropped_unclosed_says_so_and_lets_go(tmp_path: Path) -> None:
    for call in (lambda work: work(), in_a_thread):

        def work() -> None:
            store = open_store(tmp_path)
            state = store.get_log_state()
            store.append(
                entries(1 if state.last_log_id is None else state.last_log_id.index + 1, 9)
            )

        with pytest.warns(ResourceWarning, match="never closed"):
            call(work)
            gc.collect()
        until(lambda: not store_threads(), "its threads stay")
        with open_store(tmp_path) as store:
            assert store.try_get_log_entries(0) == entries(1, 9)
            store.truncate(LogId(1, 5))


def test_a_process_that_ends_closes_its_stores(tmp_path: Path) -> None:
    out = run_python(
        """
        import sys, threading
        from hqlwal_raft import Entry
        from hqlwal_raft.blocking import BlockingRaftLogStorage
        store = BlockingRaftLogStorage.open(sys.argv[1], sync="interval_60000")
        store.append([Entry(1, 1, b"a")], wait=False)
        threading.Thread(target=store.append, args=([Entry(1, 2, b"b")],), daemon=True).start()
        while len(store.try_get_log_entries(0)) < 2:
            pass
        print("ends")
        """,
        tmp_path,
    )
    assert out == "ends\n"
    assert unpack_lock((tmp_path / "lock.hql").read_bytes()) is True
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0) == [Entry(1, 1, b"a"), Entry(1, 2, b"b")]


# --- forked children -----------------------------------------------------------------------


def forked(work: Callable[[], int]) -> int:
    """What the work gives in a forked child, as its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(PATIENCE_SECONDS)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_forked_child_is_refused_at_once(tmp_path: Path, *, is_locked: bool) -> None:
    store = open_store(tmp_path)
    store.append(entries(1, 2))
    reader = store.get_log_reader()
    calls: list[Callable[[], Any]] = [
        lambda: store.append(entries(2, 3)),
        lambda: store.append([]),
        lambda: store.append_after(None, entries(1, 2)),
        lambda: store.append_after(LogId(1, 1), entries(2, 3)),
        lambda: next(store.follow(1)),
        lambda: store.mend(entries(1, 2)),
        lambda: store.truncate(LogId(1, 1)),
        lambda: store.truncate_after(None),
        lambda: store.purge(LogId(1, 1)),
        lambda: store.save_vote(Vote(1)),
        lambda: store.save_committed(None),
        lambda: store.wait_durable(LogId(1, 1)),
        store.flush,
        store.read_committed,
        store.statistics,
        store.get_log_reader,
        store.get_log_state,
        lambda: reader.try_get_log_entries(0),
        lambda: reader.limited_get_log_entries(0),
        lambda: list(reader.entries_stream(0)),
        reader.get_key_log_ids,
        reader.read_vote,
    ]

    def child() -> int:
        refused = 0
        for call in calls:
            try:
                call()
            except WalClosedError as error:
                refused += "parent process" in str(error) and error.path == str(tmp_path)
        store.close()  # nothing happens
        store.abandon()
        return refused

    if is_locked:  # a thread that the child lacks
        in_a_thread(store._lane.lock.acquire)
    refused = forked(child)
    if is_locked:
        in_a_thread(store._lane.lock.release)
    assert refused == len(calls)
    store.append(entries(2, 3))
    store.close()
    with open_store(tmp_path) as store:
        assert store.try_get_log_entries(0) == entries(1, 3)


def test_a_handler_that_forks_in_the_middle_of_a_call_leaves_no_child_that_waits(
    tmp_path: Path,
) -> None:
    gate = Gate()
    pids: list[int] = []
    with open_store(tmp_path, environment=HookedEnvironment(gate)) as store:
        store.append(entries(1, 2))
        gate.shut()

        def fork() -> None:
            pids.append(os.fork())
            if pids[0]:
                gate.open()

        status = 99
        try:
            with on_alarm(fork) as set_alarm:
                set_alarm(0.05)
                store.append(entries(2, 3))
        except WalClosedError:
            status = 7
        finally:
            if pids == [0]:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 7
        assert store.try_get_log_entries(0) == entries(1, 3)


# --- many threads at once ------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["immediate", "immediate_async"])
def test_many_threads_write_read_cut_and_purge_at_once(
    tmp_path: Path, threads: Threads, sync: str
) -> None:
    guard = threading.Lock()  # one writes at a time, and does not wait; all wait together
    stop = threading.Event()
    with open_store(tmp_path, sync=sync, segment_size=8192, cache_bytes=4096) as store:
        store.append(entries(1, 2))

        def write(number: int) -> None:
            for round_ in range(60):
                with guard:
                    last = store.get_log_state().last_log_id
                    assert last is not None
                    log_id = store.append(
                        entries(last.index + 1, last.index + 4, size=300, term=last.term),
                        wait=False,
                    )
                    assert log_id is not None
                    if number == 0 and round_ % 20 == 19:
                        store.truncate(LogId(last.term, last.index + 2))
                        store.append([Entry(last.term + 1, last.index + 2, b"after the cut")])
                        log_id = None
                    if number == 1 and round_ % 20 == 19:
                        purged = store.log_id_at(last.index - 10)
                        if purged is not None:
                            store.purge(purged)
                if log_id is not None:
                    with contextlib.suppress(LogTruncatedError, LogRangeError):
                        store.wait_durable(log_id)
                    durable = store.statistics().last_durable_log_id
                    assert durable is not None

        def read() -> None:
            while not stop.is_set():
                found = store.try_get_log_entries(0)
                first = found[0].index
                assert [entry.index for entry in found] == list(range(first, first + len(found)))
                assert [entry.term for entry in found] == sorted(entry.term for entry in found)

        for number in range(6):
            threads.start(f"writes {number}", functools.partial(write, number))
        threads.start("reads", read)
        threads.join(*[f"writes {number}" for number in range(6)])
        stop.set()
        threads.join()
        assert [outcome for outcome in threads.outcomes.values() if outcome is not None] == []
        there = store.try_get_log_entries(0)
        store.flush()
    with open_store(tmp_path, check_integrity=True) as store:
        assert store.try_get_log_entries(0) == there
