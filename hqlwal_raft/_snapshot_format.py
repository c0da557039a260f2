"""The bytes of a snapshot file, and its name. Knows no file.

Everything is big-endian. ``docs/snapshots.md`` draws the same bytes::

    0       7 8             12     16     24      32        40         60    64
    | magic |v| block_bytes | salt | term | index | node id | reserved | crc | blocks ... | tail |

    block: | data, block_bytes (the last one less) | crc |
    tail:  | magic, 8 | size, 8 | crc |

A block's CRC-32C is seeded with the salt and covers its number and its data, the tail's is seeded
likewise. What a file holds, and so its length, follows from *size*, the number of bytes that were
written: a file that lacks its tail, or is of another length, is not whole.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from crc32c import crc32c

from ._format import TEMPORARY_SUFFIX, U64_MAX
from ._types import LogId

__all__ = [
    "BLOCK_BYTES_MAX",
    "BLOCK_BYTES_MIN",
    "HEAD_BYTES",
    "SNAPSHOT_VERSION",
    "SUM_BYTES",
    "TAIL_BYTES",
    "SnapshotHead",
    "is_temporary_name",
    "parse_snapshot_name",
    "snapshot_name",
    "temporary_name",
]

SNAPSHOT_VERSION = 1
#: of the data of one block
BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = 512, 1 << 26
HEAD_BYTES = 64
TAIL_BYTES = 20
#: what a block takes beyond its data
SUM_BYTES = 4

_MAGIC = b"HQLSNAP"
_END = b"HQLSNEND"
_HEAD = struct.Struct(">7sBIIQQQ20x")
_TAIL = struct.Struct(">8sQ")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

# --- names -------------------------------------------------------------------------------

_SUFFIX = ".snapshot"
_NUMBER = "(0|[1-9][0-9]{0,19})"
_NAME = re.compile(rf"([0-9]{{16}}|[1-9][0-9]{{16,19}})-{_NUMBER}-{_NUMBER}-{_NUMBER}\.snapshot")
_TEMPORARY = re.compile(rf"[0-9a-f]{{8}}\.snapshot{re.escape(TEMPORARY_SUFFIX)}")


def snapshot_name(number: int, log_id: LogId) -> str:
    """Of the ``number``-th that was published; term, index and node id are for people, too."""
    return f"{number:016d}-{log_id.term}-{log_id.index}-{log_id.node_id}{_SUFFIX}"


def parse_snapshot_name(name: str) -> tuple[LogId, int] | None:
    """The log id and the number; None where it is no snapshot's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    number, term, index, node_id = map(int, match.groups())
    if max(term, index, node_id) > U64_MAX:
        return None
    return LogId(term, index, node_id), number


def temporary_name(salt: int) -> str:
    """While it is being written. No two have the same, so none is taken for another's."""
    return f"{salt:08x}{_SUFFIX}{TEMPORARY_SUFFIX}"


def is_temporary_name(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


# --- bytes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What a snapshot file begins with, and where its parts lie."""

    log_id: LogId
    #: how many bytes of data a block has, the last one excepted
    block_bytes: int
    salt: int

    def pack(self) -> bytes:
        log_id = self.log_id
        head = _HEAD.pack(
            _MAGIC,
            SNAPSHOT_VERSION,
            self.block_bytes,
            self.salt,
            log_id.term,
            log_id.index,
            log_id.node_id,
        )
        return head + _U32.pack(crc32c(head))

    @staticmethod
    def unpack(data: bytes) -> SnapshotHead | int | str:
        """The head in ``data``; an int: the version found instead; a str: what is wrong."""
        if len(data) < HEAD_BYTES:
            return f"only {len(data)} of the head's {HEAD_BYTES} bytes are there"
        magic, version, block_bytes, salt, term, index, node_id = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            return "it does not begin with the snapshots' magic bytes"
        if crc32c(data[: _HEAD.size]) != _U32.unpack_from(data, _HEAD.size)[0]:
            return "the head's checksum is wrong"
        if version != SNAPSHOT_VERSION:
            return int(version)
        if not BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX or any(data[40 : _HEAD.size]):
            return "the head's numbers contradict each other"
        return SnapshotHead(LogId(term, index, node_id), block_bytes, salt)

    def block_sum(self, number: int, data: bytes) -> bytes:
        """The checksum that stands behind a block."""
        return _U32.pack(crc32c(data, crc32c(_U64.pack(number), self.salt)))

    def pack_tail(self, size: int) -> bytes:
        tail = _TAIL.pack(_END, size)
        return tail + _U32.pack(crc32c(tail, self.salt))

    def unpack_tail(self, data: bytes) -> int | str:
        """How many bytes the snapshot has; a str: what is wrong."""
        if len(data) < TAIL_BYTES:
            return f"only {len(data)} of the tail's {TAIL_BYTES} bytes are there"
        magic, size = _TAIL.unpack_from(data)
        if magic != _END:
            return "it does not end with a snapshot's tail"
        if crc32c(data[: _TAIL.size], self.salt) != _U32.unpack_from(data, _TAIL.size)[0]:
            return "the tail's checksum is wrong"
        return int(size)

    def block_offset(self, number: int) -> int:
        return HEAD_BYTES + number * (self.block_bytes + SUM_BYTES)

    def blocks(self, size: int) -> int:
        """How many blocks ``size`` bytes take."""
        return -(-size // self.block_bytes)

    def file_bytes(self, size: int) -> int:
        """How long the file is that holds ``size`` bytes."""
        return HEAD_BYTES + size + SUM_BYTES * self.blocks(size) + TAIL_BYTES
