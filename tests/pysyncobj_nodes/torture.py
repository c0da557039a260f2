"""Kills a real cluster again and again, and counts what was acknowledged and is gone.

``python -m tests.pysyncobj_nodes.torture --rounds 20 [--stock] [--seed N]``

Three nodes with dump files and a small ``logCompactionMinEntries`` are written to without a
pause. All are killed with SIGKILL at once: in turn right when dump files were replaced, and at a
random moment. Then they are started again, and every node is asked for every number that was
ever acknowledged. With ``--stock`` the same is done to pysyncobj's own journal, with a fresh
cluster each round, since what one round lost would be missing in all later ones.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.pysyncobj_nodes.cluster import Cluster, wait_until

#: entries after which a node compacts its log
COMPACTION = 2000
#: rounds after which a fresh cluster takes over, with the other kind of batching
ROUNDS_PER_CLUSTER = 5


@dataclass
class Round:
    """What one round found."""

    number: int
    moment: str
    acknowledged: int
    missing: int
    recovery_seconds: float


def kill_at_dump(cluster: Cluster, chance: random.Random) -> str:
    """Kills all nodes right after one, two or all of them replaced their dump files."""
    wanted = chance.randint(1, cluster.size)
    before = cluster.dump_inodes()
    deadline = time.monotonic() + 20
    while sum(a != b for a, b in zip(before, cluster.dump_inodes(), strict=True)) < wanted:
        if time.monotonic() > deadline:
            raise AssertionError("no dump file was replaced")
        time.sleep(0.0005)
    cluster.kill()
    return f"at dump {wanted}"


def kill_at_random(cluster: Cluster, chance: random.Random) -> str:
    """Kills all nodes at a moment that depends on nothing."""
    time.sleep(chance.uniform(0.02, 1.0))
    cluster.kill()
    return "at random"


def play_round(cluster: Cluster, number: int, chance: random.Random) -> Round:
    """Writes, kills, starts again, compares."""
    before = cluster.acknowledged()
    cluster.ask_all("write")
    wait_until(lambda: cluster.acknowledged() > before + 3000, "3000 more acknowledged")
    moment = (kill_at_dump if number % 2 else kill_at_random)(cluster, chance)
    started = time.monotonic()
    cluster.start()
    cluster.wait_ready()
    recovery = time.monotonic() - started
    answers = cluster.ask_all("check")
    return Round(
        number,
        moment,
        answers[0]["acknowledged"],
        max(answer["missing"] for answer in answers),
        recovery,
    )


def torture(
    folder: pathlib.Path,
    rounds: int,
    *,
    is_stock: bool = False,
    is_batched: bool = True,
    seed: int | None = None,
    report: Callable[[Round], object] = lambda _round: None,
) -> list[Round]:
    """Plays the rounds in the folder; what each of them found."""
    chance = random.Random(seed)
    found = []
    cluster: Cluster | None = None
    try:
        for number in range(1, rounds + 1):
            if cluster is None or is_stock or number % ROUNDS_PER_CLUSTER == 1:
                if cluster is not None:
                    cluster.close()
                cluster = Cluster(
                    folder / f"from-{number}",
                    stock=is_stock,
                    compaction=COMPACTION,
                    batch=is_batched ^ bool((number - 1) // ROUNDS_PER_CLUSTER % 2),
                )
                cluster.start()
                cluster.wait_ready()
            one = play_round(cluster, number, chance)
            found.append(one)
            report(one)
    finally:
        if cluster is not None:
            cluster.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a cluster again and again.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--stock", action="store_true", help="pysyncobj's own journal instead")
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = options.folder or pathlib.Path(tempfile.mkdtemp(prefix="hqlwal-torture-"))
    print(f"seed {seed}, {folder}", flush=True)

    def say(one: Round) -> None:
        print(
            f"round {one.number:3}: killed {one.moment:9}  acknowledged {one.acknowledged:8,}  "
            f"missing {one.missing:7,}  ready after {one.recovery_seconds:.1f} s",
            flush=True,
        )

    found = torture(folder, options.rounds, is_stock=options.stock, seed=seed, report=say)
    lost = [one for one in found if one.missing]
    print(f"{len(lost)} of {len(found)} rounds lost acknowledged commands")
    if lost and not options.stock:
        print(
            f"replay: python -m tests.pysyncobj_nodes.torture --rounds {len(found)} --seed {seed}"
        )
        print(f"kept for inspection: {folder}")
        return 1
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
