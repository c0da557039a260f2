"""What the tests of the judgement share."""

from __future__ import annotations

from hqlwal_raft._types import Finding, FindingKind
from hqlwal_raft.audit import DirectoryReport
from tests._directories import File, Store, group

DAMAGE, TORN, LEFTOVER = FindingKind.DAMAGE, FindingKind.TORN_TAIL, FindingKind.LEFTOVER


def kinds(report: DirectoryReport) -> set[FindingKind]:
    return {finding.kind for finding in report.all_findings}


def ids(report: DirectoryReport) -> list[int]:
    """The ids of the log that recovery, or healing, keeps."""
    kept = report.judgement.kept
    return [index for segment in kept for index in range(segment.first_id, segment.next_id)]


def obstacle(report: DirectoryReport) -> Finding:
    finding = report.first_obstacle
    assert finding is not None
    return finding


def log_of_three() -> Store:
    """Two sealed segments and a tail."""
    return Store(
        File(1, group(1, 4), is_sealed=True),
        File(2, group(5, 4), is_sealed=True),
        File(3, group(9, 2) + group(11, 2), marked=2),
        File(4, is_unused=True),
    )
