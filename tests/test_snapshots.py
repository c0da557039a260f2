"""Snapshots: written in pieces, whole or not there, only ever newer; read back checked."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import stat
import struct
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from crc32c import crc32c

from hqlwal_raft import (
    CorruptionError,
    LogId,
    RaftLogStorage,
    SnapshotError,
    SnapshotInfo,
    SnapshotOrderError,
    UnknownVersionError,
    WalClosedError,
    WalLockedError,
    WrongLoopError,
)
from hqlwal_raft._environment import Environment
from hqlwal_raft._snapshot_format import SnapshotHead, parse_snapshot_name, snapshot_name
from hqlwal_raft._types import FindingKind
from hqlwal_raft.audit import Verdict
from hqlwal_raft.snapshots import BlockingSnapshotStore, SnapshotStore, examine_snapshots
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests._leaks import is_locked, store_threads
from tests._support import (
    PATIENCE_SECONDS,
    Gate,
    HookedEnvironment,
    entries,
    on_both_backends,
    run_python,
)

BLOCK_BYTES = 512
pytestmark = pytest.mark.usefixtures("leaves_nothing")


def at(index: int, term: int = 1) -> LogId:
    return LogId(term, index)


def content(index: int, size: int = 1800) -> bytes:
    """What the snapshot at an index holds: some blocks, the last one not full."""
    return (b"state after %d;" % index * size)[:size]


def open_blocking(path: Path, **options: Any) -> BlockingSnapshotStore:
    return BlockingSnapshotStore.open(path, block_bytes=BLOCK_BYTES, **options)


def publish(store: BlockingSnapshotStore, log_id: LogId, size: int = 1800) -> SnapshotInfo:
    with store.create(log_id) as writer:
        writer.write(content(log_id.index, size))
    assert writer.snapshot is not None
    return writer.snapshot


def fill(path: Path, *indexes: int, **options: Any) -> list[Path]:
    """Publishes snapshots at these indexes; the files."""
    with open_blocking(path, **options) as store:
        for index in indexes:
            publish(store, at(index))
    return files_of(path)


def files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.snapshot*"))


def bytes_of(store: BlockingSnapshotStore, snapshot: SnapshotInfo | None) -> bytes:
    assert snapshot is not None
    with store.read(snapshot) as reader:
        return b"".join(reader)


def change(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


# --- writing and reading -------------------------------------------------------------------


@on_both_backends
async def test_a_snapshot_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "snapshots"
    pieces: list[Any] = [b"a" * 700, bytearray(b"b" * 100), memoryview(b"c" * 5000), b"", b"d"]
    async with SnapshotStore.open(path, block_bytes=BLOCK_BYTES) as store:
        assert await store.latest() is None
        async with store.create(at(7)) as writer:
            assert writer.snapshot is None
            for piece in pieces:
                await writer.write(piece)
        assert writer.snapshot == await store.latest() == store.snapshots()[-1]
    whole = b"".join(bytes(piece) for piece in pieces)
    async with SnapshotStore.open(path) as store:  # whatever the size of blocks is now
        newest = await store.latest()
        assert newest is not None
        assert newest.log_id == at(7)
        assert newest.size_bytes == len(whole)
        async with store.read(newest) as reader:
            blocks = [block async for block in reader]
            assert b"".join(blocks) == whole
            assert {len(block) for block in blocks[:-1]} == {BLOCK_BYTES}
            for offset in (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 5000, len(whole)):
                for length in (0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES, 1 << 40):
                    assert await reader.read(offset, length) == whole[offset : offset + length]
        assert store.findings == ()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 5000])
@pytest.mark.parametrize("piece_bytes", [1, 100, 512, 1000, 5000])
def test_any_size_in_any_pieces_is_kept(tmp_path: Path, size: int, piece_bytes: int) -> None:
    data = bytes(range(256)) * 20
    with open_blocking(tmp_path) as store:
        with store.create(at(1)) as writer:
            for offset in range(0, size, piece_bytes):
                writer.write(data[offset : min(offset + piece_bytes, size)])
        assert bytes_of(store, store.latest()) == data[:size]


@on_both_backends
async def test_what_is_given_may_be_changed_once_the_write_has_returned(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        async with store.create(at(1)) as writer:
            piece = bytearray(b"x" * 2000)
            await writer.write(piece)
            piece[:] = b"y" * 2000
            await writer.write(memoryview(b"abcdef")[::2])
        assert writer.snapshot is not None
        async with store.read(writer.snapshot) as reader:
            assert await reader.read(0, 3000) == b"x" * 2000 + b"ace"


def test_files_and_directory_are_for_their_owner_alone(tmp_path: Path) -> None:
    [file] = fill(tmp_path / "a" / "snapshots", 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@on_both_backends
async def test_no_call_of_the_system_is_made_on_the_event_loop_s_thread(tmp_path: Path) -> None:
    loop = threading.get_ident()
    calls: set[str] = set()

    def note(call: str, path: str) -> None:
        calls.add(call)
        assert threading.get_ident() != loop, (call, path)

    environment = HookedEnvironment(note)
    async with SnapshotStore.open(tmp_path, keep=1, environment=environment) as store:
        for index in (1, 2):
            async with store.create(at(index)) as writer:
                for _ in range(30):
                    await writer.write(bytes(100_000))
        with pytest.raises(ZeroDivisionError):
            async with store.create(at(3)) as writer:
                await writer.write(bytes(3_000_000))
                raise ZeroDivisionError
        newest = await store.latest()
        assert newest is not None
        async with store.read(newest) as reader:
            assert sum([len(block) async for block in reader]) == newest.size_bytes == 3_000_000
    assert {"pwrite", "fdatasync", "rename", "fsync", "unlink", "pread", "flock"} <= calls


def test_a_store_takes_no_more_memory_than_some_blocks(tmp_path: Path) -> None:
    with BlockingSnapshotStore.open(tmp_path, block_bytes=1 << 16) as store:
        tracemalloc.start()
        with store.create(at(1)) as writer:
            piece = bytes(1 << 20)
            for _ in range(16):
                writer.write(piece)
        with store.read(writer.snapshot) as reader:  # type: ignore[arg-type]
            assert sum(map(len, reader)) == 16 << 20
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < (1 << 20) + 8 * (1 << 16)


# --- published or not ----------------------------------------------------------------------


@on_both_backends
async def test_a_body_that_raises_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        with pytest.raises(ZeroDivisionError):
            async with store.create(at(1)) as writer:
                await writer.write(content(1))
                raise ZeroDivisionError
        assert writer.snapshot is None
        assert await store.latest() is None
        assert files_of(tmp_path) == []
        with pytest.raises(SnapshotError, match="given up"):
            await writer.write(b"more")


@on_both_backends
async def test_a_cancelled_body_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        with anyio.CancelScope() as scope:
            async with store.create(at(1)) as writer:
                await writer.write(content(1))
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert writer.snapshot is None
        assert files_of(tmp_path) == []
        with anyio.CancelScope() as scope:  # the body itself notices nothing
            async with store.create(at(1)):
                scope.cancel()
        assert scope.cancelled_caught
        assert files_of(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "nth"),
    [("open", 1), ("pwrite", 1), ("pwrite", 2), ("fdatasync", 1), ("rename", 1), ("fsync", 1)],
)
@on_both_backends
async def test_cancelled_at_any_step_there_is_the_old_one_or_the_new_one(
    tmp_path: Path, call: str, nth: int
) -> None:
    fill(tmp_path, 1)
    gate = Gate(call, "")
    count = 0

    def hook(name: str, path: str) -> None:
        nonlocal count
        count += name == call
        if count == nth:
            gate(name, path)

    environment = HookedEnvironment(hook)
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES, environment=environment) as s:
        count = 0
        gate.shut()
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    async with s.create(at(2)) as writer:
                        await writer.write(content(2))

            scopes: list[anyio.CancelScope] = []
            tasks.start_soon(write)
            await gate.held()
            scopes[0].cancel()
            await anyio.lowlevel.checkpoint()
            gate.open()
        newest = await s.latest()
        assert newest is not None
        is_published = newest.log_id == at(2)
        assert is_published == (call in ("rename", "fsync"))  # its bytes were durable by then
        async with s.read(newest) as reader:
            assert await reader.read(0, 9999) == content(2 if is_published else 1)
        assert len(files_of(tmp_path)) == 1 + is_published
        async with s.create(at(3)):
            pass


@on_both_backends
async def test_after_a_write_that_was_cancelled_nothing_is_published(tmp_path: Path) -> None:
    gate = Gate("pwrite", ".tmp")
    environment = HookedEnvironment(gate)
    async with SnapshotStore.open(
        tmp_path, block_bytes=BLOCK_BYTES, environment=environment
    ) as store:
        with pytest.raises(SnapshotError, match="not whole"):
            async with store.create(at(1)) as writer:
                gate.shut()
                async with anyio.create_task_group() as tasks:

                    async def cancel() -> None:
                        await gate.held()
                        scope.cancel()
                        gate.open()

                    tasks.start_soon(cancel)
                    with anyio.CancelScope() as scope:
                        await writer.write(content(1))
                    assert scope.cancelled_caught
        assert files_of(tmp_path) == []


def test_after_a_write_that_failed_nothing_is_published(tmp_path: Path) -> None:
    environment = FailingEnvironment()
    with open_blocking(tmp_path, environment=environment) as store:
        with pytest.raises(SnapshotError, match="No space left"), store.create(at(1)) as writer:
            environment.fail("pwrite", errno.ENOSPC)
            with pytest.raises(OSError, match="No space left"):
                writer.write(content(1))
            with pytest.raises(SnapshotError, match="begin it anew"):
                writer.write(b"x")
        assert files_of(tmp_path) == []
        publish(store, at(1))


@on_both_backends
async def test_a_look_for_the_newest_that_is_cancelled_reads_no_further(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    gate = Gate("pread", ".snapshot")
    reads: list[str] = []
    environment = HookedEnvironment(
        lambda call, path: reads.append(path) if call == "pread" else None, gate
    )
    async with SnapshotStore.open(tmp_path, environment=environment) as store:
        gate.shut()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.latest)
            await gate.held()
            reads.clear()
            tasks.cancel_scope.cancel()
        gate.open()
        for thread in store_threads():
            if thread.name == "hqlwal-read":
                await anyio.to_thread.run_sync(thread.join, PATIENCE_SECONDS)
        assert len(reads) <= 2  # the head was being read; then the tail, and one block of four


@on_both_backends
async def test_several_may_be_written_at_once_and_the_one_that_falls_behind_is_refused(
    tmp_path: Path,
) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        with pytest.raises(SnapshotOrderError) as caught:
            async with store.create(at(5)) as slow, store.create(at(9)) as quick:
                await slow.write(content(5))
                await quick.write(content(9))
                await slow.write(content(5))
        assert (caught.value.log_id, caught.value.newest) == (at(5), at(9))
        assert [each.log_id for each in store.snapshots()] == [at(9)]
        assert len(files_of(tmp_path)) == 1


# --- only ever newer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_id", "is_refused"),
    [
        (LogId(2, 10, 1), False),  # the same once more
        (LogId(2, 11, 1), False),
        (LogId(3, 10, 1), False),
        (LogId(2, 9, 1), True),
        (LogId(1, 10, 1), True),
        (LogId(1, 11, 1), True),
        (LogId(3, 9, 1), True),
        (LogId(2, 10, 0), True),
    ],
)
def test_one_that_ends_before_the_newest_is_refused(
    tmp_path: Path, log_id: LogId, is_refused: bool
) -> None:
    newest = LogId(2, 10, 1)
    with open_blocking(tmp_path) as store:
        publish(store, newest)
    with open_blocking(tmp_path) as store:  # nor after a restart
        if is_refused:
            with pytest.raises(SnapshotOrderError, match="never go back") as caught:
                store.create(log_id)
            assert (caught.value.log_id, caught.value.newest) == (log_id, newest)
            assert caught.value.path == str(tmp_path)
        else:
            made = publish(store, log_id)
            assert store.latest() == made
        assert len(files_of(tmp_path)) == 2 - is_refused


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_older_ones_than_are_to_be_kept_go(tmp_path: Path, keep: int) -> None:
    with open_blocking(tmp_path, keep=keep) as store:
        for index in range(1, 9):
            publish(store, at(index))
            there = [each.log_id.index for each in store.snapshots()]
            assert there == list(range(max(1, index - keep + 1), index + 1))
            assert [each.path for each in store.snapshots()] == list(map(str, files_of(tmp_path)))
            assert bytes_of(store, store.latest()) == content(index)


@on_both_backends
async def test_one_that_is_being_read_stays_readable_though_newer_ones_take_its_place(
    tmp_path: Path,
) -> None:
    async with SnapshotStore.open(tmp_path, keep=1, block_bytes=BLOCK_BYTES) as store:
        async with store.create(at(1)) as writer:
            await writer.write(content(1))
        old = writer.snapshot
        assert old is not None
        async with store.read(old) as reader:
            async with store.create(at(2)) as writer:
                await writer.write(content(2))
            assert [each.log_id for each in store.snapshots()] == [at(2)]
            assert b"".join([block async for block in reader]) == content(1)
        with pytest.raises(SnapshotError, match="took its place"):
            async with store.read(old):
                pass


def test_a_file_that_cannot_be_removed_goes_later(tmp_path: Path) -> None:
    environment = FailingEnvironment()
    with open_blocking(tmp_path, keep=1, environment=environment) as store:
        publish(store, at(1))
        environment.fail("unlink", errno.EACCES, times=1, where=lambda path: "-1-1-" in path)
        publish(store, at(2))
        assert [each.log_id.index for each in store.snapshots()] == [1, 2]
        assert store.latest() == store.snapshots()[-1]
        publish(store, at(3))
        assert [each.log_id.index for each in store.snapshots()] == [3]
        assert len(files_of(tmp_path)) == 1


def test_the_order_is_that_of_the_log_ids_whatever_the_order_of_publication(
    tmp_path: Path,
) -> None:
    # as where one that was skipped for damage can be read again
    [file] = fill(tmp_path, 100)
    head = file.read_bytes()
    change(file, 70)
    with open_blocking(tmp_path) as store:
        assert store.latest() is None
        publish(store, at(90))
    file.write_bytes(head)
    with open_blocking(tmp_path) as store:
        newest = store.latest()
        assert newest is not None
        assert newest.log_id == at(100)


# --- damage --------------------------------------------------------------------------------


def test_every_bit_and_every_length_counts() -> None:
    kernel = MemoryKernel()
    directory = Path("/s")
    with open_blocking(directory, environment=kernel) as store:
        publish(store, at(1))
        new = publish(store, at(2), 600).path
    files = kernel.contents()
    whole = files[new]
    assert len(whole) == 64 + 600 + 2 * 4 + 20
    cases = [whole[:length] for length in range(len(whole))]
    cases += [whole + b"\0", whole + whole, bytes(len(whole))]
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            cases.append(bytes(flipped))
    for data in cases:
        damaged = MemoryKernel.of({**files, new: data})
        with open_blocking(directory, environment=damaged) as store:
            newest = store.latest()
            assert newest is not None
            assert newest.log_id == at(1)
            assert bytes_of(store, newest) == content(1)
            [finding] = store.findings
            assert finding.kind is FindingKind.DAMAGE
            assert finding.path == new
            assert finding.offset is not None


def test_a_block_in_another_s_place_is_damage(tmp_path: Path) -> None:
    with open_blocking(tmp_path) as store, store.create(at(1)) as writer:
        writer.write(b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES)
    [file] = files_of(tmp_path)
    data = file.read_bytes()
    first, second = data[64 : 64 + 516], data[64 + 516 : 64 + 1032]
    file.write_bytes(data[:64] + second + first + data[64 + 1032 :])
    with open_blocking(tmp_path) as store:
        assert store.latest() is None


@on_both_backends
async def test_damage_is_found_before_a_byte_of_the_block_is_given(tmp_path: Path) -> None:
    old, new = fill(tmp_path, 1, 2)
    change(new, 64 + 2 * (BLOCK_BYTES + 4) + 5)
    async with SnapshotStore.open(tmp_path) as store:
        assert not store.findings
        damaged = store.snapshots()[-1]
        given = 0
        with pytest.raises(CorruptionError, match="block 2") as caught:
            async with store.read(damaged) as reader:
                async for block in reader:
                    given += len(block)
        assert given == 2 * BLOCK_BYTES
        assert caught.value.path == str(new)
        assert caught.value.offset == 64 + 2 * (BLOCK_BYTES + 4)
        newest = await store.latest()
        assert newest is not None
        assert newest.path == str(old)
        assert [each.kind for each in store.findings] == [FindingKind.DAMAGE]
        with pytest.raises(SnapshotError, match="damaged"):
            async with store.read(damaged):
                pass
        # one that is older than the damaged one is newer than the one that counts
        async with store.create(at(1)):
            pass


def test_a_damaged_one_goes_once_enough_newer_ones_are_there(tmp_path: Path) -> None:
    _, new = fill(tmp_path, 1, 2)
    change(new, 64)
    with open_blocking(tmp_path) as store:
        assert store.latest() is not None
        publish(store, at(3))
        assert [each.log_id.index for each in store.snapshots()] == [1, 3]
        assert new.exists()
        publish(store, at(4))
        assert [each.log_id.index for each in store.snapshots()] == [3, 4]
        assert not new.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG, errno.EUCLEAN])
@pytest.mark.parametrize("call", ["open", "pread", "fdatasync"])
def test_one_that_the_device_cannot_read_is_skipped(tmp_path: Path, call: str, number: int) -> None:
    _, new = fill(tmp_path, 1, 2)
    environment = FailingEnvironment()
    environment.fail(call, number, times=99, where=lambda path: path == str(new))
    with open_blocking(tmp_path, environment=environment) as store:
        newest = store.latest()
        assert newest is not None
        assert newest.log_id == at(1)
        [finding] = store.findings
        assert os.strerror(number) in finding.message


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_an_error_that_proves_no_damage_is_raised(tmp_path: Path, number: int) -> None:
    _, new = fill(tmp_path, 1, 2)
    environment = FailingEnvironment()
    environment.fail("open", number, where=lambda path: path == str(new))
    with pytest.raises(OSError) as caught:
        open_blocking(tmp_path, environment=environment)
    assert caught.value.errno == number
    assert str(new) in "".join(caught.value.__notes__)
    with open_blocking(tmp_path, environment=environment) as store:
        assert store.latest() is not None


@pytest.mark.parametrize("kind", ["directory", "link", "dangling link", "pipe"])
def test_what_is_no_regular_file_is_no_snapshot(tmp_path: Path, kind: str) -> None:
    [old] = fill(tmp_path / "s", 1)
    place = tmp_path / "s" / snapshot_name(9, at(9))
    make: dict[str, Callable[[], object]] = {
        "directory": place.mkdir,
        "link": lambda: place.symlink_to(old),
        "dangling link": lambda: place.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(place),
    }
    make[kind]()
    with open_blocking(tmp_path / "s", keep=1) as store:
        [finding] = store.findings
        assert finding.kind is FindingKind.IRREGULAR
        assert [each.log_id for each in store.snapshots()] == [at(1)]
        for index in (2, 10):
            assert store.latest() is not None
            publish(store, at(index))
        assert os.path.lexists(place)


def test_a_file_that_somebody_removed_is_skipped(tmp_path: Path) -> None:
    with open_blocking(tmp_path) as store:
        publish(store, at(1))
        new = publish(store, at(2))
    with open_blocking(tmp_path) as store:
        os.unlink(new.path)
        newest = store.latest()
        assert newest is not None
        assert newest.log_id == at(1)
        assert [finding.kind for finding in store.findings] == [FindingKind.DAMAGE]


def test_a_name_that_does_not_fit_what_it_names_is_damage(tmp_path: Path) -> None:
    [file] = fill(tmp_path, 1)
    file.rename(tmp_path / snapshot_name(1, at(2)))
    with open_blocking(tmp_path) as store:
        assert store.latest() is None
        [finding] = store.findings
        assert "unlike its name" in finding.message


def test_a_snapshot_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    [file] = fill(tmp_path, 1)
    data = bytearray(file.read_bytes())
    data[7] = 9
    data[60:64] = struct.pack(">I", crc32c(bytes(data[:60])))
    file.write_bytes(data)
    with pytest.raises(UnknownVersionError, match="version 9") as caught:
        open_blocking(tmp_path)
    assert caught.value.path == str(file)
    assert caught.value.version == 9
    assert file.read_bytes() == data
    assert not is_locked(tmp_path)


NAMES = [
    snapshot_name(1, LogId(2, 3, 4)),
    snapshot_name(10**17, LogId((1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1)),
]


@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        "0000000000000001-1-01-0.snapshot",
        "0000000000000001-1-18446744073709551616-0.snapshot",
        "1-1-1-1.snapshot",
        "0000000000000001-1-1-1.snapshot.tmp",
    ],
)
def test_a_name_is_read_as_it_is_written_and_no_other_is(name: str) -> None:
    parsed = parse_snapshot_name(name)
    if name in NAMES:
        assert parsed is not None
        assert snapshot_name(parsed[1], parsed[0]) == name
    else:
        assert parsed is None
    assert (parsed is not None) == (
        name in (snapshot_name(1, LogId(2, 3, 4)), name[:0]) or len(name) > 70
    )


def test_a_head_whose_numbers_contradict_each_other_is_none() -> None:
    for block_bytes in (0, 511, (1 << 26) + 1):
        assert isinstance(SnapshotHead.unpack(SnapshotHead(at(1), block_bytes, 5).pack()), str)
    head = SnapshotHead(at(1), 512, 5)
    assert SnapshotHead.unpack(head.pack()) == head


# --- opening, the lock ---------------------------------------------------------------------


@on_both_backends
async def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path):
        with pytest.raises(WalLockedError, match="one owner") as caught:
            open_blocking(tmp_path)
        assert (caught.value.path, caught.value.pid) == (str(tmp_path), os.getpid())
        with pytest.raises(WalLockedError):
            async with RaftLogStorage.open(tmp_path):
                pass
        with pytest.raises(WalLockedError):
            async with SnapshotStore.open(tmp_path):
                pass
    async with SnapshotStore.open(tmp_path):
        pass
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("has_lock_file", [True, False])
@on_both_backends
async def test_a_log_s_directory_is_refused_and_left_as_it_is(
    tmp_path: Path, has_lock_file: bool
) -> None:
    async with RaftLogStorage.open(tmp_path) as log:
        await log.append(entries(1, 4))
    if not has_lock_file:
        (tmp_path / "lock.hql").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SnapshotError, match="a log's directory"):
        async with SnapshotStore.open(tmp_path):
            pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run_python(
        """
        import os, sys
        from hqlwal_raft import LogId
        from hqlwal_raft.snapshots import BlockingSnapshotStore
        store = BlockingSnapshotStore.open(sys.argv[1])
        with store.create(LogId(1, 1)) as writer:
            writer.write(b"whole")
        with store.create(LogId(1, 2)) as writer:
            writer.write(bytes(5_000_000))
            print(len(os.listdir(sys.argv[1])), flush=True)
            os._exit(0)
        """,
        tmp_path,
    )
    others = [tmp_path / name for name in ("x.tmp", "notes.txt", "abc.snapshot.tmp")]
    for other in others:
        other.touch()
    assert len(files_of(tmp_path)) == 3
    with open_blocking(tmp_path) as store:
        assert [each.kind for each in store.findings] == [FindingKind.LEFTOVER]
        assert bytes_of(store, store.latest()) == b"whole"
    assert all(other.exists() for other in others)
    assert len(files_of(tmp_path)) == 2


def test_a_directory_that_was_moved_takes_no_snapshot(tmp_path: Path) -> None:
    with open_blocking(tmp_path / "a") as store:
        publish(store, at(1))
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        with pytest.raises(OSError, match="moved") as caught:
            publish(store, at(2))
        assert caught.value.errno == errno.ESTALE
        assert list((tmp_path / "a").iterdir()) == []
        assert len(files_of(tmp_path / "b")) == 1


WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("keep", 0, ValueError),
    ("keep", True, TypeError),
    ("keep", "2", TypeError),
    ("keep", 1001, ValueError),
    ("block_bytes", 511, ValueError),
    ("block_bytes", 1 << 27, ValueError),
    ("block_bytes", 4096.0, TypeError),
    ("environment", 7, TypeError),
]


@pytest.mark.parametrize(("name", "value", "kind"), WRONG)
def test_options_that_make_no_sense_are_refused_before_anything_is_touched(
    tmp_path: Path, name: str, value: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=name):
        BlockingSnapshotStore.open(tmp_path / "s", **{name: value})
    with pytest.raises(kind, match=name):
        SnapshotStore.open(tmp_path / "s", **{name: value})
    with pytest.raises(TypeError, match="path"):
        SnapshotStore.open(7)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@on_both_backends
async def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path) as store:
        for log_id in (None, 7, (1, 2, 3), LogId(-1, 1), LogId(1, 1 << 64)):
            with pytest.raises((TypeError, ValueError)):
                store.create(log_id)  # type: ignore[arg-type]
        for snapshot in (None, 7, at(1)):
            with pytest.raises(TypeError, match="latest"):
                store.read(snapshot)  # type: ignore[arg-type]
        async with store.create(at(1)) as writer:
            await writer.write(b"abc")
            for piece in ("text", 7, None, [b"x"]):
                with pytest.raises(TypeError, match="bytes-like"):
                    await writer.write(piece)  # type: ignore[arg-type]
        assert writer.snapshot is not None
        async with store.read(writer.snapshot) as reader:
            for offset, length in ((-1, 1), (4, 1), (0, -1), (0.0, 1), (True, 1)):
                with pytest.raises((TypeError, ValueError)):
                    await reader.read(offset, length)  # type: ignore[arg-type]
            assert await reader.read(0, 5) == b"abc"


# --- the end -------------------------------------------------------------------------------


@on_both_backends
async def test_after_the_end_every_call_says_that_it_was_closed(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        async with store.create(at(1)) as writer:
            await writer.write(content(1))
        snapshot = writer.snapshot
        assert snapshot is not None
        async with store.read(snapshot) as reader:
            with pytest.raises(WalClosedError):
                async with store.create(at(2)) as going_on:
                    await going_on.write(content(2))
                    await store.aclose()
                    await store.aclose()
                    assert len(files_of(tmp_path)) == 1
                    assert not is_locked(tmp_path)
                    await going_on.write(content(2))
            for call in (
                store.latest,
                lambda: reader.read(0, 1),
                lambda: going_on.write(b"x"),
                lambda: anext(aiter(reader)),
            ):
                with pytest.raises(WalClosedError, match="was closed"):
                    await call()
            for plain in (
                store.snapshots,
                lambda: store.create(at(3)),
                lambda: store.read(snapshot),
            ):
                with pytest.raises(WalClosedError, match="was closed"):
                    plain()


class ClosersKnown(Environment):
    """Knows which thread closed a file last."""

    def __init__(self) -> None:
        self.has_closed = threading.Event()
        self.closer = 0

    def close(self, descriptor: int, /) -> None:
        super().close(descriptor)
        self.closer = threading.get_ident()
        self.has_closed.set()


@on_both_backends
async def test_who_reads_on_behind_the_end_closes_the_file_in_a_thread_as_well(
    tmp_path: Path,
) -> None:
    environment = ClosersKnown()
    async with SnapshotStore.open(tmp_path, environment=environment) as store:
        async with store.create(at(1)) as writer:
            await writer.write(content(1))
        snapshot = writer.snapshot
        assert snapshot is not None
        reading = store.read(snapshot)
        await reading.__aenter__()
    environment.has_closed.clear()
    await reading.__aexit__(None, None, None)
    assert await anyio.to_thread.run_sync(environment.has_closed.wait, 30)
    assert environment.closer != threading.get_ident()


def test_a_writer_is_used_once(tmp_path: Path) -> None:
    with open_blocking(tmp_path) as store:
        writer = store.create(at(1))
        with pytest.raises(SnapshotError, match="use 'with'"):
            writer.write(b"x")
        with writer:
            writer.write(b"x")
            with pytest.raises(SnapshotError, match="begun already"):
                writer.begin()
        with pytest.raises(SnapshotError, match="was published"):
            writer.write(b"x")
        with pytest.raises(SnapshotError, match="begun already"), writer:
            pass
        assert writer.snapshot is not None
        reader = store.read(writer.snapshot)
        with pytest.raises(SnapshotError, match="use 'with'"):
            reader.read(0, 1)


@on_both_backends
async def test_a_block_of_opening_is_used_once(tmp_path: Path) -> None:
    block = SnapshotStore.open(tmp_path)
    async with block:
        with pytest.raises(RuntimeError, match="once more"):
            await block.__aenter__()
    async with block:
        pass


@on_both_backends
async def test_a_store_that_is_dropped_says_so_and_lets_go(tmp_path: Path) -> None:
    block = SnapshotStore.open(tmp_path)
    store: Any = await block.__aenter__()
    block._store = None  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning, match="never closed"):
        del store
        gc.collect()
    assert not is_locked(tmp_path)


def test_a_writer_that_is_dropped_says_so_and_leaves_what_the_next_open_removes(
    tmp_path: Path,
) -> None:
    with open_blocking(tmp_path) as store:
        writer = store.create(at(1)).__enter__()
        with pytest.warns(ResourceWarning, match="never finished"):
            del writer
            gc.collect()
        assert len(files_of(tmp_path)) == 1
    with warnings.catch_warnings(), open_blocking(tmp_path):
        assert files_of(tmp_path) == []


# --- elsewhere -----------------------------------------------------------------------------


async def use(path: Path, then: Callable[..., Any]) -> None:
    """Calls ``then`` with every call that may be made of a store, and of who writes and reads."""
    async with SnapshotStore.open(path, block_bytes=BLOCK_BYTES) as store:
        async with store.create(at(1)) as writer:
            await writer.write(content(1))
        snapshot = writer.snapshot
        assert snapshot is not None
        async with store.read(snapshot) as reader, store.create(at(2)) as other:
            calls: dict[str, Callable[[], Any]] = {
                "snapshots": store.snapshots,
                "latest": store.latest,
                "create": lambda: store.create(at(3)),
                "read": lambda: store.read(snapshot),
                "write": lambda: other.write(b"x"),
                "enter a writer": store.create(at(3)).__aenter__,
                "enter a reader": store.read(snapshot).__aenter__,
                "read a part": lambda: reader.read(0, 9),
                "a block": lambda: anext(aiter(reader)),
            }
            await then(store, calls)
            assert await reader.read(0, 9999) == content(1)
            await other.write(content(2))
        assert await store.latest() == other.snapshot
    assert not is_locked(path)


async def answers_to(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            with anyio.fail_after(PATIENCE_SECONDS):
                result = call()
                answers[name] = await result if hasattr(result, "__await__") else result
        except Exception as error:
            answers[name] = error
    return answers


@pytest.mark.parametrize("loops", [("asyncio", "asyncio"), ("trio", "trio"), ("trio", "asyncio")])
def test_on_another_event_loop_every_call_says_so_and_does_nothing(
    tmp_path: Path, loops: tuple[str, str]
) -> None:
    async def then(store: SnapshotStore, calls: dict[str, Callable[[], Any]]) -> None:
        calls = {**calls, "aclose": store.aclose}
        answers = await anyio.to_thread.run_sync(
            lambda: anyio.run(answers_to, calls, backend=loops[1])
        )
        assert answers.keys() == calls.keys()
        for name, answer in answers.items():
            assert isinstance(answer, WrongLoopError), (name, answer)
            assert answer.path == str(tmp_path)
            assert "outside of the event loop" in str(answer)

    anyio.run(use, tmp_path, then, backend=loops[0])


@pytest.mark.parametrize("is_abandoned", [True, False])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_after_its_event_loop_has_ended_every_call_says_so(
    tmp_path: Path, backend: str, is_abandoned: bool
) -> None:
    kept: list[Any] = []

    async def leave() -> None:
        block = SnapshotStore.open(tmp_path)
        kept.append(await block.__aenter__())
        block._store = None  # type: ignore[attr-defined]

    anyio.run(leave, backend=backend)
    store = kept[0]
    calls = {"latest": store.latest, "aclose": store.aclose}
    answers = anyio.run(answers_to, calls, backend=backend)
    calls.clear()
    for answer in answers.values():
        assert isinstance(answer, WrongLoopError)
        assert backend == "trio" or "has ended: abandon() it" in str(answer)
    answers.clear()
    del store, answer
    if is_abandoned:
        kept[0].abandon()
        kept[0].abandon()
        threads = [each for each in store_threads() if each.name == "hqlwal-snapshots"]
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        kept.clear()
        gc.collect()
    else:
        with pytest.warns(ResourceWarning, match="never closed"):
            kept.clear()
            gc.collect()
    assert not is_locked(tmp_path)


@on_both_backends
async def test_a_store_that_is_abandoned_drops_what_is_written_and_lets_go(tmp_path: Path) -> None:
    async with SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES) as store:
        with pytest.raises(WalClosedError):
            async with store.create(at(1)) as writer:
                await writer.write(content(1))
                await anyio.to_thread.run_sync(store.abandon)
        with pytest.raises(WalClosedError):
            await store.latest()
    assert not is_locked(tmp_path)
    assert files_of(tmp_path) == []


@on_both_backends
async def test_in_a_forked_child_every_call_says_so_and_the_parent_s_files_stay(
    tmp_path: Path,
) -> None:
    async def then(store: SnapshotStore, calls: dict[str, Callable[[], Any]]) -> None:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        receiving, sending = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads are there
            pid = os.fork()
        if pid == 0:
            said = []
            try:
                for name, call in calls.items():
                    try:
                        result = call()
                        if hasattr(result, "__await__"):
                            result.__await__().send(None)
                        said.append(f"{name} went through")
                    except WalClosedError as error:
                        if "forked" not in str(error):
                            said.append(f"{name}: {error}")
                    except BaseException as error:
                        said.append(f"{name}: {error!r}")
                store._inner.close()
                del store, calls, call
                gc.collect()
            finally:
                os.write(sending, repr(said).encode())
                os._exit(0)
        os.close(sending)
        said_there = b""
        while piece := os.read(receiving, 1 << 16):
            said_there += piece
        os.close(receiving)
        os.waitpid(pid, 0)
        assert said_there == b"[]"
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert is_locked(tmp_path)

    await use(tmp_path, then)


def test_a_child_that_outlives_its_parent_keeps_nobody_out(tmp_path: Path) -> None:
    with open_blocking(tmp_path) as store:
        publish(store, at(1))
        receiving, sending = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(sending)
            os.read(receiving, 1)  # until the parent says so
            os._exit(0)
        os.close(receiving)
    try:
        with open_blocking(tmp_path) as store:
            assert store.latest() is not None
    finally:
        os.close(sending)
        os.waitpid(pid, 0)


def test_a_child_that_was_forked_during_a_write_leaves_the_block_at_once(tmp_path: Path) -> None:
    gate = Gate("pwrite", ".tmp")
    with open_blocking(tmp_path, environment=HookedEnvironment(gate)) as store:
        with store.create(at(1)) as writer:
            gate.shut()
            thread = threading.Thread(target=writer.write, args=(content(1),))
            thread.start()
            anyio.run(gate.held)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                signal.alarm(PATIENCE_SECONDS)  # its default ends the process
                writer.__exit__(None, ValueError(), None)
                store.close()
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            gate.open()
            thread.join(PATIENCE_SECONDS)
        assert status == 0
        assert bytes_of(store, store.latest()) == content(1)


# --- threads -------------------------------------------------------------------------------


def test_threads_may_write_read_and_publish_at_the_same_time(tmp_path: Path) -> None:
    problems: list[BaseException] = []
    refused: list[SnapshotOrderError] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        try:
            start.wait(PATIENCE_SECONDS)
            for index in range(number, 30, 3):
                try:
                    publish(store, at(index + 1))
                except SnapshotOrderError as error:
                    refused.append(error)
        except BaseException as error:
            problems.append(error)

    def read() -> None:
        try:
            start.wait(PATIENCE_SECONDS)
            last = 0
            while last < 30:
                newest = store.latest()
                if newest is None:
                    continue
                assert newest.log_id.index >= last
                last = newest.log_id.index
                try:
                    assert bytes_of(store, newest) == content(last)
                except SnapshotError:
                    assert store.latest() != newest
        except BaseException as error:
            problems.append(error)

    with open_blocking(tmp_path, keep=1) as store:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        threads += [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert problems == []
        assert [each.log_id for each in store.snapshots()] == [at(30)]
        assert len(files_of(tmp_path)) == 1
        assert not store.findings


def test_a_store_that_is_closed_while_one_writes_waits_for_the_write_and_drops_it(
    tmp_path: Path,
) -> None:
    gate = Gate("pwrite", ".tmp")
    raised: list[BaseException] = []
    store = open_blocking(tmp_path, environment=HookedEnvironment(gate))

    def write() -> None:
        try:
            with store.create(at(1)) as writer:
                gate.shut()
                writer.write(content(1))
                writer.write(content(1))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=write)]
    threads[0].start()
    anyio.run(gate.held)
    threads.append(threading.Thread(target=store.close))
    threads[1].start()
    with pytest.raises(WalLockedError):
        open_blocking(tmp_path)
    gate.open()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    [error] = raised
    assert isinstance(error, WalClosedError)
    assert files_of(tmp_path) == []
    assert not is_locked(tmp_path)


# --- looking at them -----------------------------------------------------------------------


def test_who_looks_at_a_directory_in_use_finds_nothing_wrong_and_changes_nothing(
    tmp_path: Path,
) -> None:
    with open_blocking(tmp_path, keep=3) as store:
        made = [publish(store, at(index)) for index in (9, 10)]
        with store.create(at(11)) as writer:
            writer.write(content(11))
            before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            report = examine_snapshots(tmp_path)
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert report.snapshots == made
        assert [finding.kind for finding in report.findings] == [FindingKind.IN_USE]
        assert report.verdict is Verdict.INTACT
        assert report.lock.pid == os.getpid()


def test_who_looks_at_a_directory_at_rest_is_told_what_an_open_would_find(tmp_path: Path) -> None:
    fill(tmp_path, 9, 10, 11, keep=3)
    old, middle, new = files_of(tmp_path)
    (tmp_path / "0123abcd.snapshot.tmp").write_bytes(b"x")
    assert examine_snapshots(tmp_path).verdict is Verdict.TORN
    change(middle, 100)
    new.unlink()
    new.mkdir()
    report = examine_snapshots(tmp_path)
    assert [snapshot.path for snapshot in report.snapshots] == [str(old)]
    kinds = {finding.path: finding.kind for finding in report.findings}
    assert kinds.pop(str(tmp_path / "0123abcd.snapshot.tmp")) is FindingKind.LEFTOVER
    assert kinds == {str(middle): FindingKind.DAMAGE, str(new): FindingKind.IRREGULAR}
    assert report.verdict is Verdict.DAMAGED


# --- what is interrupted -------------------------------------------------------------------


@on_both_backends
async def test_an_opening_that_is_cancelled_leaves_the_lock_free(tmp_path: Path) -> None:
    gate = Gate("listdir", "")
    gate.shut()
    environment = HookedEnvironment(gate)
    async with anyio.create_task_group() as tasks:

        async def use_it() -> None:
            async with SnapshotStore.open(tmp_path, environment=environment):
                raise AssertionError("it was cancelled")

        tasks.start_soon(use_it)
        await gate.held()
        tasks.cancel_scope.cancel()
        gate.open()
    assert not is_locked(tmp_path)
    with open_blocking(tmp_path):
        pass


def test_a_task_that_nobody_runs_any_more_lets_go_of_all(tmp_path: Path) -> None:
    async def use_it() -> None:
        opened = SnapshotStore.open(tmp_path, block_bytes=BLOCK_BYTES)
        async with opened as store, store.create(at(1)) as writer:
            await writer.write(content(1))
            reached.append(store)
            await asyncio.sleep(1e6)

    reached: list[SnapshotStore] = []
    loop = asyncio.new_event_loop()
    coroutine = use_it()
    task = loop.create_task(coroutine)
    while not reached:
        loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    reached.clear()
    coroutine.close()
    for thread in store_threads():
        thread.join(PATIENCE_SECONDS)
    assert not is_locked(tmp_path)
    assert files_of(tmp_path) == []
