"""The sparse index of a segment's records against the full list of where they begin."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqlwal_raft._format import DATA_START
from hqlwal_raft._places import GROUP_BYTES, GROUP_RECORDS, Places

#: runs of records: how many, of which sizes in turn
runs = st.tuples(
    st.integers(1, 150),
    st.lists(st.sampled_from([32, 33, 288, 5000, GROUP_BYTES, 70_000]), min_size=1, max_size=3),
)
#: after each step: whether there is a pause, in which records are grouped, and what is cut off
steps = st.lists(
    st.tuples(runs, st.booleans(), st.none() | st.integers(0, 100)), min_size=1, max_size=8
)


class Model:
    """Every place, one by one."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.end = DATA_START
        self.places = Places()

    def add(self, sizes: Sequence[int]) -> None:
        ends = list(accumulate(sizes, initial=self.end))
        self.end = ends.pop()
        self.offsets += ends
        self.places.add(ends, self.end)

    def cut(self, count: int) -> None:
        if count < len(self.offsets):
            self.end = self.offsets[count]
            del self.offsets[count:]
        self.places.cut(count)

    def bounds(self) -> list[int]:
        return [*self.offsets, self.end]

    def check(self) -> None:
        bounds, places, count = self.bounds(), self.places, len(self.offsets)
        assert len(places) == count
        for record in range(count):
            offset, further = places.before(record)
            assert offset == bounds[record - further]
            assert further < GROUP_RECORDS
            assert not further or bounds[record] - offset < GROUP_BYTES
        for record in range(1, count + 1):
            behind = places.behind(record, self.end)
            assert behind in bounds[record : record + GROUP_RECORDS]
            assert behind == bounds[record] or behind - bounds[record] < GROUP_BYTES
        for record in range(count):
            for stop in {record + 1, min(record + 3, count), (record + 1 + count) // 2, count}:
                both = *places.before(record), places.behind(stop, self.end)
                assert places.span(record, stop, self.end) == both


@settings(max_examples=60)
@given(steps)
def test_every_record_is_found_from_a_place_that_is_near(
    steps: list[tuple[tuple[int, list[int]], bool, int | None]],
) -> None:
    model = Model()
    for (count, sizes), is_paused, cut in steps:
        model.add([sizes[i % len(sizes)] for i in range(count)])
        if is_paused:
            model.places.settle(model.end)
        if cut is not None:
            model.cut(len(model.offsets) * cut // 100)
        model.check()
    model.places.settle(model.end)
    model.check()


@settings(max_examples=60)
@given(steps, st.integers(0, 200_000), st.integers(0, 100), st.booleans())
def test_what_fits_ends_before_the_limit_or_is_the_shortest_piece_there_is(
    steps: list[tuple[tuple[int, list[int]], bool, int | None]],
    room: int,
    first: int,
    is_settled: bool,
) -> None:
    model = Model()
    for (count, sizes), _, _ in steps:
        model.add([sizes[i % len(sizes)] for i in range(count)])
    if is_settled:
        model.places.settle(model.end)
    bounds = model.bounds()
    record = (len(bounds) - 2) * first // 100
    limit = bounds[record] + room
    stop = model.places.fitting(record, limit)
    assert record < stop < len(bounds)
    assert model.places.behind(stop, model.end) == bounds[stop]
    if bounds[stop] > limit:
        assert stop - record <= GROUP_RECORDS
        assert stop == record + 1 or bounds[stop] - bounds[record] <= GROUP_BYTES
    # nor is more than a group left out
    more = [n for n in range(stop, len(bounds)) if bounds[n] <= limit]
    assert not more or more[-1] - stop <= GROUP_RECORDS


def lengths_of(kind: str, count: int) -> Iterator[int]:
    cycle = {"alike": [288], "mixed": [288, 300, 32], "tiny": [32, 33], "large": [70_000, 33, 90]}
    return (cycle[kind][i % len(cycle[kind])] for i in range(count))


@pytest.mark.parametrize(
    ("kind", "most"), [("alike", 0.001), ("mixed", 0.4), ("tiny", 0.4), ("large", 13)]
)
def test_the_index_of_many_records_is_small(kind: str, most: float) -> None:
    """``most`` bytes an entry, beside the newest thousand."""
    count = 30_000
    places = Places()
    end = DATA_START
    for size in lengths_of(kind, count):
        places.add_one(end, end + size)
        assert places.memory_bytes <= 4 * 1025 + 12 * (len(places) // 16 + 2) or kind == "large"
        end += size
    places.settle(end)
    assert len(places) == count
    assert places.memory_bytes <= max(most * count, 12)
    # however large records are, it is a small part of what they take
    assert places.memory_bytes <= 12 + (end - DATA_START) / 80


def test_records_that_end_where_a_segment_can_end_at_most_have_their_place() -> None:
    places = Places()
    last = (1 << 32) - 1
    places.add(array("I", (last - 96, last - 64, last - 32)), last)
    places.settle(last)
    assert places.before(2) == (last - 32, 0)
    assert places.behind(3, last) == last
