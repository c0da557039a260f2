"""Every bit: each one of a small log's files flipped, and the log opened again.

The logs are three segments with vote, purge frontier and lock file: one closed cleanly, one whose
process was killed (nothing was lost then: what was written is on the disk), one that ends at a
segment's border after a truncation. A flipped bit leaves the right entries, or a typed error that
leaves the directory as it was; never another entry, another vote or an untyped error; never a
silently shorter log, but for what lies behind the durable mark of a log that was not closed.

It knows the engine only through ``core``. What lies before the mark is asked of the engine by the
history: the records that an earlier sync made durable before the last one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hqlwal_raft import CorruptionError, WalError
from hqlwal_raft.testing import Image, MemoryKernel
from hqlwal_raft.testing._kernel_pages import FileData

from .alphabet import PAGE_BYTES, SEGMENT_BYTES, Expected, Life
from .core import DIRECTORY, META_NAME, Core
from .disk import new_kernel

__all__ = ["LOGS", "Bits", "Flaw", "Log", "replay", "run"]


@dataclass(frozen=True)
class Log:
    """A log whose bits are flipped: how it came to be and how it ended."""

    history: str
    is_closed: bool
    #: how many of the last entries damage may take unnoticed
    undecidable: int = 0
    #: a temporary file lies there, which an open removes once it has judged all else
    has_leftover: bool = False


LOGS = {
    "closed": Log("A2 V A2 P1 A2 A1 C", is_closed=True),
    # the last group is behind the mark
    "killed": Log("A2 V A2 P1 A2 A1 A1 C", is_closed=False, undecidable=1),
    "truncated at a border": Log("A2 V A2 P1 A2 A1 T7 C", is_closed=True, has_leftover=True),
}


class Flaw(NamedTuple):
    """What one flipped bit did that it must not do."""

    kind: str
    message: str
    log: str
    path: str
    byte: int
    bit: int

    def __str__(self) -> str:
        return (
            f"{self.message}\n    python -m tests.proofs bit "
            f'--log "{self.log}" --file {self.path.rpartition("/")[2]} '
            f"--byte {self.byte} --bit {self.bit}"
        )


def _made(log: Log) -> tuple[dict[str, bytes], Expected]:
    """The files that the log ends with, and what may be found in them after a flip."""
    life = Life(new_kernel())
    for letter in log.history.split():
        life.perform(letter)
        life.model.acknowledge(letter)
    model = life.model
    if log.is_closed:
        life.core.close()
    files = life.kernel.contents()
    if log.has_leftover:
        files[f"{DIRECTORY}/0000000000000009.wal.tmp"] = b"left"
    model.durable = len(model.log) - log.undecidable
    return files, model.at_least


class Bits:
    """The loop and what it has found so far."""

    def __init__(self) -> None:
        self.flaws: dict[str, Flaw] = {}
        self.counts: Counter[str] = Counter()
        self.is_complete = False

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{counts['flips']} flips: {counts['right']} opened right, {counts['shorter']} without "
            f"their undecidable end, {counts['refused']} refused, {counts['flaws']} flaws of "
            f"{len(self.flaws)} kinds"
        )

    def walk(self, stride: int, *, heals: bool, has_padding: bool) -> Iterator[None]:
        """Every ``stride``-th bit; yields after each. ``heals``: heals what an open refuses, too."""
        at = 0
        for name, log in LOGS.items():
            files, expected = _made(log)
            base = MemoryKernel.of(files, page_bytes=PAGE_BYTES).image()
            for path, place in base.names:
                node = base.nodes[place]
                if place < 0 or not isinstance(node, FileData):
                    continue
                for byte in _bytes_of(path, files[path], has_padding=has_padding):
                    for bit in range(8):
                        at += 1
                        if at % stride == 0:
                            image = _flip(base, place, byte, bit)
                            for flaw in self.flip(image, log, expected, heals=heals):
                                self._note(flaw, name, path, byte, bit)
                            yield
        self.is_complete = True

    def _note(self, message: str, log: str, path: str, byte: int, bit: int) -> None:
        kind = message.partition(":")[0]
        self.counts["flaws"] += 1
        self.counts[f"! {kind}"] += 1
        self.flaws.setdefault(kind, Flaw(kind, message, log, path, byte, bit))

    def flip(self, image: Image, log: Log, expected: Expected, *, heals: bool) -> Iterator[str]:
        self.counts["flips"] += 1
        for check_integrity in (False, True):
            yield from self._open(image, log, expected, check_integrity=check_integrity)
        if heals:
            yield from self._heal(image, expected)

    def _open(
        self, image: Image, log: Log, expected: Expected, *, check_integrity: bool
    ) -> Iterator[str]:
        kernel = MemoryKernel.of(image)
        try:
            core = Core(kernel, SEGMENT_BYTES, check_integrity=check_integrity)
        except WalError as error:
            self.counts["refused"] += 1
            before, after = image.contents(), kernel.contents()
            changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
            if changed := [path for path in changed if not path.endswith("lock.hql")]:
                yield f"refused after a change: {changed}: {error}"
            return
        except Exception as error:
            yield f"untyped: {type(error).__name__}: {error}"
            return
        try:
            view = core.view()
        except CorruptionError:
            # a sealed segment is read when somebody asks for it
            self.counts["refused when read"] += 1
            if check_integrity:
                yield "unnoticed: opened with check_integrity, damaged when read"
            return
        except Exception as error:
            yield f"untyped: {type(error).__name__}: {error}"
            return
        problem = expected.problem(view)
        if problem:
            yield f"{problem.partition(':')[0]}:{problem.partition(':')[2]}"
        elif len(view.entries) < len(expected.logs[0].entries):
            self.counts["shorter"] += 1
        else:
            self.counts["right"] += 1

    def _heal(self, image: Image, expected: Expected) -> Iterator[str]:
        """What an open refuses for damaged entries it heals where it is told to."""
        try:
            Core(MemoryKernel.of(image), SEGMENT_BYTES)
            return
        except CorruptionError as error:
            if "fresh" in str(error) and "auto_heal" not in str(error):
                return  # the vote is lost: no healing gives it back
        except Exception:
            return
        try:
            core = Core(MemoryKernel.of(image), SEGMENT_BYTES, auto_heal=True)
        except Exception as error:
            yield f"not healed: {type(error).__name__}: {error}"
            return
        view = core.view()
        allowed = expected.logs[0]
        if view.vote not in expected.votes or view.entries != allowed.entries[: len(view.entries)]:
            yield f"healed to another log: {view}"
        self.counts["healed"] += 1


def _bytes_of(path: str, data: bytes, *, has_padding: bool) -> range | list[int]:
    """All of a segment; of ``meta.hql`` what is not padding, unless that too, and every 97th byte."""
    if has_padding or not path.endswith(META_NAME):
        return range(len(data))
    used = {place for place, byte in enumerate(data) if byte}
    near = {place + more for place in used for more in range(-8, 9)}
    return sorted(place for place in near | {*range(0, len(data), 97)} if 0 <= place < len(data))


def _flip(image: Image, place: int, byte: int, bit: int) -> Image:
    node = image.nodes[place]
    assert isinstance(node, FileData)
    page, at = divmod(byte, image.page_bytes)
    data = bytearray(node.pages[page] or bytes(image.page_bytes))
    data[at] ^= 1 << bit
    pages = (*node.pages[:page], bytes(data), *node.pages[page + 1 :])
    nodes = (*image.nodes[:place], FileData(node.size, pages), *image.nodes[place + 1 :])
    return image._replace(nodes=nodes)


def run(
    *,
    stride: int = 1,
    heals: bool = True,
    has_padding: bool = True,
    budget_seconds: float = 1e9,
    progress: Callable[[Bits], object] | None = None,
    stops_at_first: bool = False,
) -> Bits:
    """The loop, until it is complete, or the time is over."""
    bits = Bits()
    end = time.monotonic() + budget_seconds
    for _ in bits.walk(stride, heals=heals, has_padding=has_padding):
        if progress is not None:
            progress(bits)
        if time.monotonic() > end or (stops_at_first and bits.flaws):
            break
    return bits


def replay(log: str, file: str, byte: int, bit: int) -> list[str]:
    """What is wrong after one flip, once more."""
    files, expected = _made(LOGS[log])
    base = MemoryKernel.of(files, page_bytes=PAGE_BYTES).image()
    place = next(place for path, place in base.names if path.endswith(f"/{file}"))
    return list(Bits().flip(_flip(base, place, byte, bit), LOGS[log], expected, heals=True))
