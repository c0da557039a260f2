"""Several threads call one store, in an order that a chooser decides.

As ``callers`` has it for tasks, and judged in the same way. Each thread stops where it is about to
make a call, before it takes a lock and where it gave one back, and at each primitive call of what
it carries out. It knows the public interface, and the lock whose holder is the owner.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from hqlwal_raft import LogId
from hqlwal_raft.blocking import BlockingRaftLogStorage

from .callers import History, Op, Run
from .owner import guarded
from .threaded import Direct, SteppedLock, run_here
from .turns import CALLS, Deadlock, SteppedThread, here

__all__ = ["ThreadRun"]

#: so often nothing but time moves before it is taken for a history that hangs
_MOST_JUMPS = 1000
#: so often time moves while a disk hangs before it answers
_PATIENT_JUMPS = 10
#: their place in the order is where they take the lock first: there the ledger notes them
_WRITES = ("append", "callback", "receive", "truncate", "purge", "vote")


class ThreadRun(Run):
    """One history in one order."""

    _lock: SteppedLock

    def __init__(self, history: History, directory: str) -> None:
        super().__init__(history, directory)
        self.loop.close()  # there is none

    def live(self) -> None:
        history, system = self.history, self.system
        store = BlockingRaftLogStorage.open(
            self.directory,
            sync=history.policy,
            segment_size=8192,
            cache_bytes=history.cache_bytes,
            max_unsynced_bytes=history.max_unsynced_bytes,
            check_raft=False,  # tasks vote at once
            environment=system,
        )
        self._lock = cast("SteppedLock", store._lane.lock)
        self._make_calls(Direct(system, store))
        store.close()
        system.moved()
        for told in self._told:
            if len(told) != 1:
                self.problem("answer", f"a callback was called {len(told)} times")

    def _make_calls(self, store: Direct) -> None:
        history, system = self.history, self.system
        system.stops = frozenset([*CALLS, "lock", "unlock"] if history.is_fine else ["lock"])
        system.syncs_left, system.hangs_left = history.failing_sync, history.hanging_sync
        system.chooser = self.chooser
        callers = [
            SteppedThread(f"task {number}", partial(self._call, store, ops))
            for number, ops in enumerate(history.tasks)
        ]
        system.threads += callers
        jumps = 0
        try:
            with guarded(self._is_owner, partial(self.problem, "owner")):
                while not all(caller.is_over for caller in callers):
                    things = system.runnable()
                    if things:
                        thread = cast("SteppedThread", self.chooser(list(things)))
                        self.steps.append(f"{thread.name} ({thread.at})")
                        thread.go()
                        continue
                    jumps += 1
                    most = _PATIENT_JUMPS if system.hung else _MOST_JUMPS
                    if jumps < most and system.pass_time():
                        continue
                    if system.hung is None:
                        raise Deadlock
                    self._judge_hung(callers)
                    system.answer()
        finally:
            system.answer()
            system.chooser = None
            system.stops = frozenset()

    def _judge_hung(self, callers: list[SteppedThread]) -> None:
        """Who abandons a store lets all others have an answer, but who is in the disk's hands."""
        for caller in callers:
            if not caller.is_over and caller is not self.system.hung:
                self.problem("answer", f"{caller.name} waits for a disk that hangs")

    def _call(self, store: Any, ops: tuple[Op, ...]) -> None:
        run_here(self._task(store, ops))

    def _is_owner(self) -> bool:
        return self._lock.is_held and self._lock.owner is here()

    def frontier(self, begun: int) -> LogId | None:
        """Between the end of a stream's last read and that of the stream others had their turn."""
        known = [each for each in self.ledger._frontiers if each.durable < begun]
        return known[-1].log_id if known else None

    def begin(self, op: Op) -> None:
        thread = here()
        assert thread is not None
        thread.waits_for = self._lock
        thread.stop_at(op.kind)
        thread.waits_for = None
        thread.is_bound = op.kind in _WRITES
