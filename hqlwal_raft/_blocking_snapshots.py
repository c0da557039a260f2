"""Snapshots for threads: the store, and who writes one.

What is promised, ``hqlwal_raft.snapshots`` says; its asynchronous face makes these calls in a
thread. Any thread may call; each call does the disk's work itself. It must not know what the bytes
mean, nor anything of logs.

One lock guards the directory and its tables (``_snapshot_directory``); each writer has its own,
taken before that one. Neither is held while somebody reads.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from . import _said
from ._arguments import check_log_id, check_number, check_path, viewed
from ._directory import Directory
from ._environment import REAL, Environment
from ._files import IrregularFileError
from ._snapshot_directory import SnapshotDirectory
from ._snapshot_files import SnapshotFile, Unfinished
from ._snapshot_format import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN
from ._snapshot_reader import BlockingSnapshotReader
from ._types import Finding, LogId, SnapshotInfo
from .errors import CorruptionError, SnapshotError, WalClosedError, given

__all__ = [
    "BLOCK_BYTES",
    "KEEP",
    "BlockingSnapshotStore",
    "BlockingSnapshotWriter",
    "check_options",
]

KEEP = 2
BLOCK_BYTES = 1 << 20
_KEEP_MAX = 1000


class BlockingSnapshotStore:
    """The snapshots of one node, for threads; see :meth:`open`.

    A signal's handler that raises during a call of the main thread ends the call: a snapshot that
    was being published is published whole then, or not at all.
    """

    def __init__(self, files: SnapshotDirectory, block_bytes: int) -> None:
        """For :meth:`open`."""
        self.path = files.path
        self.block_bytes = block_bytes
        self.environment = files.directory.environment
        self._files = files
        self._pid = self.environment.getpid()
        self._lock = self.environment.lock()
        self._is_closed = False
        self._writers: weakref.WeakSet[BlockingSnapshotWriter] = weakref.WeakSet()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        keep: int = KEEP,
        block_bytes: int = BLOCK_BYTES,
        environment: Environment | None = None,
    ) -> BlockingSnapshotStore:
        """As :meth:`hqlwal_raft.snapshots.SnapshotStore.open`: for ``with``, or until :meth:`close`."""
        check_options(keep, block_bytes, environment)
        directory = Directory.make(environment or REAL, check_path(path))
        try:
            directory.lock.take_or_refuse("A directory of snapshots")
            try:
                files = SnapshotDirectory(directory, keep)
                files.look()
                directory.lock.say_held()
                store = cls(files, block_bytes)
            except BaseException:
                directory.lock.say_as_before()
                raise
        except BaseException:
            directory.close()
            raise
        files.say_opened()
        return store

    # --- what there is ---------------------------------------------------------------------

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found since it was opened: damaged snapshots, what a crash left."""
        return tuple(self._files.findings)

    def snapshots(self) -> tuple[SnapshotInfo, ...]:
        """Those that are there, the newest last, checked or not. Touches no disk."""
        self.check_open()
        return tuple([held.info for held in self._files.held])

    def latest(self) -> SnapshotInfo | None:
        """The newest one that is whole, None where there is none.

        Reads all of it once, and where it is damaged goes on to the one before. Raises OSError.
        """
        return self.find_latest(lambda: True)

    def find_latest(self, is_wanted: Callable[[], bool]) -> SnapshotInfo | None:
        """As :meth:`latest`; ends, with None, once it is not wanted any more."""
        files = self._files
        while True:
            self.check_open()
            newest = files.held[-1:]
            if not newest or newest[0].name in files.checked:
                return newest[0].info if newest else None
            # where it was replaced, or is damaged: the one that is the newest then
            with contextlib.suppress(CorruptionError, IrregularFileError, SnapshotError):
                with self.read(newest[0].info) as reader:
                    for _ in reader:
                        if not is_wanted():
                            return None
                with self._lock:
                    files.checked.add(newest[0].name)

    def read(self, snapshot: SnapshotInfo) -> BlockingSnapshotReader:
        """Reads one: ``with store.read(snapshot) as reader: for block in reader: …``.

        It stays readable until the block is left, even if newer ones take its place meanwhile.
        Raises SnapshotError where it is not there any more, CorruptionError, OSError.
        """
        if type(snapshot) is not SnapshotInfo:
            raise TypeError(f"snapshot is {given(snapshot)}: give what latest() gave")
        self.check_open()
        return BlockingSnapshotReader(
            snapshot, partial(self._open_file, snapshot), partial(self._read_block, snapshot)
        )

    def create(self, log_id: LogId) -> BlockingSnapshotWriter:
        """A new one, of the state after entry ``log_id``.

        ``with store.create(log_id) as writer: writer.write(piece)``; leaving the block publishes
        it, unless by an exception. Raises SnapshotOrderError where it ends before the newest one.
        """
        check_log_id(log_id)
        self.check_open()
        self._files.check_order(log_id)
        return BlockingSnapshotWriter(self, log_id)

    # --- for its readers and writers -------------------------------------------------------

    def _open_file(self, snapshot: SnapshotInfo) -> SnapshotFile:
        with self._lock:
            self.check_open()
            return self._files.open_file(snapshot)

    def _read_block(self, snapshot: SnapshotInfo, file: SnapshotFile, number: int) -> bytes:
        """Damage is noted, and raised."""
        self.check_open()
        try:
            return file.block(number)
        except CorruptionError as error:
            with self._lock:
                self._files.note_damage(snapshot, error)
            raise

    def begin(self, writer: BlockingSnapshotWriter) -> Unfinished:
        with self._lock:
            self.check_open()
            unfinished = Unfinished(self._files.directory, writer.log_id, self.block_bytes)
            self._writers.add(writer)
            return unfinished

    def publish(self, unfinished: Unfinished) -> SnapshotInfo:
        with self._lock:
            self.check_open()
            return self._files.publish(unfinished)

    def drop(self, unfinished: Unfinished) -> None:
        """Removes the file of one that is not to be."""
        unfinished.file.close()
        with self._lock:
            self._files.remove(unfinished.name)

    # --- the end ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_forked(self) -> bool:
        """Whether it is the parent process's."""
        return self.environment.getpid() != self._pid

    def check_open(self) -> None:
        """Raises WalClosedError where it was closed, or is the parent process's."""
        if self.is_forked:
            raise WalClosedError(
                f"{self.path} is open in the parent process: a forked child cannot use it",
                path=self.path,
            )
        if self._is_closed:
            raise WalClosedError(f"{self.path} was closed", path=self.path)

    def close(self) -> None:
        """Lets go of the directory. Idempotent. Snapshots that are being written are dropped, and
        whoever writes or reads one gets WalClosedError from now on. In a forked child it does
        nothing.
        """
        if self.is_forked:
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            for writer in list(self._writers):
                writer.drop()
        finally:
            with self._lock:
                self._files.directory.say_clean()
                self._files.directory.close()
        _said.closed(self.path, None)

    def __del__(self) -> None:
        if hasattr(self, "_is_closed") and not self._is_closed and not self.is_forked:
            # its directory goes with it, and the lock with the directory
            warnings.warn(f"{self.path} was never closed", ResourceWarning, stacklevel=1)


def check_options(keep: object, block_bytes: object, environment: object) -> None:
    REAL.check_system()
    check_number("keep", keep, 1, _KEEP_MAX)
    check_number("block_bytes", block_bytes, BLOCK_BYTES_MIN, BLOCK_BYTES_MAX, " bytes")
    if environment is not None and not isinstance(environment, Environment):
        raise TypeError(
            f"environment is {given(environment)}: give a hqlwal_raft.testing environment"
        )


class BlockingSnapshotWriter:
    """A snapshot that is being written: for ``with``. See :meth:`BlockingSnapshotStore.create`."""

    def __init__(self, store: BlockingSnapshotStore, log_id: LogId) -> None:
        self.log_id = log_id
        #: what was published; None until then
        self.snapshot: SnapshotInfo | None = None
        self._store = store
        self._lock = store.environment.lock()
        self._unfinished: Unfinished | None = None
        self._why_ended = f"{store.path}: the snapshot at {log_id} was not begun: use 'with'"

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.drop()
            return
        try:
            self.finish()
            self.publish()
        finally:
            self.drop()

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Adds bytes; nothing is durable yet. A piece is written whole, whoever else writes.

        Raises OSError (ENOSPC …); the snapshot cannot be published any more then.
        """
        view = viewed("piece", piece)
        with self._lock:
            unfinished = self._going_on()
            try:
                unfinished.write(view)
            except BaseException as error:
                self._fail(error)
                raise

    def begin(self) -> None:
        """Makes the file, once; what ``with`` does."""
        store = self._store
        with self._lock:
            if self._unfinished is not None or not self._why_ended.endswith("use 'with'"):
                raise SnapshotError(
                    f"{store.path}: the snapshot at {self.log_id} was begun already: call create() "
                    "once more",
                    path=store.path,
                    log_id=self.log_id,
                )
            self._unfinished = store.begin(self)

    def finish(self) -> None:
        """Makes all that was written durable."""
        with self._lock:
            unfinished = self._going_on()
            try:
                unfinished.finish()
            except BaseException as error:
                self._fail(error)
                raise

    def publish(self) -> None:
        """Gives it its name: from now on it is the newest one, after a crash as well."""
        with self._lock:
            unfinished = self._going_on()
            self.snapshot = self._store.publish(unfinished)
            self._unfinished = None
            self._why_ended = f"{self.snapshot.path} was published: it takes no more"
            unfinished.file.close()

    def drop(self) -> None:
        """Removes what was written, unless it was published. Waits for a call under way."""
        if self._store.is_forked:
            self._unfinished = None
            return
        with self._lock:
            unfinished, self._unfinished = self._unfinished, None
            if unfinished is not None:
                self._why_ended = (
                    f"{self._store.path}: the snapshot at {self.log_id} was given up: begin it anew"
                )
                self._store.drop(unfinished)

    @property
    def block_bytes(self) -> int:
        return self._store.block_bytes

    def check_going_on(self) -> None:
        """Raises where nothing can be added. Waits for nothing."""
        self._going_on()

    def fail(self, why: str) -> None:
        """From now on nothing can be added, and it cannot be published."""
        store = self._store
        self._why_failed = self._why_failed or (
            f"{store.path}: the snapshot at {self.log_id} is not whole, since {why}. It is not "
            "published; begin it anew"
        )

    _why_failed = ""

    def _fail(self, error: BaseException) -> None:
        self.fail(f"a write of it failed ({str(error) or type(error).__name__})")

    def _going_on(self) -> Unfinished:
        store = self._store
        store.check_open()
        if self._unfinished is None or self._why_failed:
            why = self._why_failed or self._why_ended
            raise SnapshotError(why, path=store.path, log_id=self.log_id)
        return self._unfinished

    def __del__(self) -> None:
        unfinished = getattr(self, "_unfinished", None)
        if unfinished is not None and not self._store.is_forked:
            message = f"{unfinished.file.path} was never finished"
            warnings.warn(message, ResourceWarning, stacklevel=1)
