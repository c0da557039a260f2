"""The engine without threads and event loop: one open log, driven in this thread step by step.

Lives here because it is the only module of the crash and bit loops that knows how the engine is
built: a new engine changes this file and no other. It must not know what a history expects.

What may come late in the engine (unlinking after a purge, preparing the next segment, a seal, the
mark at idle) is never done by a call here on its own but offered by ``due`` and done by
``housekeeping``, one step each, so that a history can put it anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hqlwal_raft import Entry, LogId, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft._files import Files
from hqlwal_raft._format import DATA_START, LOCK_NAME, META_NAME, RECORD_OVERHEAD_BYTES
from hqlwal_raft._log import Lacking, Log, Options, drive
from hqlwal_raft._recovery import open_log
from hqlwal_raft._types import FindingKind
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


class Core:
    """An open log. Every call is done, and durable unless it says otherwise, when it returns."""

    def __init__(
        self,
        environment: Environment,
        segment_size: int,
        *,
        check_integrity: bool = False,
        auto_heal: bool = False,
    ) -> None:
        # without a cache, so that what is shown was read from the disk
        options = Options(segment_size=segment_size, cache_bytes=0)
        self._log: Log
        self._log, self._lock = open_log(
            Files(environment),
            DIRECTORY,
            options,
            is_healing=auto_heal,
            is_checking_everything=check_integrity,
        )
        #: what purges left to be unlinked, with the frontier that each was for
        self._chores: list[tuple[int, Callable[[], None]]] = []

    def view(self) -> View:
        """Everything the store shows, read from the disk."""
        log = self._log
        position, stop = log.clip(0, None)
        entries: list[Entry] = []
        while position < stop:
            pieces = log.reads.pieces(position, stop, 1 << 20, 1 << 30)
            for piece in pieces:
                log.reads.load(piece.segment)
            some = log.reads.read(pieces)
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
        log = self._log

        def facts(segments: Sequence[object]) -> tuple[object, ...]:
            names = ("number", "first_id", "next_id", "end", "is_sealed", "is_dirty")
            more = ("durable_end", "durable_next_id", "length", "salt")
            return tuple(tuple(getattr(s, n) for n in names + more) for s in segments)

        return (
            facts(log.segments),
            facts(log.prepared),
            tuple(s.number for s in log._dirty),
            tuple(frontier for frontier, _ in self._chores),
            log.meta.state,
            log.meta.committed,
            log.next_index,
            log.first_index,
            log.last_log_id,
        )

    # --- calls ---------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], *, sync: bool) -> None:
        """Not ``sync``: readable, and durable after the next sync."""
        while (lacking := self._log.append(entries)) is not None:
            self._prepare(lacking)
        if sync:
            self.sync()

    def _prepare(self, lacking: Lacking | None = None) -> None:
        drive(self._log.prepare(lacking))

    def sync(self) -> None:
        if self._log.is_dirty:
            drive(self._log.sync())

    def truncate(self, index: int) -> None:
        self.sync()
        drive(self._log.truncate(index))

    def purge(self, log_id: LogId) -> None:
        self.sync()
        chore = drive(self._log.purge(log_id))
        if getattr(chore, "args", ()):
            self._chores.append((log_id.index, chore))

    def save_vote(self, vote: Vote) -> None:
        drive(self._log.save_vote(vote))

    def save_committed(self, log_id: LogId | None) -> None:
        """A hint: durable at some later time."""
        self._log.meta.save_committed(log_id)

    # --- what may come late ----------------------------------------------------------------

    def due(self) -> list[str]:
        """The steps of housekeeping that the engine could do now."""
        names = []
        if self._chores:
            names.append("unlink")
        if not self._log.prepared:
            names.append("prepare")
        return names

    def housekeeping(self, name: str) -> None:
        """One of the steps that are due."""
        if name == "unlink":
            self._chores.pop(0)[1]()
        else:
            self._prepare()

    # --- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        while self._chores:
            self.housekeeping("unlink")
        self.sync()
        drive(self._log.close())
        self._lock.release(remove=True)

    def abandon(self) -> None:
        """Lets go without writing anything, as a process that dies."""
        self._log.abandon()
        self._lock.release(remove=False)
