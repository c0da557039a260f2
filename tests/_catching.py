"""A double that keeps every job on its way to a store's threads, and so every plan.

It must not test anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio

from hqlwal_raft._environment import Environment, Loop
from hqlwal_raft._plans import Plan
from hqlwal_raft._threads import Done, Worker
from tests._support import ColdEnvironment

T = TypeVar("T")


class CatchingWorker(Worker):
    def __init__(
        self, name: str, loop: Loop, environment: Environment, catch: Callable[[Any], None]
    ) -> None:
        self._catch = catch
        super().__init__(name, loop, environment)

    def submit(self, job: Callable[[], Any], done: Done, *, can_wait: bool = False) -> None:
        self._catch(job)
        super().submit(job, done, can_wait=can_wait)


class CatchingEnvironment(ColdEnvironment):
    """Keeps every job that is given to a thread. Its clock goes on a second a look if told to."""

    def __init__(self, environment: Environment | None = None) -> None:
        super().__init__(environment=environment)
        self.jobs: list[Callable[[], Any]] = []
        self.reads: list[Callable[[], Any]] = []
        self.steps_seconds = 0.0
        self._now = 1000.0
        self._awaited: tuple[str, anyio.Event] | None = None

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return CatchingWorker(name, loop, self, self._catch)

    def _catch(self, job: Callable[[], Any]) -> None:
        self.jobs.append(job)
        if self._awaited is not None and self._awaited[0] in {p.name for p in self.plans()}:
            self._awaited[1].set()

    async def wait_for(self, name: str) -> None:
        """Waits until a plan of the name was given to a thread."""
        self._awaited = (name, anyio.Event())
        if all(plan.name != name for plan in self.plans()):
            await self._awaited[1].wait()

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        self.reads.append(job)
        return super().run_in_thread(job)

    def monotonic(self) -> float:
        self._now += self.steps_seconds
        return self._now + super().monotonic()

    def plans(self) -> list[Plan]:
        arguments = [a for job in self.jobs if isinstance(job, partial) for a in job.args]
        return [argument for argument in arguments if isinstance(argument, Plan)]
