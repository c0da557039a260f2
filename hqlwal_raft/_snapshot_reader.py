"""Who reads a snapshot, block by block: for threads, any of which may call.

Each call does the disk's work itself. It must not know which other snapshots there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from ._arguments import check_number
from ._format import U64_MAX
from ._snapshot_files import SnapshotFile
from ._types import SnapshotInfo
from .errors import SnapshotError

__all__ = ["BlockingSnapshotReader"]


class BlockingSnapshotReader:
    """A snapshot that is being read: for ``with``. See :meth:`BlockingSnapshotStore.read`.

    Each block is checked before any of it is given; a bad one raises CorruptionError, and from then
    on ``latest()`` gives the snapshot before.
    """

    def __init__(
        self,
        snapshot: SnapshotInfo,
        open_file: Callable[[], SnapshotFile],
        read_block: Callable[[SnapshotFile, int], bytes],
    ) -> None:
        """For the store, which notes damage, and refuses to read once it is closed."""
        self.snapshot = snapshot
        self._open_file = open_file
        self._read_block = read_block
        self._file: SnapshotFile | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def begin(self) -> None:
        """Opens the file; what ``with`` does."""
        self._file = self._open_file()

    def end(self) -> None:
        """Lets go of the file. Who reads a block just now goes on with it."""
        self._file = None

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._opened().blocks

    def block(self, number: int) -> bytes:
        """One block, counted from 0; each but the last has the same length."""
        file = self._opened()
        check_number("number", number, 0, file.blocks - 1)
        return self._read_block(file, number)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, fewer where it ends. Reads whole blocks."""
        file = self._opened()
        check_number("offset", offset, 0, file.size)
        check_number("length", length, 0, U64_MAX)
        block_bytes = file.head.block_bytes
        stop = min(offset + length, file.size)
        parts = []
        for number in range(offset // block_bytes, file.head.blocks(stop)):
            start = number * block_bytes
            data = self._read_block(file, number)
            parts.append(data[max(offset - start, 0) : stop - start])
        return b"".join(parts)

    def __iter__(self) -> Iterator[bytes]:
        """The blocks, in order: all the bytes that were written, in bounded memory."""
        for number in range(self.blocks):
            yield self.block(number)

    def _opened(self) -> SnapshotFile:
        file = self._file
        if file is None:
            raise SnapshotError(
                f"{self.snapshot.path} is not being read: use 'with', and read inside of it",
                path=self.snapshot.path,
                log_id=self.snapshot.log_id,
            )
        return file
