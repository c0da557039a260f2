"""Damage is refused and nothing is changed; healing, and its crashes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import (
    DATA_START,
    LOCK_NAME,
    META_NAME,
    SLOT_BYTES,
    pack_lock,
    segment_name,
    unpack_lock,
)
from hqlwal_raft._recovery import Recovered, recover
from hqlwal_raft._types import Entry
from hqlwal_raft.audit import Verdict, examine, salvage
from hqlwal_raft.errors import (
    CorruptionError,
    UnknownVersionError,
    WalCopyError,
    WalLockedError,
)
from hqlwal_raft.testing._kernel import MemoryKernel
from tests._directories import (
    PATH,
    VOTE,
    File,
    Store,
    entries_of,
    entry,
    group,
    meta,
    recovered,
)
from tests._openings import (
    DAMAGED,
    LOCK_PATH,
    crashes,
    flipped_before_a_settled_one,
    flipped_before_the_mark,
    log_of_three,
    one_byte_short,
    short_at_a_border,
    short_prepared,
    torn,
    without_lock,
)

# --- refused -----------------------------------------------------------------------------


def damaged_sealed() -> Store:
    file = File(2, group(5, 4), is_sealed=True)
    store = log_of_three()
    store.flip(2, file.offset(1) + 20)
    return store


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_and_nothing_is_changed(name: str) -> None:
    for lock in (None, pack_lock(None), pack_lock(77), b"77\n"):
        store = DAMAGED[name][0]()
        if lock is not None:
            store.files[LOCK_NAME] = bytearray(lock)
        kernel = store.kernel()
        before = kernel.fingerprint()
        contents = kernel.contents()
        with pytest.raises(CorruptionError, match="Nothing was changed") as raised:
            recover(kernel, PATH)
        assert kernel.contents() == contents
        assert kernel.fingerprint() == before
        assert raised.value.path.startswith(PATH)
        directory = Directory(kernel, PATH)
        directory.lock.take()


def test_what_is_refused_says_where_which_entries_and_what_to_do() -> None:
    with pytest.raises(CorruptionError, match="auto_heal=True") as raised:
        recover(flipped_before_a_settled_one().kernel(), PATH)
    error = raised.value
    assert error.path == f"{PATH}/{segment_name(3)}"
    assert (error.offset, error.first_id, error.last_id) == (
        File(3, group(9, 2)).offset(1),
        10,
        10,
    )
    store = log_of_three()
    del store.files[META_NAME]
    with pytest.raises(CorruptionError, match="fresh directory"):
        recover(store.kernel(), PATH, is_healing=True)


@pytest.mark.parametrize("version", [1, 2, 0x99])
def test_other_versions_are_refused_also_where_healing_is_allowed(version: int) -> None:
    store = log_of_three()
    for offset in (7, SLOT_BYTES + 7):
        store.files[META_NAME][offset] = version
    kernel = store.kernel()
    before = kernel.contents()
    with pytest.raises(UnknownVersionError) as raised:
        recover(kernel, PATH, is_healing=True)
    assert raised.value.version == version
    assert kernel.contents() == before


def test_a_backup_is_refused_as_the_same_node() -> None:
    store = torn()
    store.files[META_NAME] = bytearray(meta(1, is_copy=True))
    kernel = store.kernel()
    before = kernel.contents()
    with pytest.raises(WalCopyError, match="backup"):
        recover(kernel, PATH, is_healing=True)
    assert kernel.contents() == before


def test_the_lock_is_refused_with_the_holders_pid_and_what_it_wrote_stays() -> None:
    kernel = log_of_three().kernel()
    holder = recover(kernel, PATH)
    before = kernel.contents()
    assert unpack_lock(before[LOCK_PATH]) == kernel.getpid()
    with pytest.raises(WalLockedError) as raised:
        recover(kernel, PATH)
    assert raised.value.pid == kernel.getpid()
    assert kernel.contents() == before
    holder.directory.close()
    recover(kernel, PATH)


def test_whoever_asks_for_the_lock_does_not_keep_an_open_out() -> None:
    kernel = log_of_three().kernel()
    asking = Directory(kernel, PATH)
    kernel.flock(asking._descriptor, 1 | 4)
    kernel.sleep = lambda seconds: kernel.flock(asking._descriptor, 8)  # type: ignore[method-assign]
    recover(kernel, PATH).directory.close()


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
@pytest.mark.parametrize("name", [segment_name(3), META_NAME, LOCK_NAME])
def test_what_is_no_regular_file_is_refused_without_a_hang(
    tmp_path: Path, kind: str, name: str
) -> None:
    log_of_three().kernel().write_to(str(tmp_path))
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    place = tmp_path / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(victim)
    else:
        place.mkdir()
    with pytest.raises((CorruptionError, OSError)) as raised:
        recover(Environment(), str(tmp_path))
    error = raised.value
    said = str(error) + "".join(getattr(error, "__notes__", ()))
    assert str(place) in said
    assert victim.read_bytes() == b"mine"
    if name == segment_name(3):
        entries, result = recovered_at(tmp_path)
        assert [each.index for each in entries] == list(range(1, 9))
        result.directory.close()


def recovered_at(path: Path) -> tuple[list[Entry], Recovered]:
    result = recover(Environment(), str(path), is_healing=True)
    entries = [e for s in result.segments for e in entries_of(result.directory, s)]
    return entries, result


# --- healing -----------------------------------------------------------------------------


def healthy(store: Store) -> set[Entry]:
    """Every entry whose record is whole somewhere in the directory."""
    kernel = store.kernel()
    numbers = [name for name in store.files if name.endswith(".wal")]
    for name in numbers:
        kernel.rename(f"{PATH}/{name}", f"{PATH}/{name}.broken")
    return {each.entry for each in salvage(PATH, environment=kernel)}


@pytest.mark.parametrize("name", DAMAGED)
def test_healing_keeps_what_is_before_the_damage_and_the_rest_stays_readable(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hqlwal_raft")
    make, last = DAMAGED[name]
    store = make()
    before = healthy(store)
    kernel = store.kernel()
    entries, result = recovered(kernel, is_healing=True)
    assert [each.index for each in entries] == list(range(1, last + 1))
    assert result.last_log_id == (entry(last).log_id if last else None)
    assert result.meta.state.vote == VOTE
    result.directory.close()
    (record,) = caplog.records
    assert str(last or "none") in record.getMessage()
    aside = {each.entry for each in salvage(PATH, environment=kernel)}
    assert before <= aside | set(entries)
    report = examine(PATH, deep=True, environment=kernel)
    assert report.verdict is Verdict.INTACT, report.all_findings
    assert recovered(kernel)[0] == entries


@pytest.mark.parametrize("name", DAMAGED)
def test_a_crash_at_any_step_of_healing_heals_to_the_same_log(name: str) -> None:
    make, _ = DAMAGED[name]
    store = make()
    before = healthy(store)
    kernel = store.kernel()
    expected: list[Entry] = []
    names: list[set[str]] = []

    def run() -> None:
        entries, result = recovered(kernel, is_healing=True)
        expected.extend(entries)
        result.directory.close()
        names.append(set(kernel.contents()))

    images = crashes(kernel, run)
    for image in images:
        again = MemoryKernel.of(image)
        entries, result = recovered(again, is_healing=True)
        assert entries == expected
        result.directory.close()
        # nothing is lost by the crash, and no copy is made twice
        aside = {each.entry for each in salvage(PATH, environment=again)}
        assert before <= aside | set(entries)
        assert set(again.contents()) <= names[0]
        report = examine(PATH, deep=True, environment=again)
        assert report.verdict is Verdict.INTACT, report.all_findings


def test_healing_heals_what_only_a_deep_look_finds() -> None:
    kernel = damaged_sealed().kernel()
    recover(kernel, PATH).directory.close()
    kernel = damaged_sealed().kernel()
    with pytest.raises(CorruptionError):
        recover(kernel, PATH, is_checking_everything=True)
    entries, result = recovered(kernel, is_healing=True, deep=True)
    assert [each.index for each in entries] == [1, 2, 3, 4, 5]
    result.directory.close()
    aside = {each.entry.index for each in salvage(PATH, environment=kernel)}
    assert aside == {5, 7, 8, 9, 10, 11, 12}


def test_a_crash_at_any_step_of_a_deep_healing_never_brings_the_damage_back_unseen() -> None:
    kernel = damaged_sealed().kernel()

    def run() -> None:
        recovered(kernel, is_healing=True, deep=True)[1].directory.close()

    for image in crashes(kernel, run):
        again = MemoryKernel.of(image)
        entries, result = recovered(again, is_healing=True, deep=True)
        assert [each.index for each in entries] == [1, 2, 3, 4, 5]
        result.directory.close()


def test_healing_twice_keeps_both_copies() -> None:
    kernel = flipped_before_the_mark().kernel()
    recovered(kernel, is_healing=True)[1].directory.close()
    descriptor = kernel.open(f"{PATH}/{segment_name(3)}", os.O_RDWR)
    kernel.pwrite(descriptor, b"x", DATA_START + 20)
    kernel.close(descriptor)
    entries, result = recovered(kernel, is_healing=True)
    assert [each.index for each in entries] == list(range(1, 9))
    result.directory.close()
    names = sorted(name for name in kernel.contents() if ".broken" in name)
    assert [os.path.basename(name) for name in names] == [
        segment_name(3) + ".broken",
        segment_name(3) + ".broken.2",
        segment_name(4) + ".broken",
    ]


@pytest.mark.parametrize("make", [one_byte_short, short_at_a_border, short_prepared])
def test_healing_a_short_file_needs_no_space(make: Callable[[], Store]) -> None:
    kernel = make().kernel()
    kernel.capacity_bytes = 1
    entries, result = recovered(kernel, is_healing=True)
    assert len(entries) > 10
    result.directory.close()
    assert recovered(kernel)[0] == entries


def test_healing_on_a_full_disk_changes_nothing() -> None:
    kernel = flipped_before_the_mark().kernel()
    kernel.contents()
    before = kernel.contents()
    kernel.capacity_bytes = 1
    with pytest.raises(OSError) as raised:
        recover(kernel, PATH, is_healing=True)
    assert raised.value.errno == errno.ENOSPC
    assert without_lock(kernel) == before
