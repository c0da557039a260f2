"""Directories of a store made of bytes, by hand: what tests of the judgement and recovery judge.

Knows the format and the file double, but neither the log nor a store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hqlwal_raft._directory import Directory
from hqlwal_raft._format import (
    DATA_START,
    META_BYTES,
    META_NAME,
    SEALED,
    MetaState,
    SegmentHeader,
    pack_slot,
    segment_name,
)
from hqlwal_raft._plans import load
from hqlwal_raft._records import encode
from hqlwal_raft._recovery import Recovered, recover
from hqlwal_raft._segment import Segment
from hqlwal_raft._types import Entry, LogId, Vote
from hqlwal_raft.audit import DirectoryReport, examine
from hqlwal_raft.testing._kernel import MemoryKernel

PATH = "/d"
LENGTH = 4096
VOTE = Vote(7, 3, committed=True)


def entry(index: int, size: int = 40) -> Entry:
    return Entry(1 + index // 10, index, bytes([index % 251 + 1]) * size, 9)


def group(first: int, count: int, size: int = 40) -> list[tuple[Entry, bool]]:
    """The records of one plan: its first one is settled."""
    return [(entry(index, size), index == first) for index in range(first, first + count)]


def record(entry: Entry, salt: int, *, is_settled: bool) -> bytes:
    """The bytes of one entry's record."""
    parts, _, _ = encode([entry], entry.index, salt, 0, len(entry.payload), is_settled=is_settled)
    return b"".join(parts)


@dataclass
class File:
    """A segment in the making."""

    number: int
    records: list[tuple[Entry, bool]] = field(default_factory=list)
    #: how many records its header says are durable; None: all, for a sealed one, else none
    marked: int | None = None
    is_sealed: bool = False
    #: before which record a truncation was zeroing
    cut: int | None = None
    length: int = LENGTH
    is_unused: bool = False
    first_id: int | None = None

    @property
    def salt(self) -> int:
        return 0xA0 + self.number

    @property
    def encoded(self) -> list[bytes]:
        return [record(each, self.salt, is_settled=settled) for each, settled in self.records]

    def offset(self, count: int) -> int:
        """Where the record after the first ``count`` ones begins."""
        return DATA_START + sum(map(len, self.encoded[:count]))

    @property
    def header(self) -> SegmentHeader:
        if self.is_unused:
            return SegmentHeader(self.salt, self.length)
        marked = self.marked
        if marked is None:
            marked = len(self.records) if self.is_sealed else 0
        first = self.first_id if self.first_id is not None else self.records[0][0].index
        return SegmentHeader(
            self.salt,
            self.length,
            first,
            first + marked - 1 if marked else 0,
            DATA_START,
            self.offset(marked),
            SEALED if self.is_sealed else 0,
            self.offset(self.cut) if self.cut is not None else 0,
        )

    @property
    def content(self) -> bytearray:
        data = self.header.pack() + b"".join(self.encoded)
        return bytearray(data.ljust(self.length, b"\0"))


def meta(
    first: int = 1,
    frontier: int | None = None,
    *,
    sequence: int = 5,
    is_copy: bool = False,
    state: bytes | None = b"mine",
) -> bytes:
    purged = LogId(1, frontier, 9) if frontier is not None else None
    slot = pack_slot(sequence, MetaState(purged, VOTE, first, is_copy, state))
    return (slot * 2).ljust(META_BYTES, b"\0")


class Store:
    """A directory's files, to be changed byte by byte."""

    def __init__(self, *files: File, meta_data: bytes | None = None) -> None:
        first = files[0].number if files else 0
        self.files: dict[str, bytearray] = {
            META_NAME: bytearray(meta(first) if meta_data is None else meta_data)
        }
        for file in files:
            self.files[segment_name(file.number)] = file.content

    def __getitem__(self, number: int) -> bytearray:
        return self.files[segment_name(number)]

    def flip(self, number: int, offset: int) -> None:
        self[number][offset] ^= 0x40

    def without(self, *numbers: int) -> Store:
        for number in numbers:
            del self.files[segment_name(number)]
        return self

    def kernel(self) -> MemoryKernel:
        files = {f"{PATH}/{name}": bytes(data) for name, data in self.files.items()}
        return MemoryKernel.of(files, [PATH], page_bytes=512)

    def examine(self, *, deep: bool = False) -> DirectoryReport:
        return examine(PATH, deep=deep, environment=self.kernel())


def recovered(
    kernel: MemoryKernel, *, is_healing: bool = False, deep: bool = False
) -> tuple[list[Entry], Recovered]:
    """The log that a recovery gives, entry by entry."""
    result = recover(kernel, PATH, is_healing=is_healing, is_checking_everything=deep)
    entries: list[Entry] = []
    for segment in result.segments:
        entries += entries_of(result.directory, segment)
    frontier = result.meta.state.last_purged
    if frontier is not None:
        entries = [each for each in entries if each.index > frontier.index]
    return entries, result


def entries_of(directory: Directory, segment: Segment) -> list[Entry]:
    if not segment.is_loaded:
        segment.loaded(*load(directory, segment.load_step()))
    return segment.extent(segment.first_id, segment.next_id).read() if segment.count else []
