"""The bytes of segment headers, records, meta slots and file names. Knows no file.

Everything is big-endian. ``docs/design/format.md`` draws the same bytes and says what they
are for; the order in which they are written is the business of ``_log`` and ``_meta``.

Segment header, 64 bytes::

    0       7 8        16         24           28         32     36      40       48    52         60    64
    | magic |v| id_from | id_until | data_start | data_end | salt | flags | length | cut | reserved | crc |

Record, back to back::

    0    8     12       16     24        32
    | id | crc | length | term | node id | payload ... |
                        '------- data, length bytes -------'

The record's CRC-32C is seeded with the segment's salt and covers id, length and data. The top
bit of *length* is the settled bit: when this record was written, every one before was durable.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from crc32c import crc32c

from ._types import LogId, Vote

__all__ = [
    "COMMITTED_OFFSETS",
    "COVERED",
    "DATA_START",
    "ENTRY_HEAD",
    "ENTRY_HEAD_BYTES",
    "LENGTH_MASK",
    "LOCK_BYTES",
    "LOCK_NAME",
    "MAGIC_META",
    "MAGIC_SEGMENT",
    "META_BYTES",
    "META_NAME",
    "NODE_ID_BYTES_MAX",
    "RECORD",
    "RECORD_HEAD",
    "RECORD_HEAD_BYTES",
    "RECORD_OVERHEAD_BYTES",
    "SEALED",
    "SETTLED",
    "SLOT_BYTES",
    "SLOT_OFFSETS",
    "STATE_BYTES_MAX",
    "U64_MAX",
    "VERSION",
    "MetaState",
    "SegmentHeader",
    "broken_name",
    "pack_committed",
    "pack_lock",
    "pack_slot",
    "record_bytes",
    "segment_name",
    "segment_number",
    "unpack_committed",
    "unpack_lock",
    "unpack_slot",
]

#: the crate's versions are 1 and what follows; ours have the high bit set
VERSION = 0x81
U64_MAX = (1 << 64) - 1

# --- names -------------------------------------------------------------------------------

META_NAME = "meta.hql"
LOCK_NAME = "lock.hql"
#: appended to a name while the file is being made; never opened, removed at the next open
TEMPORARY_SUFFIX = ".tmp"
#: appended to the name of a damaged segment that auto-heal set aside
BROKEN_SUFFIX = ".broken"

_SEGMENT_NAME = re.compile(r"([0-9]{16})\.wal")


def segment_name(number: int) -> str:
    return f"{number:016d}.wal"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name; None where the name is no segment's."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def broken_name(name: str) -> str | None:
    """The segment's name in the name of what healing set aside; None where it is no such."""
    base, found, count = name.partition(BROKEN_SUFFIX)
    is_numbered = not count or (count[0] == "." and count[1:].isdecimal())
    return base if found and is_numbered and segment_number(base) is not None else None


# --- segment header ----------------------------------------------------------------------

MAGIC_SEGMENT = b"HQL_WAL"
#: the header's length, and so the offset of the first record
DATA_START = 64
#: flag: another segment follows, no more records will be written to this one
SEALED = 1

_HEADER = struct.Struct(">7sBQQIIIIQI8x")
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """A segment's header. ``id_until`` and ``data_end`` are the durable mark.

    In a prepared segment that no record was ever written to, all numbers but ``salt`` and
    ``length`` are 0. ``length`` is the file's length when it was allocated: a file that is
    shorter was cut, which no crash does. ``cut`` is where a truncation was zeroing from when the
    header was written, 0 if none was: settled records at or behind it prove nothing.
    """

    salt: int
    length: int
    id_from: int = 0
    id_until: int = 0
    data_start: int = 0
    data_end: int = 0
    flags: int = 0
    cut: int = 0

    @property
    def is_unused(self) -> bool:
        return self.data_start == 0

    @property
    def is_sealed(self) -> bool:
        return bool(self.flags & SEALED)

    @property
    def has_mark(self) -> bool:
        """Whether any record is known to be durable."""
        return self.data_end > self.data_start

    def pack(self) -> bytes:
        head = _HEADER.pack(
            MAGIC_SEGMENT,
            VERSION,
            self.id_from,
            self.id_until,
            self.data_start,
            self.data_end,
            self.salt,
            self.flags,
            self.length,
            self.cut,
        )
        return head + _U32.pack(crc32c(head))

    @staticmethod
    def unpack(data: bytes) -> SegmentHeader | int | str:
        """The header in ``data``; an int: the version found instead; a str: what is wrong."""
        if len(data) < DATA_START:
            return f"only {len(data)} of the header's {DATA_START} bytes are there"
        magic, version, first, last, start, end, salt, flags, length, cut = _HEADER.unpack_from(
            data
        )
        if magic != MAGIC_SEGMENT:
            return "it does not begin with the segments' magic bytes"
        if version == 1:
            return 1  # version 1 has no header checksum
        if crc32c(data[:60]) != _U32.unpack_from(data, 60)[0]:
            return "the header's checksum is wrong"
        if version != VERSION:
            return int(version)
        header = SegmentHeader(salt, length, first, last, start, end, flags, cut)
        return header if header.is_consistent else "the header's numbers contradict each other"

    @property
    def is_consistent(self) -> bool:
        """Whether a writer of this version could have written it: forged headers are not."""
        if self.length < DATA_START or self.flags & ~SEALED:
            return False
        if self.is_unused:
            rest = (self.id_from, self.id_until, self.data_end, self.flags, self.cut)
            return rest == (0, 0, 0, 0, 0)
        if not DATA_START == self.data_start <= self.data_end <= self.length:
            return False
        if not self.has_mark:
            return self.id_until == 0 and not self.is_sealed and self.cut in (0, DATA_START)
        room = (self.data_end - DATA_START) // RECORD_OVERHEAD_BYTES
        return self.id_from <= self.id_until < self.id_from + room and (
            self.cut == 0 or self.data_end <= self.cut < self.length
        )


# --- records -----------------------------------------------------------------------------

#: in a record's length: every record before this one was durable when it was written
SETTLED = 1 << 31
LENGTH_MASK = SETTLED - 1

#: id, checksum, length
RECORD_HEAD = struct.Struct(">QII")
RECORD_HEAD_BYTES = 16
#: term, node id: what every record's data begins with
ENTRY_HEAD = struct.Struct(">QQ")
ENTRY_HEAD_BYTES = 16
#: what a record takes beyond its entry's payload
RECORD_OVERHEAD_BYTES = RECORD_HEAD_BYTES + ENTRY_HEAD_BYTES
#: a record without its payload: id, checksum, length, term, node id
RECORD = struct.Struct(">QIIQQ")
#: the same as the checksum covers it: id, length, term, node id; then the payload
COVERED = struct.Struct(">QIQQ")

_ID = struct.Struct(">Q")


def record_bytes(payload_bytes: int) -> int:
    """How many bytes the record of an entry takes: the one place that knows."""
    return RECORD_OVERHEAD_BYTES + payload_bytes


# --- meta.hql ----------------------------------------------------------------------------

MAGIC_META = b"HQLMETA"
META_BYTES = 12288
SLOT_BYTES = 4096
SLOT_OFFSETS = (0, 4096)
COMMITTED_OFFSETS = (8192, 8704)
NODE_ID_BYTES_MAX = 1024
STATE_BYTES_MAX = 2048

# --- lock.hql ----------------------------------------------------------------------------

LOCK_BYTES = 32


def pack_lock(pid: int | None) -> bytes:
    """What the lock file says: who holds it, or, for None, that it was closed cleanly."""
    text = b"clean" if pid is None else b"pid %d" % pid
    return text.ljust(LOCK_BYTES - 1) + b"\n"


def unpack_lock(data: bytes) -> int | bool:
    """The holder's pid; True: closed cleanly; False: it says neither."""
    word, _, number = data.strip().partition(b" ")
    if word == b"pid" and number.isdigit():
        return int(number)
    return word == b"clean" and not number


_SLOT_HEAD = struct.Struct(">7sBQII")
_LOG_ID = struct.Struct(">BQQQ")
_VOTE_HEAD = struct.Struct(">BQBB")
_COMMITTED = struct.Struct(">QBQQQ")
#: first segment, copy mark, whether there is a state, its length
_SLOT_TAIL = struct.Struct(">QBBI")

_NODE_NONE, _NODE_INT, _NODE_STR = 0, 1, 2


@dataclass(frozen=True, slots=True)
class MetaState:
    """What a slot of ``meta.hql`` holds.

    ``first_segment`` is the number of the first segment the log needs; 0 while none was ever
    published. It tells a log that lost its segments from one that never had any.
    ``is_copy`` is set in a backup: opening it as the same node is refused. ``state`` is the
    node's own, at most ``STATE_BYTES_MAX`` bytes.
    """

    last_purged: LogId | None = None
    vote: Vote | None = None
    first_segment: int = 0
    is_copy: bool = False
    state: bytes | None = None


def _pack_log_id(log_id: LogId | None) -> bytes:
    if log_id is None:
        return _LOG_ID.pack(0, 0, 0, 0)
    return _LOG_ID.pack(1, log_id.term, log_id.node_id, log_id.index)


def _unpack_log_id(data: bytes, offset: int) -> LogId | None:
    present, term, node_id, index = _LOG_ID.unpack_from(data, offset)
    return LogId(term, index, node_id) if present else None


def _pack_vote(vote: Vote | None) -> bytes:
    if vote is None:
        return _VOTE_HEAD.pack(0, 0, 0, _NODE_NONE)
    node_id = vote.node_id
    if node_id is None:
        kind, tail = _NODE_NONE, b""
    elif isinstance(node_id, str):
        encoded = node_id.encode()
        kind, tail = _NODE_STR, _U32.pack(len(encoded)) + encoded
    else:
        kind, tail = _NODE_INT, _ID.pack(node_id)
    return _VOTE_HEAD.pack(1, vote.term, vote.committed, kind) + tail


def _unpack_vote(data: bytes, offset: int) -> tuple[Vote | None, int]:
    """The vote and the offset behind it."""
    present, term, committed, kind = _VOTE_HEAD.unpack_from(data, offset)
    offset += _VOTE_HEAD.size
    node_id: int | str | None = None
    if kind == _NODE_INT:
        (node_id,) = _ID.unpack_from(data, offset)
        offset += _ID.size
    elif kind == _NODE_STR:
        (length,) = _U32.unpack_from(data, offset)
        offset += _U32.size
        node_id = data[offset : offset + length].decode()
        offset += length
    return (Vote(term, node_id, bool(committed)) if present else None), offset


def pack_slot(sequence: int, state: MetaState) -> bytes:
    payload = (
        _pack_log_id(state.last_purged)
        + _pack_vote(state.vote)
        + _SLOT_TAIL.pack(
            state.first_segment, state.is_copy, state.state is not None, len(state.state or b"")
        )
        + (state.state or b"")
    )
    covered = struct.pack(">QI", sequence, len(payload))
    checksum = crc32c(payload, crc32c(covered))
    head = _SLOT_HEAD.pack(MAGIC_META, VERSION, sequence, len(payload), checksum)
    return (head + payload).ljust(SLOT_BYTES, b"\0")


def unpack_slot(data: bytes) -> tuple[int, MetaState] | int | str:
    """Sequence and state; an int: the version found instead; a str: what is wrong."""
    if len(data) > 7 and data[:7] != MAGIC_META:
        return "the slot does not begin with its magic bytes"
    if len(data) > 7 and data[7] != VERSION:
        return data[7]  # a file of version 1 can be shorter than our head
    if len(data) < _SLOT_HEAD.size:
        return "the slot is cut short"
    _, _, sequence, length, checksum = _SLOT_HEAD.unpack_from(data)
    payload = data[_SLOT_HEAD.size : _SLOT_HEAD.size + length]
    if len(payload) < length or crc32c(payload, crc32c(data[8:20])) != checksum:
        return "the slot's checksum is wrong"
    try:
        vote, offset = _unpack_vote(payload, _LOG_ID.size)
        first, is_copy, has_state, size = _SLOT_TAIL.unpack_from(payload, offset)
        offset += _SLOT_TAIL.size
        state = payload[offset : offset + size] if has_state else None
        if offset + size != len(payload) or sequence == U64_MAX:
            return "the slot's checksum is right but its payload is not"
        return sequence, MetaState(_unpack_log_id(payload, 0), vote, first, bool(is_copy), state)
    except (struct.error, UnicodeDecodeError):
        return "the slot's checksum is right but its payload is not"


def pack_committed(sequence: int, log_id: LogId | None) -> bytes:
    head = struct.pack(">Q", sequence) + _pack_log_id(log_id)
    return head + _U32.pack(crc32c(head))


def unpack_committed(data: bytes) -> tuple[int, LogId | None] | None:
    """Sequence and log id; None where the record is empty or torn."""
    end = _COMMITTED.size
    if len(data) < end + 4 or crc32c(data[:end]) != _U32.unpack_from(data, end)[0]:
        return None
    (sequence,) = _ID.unpack_from(data)
    return (sequence, _unpack_log_id(data, 8)) if 0 < sequence < U64_MAX else None
