"""The decoder on any bytes: never raises, never loops, never looks outside of its buffer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hqlwal_raft import Entry
from hqlwal_raft._format import (
    DATA_START,
    META_BYTES,
    RECORD_OVERHEAD_BYTES,
    SLOT_BYTES,
    MetaState,
    SegmentHeader,
    pack_committed,
    pack_slot,
    unpack_committed,
    unpack_slot,
)
from hqlwal_raft._meta import MetaReport
from hqlwal_raft._scan import decode, hop, scan
from hqlwal_raft._segment import encode

SALT = 0x5EED

numbers = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))
payloads = st.lists(st.binary(max_size=80), min_size=1, max_size=12)
#: what is done to good bytes: at a place, put something else
damages = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=24)), max_size=4)


def _records(payloads: list[bytes], first_id: int) -> bytes:
    entries = [Entry(1, first_id + i, payload, 7) for i, payload in enumerate(payloads)]
    return encode(entries, first_id, SALT, 0, 1 << 20)[0]


def _damaged(data: bytes, damages: list[tuple[int, bytes]]) -> bytes:
    for place, junk in damages:
        at = place % (len(data) + 1)
        data = data[:at] + junk + data[at + len(junk) :]
    return data


def _check_scan(data: bytes, first_id: int, start: int, stop: int) -> None:
    found = scan(data, SALT, first_id, start, stop)
    limit = max(start, min(stop, len(data)))
    assert start <= found.end <= limit
    assert list(found.offsets) == sorted(set(found.offsets))
    assert all(start <= offset < found.end for offset in found.offsets)
    assert found.next_id == first_id + len(found.offsets)
    assert found.why
    # what the scan takes for healthy, the reader takes too, and nothing of it lies outside
    read = decode(data[start : found.end], SALT, first_id, len(found.offsets))
    assert [entry.index for entry in read] == list(range(first_id, found.next_id))
    assert sum(RECORD_OVERHEAD_BYTES + len(entry.payload) for entry in read) == found.end - start
    # and nothing that follows the buffer's end can change what was found within it
    assert scan(data[:limit] + b"\xff" * 64, SALT, first_id, start, limit) == found


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
    found = scan(bad, SALT, first_id, 0, len(bad))
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


@given(payloads, st.integers(0, 300), damages, st.integers(0, 200), st.integers(0, 2000))
def test_hopping_over_any_lengths_ends_and_stays_inside(
    payloads: list[bytes], first_id: int, damages: list[tuple[int, bytes]], start: int, stop: int
) -> None:
    data = _damaged(_records(payloads, first_id), damages)
    offsets = list(hop(data, start, stop))
    assert offsets == sorted(set(offsets))
    assert all(
        start <= offset <= min(stop, len(data)) - RECORD_OVERHEAD_BYTES for offset in offsets
    )


@given(payloads, st.integers(0, 300))
def test_hopping_over_healthy_records_finds_each(payloads: list[bytes], first_id: int) -> None:
    data = _records(payloads, first_id)
    assert hop(data, 0, len(data)) == scan(data, SALT, first_id, 0, len(data)).offsets


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


@given(st.binary(max_size=300), damages)
def test_reading_any_meta_file_gives_a_report(
    data: bytes, damages: list[tuple[int, bytes]]
) -> None:
    slot = pack_slot(3, MetaState())
    for content in (data, _damaged((slot + slot).ljust(META_BYTES, b"\0"), damages)):
        report = MetaReport("meta.hql", content)
        assert report.findings or report.sequence == 3
