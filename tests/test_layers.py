"""Only the environment knows the operating system: every module of the package is read for it.

What a double cannot stand in for escapes every proof, so a call of the system, of the clock, of
chance or of a thread anywhere else fails here. Names in ``os`` that ask the system nothing are
free to all.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import hqlwal_raft

PACKAGE = Path(hqlwal_raft.__file__).parent

MODULES = {
    *("mmap", "fcntl", "time", "random", "threading", "queue", "socket", "subprocess"),
    *("signal", "select", "selectors", "tempfile", "shutil", "glob", "pathlib", "multiprocessing"),
}
OS_NAMES = {"fsdecode", "fspath", "path", "stat_result", "statvfs_result", "strerror", "PathLike"}
OS_PREFIXES = ("O_", "RWF_", "POSIX_FADV_", "SEEK_", "F_OK", "R_OK", "W_OK", "X_OK")
#: ``realpath`` follows links, which no test stands in for; ``samestat`` compares two results
OS_PATH_NAMES = {"abspath", "basename", "dirname", "join", "realpath", "samestat"}

#: what may do more than that, and why
ALLOWED = {
    "_environment": {"*"},  # it is the operating system
    # doubles that are environments: their locks guard their own memory
    "testing._faults": {"threading"},
    "testing._kernel*": {"random", "threading", "os", "open"},  # chance, and copies for people
    # chance from one seed; the words for an empty queue and for waiting for a child
    "testing.simulation._clock": {"random"},
    "testing.simulation._faults": {"random"},
    "testing.simulation._network": {"random"},
    "testing.simulation._threads": {"queue"},
    "testing.simulation._upstream": {"os"},
    # the conformance suite judges any storage, and asks in which thread it is called
    "testing._case": {"threading"},
    "testing._cases_callback": {"threading"},
    # tools of a person, who has no double of a system
    "pysyncobj._dump_end": {"open"},
    "pysyncobj._import": {"os", "open", "os.path", "shutil", "tempfile"},
    "pysyncobj._moving": {"os", "open", "os.path", "shutil", "tempfile"},
    "cli.*": {"os", "time", "tempfile"},
}


def offences(source: str) -> Iterator[tuple[str, str]]:
    """What a module uses of the system: the kind, and where."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                found = [] if node.level or node.module is None else [node.module]
            for name in found:
                if name.partition(".")[0] in MODULES:
                    yield name.partition(".")[0], f"line {line}: imports {name}"
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path"):
                for alias in node.names:
                    if not _is_free(node.module, alias.name):
                        yield node.module, f"line {line}: imports {node.module}.{alias.name}"
            elif isinstance(node, ast.Import) and any(
                a.name == "os" and a.asname for a in node.names
            ):
                yield "os", f"line {line}: imports os under another name"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in ("os", "os.path") and not _is_free(owner, node.attr):
                yield owner, f"line {line}: {owner}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
            yield "open", f"line {line}: open()"


def _is_free(owner: str, name: str) -> bool:
    if owner == "os.path":
        return name in OS_PATH_NAMES
    return name in OS_NAMES or name.startswith(OS_PREFIXES)


def allowed(module: str) -> set[str]:
    return {
        kind for pattern, kinds in ALLOWED.items() if fnmatch(module, pattern) for kind in kinds
    }


def modules() -> list[str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths]


def source_of(module: str) -> str:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


@pytest.mark.parametrize("module", modules())
def test_a_module_asks_the_operating_system_through_the_environment(module: str) -> None:
    free = allowed(module)
    assert [what for kind, what in offences(source_of(module)) if not {kind, "*"} & free] == []


def test_what_is_allowed_is_needed() -> None:
    for pattern, kinds in ALLOWED.items():
        sources = [source_of(module) for module in modules() if fnmatch(module, pattern)]
        used = {kind for source in sources for kind, _ in offences(source)}
        assert kinds - {"*"} <= used, f"{pattern} does not use {kinds - used}"
        assert used, f"{pattern} needs no leave"


@pytest.mark.parametrize(
    "planted",
    [
        "import time",
        "import os\nos.fsync(3)",
        "from os import fsync",
        "import os as system",
        "from threading import Thread",
        "import concurrent.futures, random",
        "def f():\n    import mmap",
        "import os\nos.path.exists('/')",
        "import os.path\nfrom os.path import isdir",
        "import os\nos.environ.get('HOME')",
        "open('/etc/passwd')",
    ],
)
def test_a_module_that_asks_it_itself_is_found(planted: str) -> None:
    assert list(offences(planted))


@pytest.mark.parametrize(
    "innocent",
    [
        "import os\nos.path.join('a', 'b'), os.O_RDWR | os.O_CREAT, os.strerror(5)",
        "import os\ndef f(path: os.PathLike[str], found: os.stat_result): os.fspath(path)",
        "self.environment.open('a', 0)",
        "from ._files import open_log",
    ],
)
def test_constants_and_strings_are_free(innocent: str) -> None:
    assert list(offences(innocent)) == []
