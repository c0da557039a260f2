"""The lean way of an append does as the general one: the same files, the same memory, the same
refusals. It is left out for one of two twins, and both are given the same calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hqlwal_raft import Entry, LogId, WalError, _appending
from hqlwal_raft._appending import append
from hqlwal_raft._commits import begin_commit, committed
from hqlwal_raft._environment import Environment
from hqlwal_raft._log import Log
from hqlwal_raft._operations import make_room, name_first, prepare, purge
from hqlwal_raft._options import Opening
from hqlwal_raft._plans import carry_out, drive
from hqlwal_raft._segment import Segment
from hqlwal_raft._truncating import truncate

SEGMENT_SIZE = 8192
POLICIES = ("immediate", "immediate_async", "interval_5")


def places_of(segment: Segment) -> list[tuple[int, int]]:
    """Where each of its records begins, as far as that is known without reading."""
    assert segment.places is not None
    return [segment.places.before(record) for record in range(len(segment.places))]


class Same(int):
    """A number of another type."""


class Dealt(Environment):
    """The real system, with the same chance for both."""

    def __init__(self) -> None:
        self._rng = random.Random(7)

    def getrandbits(self, bits: int) -> int:
        return self._rng.getrandbits(bits)


class Twin:
    """An open log."""

    def __init__(self, folder: Path, policy: str, *, check_raft: bool, is_lean: bool) -> None:
        self.folder = folder / str(is_lean)
        self.is_lean = is_lean
        self.lean_appends = 0
        opening = Opening(
            sync=policy,
            segment_size=SEGMENT_SIZE,
            max_entry_size=3000,
            check_raft=check_raft,
            environment=Dealt(),
        )
        self.log = opening.open_log(str(self.folder))

    def append(self, entries: list[Entry]) -> Any:
        """What it raised, if it did."""
        original: Callable[[Log, Any], bool] = _appending._append_one

        def append_one(log: Log, some: list[Entry]) -> bool:
            is_done = self.is_lean and original(log, some)
            self.lean_appends += is_done
            return is_done

        log = self.log
        with mock.patch.object(_appending, "_append_one", append_one):
            try:
                while (need := append(log, entries)) is not None:
                    if need.lengths:
                        drive(prepare(log, need), log.directory)
                    elif need.room is not None:
                        drive(make_room(log, need.room), log.directory)
                    elif need.is_seal:
                        log.to_seal.clear()
                    else:
                        drive(name_first(log, need.name), log.directory)
            except (WalError, TypeError, ValueError) as error:
                return type(error), str(error)
        return None

    def commit(self, now: float) -> None:
        plan = begin_commit(self.log, now)
        if plan is not None:
            committed(self.log, carry_out(self.log.directory, plan))

    def facts(self) -> object:
        log = self.log
        return (
            log.state,
            log.first_index,
            log.next_index,
            log.written_next,
            log.least_term,
            (log.appended_entries, log.appended_bytes, log.durable_entries, log.is_clean),
            log.is_changing,
            log.recent.read(log.recent.first_index or 0, log.next_index or 0),
            log.recent.bytes,
            [(s.name, s.first_id, s.next_id, s.end, places_of(s)) for s in log.segments],
            [(u.segment.name, u.offset, b"".join(u.parts)) for u in log.unsynced.unwritten],
            [segment.name for segment in log.unsynced.dirty],
        )

    def files(self) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in self.folder.iterdir()}


def _batch(rng: random.Random, log: Log) -> list[Entry]:
    """One entry, mostly a plain one that may come next."""
    index: Any = log.next_index if log.next_index is not None else rng.choice((0, 1, 5))
    term: Any = max(log.last_log_id.term if log.last_log_id else 1, 1)
    node_id = 0
    payload: Any = bytes(rng.choice((0, 1, 60, 900, 2500)))
    match rng.randrange(16):
        case 0:
            term += rng.choice((-1, 1, 1000))
        case 1:
            index += rng.choice((-1, 1))
        case 2:
            node_id = rng.choice((3, 1 << 63, -1, 1 << 64, True, Same(3)))
        case 3:
            payload = rng.choice((bytearray(b"x"), memoryview(b"y"), "text", bytes(3001)))
        case 4:
            index = Same(index)
        case 5:
            term = rng.choice((Same(term), True, 1.0, -1, 1 << 64))
        case 6:
            return [(term, index, payload, node_id)]  # type: ignore[list-item]
    return [Entry(term, index, payload, node_id)]


@pytest.mark.parametrize("check_raft", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_lean_way_of_an_append_does_as_the_general_one(
    tmp_path: Path, policy: str, check_raft: bool
) -> None:
    lean_appends = 0
    for seed in range(12):
        lean, general = (
            Twin(tmp_path / str(seed), policy, check_raft=check_raft, is_lean=is_lean)
            for is_lean in (True, False)
        )
        rng = random.Random(seed)
        for step in range(100):
            batch = _batch(rng, lean.log)
            assert lean.append(batch) == general.append(batch), (seed, step, batch)
            if rng.random() < 0.2:
                lean.commit(step)
                general.commit(step)
            if rng.random() < 0.04 and lean.log.count > 4 and lean.log.is_clean:
                index = lean.log.first_index + rng.randrange(1, lean.log.count)
                for twin in (lean, general):
                    drive(truncate(twin.log, index), twin.log.directory)
            if rng.random() < 0.03 and lean.log.count > 4 and lean.log.is_clean:
                last = lean.log.last_log_id
                assert last is not None
                beyond = LogId(last.term + rng.choice((0, 2)), last.index + rng.choice((1, 9)))
                for twin in (lean, general):
                    drive(purge(twin.log, beyond), twin.log.directory)
            assert lean.facts() == general.facts(), (seed, step, batch)
        assert lean.files() == general.files()
        assert general.lean_appends == 0
        lean_appends += lean.lean_appends
        for twin in (lean, general):
            twin.log.release()
            twin.log.directory.close()
    assert lean_appends > 200
