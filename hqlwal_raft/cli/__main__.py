"""Makes ``python -m hqlwal_raft.cli`` the same as ``hqlwal``."""

from . import main

main()
