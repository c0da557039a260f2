"""What is found in a store's directory, as values: facts of each file, and what they mean.

``_look`` fills in the facts, ``_judge`` the meaning; ``audit`` shows both to everybody. Knows no
file and no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ._files import Identity
from ._format import DATA_START, VERSION, MetaState, SegmentHeader
from ._places import Places
from ._types import Finding, FindingKind, LogId, Vote

__all__ = ["Judgement", "MetaReport", "SegmentReport", "version_finding"]


@dataclass(slots=True)
class SegmentReport:
    """One segment file as it was found: facts in the first part, the judgement in the second."""

    number: int
    name: str
    path: str
    size: int = 0
    identity: Identity = (0, 0)
    #: the header's bytes, to tell two looks at a file in use apart
    head: bytes = b""
    #: None where it cannot be read: then ``problem`` says why, or ``version`` which it is
    header: SegmentHeader | None = None
    problem: str | None = None
    version: int | None = None
    is_irregular: bool = False

    #: whether its records were decoded, to their end
    is_scanned: bool = False
    #: where its healthy records begin; None where that is not known
    places: Places | None = None
    records: int = 0
    scanned_end: int = DATA_START
    last_log_id: LogId | None = None
    #: the first record's term; the first id of a term lower than that of the record before it
    first_term: int | None = None
    fall_id: int | None = None
    #: why the scan went no further
    why: str = ""
    #: something other than zeros lies behind the records
    has_bytes_behind: bool = False
    #: the highest id of a healthy record in a row that has the settled bit
    last_settled_id: int | None = None
    #: a valid settled record behind the end: its id, and where it begins
    settled_behind: tuple[int, int] | None = None

    #: the next open removes it: below the first segment, or unacknowledged behind a torn tail
    is_dropped: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        return self.header is not None and not self.header.is_unused

    @property
    def is_sealed(self) -> bool:
        return self.header is not None and self.header.is_sealed

    @property
    def is_proven(self) -> bool:
        """Whether its header says that a record of it, and so all before it, were durable."""
        header = self.header
        return header is not None and (header.has_mark or header.cut > 0)

    @property
    def is_short(self) -> bool:
        """Whether it is shorter than what was allocated: it was cut, which no crash does."""
        return self.header is not None and self.size < self.header.length

    @property
    def first_id(self) -> int:
        return self.header.id_from if self.header is not None else 0

    @property
    def next_id(self) -> int:
        """The id after the last healthy record's."""
        header = self.header
        if header is None:
            return 0
        if self.is_scanned:
            return header.id_from + self.records
        return header.id_until + 1 if header.has_mark else header.id_from

    @property
    def count(self) -> int:
        """How many healthy records it has."""
        return self.next_id - self.first_id if self.is_used else 0

    @property
    def end(self) -> int:
        """One past the last healthy record, as an offset."""
        if self.is_scanned or self.header is None:
            return self.scanned_end
        return max(self.header.data_end, DATA_START)

    @property
    def highest_settled_id(self) -> int | None:
        behind = self.settled_behind[0] if self.settled_behind is not None else None
        ids = [id_ for id_ in (self.last_settled_id, behind) if id_ is not None]
        return max(ids, default=None)


@dataclass(slots=True)
class MetaReport:
    """``meta.hql`` as it was found."""

    path: str
    size: int = 0
    identity: Identity = (0, 0)
    #: its bytes, to tell two looks at a file in use apart
    head: bytes = b""
    #: what counts; None where no slot is valid
    state: MetaState | None = None
    sequence: int = 0
    #: which slots lag behind or are damaged: the next open rewrites them
    stale_slots: tuple[int, ...] = ()
    #: the saved hints, the latest first
    committed: list[tuple[int, LogId | None]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def vote(self) -> Vote | None:
        return self.state.vote if self.state is not None else None


@dataclass(slots=True)
class Judgement:
    """What a directory holds, and what recovery or healing will do."""

    findings: list[Finding] = field(default_factory=list)
    #: the segments with records, in order: of the whole log, or, where there is damage, of what
    #: healing keeps: then the last one's healthy records are the end of the log
    kept: list[SegmentReport] = field(default_factory=list)
    #: those without records that stay, in order, behind ``kept``
    prepared: list[SegmentReport] = field(default_factory=list)
    #: those that the next open unlinks: below the first segment, purged
    leftovers: list[SegmentReport] = field(default_factory=list)
    #: those behind a torn tail, unacknowledged
    dropped: list[SegmentReport] = field(default_factory=list)
    #: those that healing sets aside
    aside: list[SegmentReport] = field(default_factory=list)
    #: the last of ``kept`` loses records by healing
    is_cut: bool = False
    #: every record that is left is purged, and the log goes on behind the frontier
    is_emptied: bool = False
    #: healing can do nothing: it is about the vote, or another format
    is_hopeless: bool = False

    @property
    def obstacle(self) -> Finding | None:
        """The first finding that keeps the store from opening."""
        return next((f for f in self.findings if f.kind.is_obstacle), None)


def version_finding(path: str, version: int) -> Finding:
    writer = {
        1: "the Rust crate hiqlite-wal wrote it; 'hqlwal' reads it",
        2: "a release candidate of this package, 0.x before the format was frozen, wrote it",
    }.get(version, "another release wrote it")
    message = (
        f"{path} is of format version {version:#04x} ({writer}); this release writes {VERSION:#04x}"
    )
    return Finding(FindingKind.UNKNOWN_VERSION, path, message, version=version)
