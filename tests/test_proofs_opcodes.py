"""Every opcode is interrupted: a fixed sample of what ``python -m tests.proofs opcode`` runs whole."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.proofs.every_opcode import (
    CALLS,
    SCENES,
    Finding,
    Point,
    Scene,
    count,
    interrupt,
    run,
)
from tests.proofs.mutants import OPCODES, Mutant

#: prime, so that it meets every place in the history, in every scene, with both errors
STRIDE = 601
#: change nothing that could be torn
READS = {
    "cold read",
    "stream",
    "limited read",
    "key log ids",
}


@pytest.fixture(scope="module")
def outcome() -> tuple[list[Finding], Counter[str]]:
    return run(stride=STRIDE)


@pytest.fixture(scope="module")
def findings(outcome: tuple[list[Finding], Counter[str]]) -> list[Finding]:
    return outcome[0]


@cache
def _points(scene: Scene) -> list[Point]:
    return count(scene)


def _shown(findings: list[Finding]) -> str:
    return "\n".join([f"{len(findings)} of them", *(f"{f}\n    {f.replay}" for f in findings[:5])])


def test_every_call_has_instructions_to_be_interrupted() -> None:
    for scene in SCENES:
        calls = {point.call for point in _points(scene)}
        assert calls == {"open", *(call.name for call in CALLS), "close"}


def test_every_scene_was_interrupted(outcome: tuple[list[Finding], Counter[str]]) -> None:
    tried = outcome[1]
    for scene in SCENES:
        assert tried[f"interrupts, {scene.backend}"] > 20, scene


def test_after_an_interrupt_the_log_is_right_or_takes_nothing_more(
    findings: list[Finding],
) -> None:
    wrong = [f for f in findings if f.kind in ("wrong", "untyped")]
    assert not wrong, _shown(wrong)


def test_after_an_interrupt_every_caller_is_answered(findings: list[Finding]) -> None:
    hangs = [f for f in findings if f.kind == "hang"]
    assert not hangs, _shown(hangs)


def test_after_an_interrupt_the_lock_goes_with_the_store(findings: list[Finding]) -> None:
    locked = [f for f in findings if f.kind == "locked"]
    assert not locked, _shown(locked)


def test_an_interrupted_read_harms_nothing(findings: list[Finding]) -> None:
    unnamed = [f for f in findings if f.point.call in READS and f.kind != "locked"]
    assert not unnamed, _shown(unnamed)


@pytest.mark.parametrize(
    ("scene", "place", "error"),
    [
        # a job that was taken from the queue and not carried out
        ("others,immediate,0", "Worker.run +", "MemoryError"),
        ("others,immediate,0", "Thread._go_on +", "MemoryError"),
        ("others,immediate,0", "Thread._rest +", "MemoryError"),
        ("others,immediate,0", "Pool.", "MemoryError"),
        # a call for the main thread, and what it is waiting for
        ("others,immediate,0", "_Made.give +", "MemoryError"),
        # what a lane has under way
        ("others,immediate,0", "Lane._next_job +", "MemoryError"),
        ("others,immediate,0", "Lane._carry_out +", "MemoryError"),
        # the lock of the directory
        ("others,immediate,0", "Directory.close +", "MemoryError"),
        # the thread of the callbacks
        ("others,immediate,0", "Callbacks.", "MemoryError"),
    ],
)
def test_a_thread_goes_on_where_memory_ran_out(scene: str, place: str, error: str) -> None:
    where = next(each for each in SCENES if str(each) == scene)
    points = [point for point in count(where) if place in point.where]
    assert len(points) > 5
    found = [
        each for point in points[:: len(points) // 5] for each in interrupt(where, point, error)
    ]
    assert not found, _shown(found)


#: where each planted fault shows
PLANTED = {
    "the main thread is the owner": ("threads,immediate,0", "Lane.call +", "KeyboardInterrupt"),
    "a worker ends where memory runs out": ("others,immediate,0", "Worker.run +", "MemoryError"),
}


@pytest.mark.parametrize("mutant", OPCODES, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found_by_an_interrupt(mutant: Mutant) -> None:
    scene, place, error = PLANTED[mutant.name]
    where = next(each for each in SCENES if str(each) == scene)
    with mutant.applied():
        points = [point for point in count(where) if place in point.where]
        assert any(interrupt(where, point, error) for point in points[:80])
