"""The alternatives, each with the face of a contestant. Measures nothing.

The same work for each: a list of entries, made before, goes in, and comes out again as entries
with their index, term and payload. Peers run with the settings that their manuals give for a durable
log; "buffered" is what survives a killed process but not a crash of the machine. None of them
checks what it reads, and ``lmdb, bare pairs`` shows how much of lmdb's time the entries take.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable
from typing import Any, Self

from _contestants import Append, AsyncPeer, Floor, HandOver, Maker, Ours, OursBlocking, Peer
from hqlwal_raft import Entry

__all__ = ["ASYNC_PEERS", "PEERS", "Aiosqlite", "Plyvel", "make"]

_KEY = struct.Struct(">Q")
#: term and node id, which key-value stores keep in front of the payload
_HEAD = struct.Struct(">QQ")
_HEAD_BYTES = _HEAD.size


def _pairs(entries: list[Entry]) -> list[tuple[bytes, bytes]]:
    key, head = _KEY.pack, _HEAD.pack
    return [
        (key(index), head(term, node_id) + payload) for term, index, payload, node_id in entries
    ]


def _entries(values: Iterable[bytes], first: int) -> list[Entry]:
    unpack, new = _HEAD.unpack_from, tuple.__new__
    entries = []
    for index, value in enumerate(values, first):
        term, node_id = unpack(value)
        # as fast as a named tuple can be made
        entries.append(new(Entry, (term, index, value[_HEAD_BYTES:], node_id)))
    return entries


_CREATE = (
    "CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, term INTEGER, node INTEGER, data BLOB)"
)
_INSERT = "INSERT INTO log (term, id, data, node) VALUES (?, ?, ?, ?)"
_SELECT = "SELECT term, id, data, node FROM log"


class Sqlite(Peer):
    name = "sqlite3"
    needs = "sqlite3"

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        import sqlite3

        self._base = sqlite3.connect(
            os.path.join(path, "log.sqlite"), isolation_level=None, check_same_thread=False
        )
        run = self._base.execute
        run("PRAGMA journal_mode=WAL")
        run(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        run(_CREATE)

    def append(self, entries: list[Entry]) -> None:
        run = self._base.execute
        if len(entries) == 1:
            term, index, payload, node_id = entries[0]
            run(_INSERT, (term, index, payload, node_id))
            return
        run("BEGIN")
        self._base.executemany(_INSERT, entries)
        run("COMMIT")

    def last(self) -> int:
        return int(self._base.execute("SELECT max(id) FROM log").fetchone()[0] or 0)

    def read(self, start: int, stop: int) -> list[Any]:
        rows = self._base.execute(f"{_SELECT} WHERE id >= ? AND id < ? ORDER BY id", (start, stop))
        new = tuple.__new__
        return [new(Entry, row) for row in rows]

    def read_one(self, index: int) -> Any:
        row = self._base.execute(f"{_SELECT} WHERE id = ?", (index,)).fetchone()
        return tuple.__new__(Entry, row)

    def purge(self, through: int) -> None:
        self._base.execute("DELETE FROM log WHERE id <= ?", (through,))

    def truncate(self, start: int) -> None:
        self._base.execute("DELETE FROM log WHERE id >= ?", (start,))

    def sync(self) -> None:
        self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._base.close()


class Lmdb(Peer):
    name = "lmdb"
    needs = "lmdb"

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        import lmdb

        self._base = lmdb.open(path, map_size=8 << 30, sync=durable, metasync=durable)

    def append(self, entries: list[Entry]) -> None:
        self._put(_pairs(entries))

    def _put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._base.begin(write=True) as change:
            if len(pairs) == 1:
                change.put(*pairs[0], append=True)
            else:
                change.cursor().putmulti(pairs, append=True)

    def last(self) -> int:
        with self._base.begin() as view:
            cursor = view.cursor()
            return int(_KEY.unpack(cursor.key())[0]) if cursor.last() else 0

    def read(self, start: int, stop: int) -> list[Any]:
        with self._base.begin() as view:
            cursor = view.cursor()
            if not cursor.set_range(_KEY.pack(start)):
                return []
            values = cursor.iternext(keys=False)
            return _entries(itertools.islice(values, stop - start), start)

    def read_one(self, index: int) -> Any:
        with self._base.begin() as view:
            value: Any = view.get(_KEY.pack(index))
        return _entries([value], index)[0]

    def purge(self, through: int) -> None:
        with self._base.begin(write=True) as change:
            cursor = change.cursor()
            found = cursor.first()
            while found and _KEY.unpack(cursor.key())[0] <= through:
                found = cursor.delete()
        self.sync()

    def truncate(self, start: int) -> None:
        with self._base.begin(write=True) as change:
            cursor = change.cursor()
            found = cursor.set_range(_KEY.pack(start))
            while found:
                found = cursor.delete()
        self.sync()

    def sync(self) -> None:
        self._base.sync(True)

    def close(self) -> None:
        self._base.close()


class BareLmdb(Lmdb):
    """What lmdb itself takes: a key and a payload, neither term nor entry in or out."""

    name = "lmdb, bare pairs"
    is_bare = True

    @staticmethod
    def maker(payload: bytes, batch: int) -> Maker:
        key = _KEY.pack
        return lambda first: [(key(index), payload) for index in range(first, first + batch)]

    def appender(self, payload: bytes, batch: int) -> Append:
        return self._put

    def read(self, start: int, stop: int) -> list[Any]:
        with self._base.begin() as view:
            cursor = view.cursor()
            if not cursor.set_range(_KEY.pack(start)):
                return []
            return list(itertools.islice(cursor.iternext(), stop - start))

    def read_one(self, index: int) -> Any:
        with self._base.begin() as view:
            return view.get(_KEY.pack(index))


class Plyvel(Peer):
    name = "plyvel"
    needs = "plyvel"

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        import plyvel

        self._base = plyvel.DB(path, create_if_missing=True)

    def append(self, entries: list[Entry]) -> None:
        pairs = _pairs(entries)
        if len(pairs) == 1:
            self._base.put(*pairs[0], sync=self.durable)
            return
        with self._base.write_batch(sync=self.durable) as changes:
            put = changes.put
            for key, value in pairs:
                put(key, value)

    def last(self) -> int:
        for key in self._base.iterator(reverse=True, include_value=False):
            return int(_KEY.unpack(key)[0])
        return 0

    def read(self, start: int, stop: int) -> list[Any]:
        values = self._base.iterator(
            start=_KEY.pack(start), stop=_KEY.pack(stop), include_key=False
        )
        return _entries(values, start)

    def read_one(self, index: int) -> Any:
        return _entries([self._base.get(_KEY.pack(index))], index)[0]

    def _delete(self, **bounds: bytes) -> None:
        with self._base.write_batch(sync=True) as changes:
            for key in self._base.iterator(include_value=False, **bounds):
                changes.delete(key)

    def purge(self, through: int) -> None:
        self._delete(stop=_KEY.pack(through + 1))

    def truncate(self, start: int) -> None:
        self._delete(start=_KEY.pack(start))

    def sync(self) -> None:
        with self._base.write_batch(sync=True) as changes:
            changes.put(b"", b"")
            changes.delete(b"")

    def close(self) -> None:
        self._base.close()


class Rocksdict(Peer):
    # RocksDB groups threads too, but this binding holds the GIL while it writes
    name = "rocksdict"
    needs = "rocksdict"

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        import rocksdict

        self._module = rocksdict
        self._base = rocksdict.Rdict(path, rocksdict.Options(raw_mode=True))
        self._family = self._base.get_column_family_handle("default")
        self._base.set_write_options(self._options(sync=durable))

    def _options(self, *, sync: bool) -> Any:
        options = self._module.WriteOptions()
        options.sync = sync
        return options

    def _batch(self) -> Any:
        batch = self._module.WriteBatch(raw_mode=True)
        batch.set_default_column_family(self._family)
        return batch

    def append(self, entries: list[Entry]) -> None:
        pairs = _pairs(entries)
        if len(pairs) == 1:
            self._base.put(*pairs[0])
            return
        changes = self._batch()
        put = changes.put
        for key, value in pairs:
            put(key, value)
        self._base.write(changes)

    def last(self) -> int:
        key: Any
        for key in self._base.keys(backwards=True):
            return int(_KEY.unpack(key)[0])
        return 0

    def read(self, start: int, stop: int) -> list[Any]:
        values: Any = self._base.values(from_key=_KEY.pack(start))
        return _entries(itertools.islice(values, stop - start), start)

    def read_one(self, index: int) -> Any:
        value: Any = self._base.get(_KEY.pack(index))
        return _entries([value], index)[0]

    def _delete(self, start: int, stop: int) -> None:
        changes = self._batch()
        changes.delete_range(_KEY.pack(start), _KEY.pack(stop))
        self._base.write(changes, self._options(sync=True))

    def purge(self, through: int) -> None:
        self._delete(0, through + 1)

    def truncate(self, start: int) -> None:
        self._delete(start, (1 << 64) - 1)

    def sync(self) -> None:
        self._base.flush_wal(True)

    def close(self) -> None:
        del self._family  # it would keep the directory's lock
        self._base.close()


class FileJournal(Peer):
    """pysyncobj's own journal; durable by a flush per call. Keeps the log in memory too,
    and gives out what it keeps there.
    """

    name = "FileJournal"
    needs = "pysyncobj"

    def __init__(self, path: str, *, durable: bool) -> None:
        super().__init__(path, durable=durable)
        from pysyncobj.journal import FileJournal as StockJournal

        self._base = StockJournal(os.path.join(path, "journal"))

    def append(self, entries: list[Entry]) -> None:
        add = self._base.add
        for term, index, payload, _ in entries:
            add(payload, index, term)
        if self.durable:
            self._base.flush()

    def last(self) -> int:
        return int(self._base[-1][1]) if len(self._base) else 0

    def read(self, start: int, stop: int) -> list[Any]:
        first = self._base[0][1]
        return list(self._base[start - first : stop - first])

    def read_one(self, index: int) -> Any:
        return self._base[index - self._base[0][1]]

    def purge(self, through: int) -> None:
        self._base.deleteEntriesTo(through + 1 - self._base[0][1])
        self._base.flush()

    def truncate(self, start: int) -> None:
        self._base.deleteEntriesFrom(start - self._base[0][1])
        self._base.flush()

    def sync(self) -> None:
        self._base.flush()

    def close(self) -> None:
        self._base._destroy()


class Aiosqlite(AsyncPeer):
    name = "aiosqlite"
    needs = "aiosqlite"

    async def __aenter__(self) -> Self:
        import aiosqlite

        os.makedirs(self.path, exist_ok=True)
        self._base = await aiosqlite.connect(
            os.path.join(self.path, "log.sqlite"), isolation_level=None
        )
        run = self._base.execute
        await run("PRAGMA journal_mode=WAL")
        await run(f"PRAGMA synchronous={'FULL' if self.durable else 'NORMAL'}")
        await run(_CREATE)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._base.close()

    async def append(self, entries: list[Entry]) -> None:
        run = self._base.execute
        if len(entries) == 1:
            await run(_INSERT, tuple(entries[0]))
            return
        await run("BEGIN")
        await self._base.executemany(_INSERT, entries)
        await run("COMMIT")


PEERS: tuple[type[Peer], ...] = (Floor, Sqlite, Lmdb, BareLmdb, Plyvel, Rocksdict, FileJournal)
ASYNC_PEERS: tuple[type[AsyncPeer], ...] = (HandOver, Ours, Aiosqlite)


def make(name: str) -> type[Peer]:
    """The synchronous face of a contestant, ours included."""
    every: tuple[type[Peer], ...] = (*PEERS, OursBlocking)
    return next(peer for peer in every if peer.name == name)
