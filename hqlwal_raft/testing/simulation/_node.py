"""A pysyncobj node with a WAL journal, as a node of a simulation.

What it replicates is a ledger: every command has a key, and the state is how often each key came
and a chain over all of them, so that two nodes that differ anywhere differ here.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pysyncobj import FAIL_REASON, SyncObjConf, replicated
from pysyncobj.node import TCPNode

from ...pysyncobj import WalSyncObj
from ._host import Host
from ._judge import Judge, LogEntry

__all__ = ["Options", "PySyncObjNode", "address_of", "is_membership"]

TICK_SECONDS = 0.05
#: between a tick that found messages and the next one
_BUSY_SECONDS = 0.0005


def address_of(name: str) -> str:
    return f"{name}:1"


def is_membership(command: bytes) -> bool:
    """Whether an entry's command adds or removes a node."""
    return command[:1] == b"\x02"


class _Address(TCPNode):  # type: ignore[misc]
    """pysyncobj keeps nodes in sets: their order must not depend on the process."""

    @property
    def ip(self) -> str:
        host: str = self.host
        return host

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())


@dataclass(frozen=True)
class Options:
    """How the nodes of one simulation are configured."""

    compaction_entries: int = 12
    dump_piece_bytes: int = 256
    #: as much of the log as one message takes
    append_bytes: int = 1 << 16
    pad_bytes: int = 0
    uses_batches: bool = True
    forks: bool = True
    cache_bytes: int = 32 << 20


class Ledger(WalSyncObj):
    """The replicated state; tells the judge of everything that is applied."""

    def __init__(self, tell: Callable[..., None], *arguments: Any, **named: Any) -> None:
        # what pysyncobj finds before its own __init__ stays out of the dumps
        self.__dict__["tell"] = tell
        super().__init__(*arguments, **named)
        self.seen: dict[str, int] = {}
        self.chain = 0

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, _pad: str) -> int:
        index: int = self._SyncObj__raftLastApplied + 1
        self.seen[key] = self.seen.get(key, 0) + 1
        self.chain = zlib.crc32(key.encode(), self.chain)
        self.__dict__["tell"](index, key, self.chain, self.seen[key])
        return index


class PySyncObjNode:
    """See the module. ``others`` are the names of those it is told of at its start."""

    def __init__(self, host: Host, judge: Judge, others: list[str], options: Options) -> None:
        self._host = host
        self._judge = judge
        self._pad = "x" * options.pad_bytes
        self._judged_commit = 0
        self._is_read_from_disk = options.cache_bytes < 1 << 20
        #: a log is closed until the first tick
        self._has_ticked = False
        directory = f"/{host.name}"
        assert host.process is not None
        process = host.process
        with contextlib.suppress(FileExistsError):
            process.mkdir(directory)
        conf = SyncObjConf(
            autoTick=False,
            journalFile=f"{directory}/wal",
            fullDumpFile=f"{directory}/dump",
            useFork=options.forks,
            dynamicMembershipChange=True,
            appendEntriesBatchSizeBytes=options.append_bytes,
            appendEntriesUseBatch=options.uses_batches,
            logCompactionMinEntries=options.compaction_entries,
            logCompactionMinTime=10**6,
            logCompactionBatchSize=options.dump_piece_bytes,
            connectionRetryTime=0.5,
            leaderFallbackTimeout=2.0,
            onStateChanged=self._state_changed,
        )
        # told by name, the host's process may be a later one in a forked child
        self.ledger = Ledger(
            self._applied,
            _Address(address_of(host.name)),
            [_Address(address_of(name)) for name in others],
            conf,
            nodeClass=_Address,
            environment=process,
            segment_size=8192,
            cache_bytes=options.cache_bytes,
            step_down_seconds=1.0,
        )

    # --- a node of a host's --------------------------------------------------------------

    def wake(self) -> float:
        self._has_ticked = True
        self.ledger.doTick(0.0)
        return _BUSY_SECONDS if self.ledger._poller.has_delivered else TICK_SECONDS

    def stop(self) -> None:
        self.ledger.destroy()

    # --- what is asked of it -------------------------------------------------------------

    def put(self, key: str) -> None:
        """Puts a command; the judge hears how it went."""

        def answered(index: Any, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                self._judge.acknowledged(self._host.name, key, index)

        self._judge.asked(key)
        self.ledger.put(key, self._pad, callback=answered)

    def change(self, word: str, name: str, done: Callable[[bool], None]) -> None:
        """Has a node added to or removed from the cluster."""
        call = {"add": self.ledger.addNodeToCluster, "remove": self.ledger.removeNodeFromCluster}
        call[word](address_of(name), callback=lambda _, e: done(e == FAIL_REASON.SUCCESS))

    @property
    def has_failed(self) -> bool:
        """Whether it has stepped out of its cluster."""
        return self.ledger._SyncObj__raftLog.failure is not None

    @property
    def is_leader(self) -> bool:
        return bool(self.ledger._isLeader())

    @property
    def is_ready(self) -> bool:
        return bool(self.ledger.isReady())

    @property
    def term(self) -> int:
        term: int = self.ledger.raftCurrentTerm
        return term

    @property
    def applied(self) -> int:
        index: int = self.ledger.raftLastApplied
        return index

    @property
    def others(self) -> set[str]:
        return {node.host for node in self.ledger.otherNodes}

    # --- what the judge is told ----------------------------------------------------------

    def _state_changed(self, _old: int, new: int) -> None:
        name, term = self._host.name, self.ledger.raftCurrentTerm
        self._host.world.trace.note(name, "is", ("follower", "candidate", "leader")[new])
        if new == 1:
            # the term is raised, and the vote for itself saved, right after this
            self._judge.stands_for_election(self._host)
        elif new == 2:
            self._judge.became_leader(name, term, self._log(0))

    def _applied(self, index: int, key: str, chain: int, times: int) -> None:
        self._judge.applied(self._host.name, index, key, chain, times)

    def _log(self, start: int) -> list[LogEntry]:
        journal = self.ledger._SyncObj__raftLog
        position = max(0, start - journal[0][1])
        if self._is_read_from_disk:
            # what a judge reads must not be what the node finds damaged
            position = max(position, journal._log.view.recent_first - journal[0][1])
        return [LogEntry(i, t, zlib.crc32(bytes(c))) for c, i, t in journal[position:]]

    def observe(self) -> None:
        """Has the log and what is committed of it judged."""
        journal = self.ledger._SyncObj__raftLog
        if (
            not self._has_ticked
            or journal.failure is not None
            or journal.is_closed
            or not len(journal)
        ):
            return
        _, last, term = journal[-1]
        commit = min(self.ledger.raftCommitIndex, last)
        if self._judge.knows_log(self._host.name, last, term) and commit == self._judged_commit:
            return
        self._judge.saw_log(self._host.name, self._log(0), commit)
        self._judged_commit = commit
