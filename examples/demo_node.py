"""One node of the demo's cluster: a replicated dict on a WAL directory.

Started by ``demo_cluster.py``, which it talks to in lines: ``put KEY VALUE`` and ``read``
come in; ``ack KEY``, ``no KEY REASON``, ``state JSON`` and, five times a second,
``status JSON`` go out. It ends when its input does, so it never outlives the demo.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

from hqlwal_raft.pysyncobj import WalSyncObj, journal_of

STATUS_PERIOD_SECONDS = 0.2

_output_lock = threading.Lock()


def say(line: str) -> None:
    with _output_lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def configuration(folder: str, compact_after: int) -> SyncObjConf:
    return SyncObjConf(
        journalFile=f"{folder}/log",
        fullDumpFile=f"{folder}/dump",
        logCompactionMinEntries=compact_after,
        appendEntriesUseBatch=False,
        connectionRetryTime=0.25,
        leaderFallbackTimeout=2.0,
        commandsWaitLeader=False,
    )


def status_of(node: SyncObj) -> dict[str, Any]:
    status = node.getStatus()
    leader = status["leader"]
    report: dict[str, Any] = {
        "leader": leader.id if leader is not None else None,
        "ready": bool(node.isReady()),
        "term": status["raft_term"],
        "applied": status["last_applied"],
        "log_entries": status["log_len"],
    }
    journal = journal_of(node)
    if journal is not None:  # it is the stock journal otherwise
        statistics = journal.statistics()
        report["syncs"] = statistics.syncs
        report["appended"] = statistics.appended_entries
        report["segments"] = statistics.segments
    return report


def report_until(stopped: threading.Event, node: SyncObj) -> None:
    while True:
        say("status " + json.dumps(status_of(node)))
        if stopped.wait(STATUS_PERIOD_SECONDS):
            return


def serve(node: SyncObj, table: ReplDict) -> None:
    """Carries out the lines of standard input until it ends."""
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "put":
            key, _, value = rest.partition(" ")

            def answered(_result: object, reason: int, key: str = key) -> None:
                say(f"ack {key}" if reason == FAIL_REASON.SUCCESS else f"no {key} {reason}")

            table.set(key, value, callback=answered)
        elif verb == "read":
            applied = node.raftLastApplied  # taken first: the table holds at least that
            say("state " + json.dumps({"applied": applied, "entries": dict(table.rawData())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port of this node")
    parser.add_argument("partners", nargs="+", help="host:port of the others")
    parser.add_argument("--folder", required=True, help="where the log and the dump live")
    parser.add_argument("--compact-after", type=int, default=5000, metavar="ENTRIES")
    parser.add_argument("--journal", choices=["wal", "stock"], default="wal")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    table = ReplDict()
    node_class = WalSyncObj if options.journal == "wal" else SyncObj
    node = node_class(
        options.address,
        options.partners,
        configuration(options.folder, options.compact_after),
        consumers=[table],
    )
    stopped = threading.Event()
    reporter = threading.Thread(target=report_until, args=(stopped, node))
    reporter.start()
    try:
        serve(node, table)
    finally:
        stopped.set()
        reporter.join()
        node.destroy_synchronous()


if __name__ == "__main__":
    main()
