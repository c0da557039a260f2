"""Plays histories of named operations against the public async interface, and judges the answers.

A history is written as rounds of text: the operations of one round, separated by ``|``, are called
at the same moment, in order. ``Player`` makes the calls in an environment, keeps what was begun and
acknowledged in a ledger, and collects as ``Problem`` what a caller must never meet. It runs within
``loops.run``; it must not know the engine.

The operations: ``open``, ``close``, ``append 300*3 9000`` (payload sizes), ``append! 300`` (with a
callback), ``truncate N`` (the last N; ``all``), ``after N`` (truncate_after all but the last N;
``none``), ``purge N`` (the first N; ``all``; ``+N`` beyond the end), ``vote``, ``committed``,
``flush``, ``aclose``, ``read``, ``limited BYTES``, ``stream``, ``leader``, ``keys``, ``state``, ``reader``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import anyio
import anyio.abc

from hqlwal_raft import (
    Entry,
    LogGapError,
    LogId,
    RaftLogStorage,
    Vote,
    WalClosedError,
    WalError,
    WalPoisonedError,
)
from hqlwal_raft._environment import Environment
from tests.torture.ledger import Ledger, View, Violation

from .machine import without_frames

__all__ = ["DIRECTORY", "Answer", "Player", "Problem", "WasCancelled", "look", "opened"]

DIRECTORY = "/node/log"
SEGMENT_SIZE = 8192
#: virtual: an idle loop jumps over it
_PATIENCE_SECONDS = 5.0
#: what may come out of a call that was interrupted
_INTERRUPTS = (KeyboardInterrupt, MemoryError)


class WasCancelled(Exception):
    """In the place of a result: what waited for the call was cancelled."""


class Problem(NamedTuple):
    """A promise that was broken."""

    #: "hang", "untyped", "lost", "half", "callback", "descriptor", "lock", "refused" …
    kind: str
    #: the operation during which it showed
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.where}): {self.what}"


@dataclass(eq=False)
class Answer:
    """One call, and what became of it."""

    operation: str
    is_answered: bool = False
    value: Any = None
    error: BaseException | None = None
    #: what the callback was called with, where one was given
    calls: list[BaseException | None] | None = None
    #: notes in the ledger that it succeeded; that it was refused and nothing was changed
    acknowledge: Callable[[], object] = lambda: None
    undo: Callable[[], object] = lambda: None
    #: compares a value that is right with the one that came
    check: Callable[[Any], str | None] = lambda _value: None

    @property
    def is_unknown(self) -> bool:
        """Whether the operation may have been carried out or not."""
        return not self.is_answered or isinstance(
            self.error, (*_INTERRUPTS, anyio.get_cancelled_exc_class())
        )

    @property
    def is_refused(self) -> bool:
        """Whether the operation must have changed nothing. A cancelled one is carried out."""
        return (
            self.error is not None
            and not isinstance(self.error, WalPoisonedError)
            and not self.is_unknown
            and not isinstance(self.error, WasCancelled)
        )


def opened(
    environment: Environment, directory: str = DIRECTORY, **options: Any
) -> AbstractAsyncContextManager[RaftLogStorage]:
    options = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0, **options}
    return RaftLogStorage.open(directory, environment=environment, **options)


async def look(store: RaftLogStorage) -> View:
    """Everything a store shows."""
    entries = tuple(await store.try_get_log_entries(0))
    state = await store.get_log_state()
    return View(
        state.last_purged_log_id,
        state.last_log_id,
        entries,
        await store.read_vote(),
        await store.read_committed(),
    )


@dataclass(eq=False)
class Player:
    """See the module. One player is one process: it ends with its environment."""

    environment: Environment
    options: Mapping[str, Any]
    tasks: anyio.abc.TaskGroup
    ledger: Ledger = field(default_factory=Ledger)
    #: called around what is no part of the history
    quiet: Callable[[bool], object] = lambda _is_quiet: None
    #: errors whose errno was injected are right; others are not
    may_raise: Callable[[BaseException], bool] = lambda _error: False
    directory: str = DIRECTORY
    numbers: count[int] = field(default_factory=lambda: count(1))
    store: RaftLogStorage | None = None
    answers: list[Answer] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    #: an interrupt came, or a call was cancelled: memory may be ahead of the ledger
    has_unknown: bool = False
    #: some life ended without a word, so not everything readable need be durable
    is_poisoned: bool = False
    is_closed_cleanly: bool = False
    #: wraps each call: to step or to cancel it
    wrap: Callable[[str, Awaitable[Any]], Awaitable[Any]] = lambda _operation, call: call
    _manager: Any = None
    _called: list[Answer] = field(default_factory=list)
    #: callers that an interrupt left waiting: they must be answered by the end
    _waiting: list[Answer] = field(default_factory=list)

    def problem(self, kind: str, where: str, what: object) -> None:
        self.problems.append(Problem(kind, where, str(what)[:300]))

    @property
    def is_immediate(self) -> bool:
        return str(self.options.get("sync", "immediate")) == "immediate"

    async def play(self, rounds: tuple[str, ...]) -> None:
        for text in rounds:
            await self.round(text)

    async def round(self, text: str) -> None:
        """Makes the calls of a round and waits until each is answered."""
        operations = [each.strip() for each in text.split("|")]
        if self.store is None and operations != ["open"]:
            return  # opening was refused
        self._called = []
        answers = [Answer(operation) for operation in operations]
        everything = anyio.Event()

        async def run(answer: Answer) -> None:
            try:
                call = self._prepare(answer)
                self._called.append(answer)
                answer.value = await self.wrap(answer.operation, call)
            except anyio.get_cancelled_exc_class() as error:
                answer.error = error
                answer.is_answered = True
                raise
            except BaseException as error:
                answer.error = without_frames(error)
            answer.is_answered = True
            if all(each.is_answered for each in answers):
                everything.set()

        for answer in answers:
            self.answers.append(answer)
            self.tasks.start_soon(run, answer, name=answer.operation)
        with anyio.move_on_after(_PATIENCE_SECONDS):
            await everything.wait()
        await self._settle()

    # --- what the answers mean -------------------------------------------------------------

    async def _settle(self) -> None:
        called = self._called
        is_opening = bool(called) and called[0].operation == "open"
        if not is_opening and any(isinstance(a.error, WasCancelled) for a in called):
            await anyio.sleep(_PATIENCE_SECONDS)  # what goes on without a waiter comes to its end
        for answer in reversed(called):
            self._judge(answer)
            if answer.is_refused:
                try:
                    answer.undo()
                except Violation as violation:
                    self.problem("half", answer.operation, violation)
        for answer in called:
            if answer.is_answered and answer.error is None:
                answer.acknowledge()
                wrong = None if self.has_unknown else answer.check(answer.value)
                if wrong:
                    self.problem("wrong", answer.operation, wrong)
        is_unknown = any(answer.is_unknown for answer in called)
        self.has_unknown |= is_unknown
        if is_opening:
            return  # what it shows is judged by who asked for it
        if self.store is not None and not self._sees_poison():
            await self._compare(called, is_unknown=is_unknown)

    def _judge(self, answer: Answer) -> None:
        error, operation = answer.error, answer.operation
        if not answer.is_answered:
            if self.has_unknown or self.may_raise(KeyboardInterrupt()):
                self._waiting.append(answer)
            else:
                self.problem("hang", operation, "was never answered")
        elif isinstance(error, LogGapError):
            before = self._called[: self._called.index(answer)]
            if all(each.error is None for each in before) and not self.has_unknown:
                self.problem("untyped", operation, f"{error!r} without a reason")
        elif isinstance(error, WalPoisonedError):
            self.is_poisoned = True
            cause = error.__cause__
            if cause is None or not self.may_raise(cause):
                self.problem("untyped", operation, f"{error!r} because of {cause!r}")
        elif isinstance(error, WalClosedError):
            pass
        elif error is not None and not self.may_raise(error):
            self.problem("untyped", operation, f"raised {error!r}")

    def _sees_poison(self) -> bool:
        try:
            is_poisoned = self.store is None or self.store.statistics().is_poisoned
        except (WalError, MemoryError):
            return True
        self.is_poisoned |= is_poisoned
        return is_poisoned

    async def _compare(self, called: list[Answer], *, is_unknown: bool) -> None:
        """Holds what the store remembers to the ledger; where that cannot know, it learns."""
        store, ledger = self.store, self.ledger
        assert store is not None
        where = " | ".join(answer.operation for answer in called)
        self.quiet(True)
        try:
            state = await store.get_log_state()
            vote = await store.read_vote()
            is_equal = (state.last_log_id, state.last_purged_log_id) == (
                ledger.last,
                ledger.frontier,
            )
            if is_equal and (vote == ledger.vote or self.has_unknown):
                return
            # the committed id is judged where a store is opened
            view = replace(await look(store), committed=None)
            if not is_unknown:
                self.problem(
                    "half",
                    where,
                    f"ends at {state.last_log_id}, frontier {state.last_purged_log_id}, {vote};"
                    f" the answers say {ledger.last}, {ledger.frontier}, {ledger.vote}",
                )
            ledger.judge(view, is_power_lost=not self.is_immediate)
            self._adopt(view)
        except Violation as violation:
            self.problem("half", where, violation)
        except Exception as error:
            if not self._sees_poison():
                self.problem("half", where, f"looking at it: {error!r}")
        finally:
            self.quiet(False)

    def _adopt(self, view: View) -> None:
        """Goes on from what the store shows; what is not there now may still be after a crash."""
        ledger = self.ledger
        ledger.live = [ledger.node(entry.log_id) for entry in view.entries]
        for node in ledger._order:
            if node in ledger.live:
                node.cut_begun = node.cut_durable = 1 << 62
            else:
                node.cut_begun = min(node.cut_begun, ledger.clock)
        while ledger._frontiers[-1].log_id != view.frontier:
            ledger._frontiers.pop()

    def judge_end(self) -> None:
        """At the end of everything: nobody waits, every callback was called once."""
        for answer in self._waiting:
            if not answer.is_answered:
                self.problem("hang", answer.operation, "was never answered, not even by closing")
        for answer in self.answers:
            if answer.calls is None:
                continue
            times = len(answer.calls)
            allowed: tuple[int, ...] = (0, 1) if answer.is_unknown else (0,)
            if answer.is_answered and (
                answer.error is None or isinstance(answer.error, WasCancelled)
            ):
                allowed = (1,)
            if times not in allowed:
                self.problem("callback", answer.operation, f"called {times} times")
            for error in answer.calls:
                if error is not None and not isinstance(error, WalError | OSError):
                    self.problem("callback", answer.operation, f"called with {error!r}")

    # --- the operations --------------------------------------------------------------------

    def _prepare(self, answer: Answer) -> Awaitable[Any]:
        name, *words = answer.operation.split()
        method = getattr(self, "_" + name.rstrip("!"))
        call: Awaitable[Any] = method(answer, *words)
        return call

    async def _open(self, answer: Answer) -> None:
        self.is_closed_cleanly = False
        self._manager = opened(self.environment, self.directory, **self.options)
        self.store = await self._manager.__aenter__()

    async def begin(self) -> View:
        """Judges what a store that was just opened shows, and begins its ledger."""
        assert self.store is not None
        self.quiet(True)
        try:
            view = await look(self.store)
        finally:
            self.quiet(False)
        self.ledger.judge(view)
        self.ledger = self.ledger.after(view)
        return view

    async def _close(self, answer: Answer) -> None:
        self.store, store = None, self.store
        assert store is not None
        try:
            await self._manager.__aexit__(None, None, None)
            self.is_closed_cleanly = not self.is_poisoned
        except BaseException:
            self.is_poisoned = True
            raise

    def _aclose(self, answer: Answer) -> Awaitable[None]:
        """Without leaving the block of ``open``, which ``close`` does."""
        assert self.store is not None
        return self.store.aclose()

    def _entries(self, words: tuple[str, ...]) -> list[Entry]:
        last = self.ledger.last
        index = last.index + 1 if last else 1
        entries = []
        for word in words:
            size, _, times = word.partition("*")
            for _ in range(int(times or 1)):
                payload = (b"%d." % index).ljust(int(size), b"x")[: int(size)]
                entries.append(Entry(self.ledger.term, index, payload, next(self.numbers)))
                index += 1
        return entries

    def _append(self, answer: Answer, *words: str) -> Awaitable[None]:
        assert self.store is not None
        ledger = self.ledger
        entries = self._entries(words)
        nodes = ledger.append(entries)
        has_callback = answer.operation.startswith("append!")
        is_durable = self.is_immediate and not has_callback
        answer.acknowledge = lambda: (ledger.durable if is_durable else ledger.readable)(nodes)

        def undo() -> None:
            if ledger.live[-len(nodes) :] != nodes:
                raise Violation("refused, but an append behind it was accepted")
            ledger.cut_durable(ledger.truncate(nodes[0].entry.index))

        answer.undo = undo
        if not has_callback:
            return self.store.append(entries)
        calls = answer.calls = []

        def callback(error: BaseException | None) -> None:
            calls.append(error)
            if error is None:
                ledger.durable(nodes)

        return self.store.append(entries, callback)

    def _index(self, word: str) -> int:
        """The index of the last but ``word``."""
        live = self.ledger.live
        if not live:
            return 1
        return live[0].entry.index if word == "all" else live[-1].entry.index + 1 - int(word)

    def _cut(self, answer: Answer, index: int) -> None:
        ledger = self.ledger
        cut = ledger.truncate(index)
        ledger.term += 1
        answer.acknowledge = lambda: ledger.cut_durable(cut)
        answer.undo = lambda: ledger.restore(cut)

    def _truncate(self, answer: Answer, word: str) -> Awaitable[None]:
        assert self.store is not None
        index = self._index(word)
        term = self.ledger.term
        self._cut(answer, index)
        return self.store.truncate(LogId(term, index))

    def _after(self, answer: Answer, word: str) -> Awaitable[None]:
        assert self.store is not None
        kept = [node for node in self.ledger.live if node.entry.index < self._index(word)]
        if word == "none" or not kept:
            log_id = None
            self._cut(answer, self._index("all"))
        else:
            log_id = kept[-1].entry.log_id
            self._cut(answer, log_id.index + 1)
        return self.store.truncate_after(log_id)

    def _purge(self, answer: Answer, word: str) -> Awaitable[None]:
        assert self.store is not None
        ledger = self.ledger
        live, last = ledger.live, ledger.last
        if word.startswith("+") or not live:
            number = next(self.numbers)
            index = (last.index if last else 0) + int(word.strip("+al") or 1)
            log_id = LogId(max(ledger.term, last.term if last else 0), index, number)
        else:
            place = len(live) if word == "all" else min(int(word), len(live))
            log_id = live[place - 1].entry.log_id
        frontier = ledger.purge(log_id)
        answer.acknowledge = lambda: ledger.saved(frontier)
        answer.undo = lambda: ledger.withdraw(frontier)
        return self.store.purge(log_id)

    def _vote(self, answer: Answer) -> Awaitable[None]:
        assert self.store is not None
        ledger = self.ledger
        vote = Vote(next(self.numbers), "n", committed=True)
        saved = ledger.save_vote(vote)
        answer.acknowledge = lambda: ledger.saved(saved)
        answer.undo = lambda: ledger._votes.remove(saved)
        return self.store.save_vote(vote)

    def _committed(self, answer: Answer) -> Awaitable[None]:
        assert self.store is not None
        self.ledger.save_committed(self.ledger.last)
        return self.store.save_committed(self.ledger.last)

    def _flush(self, answer: Answer) -> Awaitable[None]:
        assert self.store is not None
        ledger, nodes = self.ledger, list(self.ledger.live)
        # what was refused meanwhile is no longer live
        answer.acknowledge = lambda: ledger.durable([n for n in nodes if n in ledger.live])
        return self.store.flush()

    # --- reading -----------------------------------------------------------------------------

    def _find_strange(self, value: list[Entry]) -> str | None:
        """An entry that no append brought: what a poisoned store still shows must be real."""
        nodes = self.ledger._nodes
        for entry in value:
            if entry.log_id not in nodes or nodes[entry.log_id].entry != entry:
                return f"read {entry}"
        return None

    def _expects(self, answer: Answer) -> None:
        entries = [node.entry for node in self.ledger.live]

        def check(value: list[Entry]) -> str | None:
            if self.is_poisoned:
                return self._find_strange(value)
            if value == entries or len(self._called) > 1:
                return None
            return f"read {_text(value)} instead of {_text(entries)}"

        answer.check = check

    def _read(self, answer: Answer) -> Awaitable[list[Entry]]:
        assert self.store is not None
        self._expects(answer)
        return self.store.try_get_log_entries(0)

    def _limited(self, answer: Answer, word: str) -> Awaitable[list[Entry]]:
        assert self.store is not None
        entries = [node.entry for node in self.ledger.live]
        answer.check = lambda value: (
            None
            if (value == entries[: len(value)] and bool(value) == bool(entries))
            or len(self._called) > 1
            or self.is_poisoned
            else f"read {_text(value)} of {_text(entries)}"
        )
        return self.store.limited_get_log_entries(0, None, int(word))

    async def _stream(self, answer: Answer) -> list[Entry]:
        assert self.store is not None
        self._expects(answer)
        return [entry async for entry in self.store.entries_stream(0)]

    async def _leader(self, answer: Answer) -> list[Entry]:
        assert self.store is not None
        vote = await self.store.read_vote()
        if vote is None:
            return []
        self._expects(answer)
        return [entry async for entry in self.store.leader_bounded_stream(vote, 0)]

    def _keys(self, answer: Answer) -> Awaitable[list[LogId]]:
        assert self.store is not None
        # each entry has a leader of its own
        ids = [node.entry.log_id for node in self.ledger.live]
        answer.check = lambda value: (
            None
            if value == ids or len(self._called) > 1 or self.is_poisoned
            else f"{value} instead of {ids}"
        )
        return self.store.get_key_log_ids()

    def _state(self, answer: Answer) -> Awaitable[Any]:
        assert self.store is not None
        return self.store.get_log_state()

    async def _reader(self, answer: Answer) -> list[Entry]:
        assert self.store is not None
        self._expects(answer)
        return await (await self.store.get_log_reader()).try_get_log_entries(0)


def _text(entries: list[Entry]) -> str:
    return re.sub(r"[LogId()a-z_= ]", "", str([entry.log_id for entry in entries]))[:120]
