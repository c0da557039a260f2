"""One snapshot file: written front to back under a temporary name, and read block by block.

For threads that may wait for the disk, one at a time writes a file, any may read one. It must not
know which snapshots there are, nor what their bytes mean. Memory is bounded by a block.
"""

from __future__ import annotations

import contextlib
import errno

from ._directory import Directory
from ._files import File
from ._snapshot_format import (
    HEAD_BYTES,
    SNAPSHOT_VERSION,
    SUM_BYTES,
    TAIL_BYTES,
    SnapshotHead,
    temporary_name,
)
from ._types import LogId
from .errors import CorruptionError, UnknownVersionError

__all__ = ["SnapshotFile", "Unfinished"]

#: how a system says that what is there cannot be read any more, now or later
# elsewhere than on Linux some are missing, and no file is opened
_LOST = [getattr(errno, name, 0) for name in ("EIO", "EBADMSG", "EUCLEAN", "ENOENT")]


class Unfinished:
    """A snapshot file that is being written: nothing that anybody could take for a snapshot."""

    def __init__(self, directory: Directory, log_id: LogId, block_bytes: int) -> None:
        salt = directory.environment.getrandbits(32)
        self.head = SnapshotHead(log_id, block_bytes, salt)
        self.name = temporary_name(salt)
        self.file: File = directory.make_temporary(self.name)
        #: how many bytes were given
        self.size = 0
        # given, and less than a block
        self._rest = bytearray()
        self._blocks = 0
        try:
            self.file.write(0, (self.head.pack(),))
        except BaseException:
            self.file.close()
            with contextlib.suppress(OSError):
                directory.unlink(self.name)
            raise

    def write(self, piece: memoryview) -> None:
        """Takes bytes; those that fill a block are written. Raises OSError: it is done for then."""
        place = 0
        block_bytes = self.head.block_bytes
        self.size += len(piece)
        if self._rest:
            place = min(block_bytes - len(self._rest), len(piece))
            self._rest += piece[:place]
            if len(self._rest) < block_bytes:
                return
            self._write_block(bytes(self._rest))
            self._rest.clear()
        while len(piece) - place >= block_bytes:
            self._write_block(bytes(piece[place : place + block_bytes]))
            place += block_bytes
        self._rest += piece[place:]

    def _write_block(self, data: bytes) -> None:
        number = self._blocks
        sum_ = self.head.block_sum(number, data)
        self.file.write(self.head.block_offset(number), (data, sum_))
        self._blocks += 1

    def finish(self) -> None:
        """Writes what is left, and makes the file durable: all but its name."""
        if self._rest:
            self._write_block(bytes(self._rest))
            self._rest.clear()
        end = self.head.file_bytes(self.size) - TAIL_BYTES
        self.file.write(end, (self.head.pack_tail(self.size),))
        self.file.sync()


class SnapshotFile:
    """A snapshot file that is whole as far as its head, tail and length say."""

    def __init__(self, directory: Directory, name: str, log_id: LogId) -> None:
        """Raises CorruptionError, UnknownVersionError, IrregularFileError, OSError."""
        self.path = directory.path_of(name)
        try:
            self._file = directory.open_file(name)
        except OSError as error:
            self._check_loss(error)
            raise
        head = SnapshotHead.unpack(self._read(0, HEAD_BYTES))
        if isinstance(head, int):
            raise UnknownVersionError(
                f"{self.path} is a snapshot of format version {head}; this release writes "
                f"{SNAPSHOT_VERSION}. Nothing was changed. Open the directory with the release "
                "that wrote it, or move the file away",
                path=self.path,
                version=head,
            )
        if isinstance(head, str):
            raise self._damage(head, 0)
        if head.log_id != log_id:
            raise self._damage(f"it holds the snapshot at {head.log_id}, unlike its name", 0)
        self.head = head
        tail_at = max(self._file.size - TAIL_BYTES, HEAD_BYTES)
        size = head.unpack_tail(self._read(tail_at, TAIL_BYTES))
        if isinstance(size, str):
            raise self._damage(size, tail_at)
        if head.file_bytes(size) != self._file.size:
            what = f"it has {self._file.size} bytes, not {head.file_bytes(size)}"
            raise self._damage(what, tail_at)
        self.size = size
        self.blocks = head.blocks(size)

    def make_durable(self) -> None:
        """For a copy that somebody brought here. Raises CorruptionError, OSError."""
        try:
            self._file.sync()
        except OSError as error:
            self._check_loss(error)
            raise

    def block(self, number: int) -> bytes:
        """The data of one block, checked. Raises CorruptionError, OSError."""
        head = self.head
        length = min(head.block_bytes, self.size - number * head.block_bytes)
        offset = head.block_offset(number)
        read = self._read(offset, length + SUM_BYTES)
        data = read[:length]
        if len(read) < length + SUM_BYTES or read[length:] != head.block_sum(number, data):
            raise self._damage(f"the checksum of block {number} is wrong", offset)
        return data

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._file.read(offset, length)
        except OSError as error:
            self._check_loss(error, offset)
            raise

    # No context manager made of a generator: since Python 3.12 one that raises another error than
    # came to it leaves a cycle of frames, and the file open until it is collected.
    def _check_loss(self, error: OSError, offset: int | None = None) -> None:
        """Raises CorruptionError where the error means that what is there cannot be read."""
        if error.errno in _LOST:
            raise self._damage(f"it cannot be read ({error})", offset) from error

    def _damage(self, what: str, offset: int | None) -> CorruptionError:
        return CorruptionError(f"{self.path} is damaged: {what}", path=self.path, offset=offset)
