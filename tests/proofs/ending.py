"""What a history leaves behind is judged: descriptors, the lock, the log that opens again.

It is opened on what the disk shows, and on what a power cut would have left. For the proofs that
play histories with ``store.Player``. It must not know the engine.
"""

from __future__ import annotations

import gc
from typing import NamedTuple

from hqlwal_raft import WalLockedError
from hqlwal_raft.testing._kernel import Image
from tests.torture.ledger import Ledger, View, Violation

from .machine import Kernel, Machine, oldest
from .store import Player, look, opened

__all__ = ["Moment", "images", "judge_disk", "judge_moment"]


class Moment(NamedTuple):
    """What a power cut would leave at one moment, and what must be there."""

    images: list[tuple[str, Image]]
    ledger: Ledger


async def judge_disk(
    player: Player, machine: Kernel, *, is_healing: bool = False, is_interrupted: bool = False
) -> None:
    """What is there at the end: descriptors, the lock, the log."""
    player.store = None
    if is_interrupted and machine.open_descriptors:
        gc.collect()
    # an interrupt between a call and the note of its result loses a descriptor: nobody can help it
    if machine.open_descriptors and not is_interrupted:
        player.problem("descriptor", "the end", f"left open: {machine.open_descriptors}")
    ledger = player.ledger
    is_exact = player.is_closed_cleanly and not player.has_unknown
    left = images(machine)
    if is_interrupted:
        machine = Machine.of(machine.image())
    view = await _reopen(player, machine, "opened again", is_healing=is_healing)
    if view is not None:
        _hold(player, ledger, view, "opened again", is_exact=is_exact)
    for story, image in left:
        view = await _reopen(player, Machine.of(image), story, is_healing=is_healing)
        if view is not None:
            _hold(player, ledger, view, story, is_power_lost=True)


def _hold(
    player: Player,
    ledger: Ledger,
    view: View,
    story: str,
    *,
    is_exact: bool = False,
    is_power_lost: bool = False,
) -> None:
    try:
        # of a store that was poisoned only what was durable is promised
        ledger.judge(view, is_power_lost=is_power_lost or player.is_poisoned)
        if is_exact:
            ledger.judge_closed(view)
    except Violation as violation:
        player.problem("lost", story, violation)


def images(machine: Kernel) -> list[tuple[str, Image]]:
    """What a power cut leaves, where that is anything else than what the disk shows."""
    shown = machine.image()
    snapshot = machine.snapshot()
    found: list[tuple[str, Image]] = []
    for story, has_new_names in (("power cut", False), ("power cut, names kept", True)):
        image = oldest(snapshot, has_new_names=has_new_names)
        if image != shown and all(image != other for _, other in found):
            found.append((story, image))
    return found


async def judge_moment(player: Player, moment: Moment, *, is_healing: bool) -> None:
    for when, image in moment.images:
        story = f"{when} right after the fault"
        view = await _reopen(player, Machine.of(image), story, is_healing=is_healing)
        if view is not None:
            _hold(player, moment.ledger, view, story, is_power_lost=True)


async def _reopen(player: Player, machine: Kernel, story: str, *, is_healing: bool) -> View | None:
    """What a store shows there; it must open, and take one more entry."""
    try:
        async with opened(machine, auto_heal=is_healing) as store:
            view = await look(store)
            ledger = player.ledger.after(view)
            follower = Player(machine, {}, player.tasks, ledger, numbers=player.numbers)
            follower.store = store
            await follower.round("append 300")
            await follower.round("read")
    except WalLockedError as error:
        player.problem("lock", story, repr(error))
        return None
    except Exception as error:
        player.problem("refused", story, repr(error))
        return None
    for problem in follower.problems:
        player.problem(problem.kind, f"{story}, then {problem.where}", problem.what)
    return view
