"""Signal handlers raise wherever the main thread is; a journal called from there stands it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from hqlwal_raft import WalPoisonedError, _appending, _commits
from hqlwal_raft._log import Log
from hqlwal_raft.pysyncobj import WalJournal


def test_a_signal_that_raises_in_the_middle_of_a_call_costs_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(_signal: int, _frame: Any) -> None:
        raise Interrupted

    journal = WalJournal(tmp_path / "journal", segment_size=1 << 16)
    acknowledged: list[tuple[bytes, int, int]] = []
    interruptions = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for attempt in range(400):
            one = (b"attempt %d" % attempt, (acknowledged[-1][1] if acknowledged else 0) + 1, 1)
            try:
                signal.setitimer(signal.ITIMER_REAL, 20e-6 * (attempt % 40 + 1))
                if len(journal) >= one[1]:  # an attempt before was interrupted after it was added
                    journal.deleteEntriesFrom(one[1] - 1)
                journal.add(*one)
                signal.setitimer(signal.ITIMER_REAL, 0)
                acknowledged.append(one)
            except Interrupted:
                interruptions += 1
            except WalPoisonedError:
                break  # it noticed that it was interrupted, and stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        journal._destroy()
    assert interruptions > 0
    again = WalJournal(tmp_path / "journal")
    assert list(again)[: len(acknowledged)] == acknowledged
    again._destroy()


def test_the_main_thread_never_changes_the_log_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    for place, name in (
        (_appending, "append"),
        (_commits, "begin_commit"),
        (_commits, "committed"),
        (_commits, "save_committed"),
        (Log, "set_ends"),
    ):
        original = getattr(place, name)

        def noted(*arguments: Any, original: Any = original) -> Any:
            threads.append(threading.current_thread())
            return original(*arguments)

        monkeypatch.setattr(place, name, noted)
    journal = WalJournal(tmp_path / "journal")
    for index in (1, 2, 3):
        journal.add(b"command", index, 1)
    journal.setCurrentTerm(2, None)
    journal.deleteEntriesFrom(1)
    journal.add(b"another", 2, 2)
    journal.setRaftCommitIndex(2)
    journal.onOneSecondTimer()
    journal._destroy()
    assert len(threads) > 8
    assert threading.main_thread() not in threads
