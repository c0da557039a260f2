"""What a committer counts and measures for ``statistics()``, and when a full disk is spoken of.

Belongs to the owner of the log. It decides nothing.
"""

from __future__ import annotations

import errno
import math
from bisect import bisect_right
from collections import deque

from . import _said
from ._answers import describe
from ._directory import Directory
from ._threads import Worker

__all__ = ["SYNC_BOUNDS_SECONDS", "Measures"]

#: so often it is looked, at the most, how much space is left
_MEASURE_SECONDS = 10.0

#: of a histogram: powers of two, in microseconds, from 16 µs to 67 s
SYNC_BOUNDS_SECONDS = (*((1 << bits) / 1e6 for bits in range(4, 27)), math.inf)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Measures:
    """See the module."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.appends = 0
        #: appends that waited for a segment
        self.segment_waits = 0
        self.syncs = 0
        #: of the latest syncs
        self.sync_seconds: deque[float] = deque(maxlen=4096)
        self.sync_max_seconds = 0.0
        #: by the bounds of ``SYNC_BOUNDS_SECONDS``
        self.sync_counts = [0] * len(SYNC_BOUNDS_SECONDS)
        # What a full disk refused last: once that works there is space again.
        self._lacks_space_for: str | None = None
        self._is_looking = False
        self._looked_seconds = directory.environment.monotonic()

    def synced(self, seconds: float) -> None:
        self.syncs += 1
        self.sync_seconds.append(seconds)
        self.sync_max_seconds = max(self.sync_max_seconds, seconds)
        self.sync_counts[bisect_right(SYNC_BOUNDS_SECONDS, seconds)] += 1

    # --- space -----------------------------------------------------------------------------

    def look_for_space(self, worker: Worker) -> None:
        """Has a thread look how much space is left, if that was not done for a while."""
        now = self._directory.environment.monotonic()
        if now - self._looked_seconds >= _MEASURE_SECONDS and not self._is_looking:
            self._is_looking = True
            worker.submit(self._directory.measure, self._looked)

    def _looked(self, _value: object, _error: BaseException | None) -> None:
        self._is_looking = False
        self._looked_seconds = self._directory.environment.monotonic()

    def lacks_space(self, name: str, error: BaseException) -> None:
        """A plan of that name was refused: says so once, where the disk is full."""
        if name and isinstance(error, OSError) and error.errno in _NO_SPACE:
            if self._lacks_space_for is None:
                _said.full(self._directory.path, describe(error))
            self._lacks_space_for = name

    def has_room(self, name: str) -> None:
        """A plan of that name was carried out."""
        if self._lacks_space_for == name:
            self._lacks_space_for = None
            _said.room_again(self._directory.path)
