"""A reference of the rules on a small scale: segments of three records of one size, as values.

Written from the rules alone, without bytes; ``agree`` holds the judgement of the same directory
as bytes against it. ``churn`` does what a store does to its files, in the order of the rules.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hqlwal_raft._format import (
    DATA_START,
    META_BYTES,
    META_NAME,
    SEALED,
    SLOT_OFFSETS,
    MetaState,
    SegmentHeader,
    pack_slot,
    segment_name,
)
from hqlwal_raft._types import Entry, LogId
from tests._directories import File, Store, meta, record

SLOTS = 3
RECORD = 40
LENGTH = DATA_START + SLOTS * RECORD + 8


class Damaged(Exception):
    pass


@dataclass
class Header:
    """``first`` 0: unused. ``mark``: so many records are known durable; ``cut`` a slot."""

    first: int = 0
    mark: int = 0
    is_sealed: bool = False
    cut: int | None = None


@dataclass
class Segment:
    header: Header = field(default_factory=Header)
    #: (id, settled), "bad" for what is no record, None for zeros
    slots: list[tuple[int, bool] | str | None] = field(default_factory=lambda: [None] * SLOTS)


@dataclass
class Image:
    first: int
    frontier: int
    segments: dict[int, Segment]


def reference(image: Image) -> list[int]:
    """The ids of the log; raises Damaged. After the rules of recovery, one by one."""
    if image.first == 0:
        return []
    numbers = sorted(number for number in image.segments if number >= image.first)
    if numbers != list(range(image.first, image.first + len(numbers))) or not numbers:
        raise Damaged("a segment is missing")
    want: int | None = None
    log: list[int] = []
    is_torn = has_unsealed = was_sealed = was_unused = False
    for number in numbers:
        segment = image.segments[number]
        header = segment.header
        settled = [slot[0] for slot in segment.slots if isinstance(slot, tuple) and slot[1]]
        if header.first and want is not None and not was_unused:
            if want <= image.frontier + 1 == header.first and image.frontier:
                want = header.first  # what is missing is purged
            if header.first == want:
                is_torn = False  # the entry that follows did not fit: nothing is missing
        was_unused = not header.first
        if is_torn:
            if header.mark or header.is_sealed or header.cut is not None:
                raise Damaged("a header behind the end proves what is missing")
            if any(want is None or index > want for index in settled):
                raise Damaged("a record behind the end proves what is missing")
            continue
        if header.first == 0:
            if was_sealed or (want is not None and any(index > want for index in settled)):
                raise Damaged("the header never came")
            is_torn = True
            continue
        if want is not None and header.first != want:
            raise Damaged("a gap")
        want = header.first
        count = 0
        while count < SLOTS and isinstance(slot := segment.slots[count], tuple) and slot[0] == want:
            log.append(want)
            want += 1
            count += 1
        if count < header.mark or (was_sealed and not count):
            raise Damaged("before the mark")
        for place in range(count, SLOTS):
            slot = segment.slots[place]
            is_proof = isinstance(slot, tuple) and slot[1] and slot[0] > want
            if is_proof and (header.cut is None or place < header.cut):
                raise Damaged("before a settled record")
        is_torn = count < SLOTS
        if header.is_sealed and number == numbers[-1] and not has_unsealed:
            raise Damaged("a sealed one is the last")
        has_unsealed = has_unsealed or not header.is_sealed
        was_sealed = header.is_sealed
    if want is not None and want <= image.frontier:
        return []
    return [index for index in log if index > image.frontier]


def draw(rng: random.Random) -> Image:
    """A log as a crash could leave it, then with something odd about it, or not."""
    segments: dict[int, Segment] = {}
    number = first = rng.randint(1, 3)
    index = rng.choice((1, 1, 5))
    for _ in range(rng.randint(1, 4)):
        segment = segments[number] = Segment(Header(index))
        count = SLOTS if rng.random() < 0.8 else rng.randint(0, SLOTS)
        for place in range(count):
            segment.slots[place] = (index, rng.random() < 0.5)
            index += 1
        segment.header.mark = rng.choice((0, count, rng.randint(0, count)))
        number += 1
        if count < SLOTS and rng.random() < 0.7:
            break
    for _ in range(rng.choice((0, 0, 1, 2))):
        segments[number] = Segment()
        number += 1
    used = [n for n in segments if segments[n].header.first]
    for n in used[: rng.randint(0, len(used))][: None if rng.random() < 0.1 else -1]:
        if None not in segments[n].slots:
            segments[n].header.mark, segments[n].header.is_sealed = SLOTS, True
    image = Image(first, rng.choice((0, 0, 0, max(index - 3, 0), index + 1)), segments)
    for _ in range(rng.choice((0, 1, 1, 2))):
        _spoil(rng, image, index)
    if rng.random() < 0.05:
        image.first = rng.choice((0, first + 1))
    return image


def _spoil(rng: random.Random, image: Image, index: int) -> None:
    if not image.segments:
        return
    number = rng.choice(list(image.segments))
    segment = image.segments[number]
    what = rng.randrange(8)
    if what <= 2:
        segment.slots[rng.randrange(SLOTS)] = rng.choice(("bad", None, "bad"))
    elif what == 3:
        place = rng.randrange(SLOTS)
        near = segment.header.first + place if segment.header.first else index
        segment.slots[place] = (max(near + rng.randint(-1, 1), 0), rng.random() < 0.5)
    elif what == 4:
        del image.segments[number]
    elif what == 5 and segment.header.first and not segment.header.is_sealed:
        cut = rng.randrange(1, SLOTS)
        segment.header = Header(segment.header.first, cut, cut=cut)
    elif what == 6 and segment.header.first and not segment.header.is_sealed:
        segment.header = Header(segment.header.first, rng.randint(0, SLOTS))
    elif what == 7 and segment.header.is_sealed:
        segment.header = replace(segment.header, is_sealed=False)


def to_bytes(image: Image) -> Store:
    frontier = image.frontier or None
    store = Store(meta_data=meta(image.first, frontier))
    for number, segment in image.segments.items():
        header = segment.header
        salt = File(number).salt
        made = SegmentHeader(salt, LENGTH)
        if header.first:
            made = SegmentHeader(
                salt,
                LENGTH,
                header.first,
                header.first + header.mark - 1 if header.mark else 0,
                DATA_START,
                DATA_START + header.mark * RECORD,
                SEALED if header.is_sealed else 0,
                DATA_START + header.cut * RECORD if header.cut is not None else 0,
            )
        data = made.pack()
        for place, slot in enumerate(segment.slots):
            if slot is None:
                data += bytes(RECORD)
            elif isinstance(slot, str):
                data += bytes((place * 37 + number * 11 + i * 7) % 255 + 1 for i in range(RECORD))
            else:
                each = Entry(1, slot[0], b"8 bytes.", 1)
                data += record(each, salt, is_settled=slot[1])
        store.files[segment_name(number)] = bytearray(data.ljust(LENGTH, b"\0"))
    return store


def agree(image: Image) -> bool:
    """Holds the two against each other; says whether it is damage."""
    report = to_bytes(image).examine(deep=True)
    found = [
        index
        for segment in report.judgement.kept
        for index in range(segment.first_id, segment.next_id)
        if index > image.frontier
    ]
    try:
        expected = reference(image)
    except Damaged as why:
        assert report.first_obstacle is not None, (why, image)
        return True
    assert report.first_obstacle is None, (report.first_obstacle, image)
    assert found == expected, image
    return False


def churn(path: str, rng: random.Random) -> Iterator[None]:
    """Appends, rolls over, seals, truncates and purges, for ever, a call of the system at a time,
    in the order of the writer's rules.
    """
    state, sequence, last, salt = MetaState(None, None, 0), 1, 0, 0
    with open(os.path.join(path, META_NAME + ".tmp"), "wb") as made:
        made.write((pack_slot(sequence, state) * 2).ljust(META_BYTES, b"\0"))
    yield
    os.rename(made.name, made.name.removesuffix(".tmp"))
    yield
    while True:
        number = first = 1 + salt % 7  # names are used again
        headers: dict[int, SegmentHeader] = {}
        for _ in range(rng.randint(2, 4)):
            salt += 1
            name = os.path.join(path, segment_name(number))
            with open(name + ".tmp", "wb") as made:
                made.write(SegmentHeader(salt, 4096).pack().ljust(4096, b"\0"))
            yield
            os.rename(name + ".tmp", name)
            yield
            if number == first:
                sequence, state = sequence + 1, replace(state, first_segment=first)
                yield from _save(path, sequence, state)
            file = os.open(name, os.O_RDWR)
            header, begins = SegmentHeader(salt, 4096, last + 1, 0, DATA_START, DATA_START), [64]
            for _ in range(rng.randint(2, 12)):
                last += 1
                each = Entry(1, last, bytes([last % 250 + 1]) * rng.randint(0, 90), 1)
                data = record(each, salt, is_settled=True)
                os.pwrite(file, header.pack(), 0)
                yield
                os.pwrite(file, data[:20], begins[-1])
                yield
                os.pwrite(file, data[20:], begins[-1] + 20)
                yield
                begins.append(begins[-1] + len(data))
                header = replace(header, id_until=last, data_end=begins[-1])
            headers[number] = header
            if number - 1 in headers:
                older = os.open(os.path.join(path, segment_name(number - 1)), os.O_RDWR)
                os.pwrite(older, replace(headers[number - 1], flags=SEALED).pack(), 0)
                os.close(older)
                yield
            if rng.random() < 0.5:  # a truncation within the tail
                kept = rng.randint(1, len(begins) - 2)
                last, end = header.id_from + kept - 1, begins[kept]
                header = replace(header, id_until=last, data_end=end, cut=end)
                os.pwrite(file, header.pack(), 0)
                yield
                os.pwrite(file, bytes(begins[-1] - end), end)
                yield
                headers[number] = replace(header, cut=0)
            os.close(file)
            number += 1
        for each_number, header in headers.items():  # purged, one after the other
            left = [n for n in headers if n > each_number]
            purged = LogId(1, header.id_until, 1)
            state = replace(state, first_segment=min(left, default=0), last_purged=purged)
            sequence += 1
            yield from _save(path, sequence, state)
            os.unlink(os.path.join(path, segment_name(each_number)))
            yield


def _save(path: str, sequence: int, state: MetaState) -> Iterator[None]:
    file = os.open(os.path.join(path, META_NAME), os.O_RDWR)
    for offset in SLOT_OFFSETS:
        os.pwrite(file, pack_slot(sequence, state), offset)
        yield
    os.close(file)
