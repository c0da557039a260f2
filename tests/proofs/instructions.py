"""Calls a function before each instruction of ours that this thread executes, or all others do.

By ``sys.settrace`` up to Python 3.11 and by ``sys.monitoring`` from 3.12 on, where tracing leaves
out the first executions of what it has not met before. What the function raises comes out of the
instruction. It must not know what it watches.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import hqlwal_raft

__all__ = ["PACKAGE", "Watcher", "takes_memory", "watching"]

PACKAGE = os.path.dirname(hqlwal_raft.__file__) + os.sep
_TESTING = os.path.join(PACKAGE, "testing") + os.sep
_HAS_MONITORING = sys.version_info >= (3, 12)

#: given the code and the offset of the instruction
Watcher = Callable[[CodeType, int], None]


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(_TESTING)


# --- where MemoryError can come ------------------------------------------------------------

#: how the names of instructions begin that take no memory
_TAKES_NONE = (
    *("CACHE", "RESUME", "NOP", "PRECALL", "PUSH_", "POP_", "COPY", "SWAP", "KW_NAMES", "JUMP_"),
    *("LOAD_FAST", "STORE_FAST", "DELETE_", "LOAD_CONST", "LOAD_GLOBAL", "LOAD_DEREF", "NOT_TAKEN"),
    *("LOAD_CLOSURE", "STORE_DEREF", "STORE_ATTR", "IS_OP", "TO_BOOL", "UNPACK_SEQUENCE", "END_"),
    *("CHECK_EXC", "RERAISE", "RETURN", "LOAD_SMALL", "WITH_EXCEPT", "EXTENDED_ARG", "LOAD_METHOD"),
    *("LOAD_COMMON", "MAKE_CELL", "RAISE_VARARGS", "LOAD_ASSERTION"),
)
_known: dict[CodeType, frozenset[int]] = {}


def takes_memory(code: CodeType, offset: int) -> bool:
    """Whether MemoryError can come out of the instruction. It cannot where values only change
    places, where a lock is freed, and at the end , which here is that of a lock or of
    a context manager of C's.
    """
    if code not in _known:
        _known[code] = frozenset(_that_take_memory(code))
    return offset in _known[code]


def _that_take_memory(code: CodeType) -> Iterator[int]:
    before = ""
    nones = 0
    for each in dis.get_instructions(code):
        if each.opname.startswith(("LOAD_METHOD", "LOAD_ATTR")):
            before = str(each.argval)
        is_end = nones >= 3 and each.opname.startswith("CALL")
        is_freeing = before == "release" and each.opname.startswith("CALL")
        if not (each.opname.startswith(_TAKES_NONE) or is_end or is_freeing):
            yield each.offset
        if each.opname not in ("PRECALL", "CACHE"):
            nones = nones + 1 if each.opname == "LOAD_CONST" and each.argval is None else 0
        if each.opname.startswith("CALL"):
            before = ""


# --- by tracing ----------------------------------------------------------------------------


def _tracer(find: Callable[[], Watcher | None]) -> Callable[[FrameType, str, Any], Any]:
    """Asks at every instruction who watches."""

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        if not _is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return step

    def step(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode" and (watcher := find()) is not None:
            watcher(frame.f_code, frame.f_lasti)
        return step

    return enter


class _Others:
    """Who watches the threads that were started while anybody did."""

    watcher: Watcher | None = None


_trace_others = _tracer(lambda: _Others.watcher)


def _watch_by_tracing(watcher: Watcher | None) -> None:
    sys.settrace(None if watcher is None else _tracer(lambda: watcher))


def _watch_others_by_tracing(watcher: Watcher | None) -> None:
    _Others.watcher = watcher


# --- by monitoring -------------------------------------------------------------------------


class _Monitor:
    """The process's one: all our code is instrumented for as long as anybody watches."""

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self.thread = 0
        #: not that thread but all others
        self.has_others = False
        self._users = 0
        self._codes: set[CodeType] = set()
        self._modules = 0

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
        if event_set and self._modules != len(sys.modules):
            self._modules = len(sys.modules)
            for each in _functions():
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
        is_that = threading.get_ident() == self.thread
        if watcher is not None and is_that != self.has_others:
            watcher(code, offset)


def _functions() -> list[FunctionType]:
    is_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()  # what is frozen is not listed
    functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
    if is_frozen:
        gc.freeze()
    return functions


_monitor = _Monitor()


# --- either ---------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(*, others: bool = False) -> Iterator[Callable[[Watcher | None], None]]:
    """Gives a function that sets who watches from now on; None: nobody.

    With ``others`` not the calling thread is watched but all others that are started meanwhile.
    """
    if not _HAS_MONITORING:
        watch = _watch_others_by_tracing if others else _watch_by_tracing
        if others:
            threading.settrace(_trace_others)
        try:
            yield watch
        finally:
            watch(None)
            threading.settrace(None)
        return

    def watch_by_monitoring(watcher: Watcher | None) -> None:
        _monitor.watcher, _monitor.thread = watcher, threading.get_ident()
        _monitor.has_others = others

    _monitor.begin()
    try:
        yield watch_by_monitoring
    finally:
        watch_by_monitoring(None)
        _monitor.end()
