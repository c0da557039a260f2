"""The benchmarks run and write what they promise; what they measure is not judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
from typing import Any
from xml.etree import ElementTree as ET

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCHMARKS = os.path.join(ROOT, "benchmarks")


@pytest.fixture
def their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are scripts: what lies beside them is found by being there."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def measure(script: str, folder: Any, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, os.path.join(BENCHMARKS, script), "--directory", str(folder)]
    command += ["--json", str(folder / "figures.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return told


def figures_of(told: dict[str, Any], contestant: str) -> set[tuple[str, str]]:
    return {
        (result["row"], result["cell"])
        for result in told["results"]
        if result["contestant"].startswith(contestant) and result.get("median", 0) > 0
    }


def check_plot(plot: Any) -> None:
    """It is there and an SVG, unless what draws it is missing."""
    assert plot.exists() == (importlib.util.find_spec("matplotlib") is not None)
    for path in plot.parent.glob(plot.name):
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_store_is_measured_in_every_quick_row_and_plotted(tmp_path: Any) -> None:
    plot = tmp_path / "plot.svg"
    tiny = ["--rounds", "1", "--seconds", "0.01", "--entries", "2000", "--stall-seconds", "0.1"]
    tiny += ["--stores", "3", "--delay-seconds", "0.002"]
    told = measure("store.py", tmp_path, "--quick", "--svg", str(plot), *tiny)

    measured = {row for row, _ in figures_of(told, "hqlwal")}
    assert measured == {
        "durable", "buffered", "tasks", "large", "stores", "read", "random", "open", "huge",
        "purge", "delay", "stall",
    }  # fmt: skip
    assert {row for row, _ in figures_of(told, "")} == measured | {"policies", "fairness"}
    appended = {(row, f"256 B x {n}") for row in ("durable", "buffered") for n in (1, 64)}
    assert figures_of(told, "floor") == appended | {("large", "1 MiB"), ("large", "4 MiB")}
    assert figures_of(told, "bare hand-over") == {each for each in appended if each[0] == "durable"}
    for runtime in ("asyncio", "uvloop", "trio"):
        if importlib.util.find_spec(runtime) is not None:
            delays = {cell for row, cell in figures_of(told, f"hqlwal {runtime}") if row == "delay"}
            assert delays > {"first read", "cold scan", "disk 2 ms slower, immediate"}
    judged = [line for line in told["wanted"] if line["want"] != "for comparison"]
    # without the peers nothing can be said about what is wanted of them
    assert all(line["is_met"] is not None for line in judged if "peer" not in line["want"])
    assert len(judged) > 30
    assert all(line["ours"] for line in told["natives, measured elsewhere"])
    check_machine(told["machine"], tmp_path)
    check_plot(plot)


def check_machine(machine: dict[str, Any], folder: Any) -> None:
    """It says how the interpreter was built, and not where anything is."""
    assert machine["cores"] == os.cpu_count()
    assert machine["build"].startswith(("optimised: ", "plain", "debug"))
    shown = json.dumps(machine)
    assert str(folder) not in shown
    assert sys.prefix not in shown
    assert "pyenv" not in shown


def test_only_the_rows_asked_for_are_measured(tmp_path: Any) -> None:
    tiny = ("--rounds", "1", "--seconds", "0.01", "--svg", str(tmp_path / "plot.svg"))
    told = measure("store.py", tmp_path, "--only", "durable", *tiny)
    assert {result["row"] for result in told["results"]} == {"durable"}


def test_what_is_not_installed_is_reported_as_missing(tmp_path: Any) -> None:
    peers = ("lmdb", "plyvel", "rocksdict", "aiosqlite")
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    arguments = ["store.py", "--only", "durable", "--only", "tasks"]
    arguments += ["--rounds", "1", "--seconds", "0.01", "--directory", str(tmp_path)]
    arguments += ["--json", str(figures), "--svg", str(plot)]
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({(*peers, "uvloop", "matplotlib")}))
sys.path.insert(0, {BENCHMARKS!r})
sys.argv[:] = {arguments}
runpy.run_path({os.path.join(BENCHMARKS, "store.py")!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    told = json.loads(figures.read_text())
    missing = {result["contestant"] for result in told["results"] if result.get("missing")}
    assert missing == {
        *peers, "lmdb, bare pairs", "hqlwal uvloop", "plyvel threads", "aiosqlite tasks"
    }  # fmt: skip
    assert ("tasks", "64 tasks") in figures_of(told, "hqlwal asyncio")
    assert "matplotlib is missing" in done.stdout
    assert not plot.exists()


def test_a_row_that_does_not_exist_is_refused_with_the_names_of_those_that_do() -> None:
    command = [sys.executable, os.path.join(BENCHMARKS, "store.py"), "--only", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "nonsense" in done.stderr
    assert "durable-grid" in done.stderr


def test_a_growing_log_is_measured_at_each_level(tmp_path: Any) -> None:
    told = measure("scale.py", tmp_path, "--levels", "3", "8", "--seconds", "0.01")
    assert {result["contestant"] for result in told["results"]} == {"3 segments", "8 segments"}
    assert len(told["wanted"]) > 8


def test_the_time_of_an_append_is_broken_down_beside_a_bare_hand_over(tmp_path: Any) -> None:
    told = measure("breakdown.py", tmp_path, "--rounds", "1", "--calls", "5")
    parts = told["median_seconds_of_rounds"]
    bare = "a bare hand-over to a thread and back, the floor's work there (asyncio)"
    assert {bare, "one durable append (asyncio)", "64 entries: append"} < set(parts)
    assert {"pwrite (asyncio)", "fdatasync (asyncio)"} < set(parts)


def test_a_version_is_measured_against_another_in_every_row(tmp_path: Any) -> None:
    tiny = ("--rounds", "1", "--seconds", "0.01", "--entries", "2000")
    told = measure("old_new.py", tmp_path, "--against", ROOT, *tiny)
    assert len(told["rows"]) == 16
    for row in told["rows"]:
        assert len(row["old_seconds"]) == len(row["new_seconds"]) == 1
        assert row["speed"]["median"] > 0


def test_what_is_measured_against_is_the_package_of_the_folder_given(tmp_path: Any) -> None:
    (tmp_path / "hqlwal_raft").mkdir()
    (tmp_path / "hqlwal_raft" / "__init__.py").write_text("raise SystemExit('the other one')")
    command = [sys.executable, os.path.join(BENCHMARKS, "old_new.py"), "--only", "open"]
    command += ["--rounds", "1", "--against", str(tmp_path), "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the other one" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], "slower"),
        ([1.0, 1.0, 1.0], [1.1, 1.1, 0.5], "slower?"),
        ([1.0, 1.0, 1.0], [1.04, 1.04, 1.04], ""),
        ([1.0, 1.0, 1.0], [0.9, 0.9, 0.9], "faster"),
        # the machine's pace changes from round to round: a ratio is one of the same round
        ([1.0, 10.0, 100.0], [2.0, 100.0, 5.0], "slower?"),
    ],
)
@pytest.mark.usefixtures("their_modules")
def test_rows_slower_by_more_than_a_twentieth_are_marked(
    old: list[float], new: list[float], verdict: str
) -> None:
    from old_new import Compared

    assert Compared("a row", old, new).verdict == verdict


@pytest.mark.usefixtures("their_modules")
def test_the_entries_of_a_stint_follow_one_another_whenever_they_were_made() -> None:
    from _contestants import entries_maker
    from _measure import WARM_UP_CALLS, Limits, Supply, stint

    taken: list[int] = []
    supply = Supply(entries_maker(b"", 3), 3, first=5)
    # more than are made ahead: so much is wanted of it that it goes on making them in between
    limits = Limits(0.005, 3, 1)
    done = stint(lambda batch: taken.extend(entry.index for entry in batch), supply, limits)
    assert len(taken) == done.entries + 3 * WARM_UP_CALLS
    assert taken == list(range(5, 5 + len(taken)))


@pytest.mark.parametrize(
    ("options", "flags", "is_debug", "release", "shown"),
    [
        ("'--enable-optimizations' '--with-lto'", "-O3", 0, "alpine", "optimised: PGO, LTO"),
        ("'--enable-optimizations'", "-O3", 0, "debian", "optimised: PGO"),
        ("", "-O2 -flto -fprofile-use", 0, "fedora", "optimised: PGO, LTO"),
        ("'--with-pydebug'", "-O0", 1, "debian", "debug"),
        ("'--prefix=/usr'", "-O2", 0, "debian", "optimised: PGO, LTO"),
        ("'--prefix=/opt/python'", "-O3", 0, "debian", "plain"),
        ("'--prefix=/usr'", "-O2", 0, "alpine", "plain"),
    ],
)
@pytest.mark.usefixtures("their_modules")
def test_the_build_of_the_interpreter_is_named(
    options: str, flags: str, is_debug: int, release: str, shown: str, monkeypatch: Any
) -> None:
    from _machine import describe_build

    variables = {"CONFIG_ARGS": options, "PY_CFLAGS": flags, "Py_DEBUG": is_debug}
    monkeypatch.setattr(sysconfig, "get_config_vars", lambda: variables)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": release})
    assert describe_build() == shown


def test_a_cluster_is_measured_with_the_stock_journal_and_ours(tmp_path: Any) -> None:
    plot = tmp_path / "plot.svg"
    told = measure(
        "pysyncobj_cluster.py", tmp_path, "--svg", str(plot), "--kinds", "stock", "wal",
        "--rounds", "1", "--seconds", "0.2", "--entries", "2000",
    )  # fmt: skip
    assert len(figures_of(told, "hqlwal, durable")) == 3
    assert len(figures_of(told, "FileJournal, no sync")) == 3
    assert all(line["is_met"] is not None for line in told["wanted"])
    assert not any("exceptions logged" in result.get("note", "") for result in told["results"])
    check_plot(plot)
