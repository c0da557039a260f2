"""How the visible log gets into the store, and how long the node's thread waits for the disk.

For the thread that ticks a node (a bare journal's caller). What is in the list and what is hidden
beside it, ``_visible`` knows; here entries are only handed over, made durable, cut off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .._environment import Environment
from .._types import LogId, Vote
from ..blocking import BlockingRaftLogStorage
from ..errors import WalError
from . import _repairs
from ._entries import PlainEntry, read_entries, to_batch
from ._health import Health
from ._view import View

__all__ = ["LogWriter"]

#: so much may wait to be written, besides what is kept anyway
_WAITING_BYTES = 64 << 20


class LogWriter:
    """The store's end of a journal.

    - ``handed``: entries below it are handed over to the store
    - ``durable_end``: entries below it are known to be durable
    - ``is_unsure``: set while the store is changed; who finds it set was interrupted, and asks it
    - ``waiting_since``: when the thread began to wait for the disk, None while it does not
    """

    def __init__(
        self,
        store: BlockingRaftLogStorage,
        environment: Environment,
        health: Health,
        cache_bytes: int,
        end: int,
        *,
        is_durable_when_done: bool,
    ) -> None:
        self.store = store
        self.view = View(self._read, cache_bytes, end)
        self.handed = end
        self.durable_end = end
        self.is_unsure = False
        self.waiting_since: float | None = None
        #: called after each wait, with its seconds
        self.on_waited: Callable[[float], None] = _nothing
        self._monotonic = environment.monotonic
        self._health = health
        self._cache_bytes = cache_bytes
        #: whether an entry counts as durable when it is; else when it is written
        self._is_durable_when_done = is_durable_when_done

    @contextlib.contextmanager
    def at_disk(self) -> Iterator[None]:
        """Calls of the store: their errors are the log's failure, their time the disk's."""
        if self.waiting_since is not None:  # within another
            yield
            return
        began = self.waiting_since = self._monotonic()
        try:
            yield
        except (WalError, OSError) as error:
            self._health.give_up(error)
        finally:
            self.waiting_since = None
            self.on_waited(self._monotonic() - began)

    @property
    def waiting_seconds(self) -> float:
        """For how long the thread has been waiting for the disk; from any thread."""
        since = self.waiting_since
        return 0.0 if since is None else self._monotonic() - since

    def hand_over(self, *, waits: bool = False) -> None:
        """Has written what was added; the calling thread does it itself if it waits for it."""
        view = self.view
        end = view.recent_first + len(view.recent)
        if (poison := self.store.poison) is not None:
            self._health.fail(poison)
            self._health.raise_failure()
        if self.handed == end and not self.is_unsure:
            return
        with self.at_disk():
            if self.is_unsure:
                self._ask_the_store()
            entries = view.recent[self.handed - view.recent_first :]
            if self._health.is_closed or not entries:
                return
            self.is_unsure = True
            self.handed = end
            self.store.append(to_batch(entries), wait=waits)
            self.is_unsure = False
            if waits:
                self.durable_end = end

    def _ask_the_store(self) -> None:
        """How far a change came that an exception from outside interrupted.

        The store makes the calls of a thread in their order, and a flush comes after them.
        """
        self.store.flush()
        last = self.store.get_log_state().last_log_id
        end = self.view.recent_first if last is None else last.index + 1
        if end > self.handed:  # a truncation that was not begun
            self.store.truncate(LogId(0, self.handed))
        self.handed = min(self.handed, end)
        self.is_unsure = False

    def make_durable(self, index: int) -> None:
        """Returns once the entries up to ``index`` are durable: they count as it then."""
        if index < self.durable_end:
            return
        if index >= self.handed or self.is_unsure:
            self.hand_over(waits=True)
        if index >= self.durable_end and self._is_durable_when_done:
            entry = self.view.entry(index)
            with self.at_disk():
                self.store.wait_durable(LogId(entry[2], index))
        self.durable_end = max(self.durable_end, index + 1)

    def cut(self, index: int) -> None:
        """The store is truncated: ``[index, ∞)`` is gone for good."""
        self.hand_over()
        self.is_unsure = True
        self.handed = min(self.handed, index)
        self.durable_end = min(self.durable_end, index)
        try:
            with self.at_disk():
                self.store.truncate(LogId(0, index))
                self.is_unsure = False
        finally:  # an exception that interrupts the waiting does not stop the truncation
            self.view.cut(index)

    def restart_at(self, index: int, term: int) -> None:
        """Everything goes, so that ``index`` can be appended next."""
        with self.at_disk():
            self.store.truncate(LogId(0, index))
            if index > 0:
                self.store.purge(self.store.log_id_at(index - 1) or LogId(term, index - 1))

    def begin_at(self, index: int) -> None:
        """The next entry is ``index``; the store is empty."""
        self.view.restart(index)
        self.handed = self.durable_end = index

    def trim(self) -> None:
        """Keeps no more in memory than allowed, waiting for the disk where it must."""
        view = self.view
        if view.recent_bytes > self._cache_bytes:
            if view.recent_bytes > self._cache_bytes + _WAITING_BYTES:
                self.make_durable(view.end - 1)
            view.trim(self.handed)

    def save_vote(self, vote: Vote) -> None:
        """Durable on return."""
        with self.at_disk():
            self.store.save_vote(vote)

    def save_committed(self, index: int) -> None:
        """Saves the commit index, if the store has that entry; without a sync."""
        with self.at_disk():
            log_id = self.store.log_id_at(index)
            if log_id is not None:
                self.store.save_committed(log_id)

    def _read(self, start: int, stop: int, max_bytes: int) -> list[PlainEntry]:
        """What is not in memory. Damage fails the log, as a failed write does."""
        is_within, began = self.waiting_since is not None, self._monotonic()
        if not is_within:
            self.waiting_since = began
        try:
            return read_entries(self.store, start, stop, max_bytes)
        except (WalError, OSError) as error:
            if _repairs.is_damage(error):
                self._health.give_up(error)
            raise
        finally:
            if not is_within:
                self.waiting_since = None
                self.on_waited(self._monotonic() - began)


def _nothing(_seconds: float) -> None:
    return None
