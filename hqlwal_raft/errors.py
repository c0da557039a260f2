"""Every error the package raises on purpose. Knows nothing else of the package.

The tree is flat: one class, one meaning. Errors of the operating system are not wrapped:
they stay :class:`OSError` (their ``errno`` matters) and carry the path as a note.
"""

from __future__ import annotations

__all__ = [
    "CorruptionError",
    "EntryTooLargeError",
    "LeaderChangedError",
    "LogGapError",
    "LogRangeError",
    "LogTruncatedError",
    "UnknownVersionError",
    "UnsupportedPlatformError",
    "WalClosedError",
    "WalCopyError",
    "WalError",
    "WalLockedError",
    "WalPoisonedError",
    "WrongLoopError",
]


class WalError(Exception):
    """The root of the errors below."""


class WalClosedError(WalError):
    """The store was closed before the call could be carried out."""


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

    ``__cause__`` is the :class:`OSError`. Reading goes on.
    """


class EntryTooLargeError(WalError, ValueError):
    """An entry is larger than the store's ``max_entry_size``; nothing was written."""


class LogGapError(WalError, ValueError):
    """The entries do not follow the log's last entry without a gap; nothing was written."""


class LogRangeError(WalError, ValueError):
    """The index lies at or below the purge frontier, where the log no longer reaches."""


class LogTruncatedError(WalError):
    """The log does not hold that entry any more: a truncation removed it."""


class LeaderChangedError(WalError):
    """The saved vote is no longer the committed vote the read was bound to."""


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
