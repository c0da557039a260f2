"""The contract of a Raft log storage, as protocols with openraft's method names.

``hqlwal_raft.testing.check_log_storage`` enforces what the docstrings demand; any class that
passes it may stand in for :class:`hqlwal_raft.RaftLogStorage`. Knows only the values.

What is about how a storage keeps its entries is not in it, since another one may have nothing of the
kind: ``open`` and its options, ``mend`` (damaged records on a disk), ``abandon`` (a disk that does not
answer), ``statistics``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Protocol, runtime_checkable

from ._types import AppendOutcome, Entry, LogId, LogState, Vote

__all__ = ["AppendCallback", "LogReader", "LogStorage"]

#: told once, on the event loop: None when the entries are durable, else why they are not
AppendCallback = Callable[[BaseException | None], object]


@runtime_checkable
class LogReader(Protocol):
    """The reading half; may be used by many tasks at once.

    To ensure correctness:

    - What an append made readable is seen by every read that starts afterwards.
    - What a truncation or purge removed is seen by no read that starts afterwards, however
      old the reader.
    - A read is atomic: it shows the log as it was at one moment.
    - Damage is raised as ``CorruptionError``, never shown as a shorter log.
    """

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """Every entry the log holds in ``[start, stop)``; ``stop=None`` reads to the end.

        - What is purged or not yet there is missing at the ends of the list, never inside.
        - An empty or inverted range gives an empty list.
        """
        ...

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = ...
    ) -> list[Entry]:
        """The first entries of ``[start, stop)``, at least one if there is any.

        - The payloads sum to at most ``max_bytes`` unless the first alone is larger.
        """
        ...

    async def try_get_log_entry(self, index: int) -> Entry | None:
        """The entry; None where the log does not hold it."""
        ...

    async def log_id_at(self, index: int) -> LogId | None:
        """The log id of an entry; None where the log does not hold it."""
        ...

    def entries_stream(self, start: int, stop: int | None = None) -> AsyncIterator[Entry]:
        """The entries of ``[start, stop)`` one by one, in bounded memory.

        - ``stop=None`` ends at the last entry there is when the stream gets there.
        - Where a purge overtakes it: ``LogRangeError``, never a silent end.
        """
        ...

    def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncIterator[Entry]:
        """``entries_stream`` while the saved vote equals ``vote``, a committed one.

        - Raises ``LeaderChangedError`` as soon as it does not.
        """
        ...

    def follow(self, start: int, *, durable: bool = True) -> AsyncGenerator[list[Entry]]:
        """Batches of entries from ``start`` on, without an end: what there is, then what comes.

        - Every entry comes once and in order; no batch is empty.
        - With ``durable`` none comes that a crash can take.
        - Where a purge overtakes it: ``LogRangeError``. Where what it gave is truncated, or
          replaced: ``LogTruncatedError``. What it gave and was purged is no concern of its.
        - Where no more will come, ``WalClosedError`` or ``WalPoisonedError``; it never ends.
        """
        ...

    async def get_key_log_ids(
        self, first: LogId | int | None = None, last: LogId | int | None = None
    ) -> list[LogId]:
        """The last log id of each leader (term and node id) in ``[first, last]``, ascending.

        - Both ends are included, and given as log ids or as indexes; None: the log's own ends.
        - One for each leader; the last log id in the range is always there.
        """
        ...

    async def get_log_state(self) -> LogState:
        """Both ends of the log.

        - ``last_log_id`` is the purge frontier when the log is empty.
        - Neither ever goes back, a truncation excepted.
        """
        ...

    async def read_vote(self) -> Vote | None:
        """The vote saved last."""
        ...


@runtime_checkable
class LogStorage(LogReader, Protocol):
    """The whole storage. Writes are applied in the order of their calls, whatever their kind."""

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        """Appends entries at the end of the log.

        - Their indexes are consecutive and the first is the last index + 1. An empty log that
          was never purged takes any first index, 0 included; after a purge of everything the
          first is the frontier's index + 1. Otherwise ``LogGapError``, nothing written.
        - Without a callback: durable on return, where the sync policy says so.
        - With a callback: returns once the entries are readable by every reader; the callback
          is called exactly once, on the event loop, when they are durable or with the error.
        - An empty iterable returns at once (a callback is then called with None).
        - A term lower than the entry's before it: ``RaftRuleError``, nothing written.
        """
        ...

    async def append_after(
        self, prev_log_id: LogId | None, entries: Iterable[Entry]
    ) -> AppendOutcome:
        """Raft's receiver rule: the entries of a leader, which follow ``prev_log_id`` there.

        - The log does not hold ``prev_log_id``: not ``matched``, nothing is changed, and ``hint``
          is the last log id at or before its index of no later leader (term and node id), the
          purge frontier at the least, else None.
        - What is at or below the purge frontier is held; of the frontier itself the term must be
          the entry's. ``None`` stands for the very start: it is held by an empty log that was
          never purged, and where the first entry is the log's first, or was purged.
        - Entries that the log holds, by their log ids, are skipped; the first that it holds
          another one for truncates, once; the rest is appended. Entries behind the last one
          given that are not in conflict stay.
        - Nothing comes in between; a crash leaves the beginning of the log as it was before or as
          it is afterwards, with all that both hold: never a mixture.
        - Durable on return as by ``append``, what was skipped included.
        - Entries that do not follow ``prev_log_id`` and each other: ``LogGapError``; a conflict
          with what is committed, or purged: ``RaftRuleError``; what ``append`` refuses: as there.
          Nothing is changed.
        - Closed before it was answered: ``WalClosedError``, and the log is as after a crash. It may
          be cut already.
        """
        ...

    async def truncate(self, log_id: LogId) -> None:
        """Removes ``[log_id.index, ∞)``; durable on return.

        - Past the end: nothing happens. At or below the frontier: ``LogRangeError``.
        """
        ...

    async def truncate_after(self, log_id: LogId | None) -> None:
        """Keeps up to and including ``log_id``; None removes everything not purged."""
        ...

    async def purge(self, log_id: LogId, *, state: bytes | None = None) -> None:
        """Removes ``[.., log_id.index]``; durable on return.

        - Beyond the end is legal: the log is then empty and its ``last_log_id`` is ``log_id``.
        - At or below the frontier: nothing happens.
        - The log holds another term at that index: ``RaftRuleError``, nothing purged.
        - ``state`` is saved with it: a crash leaves both or neither.
        """
        ...

    async def save_vote(self, vote: Vote) -> None:
        """Saves the vote; durable on return under every sync policy.

        - A vote that goes back is a ``RaftRuleError``, and the saved one stays: a lower term;
          in the same term another node, none after one, or no more *committed*.
        """
        ...

    async def save_state(self, data: bytes) -> None:
        """Saves a small state of the node's own (at most 2048 bytes); durable on return."""
        ...

    async def read_state(self) -> bytes | None:
        """The state saved last; None where none ever was."""
        ...

    async def save_committed(self, log_id: LogId | None) -> None:
        """Saves the committed log id, without a sync of its own.

        - Neither in the log nor its purge frontier: ``RaftRuleError``.
        """
        ...

    async def read_committed(self) -> LogId | None:
        """The committed log id saved last.

        - After a crash it may be an older saved value, never one beyond the last log id.
        """
        ...

    async def wait_durable(self, log_id: LogId) -> None:
        """Returns once that very entry is durable.

        - It, or another with its index, was truncated, or replaced: ``LogTruncatedError``.
        - No entry with its index was appended yet: ``LogRangeError``.
        - As ``append`` otherwise.
        """
        ...

    async def flush(self) -> None:
        """Everything that was accepted before is durable on return."""
        ...

    async def get_log_reader(self) -> LogReader:
        """A reader that lives as long as the storage and may be used by other tasks."""
        ...

    async def aclose(self) -> None:
        """Makes everything accepted durable and releases the storage. Idempotent."""
        ...
