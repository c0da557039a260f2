"""What is said when it happens: the lines of the logger ``hqlwal_raft`` about a store's life.

One function a kind, so that the words and levels that ``docs/operations.md`` lists stand in one
place. For any thread. No line holds a payload.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from ._format import unpack_lock
from ._types import Finding, LogId

__all__ = [
    "abandoned",
    "closed",
    "full",
    "opened",
    "poisoned",
    "purged",
    "room_again",
    "sealed",
    "snapshot_damaged",
    "snapshot_published",
    "snapshot_stays",
    "snapshots_opened",
    "truncated",
]

logger = logging.getLogger("hqlwal_raft")


def opened(
    path: str,
    lock_before: bytes | None,
    findings: Iterable[Finding],
    *,
    entries: int,
    segments: int,
    last_log_id: LogId | None,
) -> None:
    """INFO: how it ended last, what was found, what there is. The findings were said before."""
    logger.info(
        "%s: opened; %s; %s; %d entries in %d segments, the last %s",
        path,
        _ending(lock_before),
        _counts(findings),
        entries,
        segments,
        last_log_id,
    )


def _ending(lock_before: bytes | None) -> str:
    if lock_before is None:
        return "it was not open before"
    said = unpack_lock(lock_before)
    if said is True:
        return "it was closed cleanly"
    holder = "" if said is False else f": process {said} was killed, or its machine went down"
    return f"it was not closed cleanly{holder}"


def _counts(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.kind.value for finding in findings)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no findings"


def sealed(path: str, first_id: int, last_id: int) -> None:
    logger.debug("%s: sealed, with entries %d to %d", path, first_id, last_id)


def truncated(path: str, index: int, last_log_id: LogId | None) -> None:
    logger.debug("%s: truncated from entry %d on; the last is %s now", path, index, last_log_id)


def purged(path: str, log_id: LogId, segments: int) -> None:
    logger.debug("%s: purged up to %s; %d segments are to go", path, log_id, segments)


def full(path: str, reason: str) -> None:
    """WARNING, once, until there is room again."""
    logger.warning(
        "%s: no space is left: %s. Calls that need some raise OSError and change nothing; make "
        "room, and they work again",
        path,
        reason,
    )


def room_again(path: str) -> None:
    logger.warning("%s: there is space again", path)


def poisoned(path: str, reason: str, unexpected: BaseException | None) -> None:
    """ERROR, once."""
    logger.error(
        "%s: the log takes no more writes: %s. What was acknowledged is safe; close the "
        "store, check the disk, then reopen it",
        path,
        reason,
        exc_info=unexpected,
    )


def closed(path: str, reason: str | None) -> None:
    """INFO, or WARNING with the reason why it was not clean."""
    if reason is None:
        logger.info("%s: closed", path)
    else:
        logger.warning("%s: closed, not cleanly: %s", path, reason)


def abandoned(path: str) -> None:
    logger.info("%s: abandoned: what was not durable may be lost, as after a kill", path)


# --- snapshots ---------------------------------------------------------------------------


def snapshots_opened(
    path: str,
    lock_before: bytes | None,
    findings: Iterable[Finding],
    *,
    snapshots: int,
    newest: LogId | None,
) -> None:
    """INFO: how it ended last, what was found, what there is."""
    logger.info(
        "%s: opened; %s; %s; %d snapshots, the newest at %s",
        path,
        _ending(lock_before),
        _counts(findings),
        snapshots,
        newest,
    )


def snapshot_published(path: str, log_id: LogId, size: int) -> None:
    logger.info("%s: published, the snapshot at %s; %d bytes", path, log_id, size)


def snapshot_damaged(message: str) -> None:
    """WARNING, when it is found."""
    logger.warning("%s", message)


def snapshot_stays(path: str, error: OSError) -> None:
    """WARNING: a file that is used no more could not be removed."""
    logger.warning("%s could not be removed (%s); it is tried again later", path, error)
