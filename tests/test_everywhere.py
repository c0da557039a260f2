"""On each system, each build of Python, to the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests._leaks import is_locked
from tests._loops import LOOPS
from tests._support import PATIENCE_SECONDS, run_python, start_python

ELSEWHERE = """
    import asyncio, importlib, os, pkgutil, sys
    import anyio, trio, click, rich, anyio.to_thread, anyio._backends._asyncio  # as Linux has them
    import concurrent.futures, ctypes, multiprocessing, random, shutil, tempfile, traceback, uuid
    import rich.console, rich.table, rich.progress, pysyncobj, json, platform, fnmatch, glob
    import hashlib, secrets, difflib, inspect, textwrap, warnings, logging, statistics, crc32c

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name in ("fcntl", "mmap", "select", "pwd", "grp", "resource"):
                raise ImportError(f"No module named {name!r}")

    sys.platform = sys.argv[1]
    for name in ("fcntl", "mmap", "select"):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Block())
    for name in (
        *("pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "posix_fadvise", "fdatasync"),
        *("fstatvfs", "statvfs_result", "register_at_fork", "eventfd", "eventfd_read"),
        *("eventfd_write", "EFD_CLOEXEC", "EFD_NONBLOCK", "RWF_NOWAIT", "POSIX_FADV_DONTNEED"),
        *("O_DIRECTORY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "SEEK_DATA"),
        *("SEEK_HOLE", "fork", "sched_yield"),
    ):
        if hasattr(os, name):
            delattr(os, name)

    import hqlwal_raft
    for module in pkgutil.walk_packages(hqlwal_raft.__path__, "hqlwal_raft."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    from hqlwal_raft import Entry, LogId, RaftLogStorage, UnsupportedPlatformError
    from hqlwal_raft.blocking import BlockingRaftLogStorage
    from hqlwal_raft.snapshots import BlockingSnapshotStore, SnapshotStore
    from hqlwal_raft.testing import MemoryDisk, MemoryLogStorage

    snapshots = SnapshotStore, BlockingSnapshotStore
    for kind in (RaftLogStorage, BlockingRaftLogStorage, *snapshots):
        try:
            kind.open("log")
        except UnsupportedPlatformError as error:
            assert sys.argv[1] in str(error) and "Linux" in str(error), error
        else:
            raise AssertionError(kind)

    MemoryLogStorage(MemoryDisk())
    assert Entry(1, 1, b"x").log_id == LogId(1, 1)
    print("imported")
"""


@pytest.mark.parametrize("platform", ["win32", "darwin", "freebsd14"])
def test_elsewhere_than_on_linux_everything_imports_and_open_says_so(platform: str) -> None:
    assert run_python(ELSEWHERE, platform).strip() == "imported"


FREE_THREADED = """
    import sys
    sys._is_gil_enabled = lambda: False
    from hqlwal_raft import RaftLogStorage, UnsupportedPlatformError
    from hqlwal_raft.blocking import BlockingRaftLogStorage
    for kind in (RaftLogStorage, BlockingRaftLogStorage):
        try:
            kind.open(sys.argv[1])
        except UnsupportedPlatformError as error:
            assert "PYTHON_GIL=1" in str(error)
        else:
            raise AssertionError(kind)
    print("refused")
"""


def test_a_free_threaded_build_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert run_python(FREE_THREADED, path).strip() == "refused"
    assert not path.exists()


# --- the interpreter's end ---------------------------------------------------------------

EXIT = """
    import asyncio, sys, time, anyio
    from hqlwal_raft import Entry, RaftLogStorage
    from hqlwal_raft.blocking import BlockingRaftLogStorage
    from hqlwal_raft import _block, blocking
    from tests._loops import LOOPS
    from tests._support import Gate, HookedEnvironment

    path, face, is_hung = sys.argv[1], sys.argv[2], sys.argv[3] == "hung"
    _block.PATIENCE_SECONDS = blocking.PATIENCE_SECONDS = 0.2
    gate = Gate()
    environment = HookedEnvironment(gate)
    kept = []

    async def main():
        store = await RaftLogStorage.open(path, environment=environment).__aenter__()
        kept.append(store)
        await store.append([Entry(1, 1, b"kept")])
        if is_hung:
            gate.shut()
            await store.append([Entry(1, 2)], lambda error: None)
            await gate.held()

    if face == "blocking":
        store = BlockingRaftLogStorage.open(path, environment=environment)
        kept.append(store)
        store.append([Entry(1, 1, b"kept")])
        if is_hung:
            gate.shut()
            store.append([Entry(1, 2)], wait=False)
            anyio.run(gate.held)
    else:
        anyio.run(main, **LOOPS[face])
    print("end", flush=True)
"""


@pytest.mark.parametrize("disk", ["well", "hung"])
@pytest.mark.parametrize("face", [*LOOPS, "blocking"])
def test_the_interpreter_ends_with_a_store_open_and_says_nothing(
    tmp_path: Path, face: str, disk: str
) -> None:
    if face == "uvloop":
        pytest.importorskip("uvloop")
    with start_python(EXIT, tmp_path, face, disk, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS - 5)
    assert (process.returncode, out.strip(), err) == (0, "end", "")
    assert not is_locked(tmp_path)


KEPT = """
    import os, sys
    from hqlwal_raft import blocking

    blocking.PATIENCE_SECONDS = 3600
    for end in ("close", "abandon"):
        store = blocking.BlockingRaftLogStorage.open(f"{sys.argv[1]}/{end}")
        globals()[end] = store
        if end == "close":
            pid = os.fork()
            if pid == 0:
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        getattr(store, end)()
    print("end", flush=True)
"""


def test_the_interpreter_does_not_wait_for_a_store_that_is_closed_or_another_processs(
    tmp_path: Path,
) -> None:
    with start_python(KEPT, tmp_path) as process:
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out.strip()) == (0, "end")


STRICT = """
    import sys, anyio
    from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote
    from hqlwal_raft.blocking import BlockingRaftLogStorage
    from tests._loops import LOOPS

    async def main():
        async with RaftLogStorage.open(sys.argv[1], segment_size=8192) as store:
            await store.append([Entry(1, n, b"x" * 900) for n in range(1, 40)])
            await store.save_vote(Vote(1, 1))
            await store.truncate(LogId(1, 30))
            await store.purge(LogId(1, 10))
            assert len(await store.try_get_log_entries(0)) == 19

    if sys.argv[2] == "blocking":
        with BlockingRaftLogStorage.open(sys.argv[1]) as store:
            store.append([Entry(1, 1)])
    else:
        anyio.run(main, **LOOPS[sys.argv[2]])
    print("end")
"""


@pytest.mark.parametrize("face", [*LOOPS, "blocking"])
def test_python_in_development_mode_has_nothing_to_warn_of(tmp_path: Path, face: str) -> None:
    if face == "uvloop":
        pytest.importorskip("uvloop")
    import os
    import textwrap

    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(STRICT), tmp_path, face],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONTRACEMALLOC": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")
