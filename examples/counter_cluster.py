"""A replicated counter: pysyncobj on write-ahead logs, one node per terminal.

In three terminals::

    python examples/counter_cluster.py 1
    python examples/counter_cluster.py 2
    python examples/counter_cluster.py 3

Then type ``+`` (or a number) and Enter in any of them. Kill any of them, or all of them with
``kill -9``, and start them again: the counter goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pysyncobj import FAIL_REASON, SyncObjConf, replicated

from hqlwal_raft.pysyncobj import WalSyncObj

FIRST_PORT = 4321


class Counter(WalSyncObj):
    """The only difference to a plain SyncObj is the base class."""

    def __init__(self, address: str, partners: list[str], folder: Path) -> None:
        conf = SyncObjConf(
            journalFile=str(folder / "counter.wal"),
            fullDumpFile=str(folder / "counter.dump"),
            connectionRetryTime=1.0,
            commandsWaitLeader=False,
        )
        super().__init__(address, partners, conf)
        self._value = 0

    @replicated
    def add(self, number: int) -> int:
        self._value += number
        return self._value

    def value(self) -> int:
        return self._value


def describe(counter: Counter) -> str:
    status = counter.getStatus()
    leader = status["leader"].id if status["leader"] is not None else "nobody"
    return f"counter = {counter.value()}   (leader: {leader}, term {status['raft_term']})"


def serve(counter: Counter) -> None:
    for line in sys.stdin:
        word = line.strip()
        try:
            number = 1 if word == "+" else int(word or 0)
        except ValueError:
            print("type + or a number; an empty line shows the counter; Ctrl-D ends the node")
            continue
        if number:
            try:
                # Returns once a majority has the command durably on disk.
                counter.add(number, sync=True, timeout=5)
            except Exception as error:
                reason = getattr(error, "errorCode", error)
                if reason == FAIL_REASON.MISSING_LEADER:
                    reason = "no leader yet: is a majority of the nodes running?"
                print(f"not acknowledged: {reason}")
        print(describe(counter), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("number", type=int, choices=[1, 2, 3], help="which of the three nodes")
    parser.add_argument(
        "--folder", type=Path, default=Path("counter-data"), help="where the logs live"
    )
    parser.add_argument(
        "--first-port", type=int, default=FIRST_PORT, help="of the three (default: %(default)s)"
    )
    options = parser.parse_args()
    addresses = [f"127.0.0.1:{options.first_port + n}" for n in range(3)]
    address = addresses.pop(options.number - 1)
    folder = options.folder / f"node-{options.number}"
    folder.mkdir(parents=True, exist_ok=True)
    counter = Counter(address, addresses, folder)
    print(f"node {options.number} at {address}, log in {folder}; type + and Enter", flush=True)
    try:
        serve(counter)
    except KeyboardInterrupt:
        pass
    finally:
        counter.destroy_synchronous()


if __name__ == "__main__":
    main()
