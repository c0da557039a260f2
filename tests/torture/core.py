"""The engine without its committer: one open log, driven step by step in the calling thread.

The histories' adapter: it knows how the engine is built, and not what a history expects. What
may come late in the engine (sealing, unlinking, preparing, the mark of an idle tail) happens only
where a history asks for it, in the middle of a commit's syncs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hqlwal_raft import (
    Entry,
    LogId,
    Vote,
    _appending,
    _commits,
    _operations,
    _plans,
    _truncating,
)
from hqlwal_raft._appending import SEALS_WAITING, Need
from hqlwal_raft._environment import Environment
from hqlwal_raft._log import Log
from hqlwal_raft._plans import Work, drive
from hqlwal_raft._reads import Options
from hqlwal_raft._recovery import recover
from hqlwal_raft._segment import Segment, damage

from .ledger import View

__all__ = ["CHORES", "DIRECTORY", "Core"]

DIRECTORY = "/node/log"

_Chore = Callable[[Log], Work[None] | None]


def _prepare(log: Log) -> Work[None] | None:
    return _operations.prepare(log) if len(log.prepared) < 2 else None


#: what the engine does beside commits
CHORES: dict[str, _Chore] = {
    "seal": _operations.seal,
    "unlink": _operations.unlink,
    "prepare": _prepare,
}


class Core:
    """An open log. A buffered one's appends survive a kill, another's only a sync."""

    def __init__(
        self,
        environment: Environment,
        segment_size: int,
        *,
        directory: str = DIRECTORY,
        is_healing: bool = False,
        is_checking_everything: bool = False,
        is_buffered: bool = True,
    ) -> None:
        options = Options(segment_size=segment_size, cache_bytes=4096, is_buffered=is_buffered)
        recovered = recover(
            environment,
            directory,
            is_healing=is_healing,
            is_checking_everything=is_checking_everything,
        )
        #: what was found before anything was changed
        self.findings = recovered.findings
        self.log = Log(
            recovered.directory,
            options,
            recovered.meta,
            list(recovered.segments),
            list(recovered.prepared),
            recovered.last_log_id,
        )

    @property
    def environment(self) -> Environment:
        return self.log.directory.environment

    def view(self) -> View:
        """Everything the store shows: entries from the files, newer ones from memory."""
        log = self.log
        position, stop = log.clip(0, None)
        written = min(stop, log.written_next)
        entries: list[Entry] = []
        while position < written:
            found = log.reads.extents(position, written, 1 << 20, 1 << 30)
            if isinstance(found, Segment):
                found.loaded(*found.load_step().carry_out(log.directory))
                if not found.is_loaded:
                    why = "not all of its records can be found"
                    raise damage(found.path, 0, found.first_id, found.next_id - 1, why)
                continue
            for extent in found:
                entries += extent.read()
            position = found[-1].stop
        if position < stop:
            entries += log.recent.read(position, stop) or []
        state = log.state
        return View(
            state.last_purged_log_id,
            state.last_log_id,
            tuple(entries),
            log.meta.state.vote,
            log.meta.committed,
        )

    # --- calls -----------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether an append needs at most new segments, which may be prepared in a commit."""
        return len(self.log.to_seal) < SEALS_WAITING and self.log.meta.state.first_segment != 0

    def append(self, entries: Sequence[Entry]) -> None:
        while (need := _appending.append(self.log, entries)) is not None:
            self._meet(need)

    def _meet(self, need: Need) -> None:
        log = self.log
        if need.lengths:
            drive(_operations.prepare(log, need), self.log.directory)
            return
        self.sync()
        if need.is_seal:
            self.do("seal")
        elif need.room is not None:
            drive(_operations.make_room(log, need.room), self.log.directory)
        else:
            drive(_operations.name_first(log, need.name), self.log.directory)

    def sync(self) -> None:
        """Makes durable what was accepted before."""
        log = self.log
        plan = _commits.begin_commit(log, self.environment.monotonic())
        if plan is not None:
            # looked up where mutations replace it
            outcome = _plans.carry_out(log.directory, plan)
            if outcome.error is not None:
                raise outcome.error
            _commits.committed(log, outcome)

    def truncate(self, index: int) -> None:
        self.sync()
        drive(_truncating.truncate(self.log, index), self.log.directory)

    def purge(self, log_id: LogId) -> None:
        self.sync()
        drive(_operations.purge(self.log, log_id), self.log.directory)

    def save_vote(self, vote: Vote) -> None:
        self.sync()
        drive(_operations.save_vote(self.log, vote), self.log.directory)

    def save_committed(self, log_id: LogId | None) -> None:
        """A hint; durable at some later time."""
        _commits.save_committed(self.log, log_id)

    # --- what may come late ------------------------------------------------------------------

    def do(self, chore: str) -> bool:
        """One chore, if there is anything to do; says whether there was."""
        work = CHORES[chore](self.log)
        if work is not None:
            drive(work, self.log.directory)
        return work is not None

    def do_chores(self) -> None:
        """All that is left to seal and to unlink."""
        while self.do("seal") or self.do("unlink"):
            pass

    def mark(self) -> None:
        """What happens after a second without a write."""
        self.sync()
        work = _operations.mark(self.log, self.environment.monotonic())
        if work is not None:
            drive(work, self.log.directory)

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        log = self.log
        self.sync()
        drive(_operations.close(log), self.log.directory)
        log.release()
        log.directory.say_clean()
        log.directory.close()

    def abandon(self) -> None:
        """Lets go without writing anything, as a process that dies."""
        self.log.release()
        self.log.directory.close()
