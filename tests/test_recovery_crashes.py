"""What a crash left is put in order, and a crash of that at every step."""

from __future__ import annotations

import logging
import os
import random

import pytest

from hqlwal_raft._format import (
    DATA_START,
    segment_name,
)
from hqlwal_raft._types import Entry
from hqlwal_raft.audit import Verdict, examine
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._directories import (
    PATH,
    File,
    Store,
    entry,
    group,
    recovered,
)
from tests._openings import (
    CRASHED,
    crashes,
    header,
    log_of_three,
    purged_in_part,
    torn,
    torn_first,
    torn_follower,
    torn_with_followers,
    truncation_between_unlinks,
    unsealed,
    without_lock,
)


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
