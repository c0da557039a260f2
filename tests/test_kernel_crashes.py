"""What the kernel in memory says a power cut may leave: held against sets made by hand."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from hqlwal_raft.testing._inline import InlineThreads
from hqlwal_raft.testing._kernel import Image, MemoryKernel, NeverReturns, Snapshot

NEW = os.O_RDWR | os.O_CREAT
PAGE = 64
A, B, C = (bytes([letter]) * PAGE for letter in b"ABC")
ZERO = bytes(PAGE)


def kernel_with(**files: bytes) -> MemoryKernel:
    return MemoryKernel.of({f"/{name}": data for name, data in files.items()}, page_bytes=PAGE)


def images(snapshot: Snapshot[Any]) -> set[tuple[tuple[str, bytes], ...]]:
    """All images, each as its files; checked to be different and as many as were counted."""
    found = list(snapshot.all_images())
    assert len(found) == len(set(found)) == snapshot.count_images()
    return {tuple(image.contents().items()) for image in found}


def only_file(kernel: MemoryKernel, name: str = "f") -> set[bytes]:
    found = images(kernel.snapshot())
    assert all(len(image) == 1 and image[0][0] == f"/{name}" for image in found)
    return {image[0][1] for image in found}


def test_each_unsynced_page_for_itself_is_any_of_its_versions() -> None:
    kernel = kernel_with(f=A + A)
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, B, 0)
    kernel.pwrite(f, C + C, 0)
    assert only_file(kernel) == {first + second for first in (A, B, C) for second in (A, C)}
    kernel.fdatasync(f)
    assert only_file(kernel) == {C + C}


def test_a_store_through_a_map_is_a_write_like_others() -> None:
    kernel = kernel_with(f=A + A)
    stored = kernel.mmap(kernel.open("/f", NEW), 2 * PAGE)
    stored[PAGE - 1 : PAGE + 1] = b"xy"
    first, second = A[:-1] + b"x", b"y" + A[1:]
    assert only_file(kernel) == {A + A, first + A, A + second, first + second}


def test_the_size_is_as_uncertain_as_the_pages() -> None:
    kernel = kernel_with(f=A)
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, b"BB", PAGE)
    assert only_file(kernel) == {A, A + bytes(2), A + b"BB"}
    kernel.fsync(f)
    kernel.ftruncate(f, 10)
    cut = A[:10]
    kept = cut + bytes(PAGE - 10)
    assert only_file(kernel) == {cut, *(x + y for x in (A, kept) for y in (bytes(2), b"BB"))}
    kernel.fsync(f)
    assert only_file(kernel) == {cut}


def test_a_new_file_is_empty_or_zeros_or_whole_once_its_name_is_there() -> None:
    kernel = kernel_with()
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, A + B, 0)
    there = {(("/f", data),) for data in (b"", ZERO + ZERO, A + B)}
    assert images(kernel.snapshot()) == {(), *there}
    kernel.fsync(kernel.open("/", os.O_RDONLY))
    assert images(kernel.snapshot()) == there
    kernel.fdatasync(f)
    assert images(kernel.snapshot()) == {(("/f", A + B),)}


def test_the_sync_of_a_file_makes_no_name_durable() -> None:
    kernel = kernel_with()
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, A, 0)
    kernel.fsync(f)
    assert images(kernel.snapshot()) == {(), (("/f", A),)}


def test_the_operations_of_a_directory_reach_the_disk_in_their_order() -> None:
    kernel = kernel_with(a=A, b=B)
    kernel.rename("/a", "/c")
    kernel.unlink("/b")
    kernel.link("/c", "/d")
    assert images(kernel.snapshot()) == {
        (("/a", A), ("/b", B)),
        (("/b", B), ("/c", A)),
        (("/c", A),),
        (("/c", A), ("/d", A)),
    }


def test_directories_reach_the_disk_each_in_its_own_order() -> None:
    kernel = MemoryKernel.of({"/x/a": A, "/y/b": B}, page_bytes=PAGE)
    kernel.unlink("/x/a")
    kernel.rename("/y/b", "/y/c")
    x, y = [(("/x/a", A),), ()], [(("/y/b", B),), (("/y/c", B),)]
    assert images(kernel.snapshot()) == {one + other for one in x for other in y}
    kernel.fsync(kernel.open("/x", os.O_RDONLY))
    assert images(kernel.snapshot()) == set(y)


def test_a_rename_between_directories_may_be_half_there() -> None:
    kernel = MemoryKernel.of({"/x/a": A}, ["/y"], page_bytes=PAGE)
    kernel.rename("/x/a", "/y/a")
    both = (("/x/a", A), ("/y/a", A))
    assert images(kernel.snapshot()) == {(), both, both[:1], both[1:]}


def test_a_new_directory_is_there_with_what_is_durable_in_it() -> None:
    kernel = kernel_with()
    kernel.mkdir("/d")
    f = kernel.open("/d/f", NEW)
    kernel.fsync(kernel.open("/d", os.O_RDONLY))
    kernel.fsync(f)
    found = {image.names for image in kernel.snapshot().all_images()}
    assert found == {(), (("/d", -1), ("/d/f", 0))}


def test_two_files_in_turn_under_one_name_give_no_image_twice() -> None:
    kernel = kernel_with(f=A, g=A)
    g = kernel.open("/g", NEW)
    kernel.pwrite(g, B, 0)
    kernel.rename("/g", "/f")
    kernel.unlink("/f")
    kernel.rename(*_linked(kernel, "/h", A))
    found = images(kernel.snapshot())
    assert {data for image in found for name, data in image if name == "/f"} == {b"", ZERO, A, B}


def _linked(kernel: MemoryKernel, path: str, data: bytes) -> tuple[str, str]:
    kernel.pwrite(kernel.open(path, NEW), data, 0)
    return path, "/f"


def test_a_hard_link_is_one_file_in_the_image_too() -> None:
    kernel = kernel_with(f=A)
    kernel.link("/f", "/g")
    kernel.fsync(kernel.open("/", os.O_RDONLY))
    (image,) = kernel.snapshot().all_images()
    again = MemoryKernel.of(image)
    assert again.stat("/f").st_nlink == 2
    again.pwrite(again.open("/g", NEW), B, 0)
    assert again.contents() == {"/f": B, "/g": B}


def test_a_store_during_a_sync_is_not_covered_by_it() -> None:
    kernel = kernel_with(f=A)
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, B, 0)

    def at_point(what: str, path: str) -> None:
        if what == "syncing":
            assert only_file(kernel) == {A, B}
            kernel.pwrite(f, C, 0)

    kernel.on_point = at_point
    kernel.fdatasync(f)
    kernel.on_point = None
    assert only_file(kernel) == {B, C}


def test_after_a_failed_sync_the_next_one_passes_over_its_pages() -> None:
    kernel = kernel_with(f=A + A)
    f = kernel.open("/f", NEW)
    kernel.pwrite(f, B + B, 0)
    kernel.forget_sync(f)
    kernel.fdatasync(f)
    assert only_file(kernel) == {x + y for x in (A, B) for y in (A, B)}
    kernel.pwrite(f, B, 0)
    kernel.fdatasync(f)
    assert only_file(kernel) == {B + A, B + B}


def test_what_is_dropped_from_memory_is_read_from_the_disk() -> None:
    seen = set()
    for seed in range(8):
        kernel = kernel_with(f=A)
        kernel.rng = random.Random(seed)
        f = kernel.open("/f", NEW)
        kernel.pwrite(f, B, 0)
        kernel.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
        assert kernel.pread(f, PAGE, 0) == B, "a page that waits for its sync was dropped"
        kernel.forget_sync(f)
        kernel.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
        seen.add(kernel.pread(f, PAGE, 0))
        assert only_file(kernel) == {kernel.pread(f, PAGE, 0)}
    assert seen == {A, B}


def test_after_a_failed_sync_of_a_directory_the_next_one_passes_over_it() -> None:
    kernel = kernel_with(f=A)
    root = kernel.open("/", os.O_RDONLY)
    kernel.unlink("/f")
    kernel.forget_sync(root)
    kernel.fsync(root)
    assert images(kernel.snapshot()) == {(), (("/f", A),)}
    kernel.mkdir("/d")
    kernel.fsync(root)
    assert images(kernel.snapshot()) == {()}


def test_every_image_drawn_by_chance_is_one_of_all() -> None:
    rng = random.Random(1)
    kernel = MemoryKernel.of({"/d/a": A + B, "/d/b": B}, page_bytes=PAGE)
    a = kernel.open("/d/a", NEW)
    kernel.pwrite(a, C + C[:7], 0)
    kernel.rename("/d/b", "/d/c")
    kernel.ftruncate(a, PAGE + 5)
    everything = set(kernel.snapshot().all_images())
    drawn = {kernel.snapshot().draw(rng) for _ in range(500)}
    assert drawn <= everything
    assert len(drawn) > len(everything) // 2
    kernels = list(kernel.snapshot().images(rng, 5))
    assert len({each.fingerprint() for each in kernels}) == 5


def test_a_kernel_made_of_an_image_is_that_image_and_all_of_it_is_durable() -> None:
    kernel = kernel_with(f=A + B)
    kernel.plant_symlink("/l", "f")
    kernel.plant_fifo("/p")
    kernel.mkdir("/d")
    kernel.fsync(kernel.open("/", os.O_RDONLY))
    for image in kernel.snapshot().all_images():
        again = MemoryKernel.of(image)
        assert again.image() == image
        assert list(again.snapshot().all_images()) == [image]
        assert again.stat("/l").st_size == 2 * PAGE
        assert stat.S_ISFIFO(again.stat("/p").st_mode)
        again.open("/d/new", NEW)
        assert "/d/new" not in kernel.contents()


def test_a_clone_goes_its_own_way_with_the_same_descriptors_and_locks() -> None:
    kernel = kernel_with(f=A)
    f = kernel.open("/f", NEW)
    kernel.flock(f, 2 | 4)
    kernel.pwrite(f, B, 0)
    twin = kernel.clone()
    assert twin.snapshot().key() == kernel.snapshot().key()
    assert twin.getrandbits(64) == kernel.getrandbits(64)
    twin.pwrite(f, C, 0)
    twin.fdatasync(f)
    assert only_file(twin) == {C}
    assert only_file(kernel) == {A, B}
    assert twin.snapshot().key() != kernel.snapshot().key()
    other = twin.open("/f", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        twin.flock(other, 2 | 4)
    twin.close(f)
    twin.flock(other, 2 | 4)
    with pytest.raises(BlockingIOError):
        kernel.flock(kernel.open("/f", NEW), 2 | 4)


def test_after_a_kill_nothing_is_open_or_locked_and_nothing_more_durable() -> None:
    kernel = kernel_with(f=A)
    f = kernel.open("/f", NEW)
    kernel.flock(f, 2 | 4)
    kernel.pwrite(f, B, 0)
    after = kernel.after_kill()
    assert after.contents() == {"/f": B}
    assert only_file(after) == {A, B}
    with pytest.raises(OSError, match="Bad file descriptor"):
        after.pread(f, 1, 0)
    again = after.open("/f", NEW)
    after.flock(again, 2 | 4)
    after.fdatasync(again)
    assert only_file(after) == {B}
    assert after.getrandbits(64) != kernel.getrandbits(64), "two lives draw the same numbers"


def test_states_are_equal_whatever_their_inode_numbers() -> None:
    first, second = kernel_with(), kernel_with()
    second.open("/x", NEW)
    second.unlink("/x")
    for kernel in (first, second):
        kernel.fsync(kernel.open("/", os.O_RDONLY))
        kernel.pwrite(kernel.open("/f", NEW), A, 0)
    assert first.snapshot().key() == second.snapshot().key()


def test_the_lowest_free_descriptor_is_given() -> None:
    kernel = kernel_with(f=A)
    assert [kernel.open("/f", NEW) for _ in range(3)] == [1000, 1001, 1002]
    kernel.close(1001)
    assert [kernel.open("/f", NEW) for _ in range(2)] == [1001, 1003]


def test_a_full_disk_takes_what_fits_and_then_nothing() -> None:
    kernel = MemoryKernel(page_bytes=PAGE, capacity_bytes=4 * PAGE)
    f = kernel.open("/f", NEW)
    kernel.posix_fallocate(f, 0, 2 * PAGE)
    assert kernel.fstatvfs(f).f_bavail == 2
    assert kernel.pwrite(f, bytes(5 * PAGE), PAGE) == 3 * PAGE
    for fails in (
        lambda: kernel.pwrite(f, b"x", 4 * PAGE),
        lambda: kernel.posix_fallocate(f, 0, 5 * PAGE),
    ):
        with pytest.raises(OSError) as raised:
            fails()
        assert raised.value.errno == errno.ENOSPC
    assert kernel.pwrite(f, A, 0) == PAGE, "what has its space was refused"
    kernel.ftruncate(f, 8 * PAGE)
    stored = kernel.mmap(f, 8 * PAGE)
    with pytest.raises(NeverReturns, match="SIGBUS"):
        stored[6 * PAGE : 6 * PAGE + 1] = b"x"
    kernel.unlink("/f")
    assert kernel.fstatvfs(f).f_bavail == 0, "an open file gave its space back"
    stored.close()
    g = kernel.open("/g", NEW)
    kernel.close(f)
    assert kernel.fstatvfs(g).f_bavail == 4


def test_where_no_inode_is_left_nothing_is_created() -> None:
    kernel = MemoryKernel(page_bytes=PAGE, capacity_inodes=2)
    f = kernel.open("/f", NEW)
    with pytest.raises(OSError) as raised:
        kernel.open("/g", NEW)
    assert raised.value.errno == errno.ENOSPC
    assert kernel.listdir("/") == ["f"]
    assert kernel.fstatvfs(f).f_favail == 0
    kernel.unlink("/f")
    kernel.close(f)
    kernel.open("/g", NEW)


def test_what_would_never_end_is_told() -> None:
    kernel = kernel_with(f=A)
    kernel.plant_fifo("/p")
    with pytest.raises(NeverReturns):
        kernel.open("/p", os.O_RDONLY)
    kernel.flock(kernel.open("/f", NEW), 2)
    with pytest.raises(NeverReturns):
        kernel.flock(kernel.open("/f", NEW), 2)
    f = kernel.open("/f", NEW)
    stored = kernel.mmap(f, PAGE)
    kernel.ftruncate(f, 0)
    with pytest.raises(NeverReturns):
        stored[0:1] = b"x"


def test_the_flags_of_an_inode_are_kept_where_the_file_system_knows_them() -> None:
    kernel = kernel_with(f=A)
    f = kernel.open("/f", NEW)
    with pytest.raises(OSError) as raised:
        kernel.ioctl(f, 0x80086601, bytearray(8))
    assert raised.value.errno == errno.ENOTTY
    kernel.has_attributes = True
    kernel.ioctl(f, 0x40086602, (0x800000).to_bytes(8, "little"))
    buffer = bytearray(8)
    kernel.ioctl(f, 0x80086601, buffer)
    assert int.from_bytes(buffer, "little") == 0x800000
    assert kernel.ioctl(f, 0x80086601, bytes(8)) == bytes(buffer)


def test_every_change_is_a_point() -> None:
    kernel = kernel_with(f=A)
    points: list[str] = []
    kernel.on_point = lambda what, path: points.append(f"{what} {path}")
    f = kernel.open("/f", os.O_RDWR | os.O_TRUNC)
    kernel.posix_fallocate(f, 0, PAGE)
    kernel.mmap(f, PAGE)[0:1] = b"x"
    kernel.ftruncate(f, 1)
    kernel.fdatasync(f)
    kernel.mkdir("/d")
    d = kernel.open("/d", os.O_RDONLY)
    kernel.open("g", NEW, dir_fd=d)
    kernel.link("/f", "/d/h")
    kernel.rename("/d/g", "/d/i")
    kernel.unlink("/f")
    kernel.fsync(d)
    assert points == [
        *["writing /f", "written /f"] * 4,
        *("syncing /f", "synced /f", "created /d", "created /d/g", "created /d/h"),
        *("renamed /d/i", "unlinked /f", "syncing directory /d", "synced directory /d"),
    ]


def test_the_clock_goes_on_by_itself_and_by_sleeping() -> None:
    kernel = MemoryKernel()
    first = kernel.monotonic()
    assert first < kernel.monotonic() < first + 0.001
    kernel.sleep(60)
    assert kernel.perf_counter() >= first + 60


class Inline(InlineThreads, MemoryKernel):
    pass


def in_asyncio(run: Callable[[], Any]) -> object:
    return asyncio.run(run())


@pytest.mark.parametrize("run", [in_asyncio, trio.run], ids=["asyncio", "trio"])
def test_jobs_and_alarms_run_on_the_loop_in_their_order(run: Callable[[Any], Any]) -> None:
    told: list[object] = []

    async def body() -> None:
        kernel = Inline()
        loop = kernel.running_loop()
        worker = kernel.start_worker("worker", loop)
        over = loop.event()
        began = kernel.now

        def ring() -> None:
            told.append("alarm")
            worker.submit(last, done)

        def last() -> None:
            told.append(round(kernel.now - began))
            raise OSError(errno.EIO, "broken")

        def job(number: int) -> int:
            told.append(number)
            return number

        def done(result: object, error: BaseException | None) -> None:
            told.append(result if error is None else type(error))
            if error is not None:
                over.set()

        worker.set_alarm(5.0, ring)
        for number in (1, 2):
            worker.submit(partial(job, number), done)
        assert not told, "a job ran before the loop did"
        assert await kernel.run_in_thread(lambda: "in between") == "in between"
        await over.wait()
        worker.stop()
        worker.submit(last, done)

    run(body)
    assert told == [1, 1, 2, 2, "alarm", 5, OSError]


def test_an_image_is_small_and_can_be_put_into_a_set() -> None:
    kernel = kernel_with(f=A)
    image, again = kernel.image(), kernel_with(f=A).image()
    assert isinstance(image, Image)
    assert image == again
    assert len({image, again}) == 1
