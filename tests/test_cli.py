"""The ``hqlwal`` command: what it shows, what it changes, how it ends."""

from __future__ import annotations

import itertools
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result
from crc32c import crc32c
from pysyncobj.journal import FileJournal

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote
from hqlwal_raft._format import pack_slot, unpack_slot
from hqlwal_raft.cli._commands import hqlwal
from hqlwal_raft.snapshots import BlockingSnapshotStore
from tests._support import start_python

#: 41 records of 8 + payload fit a segment
SEGMENT_SIZE = 8192


def run(*arguments: object, answer: str | None = None) -> Result:
    return CliRunner().invoke(hqlwal, [str(a) for a in arguments], input=answer)


def run_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def corrupt(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
async def store(tmp_path: Path) -> Path:
    """Entries 1 to 400, purged up to 20, in three segments; the last is the tail."""
    directory = tmp_path / "log"
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE) as storage:
        await storage.save_vote(Vote(term=2, node_id="b", committed=True))
        for first in range(1, 401, 40):
            await storage.append(
                [Entry(1 + first // 200, i, b"payload %d" % i, 7) for i in range(first, first + 40)]
            )
        await storage.save_committed(LogId(2, 390, 7))
        await storage.purge(LogId(1, 20, 7))
    return directory


async def test_info_shows_what_an_open_would_find(store: Path) -> None:
    report = run_json("info", store)
    async with RaftLogStorage.open(store, segment_size=SEGMENT_SIZE) as storage:
        state = await storage.get_log_state()
        entries = await storage.try_get_log_entries(0)
        assert state.last_log_id is not None
        assert report["last_index"] == state.last_log_id.index == 400
        assert report["first_index"] == entries[0].index == 21
        assert report["entries"] == len(entries) == 380
        assert report["segments"] == storage.statistics().segments
        assert report["committed"] == {"term": 2, "index": 390, "node_id": 7}
        assert report["last_purged_log_id"] == {"term": 1, "index": 20, "node_id": 7}
        assert report["vote"] == {"term": 2, "node_id": "b", "committed": True}


async def test_info_says_who_holds_the_store(store: Path) -> None:
    import os

    assert run_json("info", store)["lock"] == "closed"
    async with RaftLogStorage.open(store):
        assert run_json("info", store)["lock"] == f"in use by process {os.getpid()}"
    (store / "lock.hql").write_bytes(b"%d\n" % 2**22)  # beyond the largest process number
    assert run_json("info", store)["lock"] == "not closed cleanly"


@pytest.mark.parametrize("command", ["info", "segments", "verify", "dump"])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["table", "json"])
def test_a_reading_command_changes_nothing(store: Path, command: str, as_json: list[str]) -> None:
    before = contents(store)
    assert run(command, store, *as_json).exit_code == 0
    corrupt(store / "0000000000000001.wal", 300)
    before["0000000000000001.wal"] = (store / "0000000000000001.wal").read_bytes()
    run(command, store, *as_json)
    assert contents(store) == before


def test_segments_lists_the_files_in_order_without_a_gap(store: Path) -> None:
    lines = run_json("segments", store)
    used = [line for line in lines if line["state"] in ("sealed", "tail")]
    assert [line["state"] for line in used] == ["sealed"] * (len(used) - 1) + ["tail"]
    assert used[0]["first_id"] == 1
    assert used[-1]["last_id"] == 400
    for line, following in itertools.pairwise(used):
        assert following["first_id"] == line["last_id"] + 1
    table = run("segments", store).stdout
    for line in lines:
        assert f"{line['number']:016d}" in table


def test_dump_prints_the_records_asked_for(store: Path) -> None:
    items = [json.loads(line) for line in run("dump", store, "--json").stdout.splitlines()]
    assert [item["index"] for item in items] == list(range(21, 401))
    items = [
        json.loads(line)
        for line in run(
            "dump", store, "--from", 5, "--to", 30, "--purged", "--json"
        ).stdout.splitlines()
    ]
    assert [item["index"] for item in items] == list(range(5, 31))
    for item in items:
        data = (store / f"{item['segment']:016d}.wal").read_bytes()
        assert struct.unpack_from(">Q", data, item["offset"]) == (item["index"],)
        assert bytes.fromhex(item["payload"]) == b"payload %d" % item["index"]


def test_dump_goes_on_behind_the_damage_and_says_where_it_is(store: Path) -> None:
    corrupt(store / "0000000000000001.wal", 2000)
    lines = run("dump", store).stdout.splitlines()
    position = next(i for i, line in enumerate(lines) if line.startswith("-- damage"))
    before = int(re.findall(r"index (\d+)", lines[position - 1])[0])
    behind = int(re.findall(r"index (\d+)", lines[position + 1])[0])
    assert behind == before + 2
    shown = [int(index) for line in lines for index in re.findall(r" index (\d+) ", line)]
    assert shown == [index for index in range(21, 401) if index != before + 1]


def test_get_writes_the_payload_as_it_is(store: Path) -> None:
    assert run("get", store, 321, "--raw").stdout_bytes == b"payload 321"
    assert run_json("get", store, 321)["term"] == 2


def test_get_says_what_the_log_holds_instead(store: Path) -> None:
    for index in (20, 401):
        result = run("get", store, index)
        assert result.exit_code == 1
        assert f"entry {index}" in result.stderr
        assert "21 to 400" in result.stderr


def test_verify_tells_intact_torn_and_damaged_apart_by_the_exit_code(store: Path) -> None:
    assert run("verify", store).exit_code == 0
    tail = next(s for s in run_json("segments", store) if s["state"] == "tail")
    path = Path(tail["path"])
    with path.open("r+b") as file:
        file.seek(tail["end"])
        file.write(b"half a record")
    torn = run("verify", store, "--json")
    assert torn.exit_code == 3
    assert json.loads(torn.stdout)["verdict"] == "torn"
    corrupt(path, tail["end"] - 1)
    damaged = run("verify", store, "--json")
    assert damaged.exit_code == 4
    assert json.loads(damaged.stdout)["findings"][0]["last_id"] == 400


def test_verify_finds_damage_in_a_sealed_segment_which_info_does_not_read(store: Path) -> None:
    corrupt(store / "0000000000000001.wal", 2000)
    assert run("info", store).exit_code == 0
    assert run("verify", store).exit_code == 4


def of_version(store: Path, version: int) -> None:
    """Makes of every file one that an earlier format's writer could have written."""
    for path in store.glob("*.wal"):
        data = bytearray(path.read_bytes())
        data[7] = version
        data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "big")
        path.write_bytes(data)
    meta = store / "meta.hql"
    data = bytearray(meta.read_bytes())
    data[7] = data[4096 + 7] = version
    meta.write_bytes(data)


@pytest.mark.parametrize(("version", "writer"), [(1, "hiqlite-wal"), (2, "release candidate")])
def test_another_version_has_an_exit_code_of_its_own_and_its_writer_is_named(
    store: Path, version: int, writer: str
) -> None:
    of_version(store, version)
    before = contents(store)
    result = run("info", store, "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["verdict"] == "unknown version"
    commands = (["verify"], ["dump"], ["get", 30], ["stats"], ["repair", "--yes"])
    for command, *rest in commands:
        result = run(command, store, *rest)
        assert result.exit_code == 5, command
        assert writer in result.output
    assert contents(store) == before


def make_backup(store: Path) -> None:
    """Sets the copy mark, in both slots."""
    meta = store / "meta.hql"
    data = bytearray(meta.read_bytes())
    found = unpack_slot(bytes(data[:4096]))
    assert isinstance(found, tuple)
    sequence, state = found
    data[:8192] = pack_slot(sequence + 1, replace(state, is_copy=True, state=b"mine")) * 2
    meta.write_bytes(data)


def test_a_backup_is_called_one_can_be_read_and_is_not_repaired(store: Path) -> None:
    make_backup(store)
    before = contents(store)
    result = run("info", store, "--json")
    assert result.exit_code == 6
    report = json.loads(result.stdout)
    assert (report["verdict"], report["is_copy"], report["state_bytes"]) == ("copy", True, 4)
    assert "a backup" in run("info", store).stdout
    assert run("get", store, 321, "--raw").stdout_bytes == b"payload 321"
    result = run("repair", store, "--yes")
    assert result.exit_code == 6
    assert "is a backup" in result.stderr
    assert contents(store) == before


async def test_repair_keeps_the_damaged_files_and_leaves_a_store_that_opens(store: Path) -> None:
    before = contents(store)
    corrupt(store / "0000000000000002.wal", 2000)
    damaged = (store / "0000000000000002.wal").read_bytes()
    assert run("repair", store, "--yes").exit_code == 0
    assert (store / "0000000000000002.wal.broken").read_bytes() == damaged
    assert run("verify", store).exit_code == 0
    async with RaftLogStorage.open(store, segment_size=SEGMENT_SIZE) as storage:
        entries = await storage.try_get_log_entries(0)
        last = entries[-1].index
        assert 21 < last < 400
        assert [e.payload for e in entries] == [b"payload %d" % i for i in range(21, last + 1)]
        assert await storage.read_vote() == Vote(term=2, node_id="b", committed=True)
        await storage.append([Entry(3, last + 1, b"new")])
    assert contents(store)["0000000000000001.wal"] == before["0000000000000001.wal"]


def test_repair_asks_first_and_changes_nothing_when_told_no(store: Path) -> None:
    corrupt(store / "0000000000000002.wal", 2000)
    before = contents(store)
    result = run("repair", store, answer="n\n")
    assert result.exit_code == 1
    assert contents(store) == before


def test_repair_leaves_an_intact_store_alone(store: Path) -> None:
    before = contents(store)
    assert run("repair", store, "--yes").exit_code == 0
    assert contents(store) == before


async def test_a_store_in_use_is_not_torn_and_repair_of_a_damaged_one_says_it_is_in_use(
    store: Path,
) -> None:
    async with RaftLogStorage.open(store, segment_size=SEGMENT_SIZE):
        tail = next(s for s in run_json("segments", store) if s["state"] == "tail")
        with Path(tail["path"]).open("r+b") as file:
            file.seek(tail["end"])
            file.write(b"half a record")
        result = await anyio.to_thread.run_sync(run, "verify", store)
        assert result.exit_code == 0
        assert "the store is in use" in result.stdout
        corrupt(Path(tail["path"]), 100)  # durable: it was sealed, or closed before
        for options in ([], ["--from", store]):
            result = await anyio.to_thread.run_sync(run, "repair", store, "--yes", *options)
            assert result.exit_code == 1
            assert "is in use" in result.stderr


WRITER = """
    import random, sys
    import anyio
    from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote

    async def main():
        rng = random.Random(1)
        async with RaftLogStorage.open(sys.argv[1], segment_size=8192) as store:
            print("open", flush=True)
            last = 0
            for term in range(2, 1 << 30):
                for _ in range(rng.randint(1, 9)):
                    some = range(last + 1, last + rng.randint(2, 30))
                    await store.append([Entry(term, i, b"x" * rng.randint(0, 900)) for i in some])
                    last = some[-1]
                await store.save_vote(Vote(term, 1))
                if rng.random() < 0.5:
                    last = max(last - rng.randint(1, 60), (await store.get_log_state())
                        .last_purged_log_id.index if term > 2 else 0)
                    await store.truncate(LogId(term, last + 1))
                if last > 3:
                    at = last - rng.choice((0, 3))
                    await store.purge(LogId(term, at))
                    last = max(at, last)

    anyio.run(main)
"""


def test_a_store_that_is_written_to_is_never_called_damaged(tmp_path: Path) -> None:
    store = tmp_path / "log"
    with start_python(WRITER, store) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "open\n"
            for _ in range(40):
                for command in ("info", "segments", "verify"):
                    result = run(command, store, "--json")
                    assert result.exit_code == 0, result.output
                    if command == "info":
                        assert (
                            json.loads(result.stdout)["lock"] == f"in use by process {writer.pid}"
                        )
                assert "damage" not in run("dump", store).stdout
            assert writer.poll() is None, "it failed"
        finally:
            writer.kill()
    assert run("info", store).exit_code in (0, 3)
    assert run_json("info", store)["lock"] == "not closed cleanly"


async def test_what_healing_set_aside_can_be_dumped(store: Path) -> None:
    corrupt(store / "0000000000000001.wal", 2000)
    damaged = next(s for s in run_json("segments", store) if s["number"] == 1)
    assert run("repair", store, "--yes").exit_code == 0
    last = run_json("info", store)["last_index"]
    items = [
        json.loads(line) for line in run("dump", store, "--broken", "--json").stdout.splitlines()
    ]
    found = {item["index"]: bytes.fromhex(item["payload"]) for item in items}
    assert found == {i: b"payload %d" % i for i in range(1, 401) if i != last + 1}
    assert {Path(item["path"]).name for item in items} >= {"0000000000000001.wal.broken"}
    some = run("dump", store, "--broken", "--from", damaged["last_id"], "--to", damaged["last_id"])
    assert len(some.stdout.splitlines()) == 1


async def peer_of(store: Path, directory: Path) -> None:
    """The same log with other salts, another purge frontier, and another vote."""
    async with RaftLogStorage.open(store, segment_size=SEGMENT_SIZE) as storage:
        entries = await storage.try_get_log_entries(0)
    async with RaftLogStorage.open(directory, segment_size=16384) as storage:
        await storage.append(entries)


@pytest.mark.parametrize("offset", [2000, 64 + 3, 64 + 8, 64 + 15])
async def test_repair_gives_damaged_records_back_from_a_peer_s_store(
    store: Path, tmp_path: Path, offset: int
) -> None:
    await peer_of(store, tmp_path / "peer")
    before = contents(store)
    corrupt(store / "0000000000000002.wal", offset)
    corrupt(store / "0000000000000003.wal", 500)
    assert run("verify", store).exit_code == 4
    for _ in range(2):  # it says one damage at a time
        result = run("repair", store, "--from", tmp_path / "peer", answer="n\n")
        assert "given back: 1 entries" in result.stdout, result.output
    assert result.exit_code == 0
    assert run("verify", store).exit_code == 0
    assert contents(store) == before


async def test_repair_takes_nothing_from_a_peer_that_is_not_proven(
    store: Path, tmp_path: Path
) -> None:
    async with RaftLogStorage.open(tmp_path / "other") as storage:
        await storage.append([Entry(9, i, b"payload %d" % i, 7) for i in range(1, 401)])
    corrupt(store / "0000000000000002.wal", 2000)
    before = contents(store)
    result = run("repair", store, "--from", tmp_path / "other", answer="n\n")
    assert "given back: 0 entries" in result.stdout
    assert result.exit_code == 1
    assert contents(store) == before


def test_sealed_segments_are_called_unchecked_until_they_were_checked(store: Path) -> None:
    assert "not checked" in run("info", store).stdout
    assert "sealed, unchecked" in run("segments", store).stdout
    lines = run_json("segments", store)
    assert {line["state"] for line in lines if not line["is_checked"]} == {"sealed"}
    report = run_json("verify", store)
    assert report["verdict"] == "intact"
    assert report["records"] == 400
    assert "every record was checked" in run("verify", store).stdout


@pytest.mark.parametrize("command", ["info", "segments", "verify", "dump", "repair"])
def test_what_is_no_store_is_an_error_of_one_line_that_names_the_path(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        result = run(command, tmp_path / name)
        assert result.exit_code == 1, result.output
        assert str(tmp_path / name) in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "missing").exists()


def test_help_names_every_command_and_the_exit_codes() -> None:
    text = run("--help").stdout
    for command in hqlwal.commands:
        assert command in text
    assert "Exit codes" in text


def test_stats_tells_the_leaders_and_the_sizes(store: Path) -> None:
    report = run_json("stats", store)
    assert report["entries"] == 380
    assert report["payload_bytes"] == sum(len(b"payload %d" % i) for i in range(21, 401))
    assert report["payload_min_bytes"] == 10
    assert report["payload_max_bytes"] == 11
    assert report["leaders"] == [
        {"term": 1, "node_id": 7, "first_index": 21, "last_index": 200},
        {"term": 2, "node_id": 7, "first_index": 201, "last_index": 400},
    ]
    assert "payloads" in run("stats", store).stdout


def test_bench_writes_what_it_says_and_removes_it(tmp_path: Path) -> None:
    report = run_json("bench", tmp_path, "--entries", 300, "--size", 10, "--tasks", 8)
    assert report["entries"] == 300
    assert report["syncs"] * report["entries_per_sync"] == pytest.approx(300)
    assert "entries/s" in run("bench", tmp_path, "--entries", 10).stdout
    assert list(tmp_path.iterdir()) == []


def test_bench_refuses_an_unknown_sync_policy(tmp_path: Path) -> None:
    result = run("bench", tmp_path, "--sync", "sometimes")
    assert result.exit_code == 2
    assert "interval_N" in result.stderr


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A file as pysyncobj writes it: entries 5 to 104 of terms 3 and 4, and a .meta."""
    path = tmp_path / "counter.journal"
    stock = FileJournal(str(path))
    for index in range(5, 105):
        stock.add(b"command %d" % index, index, 3 + index // 50)
    stock.setCurrentTerm(7, "10.0.0.2:4321")
    stock.setRaftCommitIndex(90)
    stock.onOneSecondTimer()
    stock._destroy()
    return path


async def test_import_brings_over_entries_term_vote_and_commit_index(
    journal: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "new"
    before = journal.read_bytes()
    result = await anyio.to_thread.run_sync(run, "import-pysyncobj", journal, directory, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["entries"], report["first_index"], report["last_index"]) == (100, 5, 104)
    assert (report["term"], report["commit_index"], report["lost"]) == (7, 90, [])
    async with RaftLogStorage.open(directory) as storage:
        assert await storage.try_get_log_entries(0) == [
            Entry(3 + i // 50, i, b"command %d" % i) for i in range(5, 105)
        ]
        vote = await storage.read_vote()
        assert vote is not None
        assert (vote.term, vote.node_id) == (7, "10.0.0.2:4321")
        committed = await storage.read_committed()
        assert committed is not None
        assert committed.index == 90
    assert journal.read_bytes() == before


def test_import_of_a_damaged_journal_says_what_can_be_saved_and_does_it_when_asked(
    journal: Path, tmp_path: Path
) -> None:
    data = bytearray(journal.read_bytes())
    position = data.index(b"command 60") - 20  # the size in front of index and term
    data[position : position + 4] = b"\xff\xff\xff\x7f"
    journal.write_bytes(data)
    refused = run("import-pysyncobj", journal, tmp_path / "new")
    assert refused.exit_code == 1
    assert "--prefix-only" in refused.stderr
    assert str(journal) in refused.stderr
    assert not (tmp_path / "new").exists()
    done = run("import-pysyncobj", journal, tmp_path / "new", "--prefix-only")
    assert done.exit_code == 0
    assert "lost" in done.stdout
    assert run_json("info", tmp_path / "new")["last_index"] == 59


def test_import_in_place_and_export_lead_there_and_back(journal: Path, tmp_path: Path) -> None:
    before = journal.read_bytes()
    there = run("import-pysyncobj", "--in-place", journal)
    assert there.exit_code == 0, there.output
    assert run_json("info", journal)["last_index"] == 104
    assert Path(f"{journal}.stock").read_bytes() == before
    back = run("export-pysyncobj", "--in-place", journal)
    assert back.exit_code == 0, back.output
    assert "100 entries" in back.stdout
    assert run("import-pysyncobj", journal, tmp_path / "again").exit_code == 0
    assert run_json("info", tmp_path / "again")["last_index"] == 104
    aside = run("export-pysyncobj", tmp_path / "again", tmp_path / "aside")
    assert aside.exit_code == 0, aside.output
    assert (tmp_path / "aside").is_file()
    refused = run(
        *("export-pysyncobj", tmp_path / "again", tmp_path / "other"),
        *("--dump", tmp_path / "no-dump"),
    )
    assert refused.exit_code == 1
    assert "no-dump" in refused.stderr


def test_import_and_export_want_either_a_target_or_in_place(journal: Path, tmp_path: Path) -> None:
    for command in ("import-pysyncobj", "export-pysyncobj"):
        for arguments in ([journal], [journal, tmp_path / "new", "--in-place"]):
            result = run(command, *arguments)
            assert result.exit_code == 2
            assert "--in-place" in result.stderr


def test_import_overwrites_nothing(journal: Path, store: Path) -> None:
    before = contents(store)
    result = run("import-pysyncobj", journal, store)
    assert result.exit_code == 1
    assert "not overwritten" in result.stderr
    assert contents(store) == before


def test_import_of_what_is_no_journal_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some text that is no journal, but long enough to be one")
    for name in ("text", "missing"):
        result = run("import-pysyncobj", tmp_path / name, tmp_path / "new")
        assert result.exit_code == 1
        assert str(tmp_path / name) in result.stderr
        assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


# --- snapshots -----------------------------------------------------------------------------


def test_verify_checks_a_directory_of_snapshots(tmp_path: Path) -> None:
    with BlockingSnapshotStore.open(tmp_path) as snapshots:
        for index in (1, 2):
            with snapshots.create(LogId(3, index, 7)) as writer:
                writer.write(b"state")
        newest = snapshots.latest()
        assert newest is not None
    shown = run("verify", tmp_path)
    assert shown.exit_code == 0
    assert "2 snapshots" in shown.stdout
    assert "intact" in shown.stdout
    report = run_json("verify", tmp_path)
    assert report["snapshots"][-1]["log_id"] == {"term": 3, "index": 2, "node_id": 7}
    corrupt(Path(newest.path), 66)
    shown = run("verify", tmp_path)
    assert shown.exit_code == 4
    assert "1 snapshots" in shown.stdout
    assert run_json("verify", tmp_path)["findings"][0]["kind"] == "damage"


def test_verify_of_a_directory_without_either_says_so(tmp_path: Path) -> None:
    shown = run("verify", tmp_path)
    assert shown.exit_code == 1
    assert "holds no store" in shown.stderr
