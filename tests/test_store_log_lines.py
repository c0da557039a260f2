"""What an operator would ask about afterwards was said when it happened: the lines of the logger
``hqlwal_raft`` and their levels, as ``docs/operations.md`` lists them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, WalPoisonedError
from tests._support import (
    HookedEnvironment,
    entries,
    on_both_backends,
    run_python,
    segments,
)

SECRET = b"a payload that nobody may read"


class Lines:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self, *levels: str) -> list[str]:
        """The lines of these levels, all of INFO and above where none is given."""
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.name == "hqlwal_raft"
            and (record.levelname in levels if levels else record.levelno >= logging.INFO)
        ]

    def clear(self) -> None:
        self._caplog.clear()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    caplog.set_level(logging.DEBUG, "hqlwal_raft")
    yield Lines(caplog)
    assert SECRET.decode() not in caplog.text


class Failing:
    """A hook that fails calls while it is told to."""

    def __init__(self, call: str, number: int) -> None:
        self.call = call
        self.number = number
        self.is_on = False

    def __call__(self, call: str, path: str) -> None:
        if self.is_on and call == self.call and ".wal" in path:
            raise OSError(self.number, os.strerror(self.number))


@on_both_backends
async def test_opened_and_closed_are_said_with_how_it_ended_last(
    tmp_path: Path, lines: Lines
) -> None:
    async with RaftLogStorage.open(tmp_path) as store:
        await store.append(entries(1, 4))
    assert lines() == [
        (
            f"{tmp_path}: opened; it was not open before; no findings; 0 entries in 0 segments, "
            "the last None"
        ),
        f"{tmp_path}: closed",
    ]
    lines.clear()
    async with RaftLogStorage.open(tmp_path):
        assert lines() == [
            (
                f"{tmp_path}: opened; it was closed cleanly; no findings; 3 entries in 1 segments, "
                "the last LogId(term=1, index=3, node_id=0)"
            )
        ]


KILL = """
    import os, sys, anyio
    from hqlwal_raft import Entry, RaftLogStorage

    async def main():
        async with RaftLogStorage.open(sys.argv[1], segment_size=8192) as store:
            await store.append([Entry(1, n, b"x" * 900) for n in range(1, 4)])
            os._exit(0)

    anyio.run(main)
"""


def test_an_unclean_end_and_what_was_torn_are_said(tmp_path: Path, lines: Lines) -> None:
    run_python(KILL, tmp_path)
    newest = segments(tmp_path)[0]
    data = bytearray(newest.read_bytes())
    end = len(data.rstrip(b"\0"))
    data[end + 64 : end + 68] = b"torn"
    newest.write_bytes(bytes(data))

    async def check() -> None:
        async with RaftLogStorage.open(tmp_path):
            pass

    import anyio

    anyio.run(check)
    (torn,) = lines("WARNING")
    assert torn.startswith(f"{tmp_path} was not closed cleanly. Dropped what was never")
    (opened,) = [line for line in lines("INFO") if ": opened; " in line]
    assert f"{tmp_path}: opened; it was not closed cleanly: process " in opened
    assert "was killed, or its machine went down; " in opened
    assert "1 torn tail; 3 entries" in opened  # a segment may have been in the making besides


@on_both_backends
async def test_seals_truncations_and_purges_are_said_at_debug(tmp_path: Path, lines: Lines) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        await store.append(entries(1, 21, size=900))
        await store.truncate(LogId(1, 19))
        await store.purge(LogId(1, 12))
        await store.truncate_after(None)
    said = lines("DEBUG")
    assert f"{tmp_path}: truncated from entry 19 on; the last is {LogId(1, 18)} now" in said
    assert f"{tmp_path}: purged up to {LogId(1, 12)}; 1 segments are to go" in said
    assert f"{tmp_path}: truncated from entry 13 on; the last is {LogId(1, 12)} now" in said
    assert any(line.endswith("sealed, with entries 1 to 8") for line in said)
    assert lines("WARNING", "ERROR") == []


@on_both_backends
async def test_a_full_disk_is_said_once_and_so_is_its_end(tmp_path: Path, lines: Lines) -> None:
    full = Failing("posix_fallocate", errno.ENOSPC)
    async with RaftLogStorage.open(
        tmp_path, segment_size=8192, environment=HookedEnvironment(full)
    ) as store:
        await store.append(entries(1, 2))
        full.is_on = True
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                await store.append(entries(2, 60, size=900))
        (said,) = lines("WARNING")
        assert said.startswith(f"{tmp_path}: no space is left: [Errno 28] No space left on device")
        assert "make room" in said
        full.is_on = False
        await store.append(entries(2, 60, size=900))
        assert lines("WARNING")[1:] == [f"{tmp_path}: there is space again"]


@on_both_backends
async def test_poison_is_said_once_with_its_cause_and_advice(tmp_path: Path, lines: Lines) -> None:
    failing = Failing("fdatasync", errno.EIO)
    with pytest.raises(WalPoisonedError):
        async with RaftLogStorage.open(tmp_path, environment=HookedEnvironment(failing)) as store:
            await store.append(entries(1, 2))
            failing.is_on = True
            with pytest.raises(WalPoisonedError):
                await store.append([Entry(1, 2, SECRET)])
            for _ in range(3):
                with pytest.raises(WalPoisonedError):
                    await store.append(entries(2, 3))
            await store.flush()
    (said,) = lines("ERROR")
    assert said.startswith(f"{tmp_path}: the log takes no more writes: [Errno 5]")
    assert str(segments(tmp_path)[0]) in said
    assert "check the disk, then reopen it" in said
    (closed,) = lines("WARNING")
    assert closed.startswith(f"{tmp_path}: closed, not cleanly: ")


@on_both_backends
async def test_an_abandoned_store_says_so(tmp_path: Path, lines: Lines) -> None:
    async with RaftLogStorage.open(tmp_path) as store:
        store.abandon()
    said = f"{tmp_path}: abandoned: what was not durable may be lost, as after a kill"
    assert said in lines("INFO")


@on_both_backends
async def test_statistics_show_latencies_waits_rollovers_and_what_is_free(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=8192) as store:
        await store.append(entries(1, 80, size=900))
        found = store.statistics()
        assert sum(count for _, count in found.sync_histogram) == found.syncs
        bounds = [bound for bound, _ in found.sync_histogram]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == float("inf")
        at = next(
            i for i, (bound, _) in enumerate(found.sync_histogram) if found.sync_max_seconds < bound
        )
        assert found.sync_histogram[at][1] > 0
        assert sum(count for _, count in found.sync_histogram[at + 1 :]) == 0
        assert found.rollovers == found.segments == 10
        assert found.segment_waits == 1
        system = os.statvfs(tmp_path)
        assert found.free_bytes is not None
        assert 0 < found.free_bytes <= system.f_blocks * system.f_frsize
        assert (found.stalls, found.stall_max_seconds) == (0, 0.0)


class Jumping(HookedEnvironment):
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@on_both_backends
async def test_what_is_free_is_measured_again_after_a_while_and_not_on_the_loop(
    tmp_path: Path,
) -> None:
    import threading

    import anyio.lowlevel

    measured: list[int] = []

    def note(call: str, _path: str) -> None:
        if call == "fstatvfs":
            measured.append(threading.get_ident())

    environment = Jumping(note)
    async with RaftLogStorage.open(tmp_path, environment=environment) as store:
        assert len(measured) == 1
        store.statistics()
        assert len(measured) == 1
        environment.now += 11
        for _ in range(3):
            store.statistics()
        while len(measured) < 2:
            await anyio.lowlevel.checkpoint()
        assert threading.get_ident() not in measured
