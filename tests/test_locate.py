"""Records of a sealed segment are located piece by piece."""

import random
from pathlib import Path

import pytest

from hqlwal_raft import Entry, LogId, RaftLogStorage, _plans
from tests._support import on_both_backends

SEGMENT_SIZE = 64 << 10


@on_both_backends
@pytest.mark.parametrize("piece", [33, 100, 1000, 4096])
@pytest.mark.parametrize("sizes", ["alike", "mixed"])
async def test_records_are_found_wherever_the_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, sizes: str
) -> None:
    monkeypatch.setattr(_plans, "_PIECE_BYTES", piece)
    random.seed(piece)
    entries = [
        Entry(1, i, random.randbytes(68 if sizes == "alike" else random.choice([0, 1, 68, 5000])))
        for i in range(1, 1500)
    ]
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE) as store:
        await store.append(entries)
        assert store.statistics().segments > 2
    async with RaftLogStorage.open(tmp_path, segment_size=SEGMENT_SIZE, cache_bytes=0) as store:
        assert await store.try_get_log_entries(1) == entries
        for index in (1, 700, 1499):
            assert await store.try_get_log_entries(index, index + 1) == [entries[index - 1]]
        await store.truncate(LogId(1, 700))
        assert await store.try_get_log_entries(690) == entries[689:699]
