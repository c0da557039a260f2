"""What a power cut leaves: draws images of a forgetful disk and holds each to the ledger."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from hqlwal_raft import Entry, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import record_bytes
from hqlwal_raft._records import scan
from hqlwal_raft.audit import examine
from hqlwal_raft.testing import MemoryKernel, Snapshot

from .core import DIRECTORY, Core
from .ledger import Ledger, Span, View, Violation

__all__ = ["Examiner", "Moment", "Recorder"]


@dataclass(frozen=True, slots=True)
class Moment:
    """The disk at one moment, and when that was by the ledger's clock."""

    point: str
    snapshot: Snapshot[MemoryKernel]
    at: Span


@dataclass(slots=True)
class Recorder:
    """Takes moments from a disk while a store works on it, a share of all there are."""

    disk: MemoryKernel
    ledger: Ledger
    rng: random.Random
    share: float = 1.0
    moments: list[Moment] = field(default_factory=list)

    def point(self, what: str, path: str) -> None:
        # A store alone is seldom of interest: the next sync point has the same images.
        share = self.share * (0.1 if what in ("writing", "written", "created") else 1)
        if self.rng.random() < share:
            self.take(f"{what} {path.rpartition('/')[2]}")

    def take(self, point: str) -> None:
        earliest = self.ledger.clock
        snapshot = self.disk.snapshot()
        self.moments.append(Moment(point, snapshot, Span(earliest, self.ledger.clock)))


@dataclass(slots=True)
class Examiner:
    """Opens images and judges what they show. Counts what it tried."""

    rng: random.Random
    segment_size: int
    #: node ids: each entry has one of its own, so that no two are alike
    numbers: count[int]
    #: the size of most payloads, so that new records line up with the remains of old ones
    payload_bytes: int
    #: puts something between the engine and an image's disk, for the mutation table
    wrap: Callable[[Environment], Environment] | None = None
    tried: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> int:
        return self.tried["images"]

    def examine(self, moments: list[Moment], ledger: Ledger, *, per_moment: int) -> None:
        for moment in moments:
            for image in moment.snapshot.images(self.rng, per_moment):
                self.tried["first cuts"] += 1
                self.hold(image, ledger, moment.at, f"power cut at {moment.point!r}", depth=0)

    def hold(
        self, image: MemoryKernel, ledger: Ledger, at: Span, story: str, *, depth: int
    ) -> None:
        """Opens an image, judges it, and cuts the power again: within recovery and after."""
        self.tried["images"] += 1
        if self.rng.random() < 0.1 and f"{DIRECTORY}/meta.hql" in image.contents():
            self._count_remains(image)
        again = depth < 2 and self.rng.random() < (0.5 if depth == 0 else 0.25)
        recovery = Recorder(image, ledger, self.rng)
        if again:
            image.on_point = lambda what, path: recovery.moments.append(
                Moment(f"{what} {path.rpartition('/')[2]}", image.snapshot(), at)
            )
        core, view = self.open(image, story)
        image.on_point = None
        try:
            ledger.judge(view, at)
        except Violation as violation:
            raise Violation(f"{story}: {violation}") from None
        if again:
            for moment in self._some(recovery.moments, 2):
                self.tried["cuts in recovery"] += 1
                self.hold(
                    moment.snapshot.image(self.rng),
                    ledger,
                    at,
                    f"{story}, again in recovery at {moment.point!r}",
                    depth=depth + 1,
                )
        if depth < 2 and self.rng.random() < 0.5:
            self._go_on(image, core, ledger.after(view), story, depth=depth)
        core.abandon()

    def _count_remains(self, image: MemoryKernel) -> None:
        """Counts how often the interesting case occurs: whole records behind a torn one."""
        self.tried["looked at for remains"] += 1
        for segment in examine(DIRECTORY, environment=image).segments:
            if not segment.has_bytes_behind or segment.header is None:
                continue
            self.tried["torn tails"] += 1
            data = image.contents()[segment.path]
            size = record_bytes(self.payload_bytes)
            for count_ in range(1, 64):
                start, id_ = segment.end + count_ * size, segment.next_id + count_
                if scan(data[start:], start, segment.header.salt, id_, len(data)).offsets:
                    self.tried["remains that would line up"] += 1
                    break

    def open(self, disk: MemoryKernel, story: str) -> tuple[Core, View]:
        """Opens a store on a disk; whatever keeps it from opening is a violation."""
        try:
            core = Core(self.meddled(disk), self.segment_size)
            return core, core.view()
        except Exception as error:
            raise Violation(f"{story}: {type(error).__name__}: {error}") from error

    def meddled(self, disk: MemoryKernel) -> Environment:
        return disk if self.wrap is None else self.wrap(disk)

    def _go_on(
        self, disk: MemoryKernel, core: Core, ledger: Ledger, story: str, *, depth: int
    ) -> None:
        """Appends to what was recovered, and votes; that must survive the next cut."""
        recorder = Recorder(disk, ledger, self.rng, share=0.5)
        recorder.take("opened")
        disk.on_point = recorder.point
        entries = self.entries(ledger, self.rng.choice((1, 1, 1, 2, 3, 5)))
        nodes = ledger.append(entries)
        try:
            if self.rng.random() < 0.3:
                self._vote(core, ledger)
            core.append(entries)
            core.sync()
        except Exception as error:
            raise Violation(f"{story}, then appending: {error!r}") from error
        ledger.durable(nodes)
        disk.on_point = None
        recorder.take("acknowledged")
        for moment in self._some(recorder.moments, 2):
            self.tried["second cuts"] += 1
            self.hold(
                moment.snapshot.image(self.rng),
                ledger,
                moment.at,
                f"{story}, opened, appended to {entries[-1].index}, cut at {moment.point!r}",
                depth=depth + 1,
            )

    def _vote(self, core: Core, ledger: Ledger) -> None:
        term = ledger.vote.term + 1 if ledger.vote is not None else 1
        vote = Vote(term, f"{next(self.numbers)}, ".zfill(self.rng.choice((8, 700))))
        saved = ledger.save_vote(vote)
        core.save_vote(vote)
        ledger.saved(saved)

    def _some(self, moments: list[Moment], count: int) -> list[Moment]:
        return self.rng.sample(moments, min(count, len(moments)))

    def entries(
        self, ledger: Ledger, how_many: int, *, sizes: list[int] | None = None
    ) -> list[Entry]:
        """Entries that continue the ledger's log."""
        last = ledger.last
        index = self.rng.choice((0, 1, 1, 1, 7)) if last is None else last.index + 1
        term = max(last.term if last else 1, ledger.term)
        result = []
        for position in range(how_many):
            size = sizes[position] if sizes else self.payload_bytes
            payload = self.rng.choice((self.rng.randbytes, self.rng.randbytes, bytes))(size)
            result.append(Entry(term, index + position, payload, next(self.numbers)))
        return result
