"""The ``hqlwal`` command. Nothing here is imported by the rest of the package.

It is in three parts: ``_reports`` says what is there, as data; ``_render`` shows that, and is
the only code that prints; ``_commands`` joins the two and decides the exit code.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command with the process's arguments; ends in SystemExit."""
    try:
        from ._commands import hqlwal  # noqa: PLC0415 - click and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"hqlwal: {error.name} is missing: pip install 'hqlwal_raft[cli]'")
    hqlwal(prog_name="hqlwal")
