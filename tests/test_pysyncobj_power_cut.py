"""The journal of a node on a disk that forgets: whatever a power cut leaves, promises hold."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pysyncobj import SyncObjConf

from hqlwal_raft.pysyncobj import WalJournal
from hqlwal_raft.testing import MemoryKernel, Snapshot

Entry = tuple[bytes, int, int]

pytestmark = pytest.mark.usefixtures("calling_thread")


class FakeNode:
    conf = SyncObjConf(journalFile="x")

    def __init__(self, *, is_starting: bool) -> None:
        self._SyncObj__needLoadDumpFile = is_starting


@dataclass(frozen=True)
class Promise:
    """What the node answered for; every image must hold it."""

    entries: dict[int, Entry]
    vote: tuple[int, Any] = (0, None)
    #: the two entries that the dump file ends with; the dump itself is taken to be durable
    dump: tuple[Entry, Entry] | None = None


class History:
    """A node's life at random, with pictures of its disk taken all along."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.chance = random.Random(seed)  # of the threads of the engine
        self.disk = MemoryKernel(page_bytes=self.rng.choice((512, 4096)))
        self.promise = Promise({})
        self.pictures: list[tuple[Snapshot[MemoryKernel], Promise]] = []
        self.journal, self.node = open_on(self.disk, is_starting=False)
        self.disk.on_point = self.take_picture
        self.term = 1

    def take_picture(self, what: str, _path: str) -> None:
        if what == "syncing":
            time.sleep(0.001)  # a disk takes its time: whoever does not wait for it gets ahead
        if self.chance.random() < 0.25:
            before = self.promise
            snapshot = self.disk.snapshot()
            after = self.promise
            # The node lives on in another thread. What it came to promise meanwhile need not be
            # in the picture; what it no longer promises may be undone in it already.
            kept = {i: e for i, e in before.entries.items() if after.entries.get(i) == e}
            self.pictures.append((snapshot, Promise(kept, before.vote, after.dump)))

    def live(self, steps: int) -> None:
        self.journal.add(b"\x01", 1, 0)
        steps_there_are = [
            *[self.append] * 3,
            *[self.acknowledge] * 3,
            self.send_again,
            self.conflict,
            self.compact,
            self.install_dump,
            self.vote,
        ]
        for _ in range(steps):
            self.rng.choice(steps_there_are)()
        self.acknowledge()
        self.journal._destroy()
        self.disk.on_point = None

    def command(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 3, 90, 700)))

    def append(self) -> None:
        self.void_from(self.journal[-1][1] + 1)  # an older term's entries, hidden, are cut
        for _ in range(self.rng.randint(1, 12)):
            self.journal.add(self.command(), self.journal[-1][1] + 1, self.term)

    def acknowledge(self) -> None:
        self.journal.hold_answer("leader", reset=False, next_index=None, success=True)
        next_index = self.journal[-1][1] + 1
        for answer in self.journal.release_answers():
            assert answer.next_index >= next_index
        held = {e[1]: e for e in self.journal if e[1] < next_index}
        self.promise = replace(self.promise, entries=self.promise.entries | held)

    def send_again(self) -> None:
        if len(self.journal) > 2:
            # never into the dump: what is appended next may differ, and it holds what is committed
            position = self.rng.randrange(2, len(self.journal))
            again = list(self.journal[position : position + self.rng.randint(0, 8)])
            self.journal.deleteEntriesFrom(position)
            for one in again:
                self.journal.add(*one)
            self.journal.release_answers()  # the tick ends

    def conflict(self) -> None:
        self.begin_term(None)  # which shows what was hidden
        # not into the dump, which holds what is committed
        length = len(self.journal)
        position = self.rng.randint(min(max(2, length - 9), length), length)
        index = self.journal[0][1] + position
        self.void_from(index)
        self.journal.deleteEntriesFrom(index - self.journal[0][1])
        self.append()

    def begin_term(self, node: Any) -> None:
        self.term += 1
        self.journal.setCurrentTerm(self.term, node)
        self.promise = replace(self.promise, vote=(self.term, node))

    def vote(self) -> None:
        self.begin_term(self.rng.choice(("a:1", "b:2", None)))

    def void_from(self, index: int) -> None:
        kept = {i: e for i, e in self.promise.entries.items() if i < index}
        self.promise = replace(self.promise, entries=kept)

    def compact(self) -> None:
        if len(self.journal) > 3:
            position = self.rng.randrange(1, len(self.journal) - 1)
            first, second = self.journal[position : position + 2]
            self.promise = replace(self.promise, dump=(first, second))
            self.journal.deleteEntriesTo(position)

    def install_dump(self) -> None:
        if self.rng.random() < 0.5 and len(self.journal) > 3:
            position = self.rng.randrange(1, len(self.journal) - 1)
            first, second = self.journal[position : position + 2]
        else:
            index = self.journal[-1][1] + self.rng.randint(-5, 30)
            index = max(index, self.journal[0][1])
            self.begin_term(None)
            first, second = ((self.command(), i, self.term) for i in (index, index + 1))
            self.void_from(0)
        self.promise = replace(self.promise, dump=(first, second))
        self.journal.clear()
        self.journal.add(*first)
        self.journal.add(*second)


def open_on(disk: MemoryKernel, *, is_starting: bool) -> tuple[WalJournal, FakeNode]:
    journal = WalJournal("/node", environment=disk, segment_size=8192, allow_no_dump=True)
    node = FakeNode(is_starting=is_starting)
    journal.attach(node)
    return journal, node


def check(image: MemoryKernel, promise: Promise) -> None:
    """Starts a node on an image as pysyncobj does, and holds it to the promise."""
    journal, node = open_on(image, is_starting=True)
    try:
        if len(journal) == 0:
            journal.add(b"\x01", 1, 0)
        dump = promise.dump
        if dump is not None and tuple(journal[0:2]) != dump:
            journal.clear()
            for one in dump:
                journal.add(*one)
        node._SyncObj__needLoadDumpFile = False
        found = list(journal)
        assert [e[1] for e in found] == list(range(found[0][1], found[0][1] + len(found)))
        held = {e[1]: e for e in found}
        covered = -1 if dump is None else dump[1][1]
        for index, one in promise.entries.items():
            assert index <= covered or held.get(index) == one, f"entry {index} is lost"
        term, voted_for = journal.getCurrentTerm(), journal.getVotedForNodeId()
        assert term >= promise.vote[0]
        assert term > promise.vote[0] or voted_for == promise.vote[1]
        journal.setCurrentTerm(term + 1, None)
        journal.add(b"later", found[-1][1] + 1, term + 1)
    finally:
        journal._destroy()


@pytest.mark.parametrize("seed", range(12))
def test_what_was_answered_for_survives_a_power_cut(seed: int) -> None:
    history = History(seed)
    history.live(40)
    assert len(history.pictures) > 20
    for snapshot, promise in history.rng.sample(history.pictures, min(60, len(history.pictures))):
        check(snapshot.image(history.rng), promise)
