"""The reference model: a log storage in memory, as simple as the contract allows.

It must not know the engine: what it does is what the contract says, so that the two can be
held against each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Self

import anyio.lowlevel

from hqlwal_raft._answers import call_back
from hqlwal_raft._arguments import (
    check_callback,
    check_log_id,
    check_vote,
    copied_state,
    listed,
)
from hqlwal_raft._entry_rules import plain, refusal
from hqlwal_raft._types import AppendOutcome, Entry, LogId, Vote
from hqlwal_raft.errors import (
    LogRangeError,
    LogTruncatedError,
    RaftRuleError,
)
from hqlwal_raft.protocols import AppendCallback, LogReader

from ._memory_reader import MemoryDisk, MemoryLife, MemoryLogReader

__all__ = ["MemoryLogStorage"]


class MemoryLogStorage(MemoryLogReader):
    """A log storage in memory that keeps the whole contract, durability within the process.

    Everything is "durable" at once: callbacks are called before ``append`` returns. Two that
    are opened one after the other on the same :class:`MemoryDisk` are one storage, reopened::

        disk = MemoryDisk()
        async with MemoryLogStorage.open(disk) as storage:
            await storage.append([Entry(term=1, index=1, payload=b"x = 1")])
    """

    def __init__(
        self, disk: MemoryDisk, *, max_entry_size: int = 64 << 20, check_raft: bool = True
    ) -> None:
        super().__init__(disk, MemoryLife())
        self._max_entry_size = max_entry_size
        self._check_raft = check_raft
        #: the indexes that were ever appended, since it was opened at least
        self._ever = {entry.index for entry in disk.entries}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        disk: MemoryDisk | None = None,
        *,
        max_entry_size: int = 64 << 20,
        check_raft: bool = True,
    ) -> AsyncIterator[Self]:
        """Opens the storage on ``disk``, a new one by default, and closes it on leaving.

        ``max_entry_size`` (bytes) bounds the payloads: larger ones raise EntryTooLargeError.
        ``check_raft``: as for :meth:`hqlwal_raft.RaftLogStorage.open`.
        """
        storage = cls(disk or MemoryDisk(), max_entry_size=max_entry_size, check_raft=check_raft)
        await anyio.lowlevel.checkpoint()
        try:
            yield storage
        finally:
            await storage.aclose()

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        """See :class:`hqlwal_raft.protocols.LogStorage`, as for every method here.

        Cancelled or not, the entries are in the log once the call has begun.
        """
        self._check_open()
        check_callback(callback)
        accepted = self._accepted(entries)
        self._add(accepted)
        if callback is not None:
            call_back(callback, None)
        await anyio.lowlevel.checkpoint()

    def _accepted(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries as the log keeps them; raises where it must not take all of them."""
        return self._following(self._disk.last_log_id, entries)

    def _following(self, last: LogId | None, entries: Iterable[Entry]) -> list[Entry]:
        accepted = plain(listed(entries))
        term = 0 if last is None else last.term
        for number, entry in enumerate(accepted):
            expected = number + (accepted[0].index if last is None else last.index + 1)
            least_term = term if self._check_raft else None
            if (error := refusal(entry, expected, self._max_entry_size, least_term)) is not None:
                raise error
            term = entry.term
        return accepted

    def _add(self, accepted: list[Entry]) -> None:
        self._disk.entries += accepted
        self._ever.update(entry.index for entry in accepted)
        self._life.change()

    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        self._check_open()
        check_log_id(prev_log_id, is_none_allowed=True, name="prev_log_id")
        outcome = self._receive(prev_log_id, self._following(prev_log_id, entries))
        await anyio.lowlevel.checkpoint()
        return outcome

    def _receive(self, prev: LogId | None, given: list[Entry]) -> AppendOutcome:
        disk = self._disk
        if prev is None:
            if given and not self._may_begin_with(given[0].index):
                return AppendOutcome(
                    matched=False, last_log_id=disk.last_log_id, hint=disk.last_log_id
                )
        elif not self._has(prev):
            return AppendOutcome(matched=False, last_log_id=disk.last_log_id, hint=self._hint(prev))
        truncated_from = None
        new = list(given)
        while new and self._is_there(new[0]):
            del new[0]
        if new and self._held(new[0].index, None):
            conflict = new[0].log_id
            truncated_from = conflict.index
            committed = disk.committed
            if self._check_raft and committed is not None and committed.index >= truncated_from:
                raise self._broken("committed", conflict, committed)
            self._truncate(truncated_from)
        self._add(new)
        return AppendOutcome(
            matched=True,
            last_log_id=disk.last_log_id,
            truncated_from=truncated_from,
            appended=len(new),
        )

    def _may_begin_with(self, index: int) -> bool:
        frontier = self._disk.last_purged
        if frontier is not None:
            return index <= frontier.index
        return not self._disk.entries or self._disk.entries[0].index == index

    def _has(self, log_id: LogId) -> bool:
        frontier = self._disk.last_purged
        if frontier is not None and log_id.index <= frontier.index:
            return log_id.index < frontier.index or log_id.term == frontier.term
        held = self._held(log_id.index, log_id.index + 1)
        return bool(held) and held[0].log_id == log_id

    def _is_there(self, entry: Entry) -> bool:
        frontier = self._disk.last_purged
        if frontier is not None and entry.index <= frontier.index:
            if self._check_raft and not self._has(entry.log_id):
                raise self._broken("committed", entry.log_id, frontier)
            return True
        return self._has(entry.log_id)

    def _hint(self, prev: LogId) -> LogId | None:
        """Where a leader that has ``prev`` should go on."""
        hint = self._disk.last_purged
        for entry in self._held(0, prev.index + 1):
            if (entry.term, entry.node_id) <= (prev.term, prev.node_id):
                hint = entry.log_id
        return hint

    async def truncate(self, log_id: LogId) -> None:
        self._check_open()
        check_log_id(log_id)
        self._truncate(log_id.index)
        await anyio.lowlevel.checkpoint()

    async def truncate_after(self, log_id: LogId | None) -> None:
        self._check_open()
        check_log_id(log_id, is_none_allowed=True)
        frontier = self._disk.last_purged
        if log_id is not None:
            self._truncate(log_id.index + 1)
        else:
            self._truncate(0 if frontier is None else frontier.index + 1)
        await anyio.lowlevel.checkpoint()

    def _truncate(self, start: int) -> None:
        frontier = self._disk.last_purged
        if frontier is not None and start <= frontier.index:
            raise LogRangeError(
                f"cannot truncate from {start}: the log is purged up to {frontier.index}"
            )
        disk = self._disk
        kept = [entry for entry in disk.entries if entry.index < start]
        if len(kept) == len(disk.entries):
            return
        cut = disk.entries[len(kept)].index
        disk.entries = kept
        self._life.change()
        if disk.committed is not None and disk.committed.index >= cut:
            disk.committed = disk.last_log_id

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        self._check_open()
        check_log_id(log_id)
        data = self._disk.state if state is None else copied_state("state", state)
        frontier = self._disk.last_purged
        if frontier is None or log_id.index > frontier.index:
            for held in self._held(log_id.index, log_id.index + 1):
                if self._check_raft and held.term != log_id.term:
                    raise self._broken("purge", log_id, held.log_id)
            self._disk.last_purged = log_id
            self._disk.entries = self._held(log_id.index + 1, None)
            self._life.change()
        self._disk.state = data
        await anyio.lowlevel.checkpoint()

    async def save_vote(self, vote: Vote) -> None:
        self._check_open()
        check_vote(vote)
        saved = self._disk.vote
        if self._check_raft and saved is not None and not _may_follow(saved, vote):
            raise self._broken("vote", vote, saved)
        self._disk.vote = vote
        await anyio.lowlevel.checkpoint()

    async def save_state(self, data: bytes) -> None:
        self._check_open()
        self._disk.state = copied_state("data", data)
        await anyio.lowlevel.checkpoint()

    async def read_state(self) -> bytes | None:
        self._check_open()
        state = self._disk.state
        await anyio.lowlevel.checkpoint()
        return state

    async def save_committed(self, log_id: LogId | None) -> None:
        self._check_open()
        check_log_id(log_id, is_none_allowed=True)
        if self._check_raft and log_id is not None and log_id != self._disk.last_purged:
            held = self._held(log_id.index, log_id.index + 1)
            if not held or held[0].log_id != log_id:
                raise self._broken("committed", log_id, held[0].log_id if held else None)
        self._disk.committed = log_id
        await anyio.lowlevel.checkpoint()

    async def read_committed(self) -> LogId | None:
        self._check_open()
        committed = self._disk.committed
        await anyio.lowlevel.checkpoint()
        return committed

    async def wait_durable(self, log_id: LogId) -> None:
        self._check_open()
        check_log_id(log_id)
        frontier, index = self._disk.last_purged, log_id.index
        held = self._held(index, index + 1)
        await anyio.lowlevel.checkpoint()
        found = held[0].log_id if held else None
        if found is None and frontier is not None and index <= frontier.index:
            if index < frontier.index or log_id.term == frontier.term:
                return
            found = frontier
        if found is None and index not in self._ever:
            raise LogRangeError(f"no entry {index} was appended: append it first", index=index)
        if found != log_id:
            raise LogTruncatedError(
                f"{log_id} is not in the log any more", log_id=log_id, found=found
            )

    @staticmethod
    def _broken(rule: str, given: object, held: object) -> RaftRuleError:
        return RaftRuleError(
            f"{given} breaks a rule of Raft's ({rule}), beside {held}: mend the caller",
            rule=rule,
            given=given,
            held=held,
        )

    async def get_log_reader(self) -> LogReader:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        return MemoryLogReader(self._disk, self._life)

    async def flush(self) -> None:
        """Everything accepted so far is durable, as it always is here."""
        self._check_open()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._life.is_open = False
        self._life.change()
        await anyio.lowlevel.checkpoint()


def _may_follow(saved: Vote, vote: Vote) -> bool:
    if vote.term != saved.term:
        return vote.term > saved.term
    return saved.node_id in (None, vote.node_id) and vote.committed >= saved.committed
