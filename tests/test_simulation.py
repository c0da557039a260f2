"""The simulated cluster: the same run in every process, and no seed that breaks a promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft.pysyncobj import _repairs
from hqlwal_raft.testing.simulation import Clock, Judge, Trace, chance
from hqlwal_raft.testing.simulation.__main__ import main, replay_line
from hqlwal_raft.testing.simulation._cluster import play
from hqlwal_raft.testing.simulation._faults import WEATHERS, make_plan
from hqlwal_raft.testing.simulation._machine import Machine, Process
from hqlwal_raft.testing.simulation._shorten import shorten
from hqlwal_raft.testing.simulation._upstream import _Writer

ROOT = Path(__file__).parent.parent

#: 200 of them, in pieces that can be seen to go on
PIECE = 25


@pytest.mark.parametrize("first", range(1, 201, PIECE))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + PIECE):
        outcome = play(make_plan(seed))
        assert outcome.violation is None, f"{outcome.violation}; {replay_line(outcome.plan, None)}"


def test_a_simulated_cluster_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for seed in (4, 5):  # clusters that do not batch
        play(make_plan(seed))
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_kind_of_fault_is_among_those_seeds() -> None:
    assert {make_plan(seed).weather for seed in range(1, 201)} == set(WEATHERS)


def _in_a_process(seed: int, hash_seed: str) -> str:
    command = [
        sys.executable,
        "-m",
        "hqlwal_raft.testing.simulation",
        "--once",
        "--seed",
        str(seed),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("weather", sorted(WEATHERS))
def test_a_seed_gives_the_same_trace_in_every_process(weather: str) -> None:
    seed = next(each for each in range(1, 200) if make_plan(each).weather == weather)
    said = _in_a_process(seed, "1")
    assert "digest" in said
    assert said == _in_a_process(seed, "2")
    assert said.split()[3] == play(make_plan(seed)).digest


#: each repair of the adapter's that can be switched off, the seed that misses it, and how
MISSED: dict[str, tuple[Callable[..., Any], int, str, str]] = {
    "is_newer_dump": (lambda *_: True, 4, "dumps", "a node gave up on a healthy disk"),
    "apply_membership_again": (lambda *_: None, 6, "rewinds", "nodes know different members"),
    "go_back_to_commit": (
        lambda next_index, _: next_index,
        383,
        "members",
        "not every healthy node became ready",
    ),
    "is_damage": (lambda _: False, 3, "damage", "a node goes on with a damaged log"),
    "lacks_its_dump": (lambda *_: False, 4, "damage", "not every healthy node became ready"),
    "keep_commit_index": (
        lambda commit, *_, **__: commit,
        1,
        "partitions",
        "what was committed is another entry now",
    ),
    "push_election_deadline": (
        lambda *_: None,
        10,
        "stalls",
        "its own disk's silence was taken for the leader's",
    ),
    "wait_for_another_leader": (
        lambda *_: None,
        14,
        "stalls",
        "its own disk's silence was taken for the leader's",
    ),
}


def test_every_repair_is_switched_off_once_and_its_seed_is_told() -> None:
    assert set(MISSED) == set(_repairs.__all__)
    page = (ROOT / "docs" / "design" / "proofs.md").read_text()
    for repair, (_, seed, weather, _) in MISSED.items():
        assert f"| `{repair}` | {weather}, {seed} |" in page


@pytest.mark.parametrize("repair", sorted(MISSED))
def test_a_repair_that_is_switched_off_is_missed(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead, seed, weather, rule = MISSED[repair]
    plan = make_plan(seed, weather)
    monkeypatch.setattr(_repairs, repair, instead)
    violation = play(plan).violation
    assert violation is not None
    assert violation.rule == rule


def test_a_failing_history_is_shortened_and_printed_with_the_line_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead, seed, weather, rule = MISSED["push_election_deadline"]
    monkeypatch.setattr(_repairs, "push_election_deadline", instead)
    assert main(["--seed", str(seed), "--seeds", "1", "--weather", weather]) == 1
    said = capsys.readouterr().out
    line = said.rpartition("replay: ")[2].strip()
    assert line.startswith(f"python -m hqlwal_raft.testing.simulation --seed {seed} --once ")
    assert " --keep " in line
    kept = line.rpartition(" ")[2]
    assert len(kept.split(",")) < len(make_plan(seed, weather).actions) / 3
    assert main([*line.split()[3:]]) == 1
    assert rule in capsys.readouterr().out


def test_shortening_leaves_what_it_takes_and_nothing_else() -> None:
    plays = []

    def still_fails(numbers: frozenset[int]) -> bool:
        plays.append(numbers)
        return {3, 17, 40} <= numbers

    assert shorten(frozenset(range(50)), still_fails) == {3, 17, 40}
    assert len(plays) <= 150


def test_an_action_that_is_left_out_changes_no_other_chance() -> None:
    plan = make_plan(5)
    numbers = frozenset(action.number for action in plan.actions)
    assert play(plan, numbers).digest == play(plan).digest
    assert play(plan, numbers - {max(numbers)}).digest != play(plan).digest
    assert [a.number for a in plan.only(frozenset({1, 2}))] == [1, 2]


def test_the_command_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--seeds", "2"]) == 0
    assert "2 seeds from 1" in capsys.readouterr().out


def test_the_testing_package_and_the_simulation_of_other_nodes_need_no_pysyncobj() -> None:
    code = (
        "import sys, hqlwal_raft.testing.simulation;"
        "sys.exit(any(name.partition('.')[0] == 'pysyncobj' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- what stands in for pysyncobj's files ------------------------------------------------------


def _on_a_full_disk() -> tuple[Process, int, _Writer]:
    machine = Machine("a", Clock(), 1)
    process = machine.start()
    descriptor = process.open("/file", os.O_RDWR | os.O_CREAT)
    machine.fill(0)
    writer = _Writer(process, descriptor)
    writer.write(b"waits in the buffer")
    return process, descriptor, writer


def test_a_file_whose_end_cannot_be_written_is_closed_once() -> None:
    process, descriptor, writer = _on_a_full_disk()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert writer.closed
    assert process.open("/other", os.O_RDWR | os.O_CREAT) == descriptor  # it was free again
    writer.close()
    del writer
    process.close(descriptor)


@pytest.mark.parametrize("ending", ["refused", "dies"])
def test_a_file_that_is_dropped_is_closed_and_nobody_hears_what_its_end_meets(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", heard.append)
    process, descriptor, writer = _on_a_full_disk()
    if ending == "dies":
        process.dies_at_call = process.disk_calls + 1
    del writer
    assert heard == []
    assert process.is_dead == (ending == "dies")
    if not process.is_dead:
        with pytest.raises(OSError, match="Bad file descriptor"):
            process.fstat(descriptor)


# --- the judge -------------------------------------------------------------------------------


def _judge() -> Judge:
    return Judge(Trace(Clock()))


def test_the_judge_finds_two_leaders_two_votes_and_a_command_applied_twice() -> None:
    judge = _judge()
    judge.became_leader("n1", 3, [])
    judge.became_leader("n2", 3, [])
    assert str(judge.violation).startswith("two leaders of one term")
    judge = _judge()
    judge.voted("n1", 3, "n2")
    judge.voted("n1", 3, "n2")
    assert judge.violation is None
    judge.voted("n1", 3, "n3")
    assert str(judge.violation).startswith("two votes in one term")
    judge = _judge()
    judge.applied("n1", 4, "k", 77, 2)
    assert str(judge.violation).startswith("a command was applied twice")


def test_the_judge_finds_states_and_commands_that_differ() -> None:
    judge = _judge()
    judge.applied("n1", 4, "k", 77, 1)
    judge.applied("n2", 4, "k", 78, 1)
    assert str(judge.violation).startswith("states differ")
    judge = _judge()
    judge.applied("n1", 4, "k", 77, 1)
    judge.applied("n2", 4, "l", 77, 1)
    assert str(judge.violation).startswith("another command was applied")


def test_the_judge_finds_what_was_acknowledged_and_is_missing() -> None:
    judge = _judge()
    judge.asked("k")
    judge.acknowledged("n1", "k", 4)
    judge.check_state("n1", {"k": 1})
    assert judge.violation is None
    judge.check_state("n2", {})
    assert str(judge.violation).startswith("what was acknowledged is lost")


def test_chance_is_the_same_for_a_name_and_another_for_another() -> None:
    assert chance(1, "a").random() == chance(1, "a").random()
    assert chance(1, "a").random() != chance(1, "b").random()
