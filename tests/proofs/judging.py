"""Runs one history of several callers in one order, on the face that it names, and judges it."""

from __future__ import annotations

import shutil
import tempfile
from typing import NamedTuple

from hqlwal_raft import RaftLogStorage, WalError

from . import loops
from .callers import History, Run
from .calling_threads import ThreadRun
from .orders import Chooser
from .turns import Deadlock, Spins

__all__ = ["Judged", "judge"]

RUNS: dict[str, type[Run]] = {"async": Run, "blocking": ThreadRun}
#: of the processor; a run takes some hundredths
_LIMIT_SECONDS = 10

_images: dict[tuple[int, ...], dict[str, bytes]] = {}


def _image(sizes: tuple[int, ...]) -> dict[str, bytes]:
    """The files of a closed log with these entries."""
    if sizes not in _images:
        with tempfile.TemporaryDirectory() as directory:
            run = Run(History("", (), sizes), directory)

            async def fill() -> None:
                entries = [node.entry for node in run.ledger.live]
                async with RaftLogStorage.open(
                    directory, segment_size=8192, environment=run.system
                ) as store:
                    await store.append(entries)

            loops.run_asyncio(run.loop, fill)
            _images[sizes] = loops.files_in(directory)
    return _images[sizes]


class Judged(NamedTuple):
    """A history that was run."""

    #: what must not be, with its kind: "read", "lost", "answer", "stream", "error", "owner"
    problems: list[tuple[str, str]]
    #: what went, one after the other
    steps: list[str]


def judge(history: History, chooser: Chooser) -> Judged:
    """Runs a history in an order."""
    files = _image(history.sizes)
    with loops.isolated(files) as directory:
        run = RUNS[history.face](history, directory)
        run.chooser = chooser
        _live(run)
        run.system.drop_threads()
        copy = f"{directory}-copy"
        if run.waiting or run.problems:  # a store that hangs keeps its lock
            run.directory = shutil.copytree(directory, copy)
        run.reopen()
        shutil.rmtree(copy, ignore_errors=True)
        problems, steps = run.problems, run.steps
        if problems:
            del run
            loops.forget()
    return Judged(problems, steps)


def _live(run: Run) -> None:
    try:
        with loops.limit_seconds(_LIMIT_SECONDS):
            run.live()
    except (Deadlock, Spins):
        waiting = ", ".join(run.waiting) or "closing"
        run.problem("answer", f"nothing moves any more, and these wait: {waiting}")
    except WalError as error:
        if not run.history.failing_sync:
            run.problem("error", f"closing raised {error!r}")
    except Exception as error:
        run.problem("error", f"closing raised {error!r}")
