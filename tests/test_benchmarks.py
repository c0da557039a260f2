"""The benchmarks run and write what they promise; what they measure is not judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree as ET

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "benchmarks")


def measure(script: str, folder: Any, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, os.path.join(BENCHMARKS, script), "--directory", str(folder)]
    command += ["--json", str(folder / "figures.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
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
    tiny = ("--rounds", "1", "--seconds", "0.01", "--entries", "2000", "--stall-seconds", "0.1")
    told = measure("store.py", tmp_path, "--quick", "--svg", str(plot), *tiny)

    measured = {row for row, _ in figures_of(told, "hqlwal")}
    assert measured == {"durable", "buffered", "tasks", "read", "open", "stall"}
    assert {row for row, _ in figures_of(told, "")} == measured | {"policies", "fairness"}
    assert figures_of(told, "floor") == {
        (row, cell) for row in ("durable", "buffered") for cell in ("256 B x 1", "256 B x 64")
    }
    judged = [line for line in told["wanted"] if line["want"] != "for comparison"]
    # without the peers nothing can be said about what is wanted of them
    assert all(line["is_met"] is not None for line in judged if "peer" not in line["want"])
    assert len(judged) > 12
    assert told["machine"]["cores"] == os.cpu_count()
    check_plot(plot)


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


def test_the_time_of_an_append_is_broken_down(tmp_path: Any) -> None:
    told = measure("breakdown.py", tmp_path, "--rounds", "1", "--calls", "5")
    parts = told["median_seconds_of_rounds"]
    assert {"one durable append (asyncio)", "64 entries: append"} < set(parts)


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
