"""Every error the package raises on purpose. Knows the values, and nothing else.

The tree is flat: one class, one meaning. Errors of the operating system are not wrapped:
they stay :class:`OSError` (their ``errno`` matters) and carry the path as a note.

What an error is about stands in its attributes, too; None where it is not known. Each can be
copied and pickled, and sent to another process: attributes and notes go with it, ``__cause__``
as well (where that cannot be pickled, an error that says what it was), a traceback never does.
No message holds a payload.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ._types import LogId, Vote

__all__ = [
    "CorruptionError",
    "EntryTooLargeError",
    "LeaderChangedError",
    "LogGapError",
    "LogRangeError",
    "LogTruncatedError",
    "RaftRuleError",
    "SnapshotError",
    "SnapshotOrderError",
    "UnknownVersionError",
    "UnsupportedPlatformError",
    "WalClosedError",
    "WalCopyError",
    "WalError",
    "WalLockedError",
    "WalPoisonedError",
    "WrongLoopError",
]


def given(value: object) -> str:
    """What was given, for a message: a number, or the type alone, since it may be a payload.

    For the package's own messages.
    """
    if type(value) is int and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if value is None or type(value) in (int, bool, float):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class WalError(Exception):
    """The root of the errors below."""

    def __reduce__(self) -> tuple[Callable[..., WalError], tuple[Any, ...], dict[str, Any]]:
        # `__init__` takes keywords, which pickle knows nothing of: what it made is copied.
        state = dict(self.__dict__)
        if self.__cause__ is not None:
            state["__cause__"] = _portable(self.__cause__)
        return _made_anew, (type(self), *self.args), state

    def __copy__(self) -> Self:
        own: Self = _made_anew(type(self), *self.args)
        own.__dict__.update(self.__dict__)
        if hasattr(self, "__notes__"):
            own.__notes__ = list(self.__notes__)
        own.__cause__ = self.__cause__
        return own


def _made_anew(kind: type[Any], *args: Any) -> Any:
    return kind.__new__(kind, *args)


def _portable(error: BaseException) -> BaseException:
    """The error, or one that says what it was, where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was just pickled
    except Exception:
        return WalError(f"{type(error).__name__}: {error}")
    return copy.copy(error)


class WalClosedError(WalError):
    """The store was closed before the call could be carried out."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        #: the store's directory
        self.path = path


class WalCopyError(WalError):
    """The directory is a backup: as the node that it was made of it must not be opened."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class WalLockedError(WalError):
    """Another open store, in this process or another, holds the directory's lock."""

    def __init__(self, message: str, *, path: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        #: the holder's process id, where it is known
        self.pid = pid


class WalPoisonedError(WalError):
    """A sync or write failed; nothing more is written until the store is reopened.

    ``__cause__`` is the :class:`OSError`. Reading goes on, up to what was durable.
    """


class EntryTooLargeError(WalError, ValueError):
    """An entry is larger than the store's ``max_entry_size``; nothing was written."""

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        size: int | None = None,
        max_entry_size: int | None = None,
    ) -> None:
        super().__init__(message)
        #: the entry's
        self.index = index
        #: of its payload, in bytes
        self.size = size
        self.max_entry_size = max_entry_size


class LogGapError(WalError, ValueError):
    """The entries do not follow the log's last entry without a gap; nothing was written."""

    def __init__(
        self, message: str, *, index: int | None = None, expected: int | None = None
    ) -> None:
        super().__init__(message)
        #: what the entry has
        self.index = index
        #: what it must have
        self.expected = expected


class LogRangeError(WalError, ValueError):
    """The log does not reach to that index: it was purged, or never appended."""

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        first_index: int | None = None,
        last_log_id: LogId | None = None,
    ) -> None:
        super().__init__(message)
        #: what was asked for
        self.index = index
        #: the first one that the log had then
        self.first_index = first_index
        #: the log's end then
        self.last_log_id = last_log_id


class LogTruncatedError(WalError):
    """The log does not hold that entry any more: a truncation removed it."""

    def __init__(
        self, message: str, *, log_id: LogId | None = None, found: LogId | None = None
    ) -> None:
        super().__init__(message)
        #: the entry's
        self.log_id = log_id
        #: what the log has in its place; None: nothing
        self.found = found


class LeaderChangedError(WalError):
    """The saved vote is no longer the committed vote the read was bound to."""

    def __init__(
        self, message: str, *, vote: Vote | None = None, saved: Vote | None = None
    ) -> None:
        super().__init__(message)
        #: what the read was bound to
        self.vote = vote
        self.saved = saved


class RaftRuleError(WalError, ValueError):
    """The call would break one of Raft's own rules (``check_raft``); nothing was written.

    It is the caller's fault that it meets: the node that made it should stop and not go on as if
    the call had never been. ``rule`` is one of ``"term"`` (the terms of entries never fall),
    ``"vote"`` (a vote never goes back), ``"committed"`` (what is committed is in the log, or
    the purge frontier), ``"purge"`` (who purges an entry names its term).
    """

    def __init__(
        self, message: str, *, rule: str, given: object = None, held: object = None
    ) -> None:
        super().__init__(message)
        self.rule = rule
        #: the term, vote or log id of the call
        self.given = given
        #: the one that it contradicts; None where the log has none
        self.held = held


class CorruptionError(WalError):
    """Bytes that were durable are not what was written: damage, never a mere torn tail."""

    def __init__(
        self,
        message: str,
        *,
        path: str,
        offset: int | None = None,
        first_id: int | None = None,
        last_id: int | None = None,
    ) -> None:
        super().__init__(message)
        #: the damaged file
        self.path = path
        #: where in the file the damage begins, in bytes, where it is known
        self.offset = offset
        #: the first index concerned, where it is known
        self.first_id = first_id
        #: the last index concerned, where it is known
        self.last_id = last_id


class SnapshotError(WalError):
    """There is no such snapshot, or none can be made so: nothing was published."""

    def __init__(self, message: str, *, path: str, log_id: LogId | None = None) -> None:
        super().__init__(message)
        #: the snapshot's file, or the directory
        self.path = path
        self.log_id = log_id


class SnapshotOrderError(WalError, ValueError):
    """The snapshot ends before the newest one: they never go back. Nothing was published."""

    def __init__(self, message: str, *, path: str, log_id: LogId, newest: LogId) -> None:
        super().__init__(message)
        #: the directory
        self.path = path
        self.log_id = log_id
        #: the newest one's
        self.newest = newest


class UnknownVersionError(WalError):
    """A file is of a format version that this release does not write."""

    def __init__(self, message: str, *, path: str, version: int) -> None:
        super().__init__(message)
        self.path = path
        self.version = version


class UnsupportedPlatformError(WalError, NotImplementedError):
    """A store cannot be opened on this system, or by this build of Python."""


class WrongLoopError(WalError, RuntimeError):
    """The call was not made on the event loop, in the thread, that opened the store.

    Nothing was done. The store itself is as it was.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        #: the store's directory
        self.path = path
