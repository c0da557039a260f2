"""WalJournal against a list, with what is hidden beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from pysyncobj import SyncObjConf

from hqlwal_raft.pysyncobj import WalJournal

Entry = tuple[bytes, int, int]


class FakeNode:
    """A node that is past its start: what a dump leaves hidden stays hidden."""

    conf = SyncObjConf(journalFile="x")

    def __init__(self) -> None:
        self._SyncObj__needLoadDumpFile = False  # where the journal looks: in the node itself


class JournalAgainstList(RuleBasedStateMachine):
    """``visible`` is what pysyncobj must see, ``stored`` what may come back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="hqlwal-model-")
        self.journal: WalJournal | None = None
        self.thread: ThreadPoolExecutor | None = None
        self.visible: list[Entry] = []
        self.stored: list[Entry] = []
        self.term = 1
        self.vote: tuple[int, Any] = (0, None)

    @initialize(
        is_attached=st.booleans(),
        first=st.integers(1, 3),
        cache=st.sampled_from([0, 2000]),
        is_main=st.booleans(),
    )
    def begin(self, *, is_attached: bool, first: int, cache: int, is_main: bool) -> None:
        self.is_attached, self.first, self.cache = is_attached, first, cache
        self.thread = None if is_main else ThreadPoolExecutor(1)
        self.open()

    def call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What changes the journal is called from the main thread, or always from another."""
        if self.thread is None:
            return method(*arguments, **named)
        return self.thread.submit(method, *arguments, **named).result()

    def open(self) -> None:
        self.journal = WalJournal(
            self.folder + "/journal",
            cache_bytes=self.cache,
            segment_size=8192,
            allow_no_dump=True,
        )
        if self.is_attached:
            self.node = FakeNode()
            self.journal.attach(self.node)

    def next_index(self) -> int:
        return self.visible[-1][1] + 1 if self.visible else self.first

    def add(self, entry: Entry) -> None:
        assert self.journal is not None
        self.call(self.journal.add, *entry)
        self.visible.append(entry)
        if self.stored and self.stored[0][1] <= entry[1] <= self.stored[-1][1]:
            position = entry[1] - self.stored[0][1]
            if self.stored[position] == entry:
                return
            del self.stored[position:]
        self.stored.append(entry)

    @rule(count=st.integers(1, 20), size=st.sampled_from([0, 10, 700]))
    def add_new(self, count: int, size: int) -> None:
        for _ in range(count):
            self.add((b"x" * size, self.next_index(), self.term))

    @rule(count=st.integers(1, 20))
    def add_again(self, count: int) -> None:
        for _ in range(count):
            hidden = [e for e in self.stored if e[1] == self.next_index()]
            for entry in hidden[:1]:
                self.add(entry)

    @rule()
    def begin_a_term(self) -> None:
        self.term += 1

    @rule(position=st.integers(0, 60))
    def delete_from(self, position: int) -> None:
        assert self.journal is not None
        if position < len(self.visible):
            self.first = self.visible[position][1]
        self.call(self.journal.deleteEntriesFrom, position)
        del self.visible[position:]

    @rule(position=st.integers(0, 60))
    def delete_to(self, position: int) -> None:
        assert self.journal is not None
        self.first = self.next_index() if position >= len(self.visible) else self.first
        self.call(self.journal.deleteEntriesTo, position)
        if self.visible and position:
            lowest = self.visible[0][1] + position
            if position >= len(self.visible):
                self.stored = []
            self.visible = self.visible[position:]
            self.stored = [e for e in self.stored if e[1] >= lowest]

    @precondition(lambda self: self.stored and self.visible)
    @rule(data=st.data(), is_known=st.booleans(), differs_at=st.integers(0, 2))
    def load_dump(self, data: st.DataObject, *, is_known: bool, differs_at: int) -> None:
        assert self.journal is not None
        lowest, highest = self.stored[0][1], self.stored[-1][1]
        index = data.draw(st.integers(lowest, highest if is_known else highest + 5))
        known = {e[1]: e for e in self.stored}
        dump = [known.get(i, (b"dump", i, self.term)) for i in (index, index + 1)]
        if differs_at < 2:
            dump[differs_at] = (b"differs", index + differs_at, self.term)
        self.call(self.journal.clear)
        assert len(self.journal) == 0
        for entry in dump:
            self.call(self.journal.add, *entry)
        if known.get(index) == dump[0] and known.get(index + 1) == dump[1]:
            self.stored = [e for e in self.stored if e[1] >= index]
            self.visible = list(dump) if self.is_attached else list(self.stored)
        else:
            self.visible, self.stored = list(dump), list(dump)

    @rule(node=st.one_of(st.none(), st.text(max_size=20), st.integers(0, 9)))
    def vote_for(self, node: Any) -> None:
        assert self.journal is not None
        self.vote = (self.vote[0], node)  # the same term: hidden entries stay hidden
        self.call(self.journal.setCurrentTerm, *self.vote)

    @rule()
    def end_a_tick(self) -> None:
        assert self.journal is not None
        if self.is_attached:
            self.call(
                self.journal.hold_answer, "leader", reset=False, next_index=None, success=True
            )
            self.call(self.journal.release_answers)

    @rule()
    def restart(self) -> None:
        assert self.journal is not None
        self.call(self.journal._destroy)
        if self.is_attached:
            self.visible = list(self.stored)  # Raft's log was never cut
        else:
            self.stored = list(self.visible)
        self.open()

    @invariant()
    def agrees(self) -> None:
        if self.journal is None:
            return
        assert len(self.journal) == len(self.visible)
        assert list(self.journal[:]) == self.visible
        assert (self.journal.getCurrentTerm(), self.journal.getVotedForNodeId()) == self.vote
        for position in (0, 1, len(self.visible) // 2, -1):
            if -len(self.visible) <= position < len(self.visible):
                assert self.journal[position] == self.visible[position]
                assert (
                    list(self.journal[position : position + 2])
                    == (self.visible[position : position + 2])
                )

    def teardown(self) -> None:
        if self.journal is not None:
            self.call(self.journal._destroy)
            if self.thread is not None:
                self.thread.shutdown()
        shutil.rmtree(self.folder)


TestJournalAgainstList = JournalAgainstList.TestCase
TestJournalAgainstList.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
