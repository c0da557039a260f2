"""Every call of the system fails once, every argument is wrong once, every callback raises.

A sample of what ``tests.proofs`` plays in full: every 97th case, and more of those that are like
something that went wrong before. The kinds are those of the faults that the engine once had.
"""

from __future__ import annotations

from collections import Counter

import pytest

from hqlwal_raft.testing._kernel import MemoryKernel
from tests.proofs import every_answer, every_call
from tests.proofs.faulty import FaultyEnvironment
from tests.proofs.histories import HISTORIES, THREADED, History
from tests.proofs.mutants import CALLS, Mutant
from tests.proofs.store import Problem

#: where each planted fault shows: a history, and a call that fails in it
PLANTED = {
    "a truncation's point comes a step late": ("threads: interval", "unlink"),
    "a refused commit is taken back by half": ("purges: inside, at, beyond, everything", "pwrite"),
    "callbacks are not told of errors": ("interval", "fdatasync"),
    "any failed write is a refused one": ("immediate_async", "pwrite"),
    "the lock stays where closing fails": (
        "an existing directory: vote, committed, flush, cold and cached reads",
        "fstat",
    ),
    "of many threads one is answered": (
        "threads: fresh directory, roll-over, batches, an oversized entry",
        "flock",
    ),
}

#: coprime to the numbers of faults that the calls have
STRIDE = 97
ANSWER_STRIDE = 5


@pytest.fixture(scope="module")
def found() -> list[every_call.Finding]:
    return every_call.run(stride=STRIDE)[0]


@pytest.fixture(scope="module")
def answers() -> list[every_answer.Finding]:
    return every_answer.run(stride=ANSWER_STRIDE)[0]


def _show(findings: list[object]) -> str:
    return "\n".join(map(str, findings[:5])) + f"\n{len(findings)} in all"


@pytest.mark.parametrize("kind", every_call.KINDS)
def test_a_failing_call_leads_to_no_fault_of_the_kind(
    kind: str, found: list[every_call.Finding]
) -> None:
    of_kind: list[object] = [each for each in found if each.kind == kind]
    assert not of_kind, _show(of_kind)


def test_a_failing_call_leads_to_no_fault_of_a_kind_without_a_name(
    found: list[every_call.Finding],
) -> None:
    new: list[object] = [each for each in found if each.kind not in every_call.KINDS]
    assert not new, _show(new)


@pytest.mark.parametrize("mutant", CALLS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found_by_a_failing_call(mutant: Mutant) -> None:
    history, call = PLANTED[mutant.name]
    assert every_call.first_of(mutant, history, call) is not None


@pytest.mark.parametrize("history", (*HISTORIES, *THREADED), ids=lambda history: history.name)
def test_nothing_is_found_where_nothing_fails(history: History) -> None:
    played = every_call.play(history, None)
    assert not played.problems
    assert len(played.calls) > 100


def test_the_histories_make_every_kind_of_call_that_the_engine_makes() -> None:
    made = Counter(c.name for h in HISTORIES for c in every_call.calls_of(h).calls)
    assert {"open", "pwrite", "fdatasync", "fsync", "posix_fallocate", "rename", "unlink"} <= set(
        made
    )
    assert {"mkdir", "flock", "mmap", "pread", "preadv", "listdir", "ftruncate"} <= set(made)


def _full_disks(what: str) -> list[Problem]:
    return [each for each in every_call.full_disks() if what in each.where]


def test_a_store_opens_on_a_disk_without_a_free_inode() -> None:
    assert not _full_disks("inodes")


def test_a_store_opens_on_a_disk_without_a_free_block() -> None:
    assert not _full_disks("bytes")


@pytest.mark.parametrize("kind", every_answer.KINDS)
def test_a_wrong_argument_or_a_callback_that_raises_leads_to_no_fault_of_the_kind(
    kind: str, answers: list[every_answer.Finding]
) -> None:
    of_kind: list[object] = [each for each in answers if each.kind == kind]
    assert not of_kind, _show(of_kind)


def test_a_wrong_argument_or_a_callback_that_raises_leads_to_no_fault_without_a_name(
    answers: list[every_answer.Finding],
) -> None:
    new: list[object] = [each for each in answers if each.kind not in every_answer.KINDS]
    assert not new, _show(new)


def test_the_environment_that_fails_counts_and_passes_on_what_it_does_not_fail() -> None:
    environment = FaultyEnvironment(MemoryKernel())
    environment.mkdir("/a")
    assert environment.listdir("/") == ["a"]
    assert [call.name for call in environment.calls] == ["mkdir", "listdir"]
    environment.is_quiet = True
    environment.listdir("/")
    assert len(environment.calls) == 2
