"""Damaged records are given back from a peer's copies while the store is open: only what is left of
a record proves a copy, and nothing but proven damage is written.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import (
    CorruptionError,
    Entry,
    LogId,
    MendOutcome,
    RaftLogStorage,
    Vote,
    WalClosedError,
    WalPoisonedError,
    _proving,
)
from hqlwal_raft._format import DATA_START, SegmentHeader
from hqlwal_raft._records import encode_one
from hqlwal_raft.audit import Verdict, examine
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests._support import entries, on_both_backends, segments
from tests.proofs.disk import Recorder, all_images

SEGMENT_SIZE = 8192
#: eight records of 900 bytes fill a segment: 30 entries take four
SIZE = 900
RECORD = 32 + SIZE
LOG = entries(1, 31, size=SIZE)
pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def fill(path: Path) -> None:
    async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
        for entry in LOG:
            await store.append([entry])
        await store.save_vote(Vote(7, "me"))


def place_of(path: Path, index: int) -> tuple[Path, int]:
    """The file, and the offset in it, of an entry's record."""
    number, place = divmod(index - 1, 8)
    return segments(path)[number], DATA_START + place * RECORD


def damage(path: Path, index: int, *offsets: int) -> None:
    """Changes bytes of a record; offsets in it."""
    file, start = place_of(path, index)
    data = bytearray(file.read_bytes())
    for offset in offsets:
        data[start + offset] ^= 0x41
    file.write_bytes(data)


def bytes_of(path: Path) -> dict[str, bytes]:
    """The records of the log's segments; headers, and prepared segments, are housekeeping's."""
    return {file.name: file.read_bytes()[DATA_START:] for file in segments(path)[:4]}


def opened(path: Path, **options: Any) -> Any:
    return RaftLogStorage.open(path, segment_size=SEGMENT_SIZE, cache_bytes=0, **options)


#: where in a record something may be damaged: what lies there
PLACES = {
    "id": (3,),
    "checksum": (9,),
    "length": (14,),
    "top of the length": (12,),
    "term": (20,),
    "node id": (30,),
    "payload": (500,),
    "many bytes of the payload": tuple(range(100, 700)),
    "the last byte": (RECORD - 1,),
    "id and length": (2, 15),
    "id and payload": (0, 700),
    "everything but the checksum": (*range(8), *range(12, RECORD)),
}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("index", [1, 5, 8, 9, 16])
@on_both_backends
async def test_a_damaged_record_is_given_back_from_a_copy(
    tmp_path: Path, what: str, index: int
) -> None:
    await fill(tmp_path)
    before = bytes_of(tmp_path)
    damage(tmp_path, index, *PLACES[what])
    async with opened(tmp_path) as store:
        with pytest.raises(CorruptionError):
            await store.try_get_log_entries(index, index + 1)
        outcome = await store.mend([LOG[index - 1]])
        assert outcome == MendOutcome((index,), ())
        assert await store.try_get_log_entries(0) == LOG
        assert bytes_of(tmp_path) == before
    assert examine(tmp_path, deep=True).verdict is Verdict.INTACT


@pytest.mark.parametrize(
    "copy",
    [
        LOG[4]._replace(term=2),
        LOG[4]._replace(node_id=1),
        LOG[4]._replace(index=6),
        LOG[4]._replace(payload=LOG[4].payload[:-1]),
        LOG[4]._replace(payload=LOG[4].payload + b"x"),
        LOG[4]._replace(payload=b"?" + LOG[4].payload[1:]),
        LOG[4]._replace(payload=b""),
        LOG[4]._replace(payload=bytes(SEGMENT_SIZE)),
    ],
)
@pytest.mark.parametrize("what", PLACES)
async def test_another_entry_is_no_copy_and_changes_nothing(
    tmp_path: Path, what: str, copy: Entry
) -> None:
    await fill(tmp_path)
    damage(tmp_path, 5, *PLACES[what])
    before = bytes_of(tmp_path)
    async with opened(tmp_path) as store:
        outcome = await store.mend([copy])
        assert outcome.mended == ()
        assert outcome.unproven == ((5,) if copy.index == 5 else ())
        assert bytes_of(tmp_path) == before
        # the right one is found among others
        assert (await store.mend([copy, LOG[4], copy])).mended == (5,)
        assert await store.try_get_log_entries(0) == LOG


async def test_healthy_records_and_what_is_not_there_are_passed_over(tmp_path: Path) -> None:
    await fill(tmp_path)
    before = bytes_of(tmp_path)
    wrong = [entry._replace(payload=b"wrong") for entry in LOG]
    async with opened(tmp_path) as store:
        nothing = MendOutcome((), ())
        assert await store.mend([]) == nothing
        assert await store.mend(wrong) == nothing
        assert await store.mend([Entry(1, 0), Entry(1, 31), Entry(1, (1 << 64) - 1)]) == nothing
        assert bytes_of(tmp_path) == before
        await store.purge(LogId(1, 20))
        assert await store.mend(LOG) == nothing
    async with opened(tmp_path / "empty") as store:
        assert await store.mend(LOG) == nothing


async def test_many_damaged_records_in_many_segments_are_mended_at_once(tmp_path: Path) -> None:
    await fill(tmp_path)
    before = bytes_of(tmp_path)
    for index in (2, 3, 4, 8, 9, 13, 14, 15, 16, 24):
        damage(tmp_path, index, *(PLACES["payload"] if index % 2 else PLACES["id and length"]))
    copies = [entry for entry in reversed(LOG) if entry.index not in (4, 13)]
    async with opened(tmp_path) as store:
        outcome = await store.mend([*copies, LOG[3]._replace(payload=b"wrong")])
        assert outcome.mended == (2, 3, 8, 9, 24)
        # 14 has no place: 13, whose end would be its begin, is lost, and its own head is damaged
        assert outcome.unproven == (4, 14, 15, 16)
        with pytest.raises(CorruptionError):
            await store.try_get_log_entries(4, 5)
        assert await store.try_get_log_entries(17, 25) == LOG[16:24]
        assert await store.mend(LOG) == MendOutcome((4, 13, 14, 15, 16), ())
        assert await store.try_get_log_entries(0) == LOG
    assert bytes_of(tmp_path) == before


async def test_a_head_that_is_damaged_needs_its_neighbour_in_its_place(tmp_path: Path) -> None:
    # The stored checksum fits a shorter record that begins here: a one-in-2^32 chance, made by
    # hand. What is behind it contradicts.
    await fill(tmp_path)
    file, start = place_of(tmp_path, 5)
    data = bytearray(file.read_bytes())
    header = SegmentHeader.unpack(bytes(data[:DATA_START]))
    assert isinstance(header, SegmentHeader)
    shorter = Entry(1, 5, b"shorter")
    record = encode_one(5, 16 + 7, 1, 0, b"shorter", header.salt)
    data[start + 8 : start + 12] = record[8:12]
    data[start + 14] ^= 0xFF  # its length
    file.write_bytes(data)
    before = bytes_of(tmp_path)
    async with opened(tmp_path) as store:
        assert await store.mend([shorter]) == MendOutcome((), (5,))
        assert bytes_of(tmp_path) == before


async def test_the_settled_bit_is_given_back_as_it_was(tmp_path: Path) -> None:
    # each append by itself is settled; those of a batch behind the first are not
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(LOG[:6])
        await store.append(LOG[6:8])
        await store.append(LOG[8:12])
    before = bytes_of(tmp_path)
    for index in range(1, 9):
        damage(tmp_path, index, 12, 200)
    async with opened(tmp_path) as store:
        assert (await store.mend(LOG)).mended == tuple(range(1, 9))
    assert bytes_of(tmp_path) == before


async def test_readers_go_on_and_writers_wait_their_turn(tmp_path: Path) -> None:
    await fill(tmp_path)
    damage(tmp_path, 3, 100)
    async with opened(tmp_path) as store:
        reader = await store.get_log_reader()
        await store.append(entries(31, 32, size=SIZE))
        assert (await store.mend(LOG)).mended == (3,)
        await store.append(entries(32, 33, size=SIZE))
        assert [entry.index for entry in await reader.try_get_log_entries(0)] == list(range(1, 33))
        await store.truncate(LogId(1, 4))
        await store.append(entries(4, 6, size=SIZE))
    assert examine(tmp_path, deep=True).verdict is Verdict.INTACT


async def test_a_record_of_the_segment_that_is_written_to_is_mended_and_writing_goes_on(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    async with opened(tmp_path) as store:
        damage(tmp_path, 27, 100)
        with pytest.raises(CorruptionError):
            await store.try_get_log_entries(27, 28)
        assert await store.mend(LOG) == MendOutcome((27,), ())
        more = entries(31, 50, size=SIZE)
        for entry in more:
            await store.append([entry])
        assert await store.try_get_log_entries(0) == [*LOG, *more]
    assert examine(tmp_path, deep=True).verdict is Verdict.INTACT


async def test_where_a_damaged_length_led_astray_the_records_behind_it_are_found_again(
    tmp_path: Path,
) -> None:
    # entry 3 holds what looks like a head, to which its damaged length leads, and from which the
    # lengths go on to entry 5: as many records are found as there are
    head = bytes(12) + struct.pack(">I", 2 * RECORD - 420 - 16)
    log = [*LOG[:2], Entry(1, 3, bytes(388) + head + bytes(SIZE - 404)), *LOG[3:]]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for entry in log:
            await store.append([entry])
    file, start = place_of(tmp_path, 3)
    data = bytearray(file.read_bytes())
    data[start + 14] ^= 2
    file.write_bytes(data)
    async with opened(tmp_path) as store:
        assert await store.try_get_log_entries(5, 9) == log[4:8]
        with pytest.raises(CorruptionError):
            await store.try_get_log_entries(4, 5)
        assert await store.mend(log) == MendOutcome((3,), ())
        assert await store.try_get_log_entries(0) == log


def test_the_store_for_threads_mends_too(tmp_path: Path) -> None:
    with BlockingRaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        for entry in LOG:
            store.append([entry])
    damage(tmp_path, 11, 100)
    with BlockingRaftLogStorage.open(tmp_path, cache_bytes=0) as store:
        assert store.mend(LOG) == MendOutcome((11,), ())
        assert store.try_get_log_entries(0) == LOG
    with pytest.raises(WalClosedError):
        store.mend(LOG)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
async def test_where_the_disk_fails_it_is_said_and_the_record_is_damaged_or_whole(
    tmp_path: Path, call: str
) -> None:
    await fill(tmp_path)
    damage(tmp_path, 3, 100)
    environment = FailingEnvironment()
    async with opened(tmp_path, environment=environment) as store:
        environment.fail(call, errno.EIO, where=lambda path: path.endswith(".wal"))
        with pytest.raises(WalPoisonedError):
            await store.mend(LOG)
    async with opened(tmp_path) as store:
        await store.mend(LOG)
        assert await store.try_get_log_entries(0) == LOG


async def test_a_segment_that_cannot_be_read_changes_nothing_and_the_store_goes_on(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    damage(tmp_path, 3, 100)
    environment = FailingEnvironment()
    async with opened(tmp_path, environment=environment) as store:
        environment.fail("pread", errno.EIO, where=lambda path: path.endswith("1.wal"))
        with pytest.raises(OSError) as caught:
            await store.mend(LOG)
        assert caught.value.errno == errno.EIO
        await store.append(entries(31, 32))
        assert (await store.mend(LOG)).mended == (3,)


async def test_what_is_no_entry_is_refused(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with opened(tmp_path) as store:
        no_entries: list[Any] = [
            *(None, 7, LOG[0], [None], [(1, 2, b"")], [Entry(1, -1)]),
            [LOG[0]._replace(payload="x")],  # type: ignore[arg-type]
        ]
        for wrong in no_entries:
            with pytest.raises((TypeError, ValueError)):
                await store.mend(wrong)


# --- every bit -----------------------------------------------------------------------------

SALT = 0x5A175A17


def prove(data: bytes, base: int, first: int, stop: int, copies: list[Entry]) -> Any:
    return _proving.prove(data, base, SALT, first, stop, copies, is_all=True)


def records_of(log: list[Entry]) -> Iterator[bytes]:
    for entry in log:
        marked = 16 + len(entry.payload) | (entry.index % 2 << 31)
        yield encode_one(entry.index, marked, entry.term, entry.node_id, entry.payload, SALT)


def test_every_bit_of_a_segment_is_given_back() -> None:
    log = [Entry(3, index, b"%d;" % index * (index % 4), 9) for index in range(7, 15)]
    whole = b"".join(records_of(log))
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            found = prove(bytes(data), 64, 7, 15, log)
            assert len(found.patches) == 1
            for patch in found.patches:
                data[patch.offset - 64 : patch.offset - 64 + len(patch.record)] = patch.record
            assert data == whole
            assert found.unproven == ()


def test_two_damaged_records_beside_each_other_are_given_back() -> None:
    log = [Entry(3, index, b"%d;" % index * 9) for index in range(1, 7)]
    records = list(records_of(log))
    whole = b"".join(records)
    starts = [sum(map(len, records[:number])) for number in range(len(records))]
    for first in range(5):
        for one in (4, 9, 14, 40):
            for other in (4, 9, 14, 40):
                data = bytearray(whole)
                data[starts[first] + one] ^= 1
                data[starts[first + 1] + other] ^= 1
                found = prove(bytes(data), 0, 1, 7, log)
                for patch in found.patches:
                    data[patch.offset : patch.offset + len(patch.record)] = patch.record
                expected = set() if data == whole else {first + 1, first + 2}
                assert set(found.unproven) <= expected
                # heads that are damaged beside each other prove no place of each other
                assert data == whole or (one in (4, 14) and other == 4)


def test_a_copy_of_another_length_is_never_taken_for_the_record() -> None:
    log = [Entry(3, index, bytes(50)) for index in range(1, 4)]
    whole = bytearray(b"".join(records_of(log)))
    whole[82 + 12 : 82 + 16] = struct.pack(">I", 99999)
    wrong = [Entry(3, 2, bytes(size)) for size in range(130) if size != 50]
    assert prove(bytes(whole), 0, 1, 4, wrong) == ((), (2,))
    assert len(prove(bytes(whole), 0, 1, 4, [*wrong, log[1]]).patches) == 1


@pytest.mark.parametrize("size", [40, 49, 51, 60])
@pytest.mark.parametrize("index", [2, 3])
def test_a_copy_that_would_end_elsewhere_is_not_taken_though_its_checksum_fits(
    index: int, size: int
) -> None:
    # a one-in-2^32 chance, made by hand; the head, which would contradict, is damaged
    log = [Entry(3, index, bytes(50)) for index in range(1, 4)]
    wrong = Entry(3, index, bytes(size))
    data = bytearray(b"".join(records_of(log)))
    start = (index - 1) * 82
    data[start + 8 : start + 12] = next(iter(records_of([wrong])))[8:12]
    data[start + 14] ^= 0xFF
    assert prove(bytes(data), 0, 1, 4, [wrong]) == ((), (index,))


# --- crashes -------------------------------------------------------------------------------


def test_a_cut_at_any_step_leaves_each_record_damaged_or_whole() -> None:
    kernel = MemoryKernel()
    path = "/node/log"
    options: dict[str, Any] = {"segment_size": SEGMENT_SIZE, "cache_bytes": 0}
    with BlockingRaftLogStorage.open(path, environment=kernel, **options) as store:
        for entry in LOG:
            store.append([entry])
    files = kernel.contents()
    damaged = dict(files)
    for number, place in ((1, 2), (1, 3), (2, 0)):
        name = f"{path}/{number:016d}.wal"
        data = bytearray(damaged[name])
        data[DATA_START + place * RECORD + 100] ^= 1
        damaged[name] = bytes(data)
    kernel = MemoryKernel.of(damaged)
    with BlockingRaftLogStorage.open(path, environment=kernel, **options) as store:
        with Recorder(kernel) as recorder:
            outcome = store.mend(LOG)
        assert outcome == MendOutcome((3, 4, 9), ())
        seen = set()
        for moment in recorder.moments:
            for image in moment.images():
                found = image.contents()
                seen.add(tuple(sorted(_mended(files, damaged, found))))
        assert seen == {(), (3,), (3, 4), (3, 4, 9)}
        for image in all_images(kernel):
            assert _mended(files, damaged, image.contents()) == {3, 4, 9}


def _mended(
    whole: dict[str, bytes], damaged: dict[str, bytes], found: dict[str, bytes]
) -> set[int]:
    """The records that are as they were before the damage; each byte is of before or of after."""
    mended = set()
    for number in range(1, 5):
        name = f"/node/log/{number:016d}.wal"
        for index in range(number * 8 - 7, min(number * 8, 30) + 1):
            start = DATA_START + (index - 1) % 8 * RECORD
            record = found[name][start : start + RECORD]
            if record == whole[name][start : start + RECORD]:
                if record != damaged[name][start : start + RECORD]:
                    mended.add(index)
            else:
                assert index in (3, 4, 9)
    return mended


def test_a_record_in_another_s_place_is_damage_that_no_copy_proves() -> None:
    log = [Entry(3, index, b"%d" % index * 50) for index in range(1, 5)]
    records = list(records_of(log))
    swapped = records[0] + records[2] + records[1] + records[3]
    assert prove(swapped, 0, 1, 5, log) == ((), (2, 3))


def test_behind_a_record_that_is_lost_the_next_one_is_found_by_its_length() -> None:
    log = [Entry(3, index, b"%d" % index * 50) for index in range(1, 5)]
    whole = b"".join(records_of(log))
    data = bytearray(whole)
    data[82 + 40] ^= 1
    data[164 + 40] ^= 1
    [patch] = prove(bytes(data), 0, 1, 5, log[2:]).patches
    assert (patch.id, patch.offset, patch.record) == (3, 164, whole[164 : 164 + 82])
