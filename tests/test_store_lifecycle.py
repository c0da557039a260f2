"""Opening and closing our store: the lock, the directory, forks, kills, what is left behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hqlwal_raft import LogId, RaftLogStorage, Vote, WalClosedError, WalLockedError
from tests._support import (
    PATIENCE_SECONDS,
    Gate,
    HookedEnvironment,
    entries,
    on_both_backends,
    segments,
    start_python,
)

SEGMENT_SIZE = 8192
FIRST = "0000000000000001.wal"

HOLD = """
    import sys, anyio
    from hqlwal_raft import Entry, RaftLogStorage

    async def main():
        async with RaftLogStorage.open(sys.argv[1], segment_size=8192) as store:
            await store.append([Entry(1, 1, b"kept")])
            print("open", flush=True)
            await anyio.to_thread.run_sync(sys.stdin.readline)

    anyio.run(main)
"""


def in_use(directory: Path) -> list[bytes]:
    """What an open store of few entries writes; the next segment is prepared meanwhile."""
    return [(directory / name).read_bytes() for name in ("meta.hql", "lock.hql", FIRST)]


def lock_file(directory: Path) -> str:
    """What the lock file says; its length never changes."""
    said = (directory / "lock.hql").read_text()
    assert len(said) == 32
    return said.strip()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- the directory -----------------------------------------------------------------------


@on_both_backends
async def test_a_missing_directory_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log"
    async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 2))
        assert lock_file(path) == f"pid {os.getpid()}"
    for made in (path, path.parent, path.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for name in path.iterdir():
        assert stat.S_IMODE(name.stat().st_mode) == 0o600


@on_both_backends
async def test_the_path_may_be_text_or_path_and_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths: list[str | os.PathLike[str]] = ["log", Path("log"), str(tmp_path / "log"), "./log/"]
    for run, path in enumerate(paths):
        async with RaftLogStorage.open(path, segment_size=SEGMENT_SIZE) as store:
            monkeypatch.chdir("/")
            assert await store.try_get_log_entries(0) == entries(1, run + 1)
            await store.append(entries(run + 1, run + 2))
        monkeypatch.chdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@on_both_backends
async def test_a_clean_close_leaves_segments_meta_and_a_lock_file_that_says_so(
    tmp_path: Path,
) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 31, size=900))
        await store.purge(LogId(1, 10))
        await store.truncate(LogId(1, 22))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"meta.hql", "lock.hql", *(path.name for path in segments(tmp_path))}
    assert lock_file(tmp_path) == "clean"


@on_both_backends
async def test_what_a_crash_left_over_is_removed_at_open(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
    (tmp_path / "0000000000000007.wal.tmp").write_bytes(b"half a segment")
    (tmp_path / "meta.hql.tmp").write_bytes(b"half a meta")
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 4)
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "notes.txt").read_bytes() == b"not ours"


# --- the lock ----------------------------------------------------------------------------


@on_both_backends
async def test_a_second_open_in_this_process_is_refused(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
        before = in_use(tmp_path)
        with pytest.raises(WalLockedError) as caught:
            async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE):
                pass
        assert caught.value.path == str(tmp_path)
        assert caught.value.pid == os.getpid()
        assert str(tmp_path) in str(caught.value)
        assert str(os.getpid()) in str(caught.value)
        assert in_use(tmp_path) == before
        await store.append(entries(4, 6))
        assert await store.try_get_log_entries(0) == entries(1, 6)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 6)


@on_both_backends
async def test_a_store_of_another_process_is_refused_until_it_ends(tmp_path: Path) -> None:
    with start_python(HOLD, tmp_path) as process:
        assert line(process) == "open"
        before = in_use(tmp_path)
        with pytest.raises(WalLockedError) as caught:
            async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE):
                pass
        assert (caught.value.path, caught.value.pid) == (str(tmp_path), process.pid)
        assert str(process.pid) in str(caught.value)
        assert in_use(tmp_path) == before
        process.communicate("end\n", timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert [entry.payload for entry in await store.try_get_log_entries(0)] == [b"kept"]


@on_both_backends
async def test_a_killed_process_leaves_its_entries_and_no_lock(tmp_path: Path) -> None:
    with start_python(HOLD, tmp_path) as process:
        assert line(process) == "open"
        process.send_signal(signal.SIGKILL)
    assert lock_file(tmp_path) == f"pid {process.pid}"  # it did not close cleanly
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert [entry.payload for entry in await store.try_get_log_entries(0)] == [b"kept"]
        await store.append(entries(2, 4))
    assert lock_file(tmp_path) == "clean"


@on_both_backends
async def test_an_open_that_fails_gives_the_lock_up(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
    meta = (tmp_path / "meta.hql").read_bytes()
    (tmp_path / "meta.hql").unlink()
    for _ in range(3):
        with pytest.raises(Exception, match=r"meta\.hql"):
            async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE):
                pass
    (tmp_path / "meta.hql").write_bytes(meta)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 4)


# --- forks -------------------------------------------------------------------------------

FORK = """
    import os, sys, anyio
    from hqlwal_raft import Entry, RaftLogStorage, WalClosedError

    async def main():
        async with RaftLogStorage.open(sys.argv[1], segment_size=8192) as store:
            await store.append([Entry(1, 1, b"kept")])
            if os.fork() == 0:
                for call in (store.get_log_state, lambda: store.append([Entry(1, 2)])):
                    try:
                        await call()
                    except WalClosedError as error:
                        assert "fork" in str(error), error
                    else:
                        os._exit(1)
                print(os.getpid(), flush=True)
                sys.stdin.readline()
                os._exit(0)
            await store.append([Entry(1, 2, b"by the parent")])
            await anyio.sleep_forever()

    anyio.run(main)
"""


@on_both_backends
async def test_a_forked_child_cannot_use_the_store_nor_keep_its_lock(tmp_path: Path) -> None:
    with start_python(FORK, tmp_path, stderr=subprocess.DEVNULL) as process:
        child = int(line(process))
        assert process.stdin is not None
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        os.kill(child, 0)  # it lives on
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            payloads = [entry.payload for entry in await store.try_get_log_entries(0)]
            assert payloads[:1] == [b"kept"]
            await store.append(entries(len(payloads) + 1, len(payloads) + 3))
        process.stdin.write("end\n")


@on_both_backends
async def test_a_fork_does_not_disturb_the_parent(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        await store.append(entries(4, 6))
        with pytest.raises(WalLockedError):
            async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE):
                pass
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 6)


# --- what a store takes and gives back ---------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hqlwal")]


@on_both_backends
async def test_closing_ends_the_threads_and_gives_the_descriptors_back(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 100, size=900))
        assert threads()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            last = (await store.get_log_state()).last_log_id
            assert last is not None
            await store.append(entries(last.index + 1, last.index + 60, size=900))
            await store.truncate(LogId(1, last.index + 50))
            await store.purge(LogId(1, last.index))
            assert len(await store.try_get_log_entries(0)) == 49
        with pytest.raises(WalLockedError):
            async with (
                RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE),
                RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE),
            ):
                pass
    for thread in threads():
        thread.join(PATIENCE_SECONDS)
    assert threads() == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@on_both_backends
async def test_many_segments_need_few_descriptors(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        before = len(os.listdir("/proc/self/fd"))
        for start in range(1, 801, 100):
            await store.append(entries(start, start + 100, size=3900))
        assert store.statistics().segments == 400
        assert await store.try_get_log_entries(0) == entries(1, 801, size=3900)
        assert len(os.listdir("/proc/self/fd")) - before < 200


@on_both_backends
@pytest.mark.parametrize(
    ("call", "ending"),
    [("flock", "log"), ("flock", "lock.hql"), ("listdir", "log"), ("rename", "meta.hql")],
)
async def test_an_open_that_is_cancelled_leaves_nothing_open_for_the_next_to_meet(
    tmp_path: Path, call: str, ending: str
) -> None:
    gate = Gate(call, ending)
    gate.shut()
    has_ended = False

    async def use() -> None:
        nonlocal has_ended
        try:
            async with RaftLogStorage.open(tmp_path / "log", environment=HookedEnvironment(gate)):
                raise AssertionError("it was opened")
        finally:
            has_ended = True

    before = set(threads())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await gate.held()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert not has_ended  # the lock is not given up yet
        gate.open()
    # at once: who was cancelled by a timeout tries again
    async with RaftLogStorage.open(tmp_path / "log", segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 4))
    for thread in set(threads()) - before:
        await anyio.to_thread.run_sync(thread.join, PATIENCE_SECONDS)
    assert not set(threads()) - before


@on_both_backends
async def test_a_cancelled_body_waits_for_the_close(tmp_path: Path) -> None:
    gate = Gate()
    closed = False

    async def use() -> None:
        nonlocal closed
        async with RaftLogStorage.open(tmp_path, environment=HookedEnvironment(gate)) as store:
            await store.append(entries(1, 2))
            gate.shut()
            await store.append(entries(2, 9))
        closed = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await gate.held()
        tasks.cancel_scope.cancel()
        gate.open()
    assert not closed  # the cancellation went on after the close
    assert lock_file(tmp_path) == "clean"
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        assert await store.try_get_log_entries(0) == entries(1, 9)


def test_one_event_loop_after_the_other_may_open_the_same_log(tmp_path: Path) -> None:
    async def add(index: int) -> None:
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            await store.append(entries(index, index + 1))
            await store.save_vote(Vote(index))
            assert await store.try_get_log_entries(0) == entries(1, index + 1)

    for index in range(1, 7):
        anyio.run(add, index, backend=["asyncio", "trio"][index % 2])


@on_both_backends
async def test_statistics_tell_what_was_done(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        empty = store.statistics()
        assert (empty.appends, empty.entries, empty.syncs, empty.queue_depth) == (0, 0, 0, 0)
        assert empty.last_log_id is None
        assert empty.last_durable_log_id is None
        for start in range(1, 31, 3):
            await store.append(entries(start, start + 3, size=900))
        await store.purge(LogId(1, 12))
        full = store.statistics()
        assert (full.appends, full.appended_entries, full.entries) == (10, 30, 18)
        assert full.appended_bytes == 30 * (900 + 32)
        assert full.segments == 3  # 9 to 30; those before them are for housekeeping to unlink
        assert full.segment_bytes == full.segments * SEGMENT_SIZE
        assert full.last_log_id == full.last_durable_log_id == LogId(1, 30)
        assert full.last_purged_log_id == LogId(1, 12)
        assert 0 < full.syncs <= 10
        assert full.entries_per_sync == 30 / full.syncs
        assert 0 < full.sync_p50_seconds <= full.sync_p99_seconds <= full.sync_max_seconds
        assert 0 < full.sync_last_seconds <= full.sync_max_seconds
        assert full.unsynced_bytes == 0
        assert not full.is_poisoned
        assert 0 < full.cached_entries <= 30
        with pytest.raises(AttributeError):
            full.appends = 0  # type: ignore[misc]
    with pytest.raises(WalClosedError):
        store.statistics()


@on_both_backends
async def test_errors_after_the_close_say_which_store(tmp_path: Path) -> None:
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        pass
    with pytest.raises(WalClosedError, match=str(tmp_path)):
        await store.append(entries(1, 2))
    with pytest.raises(WalClosedError, match=str(tmp_path)):
        await store.flush()


def test_a_store_that_is_never_closed_does_not_keep_the_process(tmp_path: Path) -> None:
    code = """
        import sys, asyncio
        from hqlwal_raft import Entry, RaftLogStorage

        opened = RaftLogStorage.open(sys.argv[1])

        async def main():
            store = await opened.__aenter__()
            await store.append([Entry(1, 1, b"kept")])

        asyncio.run(main())
        print("end")
    """
    with start_python(code, tmp_path, stderr=subprocess.DEVNULL) as process:
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert out.strip() == "end"
    assert process.returncode == 0

    async def check() -> None:
        async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
            assert [entry.payload for entry in await store.try_get_log_entries(0)] == [b"kept"]

    anyio.run(check)


@on_both_backends
async def test_the_environment_asks_for_an_integrity_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    files = HookedEnvironment(lambda call, path: read.append(path) if call == "pread" else None)
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries(1, 61, size=900))
    sealed = str(segments(tmp_path)[0])

    async def reads(**options: Any) -> int:
        del read[:]
        async with RaftLogStorage.open(tmp_path, environment=files, **options):
            return read.count(sealed)

    monkeypatch.delenv("HQL_CHECK_WAL_INTEGRITY", raising=False)
    header_only = await reads()
    assert await reads(check_integrity=True) > header_only
    assert await reads(check_integrity=False) == header_only
    monkeypatch.setenv("HQL_CHECK_WAL_INTEGRITY", "true")
    assert await reads() > header_only
    assert await reads(check_integrity=False) == header_only
    monkeypatch.setenv("HQL_CHECK_WAL_INTEGRITY", "false")
    assert await reads() == header_only
