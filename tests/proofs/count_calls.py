"""Whether every call of the system is a point at which the proofs let it fail.

``python -m tests.proofs.count_calls`` plays the histories of ``every_call`` on real files under
``strace -f`` and compares, call by call, what the kernel was asked with what the failing environment
counted. They must be equal on the side that writes. On the other one the kernel is asked more
often: each map made and each directory listed brings an ``fstat``, each listing and each map's end a
``close``. To be run by hand, where strace is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter

import anyio

from hqlwal_raft._environment import Environment
from tests.torture.ledger import Ledger

from .faulty import FaultyEnvironment
from .histories import HISTORIES, History
from .machine import Inline, play
from .store import Player

#: the environment's call → the kernel's, as strace names them
_WRITING = {
    "fdatasync": ("fdatasync",),
    "flock": ("flock",),
    "fsync": ("fsync",),
    "ftruncate": ("ftruncate",),
    "link": ("link", "linkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "mmap": ("mmap",),
    "open": ("openat", "open"),
    "posix_fallocate": ("fallocate",),
    "pwrite": ("pwrite64",),
    "pwritev": ("pwritev", "pwritev2"),
    "rename": ("rename", "renameat", "renameat2"),
    "rmdir": ("rmdir",),
    "unlink": ("unlink", "unlinkat"),
}
#: calls that would write, and that no environment knows: there must be none
_FORBIDDEN = (
    *("write", "writev", "msync", "sync_file_range", "syncfs", "sync", "truncate", "fchmod"),
    *("creat", "symlink", "symlinkat", "copy_file_range", "sendfile", "splice"),
)
_READING = {
    "access": ("access", "faccessat", "faccessat2"),
    "close": ("close",),
    "fstat": ("fstat",),
    "ioctl": ("ioctl",),
    "listdir": ("opendir",),
    "posix_fadvise": ("fadvise64",),
    "pread": ("pread64",),
    "preadv": ("preadv", "preadv2"),
    "stat": ("stat", "newfstatat"),
}


class _Real(Inline, Environment):
    """Real files, no threads."""


def _histories() -> list[History]:
    return [h for h in HISTORIES if not h.is_killed and h.damage is None]


def _play(number: int, directory: str) -> None:
    history = _histories()[number]
    machine = _Real()
    environment = FaultyEnvironment(machine)
    problems: list[object] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            player = Player(environment, history.options, tasks, Ledger(), directory=directory)
            await player.play((*history.before, *history.rounds))
            problems.extend(player.problems)
            tasks.cancel_scope.cancel()

    play("asyncio", machine, main)
    assert not problems, problems
    print(json.dumps(Counter(call.name for call in environment.calls)))


def _count(number: int) -> tuple[dict[str, int], Counter[str]]:
    """What the environment counted, and what the kernel was asked about the directory."""
    names = {name for table in (_WRITING, _READING) for each in table.values() for name in each}
    with tempfile.TemporaryDirectory() as parent:
        directory = os.path.join(parent, "node", "log")
        trace = os.path.join(parent, "trace")
        script = [sys.executable, "-m", "tests.proofs.count_calls", str(number), directory]
        wanted = ",".join(f"?{name}" for name in sorted(names.union(_FORBIDDEN)))
        command = ["strace", "-f", "-y", "-o", trace, "-e", f"trace={wanted}", *script]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        made: Counter[str] = Counter()
        with open(trace, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name = _name(line, directory)
                if name:
                    made[name] += 1
    counted: dict[str, int] = json.loads(out)
    return counted, made


def _name(line: str, directory: str) -> str | None:
    """The call of the kernel that a line of the trace shows, if it is about the directory."""
    match = re.match(r"\d+ +(\w+)\((.*)", line)
    if match is None:
        return None
    name, rest = match[1], match[2]
    node = os.path.dirname(directory)
    # the directories above are opened and synced, too, once the new one is in them
    above = [node]
    while above[-1] != "/":
        above.append(os.path.dirname(above[-1]))
    is_above = any(f"<{each}>" in rest or f'"{each}"' in rest for each in above[1:])
    # where it is asked which file system this is
    is_about = re.search(r"/proc/(self|\d+)/(fdinfo/|mountinfo)", rest)
    if node not in rest and not is_above and not is_about:
        return None
    if name == "openat" and "O_NONBLOCK" in rest and "O_DIRECTORY" in rest:
        return "opendir"  # a part of listing it
    if name == "newfstatat" and "AT_EMPTY_PATH" in rest:
        return "fstat"
    return name


def main() -> int:
    is_equal = True
    for number, history in enumerate(_histories()):
        counted, made = _count(number)
        print(f"\n{history.name}")
        for title, table in (("writing", _WRITING), ("reading", _READING)):
            total = [0, 0]
            for call, names in table.items():
                pair = counted.get(call, 0), sum(made[name] for name in names)
                total = [total[0] + pair[0], total[1] + pair[1]]
                mark = "" if pair[0] == pair[1] else "   differs"
                if any(pair):
                    print(f"  {call:16} {pair[0]:5} {pair[1]:5}{mark}")
                if title == "writing":
                    is_equal &= pair[0] == pair[1]
            print(f"  {title + ' side':16} {total[0]:5} {total[1]:5}")
        strange = {name: made[name] for name in _FORBIDDEN if made[name]}
        if strange:
            is_equal = False
            print(f"  unknown to the environment: {strange}")
    print("\nequal" if is_equal else "\nNOT EQUAL")
    return 0 if is_equal else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _play(int(sys.argv[1]), sys.argv[2])
    else:
        sys.exit(main())
