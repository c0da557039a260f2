"""Group commit: whom a commit will answer, when it begins, and what its end means for them.

For the owner of the log. What is accepted while a commit is under way waits, as one group, for
the next one; so one sync serves all who append at the same time.

| the next commit begins                 | under                | where                           |
|----------------------------------------|----------------------|---------------------------------|
| at once                                | both ``immediate``   | the last one served one append  |
| when tasks that are ready had their go | both ``immediate``   | the last one served several     |
| when the alarm rings                   | ``interval``         |                                 |
| at once                                | ``interval``         | two segments wait for a seal    |
| at once                                | all                  | a flush or an operation waits   |

It must not know what else is called, nor in which order.
"""

from __future__ import annotations

from functools import partial

from . import _commits, _operations
from ._answers import Answer, clear, own, torn
from ._calls import Operation
from ._environment import Loop
from ._log import Log
from ._measures import Measures
from ._on_lane import OnLane, carry_out_on_lane
from ._phases import Order, Phase
from ._plans import Outcome
from ._threads import Worker
from ._watchdog import Step, Watch
from .protocols import AppendCallback

__all__ = ["GroupCommit"]

#: a tail that nothing was written to for so long gets its durable mark
_IDLE_SECONDS = 1.0

_COMMIT = "commit"


class GroupCommit:
    """See the module."""

    def __init__(
        self,
        log: Log,
        interval_seconds: float,
        loop: Loop,
        disk: Worker,
        watch: Watch,
        measures: Measures,
        lane: OnLane,
        order: Order,
    ) -> None:
        self._log = log
        self._interval_seconds = interval_seconds
        self._loop = loop
        self._disk = disk
        self._watch = watch
        self._measures = measures
        self._lane = lane
        self._monotonic = log.directory.environment.monotonic
        #: None at the end: a cycle would keep the threads' descriptors until the next collection
        self._order: Order | None = order
        #: whom the next commit to begin will answer, and whom the one under way
        self.group: Answer | None = None
        self.under_way: Answer | None = None
        self.is_wanted = False
        self._is_coming = False
        # whether the last commit served more than one append, and how many there were before it
        self._is_crowded = False
        self.appends_before = 0
        #: entries that a refused commit took back last: the first, one past the last, and why
        self._taken_back: tuple[int, int, BaseException] | None = None
        self._is_alarm_set = False
        self._is_idle_alarm_set = False
        self._last_seconds = 0.0

    def end(self) -> None:
        """The store is closed, or abandoned: nothing begins any more."""
        self._order = None

    # --- who waits -------------------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the commit under way."""
        group = self.under_way
        return group is not None and (group.is_awaited or bool(group.callbacks))

    def next_group(self) -> Answer:
        if self.group is None:
            self.group = Answer(self._loop.event())
        return self.group

    def accepted(self, callback: AppendCallback | None) -> Answer:
        """An append was accepted: the Answer of the commit that makes it durable."""
        group = self.group
        if group is None:
            group = self.group = Answer(self._loop.event())
        if callback is not None:
            group.callbacks.append(callback)
        if self._interval_seconds and not self.is_wanted:
            if not self._is_alarm_set:
                self._disk.set_alarm(self._interval_seconds, self._alarm)
                self._is_alarm_set = True
        else:
            self.is_wanted = True
            if self.under_way is None:
                self.begin_when_all_are_in()
        return group

    def follow(self, answer: Answer) -> None:
        """Answers with the next commit, and wants it."""
        self.next_group().followers.append(answer)
        self.is_wanted = True

    def flush(self, answer: Answer) -> None:
        """Answers once everything accepted before is durable."""
        group = self.under_way
        if not self._log.is_clean and (group is None or self.group is not None):
            self.follow(answer)
        elif group is not None:
            group.followers.append(answer)
        else:
            answer.give(self._loop, None, None)

    def durable_answer(self, index: int) -> Answer | None:
        """The answer of the commit that makes an accepted entry durable."""
        return self.under_way if index < self._log.in_flight_next else self.next_group()

    def check_taken_back(self, index: int) -> None:
        """Raises, for an entry that the log does not hold, what the append of it was answered."""
        if self._taken_back is not None:
            first, following, error = self._taken_back
            if first <= index < following:
                raise own(error)  # type: ignore[misc]

    # --- when it begins --------------------------------------------------------------------

    def begin_when_all_are_in(self) -> None:
        """Begins the commit that is wanted: at once for one who appends alone; else when all
        tasks that are ready to run have had their turn, so that it serves them too.
        """
        if not self.is_wanted or self.under_way is not None:
            return
        if not self._is_crowded:
            self._begin()
        elif not self._is_coming:
            self._set_idle_alarm()  # it finds what an interrupt may have had forgotten
            (self._loop.gather or self._loop.soon)(self._begin_now)
            self._is_coming = True

    def _begin_now(self) -> None:
        self._is_coming = False
        order = self._order
        if order is None or not self.is_wanted or self.under_way is not None:
            return
        try:
            self._begin()
        except BaseException as error:
            order.fall(error)
            raise

    def _begin(self) -> None:
        order = self._order
        if order is None or not order.is_lane_free or not order.is_living:
            return
        log, measures = self._log, self._measures
        now = self._monotonic()
        plan = _commits.begin_commit(log, now)
        if plan is None:
            self.is_wanted = False
            return
        log.is_changing = True
        self.is_wanted = False
        self.under_way, self.group = self.group or Answer(self._loop.event()), None
        self._is_crowded = measures.appends > self.appends_before + 1
        self.appends_before = measures.appends
        self._last_seconds = now
        self._watch.lane = Step(now, plan.name)
        self._disk.submit(
            partial(carry_out_on_lane, self._watch, log.directory, plan),
            partial(self._carried, self.under_way),
        )
        log.is_changing = False

    def _alarm(self) -> None:
        self._is_alarm_set = False
        order = self._order
        if order is not None and order.is_open:
            self.is_wanted = True
            order.advance()

    # --- how it ends -----------------------------------------------------------------------

    def _carried(self, group: Answer, outcome: Outcome, error: BaseException | None) -> None:
        order = self._order
        if order is None:
            return
        try:
            self._ended(group, outcome if error is None else Outcome(error=error), order)
        except BaseException as failure:
            order.fall(failure)
            raise

    def _ended(self, group: Answer, outcome: Outcome, order: Order) -> None:
        log = self._log
        if log.is_changing:
            order.fall(torn())
        if group is not self.under_way:
            return  # poison came in between, and answered; or it was applied already
        if not order.is_living:
            self.under_way = None
            order.advance()
            return
        if outcome.error is None:
            _commits.committed(log, outcome)
            self._measures.synced(outcome.seconds)
            self._measures.has_room(_COMMIT)
            group.give(self._loop, None, None)
            self.under_way = None
            order.has_changed(by_commit=True)
            if not self._is_idle_alarm_set:
                self._set_idle_alarm()
        elif outcome.is_refused and not log.options.is_buffered:
            self._measures.lacks_space(_COMMIT, outcome.error)
            self._take_back(group, outcome.error)
            order.has_changed(by_commit=False)
        else:
            order.fall(outcome.error)
        order.advance()

    def _take_back(self, group: Answer, error: BaseException) -> None:
        """Nothing was stored: what was accepted goes again, also what came after."""
        log = self._log
        clear(error)
        first, accepted_next = log.first_index, log.next_index or 0
        _commits.retreat(log)
        if log.next_index is None and self._order is not None:
            self._order.must_begin_with(first)
        self._taken_back = (log.next_index or 0, accepted_next, error)
        group.give(self._loop, None, error)
        if self.group is not None:
            self.group.give(self._loop, None, error)
        self.under_way = self.group = None

    def answer_all(self, error: BaseException) -> None:
        """Poison, or the end."""
        groups = [self.under_way, self.group]
        self.under_way = self.group = None
        for group in groups:
            if group is not None:
                group.give(self._loop, None, error)

    # --- the mark of a tail that rests -------------------------------------------------------

    def _set_idle_alarm(self) -> None:
        order = self._order
        if not self._is_idle_alarm_set and order is not None and order.is_open:
            self._disk.set_alarm(_IDLE_SECONDS, self._idle_alarm)
            self._is_idle_alarm_set = True

    def _idle_alarm(self) -> None:
        self._is_idle_alarm_set = False
        order = self._order
        if order is None or order.phase is not Phase.OPEN:
            return
        now = self._log.directory.environment.monotonic()
        if self._is_coming:
            self._begin_now()
        if now - self._last_seconds < _IDLE_SECONDS or not order.is_lane_free:
            self._set_idle_alarm()
        elif (work := _operations.mark(self._log, now)) is not None:
            answer = Answer(self._loop.event())
            self._lane.lay_on(Operation(answer, lambda: work, is_quiet=False), is_need=True)
