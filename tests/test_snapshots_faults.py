"""Snapshots where calls of the system fail, and where the power goes: every call of a history, in
every way in which it can fail, and every state of the disk that a cut at any step could leave.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import LogId, SnapshotError, SnapshotInfo, WalError
from hqlwal_raft._answers import clear
from hqlwal_raft._types import FindingKind
from hqlwal_raft.snapshots import BlockingSnapshotStore, SnapshotStore
from hqlwal_raft.testing import FailingEnvironment, Image, MemoryKernel
from tests._support import on_both_backends
from tests.proofs.disk import Recorder, all_images, present
from tests.proofs.faulty import Fault, FaultyEnvironment, faults_of

PATH = Path("/node/snapshots")
BLOCK_BYTES = 512
SECRET = b"a payload that nobody may read;"


def content(index: int) -> bytes:
    return b"%d:" % index + SECRET * 40


def open_on(environment: Any, keep: int = 1) -> BlockingSnapshotStore:
    return BlockingSnapshotStore.open(
        PATH, keep=keep, block_bytes=BLOCK_BYTES, environment=environment
    )


def publish(store: BlockingSnapshotStore, index: int) -> None:
    with store.create(LogId(1, index)) as writer:
        for offset in range(0, len(content(index)), 700):
            writer.write(content(index)[offset : offset + 700])


def read(store: BlockingSnapshotStore, snapshot: SnapshotInfo) -> bytes:
    with store.read(snapshot) as reader:
        return b"".join(reader)


def shown(environment: Any) -> int:
    """The index of the snapshot that counts, which is whole; 0: there is none."""
    with open_on(environment) as store:
        newest = store.latest()
        if newest is None:
            return 0
        assert read(store, newest) == content(newest.log_id.index)
        return newest.log_id.index


def with_one() -> MemoryKernel:
    kernel = MemoryKernel()
    with open_on(kernel) as store:
        publish(store, 1)
    return kernel


# --- calls that fail -----------------------------------------------------------------------


class Played:
    """One life of a node, with what came of each part of it."""

    def __init__(self, environment: Any) -> None:
        self.errors: list[BaseException] = []
        #: the last one whose publication was acknowledged
        self.published = 1
        try:
            with open_on(environment) as store:
                self._use(store)
        except (Exception, KeyboardInterrupt) as error:
            self.errors.append(error)
            clear(error)  # its frames hold files

    def _use(self, store: BlockingSnapshotStore) -> None:
        try:
            store.latest()
            publish(store, 2)
            self.published = 2
        except (Exception, KeyboardInterrupt) as error:
            self.errors.append(error)
            clear(error)  # its frames hold files
        # whatever failed before: the store goes on
        publish(store, 3)
        self.published = 3
        newest = store.latest()
        assert newest is not None
        assert newest.log_id.index == 3
        assert read(store, newest) == content(3)


def all_faults() -> Iterator[tuple[str, Fault]]:
    quiet = FaultyEnvironment(with_one())
    played = Played(quiet)
    assert (played.errors, played.published) == ([], 3)
    for number, call in enumerate(quiet.calls):
        for fault in faults_of(number, call):
            yield f"{fault} at {call}", fault


def test_whatever_call_fails_there_is_a_whole_snapshot_and_the_store_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # an interrupt in the closing of a file that was let go of: Python says so, and goes on
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    count = 0
    for name, fault in all_faults():
        count += 1
        kernel = with_one()
        environment = FaultyEnvironment(kernel, fault)
        played = Played(environment)
        assert environment.hit is not None, name
        for error in played.errors:
            is_typed = isinstance(error, (OSError, WalError))
            assert is_typed or (fault.interrupt and isinstance(error, fault.interrupt)), (
                name,
                error,
            )
            assert SECRET.decode() not in str(error), name
            if isinstance(error, OSError):
                assert getattr(error, "__notes__", None) or error.filename, name
        if fault.interrupt is None:  # before anybody has the number, no program can close it
            assert open_descriptors(kernel) == 0, name
        # who comes next finds one that is whole, and no lock
        assert shown(kernel.after_kill()) >= played.published, name
        for image in all_images(kernel):
            assert shown(MemoryKernel.of(image)) >= played.published, name
    assert count > 500


def open_descriptors(kernel: MemoryKernel) -> int:
    return len(kernel._descriptors)


ERRORS = {
    "open": errno.EMFILE,
    "fstat": errno.EIO,
    "pwrite": errno.ENOSPC,
    "fdatasync": errno.EIO,
    "stat": errno.EIO,
    "rename": errno.EDQUOT,
    "fsync": errno.EIO,
}


@pytest.mark.parametrize("call", ERRORS)
@on_both_backends
async def test_a_publication_that_fails_says_so_publishes_nothing_and_may_be_tried_again(
    tmp_path: Path, call: str
) -> None:
    environment = FailingEnvironment()
    async with SnapshotStore.open(tmp_path, environment=environment) as store:
        for nth in range(1, 99):
            failed = environment.failed
            environment.fail(call, ERRORS[call], nth=nth)
            writer = store.create(LogId(1, nth))
            try:
                async with writer:
                    await writer.write(content(nth))
            except OSError as error:
                assert error.errno == ERRORS[call]
                assert str(tmp_path) in "".join(error.__notes__)
                assert writer.snapshot is None
                assert all(each.log_id.index < nth for each in store.snapshots())
                environment.heal()
                assert len(list(tmp_path.glob("*.snapshot*"))) == len(store.snapshots())
                async with store.create(LogId(1, nth)) as writer:
                    await writer.write(content(nth))
            environment.heal()
            newest = await store.latest()
            assert newest is not None
            assert newest.log_id.index == nth
            if environment.failed == failed:
                break
        assert environment.failed >= 1


def test_a_publication_that_cannot_be_taken_back_is_whole() -> None:
    kernel = with_one()
    environment = FailingEnvironment(kernel)
    with open_on(environment) as store:
        environment.fail("fsync", errno.EIO, times=99)
        environment.fail("unlink", errno.EIO, times=99)
        with pytest.raises(OSError):
            publish(store, 2)
        newest = store.latest()
        assert newest is not None
        assert newest.log_id.index == 1
        environment.heal()
        # and it stands in nobody's way
        publish(store, 2)
    assert shown(kernel) == 2


# --- the power goes ------------------------------------------------------------------------


def indexes_after_cuts(recorder: Recorder) -> set[int]:
    """What every image that a cut at any step could leave shows; and after another cut."""
    seen: dict[Image, int] = {}
    for moment in recorder.moments:
        for image in moment.images():
            if image not in seen:
                seen[image] = shown_and_kept(image)
    return set(seen.values())


def shown_and_kept(image: Image) -> int:
    """What it shows; a power cut while it is opened, or afterwards, does not change that."""
    kernel = MemoryKernel.of(image)
    recorder = Recorder(kernel, is_recovery=True)
    with recorder:
        index = shown(kernel)
    for moment in recorder.moments:
        for cut in moment.images():
            assert shown(MemoryKernel.of(cut)) == index
    for cut in all_images(kernel):
        assert shown(MemoryKernel.of(cut)) == index
    left = [path for path in kernel.contents() if path.endswith(".tmp")]
    assert left == []
    return index


@pytest.mark.parametrize("keep", [1, 2])
def test_a_cut_at_any_step_leaves_the_old_snapshot_or_the_new_one(keep: int) -> None:
    kernel = with_one()
    with open_on(kernel, keep) as store:
        with Recorder(kernel) as recorder:
            publish(store, 2)
        assert len(recorder.moments) > 5
        assert indexes_after_cuts(recorder) == {1, 2}
        # acknowledged: from now on it is there, whatever goes on
        for image in all_images(kernel):
            assert shown_and_kept(image) == 2
        with Recorder(kernel) as recorder:
            with pytest.raises(ZeroDivisionError), store.create(LogId(1, 3)) as writer:
                writer.write(content(3))
                raise ZeroDivisionError
            with pytest.raises(SnapshotError), store.create(LogId(1, 3)) as writer:
                writer.write(content(3))
                writer.fail("it is so")
        assert indexes_after_cuts(recorder) == {2}


def test_the_first_one_is_there_whole_or_not_at_all() -> None:
    kernel = MemoryKernel()
    with Recorder(kernel) as recorder:
        store = open_on(kernel)
        publish(store, 1)
    with store:
        assert indexes_after_cuts(recorder) == {0, 1}
        for image in all_images(kernel):
            assert shown_and_kept(image) == 1


def test_one_that_was_shown_after_a_kill_survives_a_cut() -> None:
    kernel = with_one()
    with open_on(kernel) as store, Recorder(kernel) as recorder:
        publish(store, 2)
    shows = set()
    for moment in recorder.moments:
        assert moment.present is not None
        # the process dies, and the disk keeps what memory had
        killed = moment.snapshot.build(moment.present)
        shows.add(shown_and_kept(present(killed)))
    assert shows == {1, 2}
    # and where what memory had is durable only in part
    for name in ("renamed", "synced directory"):
        kernel = with_one()
        twins: list[MemoryKernel] = []

        def note(what: str, path: str) -> None:
            if what == name and path.startswith(str(PATH)):  # noqa: B023
                twins.append(kernel.after_kill())  # noqa: B023

        with open_on(kernel) as store:
            kernel.on_point = note
            publish(store, 2)
            kernel.on_point = None
        assert twins
        for twin in twins:
            assert shown(twin) == 2
            for image in all_images(twin):
                assert shown(MemoryKernel.of(image)) == 2


def test_where_the_sync_of_a_directory_is_left_out_a_cut_is_noticed() -> None:
    """The proof can fail: so it would look if a name were shown before it is durable."""

    class Careless(FaultyEnvironment):
        def fsync(self, descriptor: int, /) -> None:
            pass

    kernel = with_one()
    with open_on(Careless(kernel)) as store:
        publish(store, 2)
        assert {shown(MemoryKernel.of(image)) for image in all_images(kernel)} == {1, 2}


def test_damage_of_the_newest_is_found_on_every_image_too() -> None:
    kernel = with_one()
    with open_on(kernel, keep=2) as store:
        publish(store, 2)
        newest = store.snapshots()[-1]
    files = kernel.contents()
    data = bytearray(files[newest.path])
    data[100] ^= 1
    damaged = MemoryKernel.of({**files, newest.path: bytes(data)})
    with open_on(damaged, keep=2) as store:
        assert store.latest() != newest
        assert [each.kind for each in store.findings] == [FindingKind.DAMAGE]
