"""Every order: what of ``python -m tests.proofs order`` takes half a minute."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.proofs import every_order
from tests.proofs.every_order import (
    HISTORIES,
    SMALLEST,
    SMALLEST_THREADED,
    THREADED,
    Finding,
    run,
)
from tests.proofs.judging import judge
from tests.proofs.mutants import ORDERS as MUTANTS
from tests.proofs.mutants import Mutant
from tests.proofs.orders import ORDERS, Demotions

#: of the orders with two departures, and of the drawn histories; all with one are run
STRIDE = 251


@pytest.fixture(scope="module")
def sample() -> tuple[list[Finding], Counter[str]]:
    return run(stride=STRIDE)


@pytest.fixture(scope="module")
def findings(sample: tuple[list[Finding], Counter[str]]) -> list[Finding]:
    return sample[0]


def _by_fault(findings: list[Finding]) -> dict[str, list[Finding]]:
    """By the known fault of the engine that its order shows; the others by none."""
    result: dict[str, list[Finding]] = {}
    readers = {(f.history, f.order) for f in findings if "not open for writing" in f.what}
    for finding in findings:
        fault = finding.history.fault
        if (finding.history, finding.order) in readers:
            fault = "C.1"  # and all that follows from it
        elif finding.kind == "stream":
            fault = "D.2"
        result.setdefault(fault, []).append(finding)
    return result


def _shown(findings: list[Finding]) -> str:
    return "\n".join([f"{len(findings)} of them", *(f"{f}\n    {f.replay}" for f in findings[:5])])


def test_one_order_of_a_history_is_the_same_every_time() -> None:
    for history in (*HISTORIES, *THREADED):
        departed = ((5, "-"), (7, "-"))
        once = judge(history, Demotions("threads", departed))
        again = judge(history, Demotions("threads", departed))
        assert len(once.steps) > 5
        assert once.steps == again.steps, history.name


def test_every_history_is_run_in_every_order_with_one_departure(
    sample: tuple[list[Finding], Counter[str]],
) -> None:
    tried = sample[1]
    assert tried["orders with 0 departures, async"] == len(ORDERS) * len(HISTORIES)
    assert tried["orders with 1 departures, async"] > 1000
    assert tried["orders with 2 departures, async"] > 100
    smallest = (*SMALLEST, *SMALLEST_THREADED)
    assert all(tried[f"orders of {history.name!r}"] == 20_000 // STRIDE for history in smallest)


def test_every_history_of_threads_is_run_in_orders_with_a_departure(
    sample: tuple[list[Finding], Counter[str]],
) -> None:
    tried = sample[1]
    assert tried["orders with 0 departures, blocking"] == 2 * len(THREADED)
    assert tried["orders with 1 departures, blocking"] > 100
    assert tried["drawn orders"] > 100
    assert tried["orders told"]


def test_a_read_beside_a_truncation_spoils_nothing(findings: list[Finding]) -> None:
    found = _by_fault(findings).get("C.1", [])
    assert not found, _shown(found)


def test_every_callback_is_called_whatever_another_raises(findings: list[Finding]) -> None:
    found = _by_fault(findings).get("D.1", [])
    assert not found, _shown(found)


def test_a_stream_that_a_purge_overtakes_says_so(findings: list[Finding]) -> None:
    found = _by_fault(findings).get("D.2", [])
    assert not found, _shown(found)


def test_no_order_of_calls_does_any_other_harm(findings: list[Finding]) -> None:
    found = _by_fault(findings).get("", [])
    assert not found, _shown(found)


#: where each planted fault shows: a history, and an order
PLANTED = {
    "memory is changed without the lock": ("threads: four appends", "loop"),
    "who was answered lets a job lie": (
        "threads: answered with a job in hand",
        "told: task 0 to pwrite, task 1 to unlock, task 0, task 2",
    ),
    "of many threads one is answered": ("threads: four appends", "seed-{}"),
    "others come between a cut and its append": (
        "threads: what leaders send among appends and reads",
        "loop-{}",
    ),
    "a stream takes the epoch late": ("threads: a stream under a purge", "loop-{}"),
    "an abandoned store gives up its lock at once": (
        "threads: abandoning under calls",
        "seed-{}",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found_in_an_order_of_threads(mutant: Mutant) -> None:
    history, order = PLANTED[mutant.name]
    with mutant.applied():
        assert any(every_order.replay(history, order.format(number)) for number in range(60))
