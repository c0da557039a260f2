"""What earlier writers left is judged and opened as recorded: the golden directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import RaftLogStorage, UnknownVersionError
from hqlwal_raft._environment import Environment
from hqlwal_raft.audit import Verdict, examine
from tests.golden.make import CASES, opened, report

FOLDER = Path(__file__).parent / "golden"


def directories(name: str) -> list[Path]:
    return sorted(path for path in (FOLDER / name).iterdir() if path.is_dir())


def names(path: Path) -> str:
    return path.name


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


OURS = directories("0x81")


def recorded(directory: Path) -> Any:
    return json.loads(directory.with_name(directory.name + ".json").read_text())


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    """What is written to; git keeps no empty directories and no locks."""
    shutil.copytree(directory, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("directory", OURS, ids=names)
def test_a_golden_directory_is_judged_as_recorded(directory: Path) -> None:
    found = json.loads(json.dumps(report(str(directory))))
    assert found == recorded(directory)["report"]


@pytest.mark.parametrize("directory", OURS, ids=names)
def test_a_golden_directory_opens_or_is_refused_as_recorded(directory: Path, copy: Path) -> None:
    before = contents(copy)
    expected = recorded(directory)["opened"]
    assert json.loads(json.dumps(opened(Environment(), str(copy)))) == expected
    if "error" in expected and "reading" not in expected["error"]:
        before.setdefault("lock.hql", contents(copy).get("lock.hql", b""))
        assert contents(copy) == before
    elif "error" not in expected:
        again = opened(Environment(), str(copy), is_checking_everything=True)
        assert (again["entries"], again["last"]) == (expected["entries"], expected["last"])
        assert examine(copy, deep=True).verdict is Verdict.INTACT


@pytest.mark.parametrize("directory", OURS, ids=names)
def test_a_golden_directory_heals_as_recorded(directory: Path, copy: Path) -> None:
    options = {"is_healing": True, "is_checking_everything": True}
    found = opened(Environment(), str(copy), **options)
    assert json.loads(json.dumps(found)) == recorded(directory)["healed"]


def test_there_is_one_of_each_kind() -> None:
    assert {directory.name for directory in OURS} == set(CASES)
    verdicts = {recorded(directory)["report"]["deep"]["verdict"] for directory in OURS}
    assert verdicts == {"INTACT", "TORN", "COPY", "DAMAGED"}
    # a cut that stands, and what it hides, is a torn tail
    cut = recorded(FOLDER / "0x81" / "cut_standing")["report"]["deep"]
    assert [finding[0] for finding in cut["findings"]] == ["TORN_TAIL"]


@pytest.mark.parametrize("directory", directories("0x02") + directories("crate"), ids=names)
async def test_another_format_is_named_refused_and_left_as_it_was(
    directory: Path, copy: Path
) -> None:
    version = 2 if directory.parent.name == "0x02" else 1
    seen = examine(directory, deep=True)
    assert seen.verdict is Verdict.UNKNOWN_VERSION
    assert {f.version for f in seen.all_findings} == {version}
    before = contents(copy)
    for auto_heal in (False, True):
        with pytest.raises(UnknownVersionError) as refused:
            async with RaftLogStorage.open(copy, auto_heal=auto_heal):
                pass
        assert refused.value.version == version
    assert contents(copy) == before
