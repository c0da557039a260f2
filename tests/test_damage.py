"""Damage to any file ends in the truth or in an error: never in a wrong answer or a silent loss.

Every case is a store of three small segments and a prepared one, in memory, with something done
to its bytes or names. It must open with everything intact, or without a tail that nothing proves
to have been durable, or raise with the directory unchanged. Sealed segments are read in full only
by a forced check, so their damage may show at the first read instead; then the forced check must
refuse. What proves it is the durable mark, and for single bits the settled records behind: all
but the last group is found.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from hqlwal_raft import CorruptionError, Entry, LogId, UnknownVersionError, Vote, _look
from hqlwal_raft._format import DATA_START, RECORD_OVERHEAD_BYTES, SegmentHeader
from hqlwal_raft._records import scan
from hqlwal_raft.testing import MemoryKernel, Snapshot
from tests.torture.core import DIRECTORY, Core
from tests.torture.ledger import View

Contents = dict[str, bytes]
#: what was done, and the files that it left
Case = tuple[str, Contents]

SEGMENT_SIZE = 8192
META = f"{DIRECTORY}/meta.hql"


def _path(number: int) -> str:
    return f"{DIRECTORY}/{number:016d}.wal"


@dataclass(frozen=True, slots=True)
class Original:
    """The store before it was damaged."""

    contents: Contents
    view: View
    #: the highest index that some header says is durable
    marked: int
    #: the highest index that a settled record behind it, or a header, proves to be durable
    proven: int

    def records(self, number: int) -> list[int]:
        data = self.contents[_path(number)]
        header = SegmentHeader.unpack(data[:DATA_START])
        assert isinstance(header, SegmentHeader)
        found = scan(data[DATA_START:], DATA_START, header.salt, header.id_from, len(data))
        return list(found.offsets)


def _make(*, is_closed: bool, is_buffered: bool) -> Original:
    disk = MemoryKernel()
    core = Core(disk, SEGMENT_SIZE, is_buffered=is_buffered)
    core.save_vote(Vote(3, "node-ä", True))
    for index in range(1, 30):
        core.environment.sleep(0.004 if index < 26 else 0)
        core.append([Entry(3, index, bytes([index]) * 700, 1)])
        core.sync()
        if index in (10, 20):
            core.save_committed(LogId(3, index, 1))
    core.purge(LogId(3, 2, 1))
    core.do("prepare")
    core.do_chores()
    core.sync()
    view = core.view()
    if is_closed:
        core.close()
    contents = disk.after_kill().contents()
    headers = [
        SegmentHeader.unpack(data[:DATA_START])
        for path, data in contents.items()
        if path.endswith(".wal")
    ]
    marked = max(header.id_until for header in headers if isinstance(header, SegmentHeader))
    assert len(headers) == 4
    # under a buffered policy the mark is one sync behind
    assert marked == 29 if is_closed else marked == 28 if is_buffered else 20 < marked < 27
    return Original(contents, view, marked, 29 if is_closed else 28)


@pytest.fixture(scope="module", params=["closed", "killed", "killed, buffered"])
def original(request: pytest.FixtureRequest) -> Original:
    return _make(is_closed=request.param == "closed", is_buffered="buffered" in request.param)


def _judge(original: Original, case: Case, known: int = 0) -> str:
    """How an open of the damaged store ended; fails where it may not end so.

    Entries up to ``known``, or else the durable mark, may not go without a word.
    """
    what, contents = case
    disk = MemoryKernel.of(contents)
    try:
        core = Core(disk, SEGMENT_SIZE)
    except (CorruptionError, UnknownVersionError) as error:
        assert disk.contents() == contents, f"{what}: refused, but the directory was changed"
        return type(error).__name__
    try:
        view = core.view()
    except CorruptionError:
        checked = MemoryKernel.of(contents)
        with pytest.raises(CorruptionError):
            Core(checked, SEGMENT_SIZE, is_checking_everything=True)
        assert checked.contents() == contents, f"{what}: refused, but the directory was changed"
        return "CorruptionError at reading"
    assert view.vote == original.view.vote, f"{what}: another vote"
    assert view.frontier == original.view.frontier, f"{what}: another frontier"
    assert view.committed in (None, LogId(3, 10, 1), LogId(3, 20, 1)), f"{what}: committed"
    if view.entries == original.view.entries:
        return "intact"
    count = len(view.entries)
    assert view.entries == original.view.entries[:count], f"{what}: other entries"
    assert view.last is not None
    assert view.last.index >= (known or original.marked), f"{what}: durable entries are gone"
    return "tail dropped"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lines would be kept."""
    caplog.set_level(logging.CRITICAL, "hqlwal_raft")


def _judge_all(original: Original, cases: Iterable[Case], known: int = 0) -> Counter[str]:
    outcomes = Counter(_judge(original, case, known) for case in cases)
    assert outcomes, "no case at all"
    return outcomes


def _flipped(original: Original, path: str, bits: Iterable[int]) -> Iterator[Case]:
    data = original.contents[path]
    for bit in bits:
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8} of {path}", original.contents | {path: bytes(bad)}


def _bits(start: int, stop: int) -> range:
    return range(start * 8, stop * 8)


def test_a_store_that_was_not_damaged_opens_intact(original: Original) -> None:
    assert _judge(original, ("nothing", original.contents)) == "intact"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_any_bit_of_a_segment_header_may_flip(original: Original, number: int) -> None:
    outcomes = _judge_all(original, _flipped(original, _path(number), _bits(0, DATA_START)))
    assert set(outcomes) <= {"CorruptionError", "UnknownVersionError"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_bit_of_a_record_header_may_flip(original: Original, number: int) -> None:
    bits = itertools.chain.from_iterable(
        _bits(offset, offset + RECORD_OVERHEAD_BYTES) for offset in original.records(number)
    )
    outcomes = _judge_all(original, _flipped(original, _path(number), bits), original.proven)
    # purged entries are not read any more
    assert "intact" not in outcomes or number == 1
    if number == 2:
        assert set(outcomes) == {"CorruptionError at reading"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_byte_of_a_payload_may_change(original: Original, number: int) -> None:
    offsets = original.records(number)
    bits = [
        (offset + RECORD_OVERHEAD_BYTES + byte) * 8 + byte % 8
        for offset in (offsets[0], offsets[-1])
        for byte in range(700)
    ]
    outcomes = _judge_all(original, _flipped(original, _path(number), bits), original.proven)
    # purged entries are not read any more
    assert "intact" not in outcomes or number == 1


def test_without_the_search_behind_a_bad_record_damage_would_pass_for_a_torn_tail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = _make(is_closed=False, is_buffered=False)
    offset = killed.records(3)[-2]
    case = next(_flipped(killed, _path(3), [(offset + 40) * 8]))
    assert _judge(killed, case, killed.proven) == "CorruptionError"
    monkeypatch.setattr(_look, "candidates", lambda *_: iter(()))
    with pytest.raises(AssertionError, match="durable entries are gone"):
        _judge(killed, case, killed.proven)


def test_any_bit_of_a_meta_slot_may_flip(original: Original) -> None:
    used = 24 + int.from_bytes(original.contents[META][16:20], "big")
    for slot in (0, 4096):
        bits = [*_bits(slot, slot + used), *range((slot + used) * 8, (slot + 4096) * 8, 13)]
        assert set(_judge_all(original, _flipped(original, META, bits))) == {"intact"}


def test_any_bit_of_the_committed_records_may_flip(original: Original) -> None:
    bits = [*_bits(8192, 8192 + 40), *_bits(8704, 8704 + 40), *_bits(9216, 9220)]
    assert set(_judge_all(original, _flipped(original, META, bits))) == {"intact"}


def test_both_meta_slots_may_be_damaged(original: Original) -> None:
    data = original.contents[META]
    used = 24 + int.from_bytes(data[16:20], "big")
    for byte in range(used):
        bad = bytearray(data)
        bad[byte] ^= 0x10
        bad[4096 + (byte + 7) % used] ^= 0x01
        outcome = _judge(original, (f"byte {byte} twice", original.contents | {META: bytes(bad)}))
        assert outcome == "CorruptionError"


def test_any_file_may_be_cut_at_any_length(original: Original) -> None:
    for path, data in original.contents.items():
        if path.endswith("lock.hql"):
            continue
        cases = (
            (f"{path} cut to {length} bytes", original.contents | {path: data[:length]})
            for length in range(len(data))
            if length < 200 or length % 5 == 0 or length > len(data) - 20
        )
        outcomes = set(_judge_all(original, cases))
        # either copy of the vote suffices
        assert outcomes == ({"CorruptionError"} if path != META else {"CorruptionError", "intact"})


def test_any_page_may_be_zeroed(original: Original) -> None:
    def cases() -> Iterator[Case]:
        for size in (512, 4096):
            for path, data in original.contents.items():
                for start in range(0, len(data), size):
                    bad = (
                        data[:start] + bytes(len(data[start : start + size])) + data[start + size :]
                    )
                    yield f"{size} zeros at {start} of {path}", original.contents | {path: bad}

    outcomes = _judge_all(original, cases())
    assert outcomes["CorruptionError"] > 0
    assert outcomes["intact"] > 0


def test_any_range_may_be_filled_with_ones_or_another_range(original: Original) -> None:
    def cases() -> Iterator[Case]:
        for path, data in original.contents.items():
            if path.endswith("lock.hql"):
                continue
            for start in range(0, len(data), 512):
                for what, junk in (("ones", b"\xff" * 512), ("its first bytes", data[:512])):
                    if start:
                        bad = data[:start] + junk + data[start + 512 :]
                        yield f"{what} at {start} of {path}", original.contents | {path: bad}

    assert _judge_all(original, cases())["CorruptionError"] > 0


def test_any_file_may_be_missing(original: Original) -> None:
    paths = [path for path in original.contents if not path.endswith("lock.hql")]
    for count in (1, 2):
        for gone in itertools.combinations(paths, count):
            left = {path: data for path, data in original.contents.items() if path not in gone}
            outcome = _judge(original, (f"without {gone}", left))
            if gone == (_path(4),):
                assert outcome == "intact"  # nothing was in it
            else:
                assert outcome == "CorruptionError"


def test_any_two_segments_may_be_swapped(original: Original) -> None:
    for one, other in itertools.combinations(map(_path, (1, 2, 3, 4)), 2):
        contents = original.contents
        swapped = contents | {one: contents[other], other: contents[one]}
        outcome = _judge(original, (f"{one} and {other} swapped", swapped))
        assert outcome == "CorruptionError"


def test_any_segment_may_be_there_twice(original: Original) -> None:
    for source in (1, 2, 3):
        for target in (1, 2, 3, 4, 5, 9):
            if source != target:
                doubled = original.contents | {_path(target): original.contents[_path(source)]}
                outcome = _judge(original, (f"{source} copied to {target}", doubled))
                # behind the end, without a mark or an entry that is missing, it is dropped
                is_harmless = original.marked < 23 and source == 3 and target > 4
                assert outcome == "CorruptionError" or (is_harmless and outcome == "intact")


def test_any_segment_may_have_another_number(original: Original) -> None:
    for source in (1, 2, 3, 4):
        for target in (5, 6, 100, 9_999_999_999_999_999):
            renamed = dict(original.contents)
            renamed[_path(target)] = renamed.pop(_path(source))
            outcome = _judge(original, (f"{source} renamed to {target}", renamed))
            assert outcome == "CorruptionError"


def test_all_segments_may_have_moved_by_one(original: Original) -> None:
    contents = {path: data for path, data in original.contents.items() if ".wal" not in path}
    for number in (1, 2, 3, 4):
        contents[_path(number + 1)] = original.contents[_path(number)]
    assert _judge(original, ("moved by one", contents)) == "CorruptionError"


def test_other_files_in_the_directory_are_left_alone(original: Original) -> None:
    others = {
        f"{DIRECTORY}/notes.txt": b"mine",
        f"{DIRECTORY}/1.wal": b"not a segment's name",
        f"{DIRECTORY}/0000000000000002.wal.broken": b"set aside earlier",
        f"{DIRECTORY}/other.tmp": b"somebody's",
    }
    disk = MemoryKernel.of(original.contents | others)
    core = Core(disk, SEGMENT_SIZE)
    assert core.view().entries == original.view.entries
    core.close()
    assert {path: data for path, data in disk.contents().items() if path in others} == others


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_power_cut_while_healing_leaves_what_heals_to_the_same(
    original: Original, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hqlwal_raft")
    rng = random.Random(number)
    path = _path(number)
    offset = original.records(number)[3] + 40
    data = bytearray(original.contents[path])
    data[offset] ^= 1
    if number < 3:  # a sealed segment is looked at in full only where it is asked for
        data[8] ^= 1
    damaged = original.contents | {path: bytes(data)}
    disk = MemoryKernel.of(damaged, page_bytes=512)
    snapshots: list[Snapshot[MemoryKernel]] = []
    disk.on_point = lambda _what, _path: snapshots.append(disk.snapshot())
    healed = Core(disk, SEGMENT_SIZE, is_healing=True).view()
    disk.on_point = None
    count = len(healed.entries)
    assert healed.entries == original.view.entries[:count]
    assert healed.vote == original.view.vote
    assert "healed" in caplog.text
    assert len(snapshots) > 4
    for snapshot in snapshots:
        for image in snapshot.images(rng, 6):
            again = Core(image, SEGMENT_SIZE, is_healing=True)
            assert again.view().entries == healed.entries
            assert bytes(data) in image.contents().values()
            again.append([Entry(4, (healed.last.index if healed.last else 0) + 1, b"", 9)])
            again.sync()
            reopened = Core(image.after_kill(), SEGMENT_SIZE).view()
            assert reopened.entries[:count] == healed.entries
            assert len(reopened.entries) == count + 1
