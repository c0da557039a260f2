"""``meta.hql``: vote, purge frontier, first segment, small state, committed. Knows no entries.

Two slots hold the same state. A change goes to the one, is synced, goes to the other, is
synced, and only then counts: a torn write finds the older state in the other slot, and damage
to either slot later loses nothing. Used by the owner of the log; what touches the disk is steps
of plans.
"""

from __future__ import annotations

from ._files import File
from ._format import COMMITTED_OFFSETS, SLOT_OFFSETS, MetaState, pack_committed, pack_slot
from ._plans import Step, Sync, Write
from ._types import LogId

__all__ = ["Meta"]


class Meta:
    """The open ``meta.hql``, both slots of which hold ``state``."""

    def __init__(
        self,
        file: File,
        sequence: int,
        state: MetaState,
        committed_sequence: int = 0,
        committed: LogId | None = None,
    ) -> None:
        self._file: File | None = file
        #: what is durable in both slots
        self.state = state
        #: the committed log id saved last, a hint
        self.committed = committed
        self._sequence = sequence
        self._committed_sequence = committed_sequence

    @property
    def file(self) -> File:
        assert self._file is not None, "it was let go"
        return self._file

    def release(self) -> None:
        """Lets go of the file."""
        self._file = None

    def steps(self, state: MetaState) -> tuple[Step, ...]:
        """Makes ``state`` durable; the first of the steps is the point of no return.

        Never writes a slot before the other one is synced.
        """
        slot = pack_slot(self._sequence + 1, state)
        first, second = SLOT_OFFSETS
        file = self.file
        return (
            Write(file, first, (slot,)),
            Sync(file),
            Write(file, second, (slot,)),
            Sync(file),
        )

    def saved(self, state: MetaState) -> None:
        """The steps for ``state`` were carried out."""
        self._sequence += 1
        self.state = state

    def committed_step(self, log_id: LogId | None) -> Write:
        """Stores the hint; two records take turns, so a torn one leaves the older one."""
        sequence = self._committed_sequence + 1
        return Write(
            self.file, COMMITTED_OFFSETS[sequence % 2], (pack_committed(sequence, log_id),)
        )

    def committed_saved(self, log_id: LogId | None) -> None:
        """The step for ``log_id`` was carried out, or may have been in part."""
        self._committed_sequence += 1
        self.committed = log_id
