"""Chores: what keeps the house of a log, one at a time, on a thread of its own.

Preparing goes before sealing, and sealing before unlinking. Called by the committer, as the owner
of the log; the committer is asked what stands in the way, and told what an append waits for. It
must not know what is on the lane, nor who waits for what.

| a chore is | begun                                        | where it is refused                  |
|------------|----------------------------------------------|--------------------------------------|
| preparing  | where nothing is prepared, or an append      | unlinks go first, if there are any;  |
|            | needs a segment, or a filled one pays        | else whoever needs it is answered    |
| sealing    | once the follower's first record is durable  | another attempt after the next commit|
| unlinking  | once the frontier, or a cut, is durable      | the same, from the next name on      |
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial

from . import _operations
from ._answers import clear, describe, torn
from ._appending import SEALS_WAITING, Need
from ._directory import Directory
from ._log import Log
from ._measures import Measures
from ._phases import Order
from ._plans import Outcome, Plan, Work, carry_out
from ._threads import Worker
from ._watchdog import Watch

__all__ = ["Chores"]

logger = logging.getLogger("hqlwal_raft")

_PREPARE = "prepare"


class Chores:
    """See the module."""

    def __init__(
        self, log: Log, worker: Worker, watch: Watch, measures: Measures, committer: Order
    ) -> None:
        self._log = log
        self._worker = worker
        self._watch = watch
        self._measures = measures
        #: None at the end: a cycle would keep the threads' descriptors until the next collection
        self._committer: Order | None = committer
        # The chore under way.
        self._work: Work[None] | None = None
        self._name = ""
        #: not again on a full disk, until somebody needs a segment
        self._may_prepare_ahead = True
        #: what failed is tried again after the next commit, or operation
        self.may_seal = self.may_unlink = True

    @property
    def is_under_way(self) -> bool:
        return self._work is not None

    def end(self) -> None:
        """The store is closed, or abandoned: nothing is begun any more."""
        self._committer = None

    def go_on(self) -> None:
        """Starts the next chore, if there is one and nothing stands in its way."""
        committer, log = self._committer, self._log
        if self._work is not None or committer is None:
            return
        if not (log.to_seal or log.to_unlink) and log.prepared and not log.lacks_filling:
            return  # as mostly: called after each commit
        if not committer.is_open or committer.waits_for_quiet:
            return
        work: Work[None] | None = None
        if self._may_prepare_ahead:
            if not log.prepared:
                self.prepare(None)
                return
            if log.lacks_filling:
                self.prepare(Need((log.options.segment_size,)))
                return
        if self.may_seal:
            work = _operations.seal(log)
        if work is None and self.may_unlink:
            work = _operations.unlink(log)
        if work is not None:
            self._begin(work)

    def prepare(self, need: Need | None) -> None:
        """Prepares what an append needs, or, with None, the next segment ahead."""
        committer = self._committer
        if self._work is None and committer is not None and committer.is_open:
            self._begin(_operations.prepare(self._log, need))

    def _begin(self, work: Work[None]) -> None:
        plan = next(work)
        self._log.is_changing = True
        self._watch.chore = self._watch.now(plan.name)
        self._worker.submit(
            partial(_carry_out, self._watch, self._log.directory, plan),
            partial(self._carried, work),
            # unlinking takes milliseconds a file, and nobody waits for it
            can_wait=plan.name == "unlink",
        )
        self._work, self._name = work, plan.name
        self._log.is_changing = False

    def _carried(self, work: Work[None], outcome: Outcome, error: BaseException | None) -> None:
        if work is not self._work:
            return  # it was applied already
        committer = self._committer
        if committer is None:
            self._work = None
            work.close()
            return
        try:
            self._ended(work, outcome if error is None else Outcome(error=error), committer)
        except BaseException as failure:
            committer.fall(failure)
            raise

    def _ended(self, work: Work[None], outcome: Outcome, committer: Order) -> None:
        self._work = None
        name = self._name
        if self._log.is_changing:
            committer.fall(torn())
        if not committer.is_living:
            work.close()
        elif outcome.error is None:
            with contextlib.suppress(StopIteration):
                work.send(outcome)
            if name == _PREPARE:
                self._may_prepare_ahead = True
                self._measures.has_room(_PREPARE)
        elif outcome.is_refused:
            work.close()
            clear(outcome.error)
            self._refused(outcome.error, name, committer)
        else:
            committer.fall(outcome.error)
        self.go_on()
        committer.advance()

    def _refused(self, error: BaseException, name: str, committer: Order) -> None:
        """A full disk, say: nothing was written, and it may pass."""
        log = self._log
        if name == _PREPARE:
            self._measures.lacks_space(_PREPARE, error)
            if self.may_unlink and (work := _operations.unlink(log)) is not None:
                self._begin(work)  # the space that an append lacks may be about to come free
                return
            self._may_prepare_ahead = False
            if committer.has_append_first:
                # Whoever needs the segment is answered; the next who does tries again.
                committer.refuse_first(error)
            return
        if name == "unlink":
            self.may_unlink = False
            log.to_unlink.rotate(-1)
        else:
            self.may_seal = False
        logger.warning("%s: housekeeping failed: %s", log.directory.path, describe(error))
        if not self.may_seal and len(log.to_seal) >= SEALS_WAITING and committer.has_append_first:
            committer.refuse_first(error)


def _carry_out(watch: Watch, directory: Directory, plan: Plan) -> Outcome:
    outcome = carry_out(directory, plan)
    watch.chore = None
    return outcome
