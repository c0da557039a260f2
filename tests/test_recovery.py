"""What an open makes of a directory: every rule, a crash at every step, healing and its crashes."""

from __future__ import annotations

import errno
import os

import pytest

from hqlwal_raft._format import (
    COMMITTED_OFFSETS,
    META_NAME,
    SLOT_BYTES,
    MetaState,
    pack_committed,
    pack_slot,
    segment_name,
)
from hqlwal_raft._recovery import recover
from hqlwal_raft._types import LogId
from hqlwal_raft.audit import Verdict, examine
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._directories import (
    LENGTH,
    PATH,
    VOTE,
    Store,
    entry,
    meta,
    recovered,
)
from tests._openings import CRASHED, DAMAGED, LOCK_PATH, crashes, log_of_three, without_lock


def segments(kernel: MemoryKernel) -> list[str]:
    names = [path.removeprefix(f"{PATH}/") for path in kernel.contents()]
    return [name for name in names if name.endswith(".wal")]


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
    assert (tail.count, len(tail.places or ())) == (4, 4)
    (prepared,) = result.prepared
    for each in (tail, prepared):
        assert each.file is not None
        each.file.write(each.end, (b"x",))
        assert each.has_room
    assert prepared.places is not None
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
            del result
        except OSError:
            pass
        setattr(kernel, call, original)
        if call != "close":  # which fails before it closes
            assert not kernel._descriptors, "files wait for the garbage collector"
        entries, result = recovered(kernel, is_healing=is_healing)
        assert entries == expected
        result.directory.close()
        if left[0] >= 0:
            break
    assert left[0] >= 0, "every call was failed"


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
