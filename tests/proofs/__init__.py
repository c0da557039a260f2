"""Loops over everything: every crash, bit, call, opcode, cancellation and order of small histories.

Each loop is a module with a ``run`` of its own; ``python -m tests.proofs`` runs them at length and
replays what one of them found. ``core`` is the only module that knows how the engine is built.
"""
