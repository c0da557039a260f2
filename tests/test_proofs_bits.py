"""Each bit of small logs flipped: the right entries or a typed error, never anything else.

Here every eleventh bit, which meets all eight of a byte in turn; ``python -m tests.proofs`` flips
them all.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.proofs.every_bit import Bits, run
from tests.proofs.mutants import CHECKSUMS, Mutant

STRIDE = 11


@cache
def bits() -> Bits:
    return run(stride=STRIDE, has_padding=False)


def test_bits_of_every_file_were_flipped() -> None:
    counts = bits().counts
    assert bits().is_complete
    assert counts["flips"] > 2000
    assert all(counts[kind] for kind in ("right", "shorter", "refused", "healed"))


def test_no_flipped_bit_changes_what_a_log_shows() -> None:
    assert [str(flaw) for flaw in bits().flaws.values()] == []


def test_what_is_refused_for_damaged_entries_can_be_healed() -> None:
    assert "not healed" not in bits().flaws


def test_an_open_that_is_refused_leaves_the_directory_as_it_was() -> None:
    assert "refused after a change" not in bits().flaws


@pytest.mark.parametrize("mutant", CHECKSUMS, ids=lambda mutant: mutant.name)
def test_every_missing_checksum_is_found(mutant: Mutant) -> None:
    with mutant.applied():
        assert run(stride=STRIDE, has_padding=False, stops_at_first=True).flaws
