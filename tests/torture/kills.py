"""Kills for real: a process that writes with everything on dies by SIGKILL, again and again.

The victim tells what it begins and what was answered through a pipe, before and after each call;
the ledger is kept outside, in the process that kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote
from hqlwal_raft._environment import Environment

from .concurrent import Calls
from .core import Core
from .images import Examiner
from .ledger import Frontier, Ledger, Node, SavedVote, View, Violation

__all__ = ["Killer"]

SEGMENT_SIZE = 32768
_LENGTH = struct.Struct(">I")

# --- the victim --------------------------------------------------------------------------


def _tell(*message: object) -> None:
    data = pickle.dumps(message)
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(1, data) :]


def _ids(nodes: Sequence[Node]) -> list[LogId]:
    return [node.entry.log_id for node in nodes]


class _TellingLedger(Ledger):
    """Tells every fact as it is noted: what begins before the call, what is answered after."""

    def append(self, entries: Sequence[Entry]) -> list[Node]:
        _tell("append", entries)
        return super().append(entries)

    def truncate(self, index: int) -> list[Node]:
        _tell("truncate", index)
        return super().truncate(index)

    def purge(self, log_id: LogId) -> Frontier:
        _tell("purge", log_id)
        return super().purge(log_id)

    def save_vote(self, vote: Vote) -> SavedVote:
        _tell("save_vote", vote)
        return super().save_vote(vote)

    def save_committed(self, log_id: LogId | None) -> None:
        _tell("save_committed", log_id)
        super().save_committed(log_id)

    def readable(self, nodes: Sequence[Node]) -> None:
        _tell("readable", _ids(nodes))
        super().readable(nodes)

    def durable(self, nodes: Sequence[Node]) -> None:
        _tell("durable", _ids(nodes))
        super().durable(nodes)

    def cut_durable(self, nodes: Sequence[Node]) -> None:
        _tell("cut_durable", _ids(nodes))
        super().cut_durable(nodes)

    def saved(self, item: Frontier | SavedVote) -> None:
        saved = item.log_id if isinstance(item, Frontier) else item.vote
        _tell("saved", saved)
        super().saved(item)


async def _write_until_killed(directory: str, seed: int, first_number: int) -> None:
    rng = random.Random(seed)
    policy = rng.choice(("immediate", "immediate", "immediate_async", "interval_2"))
    examiner = Examiner(rng, SEGMENT_SIZE, count(first_number), rng.choice((96, 400, 1500)))
    async with RaftLogStorage.open(
        directory,
        sync=policy,
        segment_size=SEGMENT_SIZE,
        max_unsynced_bytes=rng.choice((2000, 1 << 20)),
        cache_bytes=rng.choice((0, 1 << 20)),
    ) as store:
        state = await store.get_log_state()
        view = View(
            state.last_purged_log_id,
            state.last_log_id,
            tuple(await store.try_get_log_entries(0)),
            await store.read_vote(),
            await store.read_committed(),
        )
        ledger = _silently(view)
        _tell("opened", view)
        first_term = 1 + max(view.last.term if view.last else 0, view.vote.term if view.vote else 0)
        ledger.term = first_term
        calls = Calls(
            examiner, count(first_term), store, ledger, is_immediate=policy == "immediate"
        )
        tasks: set[asyncio.Task[None]] = set()
        while True:
            task = asyncio.create_task(calls.choose()())
            tasks.add(task)
            await asyncio.sleep(0)
            if rng.random() < 0.05:
                task.cancel()
            if len(tasks) > rng.choice((1, 4, 16)):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for done in [task for task in tasks if task.done()]:
                tasks.discard(done)
                if not done.cancelled():
                    done.result()


def _silently(view: View) -> _TellingLedger:
    ledger = _TellingLedger()
    ledger.__dict__.update(Ledger(view).__dict__)
    return ledger


# --- the killer --------------------------------------------------------------------------


class Killer:
    """Starts a victim on a directory, kills it, compares what is left; as often as asked."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        self.ledger = Ledger()
        self.kills = 0
        #: calls that were answered before a kill
        self.answers = 0
        #: kills that came before the store was open
        self.early = 0
        self._view: View | None = None

    def kill_once(self) -> None:
        rng = self.rng
        is_early = rng.random() < 0.2
        command = [sys.executable, "-m", __name__]
        victim = subprocess.Popen(
            [*command, str(self.directory), str(rng.getrandbits(32)), str(self.kills * 10**6 + 1)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert victim.stdout is not None
        descriptor = victim.stdout.fileno()
        data = bytearray()
        try:
            if is_early:
                self._listen(descriptor, data, rng.uniform(0.05, 0.4), lambda: False)
            else:
                self._listen(descriptor, data, 30, lambda: bool(data))
                self._listen(descriptor, data, rng.uniform(0.005, 0.12), lambda: False)
            if victim.poll() is not None:
                raise Violation(f"the victim died by itself: {victim.returncode}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                victim.send_signal(signal.SIGKILL)
            victim.wait()
        self._listen(descriptor, data, 30, lambda: False)
        victim.stdout.close()
        self.kills += 1
        self._replay(data)
        self._compare()

    def _listen(
        self, descriptor: int, data: bytearray, seconds: float, is_enough: Callable[[], bool]
    ) -> None:
        """Reads what the victim tells until the time is over, its end, or ``is_enough``."""
        end = time.monotonic() + seconds
        poll = select.poll()  # select() takes no descriptor beyond 1,023
        poll.register(descriptor, select.POLLIN)
        while not is_enough() and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    return
                data += chunk

    def _replay(self, data: bytearray) -> None:
        position = 0
        is_open = False
        while position + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            if position + length > len(data):
                break  # killed in the middle of a word
            message = pickle.loads(data[position : position + length])
            position += length
            is_open = True
            self._note(*message)
        self.early += not is_open

    def _note(self, word: str, what: Any) -> None:
        ledger = self.ledger
        match word:
            case "opened":
                if self._view is not None and what != self._view:
                    raise Violation("the victim opened to something else than its killer saw")
            case "append" | "truncate" | "purge" | "save_vote" | "save_committed":
                getattr(ledger, word)(what)
            case "saved":
                self.answers += 1
                ledger.saved(ledger.find_saved(what))
            case _:
                self.answers += 1
                getattr(ledger, word)([ledger.node(log_id) for log_id in what])

    def _compare(self) -> None:
        if not self.directory.is_dir():
            return
        try:
            core = Core(Environment(), SEGMENT_SIZE, directory=str(self.directory))
            view = core.view()
        except Exception as error:
            raise Violation(f"after kill {self.kills}: {error!r}") from error
        try:
            # nothing is lost but what was in the victim's own memory
            self.ledger.judge(view, is_power_lost=False)
        except Violation as violation:
            raise Violation(f"after kill {self.kills}: {violation}") from None
        self.ledger = self.ledger.after(view)
        self._view = view
        if self.rng.random() < 0.3:
            core.close()
        else:
            core.abandon()


if __name__ == "__main__":
    asyncio.run(_write_until_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
