"""``meta.hql``: vote, purge frontier, first segment, committed. Knows nothing of entries.

Two slots hold the same state. A change goes to the one, is synced, goes to the other, is
synced, and only then counts: a torn write finds the older state in the other slot, and damage
to either slot later loses nothing.
"""

from __future__ import annotations

import os

from ._files import File, Files
from ._format import (
    COMMITTED_OFFSETS,
    META_BYTES,
    META_NAME,
    SLOT_BYTES,
    SLOT_OFFSETS,
    MetaState,
    pack_committed,
    pack_slot,
    unpack_committed,
    unpack_slot,
)
from ._types import Finding, FindingKind, LogId

__all__ = ["Meta", "MetaReport", "examine_meta"]


class MetaReport:
    """What ``meta.hql`` holds, read without changing it."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self.sequence = 0
        self.state = MetaState()
        #: whether both slots hold the same, as they do unless a crash or damage came between
        self.is_whole = False
        #: the saved committed log ids, the latest first
        self.committed: list[LogId | None] = []
        self.committed_sequence = 0
        slots = [unpack_slot(data[o : o + SLOT_BYTES]) for o in SLOT_OFFSETS]
        valid = [slot for slot in slots if isinstance(slot, tuple)]
        if len(data) < META_BYTES:
            why = f"{path} has {len(data)} bytes instead of {META_BYTES}: it was cut short"
            self._damaged(why)
        elif valid:
            self.sequence, self.state = max(valid, key=lambda slot: slot[0])
            self.is_whole = len(valid) == len(slots) and valid[0] == valid[1]
        elif isinstance(slots[0], int) and slots[0] == slots[1]:
            self.findings.append(
                Finding(
                    FindingKind.UNKNOWN_VERSION,
                    path,
                    f"{path} is of format version {slots[0]}, which this release does not write",
                    version=slots[0],
                )
            )
        else:
            self._damaged(f"{path}: neither slot can be read, the node's vote is lost")
        records = [unpack_committed(data[o : o + 512]) for o in COMMITTED_OFFSETS]
        saved = sorted((r for r in records if r), key=lambda r: r[0], reverse=True)
        if saved:
            self.committed_sequence = saved[0][0]
            self.committed = [log_id for _, log_id in saved]

    def _damaged(self, message: str) -> None:
        self.findings.append(Finding(FindingKind.DAMAGE, self.path, message))


def examine_meta(files: Files, directory: str) -> MetaReport:
    path = os.path.join(directory, META_NAME)
    file = files.open(path)
    try:
        return MetaReport(path, file.read(0, META_BYTES))
    finally:
        file.close()


class Meta:
    """The open ``meta.hql``. ``save`` blocks; everything else is memory."""

    def __init__(self, file: File, report: MetaReport) -> None:
        self._file = file
        self._sequence = report.sequence
        self._committed_sequence = report.committed_sequence
        self.state = report.state
        self.committed: LogId | None = None

    @classmethod
    def create(cls, files: Files, directory: str) -> Meta:
        """A new file, durable on return."""
        path = os.path.join(directory, META_NAME)
        slot = pack_slot(1, MetaState())
        file = files.publish(path, META_BYTES, slot + slot)
        return cls(file, MetaReport(path, file.read(0, META_BYTES)))

    @classmethod
    def open(cls, files: Files, report: MetaReport) -> Meta:
        """Opens the file and makes both slots equal again, durably."""
        meta = cls(files.open(report.path, writable=True), report)
        if not report.is_whole:
            try:
                # The slot that counts stays as it is until the other one is durable.
                meta.save(report.state)
            except BaseException:
                meta.close()
                raise
        return meta

    def save(self, state: MetaState) -> None:
        """Durable on return. Never writes the slot that counts before the other is synced."""
        sequence = self._sequence + 1
        slot = pack_slot(sequence, state)
        for offset in self._slots_oldest_first():
            self._file.write(offset, slot)
            self._file.sync()
        self._sequence = sequence
        self.state = state

    def _slots_oldest_first(self) -> list[int]:
        def sequence(offset: int) -> int:
            slot = unpack_slot(self._file.read(offset, SLOT_BYTES))
            return slot[0] if isinstance(slot, tuple) else -1

        return sorted(SLOT_OFFSETS, key=sequence)

    def save_committed(self, log_id: LogId | None) -> None:
        """Stores the hint; two records take turns, so a torn one leaves the older one."""
        self._committed_sequence += 1
        offset = COMMITTED_OFFSETS[self._committed_sequence % 2]
        self._file.write(offset, pack_committed(self._committed_sequence, log_id))
        self.committed = log_id

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()
