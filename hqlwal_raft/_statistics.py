"""What ``statistics()`` says of a store: for the owner of its log."""

from __future__ import annotations

from ._core import Core
from ._measures import SYNC_BOUNDS_SECONDS
from ._types import StorageStatistics

__all__ = ["statistics_of"]


def statistics_of(core: Core) -> StorageStatistics:
    """What the store of a log has done, and how it stands; for the owner."""
    log, committer = core.log, core.committer
    committer.look_for_space()
    measures = committer.measures
    latencies = sorted(measures.sync_seconds)
    cached_entries, cached_bytes = len(log.recent), log.recent.bytes
    return StorageStatistics(
        segments=len(log.segments),
        segment_bytes=log.segment_bytes,
        entries=log.count,
        appends=measures.appends,
        appended_entries=log.appended_entries,
        appended_bytes=log.appended_bytes,
        syncs=measures.syncs,
        entries_per_sync=log.durable_entries / measures.syncs if measures.syncs else 0.0,
        sync_last_seconds=measures.sync_seconds[-1] if latencies else 0.0,
        sync_p50_seconds=_quantile(latencies, 0.50),
        sync_p99_seconds=_quantile(latencies, 0.99),
        sync_max_seconds=measures.sync_max_seconds,
        sync_histogram=tuple(zip(SYNC_BOUNDS_SECONDS, measures.sync_counts, strict=True)),
        under_way_seconds=committer.watch.oldest_seconds,
        stalls=committer.watch.stalls,
        stall_max_seconds=committer.watch.longest_seconds,
        queue_depth=committer.queue_depth,
        unsynced_bytes=log.unsynced_bytes,
        last_log_id=log.last_log_id,
        last_durable_log_id=log.last_durable_log_id,
        last_purged_log_id=log.last_purged_log_id,
        cached_entries=cached_entries,
        cached_bytes=cached_bytes,
        rollovers=log.rollovers,
        segment_waits=measures.segment_waits,
        free_bytes=log.directory.free_bytes_seen,
        is_poisoned=committer.poison is not None,
    )


def _quantile(ascending: list[float], part: float) -> float:
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)] if ascending else 0.0
