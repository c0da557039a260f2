"""What a case of the conformance suite is made of: the trial it runs in and its checks.

It must not know any storage: the cases see the contract's methods only, and no test framework.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeVar

import anyio
import anyio.lowlevel

from hqlwal_raft._types import Entry, LogId, LogState
from hqlwal_raft.protocols import LogReader, LogStorage

__all__ = [
    "REGISTERED",
    "Calls",
    "Case",
    "Rounds",
    "StorageFactory",
    "Trial",
    "all_started",
    "case",
    "closing",
    "collected",
    "equal",
    "filled",
    "holds",
    "ignore",
    "refused",
    "require",
]


#: a stream
S = TypeVar("S")


class StorageFactory(Protocol):
    """Opens the storages that a case works on.

    Usually one line suffices: ``lambda name: MyStorage.open(directory / name)``.
    """

    def __call__(self, name: str, /) -> AbstractAsyncContextManager[LogStorage]:
        """An async context manager that opens the storage called ``name``.

        A name never given before means an empty storage. The same name again, after the
        context was left, means the same storage, reopened. Names are valid file names.
        """
        ...


class Case(Protocol):
    """One case: a coroutine function that raises AssertionError where the demand is broken."""

    __name__: str

    async def __call__(
        self, factory: StorageFactory, *, payload_bytes: int = 0, timeout_seconds: float = 60
    ) -> None: ...


class Trial:
    """One run of a case: opens its storage as often as the case asks, and makes entries."""

    def __init__(self, factory: StorageFactory, name: str, payload_bytes: int) -> None:
        self.factory: Final = factory
        self.name: Final = name
        self.payload_bytes: Final = payload_bytes

    def open(self, other: str = "") -> AbstractAsyncContextManager[LogStorage]:
        """Opens the trial's storage: empty the first time, as it was left from then on.

        With ``other``, letters and digits, another one.
        """
        return self.factory(f"{self.name}-{other}" if other else self.name)

    def entry(self, index: int, term: int = 1, node_id: int = 0) -> Entry:
        """An entry whose payload tells it from every other, padded to ``payload_bytes``."""
        text = b"%d/%d/%d " % (term, node_id, index)
        repeats = -(-self.payload_bytes // len(text))
        payload = (text * repeats)[: self.payload_bytes] if repeats > 1 else text
        return Entry(term, index, payload, node_id)

    def entries(self, start: int, stop: int, term: int = 1, node_id: int = 0) -> list[Entry]:
        """Entries with the indexes ``[start, stop)``."""
        return [self.entry(index, term, node_id) for index in range(start, stop)]


#: every case, in the order of definition
REGISTERED: list[tuple[str, Case]] = []


def case(body: Callable[[Trial], Awaitable[None]]) -> Case:
    """Registers ``body`` as a case; its name is the sentence, its docstring the demand."""
    name = body.__name__
    demand = " ".join((body.__doc__ or "").split()).rstrip(".")

    @functools.wraps(body)
    async def run(
        factory: StorageFactory, *, payload_bytes: int = 0, timeout_seconds: float = 60
    ) -> None:
        try:
            with anyio.fail_after(timeout_seconds):
                await body(Trial(factory, name, payload_bytes))
        except Exception as error:
            cause = _only(error)
            if isinstance(cause, _BrokenError):
                what = str(cause)
            elif isinstance(cause, TimeoutError):
                what = f"it did not end within {timeout_seconds} s"
            else:
                what = f"it raised {cause!r}"
            raise AssertionError(f"{name}: the demand «{demand}» is broken: {what}") from error

    REGISTERED.append((name, run))
    return run


class _BrokenError(AssertionError):
    """A check of a case failed."""


def _only(error: BaseException) -> BaseException:
    """The first error inside exception groups; task groups wrap what their tasks raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.asynccontextmanager
async def filled(trial: Trial, start: int, stop: int) -> AsyncIterator[LogStorage]:
    """The trial's storage, with entries ``[start, stop)`` appended."""
    async with trial.open() as storage:
        await storage.append(trial.entries(start, stop))
        yield storage


# --- checks ------------------------------------------------------------------------------


def require(condition: object, what: str) -> None:
    """Fails the case with ``what`` where ``condition`` does not hold."""
    if not condition:
        raise _BrokenError(what)


def equal(got: object, want: object, what: str) -> None:
    """Fails the case where ``got`` is not ``want``."""
    if got != want:
        raise _BrokenError(f"{what}: got {_short(got)}, not {_short(want)}")


@contextlib.contextmanager
def refused(
    error_type: type[Exception] | tuple[type[Exception], ...], what: str
) -> Generator[None, None, None]:
    """Fails the case where the block does not raise ``error_type``, or one of them."""
    try:
        yield
    except error_type:
        return
    except Exception as error:
        raise _BrokenError(f"{what}: raised {error!r} instead of {_names(error_type)}") from error
    raise _BrokenError(f"{what}: no {_names(error_type)} was raised")


def _names(types: type[Exception] | tuple[type[Exception], ...]) -> str:
    return " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))


async def holds(
    storage: LogReader, entries: Sequence[Entry], what: str, purged: LogId | None = None
) -> None:
    """Fails the case where the log is not exactly ``entries`` above the frontier ``purged``."""
    equal(await storage.try_get_log_entries(0), list(entries), what)
    last = entries[-1].log_id if entries else purged
    equal(await storage.get_log_state(), LogState(purged, last), f"{what}: the log state")


def _short(value: object) -> str:
    """The value for a message: payloads by their beginning, long lists by their ends."""
    if isinstance(value, Entry):
        payload = bytes(value.payload)
        tail = f"... ({len(payload)} bytes)" if len(payload) > 24 else ""
        return f"({value.term}, {value.index}, {payload[:24]!r}{tail}, {value.node_id})"
    if isinstance(value, list):
        shown = value if len(value) <= 6 else [*value[:3], ..., *value[-3:]]
        inner = ", ".join("..." if item is ... else _short(item) for item in shown)
        return f"{len(value)} items [{inner}]"
    return repr(value)


# --- tools -------------------------------------------------------------------------------


async def all_started(
    calls: Iterable[Callable[[], Awaitable[Any]]], *, cancelled: Collection[int] = ()
) -> list[Any]:
    """Makes the calls in their order, none waiting for the one before; their results.

    Where a call raises, its error stands in for the result. The calls whose numbers are in
    ``cancelled`` are cancelled once all calls are made; where one was, the result is None.
    """
    calls = list(calls)
    results: list[Any] = [None] * len(calls)
    scopes = [anyio.CancelScope() for _ in calls]
    turns = [anyio.Event() for _ in range(len(calls) + 1)]

    async def run(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        await turns[number].wait()
        # no other task runs between here and the call's first wait
        turns[number + 1].set()
        with scopes[number]:
            try:
                results[number] = await call()
            except Exception as error:
                results[number] = error

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(run, number, call)
        turns[0].set()
        await turns[-1].wait()
        for number in cancelled:
            scopes[number].cancel()
    return results


def ignore(_error: BaseException | None) -> None:
    """A callback for those who do not wait."""


@contextlib.asynccontextmanager
async def closing(stream: S) -> AsyncIterator[S]:
    """The stream, closed at the end where it can be: trio minds generators left open."""
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            with anyio.CancelScope(shield=True):
                await close()


async def collected(stream: AsyncIterator[Entry]) -> list[Entry]:
    """Everything that a stream of entries gives."""
    async with closing(stream):
        return [entry async for entry in stream]


class Rounds:
    """Wakes readers whenever a writer begins its next write, until it has ended."""

    def __init__(self) -> None:
        self._next = anyio.Event()
        self.have_ended = False

    def begin(self) -> None:
        """Wakes the readers for the next round."""
        self._next.set()
        self._next = anyio.Event()

    def end(self) -> None:
        """Wakes the readers for the last time."""
        self.have_ended = True
        self._next.set()

    async def repeat(self, read: Callable[[], Awaitable[None]]) -> None:
        """Reads a few times in each round, with other tasks in between."""
        while not self.have_ended:
            upcoming = self._next
            for _ in range(4):
                await read()
                await anyio.lowlevel.checkpoint()
            await upcoming.wait()


class Calls:
    """A callback that remembers how it was called."""

    def __init__(self) -> None:
        self.seen: list[BaseException | None] = []
        self.threads: set[int] = set()
        self._loop_thread = threading.get_ident()
        self._changed = anyio.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.seen.append(error)
        self.threads.add(threading.get_ident())
        if threading.get_ident() == self._loop_thread:
            self._changed.set()

    async def wait_for(self, count: int) -> list[BaseException | None]:
        """Waits for that many calls; what they were called with."""
        while len(self.seen) < count:
            self._changed = anyio.Event()
            await self._changed.wait()
        return self.seen
