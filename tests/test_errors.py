"""Every public error: it carries its facts, can be copied and sent elsewhere, and holds no payload."""

from __future__ import annotations

import copy
import errno
import importlib
import logging
import pickle
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hqlwal_raft
from hqlwal_raft import (
    Entry,
    LogId,
    RaftLogStorage,
    Vote,
    WalError,
    WalPoisonedError,
    errors,
)
from hqlwal_raft._answers import own
from hqlwal_raft.testing import FailingEnvironment
from tests._support import on_both_backends

#: what each class is made with, besides its message: every fact that it can carry
FACTS: dict[str, dict[str, Any]] = {
    "WalError": {},
    "WalClosedError": {"path": "/log"},
    "WalCopyError": {"path": "/log"},
    "WalLockedError": {"path": "/log", "pid": 7},
    "WalPoisonedError": {"path": "/log"},
    "EntryTooLargeError": {"index": 3, "size": 9, "max_entry_size": 8},
    "LogGapError": {"index": 9, "expected": 4},
    "LogRangeError": {"index": 9, "first_index": 2, "last_log_id": LogId(1, 8)},
    "LogTruncatedError": {"log_id": LogId(1, 3), "found": LogId(2, 3)},
    "LeaderChangedError": {"vote": Vote(1, 1, committed=True), "saved": Vote(2)},
    "RaftRuleError": {"rule": "vote", "given": Vote(1), "held": Vote(2)},
    "CorruptionError": {"path": "/log/x", "offset": 64, "first_id": 1, "last_id": 9},
    "SnapshotError": {"path": "/snapshots", "log_id": LogId(1, 3)},
    "SnapshotOrderError": {"path": "/snapshots", "log_id": LogId(1, 3), "newest": LogId(1, 4)},
    "UnknownVersionError": {"path": "/log/x", "version": 9},
    "WrongLoopError": {"path": "/log"},
    "UnsupportedPlatformError": {},
    "StockJournalError": {},
    "StockJournalDamagedError": {"path": "/journal", "offset": 3},
}


def error_classes() -> dict[str, type[WalError]]:
    """Every class of the tree, wherever in the package it is."""
    for module in pkgutil.walk_packages(hqlwal_raft.__path__, "hqlwal_raft."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type[WalError]) -> Iterator[type[WalError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    return {kind.__name__: kind for kind in below(WalError) if kind.__module__.startswith("hqlwal")}


def test_every_error_class_is_in_the_table_and_at_hand() -> None:
    assert error_classes().keys() == FACTS.keys()
    for name in errors.__all__:
        assert getattr(hqlwal_raft, name) is getattr(errors, name)
        assert name in hqlwal_raft.__all__
        assert getattr(errors, name).__doc__


def sent(error: Any, protocol: int) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda e, n=n: sent(e, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},  # type: ignore[misc]
    "answer": own,
}


def made(name: str) -> WalError:
    """One that was raised, with facts, a cause and a note."""
    error = error_classes()[name](f"what {name} says", **FACTS[name])
    cause = OSError(errno.EIO, "Input/output error", "/log/x")
    cause.add_note("while syncing /log/x")
    try:
        try:
            raise cause
        except OSError as caught:
            raise error from caught
    except WalError as raised:
        raised.add_note("a note")
        return raised


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FACTS)
def test_an_error_is_copied_and_sent_with_its_facts_notes_and_cause_but_no_traceback(
    name: str, way: str
) -> None:
    error = made(name)
    other = WAYS[way](error)
    assert type(other) is type(error)
    assert other is not error
    assert str(other) == str(error) == f"what {name} says"
    assert repr(other) == repr(error)
    assert other.args == error.args
    for fact, value in FACTS[name].items():
        assert getattr(other, fact) == value
    assert vars(other).items() >= FACTS[name].items()
    assert other.__traceback__ is None
    assert other.__notes__ == ["a note"]
    other.__notes__.append("another")
    assert way == "answer" or error.__notes__ == ["a note"]
    cause = other.__cause__
    assert type(cause) is OSError
    assert (cause.errno, cause.filename) == (errno.EIO, "/log/x")
    assert cause.__notes__ == ["while syncing /log/x"]
    assert "while syncing" in "".join(traceback.format_exception(other))
    assert isinstance(other, WalError)


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


def test_a_cause_that_cannot_be_sent_is_told_of() -> None:
    error = WalPoisonedError("the log takes no more writes")
    error.__cause__ = Unpicklable("the device is gone")
    other = sent(error, 5)
    assert type(other.__cause__) is WalError
    assert str(other.__cause__) == "Unpicklable: the device is gone"


def test_an_error_without_cause_or_notes_has_none_afterwards() -> None:
    for way in WAYS.values():
        other = way(WalError("x"))
        assert other.__cause__ is None
        assert not hasattr(other, "__notes__")


# --- payloads ------------------------------------------------------------------------------

MARKER = b"TOP-SECRET-PAYLOAD"
TEXT = MARKER.decode()


def told(error: BaseException) -> str:
    """All that an error says, its causes and facts too."""
    facts = [repr(vars(error))] if hasattr(error, "__dict__") else []
    chain = "".join(traceback.TracebackException.from_exception(error).format_exception_only())
    parts = [str(error), repr(error), chain, *facts, *getattr(error, "__notes__", ())]
    behind = [told(other) for other in (error.__cause__, error.__context__) if other is not None]
    return "\n".join([*parts, *behind])


async def failures(path: Path) -> list[BaseException]:
    """Whatever can go wrong with entries that have the marker for a payload."""
    caught: list[BaseException] = []

    async def fails(call: Any) -> None:
        try:
            await call
        except Exception as error:
            caught.append(error)
        else:
            raise AssertionError("nothing failed")

    entry = Entry(3, 1, MARKER)
    environment = FailingEnvironment()
    async with RaftLogStorage.open(path, max_entry_size=100, environment=environment) as store:
        await store.append([entry])
        bad: list[Any] = [
            *([Entry(3, 5, MARKER)], [Entry(3, 2, MARKER * 50)], [Entry(1, 2, MARKER)]),
            *([Entry(3, 2, TEXT)], [Entry(3, 2, [MARKER])], [Entry(MARKER, 2)], [Entry(3, MARKER)]),  # type: ignore[arg-type]
            *([Entry(3, 2, b"", MARKER)], [MARKER], [TEXT], [(3, 2, MARKER, 0)]),  # type: ignore[arg-type]
            Entry(3, 2, MARKER),
            *(MARKER, TEXT, [Entry(TEXT, 2)], [Entry(3, TEXT)], [Entry(3, 2, b"", TEXT)]),  # type: ignore[arg-type]
            *([Entry(-1, 2, MARKER)], [Entry(3, 1 << 64, MARKER)], [Entry(3, 2.0, MARKER)]),  # type: ignore[arg-type]
            *([Entry(3, 2, memoryview(MARKER).cast("c", (2, 9))), entry], {TEXT: entry}),  # type: ignore[arg-type]
        ]
        for batch in bad:
            await fails(store.append(batch))
            await fails(store.append_after(LogId(3, 1), batch))
        wrong: Any
        for wrong in (entry, MARKER, TEXT, [entry], bytearray(MARKER)):
            await fails(store.append([Entry(3, 2)], wrong))
            await fails(store.append_after(wrong, []))
            await fails(store.truncate(wrong))
            await fails(store.truncate_after(wrong))
            await fails(store.purge(wrong))
            await fails(store.save_vote(wrong))
            await fails(store.save_committed(wrong))
            await fails(store.wait_durable(wrong))
            await fails(store.try_get_log_entries(wrong))
            await fails(store.try_get_log_entry(wrong))
            await fails(store.log_id_at(wrong))
            await fails(store.limited_get_log_entries(0, wrong))
            await fails(store.limited_get_log_entries(0, None, wrong))
            await fails(store.get_key_log_ids(wrong))
            await fails(store.get_key_log_ids(None, wrong))
            await fails(store.save_committed(LogId(wrong, 1)))
            await fails(store.save_vote(Vote(wrong)))
        await fails(store.save_committed(LogId(3, 9)))
        await fails(store.purge(LogId(1, 1)))
        environment.fail("fdatasync", errno.EIO)
        await fails(store.append([Entry(3, 2, MARKER)]))
        await fails(store.append([Entry(3, 2, MARKER)]))
    [segment] = path.glob("*1.wal")
    data = segment.read_bytes()
    place = data.index(MARKER)
    segment.write_bytes(data[:place] + b"X" + data[place + 1 :])

    async def reopen() -> None:
        async with RaftLogStorage.open(path):
            pass

    await fails(reopen())
    async with RaftLogStorage.open(path, auto_heal=True):
        pass
    return caught


@on_both_backends
async def test_no_payload_stands_in_an_error_or_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caught = await failures(tmp_path)
    assert len(caught) > 100
    for error in caught:
        assert "SECRET" not in told(error), error
        assert isinstance(error, (WalError, TypeError, ValueError, OSError)), error
    assert caplog.records
    for record in caplog.records:
        assert "SECRET" not in record.getMessage()


@on_both_backends
async def test_an_error_of_the_system_keeps_its_class_and_number_and_names_the_file(
    tmp_path: Path,
) -> None:
    for call, kind, code in (
        ("posix_fallocate", OSError, errno.ENOSPC),
        ("open", PermissionError, errno.EACCES),
        ("open", OSError, errno.EMFILE),
        ("mkdir", OSError, errno.EROFS),
        ("listdir", OSError, errno.EIO),
    ):
        environment = FailingEnvironment()
        environment.fail(call, code, times=1000)
        with pytest.raises(OSError) as caught:
            async with RaftLogStorage.open(tmp_path / call / "log", environment=environment) as s:
                await s.append([Entry(1, 1, b"x" * 100)])
        for error in (caught.value, copy.copy(caught.value), sent(caught.value, 5)):
            assert type(error) is kind
            assert error.errno == code
            assert str(tmp_path / call) in "\n".join(error.__notes__)
