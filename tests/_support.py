"""What the store's tests share: entries, directories as bytes, gates in the system.

It must not test anything.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus

from hqlwal_raft import Entry
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import PassingEnvironment

PATIENCE_SECONDS = 30

T = TypeVar("T")

#: called before each call on files and names: the environment's method, the path
Hook = Callable[[str, str], None]


def entries(start: int, stop: int, size: int = 20, term: int = 1) -> list[Entry]:
    """Entries ``[start, stop)`` with payloads of ``size`` bytes."""
    return [Entry(term, index, (b"%d." % index).ljust(size, b"x")) for index in range(start, stop)]


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below the directory: its mode and its bytes."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mode, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.wal"))


def on_both_backends(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Makes two tests of a coroutine function: one under asyncio, one under trio."""

    def run(backend: str, **fixtures: Any) -> None:
        anyio.run(functools.partial(test, **fixtures), backend=backend)

    signature = inspect.signature(test)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), backend]
    )
    parametrized: Callable[..., None] = pytest.mark.parametrize("backend", ["asyncio", "trio"])(run)
    return parametrized


def start_python(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """A process that runs the code with the arguments; its output can be read."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        **options,
    )


def run_python(code: str, *args: object) -> str:
    """What the code prints."""
    with start_python(code, *args) as process:
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out
    return out


class Gate:
    """A hook that holds the calls of one kind until it is opened."""

    def __init__(self, call: str = "fdatasync", ending: str = ".wal") -> None:
        self._call = call
        self._ending = ending
        self._lock = threading.Condition()
        self._is_open = True
        self._held = 0
        self.passed = 0

    def __call__(self, call: str, path: str) -> None:
        if call != self._call or not path.endswith(self._ending):
            return
        with self._lock:
            self._held += 1
            self._lock.notify_all()
            assert self._lock.wait_for(lambda: self._is_open, PATIENCE_SECONDS), "nobody opened"
            self._held -= 1
            self.passed += 1

    def shut(self) -> None:
        with self._lock:
            self._is_open = False

    def open(self) -> None:
        with self._lock:
            self._is_open = True
            self._lock.notify_all()

    async def held(self) -> None:
        """Waits until a call is held."""

        def wait() -> None:
            with self._lock:
                assert self._lock.wait_for(lambda: self._held, PATIENCE_SECONDS), "nobody came"

        await anyio.to_thread.run_sync(wait)


class HookedEnvironment(PassingEnvironment):
    """The real system with a hook before every call on files and names."""

    def __init__(self, *hooks: Hook, environment: Environment | None = None) -> None:
        super().__init__(environment)
        self._hooks = hooks

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        for hook in self._hooks:
            hook(call, path)
        return perform()


class StandingClock(Environment):
    """Time goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class ColdEnvironment(HookedEnvironment):
    """Nothing is in memory: every read goes to a thread, as after a start of the machine."""

    def preadv(
        self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0, /
    ) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().preadv(descriptor, buffers, offset, flags)


class Started:
    """Calls in tasks of their own, made one after the other; each outcome is kept."""

    def __init__(self, tasks: Any) -> None:
        self._tasks = tasks
        self.outcomes: dict[str, Any] = {}

    async def start(self, name: str, call: Any) -> anyio.CancelScope:
        """Makes the call; returns when it waits or is done."""
        scope = anyio.CancelScope()

        async def run(*, task_status: TaskStatus[None]) -> None:
            task_status.started()  # no other task runs between here and the call's first wait
            with scope:
                try:
                    self.outcomes[name] = await call()
                except Exception as error:
                    self.outcomes[name] = error

        await self._tasks.start(run)
        return scope
