"""Calls a function before each instruction of ours that this thread executes.

By ``sys.settrace`` up to Python 3.11 and by ``sys.monitoring`` from 3.12 on, where tracing leaves
out the first executions of what it has not met before. What the function raises comes out of the
instruction. It must not know what it watches.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import hqlwal_raft

__all__ = ["PACKAGE", "Watcher", "watching"]

PACKAGE = os.path.dirname(hqlwal_raft.__file__) + os.sep
_TESTING = os.path.join(PACKAGE, "testing") + os.sep
_HAS_MONITORING = sys.version_info >= (3, 12)

#: given the code and the offset of the instruction
Watcher = Callable[[CodeType, int], None]


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(_TESTING)


# --- by tracing ----------------------------------------------------------------------------


def _trace(watcher: Watcher) -> None:
    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        if not _is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return step

    def step(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode":
            watcher(frame.f_code, frame.f_lasti)
        return step

    sys.settrace(enter)


# --- by monitoring -------------------------------------------------------------------------


class _Monitor:
    """The process's one: all our code is instrumented for as long as anybody watches."""

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self.thread = 0
        self._users = 0
        self._codes: set[CodeType] = set()

    def begin(self) -> None:
        self._users += 1
        if self._users == 1:
            events: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
            events.use_tool_id(events.DEBUGGER_ID, "proofs")
            events.register_callback(events.DEBUGGER_ID, events.events.INSTRUCTION, self._step)
            self._set(events.events.INSTRUCTION)

    def end(self) -> None:
        self._users -= 1
        if self._users == 0:
            events: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
            self._set(0)
            events.free_tool_id(events.DEBUGGER_ID)

    def _set(self, event_set: int) -> None:
        events: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        if not self._codes:
            for each in gc.get_objects():
                if isinstance(each, FunctionType):
                    self._add(each.__code__)
        for code in self._codes:
            events.set_local_events(events.DEBUGGER_ID, code, event_set)

    def _add(self, code: CodeType) -> None:
        if _is_ours(code) and code not in self._codes:
            self._codes.add(code)
            for constant in code.co_consts:
                if isinstance(constant, CodeType):
                    self._add(constant)

    def _step(self, code: CodeType, offset: int) -> None:
        watcher = self.watcher
        if watcher is not None and threading.get_ident() == self.thread:
            watcher(code, offset)


_monitor = _Monitor()


# --- either ---------------------------------------------------------------------------------


@contextlib.contextmanager
def watching() -> Iterator[Callable[[Watcher | None], None]]:
    """Gives a function that sets who watches from now on; None: nobody."""
    if not _HAS_MONITORING:
        try:
            yield lambda watcher: sys.settrace(None) if watcher is None else _trace(watcher)
        finally:
            sys.settrace(None)
        return

    def watch(watcher: Watcher | None) -> None:
        _monitor.watcher, _monitor.thread = watcher, threading.get_ident()

    _monitor.begin()
    try:
        yield watch
    finally:
        watch(None)
        _monitor.end()
