"""What the judgement says of meta.hql, versions, leftovers and odd files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hqlwal_raft._format import (
    DATA_START,
    LOCK_NAME,
    META_BYTES,
    META_NAME,
    SLOT_BYTES,
    U64_MAX,
    VERSION,
    MetaState,
    SegmentHeader,
    pack_slot,
    segment_name,
)
from hqlwal_raft._types import FindingKind, LogId
from hqlwal_raft.audit import Verdict, examine, salvage
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._audited import DAMAGE, LEFTOVER, ids, kinds, log_of_three, obstacle
from tests._directories import LENGTH, PATH, File, Store, group, meta

# --- first segment, leftovers ------------------------------------------------------------


def test_while_no_first_segment_is_named_all_segments_are_leftovers() -> None:
    store = Store(File(1, group(1, 4), marked=4), File(2, is_unused=True), meta_data=meta(0))
    store.flip(1, 3)
    report = store.examine()
    assert (kinds(report), report.verdict) == ({LEFTOVER}, Verdict.TORN)
    assert [s.number for s in report.judgement.leftovers] == [1, 2]


def test_segments_below_the_first_are_leftovers_whatever_they_hold() -> None:
    store = log_of_three()
    store.files[META_NAME] = bytearray(meta(3, 8))
    store.flip(1, 3)
    report = store.examine()
    assert (kinds(report), ids(report)) == ({LEFTOVER}, [9, 10, 11, 12])


def test_temporary_files_of_ours_are_leftovers_and_others_are_not() -> None:
    store = log_of_three()
    ours = ["meta.hql.tmp", segment_name(9) + ".tmp", segment_name(2) + ".broken.2.tmp"]
    for name in [*ours, "mine.tmp", "1.wal.tmp"]:
        store.files[name] = bytearray(b"x")
    report = store.examine()
    assert sorted(report.leftovers) == sorted(f"{PATH}/{name}" for name in ours)


# --- meta.hql ----------------------------------------------------------------------------


def test_segments_without_meta_are_damage_for_the_vote_is_missing() -> None:
    store = log_of_three()
    del store.files[META_NAME]
    report = store.examine()
    assert obstacle(report).kind is DAMAGE
    assert report.judgement.is_hopeless


def test_a_slot_that_lags_or_is_damaged_is_no_damage_but_both_are() -> None:
    newer = pack_slot(6, MetaState(LogId(1, 3, 9), None, 1))
    for offset in (0, SLOT_BYTES):
        store = log_of_three()
        store.files[META_NAME][offset : offset + SLOT_BYTES] = newer
        report = store.examine()
        assert report.first_obstacle is None
        assert report.meta is not None
        assert report.meta.stale_slots == (SLOT_BYTES - offset,)
        assert report.last_purged_log_id == LogId(1, 3, 9)
        store.files[META_NAME][offset + 30] ^= 1
        assert store.examine().last_purged_log_id is None
        store.files[META_NAME][SLOT_BYTES - offset + 30] ^= 1
        report = store.examine()
        assert (obstacle(report).kind, report.judgement.is_hopeless) == (DAMAGE, True)


def test_two_slots_of_one_sequence_that_differ_are_damage() -> None:
    store = log_of_three()
    store.files[META_NAME][:SLOT_BYTES] = pack_slot(5, MetaState(first_segment=1))
    assert obstacle(store.examine()).kind is DAMAGE


def test_a_forged_sequence_is_no_slot() -> None:
    store = log_of_three()
    store.files[META_NAME][:SLOT_BYTES] = pack_slot(U64_MAX, MetaState(first_segment=1))
    report = store.examine()
    assert report.meta is not None
    assert report.meta.sequence == 5


def test_a_short_meta_is_no_damage_while_one_slot_is_whole() -> None:
    for size in (SLOT_BYTES, SLOT_BYTES + 100, META_BYTES - 1):
        store = log_of_three()
        del store.files[META_NAME][size:]
        assert store.examine().first_obstacle is None
    for size in (0, 10, 50):
        store = log_of_three()
        del store.files[META_NAME][size:]
        assert obstacle(store.examine()).kind is DAMAGE


def test_a_copy_is_found_out() -> None:
    store = log_of_three()
    store.files[META_NAME] = bytearray(meta(1, is_copy=True))
    report = store.examine()
    assert (obstacle(report).kind, report.verdict) == (FindingKind.COPY, Verdict.COPY)
    assert ids(report) == list(range(1, 13))


# --- versions, odd files -----------------------------------------------------------------


@pytest.mark.parametrize(("version", "word"), [(1, "crate"), (2, "candidate"), (0x82, "another")])
def test_other_versions_are_refused_by_name(version: int, word: str) -> None:
    store = log_of_three()
    for offset in (7, SLOT_BYTES + 7):
        store.files[META_NAME][offset] = version
    finding = obstacle(store.examine())
    assert (finding.kind, finding.version) == (FindingKind.UNKNOWN_VERSION, version)
    assert word in finding.message
    # the crate's file is shorter than one slot
    del store.files[META_NAME][90:]
    assert obstacle(store.examine()).version == version


def test_a_segment_of_another_version_is_no_damage_of_ours() -> None:
    from crc32c import crc32c

    store = log_of_three()
    store[2][7] = 0x83
    store[2][60:64] = crc32c(bytes(store[2][:60])).to_bytes(4, "big")
    report = store.examine()
    assert (obstacle(report).kind, obstacle(report).version) == (FindingKind.UNKNOWN_VERSION, 0x83)
    assert report.verdict is Verdict.UNKNOWN_VERSION
    assert VERSION == 0x81


def test_a_short_file_is_damage_that_loses_only_what_is_missing() -> None:
    sealed = File(2, group(5, 4), is_sealed=True)
    for size, kept in (
        (LENGTH - 1, range(1, 13)),
        (sealed.offset(4), range(1, 13)),
        (sealed.offset(4) - 1, range(1, 8)),
        (sealed.offset(1) + 3, range(1, 6)),
        (DATA_START + 1, range(1, 5)),
        (DATA_START - 1, range(1, 5)),
        (0, range(1, 5)),
    ):
        store = log_of_three()
        del store[2][size:]
        report = store.examine()
        assert (obstacle(report).kind, ids(report)) == (DAMAGE, list(kept)), size
    for number in (3, 4):
        store = log_of_three()
        del store[number][LENGTH - 1 :]
        report = store.examine()
        assert (obstacle(report).kind, ids(report)) == (DAMAGE, list(range(1, 13)))


def test_a_longer_file_is_judged_by_the_length_it_was_made_with() -> None:
    store = log_of_three()
    store[3].extend(b"x" * 999)
    assert store.examine().first_obstacle is None


def test_forged_headers_are_damage_and_never_lead_outside() -> None:
    forged = [
        SegmentHeader(1, LENGTH, flags=1),
        SegmentHeader(1, LENGTH, 1, 9, DATA_START, DATA_START + 64, 0),
        SegmentHeader(1, LENGTH, 1, 0, DATA_START, LENGTH + 1, 0),
        SegmentHeader(1, LENGTH, U64_MAX, 0, DATA_START, DATA_START, 0),
        SegmentHeader(1, U64_MAX, 9, 0, DATA_START, DATA_START, 0),
        SegmentHeader(1, 10),
        SegmentHeader(1, LENGTH, 9, 0, DATA_START, DATA_START, 2),
    ]
    for header in forged:
        store = log_of_three()
        store[3][:DATA_START] = header.pack()
        report = store.examine(deep=True)
        assert obstacle(report).kind is DAMAGE, header
        assert ids(report)[:8] == list(range(1, 9))


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
@pytest.mark.parametrize("name", [segment_name(3), META_NAME, LOCK_NAME, "meta.hql.tmp"])
def test_what_is_no_regular_file_is_said_and_never_followed(
    tmp_path: Path, kind: str, name: str
) -> None:
    log_of_three().kernel().write_to(str(tmp_path))
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    place = tmp_path / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(victim)
    else:
        place.mkdir()
    report = examine(tmp_path)
    finding = obstacle(report)
    assert (finding.kind, finding.path) == (FindingKind.IRREGULAR, str(place))
    assert report.verdict is Verdict.DAMAGED
    assert victim.read_bytes() == b"mine"


def test_a_directory_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        examine("/d", environment=MemoryKernel())


def test_examining_changes_nothing() -> None:
    store = log_of_three()
    store.flip(3, 300)
    kernel = store.kernel()
    before = kernel.fingerprint()
    examine(PATH, deep=True, environment=kernel)
    list(salvage(PATH, environment=kernel))
    assert kernel.fingerprint() == before
