"""The power cut tests can fail: each write rule is switched off once, and the images tell."""

from __future__ import annotations

import pytest

from tests.torture.histories import History
from tests.torture.ledger import Violation
from tests.torture.mutations import MUTATIONS, Mutation

SEEDS = range(80)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_rule_that_is_switched_off_is_found_by_a_power_cut(mutation: Mutation) -> None:
    with mutation.applied(), pytest.raises(Violation):
        for seed in (mutation.seed, *SEEDS):
            History(seed, failing_share=mutation.failing_share, wrap=mutation.wrap).run()


def test_every_write_rule_that_a_power_cut_can_show_is_switched_off_at_least_once() -> None:
    # 0 and 6, which name is used when, and 8 and 9, when to refuse and when to poison, are held
    # by the loops of calls and faults
    assert {mutation.rule for mutation in MUTATIONS} == {None, 1, 2, 3, 4, 5, 7, 10}
