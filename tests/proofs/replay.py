"""Where a violation was found, and the way back there: shows what one cut leaves once more.

For the loop over crashes and the command line. A cut has an address: the number of the call of
the history's last letter after which the power goes, and which of the images that are possible
then is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from hqlwal_raft import Entry, WalError

from .alphabet import SEGMENT_BYTES, Expected, Life, Model
from .core import Core, damage
from .disk import Recorder, new_kernel, present, started

__all__ = ["KILLED", "Violation", "after", "replay"]

#: stands for the image that is left where only the process dies
KILLED = -1


class Violation(NamedTuple):
    """A promise that was broken, and where to see it."""

    #: the message without its numbers: what two violations of one fault have in common
    kind: str
    message: str
    history: str
    #: "step:image" of the cut, then of the cut in the recovery of that image, and so on;
    #: "+": one more entry was appended
    cuts: tuple[str, ...]
    #: what carried the history out, and whether appends were put into the page cache
    face: str = "log"
    is_buffered: bool = False

    def __str__(self) -> str:
        command = f'python -m tests.proofs crash --history "{self.history}"'
        if self.face != "log":
            command += f" --face {self.face}"
        if self.is_buffered:
            command += " --buffered 1"
        if self.cuts:
            step, image = self.cuts[0].split(":")
            command += f" --step {step} --image {image}"
        if self.cuts[1:]:
            command += f' --then "{" ".join(self.cuts[1:])}"'
        return f"{self.message}\n    {command}"


def after(word: Sequence[str], *, is_buffered: bool = False, face: str = "log") -> Life:
    """The store when the history is over."""
    life = Life(new_kernel(), Model(is_buffered=is_buffered), face=face)
    for letter in word:
        life.perform(letter)
        life.model.acknowledge(letter)
    return life


def replay(
    history: str,
    step: int | None = None,
    image: int = KILLED,
    then: str = "",
    face: str = "log",
    buffered: int = 0,
) -> str:
    """Shows again what one cut leaves, what an open shows there, and what it should have shown.

    Without a step: every call of the last letter, numbered as a cut names them.
    """
    *word, letter = history.split()
    life: Life | None = after(word, is_buffered=bool(buffered), face=face)
    expected: list[Expected] = []
    lines = []
    kernel = new_kernel()
    for address in [] if step is None else [f"{step}:{image}", *then.split()]:
        if address == "+":
            view = Core(kernel, SEGMENT_BYTES).view()
            life, letter = Life(started(present(kernel)), Model.of(view)), "A1"
            continue
        if life is not None:
            kernel = life.kernel
        expected = [life.model.within(letter)] if life is not None else expected
        recorder = Recorder(kernel, is_recovery=life is None)
        with recorder, contextlib.suppress(WalError):
            if life is None:
                Core(kernel, SEGMENT_BYTES)
            else:
                life.perform(letter)
        at, place = map(int, address.split(":"))
        if at == len(recorder.moments) and life is not None:
            life.model.acknowledge(letter)
            expected = [life.model.at_least]
            recorder.take("the end", always=True)
        if life is not None:
            life.end()
        moment = recorder.moments[at]
        found = moment.present if place == KILLED else [*moment.images()][place]
        assert found is not None, "only a letter has images of a killed process"
        lines.append(f"after {moment.call}: image {place}")
        kernel, life = started(found), None
    if step is None:
        assert life is not None
        recorder = Recorder(life.kernel)
        with recorder, contextlib.suppress(WalError):
            life.perform(letter)
        life.end()
        return "\n".join(
            f"{at}: {moment.call}: {moment.snapshot.count_images()} images"
            for at, moment in enumerate(recorder.moments)
        )
    lines += [f"  {path}: {len(data)} bytes" for path, data in kernel.contents().items()]
    try:
        view = Core(kernel, SEGMENT_BYTES).view()
        lines.append(f"shows: frontier {view.frontier}, {_short(view.entries)}, {view.vote}")
        lines.append(f"problem: {expected[0].problem(view) or damage(kernel) or None}")
    except Exception as error:
        lines.append(f"problem: {type(error).__name__}: {error}")
    lines += [
        f"expected: frontier {log.frontier}, the first {log.at_least} or more of "
        f"{_short(log.entries)}"
        for log in expected[0].logs
    ]
    return "\n".join(lines)


def _short(entries: Sequence[Entry]) -> str:
    """Indexes and, behind the stroke, terms."""
    return "entries " + (" ".join(f"{entry.index}/{entry.term}" for entry in entries) or "none")
