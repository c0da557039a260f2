"""pysyncobj's dump files: making them durable, and waiting for the process that writes one.

Knows nothing of the log. Everything here may block: it never runs on an event loop.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from typing import Any

import pysyncobj.serializer

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


def sync_dump(path: str) -> None:
    """Makes a dump file and its name durable; pysyncobj itself syncs neither.

    The dump is the only other copy of what is purged after this returns. Raises ``OSError``.
    """
    _sync(path, os.O_RDONLY)
    _sync(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- replacing one dump by the next ----------------------------------------------------------

_rename = pysyncobj.serializer.atomicReplace
#: dumps of nodes that have a WAL directory
_durable_dumps: set[str] = set()


def replace_durably(path: str) -> None:
    """From here on, what replaces this dump file is synced before it does.

    The old dump and the purged log are all there is of the past. Were the new one renamed over
    it first, a power cut could leave neither.
    """
    _durable_dumps.add(os.path.abspath(path))
    pysyncobj.serializer.atomicReplace = _replace


def replace_plainly(path: str) -> None:
    """Takes :func:`replace_durably` back."""
    _durable_dumps.discard(os.path.abspath(path))
    if not _durable_dumps:
        pysyncobj.serializer.atomicReplace = _rename


def _replace(temporary: str, path: str) -> Any:
    if os.path.abspath(path) in _durable_dumps:
        _sync(temporary, os.O_RDONLY)
    return _rename(temporary, path)


# --- a dump that somebody still writes -------------------------------------------------------


def wait_for_orphaned_dump(path: str) -> None:
    """Returns when no other process writes the dump's temporary file any more.

    pysyncobj dumps in a forked child, which outlives a killed parent. Were the next dump
    begun meanwhile, both would write one temporary file, and the orphan would rename the
    mixture, or half of the new dump, into place.
    """
    temporary = path + ".tmp"
    warn_at = time.monotonic() + _WARN_SECONDS
    while (pid := _writer_of(temporary)) is not None:
        if time.monotonic() >= warn_at:
            warn_at += _WARN_SECONDS
            logger.warning(
                "waiting for process %d, which still writes %s: a dump that a killed node "
                "left running",
                pid,
                temporary,
            )
        time.sleep(_POLL_SECONDS)


def _writer_of(path: str) -> int | None:
    """Another process that has the file open, as far as this one may see."""
    if not os.path.exists(path):
        return None
    wanted, own = os.path.realpath(path), str(os.getpid())
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or pid == own:
            continue
        with contextlib.suppress(OSError):  # gone, or another user's
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == wanted:
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
