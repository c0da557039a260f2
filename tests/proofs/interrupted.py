"""A history that is interrupted once: what the store must still do, and what a reopen must find.

For ``every_opcode``, which says where to interrupt. It knows only the public interface.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import anyio

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalError, WalLockedError

from . import loops
from .interrupted_calls import BEGINNING, CALLS, Call
from .machine import Inline
from .threaded import Direct, Locks
from .turns import Deadlock, Spins

__all__ = ["CALLS", "INJECTED", "Call", "Interrupter", "Scene", "run"]

#: of the processor; a run takes some hundredths
_LIMIT_SECONDS = 10
#: virtual: nothing is waited for. What an interrupt has had forgotten is found within two seconds
_PATIENCE_SECONDS = 5


class Interrupt(KeyboardInterrupt):
    """Raised at an instruction."""


class NoMemory(MemoryError):
    """Raised at an instruction."""


INJECTED = (Interrupt, NoMemory)


@dataclass(frozen=True)
class Scene:
    """Where a history runs.

    Of the backends "threads" is the blocking face, called in the main thread, and "others" the
    same where not that thread is interrupted but all others.
    """

    backend: str
    policy: str
    cache_bytes: int

    @property
    def is_blocking(self) -> bool:
        return self.backend in ("threads", "others")

    @property
    def loop(self) -> str:
        return "asyncio" if self.is_blocking else self.backend

    def __str__(self) -> str:
        return f"{self.backend},{self.policy},{self.cache_bytes}"


class Interrupter(Protocol):
    """Interrupts once, or not at all."""

    #: the call during which it did
    @property
    def hit_during(self) -> str | None: ...
    def during(self, call: str) -> AbstractContextManager[None]: ...
    def stop(self) -> None: ...


def _beginning() -> dict[str, bytes]:
    """The files of a closed log of twelve entries in some segments."""
    with tempfile.TemporaryDirectory() as directory:

        async def fill() -> None:
            async with RaftLogStorage.open(directory, segment_size=8192) as store:
                await store.append(list(BEGINNING.entries))

        anyio.run(fill)
        return loops.files_in(directory)


# --- one run -----------------------------------------------------------------------------


class _History:
    """One run."""

    def __init__(
        self, scene: Scene, calls: Sequence[Call], directory: str, interrupter: Interrupter
    ) -> None:
        self.scene = scene
        self.calls = calls
        self.directory = directory
        self.interrupter = interrupter
        self.turns = Locks()
        #: who makes a call for another says so where it cannot say how it ended
        self.may_raise = (*INJECTED, MemoryError) if scene.backend == "others" else INJECTED
        self.before = self.after = BEGINNING
        #: entries that must be there after a reopen, and those that may
        self.must = set(BEGINNING.entries)
        self.may = set(BEGINNING.entries)
        #: what a reopen must give; None where only ``must`` and ``may`` bound it
        self.expected: tuple[Entry, ...] | None = BEGINNING.entries
        self.problems: list[tuple[str, str]] = []
        self.told: list[Any] = []
        self.waits: dict[str, bool] = {}
        self.store: Any = None

    def problem(self, kind: str, what: str) -> None:
        self.problems.append((kind, what))

    async def main(self) -> None:
        face: Any = Direct if self.scene.is_blocking else RaftLogStorage
        self.opening = face.open(
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
        with self.interrupter.during("open"):
            store = await self._make("open", self.opening.__aenter__)
        if store is None:
            return
        self.store = store
        for call in self.calls:
            self.before, self.after = self.after, call.then(self.after)
            self.may |= set(self.after.entries)
            self.must = set(self.before.entries) & set(self.after.entries)
            with self.interrupter.during(call.name):
                await self._make(call.name, partial(call.make, store, self.before, self.told))
                # what it left to the threads comes back as well
                await anyio.sleep(_PATIENCE_SECONDS / 5000)
            if self.interrupter.hit_during is not None:
                await self._go_on(store, call)
                break
            self.before = self.after
            self.must = set(self.after.entries)
            self.expected = self.after.entries
        with self.interrupter.during("close"):
            await self._make("close", lambda: self.opening.__aexit__(None, None, None))
            await anyio.sleep(_PATIENCE_SECONDS / 5000)
        if self.interrupter.hit_during == "close":
            await self._make("closing again", store.aclose)
        for call, times in Counter(self.told).items():
            if times > 1:
                self.problem("wrong", f"the callback of {call} was called {times} times")

    async def _go_on(self, store: Any, call: Call) -> None:
        """More appends, and what is read meanwhile."""
        self.expected = None
        # what was interrupted may still have its turn: a cancelled call does
        await self._make("flush", store.flush)
        live = await self._make("read", lambda: store.try_get_log_entries(0))
        if live is not None:
            is_right = call.may_leave(self.before, self.after, tuple(live))
            if not is_right and not self._is_poisoned():
                self.problem("wrong", f"reads {_text(live)}, which is neither before nor after")
        state = await self._make("state", store.get_log_state)
        if state is None:
            return
        index = state.last_log_id.index + 1
        current = list(live or ())
        for number, size in ((1, 64), (4, 2000), (1, 64)):
            batch = [Entry(9, index + k, b"9" * size) for k in range(number)]
            self.may |= set(batch)
            if await self._make("append", partial(self._append, store, batch)) is None:
                return
            index += number
            current += batch
            self.must = set(current) if live is not None else self.must | set(batch)
        live = await self._make("read", lambda: store.try_get_log_entries(0))
        if live is not None and live != current and not self._is_poisoned():
            self.problem("wrong", f"reads {_text(live)} after appending to {_text(current)}")
        self.expected = tuple(current) if live == current else None

    async def _append(self, store: Any, batch: list[Entry]) -> bool:
        await store.append(batch)
        await store.flush()
        return True

    def _is_poisoned(self) -> bool:
        try:
            return self.store is None or self.store.statistics().is_poisoned
        except (WalError, MemoryError):
            return True
        except Deadlock:
            return False

    async def _make(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """The call's result, in a task of its own; None where it failed or does not answer."""
        done = anyio.Event()
        results: list[Any] = []
        name = name if name not in self.waits else f"{name}, again"
        self.waits[name] = True

        async def run() -> None:
            try:
                results.append(await call())
            except (WalError, OSError, *self.may_raise):
                self.expected = None
            except anyio.get_cancelled_exc_class():
                raise
            except Deadlock:  # in a call that blocks
                self.expected = None
                return
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

        turns = Inline()
        try:
            loops.run("asyncio", look, turns)
        finally:
            turns.drop_threads()
        return found[0], found[1], found[2]


def _text(entries: Any) -> str:
    return "[" + " ".join(f"{e.index}/{e.term}" for e in entries) + "]"


_files: dict[str, bytes] = {}


def run(scene: Scene, calls: Sequence[Call], interrupter: Interrupter) -> list[tuple[str, str]]:
    """Runs the calls; says what must not be, by kind: wrong, hang, untyped, locked."""
    if not _files:
        _files.update(_beginning())
    with loops.isolated(_files) as directory:
        history = _History(scene, calls, directory, interrupter)
        has_ended = _live(history)
        _drop(history)
        history.reopen()
        history.turns.drop_threads()
        problems = history.problems
        if problems or not has_ended:
            del history
            loops.forget()
    return problems


def _live(history: _History) -> bool:
    """The run; False where tasks of it are left."""
    try:
        with loops.limit_seconds(_LIMIT_SECONDS):
            loops.run(history.scene.loop, history.main, history.turns)
    except (Deadlock, Spins) as hang:
        history.problem("hang", f"the run does not end: {type(hang).__name__}")
    except (loops.DIED, *INJECTED):
        pass
    except Exception as error:
        history.problem("untyped", f"the run ended with {_innermost(error)!r}"[:200])
    else:
        return True
    finally:
        history.interrupter.stop()
    history.expected = None
    return False


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
