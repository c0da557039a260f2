"""Random histories on a disk that forgets, one life of the store after the other.

One seed is one history, step for step: everything runs in this thread, and what happens
"while" a sync runs happens inside of that sync.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from itertools import count

from hqlwal_raft import LogId, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel

from .core import CHORES, Core
from .images import Examiner, Recorder
from .ledger import Ledger, Node, Span, Violation

__all__ = ["History"]


class History:
    """Runs the history of one seed and examines the images of the power cuts in it."""

    def __init__(
        self,
        seed: int,
        *,
        lives: int = 4,
        moments_per_life: int = 24,
        images_per_moment: int = 2,
        failing_share: float = 0.0,
        wrap: Callable[[Environment], Environment] | None = None,
    ) -> None:
        self.wrap = wrap
        #: of all lives, how many meet a sync that fails
        self.failing_share = failing_share
        self.rng = rng = random.Random(seed)
        self.lives = lives
        self.moments_per_life = moments_per_life
        self.images_per_moment = images_per_moment
        page_bytes = rng.choice((4096, 512))
        segment_size = rng.choice((8192, 8192, 12288, 16384, 32768))
        # Mostly one size for all, so that records written after a crash end where remains of
        # older ones may begin: 96 gives records of 128 bytes, which no page border cuts.
        payload_bytes = rng.choice((96, 96, 100, 0, 224, 480, 992, 1500))
        self.is_even = rng.random() < 0.7
        self.examiner = Examiner(rng, segment_size, count(1), payload_bytes, wrap)
        self.steps = Counter[str]()
        self._disk = MemoryKernel(page_bytes=page_bytes)
        self._ledger = Ledger()
        self._pending: list[Node] = []
        self._terms = count(2)
        self._is_in_commit = False
        self._killed: tuple[MemoryKernel, Span] | None = None

    def run(self) -> Counter[str]:
        """What was tried; raises Violation where a promise was broken."""
        for life in range(self.lives):
            try:
                self._live(is_last=life == self.lives - 1)
            except Violation as violation:
                raise Violation(f"life {life}: {violation}") from violation
        return self.examiner.tried

    # --- one life ------------------------------------------------------------------------

    def _live(self, *, is_last: bool) -> None:
        rng, disk, ledger = self.rng, self._disk, self._ledger
        recorder = Recorder(disk, ledger, rng, share=0.6)
        disk.on_point = lambda what, path: self._at_point(recorder, what, path)
        self._killed, self._pending = None, []
        self._is_in_commit = False
        self._is_buffered = rng.random() < 0.4
        environment = FailingEnvironment(disk)
        try:
            core = self._core = Core(
                self._meddled(environment),
                self.examiner.segment_size,
                is_buffered=self._is_buffered,
            )
        except Exception as error:
            raise Violation(f"opening: {error!r}") from error
        recorder.take("opened")
        end = rng.choice(("close", "kill", "cut", "cut"))
        if rng.random() < self.failing_share:
            environment.fail("fdatasync", errno.EIO, nth=rng.randint(1, 30))
        try:
            for _ in range(rng.randint(4, 24)):
                self._step(core, ledger)
                recorder.take("acknowledged")
            if end == "close":
                core.close()
                ledger.durable(self._pending)
                recorder.take("closed")
        except Exception as error:
            if environment.failed == 0:
                raise Violation(f"a call failed: {error!r}") from error
            end = rng.choice(("failed", "cut"))  # nothing is retried: this life is over
            self.steps["failed sync"] += 1
        disk.on_point = None
        moments = rng.sample(recorder.moments, min(len(recorder.moments), self.moments_per_life))
        self.examiner.examine(moments, ledger, per_moment=self.images_per_moment)
        if is_last:
            return
        self.steps[end] += 1
        at, is_power_lost = ledger.now, False
        match end:
            case "close":
                next_disk = disk.after_kill()
            case "failed":  # what was only readable may have been lost with the sync
                next_disk, is_power_lost = disk.after_kill(), True
            case "kill":
                next_disk, at = self._killed_midway() or (disk.after_kill(), ledger.now)
            case _:
                moment = rng.choice(recorder.moments)
                next_disk, at, is_power_lost = moment.snapshot.image(rng), moment.at, True
        core.abandon()
        self._begin_again(next_disk, at, end, is_power_lost=is_power_lost)

    def _begin_again(self, disk: MemoryKernel, at: Span, end: str, *, is_power_lost: bool) -> None:
        """Opens the disk to see what is there, then gives it to the next life as it is."""
        core, view = self.examiner.open(disk, f"after {end}")
        try:
            self._ledger.judge(view, at, is_power_lost=is_power_lost)
            if end == "close":
                self._ledger.judge_closed(view)
        except Violation as violation:
            raise Violation(f"after {end}: {violation}") from None
        core.abandon()
        self._disk = disk.after_kill()
        self._ledger = self._ledger.after(view)

    def _killed_midway(self) -> tuple[MemoryKernel, Span] | None:
        return self._killed

    def _meddled(self, environment: Environment) -> Environment:
        return environment if self.wrap is None else self.wrap(environment)

    def _at_point(self, recorder: Recorder, what: str, path: str) -> None:
        recorder.point(what, path)
        if self._killed is None and self.rng.random() < 0.02:
            self._killed = recorder.disk.after_kill(), recorder.ledger.now
        if self._is_in_commit and what == "syncing" and self.rng.random() < 0.4:
            self._is_in_commit = False  # once for each commit
            if self._core.is_ready and self.rng.random() < 0.6:
                self._append(self._core, self._ledger)
                recorder.take("appended while syncing")
            elif (chore := self._chore(self._core)) is not None:
                self.steps[f"{chore} in a commit"] += 1
                recorder.take(f"{chore} while syncing")

    # --- steps ---------------------------------------------------------------------------

    def _step(self, core: Core, ledger: Ledger) -> None:
        steps: list[tuple[int, Callable[[Core, Ledger], None]]] = [
            (30, self._append_and_sync),
            (24, self._append),
            (8, self._sync),
            (9, self._truncate),
            (7, self._purge),
            (2, self._purge_everything),
            (4, self._do_chores),
            (9, self._do_one_chore),
            (2, self._mark),
            (6, self._vote),
            (6, self._commit),
        ]
        core.environment.sleep(self.rng.choice((0, 0, 0, 0.004, 0.02, 2)))
        step = self.rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
        self.steps[step.__name__.strip("_")] += 1
        step(core, ledger)

    def _append(self, core: Core, ledger: Ledger) -> None:
        rng = self.rng
        how_many = rng.choice((1, 1, 2, 3, 8, 20, 40, 70))
        sizes = None
        if not self.is_even:
            sizes = [rng.choice((0, 1, 50, 96, 400, 3000)) for _ in range(how_many)]
        if rng.random() < 0.04:  # larger than a segment
            sizes = [self.examiner.payload_bytes] * (how_many - 1)
            sizes.insert(rng.randrange(how_many), rng.randint(8000, 40000))
        entries = self.examiner.entries(ledger, how_many, sizes=sizes)
        nodes = ledger.append(entries)
        core.append(entries)
        if self._is_buffered:
            ledger.readable(nodes)
        self._pending += nodes

    def _sync(self, core: Core, ledger: Ledger) -> None:
        covered = list(self._pending)
        self._is_in_commit = True
        core.sync()
        self._is_in_commit = False
        ledger.durable(covered)
        del self._pending[: len(covered)]

    def _append_and_sync(self, core: Core, ledger: Ledger) -> None:
        self._append(core, ledger)
        self._sync(core, ledger)

    def _truncate(self, core: Core, ledger: Ledger) -> None:
        if not ledger.live:
            return
        first, last = ledger.live[0].entry.index, ledger.live[-1].entry.index
        index = self.rng.choice((last, max(first, last - 3), self.rng.randint(first, last), first))
        cut = ledger.truncate(index)
        core.truncate(index)
        ledger.cut_durable(cut)
        self._settle(ledger)
        ledger.term = next(self._terms)

    def _purge(self, core: Core, ledger: Ledger) -> None:
        if not ledger.live:
            return
        node = self.rng.choice(ledger.live[: -len(ledger.live) // 2] or ledger.live)
        self._purge_to(node.entry.log_id, core, ledger)

    def _purge_everything(self, core: Core, ledger: Ledger) -> None:
        last = ledger.last
        beyond = self.rng.choice((0, 0, 1, 10))
        if last is None:
            last = LogId(1, 0)
        if not ledger.live and beyond == 0:
            return
        log_id = LogId(last.term, last.index + beyond, last.node_id if not beyond else 0)
        self._purge_to(log_id, core, ledger)

    def _purge_to(self, log_id: LogId, core: Core, ledger: Ledger) -> None:
        frontier = ledger.purge(log_id)
        core.purge(log_id)
        ledger.saved(frontier)
        self._settle(ledger)
        if self.rng.random() < 0.7:
            core.do_chores()

    def _settle(self, ledger: Ledger) -> None:
        """What was waiting for a sync has had it."""
        ledger.durable(self._pending)
        self._pending = []

    def _do_chores(self, core: Core, _ledger: Ledger) -> None:
        core.do_chores()

    def _do_one_chore(self, core: Core, _ledger: Ledger) -> None:
        self._chore(core)

    def _chore(self, core: Core) -> str | None:
        """One of those that there are to do."""
        chores = self.rng.sample(list(CHORES), len(CHORES))
        return next((chore for chore in chores if core.do(chore)), None)

    def _mark(self, core: Core, ledger: Ledger) -> None:
        core.mark()
        self._settle(ledger)

    def _vote(self, core: Core, ledger: Ledger) -> None:
        term = next(self._terms)
        long = "".join(self.rng.choices("nö", k=self.rng.randint(400, 512)))
        node_id = self.rng.choice((None, 1, self.rng.getrandbits(64), long, "knoten-ä"))
        vote = Vote(term, node_id, self.rng.random() < 0.5)
        saved = ledger.save_vote(vote)
        core.save_vote(vote)
        ledger.saved(saved)
        if self.rng.random() < 0.5:
            ledger.term = term

    def _commit(self, core: Core, ledger: Ledger) -> None:
        choices = [None, ledger.last, *(node.entry.log_id for node in ledger.live[-5:])]
        log_id = self.rng.choice(choices)
        ledger.save_committed(log_id)
        core.save_committed(log_id)
