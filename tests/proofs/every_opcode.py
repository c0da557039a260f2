"""Every opcode is interrupted: KeyboardInterrupt or MemoryError at each instruction of ours that
runs on the thread of the loop, one at a time; then the store goes on, or says that it cannot.

A history is run once to count the instructions, then once more for each of them that was chosen.
The judgement knows only the public interface. See docs/design/proofs.md.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any, NamedTuple

import anyio

import hqlwal_raft
from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalError, WalLockedError

from . import loops
from .turns import Deadlock, Turns

__all__ = ["ERRORS", "SCENES", "Finding", "Point", "Scene", "count", "interrupt", "sample"]

_PACKAGE = os.path.dirname(hqlwal_raft.__file__) + os.sep
_TESTING = os.path.join(_PACKAGE, "testing") + os.sep
#: virtual: nothing is waited for
_PATIENCE_SECONDS = 1


class Interrupt(KeyboardInterrupt):
    """Raised at an instruction."""


class NoMemory(MemoryError):
    """Raised at an instruction."""


ERRORS: dict[str, type[BaseException]] = {
    "KeyboardInterrupt": Interrupt,
    "MemoryError": NoMemory,
}
_INJECTED = (Interrupt, NoMemory)


class Point(NamedTuple):
    """One execution of one instruction."""

    #: counted from the beginning of the history
    step: int
    #: the call of the history during which it runs
    call: str
    where: str


@dataclass(frozen=True)
class Scene:
    """Where a history runs."""

    backend: str
    policy: str
    cache_bytes: int

    def __str__(self) -> str:
        return f"{self.backend},{self.policy},{self.cache_bytes}"


SCENES = (
    Scene("asyncio", "immediate", 0),
    Scene("trio", "immediate", 0),
    Scene("asyncio", "immediate_async", 4096),
    Scene("trio", "immediate_async", 4096),
)


@dataclass(frozen=True)
class Finding:
    """What an interrupt did that it must not do."""

    #: "wrong", "hang", "untyped", "locked"
    kind: str
    point: Point
    scene: Scene
    error: str
    what: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.error} at {self.point.where} during {self.point.call} "
            f"({self.scene}, step {self.point.step}): {self.what}"
        )


# --- what the log holds --------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What a log should hold; every value is of one moment."""

    entries: tuple[Entry, ...] = ()
    frontier: LogId | None = None
    vote: Vote | None = None

    def append(self, entries: list[Entry]) -> Held:
        return replace(self, entries=(*self.entries, *entries))

    def truncate(self, index: int) -> Held:
        return replace(self, entries=tuple(e for e in self.entries if e.index < index))

    def purge(self, log_id: LogId) -> Held:
        kept = tuple(e for e in self.entries if e.index > log_id.index)
        return replace(self, entries=kept, frontier=log_id)


def _some(first: int, count_: int, size: int, term: int = 1) -> list[Entry]:
    return [Entry(term, i, b"%d of %d " % (i, term) * (size // 8)) for i in range(first, first + count_)]


class Call(NamedTuple):
    """One call of the history, and what it makes of the log."""

    name: str
    make: Callable[[RaftLogStorage, list[Any]], Awaitable[Any]]
    then: Callable[[Held], Held] = lambda held: held


async def _stream(store: RaftLogStorage, _: list[Any]) -> list[Entry]:
    return [entry async for entry in store.entries_stream(5, 11)]


_CALLS = (
    Call("cold read", lambda s, _: s.try_get_log_entries(2, 4)),
    Call("append", lambda s, _: s.append(_some(13, 1, 64)), lambda h: h.append(_some(13, 1, 64))),
    Call(
        "append with roll-over",
        lambda s, _: s.append(_some(14, 6, 2000)),
        lambda h: h.append(_some(14, 6, 2000)),
    ),
    Call(
        "append with callback",
        lambda s, told: s.append(_some(20, 2, 64), told.append),
        lambda h: h.append(_some(20, 2, 64)),
    ),
    Call("truncate inside", lambda s, _: s.truncate(LogId(1, 21)), lambda h: h.truncate(21)),
    Call("truncate across", lambda s, _: s.truncate(LogId(1, 15)), lambda h: h.truncate(15)),
    Call(
        "append after the cut",
        lambda s, _: s.append(_some(15, 2, 64, term=2)),
        lambda h: h.append(_some(15, 2, 64, term=2)),
    ),
    Call("purge", lambda s, _: s.purge(LogId(1, 6)), lambda h: h.purge(LogId(1, 6))),
    Call("vote", lambda s, _: s.save_vote(Vote(3, 1)), lambda h: replace(h, vote=Vote(3, 1))),
    Call("committed", lambda s, _: s.save_committed(LogId(1, 8))),
    Call("stream", _stream),
    Call("limited read", lambda s, _: s.limited_get_log_entries(8, None, 3000)),
    Call("key log ids", lambda s, _: s.get_key_log_ids()),
    Call("flush", lambda s, _: s.flush()),
)
_BEGINNING = Held().append(_some(1, 12, 2000))


def _beginning() -> dict[str, bytes]:
    """The files of a closed log of twelve entries in some segments."""
    with tempfile.TemporaryDirectory() as directory:

        async def fill() -> None:
            async with RaftLogStorage.open(directory, segment_size=8192) as store:
                await store.append(list(_BEGINNING.entries))

        anyio.run(fill)
        result = {}
        for name in sorted(os.listdir(directory)):
            with open(os.path.join(directory, name), "rb") as file:
                result[name] = file.read()
        return result


# --- the interrupts ------------------------------------------------------------------------


class Tracer:
    """Counts the instructions of ours on this thread, or raises at one of them."""

    def __init__(self, stop_at: int | None = None, error: type[BaseException] = Interrupt) -> None:
        self.call = ""
        self.steps: list[tuple[str, CodeType, int]] = []
        self.hit: tuple[str, CodeType, int] | None = None
        self._stop_at = stop_at
        self._error = error
        self._count = 0

    @contextlib.contextmanager
    def during(self, call: str) -> Iterator[None]:
        self.call = call
        if self.hit is None:
            sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) or file.startswith(_TESTING):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event != "opcode":
            return self._step
        if self._stop_at is None:
            self.steps.append((self.call, frame.f_code, frame.f_lasti))
        elif self._count == self._stop_at:
            self.hit = self.call, frame.f_code, frame.f_lasti
            raise self._error("at one instruction")  # which also ends the tracing
        self._count += 1
        return self._step


def _where(code: CodeType, offset: int, nth: int) -> str:
    line = next((line for start, end, line in code.co_lines() if start <= offset < end), 0)
    name = code.co_filename.removeprefix(_PACKAGE)
    return f"{name}:{line} {code.co_qualname} +{offset} ({nth})"


class _History:
    """One run."""

    def __init__(self, scene: Scene, directory: str, tracer: Tracer) -> None:
        self.scene = scene
        self.directory = directory
        self.tracer = tracer
        self.turns = Turns()
        self.before = self.after = _BEGINNING
        #: entries that must be there after a reopen, and those that may
        self.must = set(_BEGINNING.entries)
        self.may = set(_BEGINNING.entries)
        #: what a reopen must give; None where only ``must`` and ``may`` bound it
        self.expected: tuple[Entry, ...] | None = _BEGINNING.entries
        self.problems: list[tuple[str, str]] = []
        self.told: list[Any] = []
        self.waits: dict[str, bool] = {}
        self.store: RaftLogStorage | None = None

    def problem(self, kind: str, what: str) -> None:
        self.problems.append((kind, what))

    async def main(self) -> None:
        self.opening = RaftLogStorage.open(
            self.directory,
            sync=self.scene.policy,
            segment_size=8192,
            cache_bytes=self.scene.cache_bytes,
            environment=self.turns,
        )
        async with anyio.create_task_group() as tasks:
            self.tasks = tasks
            await self._live()
            for call, is_waiting in self.waits.items():
                if is_waiting:
                    self.problem("hang", f"{call} was never answered")
            tasks.cancel_scope.cancel()

    async def _live(self) -> None:
        with self.tracer.during("open"):
            store = await self._make("open", self.opening.__aenter__)
        if store is None:
            return
        self.store = store
        for call in _CALLS:
            self.before, self.after = self.after, call.then(self.after)
            self.may |= set(self.after.entries)
            with self.tracer.during(call.name):
                await self._make(call.name, lambda c=call: c.make(store, self.told))  # type: ignore[misc]
                # what it left to the threads comes back as well
                await anyio.sleep(_PATIENCE_SECONDS / 1000)
            if self.tracer.hit is not None:
                self.must = set(self.before.entries) & set(self.after.entries)
                await self._go_on(store)
                break
            self.before = self.after
            self.must = set(self.after.entries)
            self.expected = self.after.entries
        with self.tracer.during("close"):
            await self._make("close", lambda: self.opening.__aexit__(None, None, None))
            await anyio.sleep(_PATIENCE_SECONDS / 1000)
        if self.tracer.hit is not None and self.tracer.call == "close":
            await self._make("closing again", store.aclose)
        if len(self.told) > 1:
            self.problem("wrong", f"the callback was called {len(self.told)} times")

    async def _go_on(self, store: RaftLogStorage) -> None:
        """More appends, and what is read meanwhile."""
        self.expected = None
        # what was interrupted may still have its turn: a cancelled call does
        await self._make("flush", store.flush)
        live = await self._make("read", lambda: store.try_get_log_entries(0))
        if live is not None:
            is_one = tuple(live) in (self.before.entries, self.after.entries)
            if not is_one and not self._is_poisoned():
                self.problem("wrong", f"reads {_text(live)}, which is neither before nor after")
        state = await self._make("state", store.get_log_state)
        if state is None:
            return
        index = state.last_log_id.index + 1
        current = list(live or ())
        for number, size in ((1, 64), (4, 2000), (1, 64)):
            batch = _some(index, number, size, term=9)
            self.may |= set(batch)
            if await self._make("append", lambda b=batch: self._append(store, b)) is None:
                return
            index += number
            current += batch
            self.must = set(current) if live is not None else self.must | set(batch)
        live = await self._make("read", lambda: store.try_get_log_entries(0))
        if live is not None and live != current and not self._is_poisoned():
            self.problem("wrong", f"reads {_text(live)} after appending to {_text(current)}")
        self.expected = tuple(current) if live == current else None

    async def _append(self, store: RaftLogStorage, batch: list[Entry]) -> bool:
        await store.append(batch)
        await store.flush()
        return True

    def _is_poisoned(self) -> bool:
        try:
            return self.store is None or self.store.statistics().is_poisoned
        except WalError:
            return True

    async def _make(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """The call's result, in a task of its own; None where it failed or does not answer."""
        done = anyio.Event()
        results: list[Any] = []
        name = name if name not in self.waits else f"{name}, again"
        self.waits[name] = True

        async def run() -> None:
            try:
                results.append(await call())
            except (WalError, OSError, *_INJECTED):
                self.expected = None
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                self.expected = None
                self.problem("untyped", f"{name} raised {error!r}"[:200])
            self.waits[name] = False
            done.set()

        self.tasks.start_soon(run)
        with anyio.move_on_after(_PATIENCE_SECONDS):
            await done.wait()
        return results[0] if results else None

    def reopen(self) -> None:
        """Opens it again and judges what is there."""
        try:
            entries, frontier, vote = self._look()
        except WalLockedError:
            self.problem("locked", "the store is gone, its lock is not")
            return
        except BaseException as error:
            self.problem("wrong", f"opening again: {error!r}"[:250])
            return
        if self.expected is not None and entries != self.expected:
            was = _text(self.expected)
            self.problem("wrong", f"opened with {_text(entries)} instead of {was}")
        if missing := self.must - set(entries):
            self.problem("wrong", f"lost: {_text(sorted(missing, key=lambda e: e.index))}")
        if strange := set(entries) - self.may:
            self.problem("wrong", f"never written: {_text(sorted(strange))}")
        if frontier not in (self.before.frontier, self.after.frontier):
            self.problem("wrong", f"frontier {frontier}")
        if vote not in (self.before.vote, self.after.vote):
            self.problem("wrong", f"vote {vote}")

    def _look(self) -> tuple[tuple[Entry, ...], LogId | None, Vote | None]:
        found: list[Any] = []

        async def look() -> None:
            async with RaftLogStorage.open(
                self.directory, segment_size=8192, check_integrity=True, environment=turns
            ) as store:
                found.append(tuple(await store.try_get_log_entries(0)))
                found.append((await store.get_log_state()).last_purged_log_id)
                found.append(await store.read_vote())

        turns = Turns()
        try:
            loops.run("asyncio", look, turns)
        finally:
            turns.drop_threads()
        return found[0], found[1], found[2]


def _text(entries: Any) -> str:
    return "[" + " ".join(f"{e.index}/{e.term}" for e in entries) + "]"


_files: dict[str, bytes] = {}


def _run(scene: Scene, tracer: Tracer) -> list[tuple[str, str]]:
    if not _files:
        _files.update(_beginning())
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(dir=parent)
    for name, content in _files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    history = _History(scene, directory, tracer)
    was_enabled = gc.isenabled()
    gc.disable()  # finalizers come when the last reference goes, the same every time
    try:
        with loops.silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loops.run(scene.backend, history.main, history.turns)
            except Deadlock:
                history.expected = None
                history.problem("hang", "nothing can go on")
            except (loops.DIED, *_INJECTED):
                history.expected = None
            except Exception as error:
                history.problem("untyped", f"the run ended with {_innermost(error)!r}"[:200])
            finally:
                sys.settrace(None)
            _drop(history)
            history.reopen()
    finally:
        shutil.rmtree(directory)
        if was_enabled:
            gc.enable()
    return history.problems


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _drop(history: _History) -> None:
    """Nobody has the store any more."""
    history.store = None
    history.__dict__.pop("opening", None)
    history.__dict__.pop("tasks", None)
    turns = history.turns
    turns.moved()
    if turns.threads:
        gc.collect()
        turns.moved()


# --- what is called from outside -----------------------------------------------------------


def count(scene: Scene) -> list[Point]:
    """The points of a history: of each instruction, within each call, the first two executions
    and the last.
    """
    _run(scene, Tracer())  # what is done once in a process is done
    tracer = Tracer()
    problems = _run(scene, tracer)
    assert not problems, problems
    total = Counter(tracer.steps)
    seen = Counter[tuple[str, CodeType, int]]()
    points = []
    for step, key in enumerate(tracer.steps):
        seen[key] += 1
        if seen[key] <= 2 or seen[key] == total[key]:
            call, code, offset = key
            points.append(Point(step, call, _where(code, offset, seen[key])))
    return points


def interrupt(scene: Scene, point: Point, error: str) -> list[Finding]:
    """Interrupts one point; what came of it that must not be."""
    tracer = Tracer(point.step, ERRORS[error])
    problems = _run(scene, tracer)
    assert tracer.hit is not None, f"{point} was not reached again"
    call, code, offset = tracer.hit
    where = _where(code, offset, 0).rpartition(" ")[0]
    assert (call, where) == (point.call, point.where.rpartition(" ")[0]), f"{where} is not {point}"
    return [Finding(kind, point, scene, error, what) for kind, what in problems]


def sample(points: list[Point], at_most: int, start: int = 0) -> list[Point]:
    """A fixed choice: a stride that has no divisor in common with the number of points."""
    if len(points) <= at_most:
        return points
    stride = len(points) // at_most * 2 + 1
    while any(len(points) % d == 0 and stride % d == 0 for d in range(2, stride + 1)):
        stride += 2
    return [points[(start + k * stride) % len(points)] for k in range(at_most)]
