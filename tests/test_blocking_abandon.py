"""``abandon`` of the store for threads, whatever is under way, whoever calls it.

While the disk hangs each call that waits is answered, and only those that are inside of a system's
call wait for that; afterwards threads, lock and descriptors go.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import LogId, Vote, WalClosedError, WalPoisonedError
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment
from tests._leaks import Holdings, is_locked
from tests._support import PATIENCE_SECONDS, ColdEnvironment, Gate, HookedEnvironment, entries
from tests.test_blocking import Threads, held, in_a_thread, on_alarm, store_threads, until

Store = BlockingRaftLogStorage
Call = Callable[[Store], Any]


@dataclass
class UnderWay:
    """What is under way when it is called."""

    #: what hangs: the environment's method, and how the path ends
    gate: tuple[str, str] = ("fdatasync", ".wal")
    #: reaches the disk, and hangs there; None where the disk is idle
    held: Call | None = None
    #: what it gives, or how it fails
    answer: Any = WalClosedError
    #: the thread that makes it is the one that hangs, where it is not the main thread
    is_led: bool = True
    #: before it, with a disk that answers
    before: Call = lambda _store: None
    #: whatever waits behind it, one after the other, each followed by its answer
    behind: dict[str, tuple[Call, Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: Callable[[Gate], Any] = HookedEnvironment


def append(start: int, size: int = 20) -> Call:
    return lambda store: store.append(entries(start, start + 1, size=size))


def truncate(store: Store) -> None:
    store.truncate(LogId(1, 2))


def follow(store: Store) -> Any:
    return next(store.follow(4))


def poison(store: Store) -> None:
    files = store._core.log.directory.environment
    assert isinstance(files, FailingEnvironment)
    files.fail("fdatasync", errno.EIO, where=lambda path: path.endswith(".wal"))
    with pytest.raises(WalPoisonedError):
        store.append(entries(4, 5))


#: each of them waits for what is at the disk, or for what comes after it
CLOSED = {
    "truncates": (truncate, WalClosedError),
    "appends later": (append(9), WalClosedError),
    "purges": (lambda store: store.purge(LogId(1, 2)), WalClosedError),
    "votes": (lambda store: store.save_vote(Vote(3)), WalClosedError),
    "saves": (lambda store: store.save_state(b"state"), WalClosedError),
    "commits": (lambda store: store.save_committed(LogId(1, 1)), WalClosedError),
    "flushes": (lambda store: store.flush(), WalClosedError),
    "receives": (lambda store: store.append_after(None, entries(1, 2)), WalClosedError),
    "mends": (lambda store: store.mend(entries(1, 2)), WalClosedError),
}

PHASES: dict[str, UnderWay] = {
    "nothing": UnderWay(),
    "an append at the disk": UnderWay(held=append(4), behind=CLOSED),
    "appends behind it": UnderWay(
        held=append(4),
        behind={
            "appends": (append(5), WalClosedError),
            "appends more": (append(6), WalClosedError),
            "waits": (lambda store: store.wait_durable(LogId(1, 4)), WalClosedError),
        },
    ),
    "appends that wait for room": UnderWay(
        held=append(4),
        behind={"appends": (append(5), WalClosedError), "flushes": CLOSED["flushes"]},
        options={"max_unsynced_bytes": 1},
    ),
    "an append that nobody waits for": UnderWay(
        held=lambda store: store.append(entries(4, 5), wait=False),
        answer=LogId(1, 4),
        is_led=False,
        behind=CLOSED,
    ),
    "a truncation": UnderWay(held=truncate, behind=CLOSED),
    "a cut for a leader's entries": UnderWay(
        held=lambda store: store.append_after(LogId(1, 1), entries(2, 3, term=2)), behind=CLOSED
    ),
    "a purge": UnderWay(
        ("fdatasync", "meta.hql"), held=lambda store: store.purge(LogId(1, 2)), behind=CLOSED
    ),
    "files that go": UnderWay(
        ("unlink", ".wal"),
        held=lambda store: store.purge(LogId(1, 3)),
        answer=None,
        is_led=False,
        before=append(4, size=9000),
        behind={"truncates": (lambda store: store.truncate(LogId(1, 4)), WalClosedError)},
        options={"segment_size": 8192},
    ),
    "a vote": UnderWay(
        ("fdatasync", "meta.hql"), held=lambda store: store.save_vote(Vote(2)), behind=CLOSED
    ),
    "a segment that is prepared": UnderWay(
        ("posix_fallocate", ""),
        held=append(4, size=90000),
        is_led=False,
        behind=CLOSED,
        options={"segment_size": 8192},
    ),
    "a read": UnderWay(
        ("pread", ".wal"),
        held=lambda store: store.try_get_log_entries(1),
        behind={"follows": (follow, WalClosedError)},
        options={"cache_bytes": 0},
        environment=ColdEnvironment,
    ),
    "one who follows": UnderWay(held=follow, is_led=False),
    "closing": UnderWay(
        ("fdatasync", "meta.hql"),
        held=lambda store: store.close(),
        answer=None,
        behind={"closes, too": (lambda store: store.close(), None)},
    ),
    "closing, and a commit at the disk": UnderWay(
        held=append(4), behind={"closes": (lambda store: store.close(), None)}
    ),
    "poisoned": UnderWay(before=poison, environment=lambda _gate: FailingEnvironment()),
    "closed": UnderWay(before=lambda store: store.close()),
    "abandoned": UnderWay(before=lambda store: store.abandon()),
}


def by_the_main_thread(store: Store) -> Callable[[], None]:
    return store.abandon


def by_a_thread(store: Store) -> Callable[[], None]:
    return partial(in_a_thread, store.abandon)


def by_a_callback(store: Store) -> Callable[[], None]:
    begun, wanted, has_happened = threading.Event(), threading.Event(), threading.Event()

    def called(_error: BaseException | None) -> None:
        begun.set()
        assert wanted.wait(PATIENCE_SECONDS)
        store.abandon()
        has_happened.set()

    store.append(entries(3, 4), called)
    assert begun.wait(PATIENCE_SECONDS)

    def abandon() -> None:
        wanted.set()
        assert has_happened.wait(PATIENCE_SECONDS), "it waits"

    return abandon


#: each gives what has it called, and returns when it has returned
CALLERS: dict[str, Callable[[Store], Callable[[], None]]] = {
    "the main thread": by_the_main_thread,
    "a thread": by_a_thread,
    "a callback": by_a_callback,
}


def opened(path: Path, phase: UnderWay, gate: Gate, **options: Any) -> Store:
    environment = phase.environment(gate)
    store = Store.open(path, environment=environment, **phase.options, **options)
    store.append(entries(1, 3))
    return store


def wait_behind(store: Store, phase: UnderWay, threads: Threads) -> None:
    """Makes the calls that wait; returns when all of them do."""
    for name, (call, _) in phase.behind.items():
        there = len(store._lane._waiters)
        threads.start(name, partial(call, store))
        until(lambda there=there: len(store._lane._waiters) > there, f"{name} does not wait")  # type: ignore[misc]


def assert_answered(threads: Threads, phase: UnderWay) -> None:
    threads.join(*phase.behind)
    for name, (_, answer) in phase.behind.items():
        assert_is(threads.outcomes[name], answer, name)


def assert_is(found: Any, wanted: Any, name: str) -> None:
    if isinstance(wanted, type):
        is_one = isinstance(found, wanted)
        assert is_one, (name, found)
        assert "abandoned" in str(found) or "closed" in str(found)
        assert found.path in str(found)
    else:
        assert found == wanted, (name, found)


def assert_gone(path: Path, store: Store, leaves_nothing: Holdings) -> None:
    for call in (store.flush, store.close, store.abandon):
        if call == store.flush:
            with pytest.raises(WalClosedError):
                call()
        else:
            call()
    until(lambda: not store_threads(), "its threads stay")
    leaves_nothing.assert_nothing_new()
    assert not is_locked(path)
    Store.open(path, check_integrity=True).close()


@pytest.fixture
def threads(leaves_nothing: Holdings) -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.join()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", PHASES)
def test_whatever_is_under_way_all_who_wait_are_answered_while_the_disk_hangs(
    tmp_path: Path, threads: Threads, leaves_nothing: Holdings, name: str, caller: str
) -> None:
    if caller == "a callback" and name in {"closed", "abandoned", "poisoned"}:
        caller = "a thread"  # its callbacks were called, all of them
    phase = PHASES[name]
    gate = Gate(*phase.gate)
    store = opened(tmp_path, phase, gate)
    abandon = CALLERS[caller](store)
    if caller != "a callback":
        store.append(entries(3, 4))
    phase.before(store)
    if phase.held is not None:
        gate.shut()
        threads.start("held", partial(phase.held, store))
        if name != "one who follows":
            held(gate)
    wait_behind(store, phase, threads)
    abandon()
    assert_answered(threads, phase)
    if phase.held is not None:
        if not phase.is_led:
            threads.join("held")
        assert ("held" in threads.outcomes) is not phase.is_led
    gate.open()
    threads.join()
    if phase.held is not None:
        assert_is(threads.outcomes["held"], phase.answer, "held")
    threads.clear()
    assert_gone(tmp_path, store, leaves_nothing)


@pytest.mark.parametrize("name", [name for name, phase in PHASES.items() if phase.held])
def test_the_main_thread_is_answered_at_once_whatever_it_has_at_the_disk(
    tmp_path: Path, threads: Threads, leaves_nothing: Holdings, name: str
) -> None:
    phase = PHASES[name]
    gate = Gate(*phase.gate)
    store = opened(tmp_path, phase, gate)
    store.append(entries(3, 4))
    phase.before(store)

    def control() -> None:
        if name == "one who follows":
            until(lambda: store._lane._waiters, "it does not wait")
        else:
            held(gate)
        wait_behind(store, phase, threads)
        store.abandon()

    gate.shut()
    threads.start("controls", control)
    assert phase.held is not None
    passed = gate.passed
    try:
        found = phase.held(store)
    except WalClosedError as error:
        found = error
    threads.join("controls")
    assert threads.outcomes["controls"] is None
    assert gate.passed == passed
    assert_is(found, phase.answer, name)
    assert_answered(threads, phase)
    gate.open()
    del found
    threads.clear()
    assert_gone(tmp_path, store, leaves_nothing)


def test_a_signals_handler_may_call_it_in_the_thread_that_waits(
    tmp_path: Path, leaves_nothing: Holdings
) -> None:
    gate = Gate()
    store = opened(tmp_path, UnderWay(), gate)
    gate.shut()
    with on_alarm(store.abandon) as set_alarm, pytest.raises(WalClosedError, match="abandoned"):
        set_alarm(0.05)
        store.append(entries(3, 4))
    gate.open()
    assert_gone(tmp_path, store, leaves_nothing)


def test_it_may_be_called_where_a_stall_is_told_of(
    tmp_path: Path, threads: Threads, leaves_nothing: Holdings
) -> None:
    gate = Gate()
    stores: list[Store] = []
    store = opened(
        tmp_path, UnderWay(), gate, stall_seconds=0.2, on_stall=lambda _age: stores[0].abandon()
    )
    stores.append(store)
    gate.shut()
    threads.start("leads", lambda: store.append(entries(3, 4)))
    held(gate)
    threads.start("follows", lambda: store.append(entries(4, 5)))
    threads.join("follows")
    assert_is(threads.outcomes["follows"], WalClosedError, "follows")
    with pytest.raises(WalClosedError, match="abandoned"):
        store.append(entries(5, 6))
    gate.open()
    threads.join()
    assert_gone(tmp_path, store, leaves_nothing)


@pytest.mark.parametrize("caller", ["the main thread", "a thread"])
def test_it_does_not_wait_for_a_write_that_is_made_under_the_lock(
    tmp_path: Path, threads: Threads, leaves_nothing: Holdings, caller: str
) -> None:
    gate = Gate("pwrite")
    store = opened(tmp_path, UnderWay(), gate, sync="immediate_async")
    abandon = CALLERS[caller](store)
    gate.shut()
    threads.start("writes", lambda: store.append(entries(3, 4, size=5000)))
    held(gate)
    threads.start("abandons", abandon)
    threads.join("abandons")
    assert threads.outcomes["abandons"] is None
    assert "writes" not in threads.outcomes
    gate.open()
    threads.join()
    assert_gone(tmp_path, store, leaves_nothing)


def test_it_may_be_called_by_a_thread_that_holds_the_lock_as_in_a_garbage_collection(
    tmp_path: Path, threads: Threads, leaves_nothing: Holdings
) -> None:
    store = opened(tmp_path, UnderWay(), Gate())

    def abandon() -> None:
        with store._lane.lock:
            store.abandon()
            with pytest.raises(WalClosedError):
                store.flush()

    threads.start("abandons", abandon)
    threads.join()
    assert threads.outcomes["abandons"] is None
    assert_gone(tmp_path, store, leaves_nothing)
