"""Recovery: lock, judge, plan, carry out. Turns a directory into what a log is made of.

Blocks; for whoever opens a store, in any thread. Everything is read and judged (``audit``) before
anything is changed; what follows is plans made of that judgement, which read nothing anew: an
open that ends in an error before them leaves the directory as it was, byte for byte. What the
bytes mean is decided in ``_judge``; here is decided only what is done about it, and in which
order, so that a crash at any step leaves a directory that is judged the same.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from ._directory import Directory
from ._environment import Environment
from ._files import File, Identity, IrregularFileError
from ._findings import SegmentReport
from ._format import (
    DATA_START,
    META_BYTES,
    META_NAME,
    SEALED,
    MetaState,
    SegmentHeader,
    pack_slot,
    segment_number,
)
from ._healing import Target, heal_steps
from ._meta import Meta
from ._places import Places
from ._plans import (
    Allocate,
    Copy,
    Create,
    Plan,
    Step,
    Sync,
    SyncDirectory,
    Unlink,
    Write,
    Zero,
    carry_out,
)
from ._refusals import refuse
from ._segment import Segment
from ._types import Finding, FindingKind, LogId
from .audit import DirectoryReport, examine

__all__ = ["Recovered", "recover"]

logger = logging.getLogger("hqlwal_raft")


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recovered directory: what a log is made of. Durable, all of it."""

    #: locked
    directory: Directory
    meta: Meta
    #: those with records, ascending, all sealed but the last, which is open for writing, loaded
    segments: list[Segment]
    #: those without, ascending, behind the last of ``segments``; open for writing
    prepared: list[Segment]
    #: of the last record, purged or not
    last_log_id: LogId | None
    #: what was found before anything was changed
    findings: list[Finding]


def recover(
    environment: Environment,
    path: str,
    *,
    is_healing: bool = False,
    is_checking_everything: bool = False,
) -> Recovered:
    """Opens and locks the directory, made if it is not there, and puts it in order.

    Raises WalLockedError, CorruptionError, UnknownVersionError, WalCopyError, OSError. The
    caller closes the directory.
    """
    directory = Directory.make(environment, path)
    try:
        directory.lock.take_or_refuse("A log")
        opening = _Opening(directory)
        try:
            directory.lock.say_held()
            directory.measure()
            _reload(directory)
            report = examine(path, deep=is_checking_everything, directory=directory)
            refuse(report, is_healing=is_healing)
            recovered = opening.apply(report)
            _warn_of_copies(recovered)
            return recovered
        except BaseException:
            if not opening.has_changed:
                directory.lock.say_as_before()
            raise
    except BaseException:
        directory.close()
        raise


def _reload(directory: Directory) -> None:
    """What is judged must be what is on disk, and what is on disk must stay.

    A killed process leaves pages that are in memory only; a failed sync leaves some that will
    never be written. Sealed segments were synced before they were sealed; the newest is looked
    at all the same, since its seal may be such a page.
    """
    names = directory.names()
    segments = [name for name in names if segment_number(name) is not None]
    for name in [name for name in names if name == META_NAME] + segments:
        try:
            file = directory.open_file(name)
        except IrregularFileError:
            continue  # the judgement says what it is
        header = SegmentHeader.unpack(file.read(0, DATA_START))
        if name in segments[-1:] or not isinstance(header, SegmentHeader) or not header.is_sealed:
            file.reload()
        file.close()


class _Opening:
    """Plans what a report calls for, carries it out, and gives what is left. Used once."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        #: a step was begun behind which the directory is not as it was
        self.has_changed = False
        self.steps: list[Step] = []
        #: which step allocates a segment
        self.rooms: dict[Target, int] = {}

    def apply(self, report: DirectoryReport) -> Recovered:
        if report.meta is None:
            return self._begin(report)
        judgement = report.judgement
        last = judgement.kept[-1] if judgement.kept else None
        kept = [self._open(each, is_written=each is last) for each in judgement.kept]
        prepared = [self._open(each, is_written=True) for each in judgement.prepared]
        meta = self._open_meta(report)
        is_healed = judgement.obstacle is not None
        aside: list[str] = []
        self._mend_slots(report, meta)
        if judgement.is_emptied:
            # Before the first of them goes: while it says 0, what is there counts for nothing.
            self._name_no_segment(meta)
        self._remove(report)
        if is_healed:
            steps, aside = heal_steps(self.directory, judgement, kept, prepared)
            self.steps += steps
            if not kept and not prepared and meta.state.first_segment:
                # Last: a crash before it must leave damage that heals again, and not a log that
                # is empty and says nothing of what it lost.
                self._name_no_segment(meta)
        self._put_in_order(kept, prepared)
        self._restore_committed(report, meta)
        # As of segments: it may come from a sparse copy, or have been cut behind its first slot.
        self.steps.append(Allocate(meta.file, META_BYTES, is_optional=True))
        values = self._carry_out()
        _say(report, aside, is_healed=is_healed)
        for target in kept[:-1]:
            target.file = None
        segments = [self._segment(target, values) for target in [*kept, *prepared]]
        return Recovered(
            self.directory,
            meta,
            segments[: len(kept)],
            segments[len(kept) :],
            report.last_log_id,
            report.all_findings,
        )

    def _begin(self, report: DirectoryReport) -> Recovered:
        """An empty directory gets its ``meta.hql``, durably, before any segment."""
        state = MetaState()
        self.steps += [Unlink(_name(path)) for path in report.leftovers]
        create = Create(META_NAME, META_BYTES, pack_slot(1, state) * 2)
        self.steps += create, SyncDirectory()
        file: File = self._carry_out()[-2]
        return Recovered(self.directory, Meta(file, 1, state), [], [], None, report.all_findings)

    # --- files -----------------------------------------------------------------------------

    def _open(self, segment: SegmentReport, *, is_written: bool) -> Target:
        """What stays; open where it is or will be written to."""
        header = segment.header
        assert header is not None
        target = Target(segment, header)
        if is_written or not header.is_sealed or segment.is_short:
            target.file = self._open_same(segment.name, segment.identity)
        return target

    def _open_meta(self, report: DirectoryReport) -> Meta:
        found = report.meta
        assert found is not None
        assert found.state is not None
        file = self._open_same(META_NAME, found.identity)
        sequence, committed = found.committed[0] if found.committed else (0, None)
        return Meta(file, found.sequence, found.state, sequence, committed)

    def _open_same(self, name: str, identity: Identity) -> File:
        file = self.directory.open_file(name, is_writable=True)
        if file.identity != identity:
            raise OSError(errno.ESTALE, "it was replaced while the store was opened", file.path)
        return file

    # --- steps, in their order -------------------------------------------------------------

    def _mend_slots(self, report: DirectoryReport, meta: Meta) -> None:
        """Before anything that the older slot still names is removed."""
        assert report.meta is not None
        slot = pack_slot(report.meta.sequence, meta.state)
        for offset in report.meta.stale_slots:
            self.steps += Write(meta.file, offset, (slot,)), Sync(meta.file)

    def _name_no_segment(self, meta: Meta) -> None:
        state = replace(meta.state, first_segment=0)
        self.steps += meta.steps(state)
        meta.saved(state)

    def _remove(self, report: DirectoryReport) -> None:
        """Names that are not needed: purged ones oldest first, as a purge does; others newest
        first, as a truncation does, so that no crash leaves a gap.
        """
        judgement = report.judgement
        gone = [_name(path) for path in report.leftovers]
        gone += [segment.name for segment in judgement.leftovers]
        gone += [segment.name for segment in reversed(judgement.dropped)]
        self.steps += [Unlink(name) for name in gone]
        # Always: a killed process may have left names that no directory sync covered yet.
        self.steps.append(SyncDirectory())

    def _put_in_order(self, kept: list[Target], prepared: list[Target]) -> None:
        for target in [*kept, *prepared]:
            # What lies behind the records was never acknowledged and must never come back, not
            # even when later records happen to end just before it. Synced before the header is
            # written: a cut that stands is cleared only then.
            if target.report.has_bytes_behind and target.file is not None:
                end, length = target.report.end, target.header.length
                self.steps += Zero(target.file, end, length), Sync(target.file)
        for target in kept[-1:]:
            if target.header.is_sealed:
                # Before another gets its seal: else a crash would leave a sealed last one and
                # no unsealed one before it, which is damage.
                self.steps += target.header_steps(replace(target.header, flags=0))
        for target in prepared:
            if not target.header.is_unused:  # no record of it became durable
                header = SegmentHeader(target.header.salt, target.header.length)
                self.steps += target.header_steps(header)
        for target in kept[:-1]:  # each is followed by one with a durable record
            if not target.header.is_sealed:
                report = target.report
                header = replace(
                    target.header,
                    id_until=report.next_id - 1,
                    data_end=report.end,
                    flags=SEALED,
                    cut=0,
                )
                self.steps += target.header_steps(header)
        for target in [*kept[-1:], *prepared]:
            assert target.file is not None
            self.rooms[target] = len(self.steps)
            self.steps.append(Allocate(target.file, target.header.length, is_optional=True))

    def _restore_committed(self, report: DirectoryReport, meta: Meta) -> None:
        """The latest saved hint that the log reaches; what is beyond it is overwritten, both
        records, so that it does not come back when the log has grown to there again.
        """
        reached = report.committed
        if meta.committed == reached:
            return
        for _ in range(2):
            self.steps.append(meta.committed_step(reached))
            meta.committed_saved(reached)
        self.steps.append(Sync(meta.file))

    # --- carrying out ----------------------------------------------------------------------

    def _carry_out(self) -> tuple[Any, ...]:
        # They add what nobody uses yet, or make durable what is there: where one of them fails,
        # nothing that was there is changed or gone.
        harmless = (SyncDirectory, Sync, Create, Copy, Allocate)
        point = next((i for i, s in enumerate(self.steps) if not isinstance(s, harmless)), None)
        outcome = carry_out(self.directory, Plan("recover", tuple(self.steps), point))
        if outcome.error is not None:
            self.has_changed = not outcome.is_refused
            try:
                raise outcome.error
            finally:
                del outcome  # its error's traceback holds this frame, and so every open file
        return outcome.values

    def _segment(self, target: Target, values: tuple[Any, ...]) -> Segment:
        report = target.report
        segment = Segment(report.number, report.name, report.path, target.header, target.file)
        if target in self.rooms:
            segment.has_room = values[self.rooms[target]]
            segment.places = report.places if report.is_used else Places()
            if not target.header.is_unused:
                segment.next_id = segment.durable_next_id = report.next_id
                segment.end = segment.durable_end = report.end
        elif report.places is not None and len(report.places) == segment.count:
            segment.places = report.places
        return segment


def _warn_of_copies(recovered: Recovered) -> None:
    """Says once where overwriting needs blocks that allocation does not set aside."""
    directory = recovered.directory
    files = [recovered.meta.file, *(s.file for s in [*recovered.segments, *recovered.prepared])]
    if any(file is not None and directory.is_copied_on_write(file) for file in files):
        logger.warning(
            "%s is on btrfs and has files that are copied on write: what is allocated for them can "
            "lack space all the same, so a full disk may fail a vote, or a sync, which poisons the "
            "log; nothing acknowledged is lost. Close the store and copy its files (cp, no reflink) "
            "into a new directory after 'chattr -c +C' on it, or keep enough space free",
            directory.path,
        )


def _name(path: str) -> str:
    return os.path.basename(path)


def _say(report: DirectoryReport, aside: list[str], *, is_healed: bool) -> None:
    """Says what was done, once."""
    path = report.path
    torn = [f.message for f in report.all_findings if f.kind is FindingKind.TORN_TAIL]
    left = [f.message for f in report.all_findings if f.kind is FindingKind.LEFTOVER]
    if left:
        logger.info("%s: put in order: %s", path, "; ".join(left))
    if not is_healed:
        if torn:
            logger.warning(
                "%s was not closed cleanly. Dropped what was never acknowledged: %s",
                path,
                "; ".join(torn),
            )
        return
    last = report.last_log_id
    damaged = [f.message for f in report.all_findings if f.kind.is_obstacle]
    logger.warning(
        "%s: healed. %s. The log now ends with entry %s; whatever came after it is lost here and "
        "must come from the cluster. Set aside: %s",
        path,
        "; ".join(damaged),
        "none" if last is None else last.index,
        ", ".join(aside) or "nothing",
    )
