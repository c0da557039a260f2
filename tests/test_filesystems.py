"""Full disks, copies and layers: on files in memory, and on a small file system of its own.

``make test-filesystems`` has this run on ext4, XFS, btrfs, tmpfs and overlayfs, and names the
directory in HQLWAL_GROUND. Elsewhere a tmpfs is mounted, where this machine lets us.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote
from tests.filesystems.disks import MemoryDisk
from tests.filesystems.grounds import mounted
from tests.filesystems.scenes import POLICIES, SCENES, NotHereError, play

ROOT = Path(__file__).parent.parent
#: where a scene has nothing to be held against here
NOT_HERE = 77


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """An empty directory on a file system that may be filled."""
    given = os.environ.get("HQLWAL_GROUND")
    if given is not None:
        directory = Path(given) / "ground"
        directory.mkdir()
        yield directory
        shutil.rmtree(directory)
        return
    with mounted(tmp_path / "ground", "tmpfs", "size=4m,nr_inodes=200") as reason:
        if reason:
            pytest.skip(reason)
        yield tmp_path / "ground"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SCENES)
def test_a_full_disk_is_an_error_in_memory(name: str, policy: str) -> None:
    try:
        anyio.run(play, name, MemoryDisk(), policy)
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SCENES)
def test_a_full_disk_is_an_error_and_never_a_signal(name: str, policy: str, ground: Path) -> None:
    command = [sys.executable, "-m", "tests.filesystems.scenes", name, str(ground), policy]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr


async def test_a_store_in_a_lower_layer_is_copied_up_and_opens(tmp_path: Path) -> None:
    lower, upper, top = (tmp_path / name for name in ("lower", "upper", "top"))
    with mounted(lower, "tmpfs", "size=4m") as no_lower, mounted(upper, "tmpfs") as no_upper:
        if no_lower or no_upper:
            pytest.skip(no_lower or no_upper)
        async with RaftLogStorage.open(lower / "node", segment_size=8192) as store:
            await store.append([Entry(1, index, b"x" * 1000) for index in range(1, 31)])
            await store.save_vote(Vote(1, 1))
        for name in ("files", "work"):
            (upper / name).mkdir()
        layers = f"lowerdir={lower},upperdir={upper}/files,workdir={upper}/work"
        with mounted(top, "overlay", layers) as no_layers:
            if no_layers:
                pytest.skip(no_layers)
            for last in (30, 31, 32):
                async with RaftLogStorage.open(top / "node", segment_size=8192) as store:
                    assert len(await store.try_get_log_entries(0)) == last
                    await store.append([Entry(1, last + 1, b"y")])
                    await store.save_vote(Vote(last, 1))
            async with RaftLogStorage.open(top / "node", segment_size=8192) as store:
                await store.truncate(LogId(1, 5))
                await store.purge(LogId(1, 2))
                await store.append([Entry(2, 5, b"z" * 5000)])
            async with RaftLogStorage.open(top / "node", segment_size=8192) as store:
                found = await store.try_get_log_entries(0)
                assert [entry.index for entry in found] == [3, 4, 5]
                assert await store.read_vote() == Vote(32, 1)
