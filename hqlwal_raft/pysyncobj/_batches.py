"""Which entries were handed over to the driver and may not be durable yet."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ._driver import Driver
from ._entries import PlainEntry

__all__ = ["Batches"]


class _Batch(NamedTuple):
    first: int
    last: int
    number: int


class Batches:
    """The appends under way, in order of their entries."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._batches: deque[_Batch] = deque()

    def append(self, entries: list[PlainEntry]) -> None:
        """Hands entries over; there is at least one."""
        batches, done = self._batches, self._driver.done
        while batches and batches[0].number <= done:
            batches.popleft()
        number = self._driver.append(entries)
        batches.append(_Batch(entries[0][1], entries[-1][1], number))

    def cut(self, index: int) -> None:
        """The entries from ``index`` on are gone."""
        while self._batches and self._batches[-1].last >= index:
            batch = self._batches.pop()
            if batch.first < index:
                self._batches.append(batch._replace(last=index - 1))

    def clear(self) -> None:
        self._batches.clear()

    def number_of(self, index: int) -> int | None:
        """The operation to wait for so that an entry is durable; None where it is already."""
        for batch in self._batches:
            if batch.first <= index <= batch.last:
                return batch.number
        return None

    def settled_end(self, handed_end: int) -> int:
        """One past the last entry that certainly is in the storage."""
        done = self._driver.done
        for batch in self._batches:
            if batch.number > done:
                return batch.first
        return handed_end
