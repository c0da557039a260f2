"""The rules of recovery: what was read of a directory → what it holds, what is wrong, what goes.

Pure: :func:`judge` takes what ``_look`` read and gives a :class:`Judgement`; it touches no file,
so ``audit`` and ``_recovery`` cannot disagree, and nothing is decided while files are changed.
``docs/design/format.md`` has the rules and why each is needed. It must not know how anything is
repaired.
"""

from __future__ import annotations

from ._findings import Judgement, MetaReport, SegmentReport, version_finding
from ._format import DATA_START, META_NAME, MetaState
from ._types import Finding, FindingKind

__all__ = ["judge"]


def judge(path: str, meta: MetaReport | None, segments: list[SegmentReport]) -> Judgement:
    """Judges what was read of the directory at ``path``. ``segments`` are ascending."""
    result = Judgement()
    if meta is None or meta.state is None:
        result.is_hopeless = True
        if meta is not None:
            result.findings += meta.findings
        elif segments:
            message = f"{path}: segments are here but {META_NAME} is missing, and with it the vote"
            result.findings.append(Finding(FindingKind.DAMAGE, path, message))
        for segment in segments:
            if segment.version is not None:
                result.findings.append(version_finding(segment.path, segment.version))
        return result
    result.findings += meta.findings
    if meta.state.is_copy:
        message = (
            f"{path} is a backup: opened as the node it was made of, it could vote a second time "
            "in a term, or miss entries that node acknowledged"
        )
        result.findings.append(Finding(FindingKind.COPY, path, message))
        result.is_hopeless = True
    first = meta.state.first_segment
    walk = _Walk(path, meta.state, result)
    for segment in segments:
        # While no first segment is named, whatever is there holds nothing acknowledged.
        if first and segment.number >= first:
            walk.segments.append(segment)
        else:
            walk.leave_over(segment)
    if first:
        walk.go()
    return result


class _StopError(Exception):
    """Damage was found: what comes behind it is not judged."""


class _Walk:
    """Goes through the segments in their order, with the id that must come next.

    | state  | ``torn``                       | what follows                                |
    |--------|--------------------------------|---------------------------------------------|
    | in log | None                           | has the next id, or the log's end was before |
    | behind | where the log's end was passed | holds nothing that was ever durable         |
    """

    def __init__(self, path: str, state: MetaState, result: Judgement) -> None:
        self.path = path
        self.first = state.first_segment
        self.frontier = state.last_purged.index if state.last_purged is not None else None
        self.result = result
        self.segments: list[SegmentReport] = []
        self.want: int | None = None
        self.torn: int | None = None
        self.has_unsealed = False
        self.is_dropping = False
        self.used: list[SegmentReport] = []
        self.unused: list[SegmentReport] = []

    def leave_over(self, segment: SegmentReport) -> None:
        if segment.is_irregular:
            self._find_irregular(segment)
            self.result.aside.append(segment)
            return
        message = f"{segment.path}: the log needs it no more; the next open removes it"
        self.result.findings.append(Finding(FindingKind.LEFTOVER, segment.path, message))
        self.result.leftovers.append(segment)

    def go(self) -> None:
        try:
            self._judge_names()
            for position, segment in enumerate(self.segments):
                self._judge_readable(position, segment)
                if self.torn is None:
                    self._judge_next(position, segment)
                else:
                    self._judge_behind(segment)
            self._judge_end()
        except _StopError:
            pass

    # --- rules -----------------------------------------------------------------------------

    def _judge_names(self) -> None:
        if self.segments and self.segments[0].number == self.first:
            return
        there = f"the first one is {self.segments[0].number}" if self.segments else "none is here"
        message = f"{self.path}: segment {self.first}, where the log begins, is missing: {there}"
        self.result.findings.append(Finding(FindingKind.DAMAGE, self.path, message))
        self._stop(0)

    def _judge_readable(self, position: int, segment: SegmentReport) -> None:
        if segment.number != self.first + position:
            missing = self.first + position
            message = f"{self.path}: segment {missing} is missing, segment {segment.number} is here"
            self.result.findings.append(
                Finding(FindingKind.DAMAGE, self.path, message, first_id=self.want)
            )
            self._stop(position)
        if segment.is_irregular:
            self._find_irregular(segment)
            self._stop(position)
        if segment.version is not None:
            self.result.findings.append(version_finding(segment.path, segment.version))
            self.result.is_hopeless = True
            self._stop(position)
        if segment.header is None:
            self._damage(segment, segment.problem or "it cannot be read", 0, self.want)
            self._stop(position)

    def _judge_next(self, position: int, segment: SegmentReport) -> None:
        header = segment.header
        assert header is not None
        before = self.segments[position - 1] if position else None
        if header.is_unused:
            self._judge_followed(position, segment)
            if segment.settled_behind is not None and self.want is not None:
                self._judge_settled(position, segment)
            if segment.is_short:
                self._find_short(segment)
            self.torn = position
            self.unused.append(segment)
            return
        if self.want is not None and segment.first_id != self.want:
            if self._is_purged_gap(segment):
                self.want = None
            elif before is not None and not before.is_sealed and segment.first_id > self.want:
                # Before one sync the kernel writes pages in any order: those of the follower can
                # be on disk and the end of the one before it not. Then none of it was durable,
                # unless something in it proves the contrary.
                self.torn = position - 1
                self._judge_behind(segment)
                return
            else:
                why = f"it begins with entry {segment.first_id} where {self.want} was expected"
                self._damage(segment, why, 0, self.want)
                self._stop(position)
        self._judge_followed(position, segment)
        self._judge_records(position, segment)
        self.want = segment.next_id
        self.used.append(segment)
        self.has_unsealed = self.has_unsealed or not segment.is_sealed

    def _is_purged_gap(self, segment: SegmentReport) -> bool:
        """Whether what is missing before the segment is purged."""
        return (
            self.frontier is not None
            and self.want is not None
            and self.want <= self.frontier + 1 == segment.first_id
        )

    def _judge_followed(self, position: int, segment: SegmentReport) -> None:
        """A seal is written when the follower's first record is durable."""
        before = self.segments[position - 1] if position else None
        if before is None or not before.is_sealed or segment.count:
            return
        if segment.is_short and segment.count == 0:
            why = f"it was cut to {segment.size} bytes"
        else:
            why = segment.why or "nothing was written to it"
        self._damage(
            segment,
            f"offset {DATA_START}: {why}; entry {self.want} was durable, for the segment before "
            "it is sealed",
            DATA_START,
            self.want,
        )
        self._stop(position)

    def _judge_records(self, position: int, segment: SegmentReport) -> None:
        header = segment.header
        assert header is not None
        if segment.is_scanned:
            if segment.end < header.data_end or (
                header.has_mark and segment.next_id <= header.id_until
            ):
                self._damage(
                    segment,
                    f"offset {segment.end}: {segment.why}; entries {segment.next_id} to "
                    f"{header.id_until} were durable and cannot be trusted",
                    segment.end,
                    segment.next_id,
                    header.id_until,
                )
                self._stop(position, is_partial=True)
            if header.is_sealed and segment.next_id != header.id_until + 1:
                self._damage(segment, "the sealed header does not agree with its records", 0)
                self._stop(position, is_partial=True)
            if segment.settled_behind is not None:
                self._judge_settled(position, segment)
        if segment.is_short:
            self._find_short(segment)

    def _judge_settled(self, position: int, segment: SegmentReport) -> None:
        assert segment.settled_behind is not None
        index, offset = segment.settled_behind
        lost = segment.next_id if segment.is_used else self.want or 0
        if index <= lost:
            return  # it proves those before it, and of them none is missing
        self._damage(
            segment,
            f"offset {segment.end}: {segment.why or 'the header says that nothing was written'}; "
            f"entries {lost} to {index - 1} were durable, as entry {index} at offset {offset} "
            "proves, and cannot be trusted",
            segment.end,
            lost,
            index - 1,
        )
        self._stop(position, is_partial=True)

    def _judge_behind(self, segment: SegmentReport) -> None:
        """Behind the log's end nothing may ever have been durable."""
        assert self.torn is not None
        settled = segment.highest_settled_id
        want = self.want
        is_settled = settled is not None and (want is None or settled > want)
        if segment.is_proven or is_settled:
            torn = self.segments[self.torn]
            lost, last = want or 0, max(segment.first_id, settled or 0) - 1
            self._damage(
                torn,
                f"offset {torn.end}: {torn.why or 'nothing was written here'}; entries {lost} to "
                f"{last} are missing although later ones were durable ({segment.path})",
                torn.end,
                lost,
                last,
            )
            self._stop(self.torn, is_partial=True)
        if segment.is_used or self.is_dropping:
            self.is_dropping = True
            self.result.dropped.append(segment)
        else:
            if segment.is_short:
                self._find_short(segment)
            self.unused.append(segment)

    def _judge_end(self) -> None:
        last = self.used[-1] if self.used else None
        # A sealed one behind an unsealed one: a truncation was under way, which opens the one
        # that stays and then removes from the newest backwards. Nothing is missing then.
        is_last_sealed = last is not None and last is self.segments[-1] and last.is_sealed
        if last is not None and is_last_sealed and not self.has_unsealed:
            why = "it is sealed, so another segment followed it, and that is missing"
            self._damage(last, why, None, last.next_id)
            self._stop(len(self.segments))
        result = self.result
        for segment in [*self.used, *self.unused]:
            if segment.has_bytes_behind and not segment.is_sealed:
                message = f"{segment.path}, offset {segment.end}: bytes that were not acknowledged"
                result.findings.append(
                    Finding(FindingKind.TORN_TAIL, segment.path, message, offset=segment.end)
                )
        for segment in result.dropped:
            message = f"{segment.path}: nothing but unacknowledged entries behind a torn tail"
            result.findings.append(Finding(FindingKind.TORN_TAIL, segment.path, message))
        if self._is_behind_frontier():
            result.is_emptied = True
            result.dropped = [*self.segments]
            message = (
                f"{self.path}: all that is left of the log is purged; the next open removes it"
            )
            result.findings.append(Finding(FindingKind.LEFTOVER, self.path, message))
            return
        self._find_falling_terms()
        # Only the last can be without records, and that one is not part of the log yet.
        result.kept = [segment for segment in self.used if segment.count]
        result.prepared = [segment for segment in self.used if not segment.count] + self.unused

    def _find_falling_terms(self) -> None:
        """No damage, but nothing that Raft writes: said of what was read, purged or not."""
        before: int | None = None
        for segment in self.used:
            fall_id = segment.fall_id
            if before is not None and segment.first_term is not None:
                fall_id = segment.first_id if segment.first_term < before else fall_id
            if fall_id is not None:
                message = (
                    f"{segment.path}: the term of entry {fall_id} is lower than that of the entry "
                    "before it, which Raft never writes; the log opens all the same"
                )
                self.result.findings.append(
                    Finding(FindingKind.RAFT_RULE, segment.path, message, first_id=fall_id)
                )
            last = segment.last_log_id
            before = None if last is None else last.term

    def _is_behind_frontier(self) -> bool:
        """Whether the log ends below the frontier: what follows has another id than its end."""
        return self.frontier is not None and self.want is not None and self.want <= self.frontier

    # --- findings --------------------------------------------------------------------------

    def _damage(
        self,
        segment: SegmentReport,
        why: str,
        offset: int | None,
        first_id: int | None = None,
        last_id: int | None = None,
    ) -> None:
        message = f"{segment.path}: {why}"
        self.result.findings.append(
            Finding(FindingKind.DAMAGE, segment.path, message, offset, first_id, last_id)
        )

    def _find_irregular(self, segment: SegmentReport) -> None:
        message = f"{segment.path} is no regular file: move away what stands in its place"
        self.result.findings.append(Finding(FindingKind.IRREGULAR, segment.path, message))

    def _find_short(self, segment: SegmentReport) -> None:
        assert segment.header is not None
        self._damage(
            segment,
            f"it was cut to {segment.size} bytes, {segment.header.length} were allocated; entries "
            "that lay behind are gone",
            segment.size,
            segment.next_id if segment.is_used and not segment.is_sealed else None,
        )

    def _stop(self, position: int, *, is_partial: bool = False) -> None:
        """Damage in the segment at the position: says what healing keeps and sets aside."""
        result = self.result
        segments = self.segments
        keeps = position
        if is_partial and position < len(segments) and segments[position].count:
            keeps += 1
            result.is_cut = True
        kept = [segment for segment in segments[:keeps] if segment.count]
        if kept and self.frontier is not None and kept[-1].next_id <= self.frontier:
            kept, result.is_cut = [], False  # nothing that is not purged is left
        stays = kept[-1].number if kept else self.first - 1
        result.kept = kept
        result.prepared, result.dropped = [], []
        result.aside += [segment for segment in segments if segment.number > stays]
        raise _StopError
