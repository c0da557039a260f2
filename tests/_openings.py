"""Directories as a crash, a fault or an older store left them, to be opened."""

from __future__ import annotations

import random
from collections.abc import Callable

from hqlwal_raft._format import (
    DATA_START,
    LOCK_NAME,
    META_NAME,
    SLOT_BYTES,
    MetaState,
    SegmentHeader,
    pack_slot,
    segment_name,
)
from hqlwal_raft.testing._kernel import MemoryKernel
from hqlwal_raft.testing._kernel_images import Image, Snapshot
from tests._directories import (
    LENGTH,
    PATH,
    VOTE,
    File,
    Store,
    entry,
    group,
    meta,
)

LOCK_PATH = f"{PATH}/{LOCK_NAME}"


def log_of_three() -> Store:
    return Store(
        File(1, group(1, 4), is_sealed=True),
        File(2, group(5, 4), is_sealed=True),
        File(3, group(9, 2) + group(11, 2), marked=2),
        File(4, is_unused=True),
    )


def header(kernel: MemoryKernel, number: int) -> SegmentHeader:
    found = SegmentHeader.unpack(kernel.contents()[f"{PATH}/{segment_name(number)}"])
    assert isinstance(found, SegmentHeader)
    return found


def without_lock(kernel: MemoryKernel) -> dict[str, bytes]:
    return {path: data for path, data in kernel.contents().items() if path != LOCK_PATH}


def torn() -> Store:
    file = File(3, group(9, 2) + group(11, 40), marked=2)
    store = log_of_three()
    store.files[segment_name(3)] = file.content
    store.flip(3, file.offset(3) + 20)
    store.flip(3, LENGTH - 1)
    return store


def torn_with_followers() -> Store:
    tail = File(1, group(1, 4))
    behind = File(2, [(entry(index), False) for index in (5, 6)])
    store = Store(tail, behind, File(3, is_unused=True), File(4, is_unused=True))
    store.flip(1, tail.offset(3) + 20)
    return store


def cut_off_truncation() -> Store:
    """The cut is noted, and some of what lies behind it is zeroed."""
    file = File(1, group(1, 2) + group(3, 1) + group(4, 40), marked=2, cut=2)
    store = Store(file)
    store[1][file.offset(2) : file.offset(3)] = bytes(file.offset(3) - file.offset(2))
    return store


def truncation_between_unlinks() -> Store:
    return Store(File(1, group(1, 4), marked=4), File(2, group(5, 4), is_sealed=True))


def unsealed() -> Store:
    """Roll-overs that wait for their seals; zeros with a flipped bit behind the records."""
    store = Store(
        File(1, group(1, 4), marked=2),
        File(2, group(5, 4)),
        File(3, group(9, 4)),
        File(4, is_unused=True),
    )
    store.flip(1, LENGTH - 5)
    return store


def torn_first() -> Store:
    """The first append ever: its bytes are there, the header that belongs to them is not."""
    store = Store(File(1, is_unused=True), File(2, is_unused=True))
    written = File(1, group(1, 30))
    store[1][DATA_START : written.offset(30)] = b"".join(written.encoded)
    return store


def torn_follower() -> Store:
    """A roll-over of which only the follower's header came to the disk."""
    return Store(File(1, group(1, 4)), File(2, first_id=5))


def nothing_needed() -> Store:
    store = log_of_three()
    store.files[META_NAME] = bytearray(meta(0, 12))
    return store


def purged_in_part() -> Store:
    store = log_of_three()
    store.files[META_NAME] = bytearray(meta(3, 9))
    store.files[META_NAME][SLOT_BYTES : 2 * SLOT_BYTES] = pack_slot(
        4, MetaState(None, VOTE, 1, state=b"mine")
    )
    return store


def ends_below_the_frontier() -> Store:
    store = torn()
    store.files[META_NAME] = bytearray(meta(1, 30))
    return store


def left_over() -> Store:
    store = torn()
    store.files[segment_name(5) + ".tmp"] = bytearray(b"x")
    store.files["meta.hql.tmp"] = bytearray(b"x")
    return store


CRASHED = {
    "torn": (torn, 11),
    "torn with followers": (torn_with_followers, 3),
    "cut-off truncation": (cut_off_truncation, 2),
    "truncation between unlinks": (truncation_between_unlinks, 8),
    "unsealed": (unsealed, 12),
    "torn first": (torn_first, 0),
    "torn follower": (torn_follower, 4),
    "nothing needed": (nothing_needed, 0),
    "purged in part": (purged_in_part, 12),
    "ends below the frontier": (ends_below_the_frontier, 0),
    "left over": (left_over, 11),
}


def crashes(kernel: MemoryKernel, run: Callable[[], object], at_most: int = 60) -> list[Image]:
    """Runs it; gives what a crash at each moment of it could leave."""
    rng = random.Random(5)
    images: dict[Image, None] = {}
    snapshots: dict[object, Snapshot[MemoryKernel]] = {}

    def take(word: str, path: str) -> None:
        snapshot = kernel.snapshot()
        snapshots.setdefault(snapshot.key(), snapshot)

    kernel.on_point = take
    run()
    take("", "")
    for snapshot in snapshots.values():
        if snapshot.count_images() <= at_most:
            found = list(snapshot.all_images())
        else:
            found = [snapshot.draw(rng) for _ in range(at_most)]
        images.update(dict.fromkeys(found))
    return list(images)


def flipped_before_the_mark() -> Store:
    file = File(3, group(9, 2) + group(11, 2), marked=3)
    store = log_of_three()
    store.files[segment_name(3)] = file.content
    store.flip(3, file.offset(1) + 20)
    return store


def flipped_before_a_settled_one() -> Store:
    file = File(3, group(9, 2) + group(11, 2) + group(13, 3))
    store = log_of_three()
    store.files[segment_name(3)] = file.content
    store.flip(3, file.offset(1) + 20)
    return store


def proven_by_a_later_segment() -> Store:
    tail = File(1, group(1, 4))
    store = Store(tail, File(2, group(5, 1) + group(6, 2)), File(3, is_unused=True))
    store.flip(1, tail.offset(2) + 20)
    return store


def first_record_proven_by_a_later_segment() -> Store:
    """Only the third segment proves that the second is damaged, not torn."""
    unsettled = [(entry(index), False) for index in (5, 6, 7)]
    store = Store(File(1, group(1, 4), marked=2), File(2, unsettled), File(3, group(8, 2)))
    store.flip(2, DATA_START + 20)
    return store


def one_byte_short() -> Store:
    store = log_of_three()
    del store[2][-1:]
    return store


def short_tail() -> Store:
    file = File(3, group(9, 2) + group(11, 2), marked=4)
    store = log_of_three()
    store.files[segment_name(3)] = file.content
    del store[3][file.offset(3) + 5 :]
    return store


def short_at_a_border() -> Store:
    file = File(3, group(9, 2) + group(11, 2), marked=4)
    store = log_of_three()
    store.files[segment_name(3)] = file.content
    del store[3][file.offset(3) :]
    return store


def short_prepared() -> Store:
    store = log_of_three()
    del store[4][300:]
    return store


def missing_middle() -> Store:
    return log_of_three().without(2)


def missing_first() -> Store:
    return log_of_three().without(1)


def missing_last() -> Store:
    return log_of_three().without(3, 4)


def unreadable_header() -> Store:
    store = log_of_three()
    store.flip(2, 20)
    return store


def unreadable_first_header() -> Store:
    store = log_of_three()
    store.flip(1, 20)
    return store


def first_record_of_the_tail() -> Store:
    store = log_of_three()
    store.flip(3, DATA_START + 20)
    return store


def follower_of_a_seal() -> Store:
    store = Store(File(1, group(1, 4), is_sealed=True), File(2, group(5, 2)))
    store.flip(2, DATA_START + 20)
    return store


def sealed_last() -> Store:
    file = File(2, group(5, 4), is_sealed=True)
    store = Store(File(1, group(1, 4), marked=4), file)
    store.flip(2, file.offset(2) + 20)
    return store


def below_the_frontier() -> Store:
    store = flipped_before_the_mark()
    store.files[META_NAME] = bytearray(meta(1, 10))
    return store


def with_a_torn_slot() -> Store:
    store = missing_middle()
    store.files[META_NAME][30] ^= 1
    store.files[segment_name(9) + ".tmp"] = bytearray(b"x")
    return store


#: name → how it is made, the last id that healing keeps, ids that were healthy
DAMAGED: dict[str, tuple[Callable[[], Store], int]] = {
    "flipped before the mark": (flipped_before_the_mark, 9),
    "flipped before a settled one": (flipped_before_a_settled_one, 9),
    "proven by a later segment": (proven_by_a_later_segment, 2),
    "first record proven by a later segment": (first_record_proven_by_a_later_segment, 4),
    "one byte short": (one_byte_short, 12),
    "short tail": (short_tail, 11),
    "short at a border": (short_at_a_border, 11),
    "short prepared": (short_prepared, 12),
    "missing middle": (missing_middle, 4),
    "missing first": (missing_first, 0),
    "missing last": (missing_last, 8),
    "unreadable header": (unreadable_header, 4),
    "unreadable first header": (unreadable_first_header, 0),
    "first record of the tail": (first_record_of_the_tail, 8),
    "follower of a seal": (follower_of_a_seal, 4),
    "sealed last": (sealed_last, 6),
    "below the frontier": (below_the_frontier, 0),
    "with a torn slot": (with_a_torn_slot, 4),
}
