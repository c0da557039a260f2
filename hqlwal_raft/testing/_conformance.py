"""The conformance suite for Raft log storages: every demand of the contract as a case.

It must not know any storage, nor any test framework: the cases are plain coroutine functions.
"""

from __future__ import annotations

from typing import Final

# each of these modules registers its cases; their order here is the order of CASES
from . import (  # noqa: F401
    _cases_append,
    _cases_callback,
    _cases_follow,
    _cases_life,
    _cases_purge,
    _cases_read,
    _cases_receive,
    _cases_rules,
    _cases_state,
    _cases_stream,
    _cases_truncate,
)
from ._case import REGISTERED, Case, StorageFactory

__all__ = ["CASES", "Case", "StorageFactory", "check_log_storage"]

#: every case with its name, for a test framework that runs them one by one
CASES: Final[tuple[tuple[str, Case], ...]] = tuple(REGISTERED)


async def check_log_storage(
    factory: StorageFactory, *, payload_bytes: int = 0, timeout_seconds: float = 60
) -> None:
    """Runs every case on storages that ``factory`` opens; returns where all demands are kept.

    ``factory(name)`` gives an async context manager that opens the storage called ``name``: an
    empty one under a new name, the same one reopened under a name given before. The names are
    the cases' names, so the place where the storages live must be empty at the beginning.

    ``payload_bytes`` pads the payloads to that many bytes, so that small logs cross the
    boundaries of the storage's files. A case that does not end within ``timeout_seconds``
    is broken too.

    Raises AssertionError with one line for every broken case: its name, the demand, and what
    was seen. All cases are run, whatever fails. May be cancelled; runs under asyncio and trio.
    """
    broken = []
    for _name, case in CASES:
        try:
            await case(factory, payload_bytes=payload_bytes, timeout_seconds=timeout_seconds)
        except AssertionError as error:
            broken.append(error)
    if broken:
        lines = "".join(f"\n- {error}" for error in broken)
        raise AssertionError(f"{len(broken)} of {len(CASES)} cases are broken:{lines}") from (
            broken[0]
        )
