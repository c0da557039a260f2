"""Imports a journal file of pysyncobj's own, with its ``.meta``, into a new WAL directory.

Reads the file itself, without pysyncobj, and believes nothing that does not add up.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from anyio.from_thread import start_blocking_portal

from .._store import RaftLogStorage
from .._types import Entry, LogId
from ..errors import WalError
from ._votes import vote_of

__all__ = ["ImportReport", "StockJournalDamagedError", "import_file_journal"]

MAGIC = b"PYSYNCOBJ"
HEADER = struct.Struct("<24s8sII")
SIZE = struct.Struct("<I")
RECORD_HEAD = struct.Struct("<QQ")
FORMAT_VERSION = 1
_BATCH_BYTES = 4 << 20


class StockJournalDamagedError(WalError):
    """A journal file of pysyncobj's own, or its ``.meta``, is not as pysyncobj writes it."""

    def __init__(self, message: str, *, path: str, offset: int | None = None) -> None:
        super().__init__(message)
        #: the damaged file
        self.path = path
        #: where in the file the damage begins, in bytes, where it is known
        self.offset = offset


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import brought over, and what it could not."""

    entries: int
    first_index: int | None
    last_index: int | None
    term: int
    #: whom the node voted for in ``term``
    voted_for: Any
    commit_index: int
    #: in words; empty where nothing was lost
    lost: tuple[str, ...]


class _Damage(Exception):
    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def import_file_journal(
    journal_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    prefix_only: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> ImportReport:
    """Writes the entries, term, vote and commit index of a stock journal to a new WAL directory.

    The node must not run. The directory appears whole or not at all, and the stock files stay
    as they are. ``progress`` is called with bytes read and bytes in all.

    Where the journal is damaged, ``prefix_only=True`` imports what lies before the damage, and
    the report says what is lost; the node must then get the rest from its cluster, so do this
    with a minority of the nodes at most.

    Raises FileExistsError where the directory exists and is not empty; ValueError where the
    file is no journal of pysyncobj's; StockJournalDamagedError where it or its ``.meta`` is
    damaged and ``prefix_only`` is not set. Blocks; must not be called on an event loop.
    """
    source = os.path.abspath(os.fspath(journal_path))
    target = os.path.abspath(os.fspath(directory))
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise FileExistsError(
            f"{target} exists already and is not overwritten: name a directory that does not"
        )
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = tempfile.mkdtemp(
        prefix=f".{os.path.basename(target)}.", suffix=".importing", dir=os.path.dirname(target)
    )
    try:
        with open(source, "rb") as file, start_blocking_portal("asyncio") as portal:
            report = portal.call(_write, _Source(source, file), temporary, prefix_only, progress)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(os.path.dirname(target))
    return report


def sync_directory(path: str) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Source:
    """A stock journal file, read from front to back."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEADER.size)
        if not head.startswith(MAGIC):
            raise ValueError(f"{path} is no journal file of pysyncobj's: it begins {head[:9]!r}")
        if len(head) < HEADER.size:
            raise StockJournalDamagedError(
                f"{path} ends within its header, at {len(head)} bytes", path=path, offset=len(head)
            )
        _, _, version, self.end = HEADER.unpack(head)
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} is of journal format {version}; {FORMAT_VERSION} is known")
        self._size = size
        self.offset = HEADER.size

    def entries(self, current_term: int | None) -> Iterator[Entry]:
        """The entries; raises _Damage at the first that does not add up.

        pysyncobj saves a term before it adds an entry of it, so none is of a later one than
        ``current_term``; None where an older pysyncobj saved no term.
        """
        previous: Entry | None = None
        while self.offset < self.end:
            entry, size = self._record()
            if current_term is not None and entry.term > current_term:
                self._damage(f"term {entry.term} is later than the current term {current_term}")
            if previous is not None:
                if entry.index != previous.index + 1:
                    self._damage(f"entry {entry.index} follows entry {previous.index}")
                if entry.term < previous.term:
                    self._damage(f"term {entry.term} follows term {previous.term}")
            yield entry
            previous = entry
            self.offset += size
        if self.offset != self.end:
            self._damage(f"the header says that the records end at {self.end}")

    def _record(self) -> tuple[Entry, int]:
        head = self._file.read(SIZE.size)
        if len(head) < SIZE.size:
            self._damage(f"the file ends, the header says {self.end} bytes")
        (size,) = SIZE.unpack(head)
        whole = size + 2 * SIZE.size
        if size < RECORD_HEAD.size or self.offset + whole > min(self.end, self._size):
            self._damage(f"a record of {size} bytes cannot be")
        data = self._file.read(size)
        if self._file.read(SIZE.size) != head:
            self._damage("a record's two lengths differ")
        index, term = RECORD_HEAD.unpack_from(data)
        return Entry(term, index, data[RECORD_HEAD.size :]), whole

    def _damage(self, what: str) -> None:
        raise _Damage(f"{self.path} is damaged at byte {self.offset}: {what}", self.offset)


async def _write(
    source: _Source,
    directory: str,
    prefix_only: bool,  # noqa: FBT001  through a portal by position
    progress: Callable[[int, int], object] | None,
) -> ImportReport:
    lost: list[str] = []
    meta, problem = _read_meta(source.path + ".meta")
    first: Entry | None = None
    last: Entry | None = None
    count = 0
    # Unchecked: whether what was written once keeps Raft's rules is not for an import to say.
    async with RaftLogStorage.open(directory, check_raft=False) as storage:
        batch: list[Entry] = []
        batch_bytes = 0
        try:
            for entry in source.entries(meta.get("currentTerm")):
                first = first or entry
                last = entry
                count += 1
                batch.append(entry)
                batch_bytes += len(entry.payload)
                if batch_bytes >= _BATCH_BYTES:
                    await storage.append(batch)
                    batch, batch_bytes = [], 0
                    if progress is not None:
                        progress(source.offset, source.end)
        except _Damage as damage:
            healthy = "no entry" if last is None else f"{count} entries, the last {last.index},"
            if not prefix_only:
                raise StockJournalDamagedError(
                    f"{damage}. {healthy} before it can be imported with prefix_only (--prefix-only)"
                    "; what follows is lost to this node",
                    path=source.path,
                    offset=damage.offset,
                ) from None
            lost.append(
                f"{damage}; {source.end - damage.offset} bytes of records from there on, "
                f"whatever followed entry {'none' if last is None else last.index}"
            )
        await storage.append(batch)
        if progress is not None:
            progress(source.offset if lost else source.end, source.end)
        last_term = 0 if last is None else last.term
        # without a .meta a node that was never elected with, nor heard of, any other
        if problem is not None and (last_term > 0 or problem != _MISSING):
            message = (
                f"{source.path}.meta {problem}: the node's term and vote are lost, and it could "
                "vote a second time in a term that it voted in"
            )
            if not prefix_only:
                raise StockJournalDamagedError(message, path=source.path + ".meta")
            lost.append(message)
        # pysyncobj does the same where the term was not saved
        term = max(meta.get("currentTerm", 0), last_term)
        voted_for = meta.get("votedForNodeId")
        await storage.save_vote(vote_of(term, voted_for))
        last_index = 0 if last is None else last.index
        commit = min(meta.get("raftCommitIndex", 1), last_index)
        if first is not None and commit >= first.index:
            entries = await storage.try_get_log_entries(commit, commit + 1)
            await storage.save_committed(LogId(entries[0].term, commit))
    return ImportReport(
        entries=count,
        first_index=None if first is None else first.index,
        last_index=None if last is None else last.index,
        term=term,
        voted_for=voted_for,
        commit_index=commit,
        lost=tuple(lost),
    )


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and what is made of them; nothing that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


_MISSING = "is missing"


def _read_meta(path: str) -> tuple[dict[str, Any], str | None]:
    """Term, vote and commit index; or what is wrong with the file."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return {}, _MISSING
    with contextlib.suppress(Exception):
        meta = _PlainUnpickler(io.BytesIO(data)).load()
        if isinstance(meta, dict) and all(
            type(meta.get(name, 0)) is int for name in ("currentTerm", "raftCommitIndex")
        ):
            return meta, None
    return {}, "cannot be read"
