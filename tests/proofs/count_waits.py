"""Which thread makes the calls that can wait for a device, told by strace at the system call.

``python -m tests.proofs.count_waits [asyncio|uvloop|trio] [POLICY]`` runs a busy store under
``strace -f`` with 200 ms added to every write, sync, allocation, rename and unlink, and prints the
calls of the loop's thread, those of the others, and the longest time that the loop was away.
For the design documents: it needs strace, and what it says depends on no double of ours.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import anyio
import anyio.lowlevel

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote

CALLS = (
    "pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,fallocate,ftruncate,"
    "rename,renameat,unlink,unlinkat,msync"
)
MARK = "opened"


async def work(directory: str, policy: str) -> float:
    """The longest time, in seconds, between two turns of the loop while the store is busy."""
    longest = 0.0
    async with RaftLogStorage.open(directory, sync=policy, segment_size=8192) as store:
        Path(directory, MARK).stat()  # nothing before it counts

        async def watch() -> None:
            nonlocal longest
            last = anyio.current_time()
            while True:
                await anyio.lowlevel.checkpoint()
                now = anyio.current_time()
                longest, last = max(longest, now - last), now

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await store.save_vote(Vote(1, 1))
            for first in range(1, 41, 10):
                await store.append([Entry(1, i, b"x" * 700) for i in range(first, first + 10)])
            await store.save_committed(LogId(1, 5))
            await store.truncate(LogId(1, 15))
            await store.purge(LogId(1, 12))
            tasks.cancel_scope.cancel()
    return longest


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _, _, loop, policy, directory = sys.argv
        options = {"use_uvloop": True} if loop == "uvloop" else {}
        backend = "trio" if loop == "trio" else "asyncio"
        longest = anyio.run(work, directory, policy, backend=backend, backend_options=options)
        print(f"{loop}, {policy}: the loop was away for {longest * 1000:.1f} ms at the most")
        return
    loop = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
    policy = sys.argv[2] if len(sys.argv) > 2 else "immediate"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "strace")
        Path(directory, "store").mkdir()
        Path(directory, "store", MARK).touch()
        subprocess.run(
            [
                *("strace", "-f", "-y", "-o", str(log)),
                *("-e", f"trace={CALLS},stat,newfstatat,statx"),
                *("-e", f"inject={CALLS}:delay_enter=200000"),
                *(sys.executable, "-m", "tests.proofs.count_waits", "--child", loop, policy),
                str(Path(directory, "store")),
            ],
            check=True,
        )
        lines = log.read_text().splitlines()
    main_thread = lines[0].split()[0]
    begin = next(i for i, line in enumerate(lines) if f"/{MARK}" in line)
    counts: dict[str, Counter[str]] = {"the loop's thread": Counter(), "other threads": Counter()}
    for line in lines[begin:]:
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        if found is None or found[2] not in CALLS.split(","):
            continue
        if directory not in found[3]:
            continue  # not a file of the store: the loop's own wake-ups, the output
        who = "the loop's thread" if found[1] == main_thread else "other threads"
        counts[who][found[2]] += 1
    for who, calls in counts.items():
        print(f"  {who}: {dict(calls) or 'none'}")


if __name__ == "__main__":
    main()
