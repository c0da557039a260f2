"""Opens the storage of a journal, waiting for a holder that is about to let go of it.

Knows which journal of this process holds which directory.
"""

from __future__ import annotations

import os
import stat
import weakref
from typing import NamedTuple, Protocol

from .._environment import Environment
from .._options import Opening
from .._types import Vote
from ..blocking import BlockingRaftLogStorage
from ..errors import WalError, WalLockedError
from ._background import Background
from ._entries import PlainEntry, to_plain
from ._health import Health
from ._owner import Owner

__all__ = ["Opened", "StockJournalError", "open_store"]

_LOCK_PATIENCE_SECONDS = 10.0


class StockJournalError(WalError, ValueError):
    """Where the WAL directory should be, there is a journal file of pysyncobj's own."""


class _Journal(Protocol):
    """What is asked of a journal here."""

    path: str
    health: Health
    owner: Owner

    def _destroy(self) -> None: ...


class _Holder(NamedTuple):
    journal: weakref.ref[_Journal]
    background: Background


class Opened(NamedTuple):
    """What was opened, and what it held then."""

    store: BlockingRaftLogStorage
    background: Background
    head: PlainEntry | None
    tail: PlainEntry | None
    #: nothing at or below it can be appended; -1 where nothing was ever purged
    frontier: int
    vote: Vote | None
    committed: int | None


#: who holds which directory in this process
_holders: dict[str, _Holder] = {}


def open_store(journal: _Journal, opening: Opening) -> Opened:
    """Opens the storage, waiting for a holder that is about to let go."""
    environment = opening.ground
    _refuse_stock_file(environment, journal.path)
    key = os.path.realpath(journal.path)
    deadline = environment.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            store = BlockingRaftLogStorage.open_with(opening, journal.path)
        except WalLockedError as error:
            if environment.monotonic() >= deadline or not _is_about_to_let_go(
                environment, key, error.pid
            ):
                raise
            environment.sleep(0.01)
        else:
            break
    try:
        background = Background(journal.path, store, environment, journal.health)
        opened = _read(store, background)
    except BaseException:
        store.close()
        raise
    _holders[key] = _Holder(weakref.ref(journal), background)
    return opened


def _read(store: BlockingRaftLogStorage, background: Background) -> Opened:
    state, committed = store.get_log_state(), store.read_committed()
    purged, last = state.last_purged_log_id, state.last_log_id
    frontier = -1 if purged is None else purged.index
    head = tail = None
    if last is not None and last != purged:
        head = to_plain(store.limited_get_log_entries(frontier + 1, None, 1)[0])
        tail = to_plain(store.try_get_log_entries(last.index, last.index + 1)[0])
    commit = None if committed is None else committed.index
    return Opened(store, background, head, tail, frontier, store.read_vote(), commit)


def _is_about_to_let_go(environment: Environment, key: str, pid: int | None) -> bool:
    """Whether a lock will be free in a moment.

    ``destroy`` of a node that ticks itself only tells its thread; and a child that a killed
    node had just forked holds the lock until its first instruction.
    """
    if pid is None:
        return True
    if pid != environment.getpid():
        try:
            environment.stat(f"/proc/{pid}")
        except OSError:
            return True
        return False
    holder = _holders.get(key)
    if holder is None:
        return False
    journal = holder.journal()
    if journal is None or holder.background.is_closing:
        return True
    if not journal.owner.is_abandoned():
        return False
    if not journal.owner.is_ticking():
        journal._destroy()  # noqa: SLF001  nobody else will
    return True


def _refuse_stock_file(environment: Environment, path: str) -> None:
    try:
        if not stat.S_ISREG(environment.stat(path).st_mode):
            return
    except OSError:
        return
    descriptor = environment.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_stock = environment.pread(descriptor, 9, 0) == b"PYSYNCOBJ"
    finally:
        environment.close(descriptor)
    if is_stock:
        raise StockJournalError(
            f"{path} is a journal file of pysyncobj's own, not a WAL directory. Stop the node, "
            f"import it with `hqlwal import-pysyncobj {path} DIRECTORY` and name that directory as "
            "journalFile, or, where the name cannot be changed, with `hqlwal import-pysyncobj "
            f"--in-place {path}`"
        )
