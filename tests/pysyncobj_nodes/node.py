"""One node of a real cluster, as a process: a ledger that remembers every number put into it.

Run as ``python -m tests.pysyncobj_nodes.node OPTIONS`` with the options as JSON. It obeys lines
on its standard input and answers with lines of JSON:

``write``   puts numbers (for as long as it leads, unless ``everyone`` writes), and notes each
            acknowledged one in a file
``stop``    stops writing
``check``   says which acknowledged numbers it does not have
``state``   says how many numbers it has, a digest of them, and how many came twice
``status``  says whether it is ready, whether it leads, and how long its log is
``quit``    ends it in order

Nothing here is newer than the oldest pysyncobj that is supported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
import time
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjConsumer, replicated
from pysyncobj.version import VERSION

PAD = "x" * 80
#: a paced writer puts so many bursts a second
BURSTS = 50


class Ledger(SyncObjConsumer):
    """The state machine: a set of numbers, and how many of them came more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: set[int] = set()
        self.twice = 0

    @replicated
    def put(self, number: int, pad: str) -> None:
        if number in self.numbers:
            self.twice += 1
        self.numbers.add(number)

    @replicated
    def barrier(self) -> None:
        pass


class Writer(threading.Thread):
    """Puts numbers and notes what was acknowledged: a window of them as fast as it goes, or, paced,
    so many a second whatever became of those before.
    """

    def __init__(self, node: Any, ledger: Ledger, options: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._ledger = ledger
        self._number: int = options["first"]
        self._log = os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._room = threading.Semaphore(options.get("window", 2000))
        self._pace: int = options.get("pace", 0)
        self._is_everyone = options.get("everyone", False)
        self.wanted = threading.Event()

    def run(self) -> None:
        while True:
            self.wanted.wait()
            if not (self._is_everyone or self._node._isLeader()):
                time.sleep(0.01)
            elif self._pace:
                for _ in range(self._pace // BURSTS):
                    self._put()
                time.sleep(1 / BURSTS)
            elif self._room.acquire(timeout=0.1):
                self._put()

    def _put(self) -> None:
        self._number += 1
        number = self._number

        def acknowledged(_result: Any, error: int) -> None:
            self._room.release()
            if error == FAIL_REASON.SUCCESS:
                os.write(self._log, b"%d\n" % number)

        self._ledger.put(number, PAD, callback=acknowledged)


def make_node(options: dict[str, Any], ledger: Ledger) -> Any:
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
    arguments = addresses[index], others, conf, [ledger]
    hiccups = options.get("hiccups")
    if options.get("stock", False):
        if hiccups is not None:
            from tests.pysyncobj_nodes.hiccups import Hiccups, hold_up_stock

            hold_up_stock(Hiccups(*hiccups))
        return SyncObj(*arguments)
    from hqlwal_raft.pysyncobj import WalSyncObj

    store = dict(options.get("store", {}))
    if hiccups is not None:
        from tests.pysyncobj_nodes.hiccups import HiccupingEnvironment, Hiccups

        store["environment"] = HiccupingEnvironment(Hiccups(*hiccups))
    return WalSyncObj(*arguments, **store)


def check(ledger: Ledger, log: str) -> dict[str, Any]:
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


def state(ledger: Ledger) -> dict[str, Any]:
    numbers = sorted(ledger.numbers.copy())
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).hexdigest()
    return {"held": len(numbers), "twice": ledger.twice, "digest": digest}


def main() -> None:
    options = json.loads(sys.argv[1])
    logging.basicConfig(
        filename=f"{options['folder']}/{options['index']}.log",
        level=logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    # what a follower undoes and adds again is pysyncobj's daily life
    logging.getLogger("pysyncobj.syncobj").setLevel(logging.ERROR)
    ledger = Ledger()
    node = make_node(options, ledger)
    writer = Writer(node, ledger, options)
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
            elif command == "state":
                answer |= state(ledger)
            elif command == "status":
                answer |= {
                    "ready": node.isReady(),
                    "leads": node._isLeader(),
                    "log": node._getRaftLogSize(),
                    "applied": node.raftLastApplied,
                    "version": VERSION,
                }
            elif command == "quit":
                writer.wanted.clear()
                node.destroy()
                node._SyncObj__thread.join()
        except Exception as error:
            answer["error"] = repr(error)
        print(json.dumps(answer), flush=True)
        if command == "quit":
            return


if __name__ == "__main__":
    main()
