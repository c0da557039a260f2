"""The engine without threads and event loop: one open log, driven in this thread step by step.

Lives here because it is the only module of the crash and bit loops that knows how the engine is
built: a new engine changes this file and no other. It must not know what a history expects.

What may come late in the engine (unlinking after a purge, preparing the next segment, a seal, the
mark at idle) is never done by a call here on its own but offered by ``due`` and done by
``housekeeping``, one step each, so that a history can put it anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hqlwal_raft import Entry, LogId, Vote, _operations, _receiving, _truncating
from hqlwal_raft._appending import Need, append
from hqlwal_raft._commits import begin_commit, committed, save_committed
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import DATA_START, LOCK_NAME, META_NAME, RECORD_OVERHEAD_BYTES
from hqlwal_raft._log import Log
from hqlwal_raft._plans import Work, carry_out, drive
from hqlwal_raft._reads import Options
from hqlwal_raft._recovery import recover
from hqlwal_raft._segment import Extent, Segment
from hqlwal_raft._types import FindingKind
from hqlwal_raft._unsynced import MARK_SECONDS
from hqlwal_raft.audit import examine

__all__ = [
    "DIRECTORY",
    "HEADER_BYTES",
    "LOCK_NAME",
    "META_NAME",
    "RECORD_OVERHEAD_BYTES",
    "Core",
    "View",
    "damage",
    "memory",
]

DIRECTORY = "/node/log"
HEADER_BYTES = DATA_START


@dataclass(frozen=True, slots=True)
class View:
    """What a store shows once it is open."""

    frontier: LogId | None
    last: LogId | None
    entries: tuple[Entry, ...]
    vote: Vote | None
    committed: LogId | None


def damage(environment: Environment) -> list[str]:
    """What a thorough examination of the directory finds wrong."""
    report = examine(DIRECTORY, deep=True, environment=environment)
    return [f.message for f in report.all_findings if f.kind is FindingKind.DAMAGE]


def memory(log: Log, now: float) -> object:
    """What a log remembers, comparable."""

    def facts(segments: Sequence[Segment]) -> tuple[object, ...]:
        names = ("number", "first_id", "next_id", "end", "is_sealed", "header", "salt")
        more = ("durable_end", "durable_next_id", "length", "has_room")
        return tuple(
            (*(getattr(s, n) for n in names + more), now - s.mark_seconds > MARK_SECONDS)
            for s in segments
        )

    return (
        facts(log.segments),
        facts(log.prepared),
        tuple(part.segment.number for part in log.unsynced.unwritten),
        tuple(segment.number for segment in log.unsynced.dirty),
        tuple(log.to_unlink),
        tuple(segment.number for segment in log.to_seal),
        tuple(log.stale),
        log.meta.state,
        log.meta.committed,
        log.next_index,
        log.first_index,
        log.last_log_id,
    )


class Core:
    """An open log. Every call is done, and durable unless it says otherwise, when it returns."""

    def __init__(
        self,
        environment: Environment,
        segment_size: int,
        *,
        check_integrity: bool = False,
        auto_heal: bool = False,
        is_buffered: bool = False,
    ) -> None:
        # without a cache, so that what is shown was read from the disk
        options = Options(segment_size=segment_size, cache_bytes=0, is_buffered=is_buffered)
        recovered = recover(
            environment,
            DIRECTORY,
            is_healing=auto_heal,
            is_checking_everything=check_integrity,
        )
        self._log = Log(
            recovered.directory,
            options,
            recovered.meta,
            list(recovered.segments),
            list(recovered.prepared),
            recovered.last_log_id,
        )
        #: of the commits: every second one comes when the durable mark is due
        self._now = 1.0

    def view(self) -> View:
        """Everything the store shows, read from the disk; what is not written from memory."""
        log = self._log
        position, stop = log.clip(0, None)
        entries: list[Entry] = []
        while position < stop:
            recent = log.recent.read(position, stop)
            if recent is not None:
                entries += recent
                break
            end = min(stop, log.recent.first_index or stop)
            found = log.reads.extents(position, end, 1 << 20, 1 << 30)
            if isinstance(found, Segment):
                step = found.load_step()
                file, places = step.carry_out(log.directory)
                found.loaded(file, places)
                if not found.is_loaded:  # lengths lead astray: reading all of it says where
                    first, stop = found.first_id, found.next_id
                    Extent(file, found.salt, first, stop, DATA_START, step.end).read()
                continue
            some = [entry for extent in found for entry in extent.read()]
            entries += some
            position += len(some)
        state = log.state
        return View(
            state.last_purged_log_id,
            state.last_log_id,
            tuple(entries),
            log.meta.state.vote,
            log.meta.committed,
        )

    def memory(self) -> object:
        """What the engine remembers, comparable: with the disk it decides what comes next."""
        return memory(self._log, self._now)

    # --- calls ---------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], *, sync: bool) -> None:
        """Not ``sync``: readable, and durable after the next sync."""
        while (need := append(self._log, entries)) is not None:
            self._meet(need)
        if sync:
            self.sync()

    def _meet(self, need: Need) -> None:
        log = self._log
        if need.is_seal:
            self.sync()
            self._run(_operations.seal(log))
        elif need.lengths:
            self._run(_operations.prepare(log, need))
        elif need.room is not None:
            self._run(_operations.make_room(log, need.room))
        else:
            self._run(_operations.name_first(log, need.name))

    def _run(self, work: Work[None] | None) -> None:
        assert work is not None
        drive(work, self._log.directory)

    def sync(self) -> None:
        log = self._log
        self._now += 0.6 * MARK_SECONDS
        plan = begin_commit(log, self._now)
        if plan is not None:
            outcome = carry_out(log.directory, plan)
            if outcome.error is not None:
                raise outcome.error
            committed(log, outcome)

    def append_after(self, prev: LogId | None, entries: Sequence[Entry]) -> None:
        log = self._log
        _receiving.check_batch(log, prev, entries)
        verdict = drive(_receiving.judge(log, prev, entries), log.directory)
        if verdict.conflict is not None:
            self.sync()
            cut = _receiving.begin_cut(log, verdict)
            assert cut is not None
            verdict = drive(cut, log.directory)
        assert verdict.is_match
        self.append(entries[verdict.held :], sync=True)

    def truncate(self, index: int) -> None:
        self.sync()
        self._run(_truncating.truncate(self._log, index))

    def purge(self, log_id: LogId) -> None:
        self.sync()
        self._run(_operations.purge(self._log, log_id))

    def save_vote(self, vote: Vote) -> None:
        self.sync()
        self._run(_operations.save_vote(self._log, vote))

    def save_committed(self, log_id: LogId | None) -> None:
        """A hint: durable at some later time."""
        save_committed(self._log, log_id)
        self.sync()

    # --- what may come late ----------------------------------------------------------------

    def due(self) -> list[str]:
        """The steps of housekeeping that the engine could do now."""
        log = self._log
        names = []
        if log.to_unlink:
            names.append("unlink")
        if not log.prepared:
            names.append("prepare")
        if _operations.seal(log) is not None:
            names.append("seal")
        if log.is_clean and _operations.mark(log, 0.0) is not None:
            names.append("mark")
        return names

    def housekeeping(self, name: str) -> None:
        """One of the steps that are due."""
        log = self._log
        if name == "unlink":
            self._run(_operations.unlink(log))
        elif name == "prepare":
            self._run(_operations.prepare(log))
        elif name == "seal":
            self._run(_operations.seal(log))
        else:
            self._run(_operations.mark(log, self._now))

    # --- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        log = self._log
        while log.to_unlink:
            self.housekeeping("unlink")
        self.sync()
        self._run(_operations.close(log))
        log.release()
        log.directory.say_clean()
        log.directory.close()

    def abandon(self) -> None:
        """Lets go without writing anything, as a process that dies."""
        self._log.release()
        self._log.directory.close()
