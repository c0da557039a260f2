"""Nothing acknowledged is lost, nothing truncated returns, no vote goes backwards: power cuts.

More of the same, for as long as one likes: ``python -m tests.torture``.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hqlwal_raft import Entry, Vote
from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft._files import File
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests.torture.concurrent import ConcurrentHistory
from tests.torture.core import Core
from tests.torture.histories import History

STEPWISE_SEEDS = range(8)
FAILING_SEEDS = range(30, 33)
CONCURRENT_SEEDS = range(8)


@pytest.mark.parametrize("seed", STEPWISE_SEEDS)
def test_every_image_of_a_power_cut_opens_and_holds_what_was_acknowledged(seed: int) -> None:
    tried = History(seed).run()
    assert tried["cuts in recovery"] > 0
    assert tried["second cuts"] > 0


def test_so_does_every_image_after_a_failed_sync() -> None:
    failed = 0
    for seed in FAILING_SEEDS:
        history = History(seed, failing_share=0.6)
        history.run()
        failed += history.steps["failed sync"]
    assert failed > 0


@pytest.mark.parametrize("seed", CONCURRENT_SEEDS)
def test_so_does_every_image_of_a_store_that_many_tasks_write_to(seed: int) -> None:
    tried = ConcurrentHistory(seed).run()
    assert tried["cuts in recovery"] > 0
    assert tried["second cuts"] > 0


def test_the_histories_reach_the_cases_that_matter() -> None:
    tried = Counter[str]()
    steps = Counter[str]()
    for seed in range(100, 104):
        history = History(seed)
        tried += history.run()
        steps += history.steps
    assert tried["images"] > 1000
    # whole records behind a torn one, which later records of their size would bring back
    assert tried["remains that would line up"] > tried["looked at for remains"] / 100
    named = ("close", "kill", "cut", "truncate", "purge", "purge_everything", "vote", "mark")
    assert min(steps[step] for step in named) > 0
    assert steps["seal in a commit"] + steps["unlink in a commit"] > 0
    assert steps["prepare in a commit"] > 0


def test_an_image_written_to_a_real_directory_shows_the_same(tmp_path: Path) -> None:
    rng = random.Random(3)
    disk = MemoryKernel(page_bytes=512)
    core = Core(disk, 8192)
    core.save_vote(Vote(2, "n"))
    for index in range(1, 60):
        core.append([Entry(1, index, b"x" * 400)])
        if index % 3 == 0:
            core.sync()
    for number in range(20):
        image = disk.snapshot().image(rng)
        directory = tmp_path / str(number)
        image.write_to(str(directory))
        real = Core(Environment(), 8192, directory=str(directory))
        assert real.view() == Core(image, 8192).view()
        real.close()


@pytest.mark.parametrize("made", [["/node"], ["/node", "/node/log"]])
def test_the_names_above_a_store_are_durable_though_their_maker_was_killed(
    made: list[str],
) -> None:
    disk = MemoryKernel()
    for path in made:
        disk.mkdir(path, 0o700)  # and then the process was killed
    core = Core(disk, 8192, directory="/node/log")
    core.append([Entry(1, 1, b"x")])
    core.sync()
    for image in disk.snapshot().images(random.Random(1), 20):
        assert [entry.index for entry in Core(image, 8192).view().entries] == [1]


# --- the disk itself ---------------------------------------------------------------------


def _images(disk: MemoryKernel) -> Iterator[dict[str, bytes]]:
    rng = random.Random(1)
    snapshot = disk.snapshot()
    for _ in range(200):
        yield snapshot.image(rng).contents()


@pytest.fixture
def disk() -> MemoryKernel:
    return MemoryKernel(page_bytes=512)


@pytest.fixture
def directory(disk: MemoryKernel) -> Directory:
    return Directory.make(disk, "/d")


def _make(disk: MemoryKernel, length: int) -> File:
    """A file that is not durable yet: neither its bytes nor its name."""
    descriptor = disk.open("/d/f", os.O_RDWR | os.O_CREAT)
    disk.posix_fallocate(descriptor, 0, length)
    return File(disk, descriptor, "f", "/d/f")


def test_pages_that_were_not_synced_are_old_or_new_each_for_itself(
    disk: MemoryKernel, directory: Directory
) -> None:
    file = _make(disk, 1024)
    file.sync()
    directory.sync()
    file.write(0, (b"a" * 1024,))
    file.write(0, (b"b" * 512,))
    found = {(image["/d/f"][:1], image["/d/f"][512:513]) for image in _images(disk)}
    assert found == {(first, second) for first in (b"\0", b"a", b"b") for second in (b"\0", b"a")}
    assert {image["/d/f"][:512].count(image["/d/f"][:1]) for image in _images(disk)} == {512}
    file.sync()
    assert {image["/d/f"] for image in _images(disk)} == {b"b" * 512 + b"a" * 512}


def test_what_is_written_while_a_sync_runs_is_not_durable_after_it(
    disk: MemoryKernel, directory: Directory
) -> None:
    file = _make(disk, 512)
    directory.sync()
    file.write(0, (b"a" * 512,))
    disk.on_point = lambda what, _: file.write(0, (b"b" * 512,)) if what == "syncing" else None
    file.sync()
    assert {image["/d/f"][:1] for image in _images(disk)} == {b"a", b"b"}


def test_names_reach_the_disk_in_order_and_only_a_directory_sync_is_certain(
    disk: MemoryKernel, directory: Directory
) -> None:
    directory.create("a", 512, b"")
    directory.create("b", 512, b"")
    directory.unlink("a")
    names = {tuple(image) for image in _images(disk)}
    assert names == {
        (),
        ("/d/a.tmp",),
        ("/d/a",),
        ("/d/a", "/d/b.tmp"),
        ("/d/a", "/d/b"),
        ("/d/b",),
    }
    directory.sync()
    assert {tuple(image) for image in _images(disk)} == {("/d/b",)}


def test_a_file_that_was_never_synced_may_be_empty_short_zeroed_or_whole(
    disk: MemoryKernel, directory: Directory
) -> None:
    file = _make(disk, 1024)
    file.write(0, (b"a" * 1024,))
    directory.sync()
    found = {image["/d/f"] for image in _images(disk)}
    assert {b"", bytes(1024), b"a" * 1024} <= found


def test_a_failed_sync_loses_pages_that_later_syncs_pass_over(
    disk: MemoryKernel, directory: Directory
) -> None:
    file = _make(disk, 1024)
    file.sync()
    directory.sync()
    failing = FailingEnvironment(disk)
    again = Directory(failing, "/d").open_file("f", is_writable=True)
    again.write(0, (b"a" * 1024,))
    failing.fail("fdatasync", errno.EIO)
    with pytest.raises(OSError):
        again.sync()
    again.write(512, (b"b" * 512,))
    again.sync()
    found = {(image["/d/f"][:1], image["/d/f"][512:513]) for image in _images(disk)}
    assert found == {(b"\0", b"b"), (b"a", b"b")}
