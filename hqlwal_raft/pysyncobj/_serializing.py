"""pysyncobj's serializer, for a node that has a WAL directory: whatever becomes the node's dump is
looked at before it does.

In the node's thread, and in the child that it forks to write a dump.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from pysyncobj.config import SERIALIZER_STATE
from pysyncobj.serializer import Serializer

from . import _repairs
from ._dump import DumpFile

__all__ = ["WalSerializer"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")

_INCOMING = "_Serializer__incomingTransmissionFile"
_FILE_NAME = "_Serializer__fileName"
_IN_MEMORY = "_Serializer__inMemorySerializedData"


class WalSerializer(Serializer):
    """A serializer takes this class after pysyncobj made it (:meth:`adopt`)."""

    #: None where the node has no dump file and keeps its dump in memory
    wal_dump: DumpFile | None
    #: a weak reference
    wal_node: Any
    #: what ``deserialize`` gives next, where that was read already
    wal_state: Any

    @classmethod
    def adopt(cls, serializer: Any, node: Any, dump: DumpFile | None) -> None:
        serializer.__class__ = cls
        serializer.wal_dump = dump
        serializer.wal_node = node
        serializer.wal_state = None

    # --- the node's own dumps ---------------------------------------------------------------

    def serialize(self, data: Any, id: int) -> None:  # noqa: A002 - pysyncobj's name
        if self.__dict__["_Serializer__pid"] != 0:
            return
        if self.wal_dump is not None:
            self.wal_dump.expect(self._own(), id + 1)
        with warnings.catch_warnings():
            # Python warns who forks while other threads run. The log's threads hold no lock that
            # the child needs: it writes the dump, and the log closes itself there.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            super().serialize(data, id)

    def checkSerializing(self) -> Any:
        state, entry = super().checkSerializing()
        if self.wal_dump is not None:
            if state == SERIALIZER_STATE.SUCCESS:
                try:
                    self.wal_dump.finish(self._own())
                except OSError as error:
                    logger.warning("%s cannot replace the dump: %s", self._own(), error)
                    state = SERIALIZER_STATE.FAILED
            elif state == SERIALIZER_STATE.FAILED:
                self.wal_dump.drop(self._own())
        return state, entry

    def _own(self) -> str:
        assert self.wal_dump is not None
        return self.wal_dump.path + ".tmp"

    # --- a leader's dump --------------------------------------------------------------------

    def setTransmissionData(self, data: Any) -> bool:
        """True once a dump is complete and the node shall load it: one that is newer than what
        the node has applied. An older one is dropped; the leader then goes on with entries.
        """
        if data is None or not data[2]:
            return bool(super().setTransmissionData(data))
        if self.wal_dump is None:
            before = self.__dict__[_IN_MEMORY]
            if not super().setTransmissionData(data):
                return False
            if self._is_wanted(None):
                return True
            self.__dict__[_IN_MEMORY] = before
            return False
        incoming = self.__dict__[_INCOMING]
        if data[1] or incoming is None:
            return bool(super().setTransmissionData(data))
        self.__dict__[_INCOMING] = None
        temporary = self.wal_dump.path + ".1.tmp"
        try:
            with incoming:
                incoming.write(data[0])
            if not self._is_wanted(temporary):
                self.wal_dump.drop(temporary)
                return False
            end = self.wal_state[1][1]
            self.wal_dump.expect(temporary, end)
            self._replace(temporary)
            if self.wal_dump.end != end:  # it stayed as it was
                self.wal_state = None
        except OSError as error:
            logger.warning("the dump that the leader sent is not taken: %s", error)
            self.wal_state = None
            return False
        return True

    def _replace(self, temporary: str) -> None:
        """Waits for the disk, which is not the leader's silence."""
        assert self.wal_dump is not None
        monotonic = self.wal_dump.environment.monotonic
        began = monotonic()
        try:
            self.wal_dump.replace(temporary)
        finally:
            if (node := self.wal_node()) is not None:
                _repairs.push_election_deadline(node, monotonic() - began)

    def _is_wanted(self, path: str | None) -> bool:
        """Reads a dump that came whole. What was read is what ``deserialize`` gives next."""
        node = self.wal_node()
        applied = 0 if node is None else node.raftLastApplied
        try:
            state = self._read(path)
            is_newer = _repairs.is_newer_dump(state[1][1], applied)
        except Exception as error:
            logger.warning("the dump that the leader sent cannot be read: %s", error)
            return False
        if is_newer or state[0] is not None:
            self.wal_state = state if is_newer else None
            return is_newer
        # The application's own deserializer has put the older state in place already: the node
        # loads its own dump again, if it has one, and applies the log from there.
        self.wal_state = state
        return True

    def _read(self, path: str | None) -> Any:
        if path is None:
            return super().deserialize()
        own, self.__dict__[_FILE_NAME] = self.__dict__[_FILE_NAME], path
        try:
            return super().deserialize()
        finally:
            self.__dict__[_FILE_NAME] = own

    def deserialize(self) -> Any:
        state, self.wal_state = self.wal_state, None
        if state is None:
            state = super().deserialize()
        if self.wal_dump is not None:
            self.wal_dump.end = max(self.wal_dump.end, state[1][1])
        return state
