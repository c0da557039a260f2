"""Stores of both faces, with the interface of ``core.Core``, on a kernel in memory.

Each call is made and done before the next one; the threads are real and move in lockstep. What the
disk thread and housekeeping were given while nobody waits for it is left to a letter of its own
(``due``), or to the call that cannot go on without it: so a crash may come before, after, and at
each step of it. For the loop over crashes, which thereby has the committer, the lane and both
faces in it. It must not know what a history expects.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from unittest import mock

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, _options
from hqlwal_raft._environment import Queue
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import MemoryKernel

from .core import DIRECTORY, View, memory
from .threaded import Direct, Locks, run_here
from .turns import CALLS, Deadlock, OrderedLoop, SteppedQueue, SteppedThread, here

__all__ = ["AsyncCore", "BlockingCore"]

#: threads that stand still until nothing else can move, in the order in which they are moved
#: and their names in letters
_HELD = {"hqlwal-disk": "disk", "hqlwal-housekeeping": "house"}
#: virtual: so often a commit comes when the durable mark is due
_STEP_SECONDS = 0.006


class _Queue(SteppedQueue):
    """A queue whose taker, where it is held, does one job at a time."""

    def __init__(self, machine: _Machine) -> None:
        super().__init__(machine)
        self._machine = machine

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT002
        thread = here()
        if thread is not None and thread.name in _HELD:
            deadline = None if timeout is None else self._machine.now + timeout
            thread.waits_for, thread.deadline = self, deadline
            thread.stop_at("get")
            thread.waits_for = thread.deadline = None
            if not self.items and deadline is not None and self._machine.now >= deadline:
                raise queue.Empty
        return super().get(block, timeout)


class _Machine(Locks):
    """Threads and a clock around a kernel that lives longer than they do."""

    def __init__(self, kernel: MemoryKernel) -> None:
        super().__init__()
        for name in (*CALLS, "lseek", "fstatvfs", "rmdir", "getrandbits"):
            setattr(self, name, getattr(kernel, name))

    def queue(self) -> Queue[Any]:
        return _Queue(self)

    def held(self) -> list[SteppedThread]:
        """Those that stand still and have something to do."""
        runnable = [each for each in self.runnable() if each.name in _HELD]
        return sorted(runnable, key=lambda each: list(_HELD).index(each.name))

    def moved(self) -> None:
        if here() is None:
            while runnable := [each for each in self.runnable() if each.name not in _HELD]:
                runnable[0].go()

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        super().start_thread(run, name)
        if name in _HELD:
            self.threads[-1].go()  # to where it waits for its first job

    def pass_time(self) -> bool:
        held = self.held()
        if held:
            held[0].go()
            return True
        return super().pass_time()


class _StoreCore:
    """See the module."""

    def __init__(
        self, kernel: MemoryKernel, segment_size: int, *, is_buffered: bool = False
    ) -> None:
        self._machine = _Machine(kernel)
        self._is_buffered = is_buffered
        options = {
            "sync": "immediate_async" if is_buffered else "immediate",
            "segment_size": segment_size,
            "cache_bytes": 0,
            "environment": self._machine,
        }
        with mock.patch.object(_options, "_SEGMENT_SIZE_MINIMUM", 1):
            self._store: Any = self._open(options)

    def _open(self, options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Makes a call to its end."""
        raise NotImplementedError

    def _write(self, method: str, *arguments: Any) -> None:
        self._machine.now += _STEP_SECONDS
        self._call(method, *arguments)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return self._run(getattr(self._store, method)(*arguments))
        except Deadlock:
            raise RuntimeError(f"{method} waits, and nothing moves any more") from None

    # --- as of core.Core -------------------------------------------------------------------

    def view(self) -> View:
        state = self._call("get_log_state")
        return View(
            state.last_purged_log_id,
            state.last_log_id,
            tuple(self._call("try_get_log_entries", 0)),
            self._call("read_vote"),
            self._call("read_committed"),
        )

    def memory(self) -> object:
        committer = self._store._core.committer
        chores = committer.chores
        return (
            memory(committer.log, self._machine.now),
            tuple(self.due()),
            committer.phase,
            committer.measures.appends - committer.commits.appends_before,
            chores.may_seal,
            chores.may_unlink,
            chores._may_prepare_ahead,
        )

    def append(self, entries: Sequence[Entry], *, sync: bool) -> None:
        if not sync:
            self._append_only(list(entries))
            return
        self._write("append", list(entries))
        if self._is_buffered:
            self.sync()

    def _append_only(self, entries: list[Entry]) -> None:
        raise NotImplementedError

    def sync(self) -> None:
        self._write("flush")

    def append_after(self, prev: LogId | None, entries: Sequence[Entry]) -> None:
        self._write("append_after", prev, list(entries))
        if self._is_buffered:
            self.sync()

    def truncate(self, index: int) -> None:
        self._write("truncate", LogId(1, index))

    def purge(self, log_id: LogId) -> None:
        self._write("purge", log_id)

    def save_vote(self, vote: Vote) -> None:
        self._write("save_vote", vote)

    def save_committed(self, log_id: LogId | None) -> None:
        self._write("save_committed", log_id)

    def due(self) -> list[str]:
        return [_HELD[each.name] for each in self._machine.held()]

    def housekeeping(self, name: str) -> None:
        next(each for each in self._machine.held() if _HELD[each.name] == name).go()
        self._machine.moved()

    def close(self) -> None:
        self._call("aclose")
        self._end()

    def abandon(self) -> None:
        """As a process that dies."""
        core = self._store._core
        core.pid = 0  # its finalizer leaves what belongs to another process alone
        self._end()
        core.log.release()
        core.log.directory.close()

    def _end(self) -> None:
        self._machine.drop_threads()


class BlockingCore(_StoreCore):
    """See the module; called in the main thread, so stand-ins make the calls."""

    def _open(self, options: dict[str, Any]) -> Any:
        store = BlockingRaftLogStorage.open(DIRECTORY, **options)
        return Direct(self._machine, store)

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return run_here(call)

    def _append_only(self, entries: list[Entry]) -> None:
        self._machine.now += _STEP_SECONDS
        self._store._store.append(entries, wait=False)


class AsyncCore(_StoreCore):
    """See the module."""

    def _open(self, options: dict[str, Any]) -> Any:
        self._loop = OrderedLoop(self._machine)
        self._opening = RaftLogStorage.open(DIRECTORY, **options)
        return self._run(self._opening.__aenter__())

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._loop.run_until_complete(call)
        finally:
            self._settle()

    def _settle(self) -> None:
        """Whatever waits for the loop has its turn."""
        while self._loop._ready:
            self._loop.run_until_complete(asyncio.sleep(0))

    def housekeeping(self, name: str) -> None:
        super().housekeeping(name)
        self._settle()

    def _append_only(self, entries: list[Entry]) -> None:
        self._write("append", entries, None if self._is_buffered else _ignore)

    def _end(self) -> None:
        super()._end()
        self._loop.close()


def _ignore(_error: BaseException | None) -> None:
    pass
