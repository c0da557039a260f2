"""The steps of ``auto_heal``: a judged, damaged directory → the log of its healthy beginning.

Used by ``_recovery`` alone. What is damaged, and all behind it, is kept under ``.broken`` names,
from which ``audit.salvage`` reads what is healthy. The order is such that a crash at any step
leaves damage that heals to the same log, or the healed log:

1. The segment that loses records is copied first: later steps remove what proves its damage.
2. What goes is renamed oldest first: until the last one is gone, a number is missing.
3. Then the segment that stays last is cut as a truncation cuts: mark and cut, synced; what
   lies behind is zeroed later, as any torn tail is.
4. Where none stays, ``meta.hql`` says so last: until then the first segment is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ._directory import Directory
from ._files import File, IrregularFileError
from ._findings import Judgement, SegmentReport
from ._format import BROKEN_SUFFIX, DATA_START, SegmentHeader, broken_name
from ._plans import Copy, SetAside, Step, Sync, SyncDirectory, Write

__all__ = ["Target", "heal_steps"]

_PIECE_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class Target:
    """A segment that stays, and the header that the steps planned so far give it."""

    report: SegmentReport
    header: SegmentHeader
    #: None where nothing is written to it
    file: File | None = None

    def header_steps(self, header: SegmentHeader) -> tuple[Step, ...]:
        assert self.file is not None
        self.header = header
        return Write(self.file, 0, (header.pack(),)), Sync(self.file)


def heal_steps(
    directory: Directory, judgement: Judgement, kept: list[Target], prepared: list[Target]
) -> tuple[list[Step], list[str]]:
    """The steps, and the ``.broken`` names that there are in the end.

    Where ``kept`` is empty and something was set aside, the caller sets the first segment to 0.
    """
    names = set(directory.names())
    steps: list[Step] = []
    aside: list[str] = []
    last = kept[-1] if kept else None
    is_shortened = judgement.is_cut or bool(judgement.aside)
    if last is not None and is_shortened and last.report.has_bytes_behind:
        assert last.file is not None
        copy = _copy_of(directory, last.file, names)
        if copy is None:
            copy = _free_name(last.report.name, names)
            steps += Copy(last.file, copy), SyncDirectory()
        aside.append(copy)
    for segment in judgement.aside:
        name = _free_name(segment.name, names)
        steps.append(SetAside(segment.name, name))
        aside.append(name)
    if judgement.aside:
        steps.append(SyncDirectory())
    for target in [*kept, *prepared]:
        if target is last and is_shortened:
            steps += _cut_steps(target)
        elif target.report.is_short:
            steps += target.header_steps(replace(target.header, length=target.report.size))
    return steps, aside


def _cut_steps(target: Target) -> list[Step]:
    """Makes a segment the log's last: open, its mark at the end, and nothing counts behind."""
    report = target.report
    length = min(target.header.length, report.size)
    header = replace(
        target.header,
        id_until=report.next_id - 1,
        data_end=report.end,
        flags=0,
        length=length,
        cut=report.end if report.end < length else 0,
    )
    return [*target.header_steps(header)]


def _free_name(name: str, names: set[str]) -> str:
    """A name for what is set aside; it is taken from now on."""
    free, count = name + BROKEN_SUFFIX, 1
    while free in names:
        count += 1
        free = f"{name}{BROKEN_SUFFIX}.{count}"
    names.add(free)
    return free


def _copy_of(directory: Directory, file: File, names: set[str]) -> str | None:
    """The copy that an earlier healing made before it was cut off, if it did."""
    for name in sorted(names):
        if broken_name(name) != file.name:
            continue
        try:
            copy = directory.open_file(name)
        except (FileNotFoundError, IrregularFileError):
            continue
        is_same = copy.size == file.size and _is_same(copy, file)
        copy.close()
        if is_same:
            return name
    return None


def _is_same(copy: File, file: File) -> bool:
    """Whether both hold the same records; headers change."""
    for first, last in file.data_regions(DATA_START, file.size):
        for offset in range(first, last, _PIECE_BYTES):
            length = min(_PIECE_BYTES, last - offset)
            if copy.read(offset, length) != file.read(offset, length):
                return False
    return True
