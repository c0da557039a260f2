"""The snapshots of a Raft node, on disk: whole, checksummed, and only ever newer.

A snapshot stands for all entries up to its log id, so it must be safe before they are purged::

    async with SnapshotStore.open("node-1/snapshots") as snapshots:
        async with snapshots.create(LogId(term=3, index=1000)) as writer:
            await writer.write(piece)  # as many as there are
        await log.purge(LogId(term=3, index=1000))  # first the snapshot, then the cut

``SnapshotStore`` is for asyncio and trio: what the disk is asked it asks in threads of its own, and
one event loop may call it. ``BlockingSnapshotStore`` is the same for threads, as plain calls. A
crash at any instant leaves the snapshot before, or the new one, whole; ``docs/snapshots.md`` says
more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import checkpoint

from ._answers import Answer
from ._arguments import check_path, viewed
from ._block import Block, open_on, patiently
from ._blocking_snapshots import (
    BLOCK_BYTES,
    KEEP,
    BlockingSnapshotStore,
    BlockingSnapshotWriter,
    check_options,
)
from ._environment import REAL, Environment, Loop
from ._snapshot_audit import SnapshotsReport, examine_snapshots
from ._snapshot_reader import BlockingSnapshotReader
from ._threads import Worker
from ._types import Finding, LogId, SnapshotInfo
from .errors import WalClosedError, WrongLoopError

__all__ = [
    "BlockingSnapshotReader",
    "BlockingSnapshotStore",
    "BlockingSnapshotWriter",
    "SnapshotInfo",
    "SnapshotReader",
    "SnapshotStore",
    "SnapshotWriter",
    "SnapshotsReport",
    "examine_snapshots",
]


class SnapshotStore:
    """The snapshots of one node; see :meth:`open`."""

    def __init__(self, inner: BlockingSnapshotStore, worker: Worker, loop: Loop) -> None:
        """For :meth:`open`."""
        self.path = inner.path
        self._inner = inner
        self._worker = worker
        self._loop = loop
        self._lock = inner.environment.lock()
        self._ending: Answer | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        keep: int = KEEP,
        block_bytes: int = BLOCK_BYTES,
        environment: Environment | None = None,
    ) -> AbstractAsyncContextManager[SnapshotStore]:
        """Opens the snapshots in the directory ``path``: ``async with SnapshotStore.open(…) as s:``.

        The directory is made if need be (mode 0700), and locked: it has one owner. It must not be
        the log's own. What a crash left is removed.

        - ``keep``: how many snapshots stay, 1 to 1000. The others go when a new one is published.
        - ``block_bytes``: of how many bytes a checksum is made, 512 to 64 MiB. A writer takes two
          blocks of memory, a reader one.
        - ``environment``: the operating system, for tests (``hqlwal_raft.testing``).

        Raises WalLockedError, SnapshotError (a log lies there), UnknownVersionError, OSError;
        ValueError or TypeError where an option makes no sense. Damage raises nothing here: see
        :meth:`latest`, and :attr:`findings`.
        """
        check_options(keep, block_bytes, environment)
        begin = partial(
            BlockingSnapshotStore.open,
            check_path(path),
            keep=keep,
            block_bytes=block_bytes,
            environment=environment,
        )
        return Block(check_path(path), partial(cls._enter, begin, environment or REAL))

    @classmethod
    async def _enter(
        cls, begin: Callable[[], BlockingSnapshotStore], environment: Environment
    ) -> SnapshotStore:
        loop = environment.running_loop()
        worker = environment.start_worker("hqlwal-snapshots", loop)
        return await open_on(
            worker, loop, begin, lambda inner: cls(inner, worker, loop), _close_all
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found since it was opened: damaged snapshots, what a crash left."""
        return self._inner.findings

    def snapshots(self) -> tuple[SnapshotInfo, ...]:
        """Those that are there, the newest last, checked or not. Touches no disk."""
        self.check_open()
        return self._inner.snapshots()

    async def latest(self) -> SnapshotInfo | None:
        """The newest snapshot that is whole, None where there is none.

        The first time all of it is read and checked, in bounded memory; where it is damaged it is
        skipped for the one before it, with a finding. A node must not use one that ends before its
        log begins: entries would be missing in between. Raises OSError.
        """
        self.check_open()
        is_wanted = True
        try:
            return await self._inner.environment.run_in_thread(
                partial(self._inner.find_latest, lambda: is_wanted)
            )
        finally:
            is_wanted = False

    def create(self, log_id: LogId) -> SnapshotWriter:
        """A new snapshot, of the state after entry ``log_id``.

        ::

            async with snapshots.create(log_id) as writer:
                await writer.write(piece)

        Leaving the block makes it durable and publishes it: from then on it is the newest one, and
        entries up to ``log_id`` may be purged. A body that raises, or is cancelled, publishes
        nothing. Cancelled while it is published (its bytes are durable by then), it is published
        all the same, and the cancellation goes on afterwards. Older ones than ``keep`` go.

        Several may be written at once. Raises SnapshotOrderError where the newest one goes further,
        here and on leaving; OSError where it could not be published: then nothing was.
        """
        self.check_open()
        return SnapshotWriter(self, self._inner.create(log_id))

    def read(self, snapshot: SnapshotInfo) -> SnapshotReader:
        """Reads a snapshot that :meth:`latest` or :meth:`snapshots` gave.

        ::

            async with snapshots.read(snapshot) as reader:
                async for block in reader:
                    ...

        Within the block it stays readable, even if newer ones take its place meanwhile. Raises
        SnapshotError where it is not there any more, CorruptionError, OSError.
        """
        self.check_open()
        return SnapshotReader(self, self._inner.read(snapshot))

    async def aclose(self) -> None:
        """Lets go of the directory. Idempotent. What is being written is dropped, and who writes or
        reads gets WalClosedError from now on. Cancelled, it goes on in the background. In a forked
        child it does nothing.
        """
        if self._inner.is_forked:
            return
        if self._ending is None:
            self.check_open()
        elif not self._is_here:
            raise self._wrong_loop()
        await self.begin_close().wait()

    def abandon(self) -> None:
        """As :meth:`aclose`, without waiting: the directory goes when the disk has answered.

        A plain call, that may be made in any thread, on another event loop, and after the own one
        has ended. Idempotent. In a forked child it does nothing.
        """
        if not self._inner.is_forked:
            self.begin_close()

    # --- for its writers and readers -------------------------------------------------------

    def begin_close(self) -> Answer:
        with self._lock:
            if self._ending is None:
                self._ending = self.submit(self._inner.close)
                self._worker.stop()
            return self._ending

    def check_open(self) -> None:
        """Raises where it is closed, another process's, or another event loop's."""
        if self._inner.is_forked:
            self._inner.check_open()
        if self._ending is not None:
            raise WalClosedError(f"{self.path} was closed", path=self.path)
        if not self._is_here:
            raise self._wrong_loop()

    @property
    def _is_here(self) -> bool:
        running = self._loop.running
        return running is None or running() is self._loop.identity

    def _wrong_loop(self) -> WrongLoopError:
        why = (
            "was opened by an event loop that has ended: abandon() it, and open it again"
            if self._loop.has_ended()
            else "is called outside of the event loop that opened it: make the call on that one"
        )
        return WrongLoopError(f"{self.path} {why}", path=self.path)

    def submit(self, job: Callable[[], Any]) -> Answer:
        """Has the job done after those before it; its answer may be waited for again."""
        answer = Answer(self._loop.event())
        self._worker.submit(job, partial(answer.give, self._loop))
        return answer

    async def run_in_thread(self, job: Callable[[], Any]) -> Any:
        """Has a job done that only reads, beside the others."""
        return await self._inner.environment.run_in_thread(job)

    def do_aside(self, job: Callable[[], Any]) -> None:
        """Has a job done when the store's own thread has ended, or is about to."""
        inner = self._inner
        try:
            if inner.is_forked:
                job()
            else:
                inner.environment.start_thread(job, "hqlwal-snapshots")
        except RuntimeError:  # no thread can be had
            job()

    @property
    def is_ending(self) -> bool:
        return self._ending is not None or self._inner.is_forked

    def __del__(self) -> None:
        if hasattr(self, "_ending") and not self.is_ending:
            with contextlib.suppress(Exception):  # the inner one warns, and lets go
                self._worker.stop()


def _close_all(opened: list[BlockingSnapshotStore]) -> None:
    for inner in opened:
        inner.close()


class SnapshotWriter:
    """A snapshot that is being written; see :meth:`SnapshotStore.create`."""

    def __init__(self, store: SnapshotStore, inner: BlockingSnapshotWriter) -> None:
        self.log_id = inner.log_id
        self._store = store
        self._inner = inner
        self._waiting = bytearray()

    @property
    def snapshot(self) -> SnapshotInfo | None:
        """What was published; None until then."""
        return self._inner.snapshot

    async def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Adds bytes; nothing is durable yet. They are copied, and written once they fill a block.

        Raises OSError (ENOSPC …); the snapshot cannot be published any more then. Cancelled, either
        nothing of the piece was taken, or the snapshot cannot be published any more.
        """
        store, waiting = self._store, self._waiting
        store.check_open()
        view = viewed("piece", piece)
        self._inner.check_going_on()
        await checkpoint()
        waiting += view
        if len(waiting) >= self._inner.block_bytes:
            self._waiting = bytearray()
            await self._run(partial(self._inner.write, waiting))

    async def _run(self, job: Callable[[], Any]) -> None:
        self._store.check_open()
        try:
            await self._store.submit(job).wait()
        except BaseException:
            self._inner.fail("the call that wrote it failed, or was cancelled")
            raise

    async def __aenter__(self) -> Self:
        store = self._store
        store.check_open()
        begun = store.submit(self._inner.begin)
        try:
            await begun.wait()
        except BaseException:
            await self._drop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, GeneratorExit):  # nobody runs this any more
            self._begin_drop()
            return
        if error is not None:
            await self._drop()
            return
        try:
            store, inner, waiting = self._store, self._inner, self._waiting
            self._waiting = bytearray()
            if waiting:
                await self._run(partial(inner.write, waiting))
            await self._run(inner.finish)
            store.check_open()
            published = store.submit(inner.publish)
            if not await patiently(published.wait):
                await published.wait()
        except BaseException:
            await self._drop()
            raise

    async def _drop(self) -> None:
        """Waits until nothing of it is left, but not for a disk that does not answer."""
        dropped = self._begin_drop()
        if dropped is not None:
            await patiently(dropped.wait)

    def _begin_drop(self) -> Answer | None:
        store = self._store
        if store.is_ending:
            return None  # it is dropped with all others
        return store.submit(self._inner.drop)


class SnapshotReader:
    """A snapshot that is being read; see :meth:`SnapshotStore.read`.

    Each block is checked before any of it is given; a bad one raises CorruptionError, and from then
    on ``latest()`` gives the snapshot before.
    """

    def __init__(self, store: SnapshotStore, inner: BlockingSnapshotReader) -> None:
        self.snapshot = inner.snapshot
        self._store = store
        self._inner = inner

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, fewer where it ends. Reads whole blocks.

        Raises CorruptionError, OSError.
        """
        self._store.check_open()
        data: bytes = await self._store.run_in_thread(partial(self._inner.read, offset, length))
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The blocks, in order: all the bytes that were written, in bounded memory."""
        for number in range(self._inner.blocks):
            self._store.check_open()
            yield await self._store.run_in_thread(partial(self._inner.block, number))

    async def __aenter__(self) -> Self:
        store = self._store
        store.check_open()
        begun = store.submit(self._inner.begin)
        try:
            await begun.wait()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        # In a thread: the last to close a file that was unlinked waits until its blocks are free.
        if self._store.is_ending:
            self._store.do_aside(self._inner.end)
        else:
            self._store.submit(self._inner.end)
