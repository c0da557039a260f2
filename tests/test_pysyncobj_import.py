"""Journals of pysyncobj's own brought over into WAL directories."""

from __future__ import annotations

import ctypes
import gzip
import os
import pickle
import shutil
import struct
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import pytest
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal

from hqlwal_raft import WalLockedError
from hqlwal_raft.pysyncobj import (
    StockJournalDamagedError,
    WalJournal,
    WalSyncObj,
    _moving,
    export_file_journal,
    export_in_place,
    import_file_journal,
    import_in_place,
)
from tests.pysyncobj_nodes.cluster import free_addresses, stop, wait_until
from tests.pysyncobj_nodes.fed import Counter, Fed, StockCounter

# pysyncobj's own journal leaves its .meta open to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

HEADER, SIZE = 40, 4


def command(index: int) -> bytes:
    return b"command %d" % index * (index % 7)


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A stock journal: entries 1 to 50 of terms 0 to 5, term 6, a vote, commit index 40."""
    path = tmp_path / "stock"
    journal = FileJournal(str(path))
    for index in range(1, 51):
        journal.add(command(index), index, index // 10)
    journal.setRaftCommitIndex(40)
    journal.setCurrentTerm(6, "host:1")
    journal._destroy()
    return path


def records(data: bytes) -> list[int]:
    """Where each record of a stock journal begins, and where the last ends."""
    end = struct.unpack_from("<I", data, 36)[0]
    offsets = [HEADER]
    while offsets[-1] < end:
        offsets.append(offsets[-1] + struct.unpack_from("<I", data, offsets[-1])[0] + 2 * SIZE)
    return offsets


def imported(directory: Path) -> dict[str, Any]:
    journal = WalJournal(directory)
    found = {
        "entries": list(journal),
        "term": journal.getCurrentTerm(),
        "vote": journal.getVotedForNodeId(),
        "commit": journal.getRaftCommitIndex(),
    }
    journal._destroy()
    return found


def test_everything_comes_over(stock: Path, tmp_path: Path) -> None:
    before = stock.read_bytes()
    told: list[tuple[int, int]] = []
    report = import_file_journal(
        stock, tmp_path / "deep" / "wal", progress=lambda *now: told.append(now)
    )
    assert imported(tmp_path / "deep" / "wal") == {
        "entries": [(command(index), index, index // 10) for index in range(1, 51)],
        "term": 6,
        "vote": "host:1",
        "commit": 40,
    }
    assert (report.entries, report.first_index, report.last_index) == (50, 1, 50)
    assert (report.term, report.voted_for, report.commit_index) == (6, "host:1", 40)
    assert report.lost == ()
    assert told[-1][0] == told[-1][1] == records(before)[-1]
    assert stock.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["deep", "stock", "stock.meta"]


def test_a_compacted_journal_begins_where_it_began(stock: Path, tmp_path: Path) -> None:
    journal = FileJournal(str(stock))
    journal.deleteEntriesTo(30)
    journal._destroy()
    import_file_journal(stock, tmp_path / "wal")
    assert [e[1] for e in imported(tmp_path / "wal")["entries"]] == list(range(31, 51))


def test_an_empty_journal_comes_over_empty(tmp_path: Path) -> None:
    FileJournal(str(tmp_path / "stock"))._destroy()
    report = import_file_journal(tmp_path / "stock", tmp_path / "wal")
    assert (report.entries, report.first_index, report.term) == (0, None, 0)
    assert imported(tmp_path / "wal")["entries"] == []


def test_a_term_older_than_the_last_entry_is_raised_to_it(stock: Path, tmp_path: Path) -> None:
    Path(f"{stock}.meta").write_bytes(pickle.dumps({"raftCommitIndex": 99}))
    report = import_file_journal(stock, tmp_path / "wal")
    assert (report.term, report.voted_for, report.commit_index) == (5, None, 50)


@pytest.mark.parametrize("kind", ["file", "full directory", "dangling link"])
def test_nothing_is_overwritten(stock: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "wal"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        import_file_journal(stock, target)
    assert kind != "file" or target.read_text() == "mine"
    assert kind != "full directory" or os.listdir(target) == ["mine"]


def test_an_empty_directory_is_filled(stock: Path, tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    assert import_file_journal(stock, tmp_path / "wal").entries == 50


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(ValueError, match="no journal file"):
        import_file_journal(tmp_path / "other", tmp_path / "wal")
    with pytest.raises(FileNotFoundError):
        import_file_journal(tmp_path / "nothing", tmp_path / "wal")
    assert not (tmp_path / "wal").exists()


def damaged_at(data: bytearray, record: int, kind: str) -> None:
    """Damages the record of that number, counted from 0, in one of the ways there are."""
    offsets = records(bytes(data))
    begin, end = offsets[record], offsets[record + 1]
    match kind:
        case "length":
            data[begin] ^= 1
        case "huge length":
            data[begin + 3] = 0xFF
        case "second length":
            data[end - SIZE] ^= 1
        case "index":
            data[begin + SIZE] ^= 4
        case "term":
            data[begin + SIZE + 8] = 0 if record >= 10 else 200
        case "term too late":
            data[begin + SIZE + 8 + 5] ^= 0x40
        case "cut":
            del data[end - 2 :]
        case "zeros":
            data[begin:end] = bytes(end - begin)
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    ["length", "huge length", "second length", "index", "term", "term too late", "cut", "zeros"],
)
def test_damage_is_refused_and_the_healthy_prefix_comes_over_when_asked_for(
    stock: Path, tmp_path: Path, kind: str
) -> None:
    data = bytearray(stock.read_bytes())
    offset = records(bytes(data))[20]
    damaged_at(data, 20, kind)
    stock.write_bytes(data)
    with pytest.raises(StockJournalDamagedError, match="20 entries, the last 20") as caught:
        import_file_journal(stock, tmp_path / "wal")
    assert (caught.value.path, caught.value.offset) == (str(stock), offset)
    assert not (tmp_path / "wal").exists()
    assert sorted(os.listdir(tmp_path)) == ["stock", "stock.meta"]

    report = import_file_journal(stock, tmp_path / "wal", prefix_only=True)
    assert (report.entries, report.last_index, report.commit_index) == (20, 20, 20)
    assert len(report.lost) == 1
    assert "entry 20" in report.lost[0]
    assert [e[1] for e in imported(tmp_path / "wal")["entries"]] == list(range(1, 21))


def test_an_entry_of_a_later_term_than_the_current_one_is_damage_though_it_is_the_last(
    stock: Path, tmp_path: Path
) -> None:
    data = bytearray(stock.read_bytes())
    damaged_at(data, 49, "term too late")
    stock.write_bytes(data)
    with pytest.raises(StockJournalDamagedError, match="later than the current term 6"):
        import_file_journal(stock, tmp_path / "wal")
    report = import_file_journal(stock, tmp_path / "wal", prefix_only=True)
    assert (report.last_index, report.term, report.voted_for) == (49, 6, "host:1")


@pytest.mark.parametrize("size", [9, 20, 39])
def test_a_header_cut_short_is_damage(stock: Path, tmp_path: Path, size: int) -> None:
    stock.write_bytes(stock.read_bytes()[:size])
    with pytest.raises(StockJournalDamagedError, match="header"):
        import_file_journal(stock, tmp_path / "wal", prefix_only=True)


class Malice:
    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    "meta", [None, b"", b"garbage", pickle.dumps([1]), pickle.dumps({"currentTerm": Malice()})]
)
def test_a_lost_vote_is_refused_unless_asked_for(
    stock: Path, tmp_path: Path, meta: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if meta is None:
        os.unlink(f"{stock}.meta")
    else:
        Path(f"{stock}.meta").write_bytes(meta)
    with pytest.raises(StockJournalDamagedError, match="vote a second time"):
        import_file_journal(stock, tmp_path / "wal")
    report = import_file_journal(stock, tmp_path / "wal", prefix_only=True)
    assert (report.entries, report.term, report.voted_for) == (50, 5, None)
    assert "vote a second time" in report.lost[0]
    assert not (tmp_path / "owned").exists()


# --- in place, and back ----------------------------------------------------------------------

ALL = [(command(index), index, index // 10) for index in range(1, 51)]


@pytest.fixture(params=[True, False], ids=["names exchanged", "names moved one by one"])
def _exchanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:  # a file system, or a C library, that cannot

        class Library:
            def __init__(self, *_: Any, **__: Any) -> None: ...

        monkeypatch.setattr(ctypes, "CDLL", Library)


@pytest.mark.usefixtures("_exchanging")
def test_in_place_the_store_takes_the_journals_name_and_the_stock_files_are_kept(
    stock: Path, tmp_path: Path
) -> None:
    before, meta = stock.read_bytes(), Path(f"{stock}.meta").read_bytes()
    report = import_in_place(stock)
    assert (report.entries, report.term) == (50, 6)
    assert sorted(os.listdir(tmp_path)) == ["stock", "stock.meta.stock", "stock.stock"]
    assert imported(stock) == {"entries": ALL, "term": 6, "vote": "host:1", "commit": 40}
    assert (tmp_path / "stock.stock").read_bytes() == before
    assert (tmp_path / "stock.meta.stock").read_bytes() == meta


@pytest.mark.parametrize("taken", ["stock.stock", "stock.meta.stock"])
def test_in_place_nothing_that_was_kept_before_is_overwritten(
    stock: Path, tmp_path: Path, taken: str
) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FileExistsError, match=taken):
        import_in_place(stock)
    assert sorted(os.listdir(tmp_path)) == sorted(["stock", "stock.meta", taken])


def test_a_damaged_journal_keeps_its_place(stock: Path, tmp_path: Path) -> None:
    data = bytearray(stock.read_bytes())
    damaged_at(data, 20, "length")
    stock.write_bytes(data)
    with pytest.raises(StockJournalDamagedError):
        import_in_place(stock)
    assert stock.read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["stock", "stock.meta"]


@pytest.mark.usefixtures("_exchanging")
def test_a_store_becomes_a_stock_journal_again(stock: Path, tmp_path: Path) -> None:
    before = stock.read_bytes()
    import_in_place(stock)
    journal = WalJournal(stock)
    journal.add(b"later", 51, 6)
    journal.setCurrentTerm(7, "host:2")
    journal._destroy()
    assert export_in_place(stock) == 51
    assert sorted(os.listdir(tmp_path)) == [
        *("stock", "stock.meta", "stock.meta.stock", "stock.stock", "stock.wal"),
    ]
    back = FileJournal(str(stock))
    assert back[:] == [*ALL, (b"later", 51, 6)]
    assert (back.getCurrentTerm(), back.getVotedForNodeId()) == (7, "host:2")
    assert back.getRaftCommitIndex() == 40
    back._destroy()
    end = records(before)[-1]
    assert stock.read_bytes()[HEADER:end] == before[HEADER:end]


class Keeper(Counter):
    """With values in its dump that are no plain ones."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kept = [Path("a"), {1, 2}, OrderedDict(a=b"b"), deque([3]), b"\xff"]


class StockKeeper(StockCounter):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kept: Any = None


def test_what_follows_the_dump_is_not_lost_on_the_way_back_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(tmp_path, monkeypatch, base=Keeper)
    fed.tick()
    fed.grow(120)
    fed.feed(1, 121, 101)
    fed.node.destroy()
    shutil.copytree(tmp_path / "log", tmp_path / "unpurged")
    fed.start()
    fed.tick()
    fed.feed(121, 121, 101)
    fed.compact()
    fed.node.destroy()
    shutil.rmtree(tmp_path / "log")
    ends = []
    for dump in (None, tmp_path / "dump"):
        # killed after the dump was in its place, and before the log was purged
        export_file_journal(tmp_path / "unpurged", tmp_path / "log", dump=dump)
        fed._base = StockKeeper
        fed.start()
        fed.tick()
        assert fed.applied == 101
        ends.append(fed.node._SyncObj__raftLog[-1][1])
        fed.node.destroy()
        for name in ("log", "log.meta"):
            (tmp_path / name).unlink()
    assert ends == [101, 121]


def test_an_export_wants_a_dump_that_pysyncobj_wrote(stock: Path, tmp_path: Path) -> None:
    import_in_place(stock)
    with pytest.raises(FileNotFoundError):
        export_in_place(stock, dump=tmp_path / "dump")
    for content in (b"", b"text", gzip.compress(b"no pickle"), gzip.compress(pickle.dumps((1, 2)))):
        (tmp_path / "dump").write_bytes(content)
        with pytest.raises(ValueError, match="no dump"):
            export_in_place(stock, dump=tmp_path / "dump")
    assert stock.is_dir()


def test_an_export_overwrites_nothing_and_needs_a_store(stock: Path, tmp_path: Path) -> None:
    import_file_journal(stock, tmp_path / "wal")
    for taken in ("back", "back.meta"):
        (tmp_path / taken).write_text("mine")
        with pytest.raises(FileExistsError, match=taken):
            export_file_journal(tmp_path / "wal", tmp_path / "back")
        (tmp_path / taken).unlink()
    with pytest.raises(FileNotFoundError, match="no WAL directory"):
        export_file_journal(tmp_path / "nothing", tmp_path / "back")
    assert not (tmp_path / "nothing").exists()


def test_a_log_too_large_for_a_stock_journal_is_not_exported(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_file_journal(stock, tmp_path / "wal")
    monkeypatch.setattr(_moving, "_LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="compact its log"):
        export_file_journal(tmp_path / "wal", tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == ["stock", "stock.meta", "wal"]


def test_a_store_in_use_is_not_exported(stock: Path, tmp_path: Path) -> None:
    import_in_place(stock)
    journal = WalJournal(stock)
    with pytest.raises(WalLockedError):
        export_in_place(stock)
    journal._destroy()
    assert stock.is_dir()


class Stock(SyncObj):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.total = 0

    @replicated
    def plus(self, value: int) -> None:
        self.total += value


class Wal(WalSyncObj):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.total = 0

    @replicated
    def plus(self, value: int) -> None:
        self.total += value


def test_a_cluster_moves_over_node_by_node_with_its_dumps(tmp_path: Path) -> None:
    addresses = free_addresses(3)

    def make(kind: type, index: int, journal: str) -> Any:
        conf = SyncObjConf(
            journalFile=str(tmp_path / f"{index}.{journal}"),
            fullDumpFile=str(tmp_path / f"{index}.dump"),
            raftMinTimeout=0.3,
            raftMaxTimeout=0.6,
            appendEntriesPeriod=0.05,
            connectionRetryTime=0.1,
        )
        return kind(addresses[index], [a for a in addresses if a != addresses[index]], conf)

    nodes = [make(Stock, index, "journal") for index in range(3)]
    try:
        wait_until(lambda: all(node.isReady() for node in nodes), "ready")
        for value in range(30):
            nodes[0].plus(value)
        wait_until(lambda: all(node.total == 435 for node in nodes), "written")
        nodes[0].forceLogCompaction()
        wait_until(lambda: nodes[0]._getRaftLogSize() < 10, "compacted")
        for index in range(3):
            stop(nodes[index])
            import_file_journal(tmp_path / f"{index}.journal", tmp_path / f"{index}.wal")
            nodes[index] = make(Wal, index, "wal")
            wait_until(lambda: all(node.isReady() for node in nodes), "ready again")
            nodes[index].plus(1)
            total = 436 + index
            wait_until(lambda: {node.total for node in nodes} == {total}, "in step")  # noqa: B023
    finally:
        for node in nodes:
            stop(node)
