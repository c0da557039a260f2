"""What a journal has done in the background: purges, after the dump was synced, and its closing.

Syncing a big dump takes long, and the node must not wait for it. Knows the store and the dump's
file; not what pysyncobj sees of the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from .._environment import Environment, Queue
from ..blocking import BlockingRaftLogStorage
from ..errors import WalClosedError, WalError
from ._dump import TWO_WAYS_OUT, DumpFile
from ._health import Health

__all__ = ["Background"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")


class Background:
    """A thread with a queue. Methods may be called from any thread."""

    def __init__(
        self,
        path: str,
        store: BlockingRaftLogStorage,
        environment: Environment,
        health: Health,
    ) -> None:
        self.path = path
        #: the dump that replaces what is purged; synced before every purge
        self.dump: DumpFile | None = None
        self.is_closing = False
        self._store = store
        self._environment = environment
        self._health = health
        self._pid = environment.getpid()
        self._may_close = environment.lock()  # taken by the first who wants to
        self._closed: Future[None] = Future()
        self._calls: Queue[Callable[[], Any]] = environment.queue()
        # The thread has the queue alone: a store that is forgotten goes.
        environment.start_thread(partial(_run, self._calls), "hqlwal-background")

    def purge(self, index: int) -> None:
        """Has ``[.., index]`` removed, the dump file synced before."""
        self._calls.put(partial(self._purge, index))

    def sync_dump(self) -> None:
        """Makes the dump durable, in this thread. Raises OSError."""
        if self.dump is not None:
            self.dump.sync()

    def older_dump(self, end: int, first: int) -> WalError:
        """Why a node cannot start from a dump that ends with ``end``."""
        return WalError(
            f"{self._name_of_dump()} ends with entry {end}, but the log in {self.path} begins with "
            f"entry {first}: the dump is older than what was purged. {TWO_WAYS_OUT}"
        )

    def missing_dump(self, frontier: int) -> WalError:
        """Why a node cannot start without the dump that it needs."""
        return WalError(
            f"the log in {self.path} goes on after entry {frontier}, and what was before is in "
            f"no dump that could be loaded ({self._name_of_dump()}). {TWO_WAYS_OUT}"
        )

    def _name_of_dump(self) -> str:
        return "the dump" if self.dump is None else f"the dump file {self.dump.path}"

    def close(self) -> None:
        """Purges what is to be purged, closes the store and ends the thread. Idempotent."""
        if self._environment.getpid() != self._pid:
            return  # a forked child has neither the threads nor the lock
        self.close_later()
        self._closed.result()

    def close_later(self) -> None:
        """Has it closed without waiting for it: also right in a garbage collection."""
        if self._environment.getpid() == self._pid and self._may_close.acquire(blocking=False):
            self.is_closing = True
            self._calls.put(self._close)

    # --- in the background ----------------------------------------------------------------

    def _purge(self, index: int) -> None:
        store = self._store
        if store.poison is not None:
            return
        try:
            self.sync_dump()
        except OSError as error:
            # Without a durable dump nothing may go; the next compaction tries again.
            logger.warning(
                "the log in %s is not purged: %s could not be synced: %s",
                self.path,
                self._name_of_dump(),
                error,
            )
            return
        dump = self.dump
        if dump is not None and 0 < dump.end <= index:
            # the frontier follows the dump, never the other way round
            logger.error(
                "the log in %s is not purged: %s", self.path, self.older_dump(dump.end, index + 1)
            )
            return
        try:
            log_id = store.log_id_at(index)
            if log_id is not None:
                store.purge(log_id)
        except WalClosedError:
            pass  # the process ends
        except Exception as error:
            self._health.fail(error)

    def _close(self) -> None:
        try:
            self._store.close()
        except Exception as error:
            self._closed.set_exception(error)
        else:
            self._closed.set_result(None)
        raise SystemExit


def _run(calls: Queue[Callable[[], Any]]) -> None:
    try:
        while True:
            call = calls.get()
            call()
            del call
    except SystemExit:
        pass  # it was closed
