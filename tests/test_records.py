"""The decoder on any bytes: never raises, never loops, never looks outside of its buffer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from hqlwal_raft import Entry, EntryTooLargeError, LogGapError
from hqlwal_raft import _records as _records_module
from hqlwal_raft._entry_rules import NotPlainError
from hqlwal_raft._find import candidates
from hqlwal_raft._findings import MetaReport
from hqlwal_raft._format import (
    COVERED,
    DATA_START,
    ENTRY_HEAD_BYTES,
    LENGTH_MASK,
    META_BYTES,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SETTLED,
    SLOT_BYTES,
    MetaState,
    SegmentHeader,
    pack_committed,
    pack_slot,
    unpack_committed,
    unpack_slot,
)
from hqlwal_raft._look import _judge_slots
from hqlwal_raft._records import decode, encode, encode_one, hop, locate, scan
from tests._directories import record

SALT = 0x5EED

numbers = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))
payloads = st.lists(st.binary(max_size=80), min_size=1, max_size=12)
#: what is done to good bytes: at a place, put something else
damages = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=24)), max_size=4)


def _entries(payloads: list[bytes], first_id: int) -> list[Entry]:
    return [Entry(1, first_id + i, payload, 7) for i, payload in enumerate(payloads)]


def _records(payloads: list[bytes], first_id: int, *, is_settled: bool = True) -> bytes:
    entries = _entries(payloads, first_id)
    return b"".join(encode(entries, first_id, SALT, 0, 1 << 20, is_settled=is_settled)[0])


def _damaged(data: bytes, damages: list[tuple[int, bytes]]) -> bytes:
    for place, junk in damages:
        at = place % (len(data) + 1)
        data = data[:at] + junk + data[at + len(junk) :]
    return data


@dataclass(frozen=True)
class Found:
    """A valid record somewhere in a buffer."""

    offset: int
    index: int
    is_settled: bool


def find_records(data: bytes, first_id: int, last_id: int) -> list[Found]:
    """Every valid record with an id in the range, wherever it begins: ``_look`` as one function."""
    found = []
    for place, index, checksum, marked in candidates(data, first_id, last_id):
        end = place + RECORD_HEAD_BYTES + (marked & LENGTH_MASK)
        covered = crc32c(data[place : place + 8], SALT)
        if end <= len(data) and crc32c(data[place + 12 : end], covered) == checksum:
            found.append(Found(place, index, bool(marked & SETTLED)))
    return found


def _check_scan(data: bytes, first_id: int, start: int, stop: int) -> None:
    """The records from ``start`` on, which must end before ``stop``."""
    found = scan(data[start:], start, SALT, first_id, stop)
    limit = max(start, min(stop, len(data)))
    assert start <= found.end <= limit
    assert list(found.offsets) == sorted(set(found.offsets))
    assert all(start <= offset < found.end for offset in found.offsets)
    assert found.next_id == first_id + len(found.offsets)
    # it stops for a reason, or says how many bytes more it takes to go on
    assert found.why or found.wanted > len(data) - found.end
    # what the scan takes for healthy, the reader takes too, and nothing of it lies outside
    read = decode(data[start : found.end], SALT, first_id, len(found.offsets))
    assert [entry.index for entry in read] == list(range(first_id, found.next_id))
    assert sum(RECORD_OVERHEAD_BYTES + len(entry.payload) for entry in read) == found.end - start
    # and nothing that follows the buffer's end can change what was found within it
    more = scan(data[start:limit] + b"\xff" * 64, start, SALT, first_id, limit)
    assert (more.offsets, more.end, more.next_id) == (found.offsets, found.end, found.next_id)


@given(st.binary(max_size=400), numbers, st.integers(0, 500), st.integers(0, 500))
def test_scanning_any_bytes_stops_within_the_buffer(
    data: bytes, first_id: int, start: int, stop: int
) -> None:
    _check_scan(data, first_id, start, stop)


@settings(max_examples=300)
@given(payloads, st.integers(0, 300), damages, st.integers(0, 2000))
def test_scanning_damaged_records_gives_only_records_that_were_written(
    payloads: list[bytes], first_id: int, damages: list[tuple[int, bytes]], cut: int
) -> None:
    data = _records(payloads, first_id)
    written = decode(data, SALT, first_id, len(payloads))
    bad = _damaged(data, damages)[: cut or None]
    _check_scan(bad, first_id, 0, len(bad))
    found = scan(bad, 0, SALT, first_id, len(bad))
    assert decode(bad, SALT, first_id, len(found.offsets)) == written[: len(found.offsets)]


@given(st.binary(max_size=400), numbers, st.integers(0, 40))
def test_decoding_any_bytes_gives_consecutive_entries_or_fewer(
    data: bytes, first_id: int, count: int
) -> None:
    entries = decode(data, SALT, first_id, count)
    assert len(entries) <= count
    assert [entry.index for entry in entries] == list(range(first_id, first_id + len(entries)))
    size = sum(RECORD_OVERHEAD_BYTES + len(entry.payload) for entry in entries)
    assert size <= len(data)


#: many of one size, then others
alike_payloads = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=5
).map(lambda runs: [bytes([size]) * size for count, size in runs for _ in range(count)])


@settings(max_examples=300)
@given(
    alike_payloads,
    st.integers(0, 300),
    st.randoms(use_true_random=False),
    damages,
    st.integers(0, 150),
    st.integers(0, 150),
)
def test_decoding_behind_others_gives_what_a_scan_finds_there_or_fewer(
    payloads: list[bytes],
    first_id: int,
    rng: random.Random,
    damages: list[tuple[int, bytes]],
    skip: int,
    count: int,
) -> None:
    """Whatever lengths lead to, and however long the run of one size that a damaged record is in."""
    skip %= len(payloads)
    count = count % (len(payloads) - skip) + 1
    settled = [rng.random() < 0.5 for _ in payloads]
    written = _entries(payloads, first_id)[skip : skip + count]
    good = _with_bits(payloads, first_id, settled)
    assert decode(good, SALT, first_id + skip, count, skip) == written
    bad = _damaged(good, damages)
    found = decode(bad, SALT, first_id + skip, count, skip)
    assert found == written[: len(found)]
    place = hop(bad, skip)
    healthy = scan(bad[place:], place, SALT, first_id + skip, len(bad))
    assert len(found) == min(count, len(healthy.offsets))


@given(st.binary(max_size=400), st.integers(0, 80), numbers, st.integers(0, 40))
def test_decoding_behind_any_bytes_ends_and_stays_inside(
    data: bytes, skip: int, first_id: int, count: int
) -> None:
    assert 0 <= hop(data, skip) <= len(data) + RECORD_HEAD_BYTES + LENGTH_MASK
    assert len(decode(data, SALT, first_id, count, skip)) <= count


@pytest.mark.parametrize("place", [0, 1, 7, 8, 255, 256, 299])
def test_every_bit_of_a_record_in_a_run_of_one_size_counts(place: int) -> None:
    data = bytearray(_records([b"some bytes"] * 300, 1))
    size = len(data) // 300
    for bit in range(place * size * 8, (place + 1) * size * 8):
        data[bit // 8] ^= 1 << bit % 8
        assert len(decode(bytes(data), SALT, 1, 300)) == place
        data[bit // 8] ^= 1 << bit % 8


class _Counting:
    """A struct or a function that counts its calls."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._real(*arguments)

    @property
    def pack(self) -> _Counting:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.parametrize("sizes", [[256], [256, 90, 30]])
def test_an_entry_is_packed_once_and_its_checksum_takes_two_calls(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    data = _records([b"x" * sizes[i % len(sizes)] for i in range(1000)], 1)
    checksum, packing = _Counting(crc32c), _Counting(COVERED.pack)
    monkeypatch.setattr(_records_module, "crc32c", checksum)
    monkeypatch.setattr(_records_module, "COVERED", packing)
    monkeypatch.setattr(_records_module, "_pack_covered", packing)
    assert len(decode(data, SALT, 1, 1000)) == 1000
    assert (checksum.calls, packing.calls) == (2000, 1000)


@given(payloads, st.integers(0, 300), damages, st.integers(0, 200), st.integers(0, 2000))
def test_locating_by_any_lengths_ends_and_stays_inside(
    payloads: list[bytes], first_id: int, damages: list[tuple[int, bytes]], start: int, stop: int
) -> None:
    data = _damaged(_records(payloads, first_id), damages)
    offsets = list(locate(data, start, stop))
    assert offsets == sorted(set(offsets))
    assert all(
        start <= offset <= min(stop, len(data)) - RECORD_OVERHEAD_BYTES for offset in offsets
    )


@given(payloads, st.integers(0, 300))
def test_locating_healthy_records_finds_each(payloads: list[bytes], first_id: int) -> None:
    data = _records(payloads, first_id)
    assert locate(data, 0, len(data)) == scan(data, 0, SALT, first_id, len(data)).offsets


def _with_bits(payloads: list[bytes], first_id: int, settled: list[bool]) -> bytes:
    """Records each of which is settled or not, as those of many groups are."""
    return b"".join(
        record(each, SALT, is_settled=is_settled)
        for each, is_settled in zip(_entries(payloads, first_id), settled, strict=False)
    )


bits = st.lists(st.booleans(), min_size=12, max_size=12)


@pytest.mark.parametrize("what", ["id", "size", "type", "term", "entry"])
@given(payloads, st.integers(0, 300), st.integers(0, 11))
def test_an_entry_that_can_be_no_record_is_refused_whatever_stands_before_it(
    what: str, payloads: list[bytes], first_id: int, place: int
) -> None:
    entries = _entries(payloads, first_id)
    place %= len(entries)
    good = entries[place]
    bad, error = {
        "id": (good._replace(index=good.index + 1), LogGapError),
        "size": (good._replace(payload=b"x" * 81), EntryTooLargeError),
        "type": (good._replace(payload=bytearray(b"x")), NotPlainError),  # type: ignore[arg-type]
        "term": (good._replace(term=1 << 64), NotPlainError),
        "entry": (tuple(good), NotPlainError),
    }[what]
    entries[place] = bad  # type: ignore[call-overload]
    with pytest.raises(error):
        encode(entries, first_id, SALT, 64, 80, is_settled=True)


@given(payloads, st.integers(0, 300), bits, st.integers(1, 300))
def test_a_scan_piece_by_piece_finds_what_one_of_the_whole_finds(
    payloads: list[bytes], first_id: int, settled: list[bool], piece: int
) -> None:
    data = _with_bits(payloads, first_id, settled)
    stop = DATA_START + len(data)
    whole = scan(data, DATA_START, SALT, first_id, stop)
    assert whole.next_id == first_id + len(payloads)
    offsets: list[int] = []
    place, id_, size = DATA_START, first_id, piece
    for _ in range(1000):
        found = scan(data[place - DATA_START :][:size], place, SALT, id_, stop)
        offsets += found.offsets
        place, id_ = found.end, found.next_id
        if found.why is not None:
            break
        size = max(piece, found.wanted)
    assert (offsets, place, id_) == (list(whole.offsets), whole.end, whole.next_id)


@pytest.mark.parametrize("others", [[], [500], [0, 301, 700, 899]])
def test_a_long_run_of_records_of_one_size_is_crossed_whatever_their_settled_bits(
    others: list[int],
) -> None:
    rng = random.Random(1)
    sizes = [12 if i in others else 48 for i in range(900)]
    settled = [rng.random() < 0.5 for _ in sizes]
    data = _with_bits([b"x" * size for size in sizes], 1, settled)
    assert locate(data, 0, len(data)) == scan(data, 0, SALT, 1, len(data)).offsets


@settings(max_examples=300)
@given(payloads, st.integers(0, 1 << 40), bits, damages, st.binary(max_size=40), st.data())
def test_finding_gives_every_whole_record_in_the_range_and_no_other(
    payloads: list[bytes],
    first_id: int,
    settled: list[bool],
    damages: list[tuple[int, bytes]],
    before: bytes,
    drawn: st.DataObject,
) -> None:
    good = before + _with_bits(payloads, first_id, settled)
    bad = _damaged(good, damages)
    ids = st.integers(max(first_id - 1, 0), first_id + len(payloads))
    low, high = drawn.draw(ids), drawn.draw(ids)
    found = {each.index: each for each in find_records(bad, low, high)}
    end = len(before)
    for index, payload in enumerate(payloads, first_id):
        start, end = end, end + RECORD_OVERHEAD_BYTES + len(payload)
        if bad[start:end] == good[start:end] and low <= index <= high:
            each = found.pop(index)
            assert (each.offset, each.is_settled) == (start, settled[index - first_id])
    # what junk may have moved is whole as well
    for each in found.values():
        payload = payloads[each.index - first_id]
        start = good.index(bad[each.offset :][: RECORD_OVERHEAD_BYTES + len(payload)])
        assert start >= len(before)


@given(numbers, st.integers(0, 1 << 20), st.binary(max_size=200), damages)
def test_candidates_are_those_places_whose_eight_bytes_are_an_id_in_the_range(
    low: int, span: int, noise: bytes, damages: list[tuple[int, bytes]]
) -> None:
    high = min(low + span, (1 << 64) - 1)
    some = [low, (low + high) // 2, high, high + 1, low - 1]
    heads = [i.to_bytes(8, "big") for i in some if 0 <= i < 1 << 64]
    rest = b"\0\0\0\0\x80\0\0\x20" + bytes(16)
    data = _damaged(noise + b"".join(head + rest for head in heads), damages)
    wanted = [
        place
        for place in range(len(data) - RECORD_OVERHEAD_BYTES + 1)
        if low <= int.from_bytes(data[place : place + 8], "big") <= high
        and int.from_bytes(data[place + 12 : place + 16], "big") % (1 << 31) >= ENTRY_HEAD_BYTES
    ]
    assert [place for place, *_ in candidates(data, low, high)] == wanted


@given(st.one_of(st.binary(max_size=80), st.binary(min_size=DATA_START, max_size=DATA_START)))
def test_unpacking_any_header_gives_a_header_a_version_or_a_reason(data: bytes) -> None:
    assert isinstance(SegmentHeader.unpack(data), SegmentHeader | int | str)


@given(numbers, numbers, damages)
def test_a_damaged_header_is_never_taken_for_another_header(
    first_id: int, last_id: int, damages: list[tuple[int, bytes]]
) -> None:
    header = SegmentHeader(SALT, 8192, first_id, last_id, 64, 640, 1)
    found = SegmentHeader.unpack(_damaged(header.pack(), damages)[:DATA_START])
    assert found == header or not isinstance(found, SegmentHeader)


@given(st.one_of(st.binary(max_size=200), st.binary(min_size=64, max_size=64)), damages)
def test_unpacking_any_meta_slot_gives_a_state_a_version_or_a_reason(
    data: bytes, damages: list[tuple[int, bytes]]
) -> None:
    assert isinstance(unpack_slot(data), tuple | int | str)
    good = pack_slot(3, MetaState())
    found = unpack_slot(_damaged(good, damages)[:SLOT_BYTES])
    assert found == (3, MetaState()) or not isinstance(found, tuple)
    committed = pack_committed(3, None)
    assert unpack_committed(_damaged(committed, damages)) in ((3, None), None)
    unpack_committed(data)


@given(payloads, st.integers(0, 300), st.booleans())
def test_of_a_commit_the_first_record_alone_is_settled(
    payloads: list[bytes], first_id: int, is_settled: bool
) -> None:
    data = _records(payloads, first_id, is_settled=is_settled)
    found = find_records(data, first_id, first_id + len(payloads))
    assert [each.is_settled for each in found[:1]] == [is_settled]
    assert not any(each.is_settled for each in found[1:])
    assert [each.index for each in found] == list(range(first_id, first_id + len(payloads)))
    marked = 16 + len(payloads[0]) + (SETTLED if is_settled else 0)
    assert data.startswith(encode_one(first_id, marked, 1, 7, payloads[0], SALT))


@settings(max_examples=300)
@given(st.binary(max_size=90), payloads, st.integers(1, 70_000), st.integers(0, 70_000))
def test_a_settled_record_is_found_wherever_it_begins_if_its_id_is_in_the_range(
    junk: bytes, payloads: list[bytes], first_id: int, lowest: int
) -> None:
    data = junk + _records(payloads, first_id) + bytes(40)
    found = [each for each in find_records(data, lowest, 70_000) if each.is_settled]
    if lowest <= first_id:
        assert found[0] == Found(len(junk), first_id, is_settled=True)
    else:
        assert found == []


@given(st.binary(max_size=400), numbers, numbers)
def test_looking_for_records_in_any_bytes_ends(data: bytes, first: int, last: int) -> None:
    for found in find_records(data, first, last):
        assert first <= found.index <= last
        assert 0 <= found.offset <= len(data) - RECORD_OVERHEAD_BYTES


@given(st.binary(max_size=300), damages)
def test_reading_any_meta_file_gives_a_finding_or_what_was_written(
    data: bytes, damages: list[tuple[int, bytes]]
) -> None:
    slot = pack_slot(3, MetaState())
    for content in (data, _damaged((slot + slot).ljust(META_BYTES, b"\0"), damages)):
        report = MetaReport("meta.hql")
        _judge_slots(report, content)
        assert report.findings or (report.sequence, report.state) == (3, MetaState())
