"""Which error a judgement calls for, with advice: used by ``_recovery`` before anything is changed."""

from __future__ import annotations

from ._types import FindingKind
from .audit import DirectoryReport
from .errors import CorruptionError, UnknownVersionError, WalCopyError

__all__ = ["refuse"]

_ADVICE = (
    "Nothing was changed. Restore the node from its cluster (a fresh directory and a snapshot), "
    "or open with auto_heal=True if the cluster is sure to send the lost entries again"
)
_ADVICE_META = (
    "Nothing was changed. Without its vote the node could vote twice in a term: give it a fresh "
    "directory and let it join as a new node"
)


def refuse(report: DirectoryReport, *, is_healing: bool) -> None:
    """Raises what the findings call for, where nothing is to be done about them."""
    obstacles = [finding for finding in report.all_findings if finding.kind.is_obstacle]
    if not obstacles:
        return
    obstacle = obstacles[0]
    for finding in obstacles:
        if finding.kind is FindingKind.UNKNOWN_VERSION:
            raise UnknownVersionError(
                f"{finding.message}. Nothing was changed. Open the directory with the release "
                "that wrote it, or begin with a fresh one",
                path=finding.path,
                version=finding.version or 0,
            )
    if obstacle.kind is FindingKind.COPY:
        raise WalCopyError(
            f"{obstacle.message}. Nothing was changed. Restore it with a new node id into a fresh "
            "directory, or read it with 'hqlwal'",
            path=obstacle.path,
        )
    is_hopeless = report.judgement.is_hopeless
    if is_hopeless or not is_healing:
        advice = _ADVICE
        if is_hopeless:
            is_about_vote = report.meta is None or report.meta.state is None
            advice = _ADVICE_META if is_about_vote else "Nothing was changed"
        raise CorruptionError(
            f"{obstacle.message}. {advice}",
            path=obstacle.path,
            offset=obstacle.offset,
            first_id=obstacle.first_id,
            last_id=obstacle.last_id,
        )
