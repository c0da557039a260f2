"""Faulty log storages: each is the memory model with one demand of the contract broken.

They show that the conformance suite can fail, and that it fails for the right reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from hqlwal_raft import (
    Entry,
    LeaderChangedError,
    LogGapError,
    LogId,
    LogRangeError,
    LogState,
    Vote,
)
from hqlwal_raft.testing import MemoryDisk, MemoryLogReader, MemoryLogStorage
from hqlwal_raft.testing._memory_reader import MemoryLife

#: every mutant with the case that has to catch it
MUTANTS: list[tuple[type[MemoryLogStorage], str]] = []

type_ = type[MemoryLogStorage]


def _caught_by(case: str) -> Callable[[type_], type_]:
    def register(mutant: type_) -> type_:
        MUTANTS.append((mutant, case))
        return mutant

    return register


# --- appending ---------------------------------------------------------------------------


@_caught_by("a_gap_is_refused_and_nothing_is_written")
class TakesGaps(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        try:
            await super().append(entries := list(entries), callback)
        except LogGapError:
            self._disk.entries += entries


@_caught_by("a_batch_with_a_gap_inside_is_refused_whole")
class KeepsTheBeginningOfARefusedBatch(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        for entry in entries:
            await super().append([entry])
        await super().append([], callback)


@_caught_by("an_empty_log_takes_index_0")
class HasNoIndex0(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        return super()._held(start or 1, stop)


@_caught_by("an_empty_log_takes_any_first_index")
class BeginsAt1(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        accepted = super()._accepted(entries)
        if accepted and self._disk.last_log_id is None and accepted[0].index > 1:
            raise LogGapError("by a mutant")
        return accepted


@_caught_by("the_largest_numbers_are_kept")
class CountsInI64(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        accepted = super()._accepted(entries)
        if any(max(entry.term, entry.index, entry.node_id) >= 1 << 63 for entry in accepted):
            raise OverflowError
        return accepted


@_caught_by("entries_come_back_as_they_were_appended")
class ForgetsNodeIds(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        return [entry._replace(node_id=0) for entry in super()._accepted(entries)]


@_caught_by("empty_payloads_are_kept")
class TakesAnEmptyPayloadForTheEnd(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        held = super()._held(start, stop)
        empty = [n for n, entry in enumerate(held) if not entry.payload]
        return held[: empty[0]] if empty else held


@_caught_by("big_payloads_are_kept")
class CutsBigPayloads(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        accepted = super()._accepted(entries)
        return [entry._replace(payload=entry.payload[: 1 << 20]) for entry in accepted]


@_caught_by("a_buffer_changed_after_the_append_changes_nothing")
class KeepsTheCallersBuffer(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        super()._accepted(entries := list(entries))
        return entries


@_caught_by("bytes_like_payloads_come_back_as_bytes")
class TakesTheLengthOfAViewForItsBytes(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        entries = list(entries)
        pairs = zip(super()._accepted(entries), entries, strict=True)
        return [
            entry._replace(payload=entry.payload[: len(given.payload)]) for entry, given in pairs
        ]


@_caught_by("an_append_of_nothing_returns_at_once")
class ForgetsTheCallbackOfAnEmptyBatch(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        entries = list(entries)
        await super().append(entries, callback if entries else None)


@_caught_by("a_callback_is_called_once_with_none")
class CallsBackTwice(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        await super().append(entries, callback)
        if callback is not None:
            callback(None)


@_caught_by("every_callback_has_come_when_the_storage_is_closed")
class NeverCallsBack(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        await super().append(entries)


@_caught_by("callbacks_come_in_the_order_of_the_appends")
class CallsBackInPairsTheLaterFirst(MemoryLogStorage):
    _held_back: Any = None

    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        await super().append(entries)
        if callback is not None and self._held_back is None:
            self._held_back = callback
        elif callback is not None:
            callback(None)
            self._held_back(None)
            self._held_back = None


@_caught_by("callbacks_are_called_on_the_event_loop")
class CallsBackInAThread(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        await super().append(entries)
        if callback is not None:
            thread = threading.Thread(target=callback, args=(None,))
            thread.start()
            thread.join()


@_caught_by("an_append_with_a_callback_is_readable_when_it_returns")
class ShowsWithCallbackLater(MemoryLogStorage):
    _late: tuple[Entry, ...] = ()

    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        accepted = self._accepted(entries)
        if callback is not None:
            self._late = tuple(accepted)
            callback(None)
        else:
            await super().append(accepted)

    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        self._disk.entries += self._late
        self._late = ()
        return super()._accepted(entries)


# --- reading -----------------------------------------------------------------------------


@_caught_by("a_range_is_half_open")
class IncludesTheStop(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        return super()._held(start, None if stop is None else stop + 1)


@_caught_by("an_inverted_range_gives_nothing")
class WrapsInvertedRanges(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        return super()._held(start, None if stop is not None and stop < start else stop)


@_caught_by("a_range_partly_in_the_log_gives_what_is_there")
class GivesNothingWhereTheStartIsMissing(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        held = super()._held(start, stop)
        return held if start == 0 or (held and held[0].index == start) else []


@_caught_by("a_read_leaves_the_list_to_the_caller")
class HandsOutItsOwnList(MemoryLogStorage):
    def _held(self, start: int, stop: int | None) -> list[Entry]:
        return self._disk.entries if (start, stop) == (0, None) else super()._held(start, stop)


@_caught_by("a_limited_read_gives_at_least_one_entry")
class GivesNothingWhereTheFirstIsTooLarge(MemoryLogStorage):
    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        got = await super().limited_get_log_entries(start, stop, max_bytes)
        return [] if got and len(got[0].payload) > max_bytes else got


@_caught_by("a_limited_read_stops_at_its_bytes")
class GivesOneEntryTooMany(MemoryLogStorage):
    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        got = await super().limited_get_log_entries(start, stop, max_bytes)
        return self._held(start, stop)[: len(got) + 1]


@_caught_by("a_stream_never_gives_what_was_truncated_before_it_got_there")
class StreamsWhatItHeldAtTheBeginning(MemoryLogStorage):
    async def entries_stream(
        self, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        for entry in await self.try_get_log_entries(start, stop):
            yield entry


@_caught_by("a_leader_bounded_stream_ends_where_the_leader_changes")
class LooksForTheLeaderOnlyOnce(MemoryLogStorage):
    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        self._check_leader(vote)
        async with contextlib.aclosing(self.entries_stream(start, stop)) as stream:
            async for entry in stream:
                yield entry


@_caught_by("a_leader_bounded_stream_refuses_another_vote")
class ComparesOnlyTheTermOfTheLeader(MemoryLogStorage):
    def _check_leader(self, vote: Vote) -> None:
        self._check_open()
        if self._disk.vote is None or self._disk.vote.term != vote.term:
            raise LeaderChangedError("by a mutant")


@_caught_by("key_log_ids_are_the_last_of_each_leader")
class TakesALeaderForItsTerm(MemoryLogStorage):
    async def get_key_log_ids(self, first: Any = None, last: Any = None) -> list[LogId]:
        lasts = {key.term: key for key in await super().get_key_log_ids(first, last)}
        return list(lasts.values())


@_caught_by("key_log_ids_of_a_single_leader_are_its_last")
class NamesTheFirstEntryToo(MemoryLogStorage):
    async def get_key_log_ids(self, first: Any = None, last: Any = None) -> list[LogId]:
        beginning = [entry.log_id for entry in self._disk.entries[:1]]
        return beginning + await super().get_key_log_ids(first, last)


@_caught_by("key_log_ids_of_a_range_are_those_of_its_entries")
class LeavesTheEndOfARangeOut(MemoryLogStorage):
    async def get_key_log_ids(self, first: Any = None, last: Any = None) -> list[LogId]:
        if isinstance(last, int):
            last = max(last - 1, 0)
        return await super().get_key_log_ids(first, last)


@_caught_by("an_entry_and_its_log_id_are_found_by_index")
class KnowsTheFrontierByItsIndex(MemoryLogStorage):
    async def log_id_at(self, index: int) -> LogId | None:
        frontier = self._disk.last_purged
        if frontier is not None and frontier.index == index:
            return frontier
        return await super().log_id_at(index)


@_caught_by("a_stream_that_a_purge_overtakes_says_so")
class StreamsEndInSilence(MemoryLogStorage):
    async def _stream(self, start: int, stop: int | None) -> AsyncGenerator[Entry, None]:
        with contextlib.suppress(LogRangeError):
            async for entry in super()._stream(start, stop):
                yield entry


@_caught_by("the_terms_of_entries_never_fall")
class ComparesTheFirstTermOfABatch(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        batch = list(entries)
        self._check_raft = True
        first = super()._accepted(batch[:1])
        self._check_raft = False
        return first + super()._accepted(batch)[1:]


@_caught_by("terms_go_on_from_what_a_truncation_or_a_purge_leaves")
class ForgetsTheFrontiersTerm(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        self._check_raft = bool(self._disk.entries)
        return super()._accepted(entries)


@_caught_by("a_vote_never_goes_back")
class ComparesOnlyTheTermsOfVotes(MemoryLogStorage):
    async def save_vote(self, vote: Vote) -> None:
        saved = self._disk.vote
        self._check_raft = saved is not None and vote.term < saved.term
        await super().save_vote(vote)


@_caught_by("what_is_committed_is_in_the_log_or_is_the_frontier")
class ComparesOnlyTheIndexOfWhatIsCommitted(MemoryLogStorage):
    async def save_committed(self, log_id: LogId | None) -> None:
        last = self._disk.last_log_id
        self._check_raft = log_id is not None and (last is None or log_id.index > last.index)
        await super().save_committed(log_id)


@_caught_by("who_purges_an_entry_names_its_term")
class PurgesByIndex(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        self._check_raft = False
        await super().purge(log_id, state=state)


@_caught_by("waiting_for_a_truncated_entry_is_told_from_one_never_appended")
class ForgetsWhatItTruncated(MemoryLogStorage):
    async def wait_durable(self, log_id: LogId) -> None:
        self._ever = {entry.index for entry in self._disk.entries}
        await super().wait_durable(log_id)


class _StaleReader(MemoryLogReader):
    """A reader of what its disk held when it was made; new entries are seen."""

    def __init__(self, disk: MemoryDisk, life: MemoryLife) -> None:
        super().__init__(disk, life)
        self._seen: dict[int, Entry] = {}

    def _held(self, start: int, stop: int | None) -> list[Entry]:
        held = super()._held(start, stop)
        return [self._seen.setdefault(entry.index, entry) for entry in held]


@_caught_by("a_reader_that_outlives_a_truncation_sees_the_new_entries")
class CachesInReaders(MemoryLogStorage):
    async def get_log_reader(self) -> MemoryLogReader:
        return _StaleReader(self._disk, self._life)


@_caught_by("a_reader_that_outlives_a_purge_sees_it")
class ReadersKeepWhatIsPurged(MemoryLogStorage):
    async def get_log_reader(self) -> MemoryLogReader:
        reader = MemoryLogReader(self._disk, self._life)
        entries = self._disk.entries

        async def read(start: int, stop: int | None = None) -> list[Entry]:
            await anyio.lowlevel.checkpoint()
            return [entry for entry in entries if start <= entry.index < (stop or 1 << 64)]

        reader.try_get_log_entries = read  # type: ignore[method-assign]
        return reader


@_caught_by("a_read_sees_the_log_at_one_moment")
class ShowsBatchesInPart(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        for entry in self._accepted(entries):
            self._disk.entries.append(entry)
            await anyio.lowlevel.checkpoint()
        await super().append([], callback)


# --- truncating and purging --------------------------------------------------------------


@_caught_by("a_truncation_removes_its_index_and_all_behind")
class TruncatesAfterTheIndex(MemoryLogStorage):
    async def truncate(self, log_id: LogId) -> None:
        await super().truncate(dataclasses.replace(log_id, index=log_id.index + 1))


@_caught_by("a_truncation_at_or_below_the_frontier_is_refused")
class TruncatesBelowTheFrontier(MemoryLogStorage):
    async def truncate(self, log_id: LogId) -> None:
        with contextlib.suppress(LogRangeError):
            await super().truncate(log_id)


@_caught_by("truncate_after_none_removes_all_that_is_not_purged")
class ForgetsTheFrontierWithTheEntries(MemoryLogStorage):
    async def truncate_after(self, log_id: LogId | None) -> None:
        await super().truncate_after(log_id)
        if log_id is None:
            self._disk.last_purged = None


@_caught_by("a_log_that_was_truncated_empty_takes_any_first_index")
class RemembersWhereATruncatedLogBegan(MemoryLogStorage):
    _next: int | None = None

    def _truncate(self, start: int) -> None:
        entries = self._disk.entries
        super()._truncate(start)
        if entries and not self._disk.entries:
            self._next = entries[0].index

    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        accepted = super()._accepted(entries)
        if accepted and not self._disk.entries and self._next not in (None, accepted[0].index):
            raise LogGapError("by a mutant")
        return accepted


@_caught_by("truncated_entries_never_come_back")
class TruncatedEntriesComeBack(MemoryLogStorage):
    """As where old records line up behind a new one of the same size."""

    async def truncate(self, log_id: LogId) -> None:
        before = self._disk.entries
        await super().truncate(log_id)
        self._disk.ghosts = [entry for entry in before if entry.index > log_id.index]  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        await super().aclose()
        last = self._disk.entries[-1].index if self._disk.entries else -1
        ghosts = getattr(self._disk, "ghosts", [])
        self._disk.entries += [entry for entry in ghosts if last + 1 == ghosts[0].index]


@_caught_by("a_purge_removes_up_to_and_including_its_index")
class KeepsThePurgedEntryItself(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        kept = self._held(log_id.index, log_id.index + 1)
        await super().purge(log_id, state=state)
        self._disk.entries = kept + self._held(log_id.index + 1, None)


@_caught_by("a_purge_beyond_the_end_is_legal")
class PurgesOnlyToTheEnd(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        last = self._disk.last_log_id
        await super().purge(log_id if last is None or log_id.index < last.index else last)


@_caught_by("a_purge_below_the_frontier_changes_nothing")
class TheFrontierGoesBack(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        await super().purge(log_id, state=state)
        self._disk.last_purged = log_id


@_caught_by("after_a_purge_of_everything_the_next_index_follows_the_frontier")
class BeginsAnywhereAfterAPurge(MemoryLogStorage):
    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        frontier = self._disk.last_purged
        if not self._disk.entries:
            self._disk.last_purged = None
        try:
            return super()._accepted(entries)
        finally:
            self._disk.last_purged = frontier


@_caught_by("a_purge_of_an_unused_storage_sets_its_beginning")
class DoesNotPurgeAnEmptyLog(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        if self._disk.entries:
            await super().purge(log_id, state=state)


@_caught_by("index_0_can_be_purged")
class TakesAFrontierOf0ForNone(MemoryLogStorage):
    async def get_log_state(self) -> LogState:
        state = await super().get_log_state()
        purged = state.last_purged_log_id
        return LogState(purged if purged and purged.index else None, state.last_log_id)


# --- state -------------------------------------------------------------------------------


@_caught_by("the_log_state_follows_the_log")
class AnEmptyLogHasNoLastLogId(MemoryLogStorage):
    async def get_log_state(self) -> LogState:
        state = await super().get_log_state()
        return state if self._disk.entries else LogState(state.last_purged_log_id, None)


@_caught_by("every_kind_of_vote_survives_a_reopen")
class SavesNodeIdsAsText(MemoryLogStorage):
    async def save_vote(self, vote: Vote) -> None:
        node_id = None if vote.node_id is None else str(vote.node_id)
        await super().save_vote(dataclasses.replace(vote, node_id=node_id))


@_caught_by("the_vote_saved_last_is_read_back")
class KeepsTheFirstVoteOfATerm(MemoryLogStorage):
    async def save_vote(self, vote: Vote) -> None:
        if self._disk.vote is None or vote.term > self._disk.vote.term:
            await super().save_vote(vote)


@_caught_by("a_vote_outlives_every_change_of_the_log")
class LosesTheVoteAtTheClose(MemoryLogStorage):
    async def aclose(self) -> None:
        await super().aclose()
        self._disk.vote = None


@_caught_by("the_committed_log_id_is_read_back")
class DoesNotTakeBackCommitted(MemoryLogStorage):
    async def save_committed(self, log_id: LogId | None) -> None:
        if log_id is not None:
            await super().save_committed(log_id)


@_caught_by("the_committed_log_id_is_cut_by_a_truncation")
class KeepsCommittedBeyondTheEnd(MemoryLogStorage):
    def _truncate(self, start: int) -> None:
        committed = self._disk.committed
        super()._truncate(start)
        self._disk.committed = committed


@_caught_by("the_committed_log_id_survives_a_clean_close")
class LosesCommittedAtTheClose(MemoryLogStorage):
    async def aclose(self) -> None:
        await super().aclose()
        self._disk.committed = None


@_caught_by("the_state_of_a_node_s_own_is_read_back")
class LosesAnEmptyState(MemoryLogStorage):
    async def read_state(self) -> bytes | None:
        return await super().read_state() or None


@_caught_by("a_purge_saves_the_state_with_it")
class ForgetsTheStateOfAPurgeBelowTheFrontier(MemoryLogStorage):
    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        frontier = self._disk.last_purged
        if frontier is not None and log_id.index <= frontier.index:
            state = None
        await super().purge(log_id, state=state)


# --- life --------------------------------------------------------------------------------


@_caught_by("writes_of_every_kind_are_applied_in_call_order")
class TruncatesWhenItFindsTheTime(MemoryLogStorage):
    async def truncate(self, log_id: LogId) -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        await super().truncate(log_id)


@_caught_by("a_cancelled_append_is_not_taken_back")
class TakesBackACancelledAppend(MemoryLogStorage):
    async def append(self, entries: Iterable[Entry], callback: Any = None) -> None:
        before = list(self._disk.entries)
        try:
            await super().append(entries, callback)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            self._disk.entries = before
            raise


@_caught_by("every_call_after_the_close_is_refused")
class ReadsAfterTheClose(MemoryLogStorage):
    async def read_vote(self) -> Vote | None:
        return self._disk.vote


@_caught_by("a_close_may_be_repeated")
class ClosesOnlyOnce(MemoryLogStorage):
    async def aclose(self) -> None:
        self._check_open()
        self._life.is_open = False


@_caught_by("what_was_accepted_survives_a_body_that_raises")
class KeepsOnlyWhatACleanEndSaves(MemoryLogStorage):
    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, disk: MemoryDisk | None = None, **options: Any) -> AsyncIterator[Any]:
        assert disk is not None
        working = disk.copy()
        async with super().open(working, **options) as storage:
            yield storage
        vars(disk).update(vars(working))


@_caught_by("two_storages_do_not_know_each_other")
class SharesItsVotes(MemoryLogStorage):
    votes: ClassVar[list[Vote]] = []

    async def save_vote(self, vote: Vote) -> None:
        self.votes.append(vote)
        await super().save_vote(vote)

    async def read_vote(self) -> Vote | None:
        self._check_open()
        return self.votes[-1] if self.votes else None
