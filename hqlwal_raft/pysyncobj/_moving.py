"""Journals that change places: a stock journal becomes a WAL directory of the same name, and the
other way round.

For code that gives its journal a fixed name, as Patroni does. The node must not run. Blocks; must
not be called on an event loop.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable

from ..blocking import BlockingRaftLogStorage
from ._dump_end import read_last_entries
from ._import import (
    FORMAT_VERSION,
    HEADER,
    MAGIC,
    RECORD_HEAD,
    SIZE,
    ImportReport,
    import_file_journal,
    sync_directory,
)
from ._votes import node_id_of

__all__ = ["export_file_journal", "export_in_place", "import_in_place"]

#: a stock journal cannot be larger: its end is kept in four bytes
_LARGEST_BYTES = (1 << 32) - 1
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

Progress = Callable[[int, int], object]


def import_in_place(
    journal_path: str | os.PathLike[str],
    *,
    prefix_only: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """:func:`import_file_journal`, after which the WAL directory has the journal's name.

    The journal is kept beside it as ``NAME.stock``, its ``.meta`` as ``NAME.meta.stock``. To undo
    it before the node ran again, remove the directory and rename the two back; afterwards the
    stock journal is old, and :func:`export_in_place` is the way back.

    Raises what ``import_file_journal`` does; FileExistsError where one of the kept names is taken.
    """
    path = os.path.abspath(os.fspath(journal_path))
    kept = {path: f"{path}.stock", f"{path}.meta": f"{path}.meta.stock"}
    _refuse_taken(kept.values())
    folder, name = os.path.split(path)
    workplace = tempfile.mkdtemp(prefix=f".{name}.", suffix=".importing", dir=folder)
    try:
        made = os.path.join(workplace, name)
        report = import_file_journal(path, made, prefix_only=prefix_only, progress=progress)
        _swap(made, path, kept[path])
        if os.path.exists(f"{path}.meta"):
            os.rename(f"{path}.meta", kept[f"{path}.meta"])
        sync_directory(folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return report


def export_in_place(
    directory: str | os.PathLike[str],
    *,
    dump: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> int:
    """:func:`export_file_journal`, after which the stock journal has the directory's name.

    The directory is kept beside it as ``NAME.wal``. Gives the number of entries.
    """
    path = os.path.abspath(os.fspath(directory))
    _refuse_taken([f"{path}.wal", f"{path}.meta"])
    folder, name = os.path.split(path)
    workplace = tempfile.mkdtemp(prefix=f".{name}.", suffix=".exporting", dir=folder)
    try:
        made = os.path.join(workplace, name)
        count = export_file_journal(path, made, dump=dump, progress=progress)
        # the .meta first: a journal without it could vote twice
        os.rename(f"{made}.meta", f"{path}.meta")
        _swap(made, path, f"{path}.wal")
        sync_directory(folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return count


def export_file_journal(
    directory: str | os.PathLike[str],
    journal_path: str | os.PathLike[str],
    *,
    dump: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Writes a WAL directory's entries, term, vote and commit index to a new stock journal.

    ``dump`` is the node's dump file, which stays as it is. A node with a stock journal forgets
    every entry after its dump unless the journal begins where the dump ends: given the dump, it
    does. A node that was stopped in order has made it so; one that was killed may not have.

    Gives the number of entries. The directory stays as it is. Raises FileExistsError where the
    journal or its ``.meta`` exists, ValueError where the log is too large for a stock journal
    (4 GiB) or the dump is none of pysyncobj's own, and what opening the directory raises.
    """
    target = os.path.abspath(os.fspath(journal_path))
    _refuse_taken([target, f"{target}.meta"])
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{os.fspath(directory)} is no WAL directory")
    with BlockingRaftLogStorage.open(directory) as store:
        state, vote, committed = store.get_log_state(), store.read_vote(), store.read_committed()
        last = 0 if state.last_log_id is None else state.last_log_id.index
        meta = {
            "raftCommitIndex": 1 if committed is None else max(1, min(committed.index, last)),
            "currentTerm": 0 if vote is None else vote.term,
            "votedForNodeId": None if vote is None else node_id_of(vote),
        }
        count, end = 0, HEADER.size
        with open(f"{target}.tmp", "wb") as file:
            file.seek(end)
            for entry in store.entries_stream(_first_index(store, dump)):
                data = RECORD_HEAD.pack(entry.index, entry.term) + entry.payload
                size = SIZE.pack(len(data))
                end += file.write(size + data + size)
                count += 1
                if end > _LARGEST_BYTES:
                    os.unlink(f"{target}.tmp")
                    raise ValueError(
                        f"the log in {os.fspath(directory)} is larger than a stock journal can be "
                        "(4 GiB): let the node compact its log, then try again"
                    )
                if progress is not None and count % 1000 == 0:
                    progress(entry.index, last)
            file.seek(0)
            file.write(HEADER.pack(MAGIC, b"", FORMAT_VERSION, end))
            file.flush()
            os.fsync(file.fileno())
    with open(f"{target}.meta", "wb") as file:
        file.write(pickle.dumps(meta, protocol=2))
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{target}.tmp", target)
    sync_directory(os.path.dirname(target))
    return count


def _first_index(store: BlockingRaftLogStorage, dump: str | os.PathLike[str] | None) -> int:
    """Where a stock journal has to begin; 0 for all that there is."""
    if dump is None:
        return 0
    wanted = read_last_entries(os.fspath(dump))
    start = wanted[0][1]
    found = tuple((e.payload, e.index, e.term) for e in store.try_get_log_entries(start, start + 2))
    return start if found == wanted else 0


def _refuse_taken(names: Iterable[str]) -> None:
    for name in names:
        if os.path.lexists(name):
            raise FileExistsError(f"{name} exists already and is not overwritten: move it away")


def _swap(made: str, path: str, kept: str) -> None:
    """``made`` takes the name ``path``, and what had it is kept; there is always one of the two,
    where the file system can exchange names.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(made), os.fsencode(path)
    if call is None or call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        os.rename(path, kept)
        os.rename(made, path)
    else:
        os.rename(made, kept)
