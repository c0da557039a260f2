"""Directories that a store must not open: the right error, and nothing changed on disk."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import (
    CorruptionError,
    Entry,
    LogId,
    LogState,
    RaftLogStorage,
    UnknownVersionError,
    Vote,
)
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import DATA_START, SegmentHeader, segment_name
from hqlwal_raft.blocking import BlockingRaftLogStorage
from hqlwal_raft.testing import FailingEnvironment
from tests._support import contents, entries, on_both_backends, segments

SEGMENT_SIZE = 8192
#: eight records of 900 bytes fill a segment: 30 entries take four
SIZE = 900
RECORD = 32 + SIZE
COUNT = 30


async def fill(directory: Path) -> None:
    """A cleanly closed log of four segments, with a vote."""
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE) as store:
        for index in range(1, COUNT + 1):
            await store.append(entries(index, index + 1, size=SIZE))
        await store.save_vote(Vote(7, "me"))


async def opened(directory: Path, **options: Any) -> list[Any]:
    """The entries of the log in the directory."""
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE, **options) as store:
        return await store.try_get_log_entries(0)


async def refused(directory: Path, error_type: type[Exception], **options: Any) -> Any:
    """The error that opening raises; nothing may have changed on disk."""
    before = contents(directory)
    with pytest.raises(error_type) as caught:
        await opened(directory, **options)
    assert contents(directory) == before
    return caught.value


def told(error: BaseException) -> str:
    """All that an error says: an OSError has its path in a note."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def lock_file(directory: Path) -> bytes:
    return (directory / "lock.hql").read_bytes()


def is_lock_file(path: str) -> bool:
    return path.endswith("lock.hql")


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def record_offset(index: int) -> tuple[int, int]:
    """The segment number of an entry, and where its record begins."""
    return (index - 1) // 8 + 1, DATA_START + (index - 1) % 8 * RECORD


def segment(directory: Path, number: int) -> Path:
    return directory / segment_name(number)


def begins(path: Path) -> int:
    """The first index that a segment's header names; 0 where there is none."""
    header = SegmentHeader.unpack(path.read_bytes()[:DATA_START])
    return header.id_from if isinstance(header, SegmentHeader) else 0


# --- what is no directory of ours to use -------------------------------------------------


@on_both_backends
async def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a file")
    for inside in (path, path / "below"):
        with pytest.raises(NotADirectoryError) as caught:
            await opened(inside)
        assert str(path) in told(caught.value)
        assert path.read_bytes() == b"a file"


@on_both_backends
@pytest.mark.parametrize("call", ["open", "listdir"])
async def test_a_directory_without_permission_is_refused(tmp_path: Path, call: str) -> None:
    await fill(tmp_path)
    environment = FailingEnvironment()
    environment.fail(call, errno.EACCES, times=1000)
    error = await refused(tmp_path, PermissionError, environment=environment)
    assert error.errno == errno.EACCES
    assert str(tmp_path) in told(error)


@on_both_backends
async def test_a_directory_is_used_though_the_one_above_it_cannot_be_read(tmp_path: Path) -> None:
    await fill(tmp_path)
    environment = FailingEnvironment()
    environment.fail("open", errno.EACCES, where=lambda path: path == str(tmp_path.parent))
    assert await opened(tmp_path, environment=environment)
    assert environment.failed == 1


@on_both_backends
async def test_the_lock_file_is_never_removed(tmp_path: Path) -> None:
    environment = FailingEnvironment()
    environment.fail("unlink", errno.EROFS, times=1000, where=is_lock_file)
    for _ in range(2):
        assert await opened(tmp_path, environment=environment) == []
        assert lock_file(tmp_path) == b"clean".ljust(31) + b"\n"
    assert environment.failed == 0


@on_both_backends
async def test_a_lock_file_that_a_refused_open_cannot_remove_keeps_nobody_out(
    tmp_path: Path,
) -> None:
    environment = FailingEnvironment()
    environment.fail("unlink", errno.EROFS, where=is_lock_file)
    environment.fail("listdir", errno.EIO)
    with pytest.raises(OSError) as caught:
        await opened(tmp_path, environment=environment)
    assert caught.value.errno == errno.EIO
    assert environment.failed == 2
    assert await opened(tmp_path) == []


@on_both_backends
@pytest.mark.parametrize("nth", [1, 2], ids=["directory", "file"])
@pytest.mark.parametrize("is_new", [False, True])
async def test_where_no_lock_can_be_had_nothing_is_changed(
    tmp_path: Path, is_new: bool, nth: int
) -> None:
    if not is_new:
        await fill(tmp_path)
    environment = FailingEnvironment()
    environment.fail("flock", errno.ENOLCK, nth=nth)
    error = await refused(tmp_path, OSError, environment=environment)
    assert error.errno == errno.ENOLCK
    assert str(tmp_path) in told(error)
    assert "lock" in told(error)
    assert len(await opened(tmp_path)) == (0 if is_new else COUNT)


@on_both_backends
@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.EBADF, errno.EISDIR, errno.EINVAL, errno.ENOSYS]
)
async def test_a_file_system_that_cannot_lock_a_directory_is_named_with_advice(
    tmp_path: Path, number: int
) -> None:
    environment = FailingEnvironment()
    environment.fail("flock", number)
    error = await refused(tmp_path, OSError, environment=environment)
    assert error.errno == number
    assert str(tmp_path) in told(error)
    assert "cannot lock a directory" in told(error)


@on_both_backends
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENODEV])
@pytest.mark.parametrize("call", ["posix_fallocate", "fdatasync", "rename"])
async def test_what_a_file_system_lacks_is_told_with_path_and_advice(
    tmp_path: Path, call: str, number: int
) -> None:
    environment = FailingEnvironment()
    environment.fail(call, number)
    error = await refused(tmp_path / "log", OSError, environment=environment)
    assert error.errno == number
    assert str(tmp_path / "log") in told(error)
    assert "quota" in told(error) or "file system" in told(error)
    assert await opened(tmp_path / "log") == []


class FewThreads(Environment):
    """A machine that gives no more than some threads."""

    def __init__(self, count: int) -> None:
        self.left = count

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("can't start new thread")
        super().start_thread(run, name)


@on_both_backends
@pytest.mark.parametrize("count", [0, 1])
async def test_where_no_thread_can_be_had_opening_says_so_and_keeps_no_lock(
    tmp_path: Path, count: int
) -> None:
    await fill(tmp_path)
    error = await refused(tmp_path, RuntimeError, environment=FewThreads(count))
    assert "ulimit -u" in told(error)
    assert len(await opened(tmp_path)) == COUNT


@pytest.mark.parametrize("count", [0, 1, 2])
def test_where_no_thread_can_be_had_the_blocking_store_says_so_and_keeps_no_lock(
    tmp_path: Path, count: int
) -> None:
    try:
        with BlockingRaftLogStorage.open(tmp_path, environment=FewThreads(count)) as store:
            store.append([Entry(1, 1)])
    except RuntimeError as error:
        assert "ulimit -u" in told(error)
    else:
        assert count == 2
    with BlockingRaftLogStorage.open(tmp_path) as store:
        assert len(store.try_get_log_entries(0)) in (0, 1)


def test_where_no_thread_can_be_had_for_a_callback_the_append_is_refused(tmp_path: Path) -> None:
    machine = FewThreads(100)
    told_of: list[BaseException | None] = []
    with BlockingRaftLogStorage.open(tmp_path, environment=machine) as store:
        store.append([Entry(1, 1)])
        left, machine.left = machine.left, 0
        with pytest.raises(RuntimeError, match="can't start new thread"):
            store.append([Entry(1, 2)], told_of.append)
        machine.left = left
        assert [entry.index for entry in store.try_get_log_entries(0)] == [1]
        store.append([Entry(1, 2)], told_of.append)
    assert told_of == [None]


@on_both_backends
async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    files = FailingEnvironment()
    files.fail("mkdir", errno.EACCES)
    with pytest.raises(PermissionError) as caught:
        await opened(tmp_path / "log", environment=files)
    assert str(tmp_path / "log") in told(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- damage ------------------------------------------------------------------------------


def cut(directory: Path) -> Path:
    path = segment(directory, 4)
    os.truncate(path, SEGMENT_SIZE - 1)
    return path


def cut_within_the_header(directory: Path) -> Path:
    path = segment(directory, 2)
    os.truncate(path, 40)
    return path


def empty(directory: Path) -> Path:
    path = segment(directory, 4)
    os.truncate(path, 0)
    return path


def missing_between(directory: Path) -> Path:
    segment(directory, 2).unlink()
    return directory


def missing_first(directory: Path) -> Path:
    segment(directory, 1).unlink()
    return directory


def missing_newest(directory: Path) -> Path:
    for path in segments(directory)[3:]:
        path.unlink()
    return segment(directory, 3)


def missing_all(directory: Path) -> Path:
    for path in segments(directory):
        path.unlink()
    return directory


def flipped_in_a_header(directory: Path) -> Path:
    path = segment(directory, 2)
    flip(path, 20)
    return path


def flipped_in_a_durable_record(directory: Path) -> Path:
    number, offset = record_offset(27)
    path = segment(directory, number)
    flip(path, offset + 500)
    return path


def foreign_file(directory: Path) -> Path:
    path = segment(directory, len(segments(directory)) + 1)
    path.write_bytes(b"these are somebody's notes, under an unlucky name\n" * 300)
    return path


def swapped_segments(directory: Path) -> Path:
    first, second = segment(directory, 1), segment(directory, 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return second


def damaged_meta(directory: Path) -> Path:
    path = directory / "meta.hql"
    flip(path, 10)
    flip(path, 4096 + 10)
    return path


def cut_meta(directory: Path) -> Path:
    path = directory / "meta.hql"
    os.truncate(path, 40)
    return path


def missing_meta(directory: Path) -> Path:
    (directory / "meta.hql").unlink()
    return directory


DAMAGE = [
    cut,
    cut_within_the_header,
    empty,
    missing_between,
    missing_first,
    missing_newest,
    missing_all,
    flipped_in_a_header,
    flipped_in_a_durable_record,
    foreign_file,
    swapped_segments,
    damaged_meta,
    cut_meta,
    missing_meta,
]
ABOUT_THE_VOTE = [damaged_meta, cut_meta, missing_meta]


@on_both_backends
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
async def test_damage_is_refused_with_path_and_advice(
    tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    await fill(tmp_path)
    path = damage(tmp_path)
    error = await refused(tmp_path, CorruptionError)
    assert str(path) in str(error)
    assert error.path.startswith(str(tmp_path))
    assert "Nothing was changed" in str(error)
    assert "fresh directory" in str(error)
    # the lock was given up, and a second attempt ends the same
    assert str(await refused(tmp_path, CorruptionError)) == str(error)


@on_both_backends
@pytest.mark.parametrize("damage", ABOUT_THE_VOTE, ids=lambda damage: damage.__name__)
async def test_a_lost_vote_is_not_healed(tmp_path: Path, damage: Callable[[Path], Path]) -> None:
    await fill(tmp_path)
    damage(tmp_path)
    error = await refused(tmp_path, CorruptionError, auto_heal=True)
    assert "vote" in str(error)


@on_both_backends
async def test_a_damaged_record_is_named_by_offset_and_entries(tmp_path: Path) -> None:
    await fill(tmp_path)
    number, offset = record_offset(27)
    flip(segment(tmp_path, number), offset + 500)
    error = await refused(tmp_path, CorruptionError)
    assert error.path == str(segment(tmp_path, number))
    assert (error.offset, error.first_id, error.last_id) == (offset, 27, COUNT)
    assert "27" in str(error)


# --- versions ----------------------------------------------------------------------------


VERSION_1 = struct.pack(">7sBQQII", b"HQL_WAL", 1, 1, 8, 32, 500).ljust(8192, b"\0")


def set_version(path: Path, version: int, *offsets: int) -> None:
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset + 7] = version
    path.write_bytes(data)


async def fill_with_version(directory: Path, version: int) -> None:
    """A directory all of which another release wrote."""
    await fill(directory)
    set_version(directory / "meta.hql", version, 0, 4096)
    for path in segments(directory):
        set_version(path, version, 0)


@on_both_backends
@pytest.mark.parametrize("version", [1, 2, 9, 0x82])
@pytest.mark.parametrize("heals", [False, True])
async def test_a_directory_of_another_version_is_refused_by_it_and_not_healed(
    tmp_path: Path, version: int, heals: bool
) -> None:
    await fill_with_version(tmp_path, version)
    error = await refused(tmp_path, UnknownVersionError, auto_heal=heals)
    assert (error.path, error.version) == (str(tmp_path / "meta.hql"), version)
    assert error.path in str(error)
    assert f"version {version:#04x}" in str(error)
    assert "release" in str(error)
    assert "Nothing was changed" in str(error)


@on_both_backends
async def test_segments_of_version_1_without_a_meta_are_refused_by_their_version(
    tmp_path: Path,
) -> None:
    path = segment(tmp_path, 1)
    path.write_bytes(VERSION_1)
    error = await refused(tmp_path, UnknownVersionError)
    assert (error.path, error.version) == (str(path), 1)
    assert "hiqlite-wal" in str(error)


@on_both_backends
@pytest.mark.parametrize("version", [0, 1, 2, 0x80, 0x82])
async def test_a_version_that_is_not_its_directorys_is_damage(tmp_path: Path, version: int) -> None:
    await fill(tmp_path)
    path = segment(tmp_path, 2)
    set_version(path, version, 0)
    error = await refused(tmp_path, CorruptionError)
    assert error.path == str(path)
    assert await opened(tmp_path, auto_heal=True) == entries(1, 9, size=SIZE)
    assert Path(str(path) + ".broken").exists()


@on_both_backends
async def test_a_flipped_version_of_one_slot_costs_nothing(tmp_path: Path) -> None:
    for slot in (0, 4096):
        path = tmp_path / str(slot)
        await fill(path)
        set_version(path / "meta.hql", 9, slot)
        async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
            assert await store.read_vote() == Vote(7, "me")


@on_both_backends
async def test_a_meta_that_is_cut_behind_its_first_copy_is_made_whole_again(tmp_path: Path) -> None:
    await fill(tmp_path)
    meta = tmp_path / "meta.hql"
    for size in (8192, 6000, 4096):
        whole = meta.read_bytes()
        os.truncate(meta, size)
        assert len(await opened(tmp_path)) == COUNT
        assert meta.read_bytes()[:8192].ljust(8192, b"\0") == whole[:8192]
        flip(meta, 10)  # the other copy serves alone
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            assert await store.read_vote() == Vote(7, "me")
            await store.save_committed(LogId(1, 5))
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            assert await store.read_committed() == LogId(1, 5)
    assert meta.stat().st_size == 12288


# --- torn tails are no damage ------------------------------------------------------------


def unclose(directory: Path, last: int) -> Path:
    """Lowers the newest segment's mark, as if the process had been killed after ``last``."""
    number, offset = record_offset(last + 1)
    path = segment(directory, number)
    header = SegmentHeader.unpack(path.read_bytes()[:DATA_START])
    assert isinstance(header, SegmentHeader)
    until = last if offset > DATA_START else 0
    data = replace(header, id_until=until, data_end=offset, flags=0).pack()
    path.write_bytes(data + path.read_bytes()[DATA_START:])
    return path


async def fill_with_a_last_group(directory: Path, first: int) -> None:
    """As ``fill``, but the entries from ``first`` on were one write."""
    async with RaftLogStorage.open(directory, segment_size=SEGMENT_SIZE) as store:
        for index in range(1, first):
            await store.append(entries(index, index + 1, size=SIZE))
        await store.save_vote(Vote(7, "me"))
        await store.append(entries(first, COUNT + 1, size=SIZE))


@on_both_backends
async def test_a_torn_tail_is_dropped_and_the_store_opens(tmp_path: Path) -> None:
    await fill_with_a_last_group(tmp_path, first=28)
    path = unclose(tmp_path, last=27)
    flip(path, record_offset(29)[1] + 100)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        # entry 28 was whole, though nobody was told that it is durable
        assert await store.try_get_log_entries(0) == entries(1, 29, size=SIZE)
        assert await store.read_vote() == Vote(7, "me")
        await store.append(entries(29, 32, size=SIZE, term=2))
    assert await opened(tmp_path) == entries(1, 29, SIZE) + entries(29, 32, SIZE, term=2)


@on_both_backends
async def test_what_was_torn_never_comes_back(tmp_path: Path) -> None:
    await fill_with_a_last_group(tmp_path, first=27)
    path = unclose(tmp_path, last=26)
    flip(path, record_offset(28)[1] + 100)
    # 29 and 30 are whole behind the torn 28; new entries of equal size must not revive them
    assert await opened(tmp_path) == entries(1, 28, size=SIZE)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(28, 29, size=SIZE, term=2))
    assert await opened(tmp_path) == entries(1, 28, SIZE) + entries(28, 29, SIZE, term=2)


@on_both_backends
@pytest.mark.parametrize("damaged", [25, 26, 27])
async def test_damage_before_the_last_group_is_no_torn_tail(tmp_path: Path, damaged: int) -> None:
    """The last group's first record proves it, though no mark was written for long."""
    await fill_with_a_last_group(tmp_path, first=28)
    path = unclose(tmp_path, last=24)
    offset = record_offset(damaged)[1]
    flip(path, offset + 100)
    error = await refused(tmp_path, CorruptionError)
    assert (error.path, error.offset, error.first_id) == (str(path), offset, damaged)
    flip(path, offset + 100)
    assert await opened(tmp_path) == entries(1, COUNT + 1, size=SIZE)


# --- sealed segments and the integrity check ---------------------------------------------


@on_both_backends
async def test_damage_in_a_sealed_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    await fill(tmp_path)
    number, offset = record_offset(11)
    flip(segment(tmp_path, number), offset + 500)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(1, 11) == entries(1, 11, size=SIZE)
        assert await store.try_get_log_entries(12) == entries(12, COUNT + 1, size=SIZE)
        reader = await store.get_log_reader()
        for side in (store, reader):
            for start, stop in ((11, 12), (1, None), (10, 13)):
                with pytest.raises(CorruptionError, match="11") as caught:
                    await side.try_get_log_entries(start, stop)
                assert caught.value.path == str(segment(tmp_path, number))
            with pytest.raises(CorruptionError):
                await side.limited_get_log_entries(11)
            with pytest.raises(CorruptionError):
                [entry async for entry in side.entries_stream(11)]
        # damage that is read is no poison
        await store.append(entries(COUNT + 1, COUNT + 3, size=SIZE))


@on_both_backends
@pytest.mark.parametrize("by_environment", [True, False])
async def test_the_integrity_check_finds_damage_in_a_sealed_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    monkeypatch.delenv("HQL_CHECK_WAL_INTEGRITY", raising=False)
    await fill(tmp_path)
    number, offset = record_offset(11)
    flip(segment(tmp_path, number), offset + 500)
    options: dict[str, Any] = {} if by_environment else {"check_integrity": True}
    if by_environment:
        monkeypatch.setenv("HQL_CHECK_WAL_INTEGRITY", "true")
    error = await refused(tmp_path, CorruptionError, **options)
    assert error.path == str(segment(tmp_path, number))
    assert (error.offset, error.first_id) == (offset, 11)
    flip(segment(tmp_path, number), offset + 500)
    assert await opened(tmp_path, **options) == entries(1, COUNT + 1, size=SIZE)


# --- healing -----------------------------------------------------------------------------


@on_both_backends
async def test_auto_heal_keeps_a_copy_and_cuts_the_log_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path)
    number, offset = record_offset(27)
    path = segment(tmp_path, number)
    flip(path, offset + 500)
    damaged = path.read_bytes()
    with caplog.at_level(logging.WARNING, logger="hqlwal_raft"):
        assert await opened(tmp_path, auto_heal=True) == entries(1, 27, size=SIZE)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(path) in record.getMessage()
    assert "26" in record.getMessage()
    assert ".broken" in record.getMessage()
    assert Path(str(path) + ".broken").read_bytes() == damaged
    # healed for good: it opens without, takes entries, and holds them
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.read_vote() == Vote(7, "me")
        assert await store.get_log_state() == LogState(None, LogId(1, 26))
        await store.append(entries(27, 50, size=SIZE, term=2))
    healed = entries(1, 27, SIZE) + entries(27, 50, SIZE, term=2)
    assert await opened(tmp_path, check_integrity=True) == healed


@on_both_backends
@pytest.mark.parametrize(
    ("damage", "last"),
    [
        (cut, COUNT),  # what is cut off held nothing
        (cut_within_the_header, 8),
        (empty, 24),
        (missing_between, 8),
        (missing_newest, 24),
        (flipped_in_a_header, 8),
        (flipped_in_a_durable_record, 26),
        (foreign_file, COUNT),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_auto_heal_keeps_what_lies_before_the_damage(
    tmp_path: Path, damage: Callable[[Path], Path], last: int
) -> None:
    await fill(tmp_path)
    damaged = damage(tmp_path)
    lost = {path: path.read_bytes() for path in segments(tmp_path) if begins(path) > last}
    if damage not in (cut, missing_between, missing_newest):  # no record that is left is damaged
        lost |= {damaged: damaged.read_bytes()}
    assert await opened(tmp_path, auto_heal=True) == entries(1, last + 1, size=SIZE)
    for path, data in lost.items():  # nothing was thrown away
        assert Path(str(path) + ".broken").read_bytes() == data
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(last + 1, last + 20, size=SIZE))
    assert await opened(tmp_path, check_integrity=True) == entries(1, last + 20, size=SIZE)


@on_both_backends
async def test_auto_heal_of_a_healthy_log_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path)
    assert await opened(tmp_path, auto_heal=True) == entries(1, COUNT + 1, size=SIZE)
    assert not list(tmp_path.glob("*.broken*"))
    assert not caplog.records


@on_both_backends
async def test_a_second_healing_keeps_both_copies(tmp_path: Path) -> None:
    await fill(tmp_path)
    for index, last in ((29, 28), (27, 26)):
        number, offset = record_offset(index)
        path = segment(tmp_path, number)
        flip(path, offset + 500)
        assert await opened(tmp_path, auto_heal=True) == entries(1, last + 1, size=SIZE)
    assert len(list(tmp_path.glob(f"{segment_name(4)}.broken*"))) == 2
