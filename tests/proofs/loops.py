"""Runs an async function to its end, on asyncio and on trio, in lockstep and in virtual time.

A run is the same every time it is made, and one that hangs ends with :class:`Deadlock` at once:
where no task can go on and no thread either, time jumps to the next deadline.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trio
import trio._core._run
from anyio._backends._asyncio import _task_states

from .turns import Deadlock, OrderedLoop, Spins, Turns

__all__ = [
    "BACKENDS",
    "DIED",
    "files_in",
    "forget",
    "isolated",
    "limit_seconds",
    "run",
    "run_asyncio",
    "silence",
]

BACKENDS = ("asyncio", "trio")

#: what ends a whole run of trio: an exception that left a callback
DIED = trio.TrioInternalError


def run(backend: str, main: Callable[[], Awaitable[Any]], turns: Turns) -> None:
    """Raises Deadlock, or DIED under trio."""
    if backend == "asyncio":
        run_asyncio(OrderedLoop(turns), main)
    else:
        _run_trio(main, turns)


def run_asyncio(loop: OrderedLoop, main: Callable[[], Awaitable[Any]]) -> None:
    """An interrupt that leaves the loop ends what the loop did, and the loop is run again: as
    who pressed Ctrl-C at a prompt goes on.
    """

    async def wrapped() -> None:
        await main()

    loop.set_exception_handler(lambda _loop, _context: None)
    task = loop.create_task(wrapped(), name="main")
    task.add_done_callback(lambda _task: loop.stop())
    try:
        while not task.done():
            try:
                loop.run_forever()
            except KeyboardInterrupt:
                continue
        task.result()
    finally:
        # anyio's notes on a task hold the task itself until it ends, and these never will
        for each in asyncio.all_tasks(loop):
            _task_states.pop(each, None)
        loop.close()


class _Clock(trio.abc.Clock, trio.abc.Instrument):
    """Time stands still while there is anything to do, and then jumps."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_idle = False

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._turns.now

    def task_scheduled(self, task: Any) -> None:
        self._is_idle = False

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # A thread may have woken trio by its pipe: only when a look at that brought nothing is
        # there nothing to do.
        if not self._is_idle:
            self._is_idle = True
            return 0
        waiting = [each.deadline for each in self._turns.threads if each.deadline is not None]
        if waiting and min(waiting) <= deadline:
            self._turns.pass_time()
            self._is_idle = False
        elif deadline == math.inf:
            raise Deadlock
        else:
            self._turns.now = max(self._turns.now, deadline)
        return 0


def _run_trio(main: Callable[[], Awaitable[Any]], turns: Turns) -> None:
    clock = _Clock(turns)
    # trio draws by lot which of two tasks goes first
    trio._core._run._r.seed(0)
    try:
        trio.run(main, clock=clock, instruments=[clock])
    except DIED as died:
        if isinstance(died.__cause__, Deadlock):
            raise died.__cause__ from None
        raise


@contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raises Spins in the main thread once so much time of the processor is used up."""

    def ring(_number: int, _frame: Any) -> None:
        raise Spins

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def silence() -> Iterator[None]:
    """Keeps back what Python would print of abandoned runs. Nothing of it is kept: an error's
    frames would hold what they used, and that would be found when somebody listens again.
    """
    hook, level = sys.unraisablehook, logging.root.manager.disable
    thread_hook = threading.excepthook
    sys.unraisablehook = lambda _unraisable: None
    threading.excepthook = lambda _error: None
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook
        logging.disable(level)


@contextmanager
def isolated(files: Mapping[str, bytes]) -> Iterator[str]:
    """A new directory in memory with these files, for a run that is the same every time: warnings
    and what abandoned tasks say are kept back, and finalizers come when the last reference goes.
    """
    directory = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield directory
    finally:
        shutil.rmtree(directory)
        if was_enabled:
            gc.enable()


def files_in(directory: str) -> dict[str, bytes]:
    """The files of a directory, as :func:`isolated` takes them."""
    result = {}
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            result[name] = file.read()
    return result


def forget() -> None:
    """Has the tasks of abandoned runs go, while :func:`silence` keeps back what they say. One that
    is ended where it waits may begin to wait for something else, and goes with the next round.
    """
    for _ in range(5):
        gc.collect()
