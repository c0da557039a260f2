"""The documents say what is: links, the hexdump, the snippets."""

from __future__ import annotations

import importlib.util
import re
import textwrap
import time
import tomllib
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import Entry, RaftLogStorage
from hqlwal_raft._format import SegmentHeader
from hqlwal_raft._records import scan

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def snippets(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def load_hexdump() -> Any:
    spec = importlib.util.spec_from_file_location("hexdump", ROOT / "docs/design/hexdump.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_of_ours_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), f"{target} is missing"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert fragment in [anchor(heading) for heading in headings], target


def test_every_test_that_the_documents_name_is_there() -> None:
    there = {path.stem for path in ROOT.glob("tests/**/*.py")}
    for path in ROOT.glob("tests/**/*.py"):
        there.update(re.findall(r"def (test_\w+)", path.read_text()))
    for document in DOCUMENTS:
        for name, is_cut in re.findall(r"`(test_\w+)([…*]?)[^`]*`", document.read_text()):
            found = [one for one in there if one == name or (is_cut and one.startswith(name))]
            assert found, f"{document.name} names {name}"


async def test_the_hexdump_is_what_the_engine_writes(tmp_path: Path) -> None:
    hexdump = load_hexdump()
    data = await hexdump.write_segment(str(tmp_path / "log"))
    text = (ROOT / "docs/design/format.md").read_text()
    shown = re.search(r"<!-- hexdump: begin -->\n```\n(.*)```\n<!-- hexdump: end", text, re.DOTALL)
    assert shown is not None
    assert shown[1] == hexdump.render(data) + "\n"


def test_the_hexdump_s_bytes_are_a_valid_segment() -> None:
    # Read back from the document itself, without the program that made it.
    text = (ROOT / "docs/design/format.md").read_text()
    lines = re.findall(r"^ +(\d+)  ((?:[0-9a-f]{2} )+) ", text, re.MULTILINE)
    data = bytearray(8192)
    for offset, digits in lines:
        shown = bytes.fromhex(digits)
        data[int(offset) : int(offset) + len(shown)] = shown
    header = SegmentHeader.unpack(bytes(data))
    assert isinstance(header, SegmentHeader)
    start = header.data_start
    found = scan(bytes(data[start:]), start, header.salt, header.id_from, len(data))
    assert found.next_id - 1 == header.id_until == 3
    assert found.end == header.data_end


def test_the_architecture_names_the_modules_in_the_order_that_is_checked() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = configuration["tool"]["importlinter"]["contracts"]
    layers = {one["containers"][0]: one["layers"] for one in contracts if one["type"] == "layers"}
    engine, adapter = layers["hqlwal_raft"], layers["hqlwal_raft.pysyncobj"]
    text = (ROOT / "docs/design/architecture.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert named == engine[::-1] + adapter[::-1]


def test_the_table_of_modules_and_tests_has_every_one_and_no_other() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    tests = {name for row in rows for name in re.findall(r"`([^`]+)`", row[2])}
    package = ROOT / "hqlwal_raft"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    modules |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    test_files = {path.stem for path in ROOT.glob("tests/test_*.py")}
    test_files |= {f"proofs/{path.stem}" for path in ROOT.glob("tests/proofs/every_*.py")}
    for there, patterns in ((modules, named), (test_files, tests)):
        assert not [each for each in there if not any(fnmatch(each, one) for one in patterns)]
        for pattern in patterns:
            is_one = any(fnmatch(each, pattern) for each in there)
            assert is_one or (package / pattern).is_dir() or (ROOT / pattern).is_dir(), pattern


def test_the_readme_s_first_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets("README.md")[0], "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert out == (
        "[Entry(term=1, index=1, payload=b'x = 1', node_id=0), "
        "Entry(term=2, index=2, payload=b'y = 2', node_id=0)]\n"
    )


def test_the_snippet_for_threads_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets("docs/threads.md")
    names: dict[str, Any] = {}
    exec(compile(snippet, "docs/threads.md", "exec"), names)
    assert names["entries"] == [Entry(1, 1, b"x = 1"), Entry(1, 2, b"x = 2")]


async def test_the_snippets_that_put_every_case_across_a_border_and_reopen_the_model_run(
    tmp_path: Path,
) -> None:
    runs: list[tuple[set[Path], int]] = []

    async def check_log_storage(factory: Any, *, payload_bytes: int) -> None:
        async with factory("one_case") as storage:
            await storage.append([Entry(1, 1, bytes(payload_bytes))])
        runs.append((set(tmp_path.rglob("one_case")), payload_bytes))

    names = {
        "Entry": Entry,
        "RaftLogStorage": RaftLogStorage,
        "check_log_storage": check_log_storage,
        "directory": tmp_path,
    }
    for snippet in snippets("docs/testing-your-own-storage.md")[3:]:
        body = textwrap.indent(snippet, "    ")
        exec(compile(f"async def run():\n{body}", "testing-your-own-storage.md", "exec"), names)
        await names["run"]()  # type: ignore[operator]
    # a name that comes again is the same storage: each run has a place of its own
    assert [(len(places), size) for places, size in runs] == [(1, 3000), (2, 9000)]


def test_the_snippets_on_snapshots_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for snippet in snippets("docs/snapshots.md"):
        exec(compile(snippet, "docs/snapshots.md", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out == "b'x = 100'\n" * 2


def test_the_readme_s_second_snippet_counts_in_a_cluster_and_after_a_restart(
    tmp_path: Path, ports: list[int]
) -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(snippets("README.md")[1], "README.md", "exec"), namespace)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    folders = [tmp_path / str(port) for port in ports]
    for folder in folders:
        folder.mkdir()

    def start() -> list[Any]:
        return [
            namespace["Counter"](address, [a for a in addresses if a != address], folder)
            for address, folder in zip(addresses, folders, strict=True)
        ]

    def stop(nodes: list[Any]) -> None:
        for node in nodes:
            node.destroy_synchronous()

    nodes = start()
    try:
        assert add(nodes[0], 40) == 40
        assert add(nodes[1], 2) == 42
    finally:
        stop(nodes)
    nodes = start()
    try:
        assert add(nodes[2], 0) == 42
    finally:
        stop(nodes)


def add(node: Any, number: int) -> int:
    """Adds once there is a leader; a command that has none is not carried out."""
    deadline = time.monotonic() + 30
    while not node.isReady():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    result: int = node.add(number, sync=True, timeout=20)
    return result


@pytest.fixture
def ports() -> list[int]:
    import socket

    with (
        closing(socket.socket()) as a,
        closing(socket.socket()) as b,
        closing(socket.socket()) as c,
    ):
        for one in (a, b, c):
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in (a, b, c)]
