"""Finds a shorter history that breaks the same promise: actions are left out, as many as can be.

It must not know what an action is; only numbers, and whoever plays them.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["shorten"]


def shorten(
    numbers: frozenset[int], still_fails: Callable[[frozenset[int]], bool], most_plays: int = 150
) -> frozenset[int]:
    """The smallest part of ``numbers`` found within ``most_plays`` that still fails.

    Large pieces are tried first, then smaller ones, until none can be left out.
    """
    kept = sorted(numbers)
    size = max(1, len(kept) // 2)
    plays = 0
    while True:
        place, is_shorter = 0, False
        while place < len(kept) and plays < most_plays:
            tried = kept[:place] + kept[place + size :]
            plays += 1
            if still_fails(frozenset(tried)):
                kept, is_shorter = tried, True
            else:
                place += size
        if plays >= most_plays or (size == 1 and not is_shorter):
            return frozenset(kept)
        size = max(1, size // 2)
