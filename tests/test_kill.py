"""A process that writes with everything on is killed, again and again, on one directory."""

from __future__ import annotations

from pathlib import Path

from tests.torture.kills import Killer

KILLS = 10


def test_what_was_acknowledged_before_each_of_ten_kills_is_there_afterwards(
    tmp_path: Path,
) -> None:
    killer = Killer(tmp_path / "node", seed=1)
    for _ in range(KILLS):
        killer.kill_once()
    assert killer.kills == KILLS
    assert killer.early < KILLS
    assert killer.answers > 100
    assert killer.ledger.last is not None
