"""Plays histories of named operations against the public async interface, and judges the answers.

A history is written as rounds of text: the operations of one round, separated by ``|``, are called
at the same moment, in order. ``Player`` makes the calls in an environment, keeps what was begun and
acknowledged in a ledger, and collects as ``Problem`` what a caller must never meet. It runs within
``loops.run``; it must not know the engine.

The operations: ``open``, ``close``, ``append 300*3 9000`` (payload sizes), ``append! 300`` (with a
callback), ``truncate N`` (the last N; ``all``), ``after N`` (truncate_after all but the last N;
``none``), ``purge N`` (the first N; ``all``; ``+N`` beyond the end), ``vote``, ``committed``,
``receive N 300`` (a leader's, in the place of the last N), ``mend``, ``flush``, ``aclose``, ``read``, ``limited BYTES``, ``stream``, ``leader``, ``keys``, ``state``, ``reader``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import anyio
import anyio.abc

from hqlwal_raft import (
    LogGapError,
    LogRangeError,
    RaftLogStorage,
    RaftRuleError,
    WalClosedError,
    WalError,
    WalPoisonedError,
)
from hqlwal_raft._environment import Environment
from tests.torture.ledger import Ledger, View, Violation

from .answers import DIRECTORY, Answer, Problem, WasCancelled, look, opened
from .machine import without_frames
from .operations import OPERATIONS

__all__ = ["DIRECTORY", "Answer", "Player", "Problem", "WasCancelled", "look", "opened"]

#: virtual: an idle loop jumps over it
_PATIENCE_SECONDS = 5.0


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
    #: opens a store: of which face
    opened: Callable[..., Any] = opened
    manager: Any = None
    called: list[Answer] = field(default_factory=list)
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
        self.called = []
        answers = [Answer(operation) for operation in operations]
        everything = anyio.Event()

        async def run(answer: Answer) -> None:
            try:
                call = self._prepare(answer)
                self.called.append(answer)
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
        called = self.called
        is_opening = bool(called) and called[0].operation == "open"
        if not is_opening and any(isinstance(a.error, WasCancelled) for a in called):
            await anyio.sleep(_PATIENCE_SECONDS)  # what goes on without a waiter comes to its end
        for answer in reversed(called):
            answer.is_settled = True
            self._judge(answer)
            if answer.is_refused:
                try:
                    answer.undo()
                except Violation as violation:
                    self.problem("half", answer.operation, violation)
        for answer in called:
            if answer.is_answered and answer.error is None and not answer.is_taken_back:
                answer.acknowledge()
                wrong = None if self.has_unknown else answer.check(answer.value)
                if wrong:
                    self.problem("wrong", answer.operation, wrong)
        is_unknown = any(answer.is_unknown or answer.is_half for answer in called)
        self.has_unknown |= is_unknown
        if any(answer.calls == [] for answer in called):
            await anyio.sleep(0.001)  # a callback may be about to say that it is taken back
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
        elif isinstance(error, LogGapError | RaftRuleError):
            before = self.called[: self.called.index(answer)]
            is_any = any(each.error is not None or each.is_taken_back for each in before)
            if not is_any and not self.has_unknown:
                self.problem("untyped", operation, f"{error!r} without a reason")
        elif isinstance(error, WalPoisonedError):
            self.is_poisoned = True
            cause = error.__cause__
            if cause is None or not self.may_raise(cause):
                self.problem("untyped", operation, f"{error!r} because of {cause!r}")
        elif isinstance(error, WalClosedError) or self._is_overtaken(answer):
            pass
        elif error is not None and not self.may_raise(error):
            self.problem("untyped", operation, f"raised {error!r}")

    def _is_overtaken(self, answer: Answer) -> bool:
        """Whether a stream says that a purge of the same round overtook it, as it must."""
        return (
            isinstance(answer.error, LogRangeError)
            and answer.operation in ("stream", "leader")
            and any(other.operation.startswith("purge") for other in self.called)
        )

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

    def _prepare(self, answer: Answer) -> Awaitable[Any]:
        name, *words = answer.operation.split()
        return OPERATIONS[name.rstrip("!")](self, answer, *words)

    def kill(self) -> None:
        """The process dies: nothing of the store goes on, and nothing says that it was dropped."""
        assert self.store is not None
        # a finalizer leaves a store of another process alone
        self.store._core.pid = 0
        self.store = None

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
