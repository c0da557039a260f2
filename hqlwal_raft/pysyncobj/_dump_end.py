"""Which entries a dump ends with, read without the classes of the state that is in it, and without
running any code of theirs.

For who moves a journal, in any thread; it blocks. It must not know what becomes of the entries.
"""

from __future__ import annotations

import codecs
import gzip
import pickle
from typing import Any, Self

from ._entries import PlainEntry

__all__ = ["read_last_entries"]

#: what pysyncobj's dumps need to be the values that they are; everything else is passed over
_KNOWN = {
    ("_codecs", "encode"): codecs.encode,
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
}


class _PassedOver:
    """In the place of any object: takes whatever is done to it."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, *_arguments: Any, **_named: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def append(self, _item: Any) -> None: ...

    def extend(self, _items: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), _PassedOver)


def read_last_entries(path: str) -> tuple[PlainEntry, PlainEntry]:
    """The last entry but one that a dump holds, and the last.

    Raises OSError, and ValueError where the file is no dump that pysyncobj itself wrote.
    """
    with open(path, "rb") as file:
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                _, last, before, *_ = _Unpickler(unpacked).load()
            (_, before_index, _), (_, last_index, _) = before, last
        except Exception:  # what was spoilt may raise anything
            before_index = last_index = None
    if before_index is not None and last_index == before_index + 1:
        return before, last
    raise ValueError(
        f"{path} is no dump of pysyncobj's own (conf.serializer may write another kind). Without "
        "it, start the node once more, stop it in order, and export its journal then"
    )
