"""All short histories cut at every step: whatever the disk kept, what was promised is there.

``python -m tests.proofs`` goes further.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.proofs.every_crash import NARROW, ROOTS, Crashes, Scope, replay, run
from tests.proofs.mutants import COMMITS, CRASHES, RECEIVING, Mutant

#: all histories of two letters behind each beginning
EVERYTHING = Scope(ROOTS, NARROW, 2)
#: the same where appends go into the page cache at once
BUFFERED = Scope(
    ROOTS[:2], ("A2", "a1", "a2", "F+1", "T", "P", "H", "S", "K", "R"), 2, is_buffered=True
)
#: three letters that matter to a segment that a truncation empties
EMPTIED = Scope(("A2 A2",), ("A2", "G+1", "T", "R"), 3)
#: a first append that was cut off, then one that is larger than the segment it left
TOO_SMALL = Scope(("a1 K",), ("F+1", "O", "A1"), 2)
#: without a crash, four letters
IN_PEACE = Scope(("A2 A2 A2 A1",), ("T", "P", "R"), 4, has_crashes=False)
#: both faces, with what their committer does late: two letters behind two beginnings
OF_STORES = [
    Scope(("a1", "A2 A2"), ("A1", "a2", "T", "P", "V", "F+1", "H", "K"), 2, face=face)
    for face in ("blocking", "async")
]
#: the same where appends go into the page cache at once, which are synced when somebody asks
OF_BUFFERED = [
    Scope(("A2 a1",), ("a1", "F+1", "T", "H", "S", "K"), 2, is_buffered=True, face=face)
    for face in ("blocking", "async")
]
#: what comes from a leader: inside of a segment, at its border, across it, behind unsynced entries
RECEIVED = [
    Scope(("", "A2 A2 A1"), ("L", "a1", "T", "R"), 2),
    Scope(("A2 A2 a1",), ("L", "a1", "K"), 2, is_buffered=True),
    Scope(("A2 A2 a1",), ("L",), 2, face="blocking"),
    Scope(("A2 A2 a1",), ("L",), 2, is_buffered=True, face="async"),
]
#: a part of everything, so the engine without a planted fault passes it
MUTATED = Scope(("A2", "A2 A2"), ("A1", "a2", "T", "P", "F+1", "H", "S"), 2)


@cache
def crashes(scope: Scope) -> Crashes:
    return run(scope)


def _found(scope: Scope) -> list[str]:
    return [str(violation) for violation in crashes(scope).violations.values()]


@pytest.mark.parametrize("scope", [EVERYTHING, BUFFERED], ids=["immediate", "buffered"])
def test_every_history_up_to_the_length_was_cut_at_every_step(scope: Scope) -> None:
    found = crashes(scope)
    assert found.is_complete
    assert found.length == 2
    assert found.counts["histories"] > 400
    assert found.images > 5_000


@pytest.mark.parametrize("scope", [EVERYTHING, BUFFERED], ids=["immediate", "buffered"])
def test_no_crash_breaks_a_promise(scope: Scope) -> None:
    assert _found(scope) == []


def test_a_crash_never_meets_the_header_of_an_emptied_segment() -> None:
    assert _found(EMPTIED) == []


def test_a_first_segment_that_is_too_small_is_named_no_more_before_it_goes() -> None:
    assert _found(TOO_SMALL) == []


def test_a_segment_without_records_is_never_sealed() -> None:
    assert _found(IN_PEACE) == []


@pytest.mark.parametrize("mutant", CRASHES, ids=lambda mutant: mutant.name)
def test_every_fault_that_is_planted_is_found(mutant: Mutant) -> None:
    with mutant.applied():
        assert run(MUTATED, stops_at_first=True).violations


@pytest.mark.parametrize("scope", OF_STORES + OF_BUFFERED, ids=lambda scope: scope.face)
def test_no_crash_of_a_store_breaks_a_promise(scope: Scope) -> None:
    assert _found(scope) == []
    found = crashes(scope)
    assert found.is_complete
    assert found.counts["histories"] > 30
    assert found.images > 300


@pytest.mark.parametrize("scope", RECEIVED, ids=lambda s: f"{s.face}-{s.is_buffered}")
def test_no_crash_leaves_a_mixture_of_two_leaders(scope: Scope) -> None:
    assert _found(scope) == []
    found = crashes(scope)
    assert found.is_complete
    assert found.counts["histories"] > 20
    assert found.images > 300


@pytest.mark.parametrize("face", ["log", "blocking", "async"])
@pytest.mark.parametrize("mutant", RECEIVING, ids=lambda mutant: mutant.name)
def test_a_mixture_is_found(mutant: Mutant, face: str) -> None:
    with mutant.applied():
        found = run(Scope(("A2 A2 A1",), ("L",), 1, face=face)).violations
    assert any("do not belong there" in violation.message for violation in found.values())


@pytest.mark.parametrize("face", ["blocking", "async"])
@pytest.mark.parametrize("mutant", COMMITS, ids=lambda mutant: mutant.name)
def test_every_fault_that_is_planted_in_the_committer_is_found(mutant: Mutant, face: str) -> None:
    scope = Scope(("A2", "A2 A2"), ("A1", "a2", "T", "V", "F+1"), 2, face=face)
    with mutant.applied():
        assert run(scope, stops_at_first=True).violations


def test_a_violation_can_be_shown_again() -> None:
    with CRASHES[0].applied():
        found = next(iter(run(MUTATED, stops_at_first=True).violations.values()))
        (step, image), then = map(int, found.cuts[0].split(":")), " ".join(found.cuts[1:])
        assert found.message in replay(found.history, step, image, then)
