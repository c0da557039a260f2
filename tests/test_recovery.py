"""What an open makes of a directory: every rule, a crash at every step, healing and its crashes."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import (
    COMMITTED_OFFSETS,
    DATA_START,
    LOCK_NAME,
    META_NAME,
    SLOT_BYTES,
    MetaState,
    SegmentHeader,
    pack_committed,
    pack_lock,
    pack_slot,
    segment_name,
    unpack_lock,
)
from hqlwal_raft._recovery import Recovered, recover
from hqlwal_raft._types import Entry, LogId
from hqlwal_raft.audit import Verdict, examine, salvage
from hqlwal_raft.errors import (
    CorruptionError,
    UnknownVersionError,
    WalCopyError,
    WalLockedError,
)
from hqlwal_raft.testing._kernel import MemoryKernel
from hqlwal_raft.testing._kernel_images import Image, Snapshot
from tests._directories import (
    LENGTH,
    PATH,
    VOTE,
    File,
    Store,
    entries_of,
    entry,
    group,
    meta,
    recovered,
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


def segments(kernel: MemoryKernel) -> list[str]:
    names = [path.removeprefix(f"{PATH}/") for path in kernel.contents()]
    return [name for name in names if name.endswith(".wal")]


def without_lock(kernel: MemoryKernel) -> dict[str, bytes]:
    return {path: data for path, data in kernel.contents().items() if path != LOCK_PATH}


# --- what an open gives ------------------------------------------------------------------


def test_a_healthy_log_is_opened_with_all_that_a_log_needs() -> None:
    kernel = log_of_three().kernel()
    before = without_lock(kernel)
    entries, result = recovered(kernel)
    assert entries == [entry(index) for index in range(1, 13)]
    assert without_lock(kernel) == before
    assert result.last_log_id == entry(12).log_id
    assert (result.meta.state.vote, result.meta.state.state) == (VOTE, b"mine")
    assert [s.is_sealed for s in result.segments] == [True, True, False]
    tail = result.segments[-1]
    assert (tail.next_id, tail.durable_next_id, tail.end) == (13, 13, tail.durable_end)
    assert (tail.count, len(tail.offsets or ())) == (4, 4)
    (prepared,) = result.prepared
    for each in (tail, prepared):
        assert each.file is not None
        each.file.write(each.end, (b"x",))
        assert each.has_room
    assert prepared.offsets is not None
    result.directory.close()


def test_an_empty_directory_gets_its_meta_durably() -> None:
    kernel = MemoryKernel()
    entries, result = recovered(kernel)
    assert (entries, result.segments, result.prepared, result.last_log_id) == ([], [], [], None)
    assert result.meta.state == MetaState()
    for image in kernel.snapshot().all_images():
        assert examine(PATH, environment=MemoryKernel.of(image)).verdict is Verdict.INTACT
    result.directory.close()
    again = recover(kernel, PATH)
    state = MetaState(vote=VOTE)
    for step in again.meta.steps(state):
        step.carry_out(again.directory)
    again.directory.close()
    assert recover(kernel, PATH).meta.state == state


def test_a_crash_while_a_directory_is_made_leaves_one_that_opens() -> None:
    kernel = MemoryKernel()
    for image in crashes(kernel, lambda: recover(kernel, PATH).directory.close()):  # noqa: PLW0108
        entries, result = recovered(MemoryKernel.of(image))
        assert entries == []
        result.directory.close()


def test_the_state_in_meta_survives_one_damaged_slot_which_is_written_again() -> None:
    for offset in (0, SLOT_BYTES):
        store = log_of_three()
        store.files[META_NAME][offset + 30] ^= 1
        kernel = store.kernel()
        recovered(kernel)[1].directory.close()
        data = kernel.contents()[f"{PATH}/{META_NAME}"]
        assert data[:SLOT_BYTES] == data[SLOT_BYTES : 2 * SLOT_BYTES] == meta(1)[:SLOT_BYTES]


def test_a_lagging_slot_is_written_before_what_it_names_is_removed() -> None:
    store = log_of_three()
    newer = MetaState(LogId(1, 8, 9), VOTE, 3)
    store.files[META_NAME][:SLOT_BYTES] = pack_slot(6, newer)
    kernel = store.kernel()
    for image in crashes(kernel, lambda: recovered(kernel)[1].directory.close()):  # noqa: PLW0108
        data = dict(image.contents())
        if f"{PATH}/{segment_name(1)}" not in data:
            slot = pack_slot(6, newer)
            assert data[f"{PATH}/{META_NAME}"][: 2 * SLOT_BYTES] == slot * 2


# --- committed ---------------------------------------------------------------------------


def test_the_latest_hint_that_the_log_reaches_is_taken_and_others_do_not_come_back() -> None:
    def hints(store: Store, older: LogId | None, newer: LogId | None) -> Store:
        for sequence, log_id in ((6, older), (7, newer)):
            data, offset = pack_committed(sequence, log_id), COMMITTED_OFFSETS[sequence % 2]
            store.files[META_NAME][offset : offset + len(data)] = data
        return store

    near, far = LogId(2, 11, 9), LogId(2, 13, 9)
    kernel = hints(log_of_three(), far, near).kernel()
    assert recover(kernel, PATH).meta.committed == near
    for older in (near, far):
        expected = near if older == near else None
        kernel = hints(log_of_three(), older, far).kernel()
        result = recover(kernel, PATH)
        assert result.meta.committed == expected
        result.directory.close()
        data = kernel.contents()[f"{PATH}/{META_NAME}"]
        for image in kernel.snapshot().all_images():
            again = recover(MemoryKernel.of(image), PATH)
            assert again.meta.committed == expected
        assert far.index not in (data[COMMITTED_OFFSETS[0] + 32], data[COMMITTED_OFFSETS[1] + 32])


# --- what a crash left -------------------------------------------------------------------


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


@pytest.mark.parametrize("name", CRASHED)
def test_what_a_crash_left_is_put_in_order(name: str) -> None:
    make, last = CRASHED[name]
    kernel = make().kernel()
    assert examine(PATH, environment=kernel).first_obstacle is None
    entries, result = recovered(kernel)
    frontier = result.meta.state.last_purged
    first = frontier.index + 1 if frontier else 1
    assert [each.index for each in entries] == list(range(first, last + 1))
    assert result.last_log_id == (entry(last).log_id if result.segments else None)
    assert all(s.is_sealed for s in result.segments[:-1])
    assert not any(s.is_sealed for s in (*result.segments[-1:], *result.prepared))
    assert all(s.header.is_unused for s in result.prepared)
    result.directory.close()
    # What is in order is opened without a change, whatever page the disk did not write yet.
    for image in kernel.snapshot().all_images():
        again = MemoryKernel.of(image)
        report = examine(PATH, deep=True, environment=again)
        assert report.verdict is Verdict.INTACT, report.all_findings
        before = without_lock(again)
        assert recovered(again)[0] == entries
        assert without_lock(again) == before


@pytest.mark.parametrize("name", CRASHED)
def test_a_crash_at_any_step_of_recovery_leaves_the_same_log(name: str) -> None:
    make, _ = CRASHED[name]
    kernel = make().kernel()
    expected: list[Entry] = []

    def run() -> None:
        entries, result = recovered(kernel)
        expected.extend(entries)
        result.directory.close()

    images = crashes(kernel, run)
    assert len(images) > 3
    rng = random.Random(name)
    for image in images:
        again = MemoryKernel.of(image)
        found: list[Entry] = []

        def run_again(again: MemoryKernel = again, found: list[Entry] = found) -> None:
            entries, result = recovered(again)
            found.extend(entries)
            result.directory.close()

        inner = crashes(again, run_again, 6)
        assert found == expected
        for each in rng.sample(inner, min(6, len(inner))):  # and one in the second recovery
            third, result = recovered(MemoryKernel.of(each))
            assert third == expected
            result.directory.close()


def test_a_torn_tail_is_zeroed_to_the_end_of_the_segment() -> None:
    kernel = torn().kernel()
    _, result = recovered(kernel)
    data = kernel.contents()[f"{PATH}/{segment_name(3)}"]
    assert not data[result.segments[-1].end :].strip(b"\0")


def test_a_segment_with_bytes_under_an_unused_header_is_zeroed_not_unlinked() -> None:
    kernel = torn_first().kernel()
    _, result = recovered(kernel)
    assert [s.number for s in result.prepared] == [1, 2]
    assert not kernel.contents()[f"{PATH}/{segment_name(1)}"][DATA_START:].strip(b"\0")
    assert result.meta.state.first_segment == 1


def test_a_seal_is_written_only_where_the_follower_has_a_durable_record() -> None:
    kernel = torn_follower().kernel()
    _, result = recovered(kernel)
    assert not header(kernel, 1).is_sealed
    assert header(kernel, 2).is_unused
    assert ([s.number for s in result.segments], [s.number for s in result.prepared]) == ([1], [2])


def test_seals_are_written_oldest_first_and_the_last_one_loses_its_own_before() -> None:
    for make, order in (
        (unsealed, [(1, True), (2, True)]),
        (
            truncation_between_unlinks,
            [(2, False), (1, True)],
        ),
    ):
        kernel = make().kernel()
        seen: list[tuple[int, bool]] = []
        last = {number: header(kernel, number).is_sealed for number in (1, 2)}

        def look(
            word: str,
            path: str,
            kernel: MemoryKernel = kernel,
            last: dict[int, bool] = last,
            seen: list[tuple[int, bool]] = seen,
        ) -> None:
            if word == "synced":
                for number in (1, 2):
                    if header(kernel, number).is_sealed != last[number]:
                        last[number] = not last[number]
                        seen.append((number, last[number]))

        kernel.on_point = look
        recovered(kernel)
        assert seen == order


def test_dropped_segments_go_newest_first_and_purged_ones_oldest_first() -> None:
    for make, order in ((torn_with_followers, [4, 3, 2]), (purged_in_part, [1, 2])):
        kernel = make().kernel()
        gone: list[str] = []
        kernel.on_point = lambda word, path, gone=gone: (
            gone.append(path) if word == "unlinked" else None
        )
        recovered(kernel)
        names = [os.path.basename(path) for path in gone]
        assert names == [segment_name(number) for number in order]


def test_an_unclean_end_is_said_once_and_a_clean_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "hqlwal_raft")
    recovered(log_of_three().kernel())
    assert not caplog.records
    recovered(torn().kernel())
    (record,) = caplog.records
    assert record.name == "hqlwal_raft"
    assert "never acknowledged" in record.getMessage()
    assert segment_name(3) in record.getMessage()


def test_what_a_failed_sync_left_in_memory_only_is_not_believed() -> None:
    """Memory shows a record that the disk never wrote: it is judged by what is on disk."""
    file = File(1, group(1, 2))
    short = File(1, group(1, 1))
    outcomes = set()
    for seed in range(20):
        store = Store(short)
        files = {f"{PATH}/{name}": bytes(data) for name, data in store.files.items()}
        kernel = MemoryKernel.of(files, [PATH], page_bytes=64, seed=seed)
        descriptor = kernel.open(f"{PATH}/{segment_name(1)}", os.O_RDWR)
        kernel.pwrite(
            descriptor, bytes(file.content[file.offset(1) : file.offset(2)]), file.offset(1)
        )
        kernel.forget_sync(descriptor)
        kernel.close(descriptor)
        entries, result = recovered(kernel)
        result.directory.close()
        outcomes.add(len(entries))
        for image in kernel.snapshot().all_images():
            assert recovered(MemoryKernel.of(image))[0] == entries
    assert outcomes == {1, 2}


def test_memory_grows_with_what_was_written_not_with_the_segments_length() -> None:
    kernel = Store(File(1, group(1, 1), length=1 << 20)).kernel()
    read = 0
    pread = kernel.pread

    def count(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        read = max(read, length)
        data: bytes = pread(descriptor, length, offset)
        return data

    kernel.pread = count  # type: ignore[method-assign]
    recovered(kernel)
    assert read <= 1 << 20


# --- refused -----------------------------------------------------------------------------


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


def damaged_sealed() -> Store:
    file = File(2, group(5, 4), is_sealed=True)
    store = log_of_three()
    store.flip(2, file.offset(1) + 20)
    return store


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_and_nothing_is_changed(name: str) -> None:
    for lock in (None, pack_lock(None), pack_lock(77), b"77\n"):
        store = DAMAGED[name][0]()
        if lock is not None:
            store.files[LOCK_NAME] = bytearray(lock)
        kernel = store.kernel()
        before = kernel.fingerprint()
        contents = kernel.contents()
        with pytest.raises(CorruptionError, match="Nothing was changed") as raised:
            recover(kernel, PATH)
        assert kernel.contents() == contents
        assert kernel.fingerprint() == before
        assert raised.value.path.startswith(PATH)
        directory = Directory(kernel, PATH)
        directory.lock.take()


def test_what_is_refused_says_where_which_entries_and_what_to_do() -> None:
    with pytest.raises(CorruptionError, match="auto_heal=True") as raised:
        recover(flipped_before_a_settled_one().kernel(), PATH)
    error = raised.value
    assert error.path == f"{PATH}/{segment_name(3)}"
    assert (error.offset, error.first_id, error.last_id) == (
        File(3, group(9, 2)).offset(1),
        10,
        10,
    )
    store = log_of_three()
    del store.files[META_NAME]
    with pytest.raises(CorruptionError, match="fresh directory"):
        recover(store.kernel(), PATH, is_healing=True)


@pytest.mark.parametrize("version", [1, 2, 0x99])
def test_other_versions_are_refused_also_where_healing_is_allowed(version: int) -> None:
    store = log_of_three()
    for offset in (7, SLOT_BYTES + 7):
        store.files[META_NAME][offset] = version
    kernel = store.kernel()
    before = kernel.contents()
    with pytest.raises(UnknownVersionError) as raised:
        recover(kernel, PATH, is_healing=True)
    assert raised.value.version == version
    assert kernel.contents() == before


def test_a_backup_is_refused_as_the_same_node() -> None:
    store = torn()
    store.files[META_NAME] = bytearray(meta(1, is_copy=True))
    kernel = store.kernel()
    before = kernel.contents()
    with pytest.raises(WalCopyError, match="backup"):
        recover(kernel, PATH, is_healing=True)
    assert kernel.contents() == before


def test_the_lock_is_refused_with_the_holders_pid_and_what_it_wrote_stays() -> None:
    kernel = log_of_three().kernel()
    holder = recover(kernel, PATH)
    before = kernel.contents()
    assert unpack_lock(before[LOCK_PATH]) == kernel.getpid()
    with pytest.raises(WalLockedError) as raised:
        recover(kernel, PATH)
    assert raised.value.pid == kernel.getpid()
    assert kernel.contents() == before
    holder.directory.close()
    recover(kernel, PATH)


def test_whoever_asks_for_the_lock_does_not_keep_an_open_out() -> None:
    kernel = log_of_three().kernel()
    asking = Directory(kernel, PATH)
    kernel.flock(asking._descriptor, 1 | 4)
    kernel.sleep = lambda seconds: kernel.flock(asking._descriptor, 8)  # type: ignore[method-assign]
    recover(kernel, PATH).directory.close()


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
@pytest.mark.parametrize("name", [segment_name(3), META_NAME, LOCK_NAME])
def test_what_is_no_regular_file_is_refused_without_a_hang(
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
    with pytest.raises((CorruptionError, OSError)) as raised:
        recover(Environment(), str(tmp_path))
    error = raised.value
    said = str(error) + "".join(getattr(error, "__notes__", ()))
    assert str(place) in said
    assert victim.read_bytes() == b"mine"
    if name == segment_name(3):
        entries, result = recovered_at(tmp_path)
        assert [each.index for each in entries] == list(range(1, 9))
        result.directory.close()


def recovered_at(path: Path) -> tuple[list[Entry], Recovered]:
    result = recover(Environment(), str(path), is_healing=True)
    entries = [e for s in result.segments for e in entries_of(result.directory, s)]
    return entries, result


# --- full disks, failing calls -----------------------------------------------------------


def test_a_full_disk_is_no_obstacle_and_is_remembered() -> None:
    kernel = log_of_three().kernel()
    data = kernel.contents()
    kernel.capacity_bytes = 1
    kernel.capacity_inodes = 1
    entries, result = recovered(kernel)
    assert len(entries) == 12
    assert LOCK_PATH not in kernel.contents()
    assert without_lock(kernel) == data
    result.directory.close()


def test_blocks_that_are_missing_are_allocated_or_the_segment_has_no_room() -> None:
    store = log_of_three()
    files = {f"{PATH}/{name}": bytes(data) for name, data in store.files.items()}
    for capacity, has_room in ((None, True), (1, False)):
        kernel = MemoryKernel.of(files, [PATH], page_bytes=512)
        descriptor = kernel.open(f"{PATH}/{segment_name(3)}", os.O_RDWR)
        kernel.ftruncate(descriptor, 1024)
        kernel.ftruncate(descriptor, LENGTH)
        kernel.capacity_bytes = capacity
        kernel.close(descriptor)
        _, result = recovered(kernel)
        assert result.segments[-1].has_room is has_room
        result.directory.close()


@pytest.mark.parametrize("name", [*CRASHED, *DAMAGED])
@pytest.mark.parametrize(
    "call",
    [
        "open",
        "pread",
        "pwrite",
        "fdatasync",
        "fsync",
        "unlink",
        "rename",
        "lseek",
        "posix_fallocate",
        "fstat",
        "stat",
        "listdir",
        "posix_fadvise",
        "ftruncate",
        "flock",
    ],
)
def test_a_call_that_fails_once_raises_and_the_next_open_gives_the_same_log(
    name: str, call: str
) -> None:
    is_healing = name in DAMAGED
    make = DAMAGED[name][0] if is_healing else CRASHED[name][0]
    expected, result = recovered(make().kernel(), is_healing=is_healing)
    result.directory.close()
    for place in range(60):
        kernel = make().kernel()
        left = [place]
        original = getattr(kernel, call)

        def failing(
            *args: object, left: list[int] = left, original: object = original, **kwargs: object
        ) -> object:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, "injected")
            return original(*args, **kwargs)  # type: ignore[operator]

        setattr(kernel, call, failing)
        try:
            result = recover(kernel, PATH, is_healing=is_healing)
            result.directory.close()
        except OSError:
            pass
        setattr(kernel, call, original)
        entries, result = recovered(kernel, is_healing=is_healing)
        assert entries == expected
        result.directory.close()
        if left[0] >= 0:
            break
    assert left[0] >= 0, "every call was failed"


# --- healing -----------------------------------------------------------------------------


def healthy(store: Store) -> set[Entry]:
    """Every entry whose record is whole somewhere in the directory."""
    kernel = store.kernel()
    numbers = [name for name in store.files if name.endswith(".wal")]
    for name in numbers:
        kernel.rename(f"{PATH}/{name}", f"{PATH}/{name}.broken")
    return {each.entry for each in salvage(PATH, environment=kernel)}


@pytest.mark.parametrize("name", DAMAGED)
def test_healing_keeps_what_is_before_the_damage_and_the_rest_stays_readable(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hqlwal_raft")
    make, last = DAMAGED[name]
    store = make()
    before = healthy(store)
    kernel = store.kernel()
    entries, result = recovered(kernel, is_healing=True)
    assert [each.index for each in entries] == list(range(1, last + 1))
    assert result.last_log_id == (entry(last).log_id if last else None)
    assert result.meta.state.vote == VOTE
    result.directory.close()
    (record,) = caplog.records
    assert str(last or "none") in record.getMessage()
    aside = {each.entry for each in salvage(PATH, environment=kernel)}
    assert before <= aside | set(entries)
    report = examine(PATH, deep=True, environment=kernel)
    assert report.verdict is Verdict.INTACT, report.all_findings
    assert recovered(kernel)[0] == entries


@pytest.mark.parametrize("name", DAMAGED)
def test_a_crash_at_any_step_of_healing_heals_to_the_same_log(name: str) -> None:
    make, _ = DAMAGED[name]
    store = make()
    before = healthy(store)
    kernel = store.kernel()
    expected: list[Entry] = []
    names: list[set[str]] = []

    def run() -> None:
        entries, result = recovered(kernel, is_healing=True)
        expected.extend(entries)
        result.directory.close()
        names.append(set(kernel.contents()))

    images = crashes(kernel, run)
    for image in images:
        again = MemoryKernel.of(image)
        entries, result = recovered(again, is_healing=True)
        assert entries == expected
        result.directory.close()
        # nothing is lost by the crash, and no copy is made twice
        aside = {each.entry for each in salvage(PATH, environment=again)}
        assert before <= aside | set(entries)
        assert set(again.contents()) <= names[0]
        report = examine(PATH, deep=True, environment=again)
        assert report.verdict is Verdict.INTACT, report.all_findings


def test_healing_heals_what_only_a_deep_look_finds() -> None:
    kernel = damaged_sealed().kernel()
    recover(kernel, PATH).directory.close()
    kernel = damaged_sealed().kernel()
    with pytest.raises(CorruptionError):
        recover(kernel, PATH, is_checking_everything=True)
    entries, result = recovered(kernel, is_healing=True, deep=True)
    assert [each.index for each in entries] == [1, 2, 3, 4, 5]
    result.directory.close()
    aside = {each.entry.index for each in salvage(PATH, environment=kernel)}
    assert aside == {5, 7, 8, 9, 10, 11, 12}


def test_a_crash_at_any_step_of_a_deep_healing_never_brings_the_damage_back_unseen() -> None:
    kernel = damaged_sealed().kernel()

    def run() -> None:
        recovered(kernel, is_healing=True, deep=True)[1].directory.close()

    for image in crashes(kernel, run):
        again = MemoryKernel.of(image)
        entries, result = recovered(again, is_healing=True, deep=True)
        assert [each.index for each in entries] == [1, 2, 3, 4, 5]
        result.directory.close()


def test_healing_twice_keeps_both_copies() -> None:
    kernel = flipped_before_the_mark().kernel()
    recovered(kernel, is_healing=True)[1].directory.close()
    descriptor = kernel.open(f"{PATH}/{segment_name(3)}", os.O_RDWR)
    kernel.pwrite(descriptor, b"x", DATA_START + 20)
    kernel.close(descriptor)
    entries, result = recovered(kernel, is_healing=True)
    assert [each.index for each in entries] == list(range(1, 9))
    result.directory.close()
    names = sorted(name for name in kernel.contents() if ".broken" in name)
    assert [os.path.basename(name) for name in names] == [
        segment_name(3) + ".broken",
        segment_name(3) + ".broken.2",
        segment_name(4) + ".broken",
    ]


@pytest.mark.parametrize("make", [one_byte_short, short_at_a_border, short_prepared])
def test_healing_a_short_file_needs_no_space(make: Callable[[], Store]) -> None:
    kernel = make().kernel()
    kernel.capacity_bytes = 1
    entries, result = recovered(kernel, is_healing=True)
    assert len(entries) > 10
    result.directory.close()
    assert recovered(kernel)[0] == entries


def test_healing_on_a_full_disk_changes_nothing() -> None:
    kernel = flipped_before_the_mark().kernel()
    kernel.contents()
    before = kernel.contents()
    kernel.capacity_bytes = 1
    with pytest.raises(OSError) as raised:
        recover(kernel, PATH, is_healing=True)
    assert raised.value.errno == errno.ENOSPC
    assert without_lock(kernel) == before


# --- copy on write -----------------------------------------------------------------------


class OnBtrfs(MemoryKernel):
    """Says that all its files are on btrfs."""

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        if path.startswith("/proc/self/fdinfo/"):
            path = "/proc/self/fdinfo/any"
        return super().open(path, flags, mode, dir_fd=dir_fd)


def on_btrfs(store: Store | None) -> OnBtrfs:
    files = {f"{PATH}/{name}": bytes(data) for name, data in store.files.items()} if store else {}
    files["/proc/self/fdinfo/any"] = b"pos:\t0\nmnt_id:\t7\n"
    files["/proc/self/mountinfo"] = b"7 1 0:2 / / rw - btrfs /dev/x rw\n"
    kernel = OnBtrfs.of(files, [PATH, "/proc", "/proc/self", "/proc/self/fdinfo"])
    kernel.has_attributes = True
    return kernel


def warned_of_copies(kernel: MemoryKernel, caplog: pytest.LogCaptureFixture) -> int:
    caplog.clear()
    recover(kernel, PATH).directory.close()
    return [record.levelname for record in caplog.records if "btrfs" in record.message].count(
        "WARNING"
    )


def test_files_that_cannot_be_made_no_copy_are_said_once_at_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = on_btrfs(None)
    assert warned_of_copies(kernel, caplog) == 0
    assert warned_of_copies(kernel, caplog) == 0
    assert warned_of_copies(on_btrfs(log_of_three()), caplog) == 1  # copied, so no longer no-copy
    assert "chattr" in caplog.text
    refusing = on_btrfs(None)
    refusing.has_attributes = False
    assert warned_of_copies(refusing, caplog) == 1
    assert warned_of_copies(refusing, caplog) == 1
    elsewhere = log_of_three().kernel()
    elsewhere.has_attributes = False
    assert warned_of_copies(elsewhere, caplog) == 0
