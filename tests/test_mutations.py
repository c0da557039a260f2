"""The power cut tests can fail: each write rule is switched off once, and the images tell."""

from __future__ import annotations

import pytest

from tests.torture.histories import History
from tests.torture.ledger import Violation
from tests.torture.mutations import MUTATIONS, Mutation

SEEDS = range(40)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_rule_that_is_switched_off_is_found_by_a_power_cut(mutation: Mutation) -> None:
    with mutation.applied(), pytest.raises(Violation):
        for seed in SEEDS:
            History(seed, failing_share=mutation.failing_share, wrap=mutation.wrap).run()


def test_every_write_rule_is_switched_off_at_least_once() -> None:
    assert {mutation.rule for mutation in MUTATIONS} == set(range(9))
