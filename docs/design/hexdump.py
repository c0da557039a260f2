"""Prints the annotated dump of a real segment that ``format.md`` shows.

The engine writes the segment; only its salt, which is random, is fixed here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import anyio

from hqlwal_raft import Entry, RaftLogStorage
from hqlwal_raft._environment import Environment
from hqlwal_raft._format import LENGTH_MASK, SETTLED

SALT = 0x5A17_5A17
ENTRIES = [
    Entry(term=1, index=1, payload=b"x = 1", node_id=1),
    Entry(term=1, index=2, payload=b"", node_id=1),
    Entry(term=2, index=3, payload=b"y = 2", node_id=3),
]


class WithoutChance(Environment):
    """The real system, but for the salt."""

    def getrandbits(self, bits: int) -> int:
        return SALT


async def write_segment(directory: str) -> bytes:
    environment = WithoutChance()
    async with RaftLogStorage.open(directory, segment_size=8192, environment=environment) as store:
        await store.append(ENTRIES)
    return await anyio.Path(directory, "0000000000000001.wal").read_bytes()


def fields(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Offset, size and meaning of everything in the segment, one after the other."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size])

    header = [
        (7, "magic, {text}"),
        (1, "version {number:#04x}"),
        (8, "id_from = {number}"),
        (8, "id_until = {number}"),
        (4, "data_start = {number}"),
        (4, "data_end = {number}"),
        (4, "salt"),
        (4, "flags = {number}"),
        (8, "length = {number}"),
        (4, "cut = {number}"),
        (8, "reserved"),
        (4, "CRC-32C of the 60 bytes above"),
    ]
    record = [
        (8, "record {number}: id"),
        (4, "  CRC-32C"),
        (4, "  length = {length}{settled}"),
        (8, "  term = {number}"),
        (8, "  node id = {number}"),
    ]

    def told(offset: int, size: int, text: str) -> tuple[int, int, str]:
        shown = data[offset : offset + size]
        found = number(offset, size)
        settled = ", settled" if found & SETTLED else ""
        return (
            offset,
            size,
            text.format(
                number=found, text=repr(shown)[1:], length=found & LENGTH_MASK, settled=settled
            ),
        )

    offset = 0
    for size, text in header:
        yield told(offset, size, text)
        offset += size
    while number(offset, 8):
        length = number(offset + 12, 4) & LENGTH_MASK
        for size, text in record:
            yield told(offset, size, text)
            offset += size
        size = length - 16
        if size:
            yield told(offset, size, "  payload, {text}")
        offset += size
    yield offset, len(data) - offset, f"zeros up to offset {len(data)}"


def render(data: bytes) -> str:
    lines = ["offset  bytes" + " " * 33 + "field"]
    for offset, size, text in fields(data):
        shown = data[offset : offset + size].hex(" ") if size <= 12 else "00 00 00 …"
        lines.append(f"{offset:6}  {shown:<38}{text}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(render(anyio.run(write_segment, folder)))  # noqa: T201
