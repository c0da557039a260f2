"""Several callers of one store, in an order that a chooser decides: what they do and are told.

For ``every_order``. Every read is held against a ledger of what was begun and acknowledged, and so
is what a reopen finds. It knows only the public interface.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from hqlwal_raft import Entry, LogId, RaftLogStorage, Vote, WalClosedError, WalError
from hqlwal_raft._environment import LOCK_UN
from hqlwal_raft.errors import LogRangeError
from tests.torture.ledger import NEVER, Ledger, Node, View, Violation

from . import loops
from .machine import Inline
from .orders import Chooser
from .owner import guarded
from .threaded import Locks
from .turns import CALLS, OrderedLoop, SteppedThread, Thing, here

__all__ = ["History", "Op", "Run"]


class Op(NamedTuple):
    """One call: which, and its numbers."""

    kind: str
    a: int = 0
    b: int = 0

    def __str__(self) -> str:
        return f"{self.kind}({self.a}, {self.b})"


@dataclass(frozen=True)
class History:
    """Tasks that call one store at the same time."""

    name: str
    #: of each task, its calls
    tasks: tuple[tuple[Op, ...], ...]
    #: entries of so many bytes that are there at the beginning, in cold segments
    sizes: tuple[int, ...] = (2000,) * 12
    policy: str = "immediate"
    cache_bytes: int = 0
    max_unsynced_bytes: int = 64 << 20
    #: tasks that may be cancelled
    cancelled: tuple[int, ...] = ()
    #: the sync of the history that fails
    failing_sync: int = 0
    #: the sync of the history that does not come back before all others have what they can have
    hanging_sync: int = 0
    #: threads stop at each call of the system, else only where they wait for a job
    is_fine: bool = True
    #: the fault of today's engine that it shows
    fault: str = ""
    #: an order that takes more departures than are counted through
    told: str = ""
    #: the face on which the calls are made: "async", by tasks, or "blocking", by threads
    face: str = "async"

    def __str__(self) -> str:
        return f"{self.name}: " + " | ".join(", ".join(map(str, ops)) for ops in self.tasks)


#: the calls that change what is in a directory
_CHANGES = ("pwrite", "pwritev", "ftruncate", "posix_fallocate", "rename", "link", "unlink")


class _System(Locks):
    """A sync of it fails, or hangs, where the history says so. It complains of who writes without
    the lock.
    """

    syncs_left = 0
    hangs_left = 0
    #: who waits for a disk that hangs
    hung: SteppedThread | None = None
    #: to wait for something with ``items``
    items: tuple[None, ...] = ()

    def __init__(self, complain: Callable[[str], object]) -> None:
        super().__init__()
        self._complain = complain
        self._has_lock = True
        self._sync, self._flock = self.fdatasync, self.flock
        self.fdatasync, self.flock = self._failing, self._noted

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if name in _CHANGES and not self._has_lock:
            self._complain(f"{name} when the lock was given up")
        return super()._call(name, call, *args, **options)

    def answer(self) -> None:
        """The disk answers."""
        thread, self.hung = self.hung, None
        if thread is not None:
            thread.waits_for = None

    def _failing(self, descriptor: int) -> None:
        self.hangs_left -= 1
        thread = here()
        if self.hangs_left == 0 and thread is not None:
            self.hung, thread.waits_for = thread, self
            thread.stop_at("fdatasync, hung")
        self.syncs_left -= 1
        if self.syncs_left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(descriptor)

    def _noted(self, descriptor: int, operation: int) -> None:
        self._flock(descriptor, operation)
        self._has_lock = not operation & LOCK_UN


class Run:
    """One history in one order."""

    def __init__(self, history: History, directory: str) -> None:
        self.history = history
        entries = tuple(
            Entry(1, index, (b"%d." % index).ljust(size, b"x"), node_id=index)
            for index, size in enumerate(history.sizes, 1)
        )
        self.ledger = Ledger(View(None, entries[-1].log_id, entries, None, None))
        self.problems: list[tuple[str, str]] = []
        self.system = _System(partial(self.problem, "owner"))
        self.directory = directory
        self.loop = OrderedLoop(self.system)
        #: what went, one after the other
        self.steps = self.loop.steps
        self.is_closing = False
        #: a truncation was refused, and the ledger has what was appended behind it
        self.is_refused = False
        #: calls without an answer
        self.waiting: list[str] = []
        self._next_node_id = 1000
        self._told: list[list[Any]] = []
        self._undelivered: dict[int, asyncio.Task[None]] = {}
        self.chooser: Chooser

    def problem(self, kind: str, what: str) -> None:
        self.problems.append((kind, what))

    def live(self) -> None:
        """The history, and the end of the store."""
        loops.run_asyncio(self.loop, self.main)

    async def main(self) -> None:
        history, system = self.history, self.system
        async with RaftLogStorage.open(
            self.directory,
            sync=history.policy,
            segment_size=8192,
            cache_bytes=history.cache_bytes,
            max_unsynced_bytes=history.max_unsynced_bytes,
            check_raft=False,  # tasks vote at once
            environment=system,
        ) as store:
            if history.is_fine:
                system.stops = frozenset(CALLS)
            system.syncs_left = history.failing_sync
            tasks = [
                asyncio.create_task(self._task(store, ops), name=str(number))
                for number, ops in enumerate(history.tasks)
            ]
            self._undelivered = {number: tasks[number] for number in history.cancelled}
            self.loop.others = self._cancellations
            system.chooser = self.chooser
            with guarded(lambda: here() is None, partial(self.problem, "owner")):
                await asyncio.gather(*tasks, return_exceptions=True)
            system.chooser = None
            system.stops = frozenset()
            await asyncio.sleep(0.001)
        for told in self._told:
            if len(told) != 1:
                self.problem("answer", f"a callback was called {len(told)} times")

    def begin(self, op: Op) -> None:
        """Right before a call is made, and noted in the ledger."""

    def _cancellations(self) -> list[Thing]:
        return [
            _Cancellation(self, number, task)
            for number, task in self._undelivered.items()
            if not task.done()
        ]

    # --- calls ---------------------------------------------------------------------------

    async def _task(self, store: RaftLogStorage, ops: Sequence[Op]) -> None:
        for op in ops:
            if self.is_refused:
                return
            self.waiting.append(str(op))
            self.begin(op)
            try:
                await getattr(self, f"_{op.kind}")(store, op.a, op.b)
            except WalClosedError:
                if not self.is_closing:
                    self.problem("error", f"{op}: closed")
            except (WalError, OSError) as error:
                self.is_refused |= op.kind == "truncate" and isinstance(error, OSError)
                if not self.history.failing_sync:
                    kind = "read" if op.kind in ("read", "limited") else "error"
                    self.problem(kind, f"{op} raised {error!r}"[:200])
            except Exception as error:
                self.problem("error", f"{op} raised {error!r}"[:200])
            self.waiting.remove(str(op))

    def _entries(self, number: int, size: int) -> list[Entry]:
        last = self.ledger.last
        index = last.index + 1 if last else 1
        result = []
        for each in range(index, index + number):
            self._next_node_id += 1
            result.append(Entry(2, each, b"." * size, self._next_node_id))
        return result

    async def _append(self, store: RaftLogStorage, number: int, size: int) -> None:
        batch = self._entries(number, size)
        nodes = self.ledger.append(batch)
        await store.append(batch)
        if self.history.policy == "immediate":
            self.ledger.durable(nodes)
        else:
            self.ledger.readable(nodes)

    async def _callback(self, store: RaftLogStorage, number: int, does_raise: int) -> None:
        told: list[Any] = []

        def tell(error: BaseException | None) -> None:
            told.append(error)
            if error is None:
                self.ledger.durable(nodes)
            if does_raise:
                raise asyncio.CancelledError

        self._told.append(told)
        batch = self._entries(number, 64)
        nodes = self.ledger.append(batch)
        try:
            await store.append(batch, tell)
        except Exception:
            if not told:  # nor may it be called any more
                self._told = [each for each in self._told if each is not told]
            raise
        self.ledger.readable(nodes)

    async def _truncate(self, store: RaftLogStorage, back: int, _: int) -> None:
        """Cuts off the last ``back`` entries of those that were appended so far."""
        live = self.ledger.live
        if not live:
            return
        index = live[max(len(live) - back, 0)].entry.index
        cut = self.ledger.truncate(index)
        await store.truncate(LogId(2, index))
        self.ledger.cut_durable(cut)

    async def _receive(self, store: RaftLogStorage, back: int, size: int) -> None:
        """What a leader sends: an entry that is held, and two in the place of the last ``back``."""
        live = self.ledger.live
        kept = live[: max(len(live) - back, 0)]
        held = [node.entry for node in kept[-1:]]
        prev = kept[-2].entry.log_id if kept[1:] else self.ledger.frontier
        cut = self.ledger.truncate(live[len(kept)].entry.index) if live[len(kept) :] else []
        batch = self._entries(2, size)
        nodes = self.ledger.append(batch)
        outcome = await store.append_after(prev, held + batch)
        if not outcome.matched or outcome.appended != 2 or (cut and not outcome.truncated_from):
            self.problem("answer", f"receive({back}) says {outcome}")
        if cut:
            self.ledger.cut_durable(cut)
        if self.history.policy == "immediate":
            self.ledger.durable(nodes)
        else:
            self.ledger.readable(nodes)

    async def _purge(self, store: RaftLogStorage, number: int, _: int) -> None:
        live = self.ledger.live
        if not live:
            return
        log_id = live[min(number, len(live)) - 1].entry.log_id
        frontier = self.ledger.purge(log_id)
        await store.purge(log_id)
        self.ledger.saved(frontier)

    async def _vote(self, store: RaftLogStorage, term: int, _: int) -> None:
        saved = self.ledger.save_vote(Vote(term, 1))
        await store.save_vote(saved.vote or Vote(term))
        self.ledger.saved(saved)

    async def _flush(self, store: RaftLogStorage, _: int, __: int) -> None:
        nodes = [node for node in self.ledger.live if node.readable < NEVER]
        await store.flush()
        self.ledger.durable(nodes)

    async def _close(self, store: RaftLogStorage, _: int, __: int) -> None:
        self.is_closing = True
        await store.aclose()

    async def _abandon(self, store: Any, _: int, __: int) -> None:
        self.is_closing = True
        await store.abandon()

    async def _read(self, store: RaftLogStorage, start: int, stop: int) -> None:
        begun = self.ledger.tick()
        got = await store.try_get_log_entries(start, stop)
        self._judge_read(got, begun, range(start, stop))

    async def _limited(self, store: RaftLogStorage, start: int, max_bytes: int) -> None:
        begun = self.ledger.tick()
        got = await store.limited_get_log_entries(start, None, max_bytes)
        end = got[-1].index + 1 if got else start
        self._judge_read(got, begun, range(start, end))

    async def _stream(self, store: RaftLogStorage, start: int, _: int) -> None:
        position = start
        try:
            async with aclosing(store.entries_stream(start)) as stream:
                begun = self.ledger.tick()
                async for entry in stream:
                    self._judge_read([entry], begun, range(entry.index, entry.index + 1))
                    position = entry.index + 1
                    begun = self.ledger.tick()
        except LogRangeError:
            return
        frontier = self.frontier(begun)
        if frontier is not None and start < position <= frontier.index:
            self.problem("stream", f"ended before {position}, purged is up to {frontier.index}")

    def frontier(self, _begun: int) -> LogId | None:
        """What was purged when a step of a stream was over that began then."""
        return self.ledger.frontier

    def _judge_read(self, got: Sequence[Entry], begun: int, asked: range) -> None:
        """Nothing that was removed before it began, all that was there throughout."""
        ledger, ended = self.ledger, self.ledger.tick()
        frontiers = ledger._frontiers
        gone = max((f.log_id.index for f in frontiers if f.log_id and f.durable < begun), default=0)
        going = max((f.log_id.index for f in frontiers if f.log_id and f.begun < ended), default=0)
        nodes: list[Node] = []
        for entry in got:
            node = ledger._nodes.get(entry.log_id)
            if node is None or node.entry != entry or entry.index not in asked:
                self.problem("read", f"reads {entry.log_id}, which nobody wrote")
                return
            if node.cut_durable < begun:
                self.problem("read", f"reads {entry.log_id}, which was truncated before")
            if entry.index <= gone:
                self.problem("read", f"reads {entry.log_id}, which was purged before")
            if nodes and node.parent is not nodes[-1]:
                self.problem("read", f"reads {entry.log_id} behind {nodes[-1].entry.log_id}")
            nodes.append(node)
        for node in ledger._order:
            index = node.entry.index
            # where a sync fails, readers fall back to what is durable
            since = node.durable if self.history.failing_sync else min(node.readable, node.durable)
            is_there = since < begun and node.cut_begun > ended
            if is_there and index > going and index in asked and node not in nodes:
                self.problem("read", f"{node.entry.log_id} is missing from {len(got)} entries")

    # --- the end -------------------------------------------------------------------------

    def reopen(self) -> None:
        found: list[View] = []

        async def look() -> None:
            async with RaftLogStorage.open(
                self.directory, segment_size=8192, check_integrity=True, environment=turns
            ) as store:
                state = await store.get_log_state()
                found.append(
                    View(
                        state.last_purged_log_id,
                        state.last_log_id,
                        tuple(await store.try_get_log_entries(0)),
                        await store.read_vote(),
                        await store.read_committed(),
                    )
                )

        turns = Inline()
        try:
            loops.run("asyncio", look, turns)
            is_power_lost = bool(self.history.failing_sync)
            self.ledger.judge(found[0], is_power_lost=is_power_lost)
        except Violation as violation:
            self.problem("lost", str(violation))
        except Exception as error:
            self.problem("lost", f"opening again: {error!r}"[:250])
        finally:
            turns.drop_threads()


class _Cancellation:
    def __init__(self, run: Run, number: int, task: asyncio.Task[None]) -> None:
        self.name = f"cancel {number}"
        self._run, self._number, self._task = run, number, task

    def go(self) -> None:
        del self._run._undelivered[self._number]
        self._task.cancel()
