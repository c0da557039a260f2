"""Disks that hang: one thread per process looks at how long the steps under way have lasted.

Who waits for a disk cannot notice that it waits. So a store notes in its :class:`Watch` when a
step began (one attribute; the thread that carries the step out clears it), and the watchdog reads
that: a step that lasts longer than ``stall_seconds`` is a *stall*, which is said in the log when
it is one, again at 2, 4, 8 … times that, and when it ends.

The thread is there while stores are open, and holds them weakly. It wakes when a stall could be
due, at the earliest after ``_LEAST_SECONDS``; nobody wakes it for a step. It must not touch a disk,
nor a store: a watch is all that it knows.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ._environment import Empty, Environment, Queue

__all__ = ["Step", "Watch", "Watchdog", "the_watchdog"]

logger = logging.getLogger("hqlwal_raft")

# No stall is noticed sooner, however short it is allowed to be; how often an end is looked for.
_LEAST_SECONDS = 0.2


class Step(NamedTuple):
    """A disk operation under way."""

    #: when it began, by the store's clock
    since: float
    name: str


class _Stall:
    """A step that lasts too long."""

    __slots__ = ("again_seconds", "step")

    def __init__(self, step: Step, again_seconds: float) -> None:
        self.step = step
        #: at which age it is said once more
        self.again_seconds = again_seconds


class Watch:
    """What is under way in one store. Who begins a step sets it, who carried it out clears it.

    ``report`` is called with the age of a stall, in seconds, in the watchdog's thread; it must
    not wait.
    """

    __slots__ = (
        "__weakref__",
        "_monotonic",
        "_report",
        "_stalls",
        "chore",
        "is_over",
        "lane",
        "longest_seconds",
        "path",
        "reads",
        "stall_seconds",
        "stalls",
        "when_over",
        "when_stalled",
    )

    def __init__(
        self,
        path: str,
        stall_seconds: float,
        monotonic: Callable[[], float],
        report: Callable[[float], object] | None = None,
    ) -> None:
        self.path = path
        self.stall_seconds = stall_seconds
        self._monotonic = monotonic
        self._report = report
        #: what the disk thread does, and what housekeeping
        self.lane: Step | None = None
        self.chore: Step | None = None
        #: reads in threads of their own, by any key
        self.reads: dict[object, Step] = {}
        self._stalls: dict[object, _Stall] = {}
        #: how many there have been, and the longest so far, whether over or not
        self.stalls = 0
        self.longest_seconds = 0.0
        self.is_over = False
        self.when_over: Callable[[], object] | None = None
        #: called in the watchdog's thread where a step has become a stall
        self.when_stalled: Callable[[], object] | None = None

    def now(self, name: str) -> Step:
        """A step that begins now."""
        return Step(self._monotonic(), name)

    def timed(self, job: Callable[[], Any], name: str) -> Any:
        """Does a job of a thread of its own, a read, as a step."""
        key = object()
        self.reads[key] = self.now(name)
        try:
            return job()
        finally:
            del self.reads[key]

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest step under way; 0.0 where there is none."""
        return max((self._monotonic() - step.since for _, step in self._steps()), default=0.0)

    def end(self) -> None:
        """The store is closed. From any thread."""
        self.is_over = True
        if self.when_over is not None:
            self.when_over()

    # --- for the watchdog ------------------------------------------------------------------

    def _steps(self) -> Iterator[tuple[object, Step]]:
        lane, chore = self.lane, self.chore  # once: they are cleared in other threads
        if lane is not None:
            yield "lane", lane
        if chore is not None:
            yield "chore", chore
        yield from list(self.reads.items())

    def look(self) -> float:
        """Says what is to be said; in how many seconds it is to look again."""
        now = self._monotonic()
        steps = dict(self._steps())
        for key, stall in list(self._stalls.items()):
            if steps.get(key) is not stall.step:
                del self._stalls[key]
                self._ended(stall.step, now - stall.step.since)
        wait = self.stall_seconds
        for key, step in steps.items():
            age = now - step.since
            known = self._stalls.get(key)
            due = self.stall_seconds if known is None else known.again_seconds
            if age >= due:
                due = self._stalled(key, step, age)
            wait = min(wait, due - age)
        if self._stalls:
            wait = min(wait, _LEAST_SECONDS)  # its end is to be noticed soon
        return max(wait, _LEAST_SECONDS)

    def _stalled(self, key: object, step: Step, age: float) -> float:
        """A step has become a stall, or still is one; at which age it is said again."""
        again_seconds = self.stall_seconds
        while again_seconds <= age:
            again_seconds *= 2
        if key not in self._stalls:
            self.stalls += 1
            if self.when_stalled is not None:
                self.when_stalled()
        self._stalls[key] = _Stall(step, again_seconds)
        self.longest_seconds = max(self.longest_seconds, age)
        logger.warning(
            "%s: the disk does not answer: %r has taken %.1f s so far. Look at the disk and at "
            "the kernel's log; abandon() lets go without waiting for it",
            self.path,
            step.name,
            age,
        )
        if self._report is not None:
            self._report(age)
        return again_seconds

    def _ended(self, step: Step, age: float) -> None:
        self.longest_seconds = max(self.longest_seconds, age)
        logger.warning("%s: the disk answers again: %r took %.1f s", self.path, step.name, age)


class Watchdog:
    """Looks at watches, in a thread of its own that ends with the last of them."""

    def __init__(self, environment: Environment, *, has_thread: bool = True) -> None:
        self._environment = environment
        self._has_thread = has_thread
        self.forget()

    def forget(self) -> None:
        """There are no stores, and no thread: also in a forked child, whose parent has both."""
        # Guards the list, and whether the thread runs. Taken by no finalizer.
        self._lock = self._environment.lock()
        self._watches: list[weakref.ref[Watch]] = []
        self._is_running = False
        self._calls: Queue[None] = self._environment.queue()

    def watch(self, watch: Watch) -> None:
        """Looks at it from now on, until it is over or dropped."""
        watch.when_over = self._wake
        with self._lock:
            self._watches.append(weakref.ref(watch, self._wake))
            if self._has_thread and not self._is_running:
                self._environment.start_thread(self._run, "hqlwal-watchdog")
                self._is_running = True
                return
        self._wake()

    def _wake(self, _dropped: object = None) -> None:
        # from finalizers too: this queue may be put into in the middle of its own methods
        self._calls.put(None)

    def look(self) -> float | None:
        """Looks at all of them; in how many seconds again. None where there is none."""
        found = [reference() for reference in self._watches]
        waits = [watch.look() for watch in found if watch is not None and not watch.is_over]
        return min(waits, default=None)

    def _run(self) -> None:
        while True:
            wait: float | None = _LEAST_SECONDS
            try:
                wait = self.look()
            except BaseException:  # of a handler of the log's, say
                logger.exception("looking for disks that do not answer failed")
            if wait is None and self._may_end():
                return
            with contextlib.suppress(Empty):
                self._calls.get(timeout=wait)

    def _may_end(self) -> bool:
        with self._lock:
            self._watches = [each for each in self._watches if _is_on(each())]
            self._is_running = bool(self._watches)
            return not self._is_running


def _is_on(watch: Watch | None) -> bool:
    return watch is not None and not watch.is_over


_THE = Watchdog(Environment())
Environment().call_in_forked_child(_THE.forget)


def the_watchdog() -> Watchdog:
    """The one of this process."""
    return _THE
