"""Faulty log storages, as in ``_mutants``: what a follower asks of them is broken."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

import anyio
import anyio.lowlevel

from hqlwal_raft import (
    AppendOutcome,
    Entry,
    LogId,
    LogRangeError,
    LogTruncatedError,
    WalClosedError,
)
from hqlwal_raft._entry_rules import plain
from hqlwal_raft.testing import MemoryLogStorage

#: every mutant with the case that has to catch it
MUTANTS_OF_FOLLOWERS: list[tuple[type[MemoryLogStorage], str]] = []

type_ = type[MemoryLogStorage]


def _caught_by(case: str) -> Callable[[type_], type_]:
    def register(mutant: type_) -> type_:
        MUTANTS_OF_FOLLOWERS.append((mutant, case))
        return mutant

    return register


# --- receiving ---------------------------------------------------------------------------


@_caught_by("what_follows_the_last_entry_is_appended")
class TakesOnlyOneEntry(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        return super()._receive(prev, given[:1])


@_caught_by("what_is_there_is_skipped")
class CutsBehindTheLastEntryGiven(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        outcome = super()._receive(prev, given)
        if outcome.matched and given and not outcome.appended:
            self._truncate(given[-1].index + 1)
        return outcome


@_caught_by("the_first_conflict_truncates_and_the_rest_is_appended")
class CutsFromThePreviousEntryOn(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        if given and self._held(given[0].index, None) and (prev is None or self._has(prev)):
            self._truncate(given[0].index)
        return super()._receive(prev, given)


@_caught_by("a_conflict_is_a_matter_of_term_and_node_id")
class ComparesTermsOnly(MemoryLogStorage):
    def _has(self, log_id: LogId) -> bool:
        held = self._held(log_id.index, log_id.index + 1)
        return super()._has(log_id) or (bool(held) and held[0].term == log_id.term)


@_caught_by("without_a_match_nothing_is_changed_and_there_is_a_hint")
class HintsAtItsEnd(MemoryLogStorage):
    def _hint(self, prev: LogId) -> LogId | None:
        return self._disk.last_log_id


@_caught_by("without_entries_it_is_only_compared")
class CutsBehindAHeartbeat(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        outcome = super()._receive(prev, given)
        if outcome.matched and not given and prev is not None:
            self._truncate(prev.index + 1)
        return outcome


@_caught_by("none_stands_for_the_very_start")
class TakesNoneForAnywhere(MemoryLogStorage):
    def _may_begin_with(self, index: int) -> bool:
        return True


@_caught_by("what_was_purged_is_held")
class ForgetsWhatWasPurged(MemoryLogStorage):
    def _has(self, log_id: LogId) -> bool:
        held = self._held(log_id.index, log_id.index + 1)
        return bool(held) and held[0].log_id == log_id


@_caught_by("a_conflict_with_what_is_committed_is_refused")
class ReplacesWhatIsCommitted(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        self._check_raft = False
        return super()._receive(prev, given)


@_caught_by("what_a_leader_cannot_have_sent_is_refused")
class TakesWhatDoesNotFollow(MemoryLogStorage):
    def _following(self, last: LogId | None, entries: Iterable[Entry]) -> list[Entry]:
        try:
            return super()._following(last, entries := list(entries))
        except ValueError:
            return plain(entries)


@_caught_by("leaders_follow_each_other")
class CutsALittleLess(MemoryLogStorage):
    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        before = list(self._disk.entries)
        outcome = super()._receive(prev, given)
        if outcome.truncated_from is not None:
            rest = [entry for entry in before if entry.index > self._disk.entries[-1].index]
            self._disk.entries += rest
        return outcome


@_caught_by("it_keeps_its_place_in_the_order_of_the_calls")
class LetsOthersGoFirst(MemoryLogStorage):
    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        for _ in range(9):
            await anyio.lowlevel.checkpoint()
        return await super().append_after(prev_log_id, entries)


@_caught_by("one_that_is_cancelled_is_made_all_the_same")
class TakesBackWhatIsCancelled(MemoryLogStorage):
    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        before = self._disk.copy()
        try:
            outcome = await super().append_after(prev_log_id, entries)
            for _ in range(9):
                await anyio.lowlevel.checkpoint()
            return outcome
        except anyio.get_cancelled_exc_class():
            vars(self._disk).update(vars(before))
            raise


# --- following ---------------------------------------------------------------------------


@_caught_by("who_follows_gets_what_there_is_and_then_what_comes")
class GivesTheFirstBatchTwice(MemoryLogStorage):
    async def _follow(self, start: int) -> AsyncGenerator[list[Entry]]:
        is_first = True
        async with aclosing(super()._follow(start)) as batches:
            async for batch in batches:
                yield batch
                if is_first:
                    yield batch
                is_first = False


@_caught_by("who_follows_is_woken")
class WakesNobody(MemoryLogStorage):
    def _add(self, accepted: list[Entry]) -> None:
        self._disk.entries += accepted


@_caught_by("who_follows_is_told_of_a_purge_that_overtakes")
class GoesOnBehindAPurge(MemoryLogStorage):
    async def _follow(self, start: int) -> AsyncGenerator[list[Entry]]:
        while True:
            try:
                async with aclosing(super()._follow(start)) as batches:
                    async for batch in batches:
                        yield batch
            except LogRangeError as error:
                start = error.first_index or 0


@_caught_by("who_follows_is_told_of_a_truncation_of_what_was_given")
class GoesOnBehindATruncation(MemoryLogStorage):
    async def _follow(self, start: int) -> AsyncGenerator[list[Entry]]:
        while True:
            try:
                async with aclosing(super()._follow(start)) as batches:
                    async for batch in batches:
                        yield batch
                        start = batch[-1].index + 1
            except LogTruncatedError as error:
                start = error.log_id.index if error.log_id else 0


@_caught_by("who_follows_is_told_of_the_close")
class EndsSilentlyAtTheClose(MemoryLogStorage):
    async def _follow(self, start: int) -> AsyncGenerator[list[Entry]]:
        try:
            async with aclosing(super()._follow(start)) as batches:
                async for batch in batches:
                    yield batch
        except WalClosedError:
            return
