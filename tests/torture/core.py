"""The engine without its writer: one open store that is driven step by step in this thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hqlwal_raft import Entry, LogId, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft._files import Files
from hqlwal_raft._log import Lacking, Log, Options, drive
from hqlwal_raft._recovery import open_log

from .ledger import View

__all__ = ["DIRECTORY", "Core"]

DIRECTORY = "/node/log"


class Core:
    """An open log; does what the writer does, in the order in which it is called."""

    def __init__(
        self,
        environment: Environment,
        segment_size: int,
        *,
        directory: str = DIRECTORY,
        is_healing: bool = False,
    ) -> None:
        options = Options(segment_size=segment_size, cache_bytes=4096)
        self.log: Log
        self.log, self._lock = open_log(
            Files(environment), directory, options, is_healing=is_healing
        )
        #: what purges left to be unlinked at any later time
        self.chores: list[Callable[[], None]] = []

    def view(self) -> View:
        """Everything the store shows, read from the disk."""
        log = self.log
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

    def append(self, entries: Sequence[Entry]) -> None:
        while (lacking := self.log.append(entries)) is not None:
            self.prepare(lacking)

    def prepare(self, lacking: Lacking | None = None) -> None:
        drive(self.log.prepare(lacking))

    def sync(self) -> None:
        if self.log.is_dirty:
            drive(self.log.sync())

    def truncate(self, index: int) -> None:
        self.sync()
        drive(self.log.truncate(index))

    def purge(self, log_id: LogId) -> None:
        self.sync()
        self.chores.append(drive(self.log.purge(log_id)))

    def do_chores(self) -> None:
        while self.chores:
            self.chores.pop(0)()

    def save_vote(self, vote: Vote) -> None:
        drive(self.log.save_vote(vote))

    def save_committed(self, log_id: LogId | None) -> None:
        self.log.meta.save_committed(log_id)

    def close(self) -> None:
        self.do_chores()
        self.sync()
        drive(self.log.close())
        self._lock.release(remove=True)

    def abandon(self) -> None:
        """Lets go without writing anything, as a process that dies."""
        self.log.abandon()
        self._lock.release(remove=False)
