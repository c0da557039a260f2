"""A journal for pysyncobj on a WAL directory: what was acknowledged survives ``kill -9``.

Three ways in:

- :class:`WalSyncObj`, a ``SyncObj`` whose journal is a WAL directory;
- :func:`install`, for code that cannot change its base class;
- :class:`WalJournal`, the journal itself, for those who build their own.

:func:`import_file_journal` brings a stock journal file over, :func:`export_file_journal` back.
"""

from __future__ import annotations

try:
    import pysyncobj as _pysyncobj  # noqa: F401  asked for here, so that the error can say more
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "hqlwal_raft.pysyncobj needs pysyncobj: pip install 'hqlwal_raft[pysyncobj]'"
    ) from error

from ._checks import SUPPORTED_VERSIONS
from ._hooks import WalSyncObj, install, uninstall
from ._import import ImportReport, StockJournalDamagedError, import_file_journal
from ._journal import WalJournal
from ._moving import export_file_journal, export_in_place, import_in_place
from ._node import journal_of
from ._opening import StockJournalError

__all__ = [
    "SUPPORTED_VERSIONS",
    "ImportReport",
    "StockJournalDamagedError",
    "StockJournalError",
    "WalJournal",
    "WalSyncObj",
    "export_file_journal",
    "export_in_place",
    "import_file_journal",
    "import_in_place",
    "install",
    "journal_of",
    "uninstall",
]
