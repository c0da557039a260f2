"""Whether segments that are prepared are filled with zeros: it saves a part of each sync.

A sync into blocks that were never written costs a commit of the file system's journal on top.
Writing zeros ahead costs some 13 ms for 8 MiB, beside the commits: it pays where so many syncs
meet a segment that is large enough for them. For the owner of the log; it knows no file.
"""

from __future__ import annotations

__all__ = ["Filling"]

_FROM_SYNCS = 180
_FROM_BYTES = 1 << 20


class Filling:
    """See the module."""

    __slots__ = ("_can_pay", "_syncs", "pays")

    def __init__(self, segment_bytes: int, *, is_wanted: bool) -> None:
        self._can_pay = is_wanted and segment_bytes >= _FROM_BYTES
        # how many syncs the tail has met
        self._syncs = 0
        #: whether the tail has met so many, or the one before it had
        self.pays = False

    def met_sync(self) -> None:
        """The tail was synced."""
        self._syncs += 1
        if self._syncs >= _FROM_SYNCS:
            self.pays = self._can_pay

    def rolled_over(self) -> None:
        """Another segment is the tail."""
        self.pays = self._can_pay and self._syncs >= _FROM_SYNCS
        self._syncs = 0
