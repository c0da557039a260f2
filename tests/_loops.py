"""The event loops that a store is used on, by name. It must not test anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

__all__ = ["LOOPS", "on_each_loop", "run_on"]

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "trio": {"backend": "trio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
}


def on_each_loop(test: Callable[..., Any]) -> Callable[..., Any]:
    """Parametrizes a test's ``loop``."""
    decorated: Callable[..., Any] = pytest.mark.parametrize("loop", LOOPS)(test)
    return decorated


def run_on(loop: str, main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Runs a coroutine function on a loop of that name; skips the test where there is none."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    return anyio.run(main, *args, **LOOPS[loop])
