"""The async face: ``RaftLogStorage`` and ``RaftLogReader``, under asyncio and trio.

Turns the writer's tickets into awaits and the log's reads into reads that wait for the disk in
a thread. Nothing here blocks the event loop: what is not in memory is read by a thread.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from ._files import Files, Lock, OsFiles, call_in_forked_child
from ._format import DATA_START, RECORD_OVERHEAD_BYTES, U64_MAX, validate_vote
from ._log import Log, Options, drive
from ._recovery import open_log
from ._types import Entry, LogId, LogState, LogSync, StorageStatistics, Vote
from ._writer import Group, Post, Ticket, Worker, Writer
from .errors import LeaderChangedError, LogRangeError, WalClosedError
from .protocols import AppendCallback

__all__ = ["RaftLogReader", "RaftLogStorage"]

# How much one step of a long read takes before others get their turn.
_CHUNK_ENTRIES = 1024
_CHUNK_BYTES = 256 << 10
# How many calls that never had to wait go by before one lets other tasks run.
_CALLS_PER_TURN = 64

_SEGMENT_SIZE_MINIMUM = 8192
_SIZE_MAXIMUM = (1 << 32) - 1
_MAX_ENTRY_SIZE_MAXIMUM = _SIZE_MAXIMUM - DATA_START - RECORD_OVERHEAD_BYTES


class _Core:
    """What a store and its readers share."""

    __slots__ = ("__weakref__", "is_closed", "log", "path", "turns", "why_closed", "writer")

    def __init__(self, path: str, log: Log, writer: Writer) -> None:
        self.path = path
        self.log = log
        self.writer = writer
        self.is_closed = False
        self.why_closed = ""
        self.turns = _CALLS_PER_TURN

    def check_open(self) -> None:
        if self.is_closed:
            raise WalClosedError(self.why_closed)

    def close(self, why: str) -> None:
        self.is_closed = True
        self.why_closed = why

    async def take_turn(self) -> None:
        """Called where nothing was waited for: a busy task must not starve the others."""
        self.turns -= 1
        if self.turns < 0:
            self.turns = _CALLS_PER_TURN
            await anyio.lowlevel.checkpoint()


_open_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    # The child shares the maps but has neither the threads nor the lock.
    for core in list(_open_cores):
        core.close(f"{core.path} is open in the parent process: a forked child cannot use it")


call_in_forked_child(_close_in_forked_child)


class RaftLogReader:
    """The reading half of a store; may be used by any task, as long as the store is open.

    It never shows stale data: after a truncation or a purge returned, every read sees its
    effect. Reads are atomic with respect to the other calls, except the streams, which read
    chunk by chunk. Cancelling a read has no effect but to end it. After the store was closed
    every method raises WalClosedError.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _Core) -> None:
        self._core = core

    async def try_get_log_entries(self, start: int, stop: int | None = None) -> list[Entry]:
        """Every entry that the log holds in ``[start, stop)``; to its end where stop is None.

        What is purged or not there yet is missing at the ends of the list. Sees an append as
        soon as that append is readable. Raises CorruptionError where a checksum is wrong,
        never gives a shortened list; OSError where the disk fails.
        """
        core = self._core
        core.check_open()
        log = core.log
        first, end = log.clip(start, stop)
        if first >= end:
            await core.take_turn()
            return []
        entries = log.read_recent(first, end)
        if entries is not None:
            await core.take_turn()
            return entries
        return await self._read(start, stop, None)

    async def limited_get_log_entries(
        self, start: int, stop: int | None = None, max_bytes: int = 1 << 20
    ) -> list[Entry]:
        """The first entries of ``[start, stop)``, with ``max_bytes`` of payload at the most.

        At least one, however large, if there is any. Raises as ``try_get_log_entries`` does.
        """
        self._core.check_open()
        return await self._read(start, stop, max_bytes)

    async def entries_stream(self, start: int, stop: int | None = None) -> AsyncIterator[Entry]:
        """The entries of ``[start, stop)`` one by one, in bounded memory.

        With ``stop=None`` it ends at the last entry that there is when it gets there. Raises
        LogRangeError if a purge overtakes it, and as ``try_get_log_entries`` does.
        """
        position: int | None = None
        while True:
            chunk = await self.limited_get_log_entries(
                start if position is None else position, stop, _CHUNK_BYTES
            )
            if not chunk:
                return
            if position is not None and chunk[0].index != position:
                raise LogRangeError(
                    f"entries {position} to {chunk[0].index - 1} were purged while they were "
                    "about to be streamed"
                )
            for entry in chunk:
                yield entry
            position = chunk[-1].index + 1
            await anyio.lowlevel.checkpoint()

    async def leader_bounded_stream(
        self, vote: Vote, start: int, stop: int | None = None
    ) -> AsyncIterator[Entry]:
        """``entries_stream`` for as long as the saved vote equals ``vote``, a committed one.

        Raises LeaderChangedError as soon as it does not, and where ``vote`` is not committed.
        """
        self._check_leader(vote)
        async for entry in self.entries_stream(start, stop):
            self._check_leader(vote)
            yield entry
        self._check_leader(vote)

    def _check_leader(self, vote: Vote) -> None:
        saved = self._core.log.meta.state.vote
        if saved != vote or not vote.committed:
            raise LeaderChangedError(f"the read was bound to {vote}, the saved vote is {saved}")

    async def get_key_log_ids(self) -> list[LogId]:
        """The first entry's log id, the first of each leader's, and the last; no repeats.

        Reads a number of entries that grows with the leaders and only with the logarithm of
        the log.
        """
        core = self._core
        while True:
            core.check_open()
            log = core.log
            epoch, first, end = log.epoch, log.first_index, log.next_index
            if end is None or first >= end:
                await core.take_turn()
                return []
            ids = await self._find_leaders(first, end - 1)
            if ids is not None and log.epoch == epoch and log.first_index == first:
                return ids

    async def _find_leaders(self, first: int, last: int) -> list[LogId] | None:
        """As ``get_key_log_ids``; None where the log changed meanwhile."""

        async def at(index: int) -> LogId | None:
            entries = await self.try_get_log_entries(index, index + 1)
            return entries[0].log_id if entries else None

        current, final = await at(first), await at(last)
        if current is None or final is None:
            return None
        ids = [current]
        while (current.term, current.node_id) != (final.term, final.node_id):
            # the first entry after `low` that the leader of `low` did not propose
            low, high = current.index, last
            while high - low > 1:
                middle = await at((low + high) // 2)
                if middle is None:
                    return None
                if (middle.term, middle.node_id) == (current.term, current.node_id):
                    low = middle.index
                else:
                    high = middle.index
            found = await at(high)
            if found is None:
                return None
            current = found
            ids.append(current)
        if ids[-1] != final:
            ids.append(final)
        return ids

    async def get_log_state(self) -> LogState:
        """Both ends of the log; the last is the purge frontier where the log is empty.

        Never reads the disk.
        """
        self._core.check_open()
        return self._core.log.state

    async def read_vote(self) -> Vote | None:
        """The vote that was saved last."""
        self._core.check_open()
        return self._core.log.meta.state.vote

    # --- how it is read --------------------------------------------------------------------

    async def _read(self, start: int, stop: int | None, max_bytes: int | None) -> list[Entry]:
        """Reads in chunks, and begins anew where a truncation or a purge came in between."""
        core, log = self._core, self._core.log
        while True:
            epoch = log.epoch
            first, end = log.clip(start, stop)
            result: list[Entry] = []
            budget = max_bytes
            while first < end:
                try:
                    chunk = await self._read_chunk(first, end, budget)
                except Exception:
                    core.check_open()
                    if log.epoch == epoch and log.first_index <= first:
                        raise
                    break  # what was being read is gone: that is no damage
                if log.epoch != epoch:
                    break
                is_enough = False
                if budget is not None:
                    count, budget = _fitting(chunk, budget, is_first=not result)
                    is_enough = count < len(chunk)
                    del chunk[count:]
                result += chunk
                first += len(chunk)
                if is_enough:
                    return result
            else:
                if log.epoch == epoch:
                    return result

    async def _read_chunk(self, first: int, end: int, max_bytes: int | None) -> list[Entry]:
        """The first few of the entries ``[first, end)``, at least one."""
        core, log = self._core, self._core.log
        end = min(end, first + _CHUNK_ENTRIES)
        recent = log.read_recent(first, end)
        if recent is not None:
            await core.take_turn()
            return recent
        limit = _CHUNK_BYTES
        if max_bytes is not None:
            limit = min(limit, max_bytes + _CHUNK_ENTRIES * RECORD_OVERHEAD_BYTES)
        while True:
            pieces = log.pieces(first, end, _CHUNK_ENTRIES, limit)
            segment = pieces[0].segment
            if segment.offsets is not None:
                break
            await _in_thread(partial(log.load, segment))
            core.check_open()
            if not log.clip(first, end)[0] == first < log.clip(first, end)[1]:
                raise LogRangeError(f"entry {first} was removed while it was read")
        for piece in pieces:
            log.touch(piece.segment)
        entries = log.read_cached(pieces) if pieces[0].size_is_modest(_CHUNK_BYTES) else None
        if entries is None:
            entries = await _in_thread(partial(log.read, pieces))
            core.check_open()
        else:
            await core.take_turn()
        return entries


def _fitting(entries: list[Entry], budget: int, *, is_first: bool) -> tuple[int, int]:
    """How many of the entries fit into the budget of payload bytes, and what then remains."""
    for position, entry in enumerate(entries):
        size = len(entry.payload)
        if size > budget and not (is_first and position == 0):
            return position, budget
        budget = max(budget - size, 0)
    return len(entries), budget


async def _in_thread(job: Callable[[], Any]) -> Any:
    # A read that is abandoned does no harm: its file stays open until it is done.
    return await anyio.to_thread.run_sync(job, abandon_on_cancel=True)


class RaftLogStorage(RaftLogReader):
    """A durable Raft log; see :meth:`open`. Implements ``protocols.LogStorage``.

    Writes are applied in the order of their calls, whatever their kind. Cancelling a write
    that waits does not take it back; it only ends the waiting. Methods are to be called on the
    event loop that opened the store.

    After a failed sync or write, the calls that failed and all later writes raise
    WalPoisonedError (its cause is the OSError); reading goes on. After closing every method
    raises WalClosedError.
    """

    __slots__ = ("_entries_wait",)

    def __init__(self, core: _Core, policy: LogSync) -> None:
        super().__init__(core)
        self._entries_wait = policy == LogSync.IMMEDIATE

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: LogSync | str = LogSync.IMMEDIATE,
        segment_size: int = 16 << 20,
        max_entry_size: int = 64 << 20,
        auto_heal: bool = False,
        check_integrity: bool | None = None,
        max_unsynced_bytes: int = 64 << 20,
        cache_bytes: int = 8 << 20,
        files: Files | None = None,
    ) -> AsyncIterator[RaftLogStorage]:
        """Opens the log in the directory ``path``, for ``async with``.

        Creates the directory (0700) where it is missing, takes its lock, recovers, starts the
        background writer. Leaving the block makes durable what was accepted and closes
        cleanly, whatever the block raised.

        ``sync`` says when an append returns, and so what a crash of the machine can cost:

        - ``"immediate"``: when it is durable; nothing that was acknowledged.
        - ``"immediate_async"``: when it is readable and its write-out is under way; what the
          last syncs had not finished.
        - ``"interval_N"``: when it is readable; there is a sync every N milliseconds, and up
          to N milliseconds can be lost (by a crash of the process alone: nothing).

        Votes, truncations and purges are durable on return under each of them.

        - ``segment_size``: bytes of a segment file, 8192 at least. Larger entries get a segment
          of their own.
        - ``max_entry_size``: the largest payload accepted, in bytes.
        - ``auto_heal``: where durable entries are damaged, keep the damaged file as
          ``.broken`` and cut the log back to the last healthy entry, instead of raising
          CorruptionError. Only right where the cluster sends the lost entries again.
        - ``check_integrity``: verify every record; when None, do so if the environment has
          ``HQL_CHECK_WAL_INTEGRITY=true``.
        - ``max_unsynced_bytes``: once so much is accepted but not durable, appends wait. The
          last batch may exceed it.
        - ``cache_bytes``: what is kept in memory of the newest entries.
        - ``files``: the file system, for tests (``hqlwal_raft.testing``).

        Raises WalLockedError, CorruptionError, UnknownVersionError, OSError; nothing on disk
        was changed then. ValueError where an option makes no sense.
        """
        policy = LogSync.parse(sync)
        options = _checked_options(segment_size, max_entry_size, max_unsynced_bytes, cache_bytes)
        if check_integrity is None:
            check_integrity = os.environ.get("HQL_CHECK_WAL_INTEGRITY", "").lower() == "true"
        path = os.path.abspath(os.fspath(path))  # noqa: ASYNC240 - touches no disk
        opening = partial(
            open_log,
            files or OsFiles(),
            path,
            options,
            is_healing=auto_heal,
            is_checking_everything=check_integrity,
        )
        post = _find_post()
        disk = Worker("hqlwal-disk", post)
        log, lock = await _open_on(disk, opening)
        core = _Core(path, log, Writer(log, lock, policy, max_unsynced_bytes, disk, post))
        _open_cores.add(core)
        store = cls(core, policy)
        try:
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await store.aclose()

    # --- writing ---------------------------------------------------------------------------

    async def append(
        self, entries: Iterable[Entry], callback: AppendCallback | None = None
    ) -> None:
        """Appends entries with consecutive indexes, the first being the last index + 1.

        An empty log that was never purged takes any first index, 0 included; one that was
        purged to its end goes on behind the frontier. A batch is one write.

        Without a callback it returns as the sync policy says. With one, it returns as soon as
        the entries are readable by every reader, and ``callback(error_or_None)`` is called
        exactly once, on the event loop, when they are durable or with the error; not, though,
        where ``append`` itself raises. Tasks that append at the same time share one sync.

        Raises LogGapError, EntryTooLargeError, ValueError (a number is no u64), TypeError
        (a payload is not bytes-like), or, where a new segment could not be allocated, OSError
        (``ENOSPC``): in each of these cases nothing was written and the store goes on.
        Waits while too much is accepted but not durable. Cancelled, the entries stay accepted.
        """
        core = self._core
        core.check_open()
        batch = [
            entry if type(entry) is Entry and type(entry[2]) is bytes else _normalized(entry)
            for entry in entries
        ]
        if not batch:
            if callback is not None:
                callback(None)
            return
        writer = core.writer
        group: Group | None = writer.append_now(batch, callback)
        if group is None:
            group = await writer.append_later(batch, callback)
        if self._entries_wait and callback is None:
            await group.wait()
        else:
            await core.take_turn()

    async def truncate(self, log_id: LogId) -> None:
        """Removes ``[log_id.index, ∞)``; durable on return. Past the end nothing happens.

        Raises LogRangeError at or below the purge frontier.
        """
        self._core.check_open()
        await self._run(partial(self._core.log.truncate, log_id.index))

    async def truncate_after(self, log_id: LogId | None) -> None:
        """Keeps the entries up to and including ``log_id``, None of them for None.

        Durable on return. Raises LogRangeError where ``log_id`` is below the purge frontier.
        """
        self._core.check_open()
        if log_id is not None:
            await self._run(partial(self._core.log.truncate, log_id.index + 1))
        else:
            await self._run(self._core.log.truncate_all)

    async def purge(self, log_id: LogId) -> None:
        """Removes ``[.., log_id.index]``; durable on return, and the space is free.

        Beyond the end is legal, as after installing a snapshot: the log is then empty and its
        last log id is ``log_id``. Below the frontier nothing happens. The cost grows with the
        segments removed, not with the entries.
        """
        self._core.check_open()
        _check_log_id(log_id)
        await self._run(partial(self._core.log.purge, log_id))

    async def save_vote(self, vote: Vote) -> None:
        """Saves the vote; durable on return, as is everything that was called before.

        Raises ValueError or TypeError where the term or the node id cannot be saved.
        """
        self._core.check_open()
        validate_vote(vote)
        await self._run(partial(self._core.log.save_vote, vote))

    async def save_committed(self, log_id: LogId | None) -> None:
        """Saves the committed log id, without a sync: a crash can bring an older one back."""
        self._core.check_open()
        if log_id is not None:
            _check_log_id(log_id)
        await self._core.writer.save_committed(log_id).wait()

    async def read_committed(self) -> LogId | None:
        """The committed log id saved last; after a crash possibly an older one, never one
        beyond the last log id.
        """
        self._core.check_open()
        return self._core.log.meta.committed

    async def flush(self) -> None:
        """Everything that was accepted before is durable on return."""
        self._core.check_open()
        await self._core.writer.flush().wait()

    async def get_log_reader(self) -> RaftLogReader:
        """A reader for other tasks; it lives as long as the store is open."""
        self._core.check_open()
        return RaftLogReader(self._core)

    async def aclose(self) -> None:
        """Makes durable what was accepted and closes the log. Idempotent.

        Calls that still wait for their turn get WalClosedError; those that were accepted get
        their answer. Cancelled, it goes on in the background. Raises WalPoisonedError where
        the last sync failed, unless an earlier one had.
        """
        core = self._core
        core.close(f"{core.path} was closed")
        _open_cores.discard(core)
        await core.writer.close().wait()

    def statistics(self) -> StorageStatistics:
        """What the store has done since it was opened, and how it stands now.

        Raises WalClosedError after closing.
        """
        core = self._core
        core.check_open()
        log, writer = core.log, core.writer
        latencies = sorted(writer.sync_seconds)
        cached_entries, cached_bytes = log.cached
        return StorageStatistics(
            segments=len(log.segments),
            segment_bytes=log.segment_bytes,
            entries=log.count,
            appends=writer.appends,
            appended_entries=writer.appended_entries,
            appended_bytes=writer.appended_bytes,
            syncs=writer.syncs,
            entries_per_sync=writer.synced_entries / writer.syncs if writer.syncs else 0.0,
            sync_last_seconds=writer.sync_seconds[-1] if latencies else 0.0,
            sync_p50_seconds=_quantile(latencies, 0.50),
            sync_p99_seconds=_quantile(latencies, 0.99),
            sync_max_seconds=writer.sync_max_seconds,
            queue_depth=writer.queue_depth,
            unsynced_bytes=log.unsynced_bytes,
            last_log_id=log.last_log_id,
            last_durable_log_id=log.last_durable_log_id,
            last_purged_log_id=log.last_purged_log_id,
            cached_entries=cached_entries,
            cached_bytes=cached_bytes,
            is_poisoned=writer.poison is not None,
        )

    async def _run(self, begin: Callable[[], Any]) -> None:
        await self._core.writer.run(begin).wait()


# --- helpers -----------------------------------------------------------------------------


def _normalized(entry: Entry) -> Entry:
    """The entry with a payload of bytes that nobody can change any more."""
    if not isinstance(entry, Entry):
        raise TypeError(f"{entry!r} is no Entry")
    payload = entry.payload
    if not isinstance(payload, bytes):
        payload = bytes(memoryview(payload))
    return Entry(entry.term, entry.index, payload, entry.node_id)


def _check_log_id(log_id: LogId) -> None:
    if not all(0 <= n <= U64_MAX for n in (log_id.term, log_id.index, log_id.node_id)):
        raise ValueError(f"{log_id} must be made of numbers from 0 to 2**64 - 1")


def _checked_options(
    segment_size: int, max_entry_size: int, max_unsynced_bytes: int, cache_bytes: int
) -> Options:
    if not _SEGMENT_SIZE_MINIMUM <= segment_size <= _SIZE_MAXIMUM:
        raise ValueError(
            f"segment_size {segment_size}: give {_SEGMENT_SIZE_MINIMUM} to {_SIZE_MAXIMUM} bytes"
        )
    if not 0 <= max_entry_size <= _MAX_ENTRY_SIZE_MAXIMUM:
        raise ValueError(
            f"max_entry_size {max_entry_size}: give at most {_MAX_ENTRY_SIZE_MAXIMUM} bytes"
        )
    if max_unsynced_bytes < 1:
        raise ValueError(f"max_unsynced_bytes {max_unsynced_bytes}: give at least 1 byte")
    if cache_bytes < 0:
        raise ValueError(f"cache_bytes {cache_bytes}: give 0 bytes or more")
    return Options(segment_size, max_entry_size, cache_bytes)


def _quantile(ascending: list[float], part: float) -> float:
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)] if ascending else 0.0


def _find_post() -> Post:
    """How a thread gets something called on the running event loop, without waiting for it."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio.lowlevel  # noqa: PLC0415 - needed only where it is there

        return trio.lowlevel.current_trio_token().run_sync_soon


async def _open_on(disk: Worker, opening: Callable[[], tuple[Log, Lock]]) -> tuple[Log, Lock]:
    """Opens the log on its thread. If that fails or is cancelled, nothing stays open."""
    opened: list[tuple[Log, Lock]] = []
    ticket = Ticket()

    def undo() -> None:
        for log, lock in opened:
            try:
                drive(log.close())
            finally:
                lock.release(remove=True)

    disk.submit(lambda: opened.append(opening()), ticket.settle)
    try:
        await ticket.wait()
    except BaseException:
        disk.submit(undo, lambda _result, _error: None)
        disk.stop()
        raise
    return opened[0]
