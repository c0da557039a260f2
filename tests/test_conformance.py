"""The conformance suite on our storages, and on faulty ones to show that it can fail."""

from __future__ import annotations

import collections
import functools
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
import trio.testing

from hqlwal_raft import Entry, EntryTooLargeError, RaftLogReader, RaftLogStorage
from hqlwal_raft._format import SegmentHeader, segment_name
from hqlwal_raft.blocking import BlockingRaftLogReader, BlockingRaftLogStorage
from hqlwal_raft.protocols import LogReader, LogStorage
from hqlwal_raft.testing import (
    CASES,
    Case,
    MemoryDisk,
    MemoryKernel,
    MemoryLogReader,
    MemoryLogStorage,
    StorageFactory,
    check_log_storage,
)
from tests._mutants import MUTANTS as MUTANTS_OF_THE_REST
from tests._mutants_of_followers import MUTANTS_OF_FOLLOWERS
from tests._support import run_python

MUTANTS = MUTANTS_OF_THE_REST + MUTANTS_OF_FOLLOWERS
BACKENDS = ["asyncio", "trio"]

#: on the real disk: options of open, and the size the payloads are padded to
CONFIGURATIONS: dict[str, tuple[dict[str, Any], int]] = {
    # two records fill a segment: every case crosses segments
    "tiny-segments": ({"segment_size": 8192}, 3000),
    "default": ({}, 0),
}

#: on a disk in memory, which is all the same to the store, and faster
MORE_CONFIGURATIONS: dict[str, tuple[dict[str, Any], int]] = {
    # every record has a segment of its own size
    "jumbo-entries": ({}, 9000),
    "small-entries": ({}, 0),
    "immediate_async": ({"sync": "immediate_async"}, 1500),
    "interval": ({"sync": "interval_5"}, 1500),
    # every append waits for room, and nothing is kept in memory for reading
    "back-pressure": ({"max_unsynced_bytes": 1, "cache_bytes": 0}, 700),
}

each_case = pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


def memory_factory(kind: type[MemoryLogStorage] = MemoryLogStorage) -> StorageFactory:
    disks: dict[str, MemoryDisk] = collections.defaultdict(MemoryDisk)
    return lambda name: kind.open(disks[name])


def run(case: Callable[..., Any], *args: Any, backend: str = "asyncio", **options: Any) -> None:
    anyio.run(functools.partial(case, *args, **options), backend=backend)


def run_in_no_time(case: Callable[..., Any], *args: Any) -> None:
    """Where all tasks wait, time jumps: for storages that have no thread."""
    anyio.run(
        functools.partial(case, *args),
        backend="trio",
        backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)},
    )


@each_case
@pytest.mark.parametrize(
    ("configuration", "backend"),
    [("tiny-segments", "asyncio"), ("tiny-segments", "trio"), ("default", "asyncio")],
)
def test_the_store_keeps_the_contract(
    tmp_path: Path, configuration: str, backend: str, name: str, case: Case
) -> None:
    options, payload_bytes = CONFIGURATIONS[configuration]
    run(
        case,
        lambda name: RaftLogStorage.open(tmp_path / name, **options),
        payload_bytes=payload_bytes,
        backend=backend,
    )


@each_case
@on_each_backend
@pytest.mark.parametrize("configuration", MORE_CONFIGURATIONS)
def test_the_store_keeps_the_contract_however_it_is_opened(
    configuration: str, backend: str, name: str, case: Case
) -> None:
    options, payload_bytes = MORE_CONFIGURATIONS[configuration]
    disk = MemoryKernel()
    run(
        case,
        lambda name: RaftLogStorage.open(
            f"/{name}", segment_size=8192, environment=disk, **options
        ),
        payload_bytes=payload_bytes,
        backend=backend,
    )


@on_each_backend
@pytest.mark.parametrize("payload_bytes", [0, 3000])
def test_the_memory_model_keeps_the_contract(backend: str, payload_bytes: int) -> None:
    run(check_log_storage, memory_factory(), payload_bytes=payload_bytes, backend=backend)


def test_most_cases_cross_segments_where_segments_are_tiny() -> None:
    crossed = {}

    async def check() -> None:
        for name, case in CASES:
            disk = MemoryKernel()
            await case(
                lambda name, disk=disk: RaftLogStorage.open(
                    f"/{name}", segment_size=8192, environment=disk
                ),
                payload_bytes=3000,
            )
            used = [
                path
                for path, data in disk.contents().items()
                if path.endswith(".wal") and not _header(data).is_unused
            ]
            crossed[name] = any(not path.endswith(segment_name(1)) for path in used)

    anyio.run(check)
    assert sum(crossed.values()) > len(CASES) * 3 / 4, [n for n in crossed if not crossed[n]]


def _header(data: bytes) -> SegmentHeader:
    header = SegmentHeader.unpack(data[:64])
    assert isinstance(header, SegmentHeader)
    return header


# --- the suite itself --------------------------------------------------------------------


def test_the_suite_has_many_cases_with_names_of_their_own() -> None:
    names = [name for name, _ in CASES]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    assert all(case.__name__ == name and case.__doc__ for name, case in CASES)


@pytest.mark.parametrize(("mutant", "name"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
@on_each_backend
def test_a_broken_demand_is_caught_and_named(
    backend: str, mutant: type[MemoryLogStorage], name: str
) -> None:
    with pytest.raises(AssertionError) as caught:
        # a mutant that never answers is caught by the end of the patience
        run(dict(CASES)[name], memory_factory(mutant), backend=backend, timeout_seconds=0.5)
    assert str(caught.value).startswith(f"{name}: the demand «")


def test_every_mutant_is_caught_by_a_case_of_its_own_area() -> None:
    assert len(MUTANTS) >= 12
    assert len({name for _, name in MUTANTS}) == len(MUTANTS)


def test_the_whole_suite_reports_every_broken_case_at_once() -> None:
    purges = next(mutant for mutant, _ in MUTANTS if mutant.__name__ == "PurgesOnlyToTheEnd")
    with pytest.raises(AssertionError) as caught:
        run_in_no_time(check_log_storage, memory_factory(purges))  # one case of it hangs
    message = str(caught.value)
    assert f"of {len(CASES)} cases are broken" in message.splitlines()[0]
    assert "- a_purge_beyond_the_end_is_legal: the demand «Beyond the end" in message
    assert "- a_purge_of_an_unused_storage" not in message


def test_a_case_that_hangs_is_broken() -> None:
    class Hangs(MemoryLogStorage):
        async def read_vote(self) -> None:
            await anyio.sleep_forever()

    with pytest.raises(AssertionError, match="did not end within"):
        run(dict(CASES)["an_unused_storage_is_empty"], memory_factory(Hangs), timeout_seconds=0)


def test_an_error_nobody_expects_is_named() -> None:
    class Raises(MemoryLogStorage):
        async def read_vote(self) -> None:
            raise ZeroDivisionError("by the storage")

    with pytest.raises(AssertionError, match=r"it raised ZeroDivisionError\('by the storage'\)"):
        run(dict(CASES)["an_unused_storage_is_empty"], memory_factory(Raises))


def test_the_suite_needs_no_test_framework() -> None:
    out = run_python(
        """
        import sys
        import hqlwal_raft.testing
        print([name for name in ("pytest", "hypothesis", "unittest") if name in sys.modules])
        """
    )
    assert out.strip() == "[]"


def test_both_storages_have_the_methods_of_the_contract(tmp_path: Path) -> None:
    async def check() -> None:
        async with RaftLogStorage.open(tmp_path) as store, MemoryLogStorage.open() as model:
            storages: list[LogStorage] = [store, model]
            for storage in storages:
                assert isinstance(storage, LogStorage)
                reader: LogReader = await storage.get_log_reader()
                assert isinstance(reader, LogReader)

    anyio.run(check)


def names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_faces_and_the_model_have_what_the_contract_has_and_the_rest_is_meant() -> None:
    for reader in (RaftLogReader, BlockingRaftLogReader, MemoryLogReader):
        assert names(reader) == names(LogReader)
    contract = names(LogStorage)
    # about how entries are kept, which is no business of the contract's
    own = {"open", "abandon", "mend", "statistics"}
    assert names(RaftLogStorage) == contract | own
    # asked by other threads, where a call could only tell how it was; the rest is for modules of ours
    asked, inside = (
        {"is_closed", "poison"},
        {"answer_in_forked_child", "close_at_exit", "open_with"},
    )
    for_threads = contract - {"aclose"} | {"close"}
    assert names(BlockingRaftLogStorage) == for_threads | own | asked | inside
    assert names(MemoryLogStorage) == contract | {"open"}


def is_to_be_awaited(kind: type, name: str) -> bool:
    return inspect.iscoroutinefunction(getattr(kind, name))


def test_the_same_methods_are_to_be_awaited_with_the_same_arguments() -> None:
    for contract, kinds in (
        (LogReader, (RaftLogReader, MemoryLogReader)),
        (LogStorage, (RaftLogStorage, MemoryLogStorage)),
    ):
        for name in names(contract):
            wanted = inspect.signature(getattr(contract, name)).parameters.values()
            for kind in kinds:
                found = inspect.signature(getattr(kind, name)).parameters.values()
                assert [(each.name, each.kind) for each in found] == [
                    (each.name, each.kind) for each in wanted
                ], (kind, name)
                assert is_to_be_awaited(kind, name) is is_to_be_awaited(contract, name)


def test_the_memory_model_bounds_the_size_of_entries() -> None:
    async def check() -> None:
        async with MemoryLogStorage.open(max_entry_size=10) as model:
            await model.append([Entry(1, 1, b"x" * 10)])
            with pytest.raises(EntryTooLargeError, match="max_entry_size"):
                await model.append([Entry(1, 2), Entry(1, 3, b"x" * 11)])
            assert await model.try_get_log_entries(0) == [Entry(1, 1, b"x" * 10)]

    anyio.run(check)


# --- the page about it -------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "testing-your-own-storage.md"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python example is run in turn, with the memory model in the place of MyStorage."""
    opened = []

    class MyStorage:
        disks: ClassVar[dict[Any, MemoryDisk]] = collections.defaultdict(MemoryDisk)

        @classmethod
        def open(cls, path: Any) -> Any:
            opened.append(path)
            return MemoryLogStorage.open(cls.disks[path])

    module = types.ModuleType("my_package")
    module.MyStorage = MyStorage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", module)
    one, _three_lines, per_case, _padded, model = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    exec(one, {})
    assert len(opened) >= len(CASES)
    names: dict[str, Any] = {}
    exec(per_case, names)
    names["test_my_storage"](tmp_path, "trio", *CASES[0])
    body = textwrap.indent(model, "    ")
    names = {"Entry": Entry, "anyio": anyio}
    exec(f"async def main():\n{body}\nanyio.run(main)", names)


def test_the_page_tells_the_number_of_cases() -> None:
    assert f"of {len(CASES)} cases are broken" in PAGE.read_text()
