"""What the judgement of a directory says, rule by rule, as docs/design/format.md has them."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
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
from hqlwal_raft._types import Finding, FindingKind, LogId
from hqlwal_raft.audit import DirectoryReport, Verdict, examine, salvage
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._directories import LENGTH, PATH, File, Store, entry, group, meta
from tests._slots import agree, churn, draw

DAMAGE, TORN, LEFTOVER = FindingKind.DAMAGE, FindingKind.TORN_TAIL, FindingKind.LEFTOVER


def kinds(report: DirectoryReport) -> set[FindingKind]:
    return {finding.kind for finding in report.all_findings}


def ids(report: DirectoryReport) -> list[int]:
    """The ids of the log that recovery, or healing, keeps."""
    kept = report.judgement.kept
    return [index for segment in kept for index in range(segment.first_id, segment.next_id)]


def obstacle(report: DirectoryReport) -> Finding:
    finding = report.first_obstacle
    assert finding is not None
    return finding


def log_of_three() -> Store:
    """Two sealed segments and a tail."""
    return Store(
        File(1, group(1, 4), is_sealed=True),
        File(2, group(5, 4), is_sealed=True),
        File(3, group(9, 2) + group(11, 2), marked=2),
        File(4, is_unused=True),
    )


# --- what is right -----------------------------------------------------------------------


def test_a_healthy_log_has_no_obstacle_and_its_last_log_id_is_read() -> None:
    report = log_of_three().examine(deep=True)
    assert report.verdict is Verdict.INTACT
    assert not report.all_findings
    assert ids(report) == list(range(1, 13))
    assert report.last_log_id == entry(12).log_id
    assert [s.number for s in report.judgement.prepared] == [4]


def test_what_was_not_checked_is_called_unchecked() -> None:
    report = log_of_three().examine()
    assert report.verdict is Verdict.UNCHECKED
    (finding,) = report.all_findings
    assert (finding.kind, finding.first_id, finding.last_id) == (FindingKind.UNCHECKED, 1, 8)


def test_an_empty_directory_and_foreign_names_are_nobodys_store() -> None:
    store = Store()
    store.files = {"lost+found": bytearray(), "note.txt": bytearray(b"x"), "1.wal": bytearray()}
    report = store.examine()
    assert report.meta is None
    assert not report.all_findings


# --- torn tail or damage -----------------------------------------------------------------


def test_a_bad_record_at_the_end_of_the_tail_is_a_torn_tail() -> None:
    file = File(1, group(1, 2) + group(3, 2))
    store = Store(file)
    store.flip(1, file.offset(3) + 20)
    report = store.examine()
    assert kinds(report) == {TORN}
    assert report.verdict is Verdict.TORN
    assert ids(report) == [1, 2, 3]


def test_a_bad_record_before_the_durable_mark_is_damage() -> None:
    file = File(1, group(1, 4), marked=3)
    for place in range(3):
        store = Store(file)
        store.flip(1, file.offset(place) + 20)
        finding = obstacle(store.examine())
        assert (finding.kind, finding.offset) == (DAMAGE, file.offset(place))
        assert (finding.first_id, finding.last_id) == (place + 1, 3)


def test_a_bad_record_before_a_settled_one_is_damage_without_any_mark() -> None:
    file = File(1, group(1, 3) + group(4, 2))
    for place in range(3):
        store = Store(file)
        store.flip(1, file.offset(place) + 20)
        finding = obstacle(store.examine())
        assert (finding.kind, finding.first_id, finding.last_id) == (DAMAGE, place + 1, 3)
        assert ids(store.examine()) == list(range(1, place + 1))


def test_a_settled_record_proves_nothing_of_itself() -> None:
    file = File(1, group(1, 3) + group(4, 2))
    store = Store(file)
    store.flip(1, file.offset(3) + 20)
    assert kinds(store.examine()) == {TORN}


def test_a_settled_record_is_found_wherever_the_bad_one_leads_to() -> None:
    file = File(1, group(1, 1, 3) + group(2, 1, 77) + group(3, 1, 5))
    store = Store(file)
    store[1][file.offset(1) + 12 : file.offset(1) + 16] = b"\x80\x00\x00\x13"  # its length
    assert obstacle(store.examine()).first_id == 2


def test_a_settled_record_is_found_across_the_pieces_in_which_is_read() -> None:
    # The search begins at the bad record: the next one's head lies over the border of two
    # pieces, or it does not, and it is larger than a piece.
    for shift in (-40, -33, -32, -31, -17, -16, -15, -8, -1, 0, 1):
        records = [(entry(1, 3), True), (entry(2, (1 << 20) - 32 + shift), True)]
        file = File(1, [*records, (entry(3, (1 << 20) + 5000), True)], length=3 << 20)
        store = Store(file)
        assert file.offset(2) - file.offset(1) == (1 << 20) + shift
        store.flip(1, file.offset(1) + 18)
        finding = obstacle(store.examine())
        assert (finding.first_id, finding.last_id) == (2, 2)
        store.flip(1, file.offset(1) + 18)
        report = store.examine()
        assert (ids(report), report.last_log_id) == ([1, 2, 3], entry(3).log_id)


def test_a_record_larger_than_a_piece_is_judged_by_its_checksum() -> None:
    file = File(1, group(1, 2, 3 << 20), length=7 << 20)
    assert ids(Store(file).examine()) == [1, 2]
    store = Store(file)
    store.flip(1, file.offset(2) - 1)
    report = store.examine()
    assert (ids(report), kinds(report)) == ([1], {TORN})


def test_a_settled_record_at_or_behind_a_standing_cut_proves_nothing() -> None:
    file = File(1, group(1, 2) + group(3, 1) + group(4, 1), marked=2, cut=2)
    store = Store(file)
    store.flip(1, file.offset(2) + 20)
    report = store.examine()
    assert (kinds(report), ids(report)) == ({TORN}, [1, 2])
    # The same without the cut is damage, and so is what lies before the cut.
    store = Store(File(1, file.records, marked=2))
    store.flip(1, file.offset(2) + 20)
    assert obstacle(store.examine()).kind is DAMAGE
    file = File(1, file.records, marked=2, cut=2)
    store = Store(file)
    store.flip(1, file.offset(1) + 20)
    assert obstacle(store.examine()).kind is DAMAGE


def test_every_bit_of_a_small_log_flipped_is_found_but_in_the_last_group() -> None:
    file = File(1, group(1, 2, 3) + group(3, 1, 0) + group(4, 2, 9), length=512)
    last = file.offset(3)
    whole = list(range(1, 6))
    for offset in range(file.offset(5)):
        for bit in range(8):
            store = Store(file)
            store[1][offset] ^= 1 << bit
            report = store.examine()
            found = report.first_obstacle is not None
            assert found or offset >= last, (offset, bit)
            if not found:
                assert ids(report) in (whole[:3], whole[:4]), (offset, bit)


# --- segments in their order -------------------------------------------------------------


def test_a_segment_behind_a_torn_tail_is_dropped_if_nothing_of_it_was_durable() -> None:
    tail = File(1, group(1, 4))
    behind = File(2, [(entry(index), False) for index in (5, 6)])
    store = Store(tail, behind, File(3, is_unused=True))
    store.flip(1, tail.offset(3) + 20)
    report = store.examine()
    assert (kinds(report), ids(report)) == ({TORN}, [1, 2, 3])
    assert [s.number for s in report.judgement.dropped] == [2, 3]


@pytest.mark.parametrize("proof", ["a settled record", "a mark", "a seal", "a cut"])
def test_a_bad_record_is_damage_where_a_later_segment_proves_it_durable(proof: str) -> None:
    tail = File(1, group(1, 4))
    behind = File(2, [(entry(5), False), (entry(6), proof == "a settled record")])
    if proof == "a mark":
        behind.marked = 1
    elif proof == "a cut":
        behind.marked = behind.cut = 0
    behind.is_sealed = proof == "a seal"
    store = Store(tail, behind)
    store.flip(1, tail.offset(2) + 20)
    report = store.examine()
    assert (obstacle(report).kind, ids(report)) == (DAMAGE, [1, 2])
    assert [s.number for s in report.judgement.aside] == [2]


def test_a_settled_record_proves_also_from_a_segment_whose_header_never_came() -> None:
    tail, unused = File(1, group(1, 4)), File(2, is_unused=True)
    store = Store(tail, unused)
    lost = File(2, group(5, 1) + group(6, 1))
    store[2][DATA_START : lost.offset(2)] = b"".join(lost.encoded)
    assert obstacle(store.examine()).first_id == 5
    store.flip(1, tail.offset(2) + 20)
    assert obstacle(store.examine()).first_id == 3


def test_an_unused_segment_with_bytes_is_a_torn_tail_and_stays() -> None:
    store = Store(File(1, is_unused=True))
    written = File(1, group(1, 2))
    store[1][DATA_START : written.offset(2)] = b"".join(written.encoded)
    report = store.examine()
    assert (kinds(report), ids(report)) == ({TORN}, [])
    assert [s.number for s in report.judgement.prepared] == [1]


def test_a_missing_segment_is_damage() -> None:
    for missing, kept in ((1, []), (2, [1, 2, 3, 4])):
        report = log_of_three().without(missing).examine()
        assert obstacle(report).kind is DAMAGE
        assert ids(report) == kept
    report = log_of_three().without(3, 4).examine()
    assert (obstacle(report).first_id, ids(report)) == (9, list(range(1, 9)))


def test_a_sealed_last_segment_is_legal_where_an_earlier_one_is_open() -> None:
    store = Store(File(1, group(1, 4), marked=4), File(2, group(5, 4), is_sealed=True))
    report = store.examine()
    assert (report.first_obstacle, ids(report)) == (None, list(range(1, 9)))
    assert report.judgement.kept[-1].offsets is not None
    assert report.last_log_id == entry(8).log_id


def test_damage_in_a_sealed_last_segment_is_found_although_it_is_sealed() -> None:
    file = File(2, group(5, 4), is_sealed=True)
    store = Store(File(1, group(1, 4), marked=4), file)
    store.flip(2, file.offset(3) + 20)
    assert obstacle(store.examine()).first_id == 8


def test_a_seal_proves_the_first_record_of_the_follower() -> None:
    follower = File(2, group(5, 2))
    store = Store(File(1, group(1, 4), is_sealed=True), follower)
    store.flip(2, follower.offset(0) + 20)
    report = store.examine()
    assert (obstacle(report).first_id, ids(report)) == (5, [1, 2, 3, 4])
    store = Store(File(1, group(1, 4), is_sealed=True), File(2, is_unused=True))
    assert obstacle(store.examine()).first_id == 5


def test_ids_that_do_not_follow_are_damage_unless_what_is_missing_is_purged() -> None:
    files = File(1, group(1, 4), is_sealed=True), File(2, group(8, 2))
    assert obstacle(Store(*files).examine()).first_id == 5
    report = Store(*files, meta_data=meta(1, 7)).examine()
    assert report.first_obstacle is None
    overlapping = File(1, group(1, 4)), File(2, group(4, 2), marked=1)
    assert obstacle(Store(*overlapping).examine()).kind is DAMAGE


def test_damage_in_a_sealed_segment_is_found_by_a_deep_look_only() -> None:
    file = File(2, group(5, 4), is_sealed=True)
    store = log_of_three()
    store.flip(2, file.offset(1) + 20)
    assert store.examine().first_obstacle is None
    report = store.examine(deep=True)
    assert (obstacle(report).first_id, ids(report)) == (6, [1, 2, 3, 4, 5])


def test_an_unreadable_header_is_damage_not_a_file_to_skip() -> None:
    for number, kept in ((1, 0), (2, 4), (3, 8), (4, 12)):
        for offset in (0, 7, 9, 30, 33, 40, 48, 61):
            store = log_of_three()
            store.flip(number, offset)
            report = store.examine()
            assert obstacle(report).kind is DAMAGE
            assert ids(report) == list(range(1, kept + 1))


def test_the_log_that_ends_below_the_frontier_goes_as_a_whole() -> None:
    file = File(1, group(1, 2) + group(3, 3))
    store = Store(file, File(2, is_unused=True), meta_data=meta(1, 5))
    store.flip(1, file.offset(3) + 20)
    report = store.examine()
    assert (report.first_obstacle, ids(report)) == (None, [])
    assert report.judgement.is_emptied
    assert [s.number for s in report.judgement.dropped] == [1, 2]


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


# --- in pieces ---------------------------------------------------------------------------


class Counting(Environment):
    """Counts the bytes that are read."""

    read = 0

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        data = super().pread(descriptor, length, offset)
        self.read += len(data)
        return data


@pytest.mark.parametrize("is_allocated", [False, True], ids=["a hole", "allocated"])
def test_time_and_memory_grow_with_what_was_written(tmp_path: Path, *, is_allocated: bool) -> None:
    # What is allocated and was never written is told as written once it was read, or read ahead.
    length = 64 << 20 if is_allocated else 1 << 30
    file = File(1, group(1, 1), length=1024)
    header = SegmentHeader(file.salt, length, 1, 0, DATA_START, DATA_START)
    path = tmp_path / segment_name(1)
    path.write_bytes(header.pack() + file.content[DATA_START:])
    with path.open("r+b") as segment:
        if is_allocated:
            os.posix_fallocate(segment.fileno(), 0, length)
        else:
            os.truncate(segment.fileno(), length)
        os.fsync(segment.fileno())
        os.posix_fadvise(segment.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (tmp_path / META_NAME).write_bytes(meta(1))
    environment = Counting()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = examine(tmp_path, deep=True, environment=environment)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert ids(report) == [1]
    assert grown < 50 << 10
    assert environment.read < 8 << 20


def test_progress_ends_with_all_there_is() -> None:
    calls: list[tuple[int, int]] = []
    kernel = log_of_three().kernel()
    examine(PATH, deep=True, environment=kernel, progress=lambda *call: calls.append(call))
    assert calls[-1] == (4 * LENGTH, 4 * LENGTH)
    assert calls == sorted(calls)


# --- in use ------------------------------------------------------------------------------


class Meddled(MemoryKernel):
    """Has something happen whenever somebody waits."""

    on_sleep: Callable[[int], None] = staticmethod(lambda count: None)
    sleeps = 0

    def sleep(self, seconds: float, /) -> None:
        self.sleeps += 1
        self.on_sleep(self.sleeps)


def meddled(store: Store) -> Meddled:
    files = {f"{PATH}/{name}": bytes(data) for name, data in store.files.items()}
    return Meddled.of(files, [PATH])


def put(kernel: MemoryKernel, number: int, data: bytes) -> None:
    descriptor = kernel.open(f"{PATH}/{segment_name(number)}", os.O_RDWR)
    kernel.pwrite(descriptor, data, 0)
    kernel.close(descriptor)


def test_the_lock_is_asked_not_the_pid() -> None:
    kernel = log_of_three().kernel()
    assert examine(PATH, environment=kernel).lock.is_clean
    holder = Directory(kernel, PATH)
    holder.lock.take()
    holder.lock.say_held()
    report = examine(PATH, environment=kernel)
    assert report.lock.is_held
    assert report.lock.pid == kernel.getpid()
    holder.close()
    report = examine(PATH, environment=kernel)
    assert not report.lock.is_held
    assert not report.lock.is_clean
    assert str(report.lock) == "not closed cleanly"
    again = Directory(kernel, PATH)
    again.lock.take()  # whoever asked left nothing behind
    again.say_clean()
    again.close()
    assert str(examine(PATH, environment=kernel).lock) == "closed"


def test_what_looks_damaged_once_is_not_damage_if_it_changes() -> None:
    file = File(3, group(9, 2) + group(11, 2), marked=2)
    store = log_of_three()
    store.flip(3, file.offset(0) + 20)
    kernel = meddled(store)
    kernel.on_sleep = lambda count: put(kernel, 3, bytes(file.content))
    report = examine(PATH, environment=kernel)
    assert report.first_obstacle is None
    assert kernel.sleeps == 1


def test_what_looks_damaged_twice_the_same_is_damage_in_a_store_in_use_too() -> None:
    store = log_of_three()
    store.flip(3, 100)
    kernel = meddled(store)
    holder = Directory(kernel, PATH)
    holder.lock.take()
    report = examine(PATH, environment=kernel)
    assert obstacle(report).kind is DAMAGE
    assert kernel.sleeps == 1


def test_a_segment_is_known_by_its_salt_when_two_looks_are_compared() -> None:
    """The same place looks damaged in both looks, but of two files under one name."""
    store = log_of_three()
    store.flip(3, 100)
    kernel = meddled(store)
    holder = Directory(kernel, PATH)
    holder.lock.take()

    def replace(count: int) -> None:
        header = SegmentHeader(count, LENGTH, 9, 10, DATA_START, DATA_START + 144, 0)
        put(kernel, 3, header.pack())

    kernel.on_sleep = replace
    report = examine(PATH, environment=kernel)
    assert report.first_obstacle is None
    assert FindingKind.IN_USE in kinds(report)
    assert kernel.sleeps < 20


def test_a_torn_tail_of_a_store_in_use_is_in_the_making() -> None:
    file = File(1, group(1, 2))
    store = Store(file)
    store.flip(1, file.offset(1) + 20)
    kernel = store.kernel()
    holder = Directory(kernel, PATH)
    holder.lock.take()
    assert kinds(examine(PATH, environment=kernel)) == {FindingKind.IN_USE}


def test_a_file_that_vanishes_between_two_calls_is_looked_for_again() -> None:
    kernel = log_of_three().kernel()

    class Vanishing(Environment):
        pass

    names = kernel.listdir

    def listdir(path: object) -> list[str]:
        return [*names(path), segment_name(5)]  # type: ignore[arg-type]

    kernel.listdir = listdir  # type: ignore[method-assign]
    assert examine(PATH, environment=kernel).first_obstacle is None


# --- salvage -----------------------------------------------------------------------------


def test_what_lies_behind_damage_can_be_read_from_the_broken_files() -> None:
    file = File(2, group(5, 3) + group(8, 4, 200))
    store = Store()
    data = file.content
    data[file.offset(1) + 30] ^= 1
    data[file.offset(4) + 12] ^= 1
    store.files[segment_name(2) + ".broken"] = data
    other = File(3, group(20, 2))
    headless = other.content
    headless[9] ^= 1
    store.files[segment_name(3) + ".broken.2"] = headless
    found = list(salvage(PATH, environment=store.kernel()))
    assert [each.entry for each in found] == [
        *(entry(index, 40) for index in (5, 7)),
        *(entry(index, 200) for index in (8, 10, 11)),
        *(entry(index, 40) for index in (20, 21)),
    ]
    assert [each.offset for each in found][:3] == [file.offset(n) for n in (0, 2, 3)]


def test_salvage_reads_many_records_at_the_pace_of_the_disk() -> None:
    file = File(1, group(1, 20_000, 8), length=1 << 20)
    store = Store()
    store.files[segment_name(1) + ".broken"] = file.content
    kernel = store.kernel()
    started = time.perf_counter()
    assert sum(1 for _ in salvage(PATH, environment=kernel)) == 20_000
    assert time.perf_counter() - started < 5


# --- against the reference ---------------------------------------------------------------


def test_random_directories_are_judged_as_the_reference_judges_them() -> None:
    rng = random.Random(11)
    verdicts = [agree(draw(rng)) for _ in range(4000)]
    assert 400 < sum(verdicts) < 3600


class Interleaved(Environment):
    """The store writes on while it is looked at: between any two calls."""

    def __init__(self, path: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.writer = churn(path, self.rng)
        self.sleeps = 0

    def go_on(self) -> None:
        for _ in range(self.rng.choice((0, 0, 0, 1, 3, 40))):
            next(self.writer)

    def sleep(self, seconds: float, /) -> None:
        self.sleeps += 1
        self.go_on()

    def listdir(self, path: str | int, /) -> list[str]:
        self.go_on()
        return os.listdir(path)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        self.go_on()
        return os.pread(descriptor, length, offset)


def test_a_store_that_is_written_to_is_never_called_damaged(tmp_path: Path) -> None:
    looks_again = 0
    for seed in range(30):
        path = tmp_path / str(seed)
        path.mkdir()
        environment = Interleaved(str(path), seed)
        for _ in range(20):
            report = examine(path, deep=True, environment=environment)
            assert report.first_obstacle is None, report.first_obstacle
        looks_again += environment.sleeps
    assert looks_again > 100  # a single look would have been mistaken
