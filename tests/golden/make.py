"""``python -m tests.golden.make``: makes the golden directories of the format that is written now.

Each case is a store's directory, made by the engine on a disk in memory whose chance, clock and
process number are fixed, with a file of what is to be found in it (``report``). Directories that
were released are never made anew: a later version of the format gets a folder of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hqlwal_raft import CorruptionError, Entry, LogId, UnknownVersionError, Vote
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import VERSION, MetaState, SegmentHeader, pack_slot, unpack_slot
from hqlwal_raft._types import FindingKind
from hqlwal_raft.audit import DirectoryReport, examine
from hqlwal_raft.errors import WalCopyError
from hqlwal_raft.testing import FailingEnvironment, MemoryKernel
from tests.torture.core import DIRECTORY, Core

FOLDER = os.path.join(os.path.dirname(__file__), f"{VERSION:#04x}")
SEGMENT_SIZE = 8192
META = f"{DIRECTORY}/meta.hql"

Contents = dict[str, bytes]
Case = Callable[[], Contents]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


class Disk(MemoryKernel):
    """Everything that happens by chance is fixed."""

    def getpid(self) -> int:
        return 4711


def path_of(number: int) -> str:
    return f"{DIRECTORY}/{number:016d}.wal"


def entries(first: int, last: int, *, term: int = 1, size: int = 200) -> list[Entry]:
    """Both included; of sizes around ``size``, some empty."""
    return [
        Entry(term, i, b"%d " % i * (size * (i % 5) // 10), node_id=1 + i % 3)
        for i in range(first, last + 1)
    ]


def filled(disk: Disk, last: int = 40, *, is_buffered: bool = False) -> Core:
    """A store with the entries from 1 on, in groups of four."""
    core = Core(disk, SEGMENT_SIZE, is_buffered=is_buffered)
    core.save_vote(Vote(1, 1, committed=True))
    for first in range(1, last, 4):
        core.environment.sleep(0.004)
        core.append(entries(first, min(first + 3, last), size=1000))
        core.sync()
    return core


def killed(disk: Disk) -> Contents:
    return disk.after_kill().contents()


def first_image(
    disk: Disk, run: Callable[[], object], fits: Callable[[Contents], bool]
) -> Contents:
    """The first image of a power cut while ``run`` runs that fits."""
    images: list[Contents] = []
    rng = random.Random(1)

    def draw(_what: str, _path: str) -> None:
        if not images:
            drawn = (image.contents() for image in disk.snapshot().images(rng, 20))
            images.extend([each for each in drawn if fits(each)][:1])

    disk.on_point = draw
    run()
    disk.on_point = None
    if not images:
        raise LookupError("no power cut leaves such a thing")
    return images[0]


def kinds(contents: Contents) -> set[FindingKind]:
    report = examine(DIRECTORY, environment=Disk.of(contents), deep=True)
    return {finding.kind for finding in report.all_findings}


def headers(contents: Contents) -> list[SegmentHeader]:
    found = [SegmentHeader.unpack(contents[path]) for path in sorted(contents) if ".wal" in path]
    return [header for header in found if isinstance(header, SegmentHeader)]


def state_of(contents: Contents) -> tuple[int, MetaState]:
    found = unpack_slot(contents[META][:4096])
    assert isinstance(found, tuple)
    return found


# --- whole ------------------------------------------------------------------------------------


@case
def fresh() -> Contents:
    disk = Disk()
    Core(disk, SEGMENT_SIZE).close()
    return killed(disk)


@case
def vote_only() -> Contents:
    disk = Disk()
    core = Core(disk, SEGMENT_SIZE)
    core.save_vote(Vote((1 << 64) - 1, "knoten-ä"))
    core.close()
    return killed(disk)


@case
def closed() -> Contents:
    """Sealed, tail and prepared; empty payloads, one larger than a segment; committed."""
    disk = Disk()
    core = filled(disk)
    core.append([Entry(2, 41, b"large" * 4000, (1 << 64) - 1), Entry(2, 42), Entry(2, 43, b"x")])
    core.save_committed(LogId(2, 42, 0))
    core.sync()
    core.do("prepare")
    core.close()
    return killed(disk)


@case
def begins_with_0() -> Contents:
    disk = Disk()
    core = Core(disk, SEGMENT_SIZE)
    core.append(entries(0, 5))
    core.close()
    return killed(disk)


@case
def truncated() -> Contents:
    """Within a segment and across two, and appended to again in another term."""
    disk = Disk()
    core = filled(disk)
    core.truncate(30)
    core.append(entries(30, 36, term=2))
    core.truncate(34)
    core.append(entries(34, 35, term=3))
    core.close()
    return killed(disk)


@case
def truncated_to_nothing() -> Contents:
    disk = Disk()
    core = filled(disk)
    core.truncate(1)
    core.close()
    return killed(disk)


@case
def purged_inside() -> Contents:
    disk = Disk()
    core = filled(disk)
    core.purge(core.view().entries[4].log_id)
    core.close()
    return killed(disk)


@case
def purged_across() -> Contents:
    disk = Disk()
    core = filled(disk)
    core.purge(core.view().entries[24].log_id)
    core.do_chores()
    core.close()
    return killed(disk)


@case
def purged_beyond() -> Contents:
    disk = Disk()
    core = filled(disk)
    core.purge(LogId(7, 100, 2))
    core.do_chores()
    core.append(entries(101, 104, term=7))
    core.close()
    return killed(disk)


@case
def small_state() -> Contents:
    contents = closed()
    sequence, state = state_of(contents)
    slot = pack_slot(sequence + 1, replace(state, state=b"of the node itself \0\xff"))
    return contents | {META: slot * 2 + contents[META][8192:]}


@case
def copy() -> Contents:
    """A backup, with a small state of no bytes."""
    contents = closed()
    sequence, state = state_of(contents)
    slot = pack_slot(sequence + 1, replace(state, state=b"", is_copy=True))
    return contents | {META: slot * 2 + contents[META][8192:]}


# --- killed, torn -----------------------------------------------------------------------------


@case
def killed_without_a_mark() -> Contents:
    disk = Disk()
    core = Core(disk, SEGMENT_SIZE)
    for first in range(1, 9, 2):
        core.append(entries(first, first + 1))
        core.sync()
    core.do("prepare")
    return killed(disk)


@case
def killed_buffered() -> Contents:
    """Readable, not durable, when it was killed."""
    disk = Disk()
    core = filled(disk, is_buffered=True)
    core.append(entries(41, 60, size=900))
    return killed(disk)


@case
def killed_with_seals_waiting() -> Contents:
    disk = Disk()
    filled(disk, 52)
    return killed(disk)


@case
def torn() -> Contents:
    """A group that was being written: its first record is there, and one behind a bad one."""
    disk = Disk(page_bytes=512)
    core = filled(disk, 12)
    core.append(entries(13, 20))
    return first_image(disk, core.sync, lambda image: _has_good_behind_bad(image, 14))


def _has_good_behind_bad(contents: Contents, next_id: int) -> bool:
    report = examine(DIRECTORY, environment=Disk.of(contents))
    last = report.judgement.kept[-1]
    return last.has_bytes_behind and last.next_id == next_id


@case
def torn_over_segments() -> Contents:
    """A buffered group over several segments: those behind the torn one hold records as well."""
    disk = Disk(page_bytes=512)
    core = filled(disk, 12, is_buffered=True)
    core.append(entries(13, 50, size=1500))

    def fits(image: Contents) -> bool:
        report = examine(DIRECTORY, environment=Disk.of(image))
        dropped = [s for s in report.judgement.dropped if s.count]
        return len(dropped) > 1 and report.judgement.kept[-1].has_bytes_behind

    return first_image(disk, core.sync, fits)


@case
def torn_first_append() -> Contents:
    """The header of the only segment never came, the records did: it is still unused."""
    disk = Disk(page_bytes=512)
    core = Core(disk, SEGMENT_SIZE)
    core.append(entries(1, 6))

    def fits(image: Contents) -> bool:
        unused = [h for h in headers(image) if h.is_unused]
        return len(unused) == len(headers(image)) and FindingKind.TORN_TAIL in kinds(image)

    return first_image(disk, core.sync, fits)


# --- cut off in the middle of something -------------------------------------------------------


@case
def cut_standing() -> Contents:
    """A truncation's zeroing was cut off: settled records lie behind the noted cut."""
    disk = Disk(page_bytes=512)
    core = Core(disk, 32768)
    for first in range(1, 40, 2):
        core.append(entries(first, first + 1, size=1500))
        core.sync()

    def fits(image: Contents) -> bool:
        segments = examine(DIRECTORY, environment=Disk.of(image)).segments
        is_cut = any(s.header is not None and s.header.cut and s.has_bytes_behind for s in segments)
        # some of it zeroed already
        return is_cut and image[path_of(1)] != killed(disk)[path_of(1)]

    return first_image(disk, lambda: core.truncate(8), fits)


@case
def truncation_cut_off() -> Contents:
    """Unsealed, then a sealed last one: its followers are removed already."""
    disk = Disk()
    core = filled(disk, 60)
    core.do_chores()

    def fits(image: Contents) -> bool:
        found = headers(image)
        return found[-1].is_sealed and not all(header.is_sealed for header in found)

    return first_image(disk, lambda: core.truncate(20), fits)


@case
def emptying_cut_off() -> Contents:
    """No segment is needed any more, and some are still there."""
    disk = Disk()
    core = filled(disk)
    return first_image(
        disk, lambda: core.truncate(1), lambda image: state_of(image)[1].first_segment == 0
    )


@case
def purge_cut_off() -> Contents:
    """Purged segments whose unlinking had not begun."""
    disk = Disk()
    core = filled(disk)
    core.purge(core.view().entries[24].log_id)
    return killed(disk)


@case
def vote_cut_off() -> Contents:
    """The second slot lags behind."""
    disk = Disk()
    core = filled(disk, 12)

    def fits(image: Contents) -> bool:
        first, second = (unpack_slot(image[META][at : at + 4096]) for at in (0, 4096))
        return isinstance(first, tuple) and isinstance(second, tuple) and first[0] > second[0]

    return first_image(disk, lambda: core.save_vote(Vote(9, 2)), fits)


@case
def preparing_cut_off() -> Contents:
    disk = Disk()
    core = filled(disk, 12)
    return first_image(
        disk,
        lambda: core.do("prepare"),
        lambda image: any(path.endswith(".tmp") for path in image),
    )


# --- damaged, healed --------------------------------------------------------------------------


def flipped(contents: Contents, number: int, offset: int) -> Contents:
    data = bytearray(contents[path_of(number)])
    data[offset] ^= 0x10
    return contents | {path_of(number): bytes(data)}


@case
def damaged_before_a_settled_record() -> Contents:
    return flipped(killed_without_a_mark(), 1, 100)


@case
def damaged_before_the_mark() -> Contents:
    """In the tail."""
    contents = closed()
    return flipped(contents, max(_used(contents)), 80)


def _used(contents: Contents) -> list[int]:
    return [
        int(path.rpartition("/")[2][:16])
        for path in contents
        if path.endswith(".wal")
        and isinstance(header := SegmentHeader.unpack(contents[path]), SegmentHeader)
        and not header.is_unused
    ]


@case
def damaged_in_a_sealed_segment() -> Contents:
    """Seen only by those who look deep."""
    return flipped(closed(), 2, 900)


@case
def damaged_header() -> Contents:
    return flipped(closed(), 2, 20)


@case
def short() -> Contents:
    contents = closed()
    number = max(_used(contents))
    return contents | {path_of(number): contents[path_of(number)][:-1]}


@case
def missing_segment() -> Contents:
    contents = closed()
    del contents[path_of(2)]
    return contents


@case
def missing_meta() -> Contents:
    contents = closed()
    del contents[META]
    return contents


@case
def healed() -> Contents:
    """What was set aside holds healthy entries behind the damage."""
    disk = Disk.of(flipped(closed(), 2, 900))
    core = Core(disk, SEGMENT_SIZE, is_healing=True, is_checking_everything=True)
    core.append([Entry(5, (core.log.next_index or 0), b"after it was healed", 3)])
    core.close()
    return killed(disk)


@case
def healing_cut_off() -> Contents:
    """Killed, by a rename that fails, after the copy was made."""
    disk = Disk.of(flipped(closed(), 2, 900))
    failing = FailingEnvironment(disk)
    failing.fail("rename", errno.EIO, nth=2)
    try:
        Core(failing, SEGMENT_SIZE, is_healing=True, is_checking_everything=True)
    except OSError:
        return killed(disk)
    raise LookupError("no second rename")


# --- what is to be found ------------------------------------------------------------------------


def report(path: str, environment: Environment | None = None) -> dict[str, Any]:
    """What is found in a directory, without changing it: shallow, deep, and what would be read."""
    found = {}
    for depth in ("shallow", "deep"):
        seen = examine(path, deep=depth == "deep", environment=environment)
        found[depth] = {
            "verdict": seen.verdict.name,
            "lock": str(seen.lock),
            "findings": [
                [f.kind.name, _name(f.path, path), f.offset, f.first_id, f.last_id, f.version]
                for f in seen.all_findings
            ],
            "segments": [
                [s.name, s.is_sealed, s.first_id, s.next_id, s.end, s.is_scanned, s.is_dropped]
                for s in seen.segments
            ],
            "log": [seen.judgement.kept[0].first_id, seen.judgement.kept[-1].next_id - 1]
            if seen.judgement.kept
            else None,
        }
    return {**found, **_meta(seen)}


def _name(path: str, directory: str) -> str:
    return "." if path == directory else os.path.basename(path)


def _meta(seen: DirectoryReport) -> dict[str, Any]:
    state = seen.meta.state if seen.meta is not None else None
    if state is None:
        return {}
    return {
        "vote": state.vote and [state.vote.term, state.vote.node_id, state.vote.committed],
        "purged": _log_id(state.last_purged),
        "committed": _log_id(seen.committed),
        "first_segment": state.first_segment,
        "is_copy": state.is_copy,
        "state": None if state.state is None else state.state.hex(),
    }


def _log_id(log_id: LogId | None) -> list[int] | None:
    return None if log_id is None else [log_id.term, log_id.index, log_id.node_id]


def opened(environment: Environment, path: str, **options: bool) -> dict[str, Any]:
    """What an open makes of it, and leaves; changes it."""
    try:
        core = Core(environment, SEGMENT_SIZE, directory=path, **options)
    except (CorruptionError, UnknownVersionError, WalCopyError) as error:
        return {"error": type(error).__name__}
    try:
        view = core.view()
    except CorruptionError:
        return {"error": "CorruptionError at reading"}
    finally:
        core.close()
    digest = hashlib.sha256()
    for entry in view.entries:
        digest.update(
            b"%d %d %d %d " % (entry.term, entry.index, entry.node_id, len(entry.payload))
        )
        digest.update(entry.payload)
    return {
        "first": view.entries[0].index if view.entries else None,
        "last": _log_id(view.last),
        "entries": digest.hexdigest(),
        "files": sorted(environment.listdir(path)),
    }


def expected(contents: Contents) -> dict[str, Any]:
    return {
        "report": report(DIRECTORY, Disk.of(contents)),
        "opened": opened(Disk.of(contents), DIRECTORY),
        "healed": opened(
            Disk.of(contents), DIRECTORY, is_healing=True, is_checking_everything=True
        ),
    }


def main() -> None:
    logging.disable(logging.CRITICAL)
    for name in sys.argv[1:] or CASES:
        contents = CASES[name]()
        folder = os.path.join(FOLDER, name)
        os.makedirs(folder, exist_ok=True)
        for old in os.listdir(folder):
            os.unlink(os.path.join(folder, old))
        for path, data in contents.items():
            with open(os.path.join(folder, os.path.basename(path)), "wb") as file:
                file.write(data)
        with open(folder + ".json", "w") as file:
            json.dump(expected(contents), file, indent=1, ensure_ascii=False)
            file.write("\n")
        print(
            name, sum(map(len, contents.values())), expected(contents)["report"]["deep"]["verdict"]
        )


if __name__ == "__main__":
    main()
