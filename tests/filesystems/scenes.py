"""What a store does on a full disk: one body each, over files in memory and over real ones.

A scene on real files runs in a process of its own (``python -m tests.filesystems.scenes NAME ROOT
POLICY``): where a store into a map meets a full disk the kernel kills the process.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Awaitable, Callable

import anyio

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalPoisonedError
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import MemoryKernel

from .disks import Disk, RealDisk

__all__ = ["POLICIES", "SCENES", "NotHereError"]

POLICIES = ("immediate", "immediate_async", "interval_10")
SEGMENT_SIZE = 64 << 10
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FICLONE = 0x40049409


class NotHereError(Exception):
    """The scene needs what this disk lacks."""


def entries(start: int, stop: int, size: int = 1500) -> list[Entry]:
    return [Entry(1, index, (b"%d." % index).ljust(size, b"x")) for index in range(start, stop)]


def _open(disk: Disk, path: str, policy: str) -> object:
    return RaftLogStorage.open(
        path, segment_size=SEGMENT_SIZE, sync=policy, cache_bytes=0, environment=disk.environment
    )


async def _make(disk: Disk, path: str, policy: str) -> None:
    async with _open(disk, path, policy) as store:  # type: ignore[attr-defined]
        await store.append(entries(1, 51, 300))
        await store.save_vote(Vote(1, 1))


def _may_poison(disk: Disk, path: str) -> bool:
    """Whether overwriting needs new blocks here: nobody can keep a full disk from failing it."""
    if isinstance(disk.environment, MemoryKernel):
        return False
    from hqlwal_raft._directory import Directory

    directory = Directory(disk.environment, path)
    try:
        names = [name for name in directory.names() if name.endswith((".wal", ".hql"))]
        files = [directory.open_file(name) for name in names if name != "lock.hql"]
        return any(map(directory.is_copied_on_write, files))
    finally:
        directory.close()


async def _meets_the_full_disk(
    disk: Disk, path: str, policy: str, *, is_full: bool, is_shared: bool = False
) -> None:
    """Appends until there is no space: an error, and nothing that was promised is lost.

    Where blocks are shared with another file a vote may lack space as well.
    """
    may_poison = _may_poison(disk, path)
    promised = 0
    error: Exception | None = None
    try:
        async with _open(disk, path, policy) as store:  # type: ignore[attr-defined]
            last = (await store.get_log_state()).last_log_id
            promised = last.index
            assert await store.try_get_log_entries(0) == entries(1, promised + 1, 300)
            if not is_full:
                disk.fill()
            try:
                for index in range(promised + 1, promised + 400):
                    await store.append(entries(index, index + 1))
                    await store.flush()
                    promised = index
            except (OSError, WalPoisonedError) as met:
                error = met
            assert error is not None, "the disk was not full"
            cause = error.__cause__ if isinstance(error, WalPoisonedError) else error
            assert isinstance(cause, OSError), repr(error)
            assert cause.errno in _NO_SPACE, repr(error)
            assert may_poison or not store.statistics().is_poisoned, repr(error)
            assert len(await store.try_get_log_entries(0)) >= promised
            if not store.statistics().is_poisoned:
                try:
                    await store.save_vote(Vote(2, 1))
                except OSError as refused:
                    assert is_shared or may_poison, repr(refused)
                    assert refused.errno in _NO_SPACE, repr(refused)
                disk.make_room()
                await store.save_vote(Vote(3, 1))
                await store.append(entries(promised + 1, promised + 101))
                promised += 100
                await store.flush()
    except (OSError, WalPoisonedError) as met:
        if not may_poison:
            raise
        cause = met.__cause__ if isinstance(met, WalPoisonedError) else met
        assert isinstance(cause, OSError), repr(met)
        assert cause.errno in _NO_SPACE, repr(met)
    disk.make_room()
    async with _open(disk, path, policy) as store:  # type: ignore[attr-defined]
        found = await store.try_get_log_entries(0)
        assert [entry.index for entry in found[:promised]] == list(range(1, promised + 1))
        await store.append(entries(len(found) + 1, len(found) + 2))
        await store.purge(LogId(1, len(found)))


async def full_under_an_open_store(disk: Disk, policy: str) -> None:
    path = f"{disk.root}/node"
    await _make(disk, path, policy)
    await _meets_the_full_disk(disk, path, policy, is_full=False)


async def full_before_it_is_opened(disk: Disk, policy: str) -> None:
    path = f"{disk.root}/node"
    await _make(disk, path, policy)
    disk.fill()
    await _meets_the_full_disk(disk, path, policy, is_full=True)


async def without_a_free_inode(disk: Disk, policy: str) -> None:
    path = f"{disk.root}/node"
    await _make(disk, path, policy)
    disk.environment.unlink(f"{path}/lock.hql")
    if not disk.take_inodes():
        raise NotHereError("no limit of inodes")
    await _meets_the_full_disk(disk, path, policy, is_full=True)


async def a_new_store_on_a_full_disk(disk: Disk, policy: str) -> None:
    path = f"{disk.root}/node"
    disk.environment.mkdir(path)
    disk.fill()
    disk.take_inodes()
    try:
        async with _open(disk, path, policy):  # type: ignore[attr-defined]
            raise AssertionError("the disk was not full")
    except OSError as error:
        assert error.errno in _NO_SPACE, repr(error)
        assert path in "".join(error.__notes__)
    disk.make_room()
    await _make(disk, path, policy)


async def a_sparse_copy(disk: Disk, policy: str) -> None:
    await _make(disk, f"{disk.root}/old", policy)
    _copy(disk.environment, f"{disk.root}/old", f"{disk.root}/node", _copy_sparse)
    await _meets_the_full_disk(disk, f"{disk.root}/node", policy, is_full=False)


async def a_sparse_copy_on_a_full_disk(disk: Disk, policy: str) -> None:
    await _make(disk, f"{disk.root}/old", policy)
    _copy(disk.environment, f"{disk.root}/old", f"{disk.root}/node", _copy_sparse)
    disk.fill()
    await _meets_the_full_disk(disk, f"{disk.root}/node", policy, is_full=True)


async def a_copy_that_shares_blocks(disk: Disk, policy: str) -> None:
    await _make(disk, f"{disk.root}/old", policy)
    _copy(disk.environment, f"{disk.root}/old", f"{disk.root}/node", _clone)
    await _meets_the_full_disk(disk, f"{disk.root}/node", policy, is_full=False, is_shared=True)


async def blocks_shared_under_an_open_store(disk: Disk, policy: str) -> None:
    """A copy is made while the store is open, then the disk fills: only blocks are missing."""
    path = f"{disk.root}/node"
    await _make(disk, path, policy)
    promised = 50
    async with _open(disk, path, policy) as store:  # type: ignore[attr-defined]
        await store.append(entries(51, 52))
        await store.flush()
        promised = 51
        _copy(disk.environment, path, f"{disk.root}/copy", _clone)
        disk.fill()
        try:
            for index in range(52, 400):
                await store.append(entries(index, index + 1))
                await store.flush()
                promised = index
        except (OSError, WalPoisonedError) as error:
            cause = error.__cause__ if isinstance(error, WalPoisonedError) else error
            assert isinstance(cause, OSError), repr(error)
            assert cause.errno in _NO_SPACE, repr(error)
        assert len(await store.try_get_log_entries(0)) >= promised
        disk.make_room()
    async with _open(disk, path, policy) as store:  # type: ignore[attr-defined]
        found = await store.try_get_log_entries(0)
        assert [entry.index for entry in found[:promised]] == list(range(1, promised + 1))


# --- copies ------------------------------------------------------------------------------


def _copy(
    environment: Environment,
    source: str,
    target: str,
    copy: Callable[[Environment, int, int], None],
) -> None:
    environment.mkdir(target)
    for name in environment.listdir(source):
        if not stat.S_ISREG(environment.stat(f"{source}/{name}").st_mode):
            continue
        old = environment.open(f"{source}/{name}", os.O_RDONLY)
        new = environment.open(f"{target}/{name}", os.O_RDWR | os.O_CREAT)
        try:
            copy(environment, old, new)
            environment.fsync(new)
        finally:
            environment.close(old)
            environment.close(new)


def _copy_sparse(environment: Environment, old: int, new: int) -> None:
    """As ``cp --sparse=always``, ``rsync -S``, ``tar -S``."""
    size = environment.fstat(old).st_size
    environment.ftruncate(new, size)
    for offset in range(0, size, 4096):
        data = environment.pread(old, 4096, offset)
        if data.strip(b"\0"):
            environment.pwrite(new, data, offset)


def _clone(environment: Environment, old: int, new: int) -> None:
    """As ``cp --reflink=always``."""
    try:
        environment.ioctl(new, _FICLONE, old)
    except OSError as error:
        raise NotHereError(f"no copies that share blocks ({error.strerror})") from error


Scene = Callable[[Disk, str], Awaitable[None]]
SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        full_under_an_open_store,
        full_before_it_is_opened,
        without_a_free_inode,
        a_new_store_on_a_full_disk,
        a_sparse_copy,
        a_sparse_copy_on_a_full_disk,
        a_copy_that_shares_blocks,
        blocks_shared_under_an_open_store,
    )
}


async def play(name: str, disk: Disk, policy: str) -> None:
    try:
        with anyio.fail_after(120):
            await SCENES[name](disk, policy)
    finally:
        disk.make_room()


def main(name: str, root: str, policy: str) -> int:
    """0: done; 77: not here, for the reason that is printed."""
    try:
        anyio.run(play, name, RealDisk(root), policy)
    except NotHereError as error:
        print(error)
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
