"""A simulated computer: its disk, the process on it, and the process's children.

:class:`Process` is the environment that a node is given: its files are a :class:`MemoryKernel`'s,
its clock is virtual, its threads are none, and any call of its may be the last one. What it does
takes its time: syncs the disk's, and more where that stalls. It must not know what runs in it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ..._watchdog import Watch
from .._faults import FailingEnvironment
from .._kernel import MemoryKernel
from .._kernel_tree import Description
from ._clock import Clock, chance
from ._threads import Threads

__all__ = ["Child", "Died", "Machine", "Process"]

T = TypeVar("T")

#: how long a machine has run when a simulation begins: its clock shows more than any timeout
BOOTED_SECONDS = 1000.0
#: no damage is done to the header of a log's file, which is written again and again
_HEADER_BYTES = 4096
#: by so much around it damage is recognised
_CONTEXT_BYTES = 16


class Died(BaseException):
    """The process was killed, or the power went, in the middle of what it did."""


class Child:
    """A process that was forked: it shares nothing with its parent but the disk.

    It outlives a parent that is killed; not a power cut.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: once it has ended
        self.status: int | None = None
        #: the file that it has open, and by which number
        self.descriptor: int | None = None
        self.description: Description | None = None


class Machine:
    """A computer with a name. ``page_bytes`` is what its disk writes at once."""

    def __init__(self, name: str, clock: Clock, seed: int, *, page_bytes: int = 512) -> None:
        self.name = name
        self.clock = clock
        self.chance = chance(seed, name, "machine")
        #: how long a sync takes
        self.sync_seconds = (0.0002, 0.002)
        #: until when no sync returns
        self.stalled_until = 0.0
        self.capacity_bytes: int | None = None
        self.kernel = MemoryKernel(page_bytes=page_bytes, seed=self.chance.getrandbits(32))
        self.process: Process | None = None
        self.has_power = True
        #: what is wrong with its files: path → what was there, at which offset, and what is now
        self._damage: dict[str, tuple[int, bytes, bytes]] = {}
        self.children: list[Child] = []
        self._pids = itertools.count(100)
        self._steps: list[tuple[float, int, Child, Callable[[], Any]]] = []
        self._count = itertools.count()

    def start(self) -> Process:
        """A process begins, on what the last one left."""
        self.has_power = True
        self.process = Process(self, next(self._pids))
        return self.process

    def fill(self, free_pages: int) -> None:
        """The disk has so little space left."""
        kernel = self.kernel
        kernel.capacity_bytes = 1 << 40
        used = kernel.capacity_bytes // kernel.page_bytes - kernel._free_pages()
        kernel.capacity_bytes = self.capacity_bytes = (used + free_pages) * kernel.page_bytes

    def make_room(self) -> None:
        self.kernel.capacity_bytes = self.capacity_bytes = None

    # --- damage --------------------------------------------------------------------------

    @property
    def is_damaged(self) -> bool:
        return bool(self._damage)

    def flip(self, directory: str) -> None:
        """A bit in the older half of a log is another one; what was synced last stays whole, since
        no log can tell its torn tail from a damaged one.
        """
        files = self.kernel.contents()
        logs = sorted(p for p in files if p.startswith(directory + "/") and p.endswith(".wal"))
        data = files[logs[0]] if logs else b""
        end = len(data.rstrip(b"\0"))
        if len(logs) == 1:
            end = (_HEADER_BYTES + end) // 2
        if end > _HEADER_BYTES + _CONTEXT_BYTES and logs[0] not in self._damage:
            at = self.chance.randrange(_HEADER_BYTES, end - _CONTEXT_BYTES)
            before = data[at : at + _CONTEXT_BYTES]
            now = bytes([before[0] ^ 1 << self.chance.randrange(8)]) + before[1:]
            self._damage[logs[0]] = (at, before, now)
            self._store(logs[0], at, now)

    def spoil(self, path: str, how: str) -> None:
        """A file is ``missing``, ``empty`` or ``cut``."""
        before = self.kernel.contents().get(path)
        if before and path not in self._damage:
            now = before[: len(before) // 2] if how == "cut" else b""
            self._damage[path] = (0, before, now)
            self._store(path, 0, now)
            if how == "missing":
                self.kernel.unlink(path)

    def mend(self) -> None:
        """What was damaged, and is still as the damage left it, is whole again."""
        files = self.kernel.contents()
        for path, (at, before, now) in self._damage.items():
            found = files.get(path, b"")
            if found[at : at + len(now)] == now and (at or found == now):
                self._store(path, at, before)
        self._damage.clear()

    def _store(self, path: str, at: int, data: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | (0 if at else os.O_TRUNC)
        descriptor = self.kernel.open(path, flags)
        self.kernel.pwrite(descriptor, data, at)
        self.kernel.fdatasync(descriptor)
        self.kernel.close(descriptor)
        directory = self.kernel.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        self.kernel.fsync(directory)
        self.kernel.close(directory)

    # --- the end of a process ------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: the disk knows all that was written; children go on."""
        old, self.kernel = self.kernel, self.kernel.after_kill()
        for child in self.children:
            opened = child.description
            if opened is None or opened.node.number not in self.kernel._nodes:
                continue
            assert child.descriptor is not None
            node = self.kernel._nodes[opened.node.number]
            node.opens += 1
            child.description = Description(node, opened.flags, opened.path)
            self.kernel._descriptors[child.descriptor] = child.description
        self._end_process(old)

    def cut_power(self) -> None:
        """The disk keeps what a power cut may leave of it; everything else ends."""
        old, self.kernel = self.kernel, self.kernel.snapshot().image(self.chance)
        self.kernel.capacity_bytes = self.capacity_bytes
        self.children.clear()
        self._steps.clear()
        self.has_power = False
        self._end_process(old)

    def work(self, seconds: float) -> None:
        """What its process does takes so long."""
        if self.process is not None:
            self.process.advance(seconds)

    def _end_process(self, old: MemoryKernel) -> None:
        if self.process is not None:
            self.process.is_dead = True
            self.process.environment = old
        self.process = None

    # --- children ------------------------------------------------------------------------

    def fork(self) -> Child:
        child = Child(next(self._pids))
        self.children.append(child)
        return child

    def plan_step(self, child: Child, when: float, step: Callable[[], Any]) -> None:
        """A child does something at ``when``."""
        heapq.heappush(self._steps, (when, next(self._count), child, step))
        self.clock.at(when, self.run_children, when)

    def run_children(self, until: float) -> None:
        while self._steps and self._steps[0][0] <= until:
            _, _, child, step = heapq.heappop(self._steps)
            if child in self.children:
                step()

    def end_child(self, child: Child, status: int) -> None:
        child.status = status
        if child.descriptor is not None and child.description is not None:
            self.kernel.close(child.descriptor)
        if child in self.children:
            self.children.remove(child)


class Process(Threads, FailingEnvironment):
    """See the module. Its own thread's time is :attr:`now`."""

    def __init__(self, machine: Machine, pid: int) -> None:
        Threads.__init__(self)
        FailingEnvironment.__init__(self, machine.kernel)
        self.now = machine.clock.now
        self.machine = machine
        self.pid = pid
        self.chance = chance(machine.chance.random(), "process")
        self.disk_calls = 0
        #: by what it ends, when, and at which call of the disk
        self.death: Callable[[], None] = machine.kill
        self.dies_at = math.inf
        self.dies_at_call = 0
        #: what its own thread has waited for a disk that stalled
        self.stalled_seconds = 0.0
        self.last_stall_ended = -math.inf
        self.last_stall_seconds = 0.0
        #: whether a fault of the disk came its way
        self.had_disk_fault = False

    def die(self) -> None:
        """Ends it. What it was about to do is never done."""
        if not self.is_dead:
            self.death()

    def check(self) -> None:
        """Raises Died where it has ended."""
        if self.is_dead:
            raise Died

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.machine.run_children(self.now)
        if self.now >= self.dies_at:
            self.die()
        self.check()

    # --- the disk ------------------------------------------------------------------------

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        self._count_call()
        if self._faults:
            try:
                return super().pass_on(call, path, perform)
            except OSError:
                self.had_disk_fault = True
                raise
        return perform()

    def _count_call(self) -> None:
        self.check()
        self.disk_calls += 1
        if self.disk_calls == self.dies_at_call:
            self.die()
            raise Died

    def _sync(self, sync: Callable[[int], None], descriptor: int) -> None:
        self._count_call()
        stall = self.machine.stalled_until - self.now
        if stall > 0:
            self.stalled_seconds += stall
            self.run_watches(self.now + stall)
            self.advance(stall)
            self.last_stall_seconds, self.last_stall_ended = stall, self.now
        self.advance(self.chance.uniform(*self.machine.sync_seconds))
        try:
            sync(descriptor)
        except OSError:
            self.had_disk_fault = True
            raise

    def fdatasync(self, descriptor: int, /) -> None:
        self._sync(super().fdatasync, descriptor)

    def fsync(self, descriptor: int, /) -> None:
        self._sync(super().fsync, descriptor)

    def close(self, descriptor: int, /) -> None:
        # Finalizers call it, too, so it never is the call that a process dies at; what is left
        # of a dead one has been closed by its kernel.
        if not self.is_dead:
            calls, self.dies_at_call = self.dies_at_call, 0
            try:
                super().close(descriptor)
            finally:
                self.dies_at_call = max(calls, self.disk_calls + 1) if calls else 0

    def flock(self, descriptor: int, operation: int, /) -> None:
        if not self.is_dead:
            super().flock(descriptor, operation)

    # --- clock and chance ----------------------------------------------------------------

    def monotonic(self) -> float:
        self.now += 1e-6
        return BOOTED_SECONDS + self.now

    perf_counter = monotonic

    def sleep(self, seconds: float, /) -> None:
        self.check()
        self.advance(max(seconds, 1e-6))

    def getrandbits(self, bits: int) -> int:
        return self.chance.getrandbits(bits)

    # --- processes -----------------------------------------------------------------------

    def getpid(self) -> int:
        # What is left of a dead one is no process's: nobody closes it.
        return 0 if self.is_dead else self.pid

    def getenv(self, name: str) -> str | None:
        return None

    def call_in_forked_child(self, call: Callable[[], None]) -> None:
        pass

    def look_after(self, watch: Watch) -> None:
        """A watchdog only says what it sees, in a thread that would not be simulated."""

    def call_at_exit(self, call: Callable[[], None]) -> None:
        pass

    def listdir(self, path: str | int) -> list[str]:
        if isinstance(path, str) and path.startswith("/proc"):
            return self._list_processes(path)
        return super().listdir(path)

    def _list_processes(self, path: str) -> list[str]:
        open_children = [c for c in self.machine.children if c.descriptor is not None]
        if path == "/proc":
            return [str(self.pid), *(str(child.pid) for child in open_children)]
        found = [str(c.descriptor) for c in open_children if path == f"/proc/{c.pid}/fd"]
        if not found:
            raise FileNotFoundError(2, os.strerror(2), path)
        return found

    def stat(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        if path.startswith("/proc/"):
            self.check()
            _, _, pid, *rest = path.split("/")
            for child in self.machine.children:
                if str(child.pid) == pid and child.descriptor is not None:
                    return self.machine.kernel.fstat(int(rest[1]) if rest else child.descriptor)
            raise FileNotFoundError(2, os.strerror(2), path)
        return super().stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
