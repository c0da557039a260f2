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
from . import _repairs

__all__ = ["TWO_WAYS_OUT", "DumpFile", "check_dump", "sync_dump", "wait_for_orphaned_dump"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

#: what can be done where a dump that the log needs is not there
TWO_WAYS_OUT = (
    "Either put the dump back (from a backup, or the one that a later dump replaced), or remove "
    "this node from its cluster, remove both its log and its dump, and let it join anew; with a "
    "majority of the other nodes healthy it gets everything from them"
)
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


# --- a node's dump file ----------------------------------------------------------------------

_rename = pysyncobj.serializer.atomicReplace
#: dumps of nodes that have a WAL directory
_dump_files: dict[str, DumpFile] = {}


class DumpFile:
    """The dump of a node that has a WAL directory: durable before it replaces the last one, and
    only ever newer.

    The child that a node forks to write a dump makes its temporary file durable; the node itself
    renames it, in its own tick, so nothing is replaced behind the back of a node that got a newer
    dump from its leader meanwhile, nor after its death. Only the node's thread calls.
    """

    def __init__(self, environment: Environment, path: str) -> None:
        self.environment = environment
        self.path = os.path.abspath(path)
        #: the last entry whose effect it holds; 0 where there is none, or it is not known
        self.end = 0
        self._pid = environment.getpid()
        #: temporary files that are to replace it, and where they end
        self._ends: dict[str, int] = {}

    def belong_to_this_process(self) -> None:
        """For a node that was made before its process forked, and ticks in the child."""
        self._pid = self.environment.getpid()

    def take_over(self) -> None:
        """From here on what replaces the file is synced before, and must be newer."""
        _dump_files[self.path] = self
        pysyncobj.serializer.atomicReplace = _replace

    def let_go(self) -> None:
        """Takes :meth:`take_over` back."""
        if _dump_files.get(self.path) is self:
            del _dump_files[self.path]
        if not _dump_files:
            pysyncobj.serializer.atomicReplace = _rename

    def expect(self, temporary: str, end: int) -> None:
        """The temporary file is being written; it will end with entry ``end``."""
        self._ends[os.path.abspath(temporary)] = end

    def replace(self, temporary: str) -> Any:
        """The temporary file takes the dump's place if it ends later. Raises OSError."""
        _sync(self.environment, temporary, os.O_RDONLY)
        if self.environment.getpid() != self._pid:
            return None  # the child that wrote it; its parent goes on
        return self._rename(temporary)

    def finish(self, temporary: str) -> None:
        """The child that wrote the temporary file has ended. Raises OSError."""
        if os.path.abspath(temporary) in self._ends:
            self._rename(temporary)

    def _rename(self, temporary: str) -> Any:
        end = self._ends.pop(os.path.abspath(temporary), None)
        if end is not None and not _repairs.is_newer_dump(end, self.end):
            self.drop(temporary)
            return None
        renamed = _rename(temporary, self.path)
        if end is not None:
            self.end = end
        return renamed

    def drop(self, temporary: str) -> None:
        """The temporary file is not wanted any more."""
        self._ends.pop(os.path.abspath(temporary), None)
        with contextlib.suppress(OSError):
            self.environment.unlink(temporary)

    def is_missing(self) -> bool:
        """Whether there is no such file, or an empty one."""
        try:
            return self.environment.stat(self.path).st_size == 0
        except OSError:
            return True

    def sync(self) -> None:
        """Makes the file and its name durable. Raises OSError."""
        sync_dump(self.environment, self.path)


def _replace(temporary: str, path: str) -> Any:
    dump = _dump_files.get(os.path.abspath(path))
    return _rename(temporary, path) if dump is None else dump.replace(temporary)


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
