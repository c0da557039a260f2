"""All short histories cut at every step: whatever the disk kept, what was promised is there.

What is red today stands here as an expected failure, one for each fault, with the history that
shows it; a violation of any other kind fails. ``python -m tests.proofs`` goes further.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.proofs.every_crash import NARROW, ROOTS, Crashes, Scope, Violation, replay, run
from tests.proofs.mutants import CRASHES, Mutant

#: all histories of two letters behind each beginning
EVERYTHING = Scope(ROOTS, NARROW, 2)
#: three letters that matter to a segment that a truncation empties
EMPTIED = Scope(("A2 A2",), ("A2", "G+1", "T", "R"), 3)
#: without a crash, four letters
IN_PEACE = Scope(("A2 A2 A2 A1",), ("T", "P", "R"), 4, has_crashes=False)
#: a part of everything, so the engine without a planted fault passes it
MUTATED = Scope(("A2 A2",), ("A1", "T", "P", "F+1"), 2)

FAULTS = {
    "A.1": r"CorruptionError: .*it begins with entry \d+ where \d+ was expected",
    "A.1 in peace": r".*the sealed header does not agree with its records",
}


@cache
def crashes(scope: Scope) -> Crashes:
    return run(scope)


def _found() -> list[Violation]:
    scopes = (EVERYTHING, EMPTIED, IN_PEACE)
    return [violation for scope in scopes for violation in crashes(scope).violations.values()]


def _of(fault: str) -> list[str]:
    return [str(each) for each in _found() if re.match(FAULTS[fault], each.message)]


def test_every_history_up_to_the_length_was_cut_at_every_step() -> None:
    found = crashes(EVERYTHING)
    assert found.is_complete
    assert found.length == 2
    assert found.counts["histories"] > 900
    assert found.images > 25_000


def test_no_crash_breaks_a_promise_in_a_way_that_is_not_known() -> None:
    assert [
        str(v) for v in _found() if not any(re.match(f, v.message) for f in FAULTS.values())
    ] == []


@pytest.mark.xfail(
    strict=True,
    reason="A.1: a segment that a truncation emptied keeps its header, and is in the way when the "
    "log rolls over into it: 'A2 A2 T4 T3 G+1', step 4",
)
def test_a_crash_never_meets_the_header_of_an_emptied_segment() -> None:
    assert _of("A.1") == []


@pytest.mark.xfail(
    strict=True,
    reason="A.1 without a crash: recovery seals a segment without records: "
    "'A2 A2 A2 A1 T7 T4 P6 R'",
)
def test_a_segment_without_records_is_never_sealed() -> None:
    assert _of("A.1 in peace") == []


@pytest.mark.parametrize("mutant", CRASHES, ids=lambda mutant: mutant.name)
def test_every_fault_that_is_planted_is_found(mutant: Mutant) -> None:
    with mutant.applied():
        assert run(MUTATED, stops_at_first=True).violations


def test_a_violation_can_be_shown_again() -> None:
    with CRASHES[0].applied():
        found = next(iter(run(MUTATED, stops_at_first=True).violations.values()))
        (step, image), then = map(int, found.cuts[0].split(":")), " ".join(found.cuts[1:])
        assert found.message in replay(found.history, step, image, then)
