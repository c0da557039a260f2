"""One node of a real cluster, as a process: a ledger that remembers every number put into it.

Run as ``python -m tests.pysyncobj_nodes.node OPTIONS`` with the options as JSON. It obeys lines
on its standard input and answers with lines of JSON:

``write``   puts numbers for as long as it leads, and notes each acknowledged one in a file
``stop``    stops writing
``check``   says which acknowledged numbers it does not have
``status``  says whether it is ready, whether it leads, and how long its log is
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from hqlwal_raft.pysyncobj import WalSyncObj

PAD = "x" * 80


class LedgerMethods:
    """What both ledgers do; each class needs the decorated methods in its own body."""

    numbers: set[int]


class StockLedger(SyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.numbers: set[int] = set()

    @replicated
    def put(self, number: int, pad: str) -> None:
        self.numbers.add(number)

    @replicated
    def barrier(self) -> None:
        pass


class WalLedger(WalSyncObj):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.numbers: set[int] = set()

    @replicated
    def put(self, number: int, pad: str) -> None:
        self.numbers.add(number)

    @replicated
    def barrier(self) -> None:
        pass


class Writer(threading.Thread):
    """Keeps a window of commands under way and notes what was acknowledged."""

    def __init__(self, ledger: Any, first: int, log: str, window: int) -> None:
        super().__init__(daemon=True)
        self._ledger = ledger
        self._number = first
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._room = threading.Semaphore(window)
        self.wanted = threading.Event()

    def run(self) -> None:
        while True:
            self.wanted.wait()
            if not self._ledger._isLeader():
                time.sleep(0.01)
                continue
            if self._room.acquire(timeout=0.1):
                self._number += 1
                self._put(self._number)

    def _put(self, number: int) -> None:
        def acknowledged(_result: Any, error: int) -> None:
            self._room.release()
            if error == FAIL_REASON.SUCCESS:
                os.write(self._log, b"%d\n" % number)

        self._ledger.put(number, PAD, callback=acknowledged)


def make_ledger(options: dict[str, Any]) -> Any:
    index, addresses, folder = options["index"], options["addresses"], options["folder"]
    conf = SyncObjConf(
        journalFile=f"{folder}/{index}.wal",
        fullDumpFile=f"{folder}/{index}.dump",
        appendEntriesUseBatch=options.get("batch", True),
        logCompactionMinEntries=options.get("compaction", 10**9),
        logCompactionMinTime=10**9,
        raftMinTimeout=0.4,
        raftMaxTimeout=0.9,
        connectionRetryTime=0.1,
        appendEntriesPeriod=options.get("period", 0.05),
    )
    others = [address for address in addresses if address != addresses[index]]
    if options.get("stock", False):
        return StockLedger(addresses[index], others, conf)
    return WalLedger(addresses[index], others, conf, **options.get("store", {}))


def check(ledger: Any, log: str) -> dict[str, Any]:
    acknowledged = set()
    with open(log, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # the last may have been cut by the kill
                acknowledged.add(int(line))
    ledger.barrier(sync=True, timeout=30)
    missing = sorted(acknowledged - ledger.numbers)
    return {
        "acknowledged": len(acknowledged),
        "missing": len(missing),
        "examples": missing[:5],
        "held": len(ledger.numbers),
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    logging.basicConfig(
        filename=f"{options['folder']}/{options['index']}.log",
        level=logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    # what a follower undoes and adds again is pysyncobj's daily life
    logging.getLogger("pysyncobj.syncobj").setLevel(logging.ERROR)
    ledger = make_ledger(options)
    writer = Writer(ledger, options["first"], options["log"], options.get("window", 2000))
    writer.start()
    for line in sys.stdin:
        command = line.strip()
        answer: dict[str, Any] = {"command": command}
        try:
            if command == "write":
                writer.wanted.set()
            elif command == "stop":
                writer.wanted.clear()
            elif command == "check":
                answer |= check(ledger, options["log"])
            elif command == "status":
                answer |= {
                    "ready": ledger.isReady(),
                    "leads": ledger._isLeader(),
                    "log": ledger._getRaftLogSize(),
                    "applied": ledger.raftLastApplied,
                }
            elif command == "quit":
                ledger.destroy_synchronous()
        except Exception as error:
            answer["error"] = repr(error)
        print(json.dumps(answer), flush=True)
        if command == "quit":
            return


if __name__ == "__main__":
    main()
