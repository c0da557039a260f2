"""What the judgement of a directory says, rule by rule, as docs/design/format.md has them."""

from __future__ import annotations

import pytest

from hqlwal_raft._format import (
    DATA_START,
)
from hqlwal_raft._types import FindingKind
from hqlwal_raft.audit import Verdict
from tests._audited import DAMAGE, TORN, ids, kinds, log_of_three, obstacle
from tests._directories import File, Store, entry, group, meta

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
    assert report.judgement.kept[-1].places is not None
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
