"""A simulated cluster: nodes, disks, a network and a clock that are the same in every run.

``python -m hqlwal_raft.testing.simulation`` plays histories of pysyncobj nodes with WAL journals,
each from one seed, until one breaks a promise of Raft's. The same seed gives the same run in
every process. ``docs/testing-your-own-raft.md`` says how to put in a node of another make; what is
exported here knows no pysyncobj (``play`` and the command import it).
"""

from ._clock import Clock, Trace, chance
from ._host import Host, Node, World
from ._judge import Judge, LogEntry, Violation
from ._machine import Machine, Process
from ._network import Arrival, Endpoint, Network, Packet

__all__ = [
    "Arrival",
    "Clock",
    "Endpoint",
    "Host",
    "Judge",
    "LogEntry",
    "Machine",
    "Network",
    "Node",
    "Packet",
    "Process",
    "Trace",
    "Violation",
    "World",
    "chance",
]
