"""pysyncobj's dump files: making them durable, and waiting for the process that writes one.

Knows nothing of the log. Everything here may block: it never runs on an event loop.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from typing import Any

import pysyncobj.serializer

from .._environment import Environment

__all__ = [
    "check_dump",
    "replace_durably",
    "replace_plainly",
    "sync_dump",
    "wait_for_orphaned_dump",
]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

_POLL_SECONDS = 0.02
_WARN_SECONDS = 10.0


def sync_dump(environment: Environment, path: str) -> None:
    """Makes a dump file and its name durable; pysyncobj itself syncs neither.

    The dump is the only other copy of what is purged after this returns. Raises ``OSError``.
    """
    _sync(environment, path, os.O_RDONLY)
    _sync(environment, os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)


def _sync(environment: Environment, path: str, flags: int) -> None:
    descriptor = environment.open(path, flags | os.O_CLOEXEC)
    try:
        environment.fsync(descriptor)
    finally:
        environment.close(descriptor)


# --- replacing one dump by the next ----------------------------------------------------------

_rename = pysyncobj.serializer.atomicReplace
#: dumps of nodes that have a WAL directory, and where they are
_durable_dumps: dict[str, Environment] = {}


def replace_durably(environment: Environment, path: str) -> None:
    """From here on, what replaces this dump file is synced before it does.

    The old dump and the purged log are all there is of the past. Were the new one renamed over
    it first, a power cut could leave neither.
    """
    _durable_dumps[os.path.abspath(path)] = environment
    pysyncobj.serializer.atomicReplace = _replace


def replace_plainly(path: str) -> None:
    """Takes :func:`replace_durably` back."""
    _durable_dumps.pop(os.path.abspath(path), None)
    if not _durable_dumps:
        pysyncobj.serializer.atomicReplace = _rename


def _replace(temporary: str, path: str) -> Any:
    environment = _durable_dumps.get(os.path.abspath(path))
    if environment is not None:
        _sync(environment, temporary, os.O_RDONLY)
    return _rename(temporary, path)


# --- a dump that somebody still writes -------------------------------------------------------


def wait_for_orphaned_dump(environment: Environment, path: str) -> None:
    """Returns when no other process writes the dump's temporary file any more.

    pysyncobj dumps in a forked child, which outlives a killed parent. Were the next dump
    begun meanwhile, both would write one temporary file, and the orphan would rename the
    mixture, or half of the new dump, into place.
    """
    temporary = path + ".tmp"
    warn_at = environment.monotonic() + _WARN_SECONDS
    while (pid := _writer_of(environment, temporary)) is not None:
        if environment.monotonic() >= warn_at:
            warn_at += _WARN_SECONDS
            logger.warning(
                "waiting for process %d, which still writes %s: a dump that a killed node "
                "left running",
                pid,
                temporary,
            )
        environment.sleep(_POLL_SECONDS)


def _writer_of(environment: Environment, path: str) -> int | None:
    """Another process that has the file open, as far as this one may see."""
    try:
        wanted = environment.stat(path)
    except OSError:
        return None
    own = str(environment.getpid())
    for pid in environment.listdir("/proc"):
        if not pid.isdigit() or pid == own:
            continue
        with contextlib.suppress(OSError):  # gone, or another user's
            for descriptor in environment.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed, or no file
                    opened = environment.stat(f"/proc/{pid}/fd/{descriptor}")
                    if os.path.samestat(opened, wanted):
                        return int(pid)
    return None


def check_dump(conf: Any, *, allow_no_dump: bool) -> None:
    """Refuses a configuration that loses the applied part of the log by compaction."""
    can_compact = not (
        conf.logCompactionMinEntries == math.inf and conf.logCompactionMinTime == math.inf
    )
    if conf.fullDumpFile is None and can_compact and not allow_no_dump:
        raise ValueError(
            f"journalFile={conf.journalFile!r} without fullDumpFile: log compaction throws the "
            "applied part of the log away, and after a restart this node would never become "
            "ready, yet vote and acknowledge. Give SyncObjConf a fullDumpFile (a serializer "
            "needs one too), or pass allow_no_dump=True if a restart may lose the state"
        )
