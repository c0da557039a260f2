"""What the figures are taken on, memory, and processes of their own. Knows no store."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from typing import Any

__all__ = ["ask_child", "describe_build", "describe_machine", "processor", "resident_bytes"]


def resident_bytes() -> dict[str, int]:
    """Resident memory of this process: private (``anon``) and mapped from files (``file``)."""
    found = {"anon": 0, "file": 0}
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                found["anon"] = int(line.split()[1]) * 1024
            elif line.startswith("RssFile:"):
                found["file"] = int(line.split()[1]) * 1024
    return found


def ask_child(script: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """Runs a script in a fresh process: what it prints, as JSON. It may end itself by a kill."""
    command = [sys.executable, os.path.abspath(script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)


def processor() -> str:
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_build() -> str:
    """How the interpreter was built: that alone makes a fifth to two fifths of a difference.

    Debian and Ubuntu build theirs with PGO and LTO, and take the flags out of what it says.
    """
    variables = sysconfig.get_config_vars()
    options = str(variables.get("CONFIG_ARGS") or "")
    flags = " ".join(
        str(variables.get(name) or "") for name in ("PY_CFLAGS", "PY_CFLAGS_NODIST", "PY_LDFLAGS")
    )
    if variables.get("Py_DEBUG"):
        return "debug"
    means = []
    if "--enable-optimizations" in options or "-fprofile-use" in flags:
        means.append("PGO")
    if "--with-lto" in options or "-flto" in flags:
        means.append("LTO")
    if means:
        return f"optimised: {', '.join(means)}"
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
        if "'--prefix=/usr'" in options and family & {"debian", "ubuntu"}:
            return "optimised: PGO, LTO"
    return "plain"


def _file_system(path: str) -> str:
    best, kind = "", "unknown"
    path = os.path.realpath(path)
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, where, what, *_ = line.split()
            inside = where in ("/", path) or path.startswith(where + "/")
            if inside and len(where) >= len(best):
                best, kind = where, what
    return kind


def describe_machine(directory: str, packages: Iterable[str]) -> dict[str, Any]:
    """What the figures were taken on, as data."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    # what folders are called here is nobody's business
    told = [os.path.basename(each) if os.path.isabs(each) else each for each in sys.argv[1:]]
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "kernel": platform.release().split("-")[0],
        "file_system": _file_system(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "build": describe_build(),
        "packages": versions,
        "command": " ".join(["python", f"benchmarks/{os.path.basename(sys.argv[0])}", *told]),
    }
