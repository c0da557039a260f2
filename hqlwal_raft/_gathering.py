"""Parts of a write, gathered for as few system calls, and as few copies, as make sense.

Pure functions of bytes, for any thread; they know no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["batches", "behind"]

_IOV_MAX = 1024
_JOIN_BYTES = 256 << 10
_LARGE_BYTES = 16 << 10
_WRITE_BYTES_MAX = 1 << 30  # the kernel takes 2 GiB less a page at a time


def batches(parts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The parts in lists that one system call takes."""
    batch: list[bytes] = []
    size = 0
    for part in _pieces(parts):
        if batch and (len(batch) == _IOV_MAX or size + len(part) > _WRITE_BYTES_MAX):
            yield batch
            batch, size = [], 0
        if part:
            batch.append(part)
            size += len(part)
    if batch:
        yield batch


def _pieces(parts: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces: small ones are joined, large ones stay as they are.

    The kernel takes longer over a hundred small buffers than it takes to copy them.
    """
    if sum(map(len, parts)) <= _JOIN_BYTES:  # as most are, and quicker than one by one
        yield b"".join(parts)
        return
    small: list[bytes] = []
    size = 0
    for part in parts:
        is_large = len(part) > _LARGE_BYTES
        if small and (is_large or size + len(part) > _JOIN_BYTES):
            yield b"".join(small)
            small, size = [], 0
        if is_large:
            yield part
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)


def behind(parts: list[bytes], written: int) -> list[bytes]:
    """What is left of the parts behind the first ``written`` bytes."""
    for place, part in enumerate(parts):
        if written < len(part):
            return [part[written:], *parts[place + 1 :]]
        written -= len(part)
    return []
