"""Fixtures: running a module's tests in two threads, and what a test must not leave behind.

Where HQLWAL_GROUND is set (``make test-filesystems``) only tests that take a real directory run.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis  # noqa: F401  # before the freeze: it asks who refers to what
import pytest

from tests._leaks import Holdings


@pytest.fixture
def leaves_nothing() -> Iterator[Holdings]:
    """For ``usefixtures``: no thread of a store, and no descriptor, is left when a test ends."""
    before = Holdings()
    yield before
    before.assert_nothing_new()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "HQLWAL_GROUND" not in os.environ:
        return
    chosen = [item for item in items if "tmp_path" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """What the collection made stays to the end: whoever calls the garbage collector, as loops do
    hundreds of times, does not have it look at all the tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["called from the main thread", "called from another thread"])
def calling_thread(request: pytest.FixtureRequest) -> Any:
    """For ``usefixtures``: a test that has it is itself run in that thread."""
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    callspec = getattr(pyfuncitem, "callspec", None)
    if callspec is None or "another" not in str(callspec.params.get("calling_thread")):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    raised: list[BaseException] = []

    def run() -> None:
        try:
            pyfuncitem.obj(**arguments)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return True
