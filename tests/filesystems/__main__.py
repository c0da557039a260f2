"""``python -m tests.filesystems``: the store's part of the suite on file systems of its own making.

Needs root and loop devices; what cannot be mounted is skipped with the reason. A table at the end
says what each gave. ``--only btrfs`` chooses by a part of the name. Everything is unmounted and
removed at the end, also when interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from .grounds import GROUNDS, Ground, made

ROOT = Path(__file__).parent.parent.parent
#: what fills a small file system
SCENES = ("tests/test_filesystems.py",)
#: what the others are large enough for
SUITE = (
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_store_*.py")),
    "tests/test_recovery.py",
    "tests/test_recovery_crashes.py",
    "tests/test_recovery_damage.py",
    "tests/test_audit.py",
    "tests/test_audit_files.py",
    "tests/test_audit_in_use.py",
    "tests/test_faults_for_real.py",
    "tests/test_golden.py",
    "tests/test_kill.py",
    "tests/test_blocking.py",
    "tests/test_cli.py",
)

console = Console(highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Result:
    ground: Ground
    outcome: str
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    is_wrong: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.filesystems", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    options, chosen = parser.parse_known_args()
    signal.signal(signal.SIGTERM, _end)
    results: list[Result] = []
    grounds = [ground for ground in GROUNDS if options.only.lower() in ground.name.lower()]
    with tempfile.TemporaryDirectory(prefix="hqlwal-grounds-") as folder:
        try:
            for number, ground in enumerate(grounds):
                results.append(_test_on(ground, Path(folder) / str(number), chosen))
        except KeyboardInterrupt:
            console.print("interrupted")
    return _report(results, are_all=len(results) == len(grounds))


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _test_on(ground: Ground, folder: Path, chosen: list[str]) -> Result:
    console.rule(ground.name)
    started = time.monotonic()
    folder.mkdir()
    with made(ground, folder) as (root, reason):
        if reason:
            console.print(f"skipped: {reason}")
            return Result(ground, f"skipped: {reason}")
        lines, code = _run_pytest(ground, root, chosen)
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = lines[-1].strip("= ") if lines else f"pytest ended with {code}"
    seconds = time.monotonic() - started
    return Result(ground, re.sub(r" in [\d.:s() ]+$", "", summary), seconds, failures, code != 0)


def _run_pytest(ground: Ground, root: Path, chosen: list[str]) -> tuple[list[str], int]:
    """Its lines, each printed when it comes, and how it ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    if not ground.is_small:
        command += [f"--basetemp={root}/tests", "-o", "tmp_path_retention_policy=failed"]
    command += chosen or (SCENES if ground.is_small else SUITE)
    environment = {**os.environ, "HQLWAL_GROUND": str(root)}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.strip():
                    lines.append(line.rstrip())
            return lines, process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started goes with it
                os.killpg(process.pid, signal.SIGKILL)


def _report(results: list[Result], *, are_all: bool) -> int:
    table = Table(title="The store on other file systems")
    for heading in ("file system", "outcome", "seconds"):
        table.add_column(heading)
    for result in results:
        colour = "red" if result.is_wrong else "yellow" if not result.seconds else "green"
        table.add_row(result.ground.name, f"[{colour}]{result.outcome}[/]", f"{result.seconds:.0f}")
    console.print(table)
    for result in results:
        for failure in result.failures:
            console.print(f"{result.ground.name}: {failure}", markup=False)
    if shutil.which("mkfs.xfs") is None or shutil.which("mkfs.btrfs") is None:
        console.print("mkfs.xfs comes with xfsprogs, mkfs.btrfs with btrfs-progs")
    return int(not are_all or any(result.is_wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
