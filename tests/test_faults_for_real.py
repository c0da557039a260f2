"""Disks that fail for real: full, read-only, gone; and processes at their limits."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, WalPoisonedError
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import FailingEnvironment
from tests.test_faults import fill


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 256 KiB, where this machine lets us mount one."""
    target = tmp_path / "small"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(target)]
    try:
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    yield target if is_mounted else None
    if is_mounted:
        subprocess.run(["umount", str(target)], check=True)


async def test_a_full_file_system_is_an_error_and_never_a_signal(
    mounted: Path | None, tmp_path: Path
) -> None:
    if mounted is None:
        _run_in_child(_LIMITED_FILE_SIZE, str(tmp_path / "node"))
        return
    path = str(mounted / "node")
    with anyio.fail_after(30):
        async with RaftLogStorage.open(path, segment_size=32768) as store:
            last = await fill(store)
        async with RaftLogStorage.open(path, segment_size=32768) as store:
            assert len(await store.try_get_log_entries(0)) == last
            await store.purge(LogId(1, last - 1))
            await store.append([Entry(1, last + i, b"x" * 2000) for i in range(1, 20)])
        assert os.statvfs(path).f_bavail > 0


def test_a_limit_on_file_sizes_is_an_error_and_never_a_signal(tmp_path: Path) -> None:
    _run_in_child(_LIMITED_FILE_SIZE, str(tmp_path / "node"))


def test_running_out_of_descriptors_is_an_error_and_the_store_goes_on(tmp_path: Path) -> None:
    _run_in_child(_LIMITED_DESCRIPTORS, str(tmp_path / "node"))


_LIMITED_FILE_SIZE = """
    import errno, resource

    async def main():
        async with RaftLogStorage.open(path, segment_size=8192) as store:
            await store.append([Entry(1, 1, b"x" * 2000)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
            try:
                await store.append([Entry(1, 2, b"x" * 40000)])
            except OSError as error:
                assert error.errno in (errno.EFBIG, errno.ENOSPC), repr(error)
            else:
                raise AssertionError("a file larger than the limit")
            for index in range(2, 20):
                await store.append([Entry(1, index, b"x" * 2000)])
            assert len(await store.try_get_log_entries(0)) == 19
"""

_LIMITED_DESCRIPTORS = """
    import errno, os, resource

    async def main():
        async with RaftLogStorage.open(path, segment_size=8192, cache_bytes=0) as store:
            await store.append([Entry(1, index, b"x" * 2000) for index in range(1, 40)])
        async with RaftLogStorage.open(path, segment_size=8192, cache_bytes=0) as store:
            taken = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as error:
                assert error.errno == errno.EMFILE
            for call in (store.try_get_log_entries(0), append_many(store)):
                try:
                    await call
                except OSError as error:
                    assert error.errno == errno.EMFILE, repr(error)
                else:
                    raise AssertionError("no descriptor was needed")
            for descriptor in taken:
                os.close(descriptor)
            assert len(await store.try_get_log_entries(0)) == 39
            await append_many(store)
            assert len(await store.try_get_log_entries(0)) == 69

    async def append_many(store):
        await store.append([Entry(1, index, b"x" * 2000) for index in range(40, 70)])
"""


def _run_in_child(body: str, path: str) -> None:
    script = (
        "import sys, anyio\n"
        "from hqlwal_raft import Entry, RaftLogStorage\n"
        "path = sys.argv[1]\n" + textwrap.dedent(body) + "\nanyio.run(main)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


async def test_a_directory_that_disappears_is_an_error_and_closing_does_not_hang(
    tmp_path: Path,
) -> None:
    path = tmp_path / "node"
    with anyio.fail_after(20):
        try:
            async with RaftLogStorage.open(path, segment_size=8192) as store:
                await store.append([Entry(1, 1, b"x" * 2000)])
                while path.exists():  # the next segment may be being made meanwhile
                    shutil.rmtree(path, ignore_errors=True)
                with pytest.raises((FileNotFoundError, WalPoisonedError)):
                    for index in range(2, 40):
                        await store.append([Entry(1, index, b"x" * 2000)])
                assert (await store.try_get_log_entries(1, 2))[0].index == 1
        except OSError as error:
            assert error.errno == errno.ENOENT, repr(error)
        async with RaftLogStorage.open(path, segment_size=8192) as store:
            assert await store.try_get_log_entries(0) == []
            await store.append([Entry(1, 1)])


@contextlib.asynccontextmanager
async def _unwritable(directory: Path, mounted: Path | None) -> AsyncIterator[Environment]:
    """Makes a directory read-only by what means this user has."""
    if mounted is not None:
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        yield Environment()
        subprocess.run(["mount", "-o", "remount,rw", str(mounted)], check=True)
    elif os.geteuid() != 0:
        directory.chmod(0o500)
        yield Environment()
        directory.chmod(0o700)
    else:  # a superuser who may not mount: nothing real stops them
        files = FailingEnvironment()
        for call in ("posix_fallocate", "flock", "rename", "unlink"):
            files.fail(call, errno.EROFS, times=1 << 30)
        yield files


async def test_a_directory_that_cannot_be_written_is_an_error_that_changes_nothing(
    mounted: Path | None, tmp_path: Path
) -> None:
    directory = (mounted or tmp_path) / "node"
    async with RaftLogStorage.open(directory, segment_size=8192) as store:
        await store.append([Entry(1, 1)])
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with anyio.fail_after(10):
        async with _unwritable(directory, mounted) as files:
            with pytest.raises(OSError) as caught:
                async with RaftLogStorage.open(directory, segment_size=8192, environment=files):
                    pass
            assert caught.value.errno in (errno.EROFS, errno.EACCES)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    async with RaftLogStorage.open(directory, segment_size=8192) as store:
        assert await store.try_get_log_entries(0) == [Entry(1, 1)]
