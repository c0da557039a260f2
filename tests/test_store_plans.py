"""The owner decides, plans act: what the disk threads get is frozen, and suffices.

Plans are caught on their way to the threads. What else runs there after the store is open, and
whether anything there changes the log's memory, is watched from outside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from hqlwal_raft import LogId, RaftLogStorage, Vote
from hqlwal_raft import _log as log_module
from hqlwal_raft import _meta as meta_module
from hqlwal_raft import _reads as reads_module
from hqlwal_raft import _recent as recent_module
from hqlwal_raft import _segment as segment_module
from hqlwal_raft import _unsynced as unsynced_module
from hqlwal_raft._commit import Committer
from hqlwal_raft._directory import Directory
from hqlwal_raft._files import File
from hqlwal_raft._grouping import GroupCommit
from hqlwal_raft._on_lane import OnLane
from hqlwal_raft._plans import Plan
from hqlwal_raft.testing import MemoryKernel
from tests._catching import CatchingEnvironment
from tests._support import PATIENCE_SECONDS, ColdEnvironment, entries, on_both_backends, run_python

SEGMENT_SIZE = 8192
#: eight of these fill a segment
SIZE = 900

T = TypeVar("T")


async def history(store: RaftLogStorage) -> None:
    """Everything a store does, small and large, clean and across segments."""
    seen: list[BaseException | None] = []
    await store.append(entries(1, 3, size=SIZE))
    await store.save_vote(Vote(1, "me"))
    await store.append(entries(3, 90, size=SIZE), seen.append)
    await store.append(entries(90, 91, size=20_000))
    await store.save_committed(LogId(1, 40))
    assert await store.try_get_log_entries(0) == entries(1, 90, SIZE) + entries(90, 91, 20_000)
    await store.truncate(LogId(1, 86))  # back to where a segment is left
    await store.append(entries(86, 88, size=SIZE, term=2))
    await store.truncate(LogId(1, 87))  # within the tail
    await store.purge(LogId(1, 20))
    assert await store.limited_get_log_entries(21, max_bytes=5000) == entries(21, 26, size=SIZE)
    assert [entry async for entry in store.entries_stream(80)] == [
        *entries(80, 86, size=SIZE),
        *entries(86, 87, size=SIZE, term=2),
    ]
    await store.get_key_log_ids()
    await store.truncate(LogId(1, 25))  # into a sealed segment
    await store.append(entries(25, 60, size=SIZE, term=3))
    await store.purge(LogId(9, 100))  # beyond the end
    await store.append(entries(101, 130, size=SIZE, term=9))
    await store.truncate_after(LogId(9, 100))  # nothing is left
    await store.append(entries(101, 140, size=SIZE, term=9))
    await store.flush()
    assert seen == [None]


# --- plans are frozen --------------------------------------------------------------------


def mutable_parts(value: Any, where: str) -> Iterator[str]:
    """What of a value could be changed by the one who gave it away, or the one who got it."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return
    if isinstance(value, File):
        return  # leased: its descriptor stays as long as somebody holds it
    if isinstance(value, tuple):
        for place, part in enumerate(value):
            yield from mutable_parts(part, f"{where}[{place}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            yield f"{where}: {type(value).__name__} is not frozen"
        if hasattr(value, "__dict__"):
            yield f"{where}: {type(value).__name__} takes other attributes"
        for field in dataclasses.fields(value):
            yield from mutable_parts(getattr(value, field.name), f"{where}.{field.name}")
    else:
        yield f"{where}: {value!r}"


#: every kind of plan that the history makes
KINDS = {
    *("prepare", "name the first segment", "commit", "seal", "unlink", "mark", "save vote"),
    *("load", "read", "truncate", "purge", "close"),
}


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "immediate_async"])
async def test_a_plan_holds_nothing_that_could_be_changed(tmp_path: Path, policy: str) -> None:
    environment = CatchingEnvironment()
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, "sync": policy}
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        await history(store)
        environment.steps_seconds = 1.0  # nothing was written for long
        with anyio.fail_after(PATIENCE_SECONDS):
            await environment.wait_for("mark")
    plans = environment.plans()
    assert {plan.name for plan in plans} >= KINDS
    assert [part for plan in plans for part in mutable_parts(plan, plan.name)] == []


@on_both_backends
async def test_what_a_readers_thread_gets_is_frozen_too(tmp_path: Path) -> None:
    environment = CatchingEnvironment()
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        await history(store)
    async with RaftLogStorage.open(tmp_path, environment=environment, **options) as store:
        await store.try_get_log_entries(0)
        assert await store.log_id_at(120) is not None
    assert len(environment.reads) > 20
    found = []
    for timed in environment.reads:
        assert isinstance(timed, partial)
        job = timed.args[0]  # what is around it knows a watch alone
        given = [*job.args] if isinstance(job, partial) else [getattr(job, "__self__", job)]
        # a list of extents is made for the one who gets it, and kept by nobody
        parts = [p for each in given for p in (each if isinstance(each, list) else [each])]
        found += [
            bad
            for part in parts
            if not isinstance(part, Directory)
            for bad in mutable_parts(part, getattr(job, "__name__", repr(job)))
        ]
    assert found == []


def test_a_plan_that_holds_a_list_or_an_open_dataclass_is_found() -> None:
    @dataclasses.dataclass
    class Open:
        number: int

    @dataclasses.dataclass(frozen=True)
    class HasADict:
        number: int

    for bad in ([1], (1, [2]), Open(1), HasADict(1), {}, bytearray(), object()):
        assert list(mutable_parts(Plan("x", (bad,)), "x")), bad  # type: ignore[arg-type]


# --- plans suffice -----------------------------------------------------------------------

CARRY_OUT = """
    import importlib.abc, json, os, sys, types

    package = types.ModuleType("hqlwal_raft")  # without its __init__, which imports everything
    package.__path__ = [sys.argv[1]]
    sys.modules["hqlwal_raft"] = package
    free = {
        *("_primitives", "_environment", "_files", "_gathering", "_paths", "_lock", "_directory"),
        *("_format", "_entry_rules", "_places", "_records", "_plans", "_types", "errors"),
    }

    class Guard(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.startswith("hqlwal_raft.") and name.split(".")[1] not in free:
                raise ImportError(f"a disk thread must not know {name}")

    sys.meta_path.insert(0, Guard())
    from hqlwal_raft import _plans
    from hqlwal_raft._environment import Environment
    from hqlwal_raft._directory import Directory
    from hqlwal_raft._files import File

    directory = Directory(Environment(), sys.argv[2])
    files = {}

    def build(value):
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind == "tuple":
            return tuple(map(build, rest))
        if kind == "bytes":
            return bytes.fromhex(rest[0])
        if kind == "file":
            number, name = rest
            if number not in files:
                files[number] = directory.open_file(name, is_writable=True)
            return files[number]
        return getattr(_plans, kind)(*map(build, rest))

    for plan in json.load(open(sys.argv[3])):
        outcome = _plans.carry_out(directory, build(plan))
        assert outcome.error is None, (plan, outcome)
    loaded = {name.split(".")[1] for name in sys.modules if name.startswith("hqlwal_raft.")}
    assert loaded <= free, loaded
    print("done")
"""


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, File):
        return ["file", id(value), value.name]
    if isinstance(value, tuple):
        return ["tuple", *map(as_json, value)]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return [type(value).__name__, *(as_json(getattr(value, f.name)) for f in fields)]
    assert value is None or isinstance(value, bool | int | str), value
    return value


@on_both_backends
async def test_plans_alone_make_the_same_directory_where_no_log_can_be_imported(
    tmp_path: Path,
) -> None:
    environment = CatchingEnvironment()
    path, copy = tmp_path / "log", tmp_path / "copy"
    async with RaftLogStorage.open(
        path, environment=environment, segment_size=SEGMENT_SIZE, cache_bytes=0
    ) as store:
        # the first chore, preparing, may be under way: it is among the plans
        copy.mkdir()
        shutil.copy(path / "meta.hql", copy)
        await history(store)
    plans = json.dumps([as_json(plan) for plan in environment.plans()])
    (tmp_path / "plans").write_text(plans)
    package = os.path.dirname(sys.modules["hqlwal_raft"].__file__ or "")
    out = run_python(CARRY_OUT, package, copy, tmp_path / "plans")
    assert out.strip() == "done"

    def held(directory: Path) -> dict[str, bytes]:
        paths = [p for p in directory.iterdir() if p.suffix == ".wal" or p.name == "meta.hql"]
        return {p.name: p.read_bytes() for p in paths}

    assert held(copy) == held(path)


# --- the owner alone ---------------------------------------------------------------------

#: who may run in any thread, by module; ``None`` is everything in it
ANYWHERE: dict[str, set[str] | None] = {
    "_plans": None,
    "_files": None,
    "_gathering": None,
    "_paths": None,
    "_lock": None,
    "_directory": None,
    "_format": None,
    "_places": None,
    "_records": None,
    "_environment": None,
    "_threads": None,
    "_pool": None,
    "_types": None,
    "errors": None,
    "_segment": {"Extent.read", "Extent.decode", "Extent._damage", "damage"},
    # the watchdog's thread, and what is carried out beside the owner, know a watch alone
    "_watchdog": None,
    "_chores": {"_carry_out"},
    # letting go of the lock; and a store that nobody holds may be collected anywhere
    "_leaving": None,
    "_commit": {"Committer.is_closing"},
    "_on_lane": {"carry_out_on_lane"},
    "_core": {"Core.__del__"},
    "_reading": {"_read_extents", "_read_extents.<locals>.<listcomp>"},
}


class Watch:
    """Notes what of the package runs in other threads than the owner's."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.is_on = False
        self.ran: set[tuple[str, str]] = set()

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if not self.is_on or event != "call" or threading.get_ident() == self.owner:
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith("hqlwal_raft.") and not module.startswith("hqlwal_raft.testing"):
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            self.ran.add((module.removeprefix("hqlwal_raft."), name))

    def strangers(self) -> set[tuple[str, str]]:
        found = set()
        for module, name in self.ran:
            names = ANYWHERE.get(module, set())
            if names is not None and name not in names:
                found.add((module, name))
        return found


class WatchedEnvironment(ColdEnvironment):
    """Watches the threads that read as well: they may be older than the watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        def watched() -> T:
            sys.setprofile(self._watch)
            try:
                return job()
            finally:
                sys.setprofile(None)

        return super().run_in_thread(watched)


#: whose attributes are the log's memory
OWNED = (
    log_module.Log,
    segment_module.Segment,
    meta_module.Meta,
    recent_module.Recent,
    reads_module.Reads,
    unsynced_module.Unsynced,
    Committer,
    GroupCommit,
    OnLane,
)


def guard(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> set[str]:
    """Notes who sets an attribute of the log's memory from another thread."""
    changed: set[str] = set()
    for kind in OWNED:

        def set_attribute(self: Any, name: str, value: Any) -> None:
            if watch.is_on and threading.get_ident() != watch.owner:
                changed.add(f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)

        monkeypatch.setattr(kind, "__setattr__", set_attribute, raising=False)
    return changed


@on_both_backends
@pytest.mark.parametrize("policy", ["immediate", "immediate_async", "interval_5"])
async def test_nobody_but_the_owner_touches_the_logs_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    watch = Watch()
    changed = guard(monkeypatch, watch)
    threading.setprofile(watch)
    try:
        options: dict[str, Any] = {
            "segment_size": SEGMENT_SIZE,
            "cache_bytes": 0,
            "environment": WatchedEnvironment(watch),
            "sync": policy,
        }
        async with RaftLogStorage.open(tmp_path, **options) as store:
            watch.is_on = True
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(read_for_ever, store)
                await history(store)
                tasks.cancel_scope.cancel()
    finally:
        threading.setprofile(None)
    assert changed == set()
    assert watch.strangers() == set()
    assert {"_plans", "_files", "_reading"} <= {module for module, _ in watch.ran}


async def read_for_ever(store: RaftLogStorage) -> None:
    reader = await store.get_log_reader()
    while True:
        got = await reader.try_get_log_entries(0)
        first = got[0].index if got else 0
        assert [entry.index for entry in got] == list(range(first, first + len(got)))
        await reader.limited_get_log_entries(0, max_bytes=2000)
        await reader.get_key_log_ids()
        await anyio.lowlevel.checkpoint()


def test_somebody_else_who_touches_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch()
    changed = guard(monkeypatch, watch)

    async def main() -> None:
        async with RaftLogStorage.open("/log", environment=MemoryKernel()) as store:
            log = store._core.log
            watch.is_on = True

            def trespass() -> None:
                log.epoch = log.epoch
                log.meta.committed = None
                log.clip(0, 5)

            threading.setprofile(watch)
            try:
                thread = threading.Thread(target=trespass)
                thread.start()
            finally:
                threading.setprofile(None)
            thread.join()

    anyio.run(main)
    assert changed == {"Log.epoch", "Meta.committed"}
    assert ("_log", "Log.clip") in watch.strangers()
