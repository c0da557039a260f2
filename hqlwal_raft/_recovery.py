"""Recovery: lock, examine, judge, apply. Turns a directory into a :class:`~._log.Log`.

Everything is read and judged before anything is changed: an open that ends in an error leaves
the directory as it was, byte for byte. What the findings mean is decided in ``audit``; here is
decided only what is done about them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

from ._files import File, Files, Lock, LockedError
from ._format import (
    BROKEN_SUFFIX,
    DATA_START,
    LOCK_NAME,
    META_NAME,
    SegmentHeader,
    segment_number,
)
from ._log import Log
from ._meta import Meta, MetaReport
from ._reads import Options
from ._segment import Segment, zero_on_disk
from ._types import Finding, FindingKind, LogId
from .audit import DirectoryReport, SegmentReport, examine_files, scan_segment
from .errors import CorruptionError, UnknownVersionError, WalLockedError

__all__ = ["open_log"]

logger = logging.getLogger("hqlwal_raft")

_ADVICE = (
    "Nothing was changed. Restore the node from its cluster (a fresh directory and a snapshot), "
    "or open with auto_heal=True if the cluster is sure to send the lost entries again"
)
_ADVICE_META = (
    "Nothing was changed. Without its vote the node could vote twice in a term: give it a fresh "
    "directory and let it join as a new node"
)


def open_log(
    files: Files,
    path: str,
    options: Options,
    *,
    is_healing: bool = False,
    is_checking_everything: bool = False,
) -> tuple[Log, Lock]:
    """Opens the log in a directory. Blocks. The caller closes the log, then the lock.

    Raises WalLockedError, CorruptionError, UnknownVersionError, OSError.
    """
    files.make_directory(path)
    had_lock_file = LOCK_NAME in files.names(path)
    try:
        lock = files.lock(path)
    except LockedError as error:
        holder = f"process {error.pid}" if error.pid else "another process, or this one,"
        raise WalLockedError(
            f"{path} is in use: {holder} holds its lock. A log has one owner; close that store "
            "or choose another directory",
            path=path,
            pid=error.pid,
        ) from None
    try:
        if had_lock_file:
            _reload(files, path)
        report = examine_files(files, path, deep=is_checking_everything)
        healing = _judge(report, is_healing=is_healing)
        lock.announce()
        if healing is not None:
            _heal(files, report, healing)
            report = examine_files(files, path, deep=is_checking_everything)
            _judge(report, is_healing=False)
        return _apply(files, report, options), lock
    except BaseException:
        lock.release(remove=not had_lock_file)
        raise


def _reload(files: Files, path: str) -> None:
    """After an unclean end: what is judged must be what is on disk.

    If that end was a failed sync, memory may still show what will never be written. Sealed
    segments were synced before they were sealed.
    """
    names = files.names(path)
    segments = [name for name in names if segment_number(name) is not None]
    for name in [name for name in names if name == META_NAME] + segments[::-1]:
        file = files.open(os.path.join(path, name))
        try:
            file.reload()
            header = SegmentHeader.unpack(file.read(0, DATA_START))
        finally:
            file.close()
        if isinstance(header, SegmentHeader) and header.is_sealed:
            break


# --- judging -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Healing:
    """How to cut the log back to its highest healthy entry."""

    obstacle: Finding
    #: the last segment that stays; None where none can
    kept: SegmentReport | None
    #: what has to go, ascending
    set_aside: list[SegmentReport]


def _judge(report: DirectoryReport, *, is_healing: bool) -> _Healing | None:
    """Raises what the findings call for, or says how to heal them."""
    obstacle = report.first_obstacle
    if obstacle is None:
        return None
    if obstacle.kind is FindingKind.UNKNOWN_VERSION:
        raise UnknownVersionError(
            f"{obstacle.message}. Nothing was changed. Open the directory with the release that "
            "wrote it, or begin with a fresh one",
            path=obstacle.path,
            version=obstacle.version or 0,
        )
    is_about_vote = report.meta is None or any(
        f.kind is FindingKind.DAMAGE for f in report.meta.findings
    )
    is_about_vote = is_about_vote or report.meta.state.first_segment == 0  # type: ignore[union-attr]
    if is_about_vote or not is_healing:
        raise CorruptionError(
            f"{obstacle.message}. {_ADVICE_META if is_about_vote else _ADVICE}",
            path=obstacle.path,
            offset=obstacle.offset,
            first_id=obstacle.first_id,
            last_id=obstacle.last_id,
        )
    return _plan_healing(report, obstacle)


def _plan_healing(report: DirectoryReport, obstacle: Finding) -> _Healing:
    segments = [segment for segment in report.segments if not _is_leftover(segment)]
    damaged = next((i for i, s in enumerate(segments) if _is_damaged(s)), 0)
    if report.findings:  # the first segments are missing: nothing that is left can be kept
        damaged = 0
    elif segments[damaged].is_sound_before_damage and _healthy_count(segments[damaged]):
        return _Healing(obstacle, segments[damaged], segments[damaged + 1 :])
    kept = next((s for s in reversed(segments[:damaged]) if s.is_used), None)
    return _Healing(obstacle, kept, segments[segments.index(kept) + 1 if kept is not None else 0 :])


def _healthy_count(segment: SegmentReport) -> int:
    return segment.next_id - segment.header.id_from if segment.header else 0


def _is_damaged(segment: SegmentReport) -> bool:
    return any(f.kind is FindingKind.DAMAGE for f in segment.findings)


def _is_leftover(segment: SegmentReport) -> bool:
    return any(f.kind is FindingKind.LEFTOVER for f in segment.findings)


# --- applying ----------------------------------------------------------------------------


def _heal(files: Files, report: DirectoryReport, healing: _Healing) -> None:
    """Sets the damaged aside and cuts the log back. A crash leaves damage, to be healed again."""
    kept = healing.kept
    aside = []
    if kept is not None:
        if _is_damaged(kept):
            aside.append(_free_broken_name(files, kept.path))
            files.copy(kept.path, aside[0])
        file = files.open(kept.path, writable=True)
        try:
            _write_header(file, kept)  # unsealed, the mark no higher than what is healthy
            file.sync()
        finally:
            file.close()
    for segment in reversed(healing.set_aside):
        aside.append(_free_broken_name(files, segment.path))
        files.rename(segment.path, aside[-1])
    files.sync_directory(report.path)
    if kept is None:  # last: until then it is missing segments, which heals again after a crash
        assert report.meta is not None
        meta = Meta.open(files, report.meta)
        try:
            meta.save(replace(meta.state, first_segment=0))
        finally:
            meta.close()
    last = kept.next_id - 1 if kept is not None else None
    logger.warning(
        "%s: healed. %s. The log now ends with entry %s; everything after it is lost here and "
        "must come from the cluster. The damaged files were kept as %s",
        report.path,
        healing.obstacle.message,
        "none" if last is None else last,
        ", ".join(aside) or "none",
    )


def _write_header(file: File, segment: SegmentReport) -> None:
    assert segment.header is not None
    file.write(0, segment.header.pack_marked(segment.next_id - 1, segment.end, is_sealed=False))


def _free_broken_name(files: Files, path: str) -> str:
    names = files.names(os.path.dirname(path))
    name = os.path.basename(path) + BROKEN_SUFFIX
    count = 1
    while name in names:
        count += 1
        name = f"{os.path.basename(path)}{BROKEN_SUFFIX}.{count}"
    return os.path.join(os.path.dirname(path), name)


def _apply(files: Files, report: DirectoryReport, options: Options) -> Log:
    """Removes what is left over, zeroes the torn tail, opens the rest."""
    meta = Meta.open(files, report.meta) if report.meta else None
    opened: list[Segment] = []
    try:
        dropped = [segment.path for segment in report.segments if segment.is_dropped]
        for path in [*report.leftovers, *reversed(dropped)]:
            files.unlink(path)
        # Always: a killed process may have left names that no directory sync covered yet.
        files.sync_directory(report.path)
        if meta is None:
            meta = Meta.create(files, report.path)
        used, prepared = _open_segments(files, report, opened)
        if prepared and meta.state.first_segment == 0:
            # the crash came between the first segment and the note that it must be there
            meta.save(replace(meta.state, first_segment=prepared[0].number))
        last = _last_log_id(files, used, report)
        log = Log(files, report.path, options, meta, used, prepared, last)
        _restore_committed(report.meta, meta, log)
        return log
    except BaseException:
        for segment in opened:
            segment.release()
        if meta is not None:
            meta.close()
        raise


def _open_segments(
    files: Files, report: DirectoryReport, opened: list[Segment]
) -> tuple[list[Segment], list[Segment]]:
    """The segments with records, and those without; the tail and the latter are writable."""
    used: list[Segment] = []
    prepared: list[Segment] = []
    kept = [s for s in report.segments if not s.is_dropped]
    tail = next((s for s in reversed(kept) if s.is_used), None)
    if tail is not None and tail is kept[-1] and tail.is_sealed:
        _unseal(files, tail)  # before the seal of an earlier one says that this one is needed
    for found in kept:
        header = found.header
        assert header is not None
        segment = Segment(found.number, found.path, header, None)
        if not header.is_sealed:
            file = segment.file = files.open(found.path, writable=True)
            opened.append(segment)
            # What lies behind the records was never acknowledged and must never come back,
            # not even when later records happen to end just before it.
            if found.has_torn_tail:
                zero_on_disk(file, found.end, header.length)
            # Always: a killed process may have left pages that are in memory only, and what
            # is read here counts as durable from now on.
            file.sync()
            if found.scan is not None and found.is_used:
                segment.next_id = segment.durable_next_id = found.next_id
                segment.end = segment.durable_end = found.end
                segment.offsets = found.scan.offsets
                if found is not tail:  # another segment follows, so it gets its seal
                    segment.write_mark(segment.next_id, segment.end, is_sealed=True)
                    file.sync()
                    segment.is_sealed = True
                    segment.release()
        # one without records can begin with any id, used before or not
        (used if segment.count or segment.is_sealed else prepared).append(segment)
    return used, prepared


def _unseal(files: Files, tail: SegmentReport) -> None:
    """Takes the seal off a last segment whose followers a truncation removed."""
    assert tail.header is not None
    file = files.open(tail.path, writable=True)
    try:
        _write_header(file, tail)
        file.sync()
    finally:
        file.close()
    tail.header = replace(tail.header, flags=0)
    scan_segment(files, tail)


def _last_log_id(files: Files, used: list[Segment], report: DirectoryReport) -> LogId | None:
    """The log id of the last record, whether or not it is purged."""
    for segment in reversed(used):
        if segment.count:
            scanned = next(s.scan for s in report.segments if s.number == segment.number)
            if scanned is not None and scanned.last_log_id is not None:
                return scanned.last_log_id
            return segment.read(files, segment.next_id - 1, segment.next_id)[0].log_id
    return None


def _restore_committed(report: MetaReport | None, meta: Meta, log: Log) -> None:
    """The latest saved committed log id that the log reaches."""
    if report is None or not report.committed:
        return
    last = log.last_log_id
    meta.committed = next(
        (
            log_id
            for log_id in report.committed
            if log_id is None or (last is not None and log_id.index <= last.index)
        ),
        None,
    )
    if meta.committed != report.committed[0]:
        # it must not come back when the log has grown to there again
        meta.save_committed(meta.committed)
