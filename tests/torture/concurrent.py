"""Random histories of the whole store: many tasks, cancellations, callbacks, sync policies.

The store's threads are real, so one seed is one script of calls but not one interleaving. While
a sync runs, the event loop is given a number of turns, so that appends do fall into it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any

from hqlwal_raft import LogId, RaftLogStorage, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import MemoryKernel

from .core import DIRECTORY
from .images import Examiner, Recorder
from .ledger import Ledger, Node, Span, Violation

Call = Callable[[], Coroutine[Any, Any, None]]

__all__ = ["Calls", "ConcurrentHistory"]


class ConcurrentHistory:
    """Runs one seed's script of calls and examines the images of the power cuts in it."""

    def __init__(
        self,
        seed: int,
        *,
        lives: int = 3,
        moments_per_life: int = 16,
        images_per_moment: int = 2,
        wrap: Callable[[Environment], Environment] | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.lives = lives
        self.moments_per_life = moments_per_life
        self.images_per_moment = images_per_moment
        self.examiner = Examiner(
            rng,
            rng.choice((8192, 8192, 16384)),
            count(1),
            rng.choice((96, 96, 100, 0, 480, 1500)),
            wrap,
        )
        self.steps = Counter[str]()
        self._disk = MemoryKernel(page_bytes=rng.choice((4096, 512)))
        self._ledger = Ledger()
        self._terms = count(2)
        # used in the store's threads
        self._point_rng = random.Random(seed + 2)
        self._point_lock = threading.Lock()
        self._killed: tuple[MemoryKernel, Span] | None = None
        self._loop: asyncio.AbstractEventLoop

    def run(self) -> Counter[str]:
        """What was tried; raises Violation where a promise was broken."""
        for life in range(self.lives):
            try:
                self._live()
            except Violation as violation:
                raise Violation(f"life {life}: {violation}") from violation
        return self.examiner.tried

    def _live(self) -> None:
        rng, disk, ledger = self.rng, self._disk, self._ledger
        recorder = Recorder(disk, ledger, self._point_rng, share=0.7)
        disk.on_point = lambda what, path: self._at_point(recorder, what, path)
        self._killed = None
        asyncio.run(asyncio.wait_for(self._use(ledger, recorder), 60))
        disk.on_point = None
        recorder.take("closed")
        moments = rng.sample(recorder.moments, min(len(recorder.moments), self.moments_per_life))
        self.examiner.examine(moments, ledger, per_moment=self.images_per_moment)
        end = rng.choice(("close", "kill", "cut", "cut"))
        self.steps[end] += 1
        at, is_power_lost = ledger.now, False
        match end:
            case "cut":
                moment = rng.choice(recorder.moments)
                disk, at, is_power_lost = moment.snapshot.image(rng), moment.at, True
            case "kill" if self._killed:
                disk, at = self._killed
            case _:
                disk = disk.after_kill()
        core, view = self.examiner.open(disk, f"after {end}")
        try:
            ledger.judge(view, at, is_power_lost=is_power_lost)
            if end == "close":
                ledger.judge_closed(view)
        except Violation as violation:
            raise Violation(f"after {end}: {violation}") from None
        core.abandon()
        self._disk, self._ledger = disk.after_kill(), ledger.after(view)

    def _at_point(self, recorder: Recorder, what: str, path: str) -> None:
        with self._point_lock:
            recorder.point(what, path)
            if self._killed is None and self._point_rng.random() < 0.02:
                earliest = recorder.ledger.clock
                twin = recorder.disk.after_kill()
                self._killed = twin, Span(earliest, recorder.ledger.clock)
            turns = self._point_rng.choice((0, 1, 2, 5, 12))
        if what.startswith("syncing") and threading.current_thread() != threading.main_thread():
            self._let_the_loop_turn(turns)

    def _let_the_loop_turn(self, turns: int) -> None:
        done = threading.Event()

        def turn(left: int) -> None:
            if left:
                self._loop.call_soon(turn, left - 1)
            else:
                done.set()

        self._loop.call_soon_threadsafe(turn, turns)
        done.wait(10)

    # --- what is done with the store -----------------------------------------------------

    async def _use(self, ledger: Ledger, recorder: Recorder) -> None:
        rng = self.rng
        self._loop = asyncio.get_running_loop()
        policy = rng.choice(("immediate", "immediate", "immediate_async", "interval_1"))
        async with RaftLogStorage.open(
            DIRECTORY,
            sync=policy,
            segment_size=self.examiner.segment_size,
            max_unsynced_bytes=rng.choice((1000, 20_000, 1 << 20)),
            cache_bytes=rng.choice((0, 2000, 1 << 20)),
            environment=self.examiner.meddled(recorder.disk),
        ) as store:
            is_immediate = policy == "immediate"
            calls = Calls(self.examiner, self._terms, store, ledger, is_immediate=is_immediate)
            tasks: list[asyncio.Task[None]] = []
            for _ in range(rng.randint(5, 40)):
                call = calls.choose()
                self.steps[call.__name__.strip("_")] += 1
                task = asyncio.create_task(call())
                tasks.append(task)
                # The first step of a call is taken in the order of the calls: yield once.
                for _ in range(rng.choice((1, 1, 1, 2, 4))):
                    await asyncio.sleep(0)
                if rng.random() < 0.1 and not task.done():
                    task.cancel()
                    self.steps["cancelled"] += 1
                elif rng.random() < 0.35:
                    await asyncio.wait([task])
                    recorder.take("acknowledged")
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise Violation(f"a call failed: {result!r}") from result
            await store.flush()
            shown = await store.try_get_log_entries(0)
            if shown != [node.entry for node in ledger.live]:
                raise Violation("the log shown is not the log written")
            if await store.read_vote() != ledger.vote:
                raise Violation("the vote shown is not the vote saved")
            ledger.durable(ledger.live)


class Calls:
    """The calls of a store, each noted in the ledger as it begins and as it is answered."""

    def __init__(
        self,
        examiner: Examiner,
        terms: Iterator[int],
        store: RaftLogStorage,
        ledger: Ledger,
        *,
        is_immediate: bool,
    ) -> None:
        self._examiner = examiner
        self._rng = examiner.rng
        self._terms = terms
        self._store = store
        self._ledger = ledger
        self._is_immediate = is_immediate
        #: appended with a callback: accepted, though only in memory where the policy is immediate
        self._accepted: set[Node] = set()

    def choose(self) -> Call:
        calls: list[tuple[int, Call]] = [
            (34, self._append),
            (18, self._append_with_callback),
            (8, self._truncate),
            (7, self._purge),
            (2, self._purge_everything),
            (6, self._vote),
            (6, self._commit),
            (6, self._flush),
        ]
        return self._rng.choices([call for _, call in calls], [weight for weight, _ in calls])[0]

    def _noted(self) -> tuple[list[Node], list[int]]:
        rng, examiner = self._rng, self._examiner
        how_many = rng.choice((1, 1, 1, 1, 2, 3, 8, 40))
        sizes = [examiner.payload_bytes] * how_many
        if rng.random() < 0.2:
            sizes = [rng.choice((0, 1, 96, 400, 3000)) for _ in sizes]
        if rng.random() < 0.03:  # larger than a segment
            sizes[rng.randrange(how_many)] = rng.randint(8000, 30000)
        return self._ledger.append(examiner.entries(self._ledger, how_many, sizes=sizes)), sizes

    async def _append(self) -> None:
        nodes, _ = self._noted()
        await self._store.append([node.entry for node in nodes])
        if self._is_immediate:
            self._ledger.durable(nodes)
        else:
            self._ledger.readable(nodes)

    async def _append_with_callback(self) -> None:
        nodes, _ = self._noted()
        told = asyncio.Event()

        def callback(error: BaseException | None) -> None:
            assert error is None
            assert not told.is_set(), "told twice"
            told.set()
            self._ledger.durable(nodes)

        await self._store.append([node.entry for node in nodes], callback)
        if self._is_immediate:
            self._accepted.update(nodes)
        else:
            self._ledger.readable(nodes)
        await told.wait()

    async def _truncate(self) -> None:
        live = self._ledger.live
        if not live:
            return
        place = self._rng.choice((0, -1, -1, max(-4, -len(live)), self._rng.randrange(len(live))))
        log_id = live[place].entry.log_id
        cut = self._ledger.truncate(log_id.index)
        self._ledger.term = next(self._terms)
        await self._store.truncate(log_id)
        self._ledger.cut_durable(cut)

    async def _purge(self) -> None:
        live = self._ledger.live
        if live:
            await self._purge_to(live[self._rng.randrange((len(live) + 1) // 2)].entry.log_id)

    async def _purge_everything(self) -> None:
        last = self._ledger.last or LogId(1, 0)
        beyond = self._rng.choice((0, 1, 10))
        if self._ledger.live or beyond:
            node_id = 0 if beyond else last.node_id
            await self._purge_to(LogId(last.term, last.index + beyond, node_id))

    async def _purge_to(self, log_id: LogId) -> None:
        frontier = self._ledger.purge(log_id)
        await self._store.purge(log_id)
        self._ledger.saved(frontier)

    async def _vote(self) -> None:
        term = next(self._terms)
        vote = Vote(term, self._rng.choice((None, 7, "n" * 1000)), self._rng.random() < 0.5)
        now, early = self._ledger.clock, self._accepted
        accepted = [n for n in self._ledger.live if n.readable <= now or n in early]
        saved = self._ledger.save_vote(vote)
        await self._store.save_vote(vote)
        self._ledger.saved(saved)
        self._ledger.durable(accepted)  # a vote is saved in order with the appends
        self._ledger.term = max(self._ledger.term, term)

    async def _commit(self) -> None:
        log_id = self._rng.choice(
            [None, self._ledger.last, *(node.entry.log_id for node in self._ledger.live[-5:])]
        )
        self._ledger.save_committed(log_id)
        await self._store.save_committed(log_id)

    async def _flush(self) -> None:
        accepted = list(self._ledger.live)
        await self._store.flush()
        self._ledger.durable(accepted)
