"""Every call is answered: with arguments that are wrong, and beside callbacks that raise.

A small loop over a table of wrong arguments for each public method: a typed error, at once, and
nothing changed. And one over callbacks that let an exception of each class out: the others of the
group are called all the same, once, and whatever waits is answered. It must not know the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import anyio

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalError

from . import answers, loops, threaded
from .machine import Machine, Spinning
from .machine import play as run_on
from .store import Problem, look, opened
from .turns import Deadlock

__all__ = [
    "CALLBACK_ERRORS",
    "KINDS",
    "WRONG",
    "Finding",
    "Wrong",
    "run",
    "try_callback",
    "try_wrong",
]

#: of the processor: long enough for any call, short enough for a loop of them
_LIMIT_SECONDS = 0.5
_LAST = 9

#: what a callback may let out
CALLBACK_ERRORS: tuple[type[BaseException], ...] = (
    ValueError,
    asyncio.CancelledError,
    KeyboardInterrupt,
    MemoryError,
    GeneratorExit,
)


#: what went wrong once
KINDS = {
    "D.1": "a callback that lets a BaseException out keeps the others from being called",
    "D.3": "arguments are not judged before something is touched",
}


class Wrong(NamedTuple):
    """A call with an argument that makes no sense."""

    name: str
    call: Callable[[RaftLogStorage], Awaitable[Any]]
    is_write: bool


class Finding(NamedTuple):
    """A problem, and where it came from."""

    case: str
    problem: Problem

    @property
    def kind(self) -> str:
        """One of KINDS, or "new"."""
        if self.case.startswith("callback"):
            return "D.1" if self.problem.kind in ("hang", "callback", "died") else "new"
        is_known = self.problem.kind in ("hang", "changed", "accepted", "untyped")
        return "D.3" if is_known else "new"

    @property
    def replay(self) -> str:
        return f"python -m tests.proofs answer {self.case!r}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.case}: {self.problem}"


async def _collect(stream: Any) -> list[Entry]:
    return [entry async for entry in stream]


def _wrong() -> Iterator[Wrong]:
    numbers: tuple[Any, ...] = (-1, -(1 << 40), 1 << 64, 2.0, 2.5, True, "3", None)
    for number in numbers:
        text = repr(number)
        log_ids = {"index": LogId(1, number), "term": LogId(number, 3), "node": LogId(1, 3, number)}
        for part, log_id in log_ids.items():
            for method in ("truncate", "truncate_after", "purge", "save_committed"):
                # truncations look at the index alone, the rest of the log id is not theirs
                if part == "index" or method in ("purge", "save_committed"):
                    yield Wrong(
                        f"{method}({part}={text})",
                        lambda s, m=method, i=log_id: getattr(s, m)(i),  # type: ignore[misc]
                        is_write=True,
                    )
        entries = {
            "index": Entry(1, number, b"x"),
            "term": Entry(number, _LAST + 1, b"x"),
            "node": Entry(1, _LAST + 1, b"x", number),
            "second": Entry(1, number, b"x"),
        }
        for part, entry in entries.items():
            if number is True and part in ("term", "node"):
                continue  # among thousands of entries that is the number that it equals
            batch = [Entry(1, _LAST + 1, b"x"), entry] if part == "second" else [entry]
            yield Wrong(
                f"append({part}={text})",
                lambda s, b=batch: s.append(b),  # type: ignore[misc]
                is_write=True,
            )
        yield Wrong(
            f"save_vote(term={text})",
            lambda s, n=number: s.save_vote(Vote(n)),  # type: ignore[misc]
            is_write=True,
        )
        for method in ("try_get_log_entries", "limited_get_log_entries"):
            yield Wrong(
                f"{method}({text})",
                lambda s, m=method, n=number: getattr(s, m)(n),  # type: ignore[misc]
                is_write=False,
            )
            if number is not None:
                yield Wrong(
                    f"{method}(1, {text})",
                    lambda s, m=method, n=number: getattr(s, m)(1, n),  # type: ignore[misc]
                    is_write=False,
                )
        for method in ("entries_stream", "leader_bounded_stream"):
            first = (Vote(1, 1, committed=True),) if method == "leader_bounded_stream" else ()
            yield Wrong(
                f"{method}({text})",
                lambda s, m=method, f=first, n=number: _collect(getattr(s, m)(*f, n)),  # type: ignore[misc]
                is_write=False,
            )
    for budget in (-1, -32768, -32769, -40000, -(10**6), 1.5, "3", None):
        for start in (1, 5):
            yield Wrong(
                f"limited_get_log_entries({start}, None, {budget!r})",
                lambda s, i=start, b=budget: s.limited_get_log_entries(i, None, b),  # type: ignore[misc]
                is_write=False,
            )
    nothing: Any
    for nothing in (None, 3, "x", b"x", (1, 2)):
        for method in ("truncate", "purge", "save_vote", "append"):
            if (method, nothing) == ("append", b"x"):
                continue  # an iterable of numbers: as (1, 2)
            yield Wrong(
                f"{method}({nothing!r})",
                lambda s, m=method, n=nothing: getattr(s, m)(n),  # type: ignore[misc]
                is_write=True,
            )
    for payload in ("text", None, 3, [1]):
        yield Wrong(
            f"append(payload={payload!r})",
            lambda s, p=payload: s.append([Entry(1, _LAST + 1, p)]),  # type: ignore[misc]
            is_write=True,
        )
    callback: Any
    for callback in ("x", 3, []):
        yield Wrong(
            f"append(callback={callback!r})",
            lambda s, c=callback: s.append([Entry(1, _LAST + 1, b"x")], c),  # type: ignore[misc]
            is_write=True,
        )
    for node_id in (-1, True, 1 << 64, 1.5, b"x", "x" * 2000):
        yield Wrong(
            f"save_vote(node_id={node_id!r})"[:60],
            lambda s, n=node_id: s.save_vote(Vote(1, n)),  # type: ignore[misc]
            is_write=True,
        )


WRONG = tuple(_wrong())


def try_wrong(
    wrong: Wrong, cache_bytes: int, *, is_threaded: bool = False, backend: str = "asyncio"
) -> list[Problem]:
    """Makes a call with a wrong argument; the log must be afterwards as it was before."""
    machine = threaded.ThreadedMachine() if is_threaded else Machine()
    opened: Callable[..., Any] = threaded.opened if is_threaded else answers.opened
    problems: list[Problem] = []

    def problem(kind: str, what: str) -> None:
        problems.append(Problem(kind, wrong.name, what[:200]))

    async def main() -> None:
        async with opened(machine, cache_bytes=cache_bytes) as store:
            await store.append([Entry(1, index, b"x" * 2000) for index in range(1, _LAST + 1)])
            await store.save_vote(Vote(1, 1, committed=True))
            await store.save_committed(LogId(1, 3))
            before = await look(store)
            try:
                value = await wrong.call(store)
            except (ValueError, TypeError, WalError):
                pass
            except Exception as error:
                problem("untyped", repr(error))
            else:
                if wrong.is_write:
                    problem("accepted", f"returned {value!r}")
                elif not all(entry in before.entries for entry in value):
                    problem("wrong", f"returned {value!r}")
            after = await look(store)
            if after != before:
                problem("changed", f"ends at {after.last}, frontier {after.frontier}, {after.vote}")
                before = after
            await store.append([Entry(2, _LAST + 1, b"x", 7)])
            if (await store.try_get_log_entries(0))[:-1] != list(before.entries):
                problem("changed", "what is read after the next append")
        async with opened(machine) as store:
            if (await look(store)).entries[:-1] != before.entries:
                problem("changed", "what is there after opening again")

    try:
        run_on(backend, machine, main, _LIMIT_SECONDS)
    except Spinning:
        problem("hang", "runs for ever")
    except Deadlock:
        problem("hang", "waits for ever")
    except BaseException as error:
        problem("broken", f"and then {_innermost(error)!r}")
    finally:
        with loops.silence():
            machine.drop_threads()
    return problems


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def try_callback(error: type[BaseException], place: int, backend: str) -> list[Problem]:
    """Three appends with callbacks, one of which raises; a vote and a flush come behind."""
    machine = Machine()
    machine.delay = 3  # so that the three share a sync
    problems: list[Problem] = []
    where = f"{error.__name__} from callback {place} of 3, {backend}"
    called: list[int] = []
    answered: list[str] = []
    interrupted: list[str] = []

    def callback(number: int) -> Callable[[BaseException | None], None]:
        def call(_error: BaseException | None) -> None:
            called.append(number)
            if number == place:
                raise error

        return call

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            manager = opened(machine)  # kept: one that is dropped closes the store
            store = await manager.__aenter__()

            async def make(name: str, call: Callable[[], Awaitable[Any]]) -> None:
                try:
                    await call()
                except KeyboardInterrupt:  # trio cannot raise it by itself: the next write does
                    interrupted.append(name)
                answered.append(name)

            for number in (1, 2, 3):
                await store.append([Entry(1, number, b"x", number)], callback(number))
            for name, call in (
                ("save_vote", lambda: store.save_vote(Vote(1, 1))),
                ("flush", store.flush),
                ("append", lambda: store.append([Entry(1, 4, b"x")])),
            ):
                tasks.start_soon(make, name, call)
                await anyio.sleep(5)
            tasks.start_soon(make, "close", store.aclose)
            await anyio.sleep(5)
            tasks.cancel_scope.cancel()

    try:
        run_on(backend, machine, main, _LIMIT_SECONDS)
    except (Deadlock, Spinning) as hang:
        problems.append(Problem("hang", where, repr(hang)))
    except BaseException as died:
        problems.append(Problem("died", where, repr(_innermost(died))[:200]))
    if sorted(called) != [1, 2, 3]:
        problems.append(Problem("callback", where, f"called: {called}"))
    if len(interrupted) != (error is KeyboardInterrupt and backend == "trio"):
        problems.append(Problem("died", where, f"an interrupt for {interrupted}"))
    if answered != ["save_vote", "flush", "append", "close"]:
        problems.append(Problem("hang", where, f"answered: {answered}"))
    return problems


def _cases() -> dict[str, Callable[[], list[Problem]]]:
    cases: dict[str, Callable[[], list[Problem]]] = {}
    for wrong in WRONG:
        for cache_bytes in (0, 1 << 20):
            for is_threaded in (False, True):
                face = "threads" if is_threaded else "tasks"
                name = f"wrong argument: {wrong.name}, {face}, cache {cache_bytes}"
                cases[name] = partial(try_wrong, wrong, cache_bytes, is_threaded=is_threaded)
    for error in CALLBACK_ERRORS:
        for place in (1, 2, 3):
            for backend in loops.BACKENDS:
                name = f"callback: {error.__name__}, {place}, {backend}"
                cases[name] = lambda e=error, p=place, b=backend: try_callback(e, p, b)  # type: ignore[misc]
    return cases


def replay(case: str) -> list[Finding]:
    """What ``Finding.replay`` calls for."""
    return [Finding(case, problem) for problem in _cases()[case]()]


def run(
    progress: Callable[[int, int], object] = lambda _done, _all: None, stride: int = 1
) -> tuple[list[Finding], int]:
    """Tries every ``stride``-th case; the findings, and how many cases there were."""
    chosen = list(_cases().items())[::stride]
    findings = []
    for done, (name, play) in enumerate(chosen):
        findings += [Finding(name, problem) for problem in play()]
        progress(done + 1, len(chosen))
    return findings, len(chosen)
