"""The answers of a follower that wait for what they acknowledge to be durable.

For the thread that ticks the node. It must not know how an answer is sent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .._environment import Environment

__all__ = ["Answer", "HeldAnswers"]

#: A sync takes about a tenth of the time in which a follower reads so many entries, or of so
#: many seconds. Answers that wait any longer keep the leader from going on meanwhile.
_HELD_ENTRIES = 256
_HELD_SECONDS = 0.003


class Answer(NamedTuple):
    """A follower's answer that waits for what it acknowledges to be durable."""

    node: Any
    reset: bool
    next_index: int
    success: bool
    #: another one where the term changed or the log was cut since
    epoch: int


class HeldAnswers:
    """One sync serves all answers of a tick; in a long one, of so many entries or so long."""

    def __init__(self, environment: Environment, last: int) -> None:
        self._monotonic = environment.monotonic
        self._answers: list[Answer] = []
        self._held_since = 0.0
        #: the last entry when answers were last taken
        self._taken_at = last

    def hold(self, answer: Answer) -> bool:
        """Keeps an answer until :meth:`take`; False where it may leave at once.

        One that acknowledges nothing need not wait, unless it would overtake one that does.
        """
        answers = self._answers
        if not answers:
            if not answer.success:
                return False
            self._held_since = self._monotonic()
        elif answer.success:
            before = answers[-1]
            if before.node is answer.node and before.success and before.epoch == answer.epoch:
                # The leader takes the highest; each one below would make it send again what
                # is on its way already.
                answer = answer._replace(next_index=max(answer.next_index, before.next_index))
                answers.pop()
        answers.append(answer)
        return True

    def has_enough(self, last: int) -> bool:
        """Whether the answers held back are worth a sync before the end of the tick."""
        return bool(self._answers) and (
            last - self._taken_at >= _HELD_ENTRIES
            or self._monotonic() - self._held_since > _HELD_SECONDS
        )

    def take(self, last: int) -> list[Answer]:
        answers, self._answers = self._answers, []
        if answers:
            self._taken_at = last
        return answers
