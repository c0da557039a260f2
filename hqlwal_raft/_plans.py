"""Plans: disk operations as frozen data, and :func:`carry_out`, all that a disk thread runs.

A plan is a tuple of steps in their order, with its *point of no return*: the number of the first
step that changes what cannot be taken back. It holds numbers, bytes, strings, tuples and leased
``File``s; never a segment, never the log. So whoever carries it out, in whatever thread, shares
no memory with the owner of the log, a test can stop before every step, and a plan can be printed.

What an error means is decided here, once: an error before the point of no return *refuses* the
operation, and nothing was changed; anything at or behind it, whatever the exception, *poisons*.
The one exception is a write at the very point for which the system had no space: it says so
before it takes a byte. Of any other error of a write nobody knows what reached the file.

It must not know what the bytes mean, nor who waits for them.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ._directory import Directory
from ._files import File, TornWriteError
from ._format import DATA_START, LENGTH_MASK, RECORD_HEAD, RECORD_HEAD_BYTES
from ._places import Places
from ._records import locate

__all__ = [
    "Allocate",
    "CheckIdentity",
    "Copy",
    "Create",
    "Load",
    "Outcome",
    "Plan",
    "Read",
    "SetAside",
    "Step",
    "Sync",
    "SyncDirectory",
    "Unlink",
    "Work",
    "Write",
    "Zero",
    "carry_out",
    "drive",
    "lacks_space",
    "load",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """Stores the parts one after the other; gives whether that was done.

    ``is_optional``: where there is no space it is left out, and that is no failure.
    """

    file: File
    offset: int
    parts: tuple[bytes, ...]
    is_optional: bool = False

    def carry_out(self, directory: Directory) -> bool:
        try:
            self.file.write(self.offset, self.parts)
        except OSError as error:
            lacks_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not (self.is_optional and lacks_space) or isinstance(error, TornWriteError):
                raise
            return False
        return True


@dataclass(frozen=True, slots=True)
class Sync:
    """What was written to the file is durable."""

    file: File

    def carry_out(self, directory: Directory) -> None:
        self.file.sync()


@dataclass(frozen=True, slots=True)
class Zero:
    """Zeroes ``[start, stop)``."""

    file: File
    start: int
    stop: int

    def carry_out(self, directory: Directory) -> None:
        self.file.zero(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Allocate:
    """Has blocks for the whole file: one that came from a sparse copy may lack some.

    Gives whether that was done. ``is_optional``: where there is no space, it is no failure.
    """

    file: File
    length: int
    is_optional: bool = False

    def carry_out(self, directory: Directory) -> bool:
        try:
            self.file.allocate(self.length)
        except OSError as error:
            if not self.is_optional or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True


@dataclass(frozen=True, slots=True)
class Create:
    """Publishes a new file; gives the ``File``. Durable by a later ``SyncDirectory``."""

    name: str
    length: int
    head: bytes
    is_filled: bool = False

    def carry_out(self, directory: Directory) -> File:
        return directory.create(self.name, self.length, self.head, is_filled=self.is_filled)


@dataclass(frozen=True, slots=True)
class Unlink:
    """Removes a name; a missing one is no error."""

    name: str

    def carry_out(self, directory: Directory) -> None:
        directory.unlink(self.name)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a damaged file, whole under its new name or not there."""

    file: File
    target: str

    def carry_out(self, directory: Directory) -> None:
        directory.copy(self.file, self.target)


@dataclass(frozen=True, slots=True)
class SetAside:
    """Renames a file that is used no more; the target is free."""

    name: str
    target: str

    def carry_out(self, directory: Directory) -> None:
        directory.set_aside(self.name, self.target)


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """Names made and removed are durable."""

    def carry_out(self, directory: Directory) -> None:
        directory.sync()


@dataclass(frozen=True, slots=True)
class CheckIdentity:
    """The directory at the path, and the files under their names, are the ones that are open."""

    files: tuple[File, ...]

    def carry_out(self, directory: Directory) -> None:
        directory.check(self.files)


@dataclass(frozen=True, slots=True)
class Read:
    """Gives the bytes."""

    file: File
    offset: int
    length: int

    def carry_out(self, directory: Directory) -> bytes:
        return self.file.read(self.offset, self.length)


@dataclass(frozen=True, slots=True)
class Load:
    """Opens a segment if ``file`` is None, and finds where its records begin, up to ``end``.

    Gives the ``File`` and the ``Places``; None for these where it ``is_located``, and only the
    file is missing. ``salt`` tells whether the file under the name is still the segment that is
    meant: names are used again.
    """

    name: str
    salt: int
    end: int
    file: File | None = None
    is_writable: bool = False
    is_located: bool = False

    def carry_out(self, directory: Directory) -> tuple[File, Places | None]:
        return load(directory, self)


Step = (
    Write
    | Sync
    | Zero
    | Allocate
    | Create
    | Unlink
    | Copy
    | SetAside
    | SyncDirectory
    | CheckIdentity
    | Read
    | Load
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A disk operation."""

    #: what it is, for log lines and statistics
    name: str
    steps: tuple[Step, ...]
    #: the first step that cannot be taken back; None: there is none
    point: int | None = None


class Outcome(NamedTuple):
    """How a plan ended."""

    #: what each step that was carried out gave
    values: tuple[Any, ...] = ()
    error: BaseException | None = None
    #: the error came before the point of no return: nothing was changed
    is_refused: bool = False
    #: steps at or behind a point of no return were carried out
    is_behind_point: bool = False
    #: seconds that it took
    seconds: float = 0.0


# With these a write ends before it took a byte; others may come when all of it was stored.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def carry_out(directory: Directory, plan: Plan) -> Outcome:
    """Carries the steps out in order, up to the first that fails. Raises nothing."""
    clock = directory.environment.perf_counter
    values: list[Any] = []
    started = 0.0
    try:
        started = clock()
        for step in plan.steps:
            values.append(step.carry_out(directory))  # noqa: PERF401 - what was done counts
        return Outcome(
            tuple(values), is_behind_point=plan.point is not None, seconds=clock() - started
        )
    except BaseException as error:
        return Outcome(tuple(values), error, _is_refused(plan, len(values), error))


def _is_refused(plan: Plan, place: int, error: BaseException) -> bool:
    if plan.point is None or place < plan.point:
        return True
    return place == plan.point and isinstance(plan.steps[place], Write) and lacks_space(error)


def lacks_space(error: BaseException) -> bool:
    """Whether a write raised it before the system took a byte."""
    return (
        isinstance(error, OSError)
        and error.errno in _NO_SPACE
        and not isinstance(error, TornWriteError)
    )


#: an operation: yields plans, is sent the outcomes of those that succeeded, returns its result.
#: Where one failed it is closed.
Work = Generator[Plan, Outcome, T]


def drive(work: Work[T], directory: Directory) -> T:
    """Runs an operation to its end in this thread. Raises the error of a plan that failed."""
    outcome: Outcome | None = None
    try:
        plan = next(work)
        while True:
            outcome = carry_out(directory, plan)
            if outcome.error is not None:
                work.close()
                raise outcome.error
            plan = work.send(outcome)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        del outcome  # its error's traceback holds this frame, and that the plan's files


# How much of a segment is read at a time to find its records.
_PIECE_BYTES = 256 << 10


def load(directory: Directory, step: Load) -> tuple[File, Places | None]:
    """As :class:`Load`; for readers' threads too. Raises FileNotFoundError for another file."""
    file = step.file
    if file is None:
        file = directory.open_file(step.name, is_writable=step.is_writable)
        if file.read(32, 4) != step.salt.to_bytes(4, "big"):
            raise FileNotFoundError(2, "another segment has this name now", file.path)
    if step.is_located:
        return file, None
    places = Places()
    position = DATA_START
    while position < step.end:
        data = file.read(position, min(_PIECE_BYTES, step.end - position))
        found = locate(data, 0, len(data), position)
        if not found:
            break
        last = found[-1]
        head = RECORD_HEAD.unpack_from(data, last - position)
        position = last + RECORD_HEAD_BYTES + (head[2] & LENGTH_MASK)
        places.add(found, min(position, step.end))
    places.settle(min(position, step.end))
    return file, places
