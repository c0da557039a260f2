"""Every call is cancelled at every step of its wait, under asyncio and trio.

A sample of what ``tests.proofs`` plays in full: every 17th scene, and all openings.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.proofs import every_cancellation
from tests.proofs.every_cancellation import MANNERS, SCENES, Finding, Scene

#: coprime to the numbers of calls, policies and manners that the scenes are made of
STRIDE = 17


@pytest.fixture(scope="module")
def outcome() -> tuple[list[Finding], Counter[str]]:
    return every_cancellation.run(stride=STRIDE)


def test_a_cancelled_open_leaves_a_directory_that_can_be_opened_at_once(
    outcome: tuple[list[Finding], Counter[str]],
) -> None:
    found = [each for each in outcome[0] if each.kind == "D.4"]
    assert not found, "\n".join(map(str, found[:5]))


def test_a_cancellation_leads_to_no_fault_of_a_kind_without_a_name(
    outcome: tuple[list[Finding], Counter[str]],
) -> None:
    found = [each for each in outcome[0] if each.kind not in every_cancellation.KINDS]
    assert not found, "\n".join(map(str, found[:5]))


def test_the_sample_cancels_in_every_manner_and_while_calls_wait(
    outcome: tuple[list[Finding], Counter[str]],
) -> None:
    tried = outcome[1]
    assert all(tried[manner] for manner in MANNERS)
    assert tried["cancellations"] > len(SCENES) // STRIDE


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("target", ["append 300", "truncate 2", "purge 6", "vote", "read"])
def test_a_call_waits_for_several_steps_and_is_then_answered(target: str, manner: str) -> None:
    scene = Scene(target, "*", "immediate", 0, manner, 3)
    assert scene in SCENES
    assert 3 <= every_cancellation.steps_of(scene) < 100
    assert Scene.parse(str(scene)) == scene
