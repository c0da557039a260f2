"""The operations of a history: each makes one call, and says what its answer would mean.

``Player`` looks them up by name. They note in the ledger what is begun, and leave in the answer what
to note when it succeeds or is refused, and how to check a value. They must not know the engine.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from hqlwal_raft import AppendOutcome, Entry, LogId, MendOutcome, Vote
from tests.torture.ledger import Violation

from .answers import Answer

if TYPE_CHECKING:
    from .store import Player

__all__ = ["OPERATIONS"]


async def _open(player: Player, answer: Answer) -> None:
    player.is_closed_cleanly = False
    player.manager = player.opened(player.environment, player.directory, **player.options)
    player.store = await player.manager.__aenter__()


async def _close(player: Player, answer: Answer) -> None:
    player.store, store = None, player.store
    assert store is not None
    try:
        await player.manager.__aexit__(None, None, None)
        player.is_closed_cleanly = not player.is_poisoned
    except BaseException:
        player.is_poisoned = True
        raise


def _aclose(player: Player, answer: Answer) -> Awaitable[None]:
    """Without leaving the block of ``open``, which ``close`` does."""
    assert player.store is not None
    return player.store.aclose()


def _entries(player: Player, words: tuple[str, ...]) -> list[Entry]:
    last = player.ledger.last
    index = last.index + 1 if last else 1
    entries = []
    for word in words:
        size, _, times = word.partition("*")
        for _ in range(int(times or 1)):
            payload = (b"%d." % index).ljust(int(size), b"x")[: int(size)]
            entries.append(Entry(player.ledger.term, index, payload, next(player.numbers)))
            index += 1
    return entries


def _append(player: Player, answer: Answer, *words: str) -> Awaitable[None]:
    assert player.store is not None
    ledger = player.ledger
    entries = _entries(player, words)
    nodes = answer.nodes = ledger.append(entries)
    has_callback = answer.operation.startswith("append!")
    is_durable = player.is_immediate and not has_callback
    answer.acknowledge = lambda: (ledger.durable if is_durable else ledger.readable)(nodes)

    def undo() -> None:
        left = [node for node in nodes if node in ledger.live]  # some may be truncated by now
        if left and ledger.live[-len(left) :] != left:
            raise Violation("refused, but an append behind it was accepted")
        ledger.withdraw_entries(left)

    answer.undo = undo
    if not has_callback:
        return player.store.append(entries)
    calls = answer.calls = []

    def callback(error: BaseException | None) -> None:
        calls.append(error)
        if error is None:
            ledger.durable(nodes)
        elif isinstance(error, OSError):
            answer.is_taken_back = True
            if answer.is_settled:
                undo()

    return player.store.append(entries, callback)


def _receive(player: Player, answer: Answer, word: str, *words: str) -> Awaitable[AppendOutcome]:
    """What a leader sends: one entry that is held, then others in the place of the last ``word``;
    without others, those are what it sends.
    """
    assert player.store is not None
    ledger = player.ledger
    index = _index(player, word)
    held = [node.entry for node in ledger.live if node.entry.index < index][-2:]
    prev = held.pop(0).log_id if held[1:] else ledger.frontier
    if not words:
        held += [node.entry for node in ledger.live if node.entry.index >= index]
    cut = ledger.truncate(index) if words else []
    ledger.term += bool(cut)
    entries = _entries(player, words)
    nodes = answer.nodes = ledger.append(entries)
    want = AppendOutcome(
        matched=True,
        last_log_id=ledger.last,
        truncated_from=index if cut else None,
        appended=len(entries),
    )

    def acknowledge() -> None:
        if cut:
            ledger.cut_durable(cut)
        (ledger.durable if player.is_immediate else ledger.readable)(nodes)

    def undo() -> None:
        ledger.withdraw_entries([node for node in nodes if node in ledger.live])
        # where the disk refused it, the log may have been cut
        answer.is_half = isinstance(answer.error, OSError)
        if not answer.is_half:
            ledger.restore(cut)

    answer.acknowledge, answer.undo = acknowledge, undo
    answer.check = lambda value: (
        None if value == want or len(player.called) > 1 else f"{value} instead of {want}"
    )
    return player.store.append_after(prev, held + entries)


def _index(player: Player, word: str) -> int:
    """The index of the last but ``word``."""
    live = player.ledger.live
    if not live:
        return 1
    return live[0].entry.index if word == "all" else live[-1].entry.index + 1 - int(word)


def _cut(player: Player, answer: Answer, index: int) -> None:
    ledger = player.ledger
    cut = ledger.truncate(index)
    ledger.term += 1
    answer.acknowledge = lambda: ledger.cut_durable(cut)
    answer.undo = lambda: ledger.restore(cut)


def _truncate(player: Player, answer: Answer, word: str) -> Awaitable[None]:
    assert player.store is not None
    index = _index(player, word)
    term = player.ledger.term
    _cut(player, answer, index)
    return player.store.truncate(LogId(term, index))


def _after(player: Player, answer: Answer, word: str) -> Awaitable[None]:
    assert player.store is not None
    kept = [node for node in player.ledger.live if node.entry.index < _index(player, word)]
    if word == "none" or not kept:
        log_id = None
        _cut(player, answer, _index(player, "all"))
    else:
        log_id = kept[-1].entry.log_id
        _cut(player, answer, log_id.index + 1)
    return player.store.truncate_after(log_id)


def _purge(player: Player, answer: Answer, word: str) -> Awaitable[None]:
    assert player.store is not None
    ledger = player.ledger
    live, last = ledger.live, ledger.last
    if word.startswith("+") or not live:
        number = next(player.numbers)
        index = (last.index if last else 0) + int(word.strip("+al") or 1)
        log_id = LogId(max(ledger.term, last.term if last else 0), index, number)
    else:
        place = len(live) if word == "all" else min(int(word), len(live))
        log_id = live[place - 1].entry.log_id
    frontier = ledger.purge(log_id)
    answer.acknowledge = lambda: ledger.saved(frontier)

    def undo() -> None:
        behind = ledger.live  # what was appended behind it stays
        ledger.withdraw(frontier)
        purged = [node for node in ledger.live if node.entry.index <= log_id.index]
        ledger.live = purged + behind

    answer.undo = undo
    return player.store.purge(log_id)


def _vote(player: Player, answer: Answer) -> Awaitable[None]:
    assert player.store is not None
    ledger = player.ledger
    vote = Vote(next(player.numbers), "n", committed=True)
    saved = ledger.save_vote(vote)
    answer.acknowledge = lambda: ledger.saved(saved)
    answer.undo = lambda: ledger._votes.remove(saved)
    return player.store.save_vote(vote)


def _committed(player: Player, answer: Answer) -> Awaitable[None]:
    assert player.store is not None
    ledger = player.ledger
    ledger.save_committed(ledger.last)
    saved = ledger._committed[-1]
    answer.undo = lambda: ledger._committed.remove(saved)
    return player.store.save_committed(player.ledger.last)


def _flush(player: Player, answer: Answer) -> Awaitable[None]:
    assert player.store is not None
    ledger, nodes = player.ledger, list(player.ledger.live)

    def acknowledge() -> None:
        # what was refused meanwhile is no longer live, what was interrupted may not be
        unknown = [node for each in player.called if each.is_unknown for node in each.nodes]
        ledger.durable([n for n in nodes if n in ledger.live and n not in unknown])

    answer.acknowledge = acknowledge
    return player.store.flush()


def _mend(player: Player, answer: Answer) -> Awaitable[MendOutcome]:
    """Where nothing is damaged, nothing is changed."""
    assert player.store is not None
    answer.check = lambda value: None if value == MendOutcome() else f"{value}"
    return player.store.mend([node.entry for node in player.ledger.live])


# --- reading


def _find_strange(player: Player, value: list[Entry]) -> str | None:
    """An entry that no append brought: what a poisoned store still shows must be real."""
    nodes = player.ledger._nodes
    for entry in value:
        if entry.log_id not in nodes or nodes[entry.log_id].entry != entry:
            return f"read {entry}"
    return None


def _expects(player: Player, answer: Answer) -> None:
    entries = [node.entry for node in player.ledger.live]

    def check(value: list[Entry]) -> str | None:
        if player.is_poisoned:
            return _find_strange(player, value)
        if value == entries or len(player.called) > 1:
            return None
        return f"read {_text(value)} instead of {_text(entries)}"

    answer.check = check


def _read(player: Player, answer: Answer) -> Awaitable[list[Entry]]:
    assert player.store is not None
    _expects(player, answer)
    return player.store.try_get_log_entries(0)


def _limited(player: Player, answer: Answer, word: str) -> Awaitable[list[Entry]]:
    assert player.store is not None
    entries = [node.entry for node in player.ledger.live]
    answer.check = lambda value: (
        None
        if (value == entries[: len(value)] and bool(value) == bool(entries))
        or len(player.called) > 1
        or player.is_poisoned
        else f"read {_text(value)} of {_text(entries)}"
    )
    return player.store.limited_get_log_entries(0, None, int(word))


async def _stream(player: Player, answer: Answer) -> list[Entry]:
    assert player.store is not None
    _expects(player, answer)
    return [entry async for entry in player.store.entries_stream(0)]


async def _leader(player: Player, answer: Answer) -> list[Entry]:
    assert player.store is not None
    vote = await player.store.read_vote()
    if vote is None:
        return []
    _expects(player, answer)
    return [entry async for entry in player.store.leader_bounded_stream(vote, 0)]


def _keys(player: Player, answer: Answer) -> Awaitable[list[LogId]]:
    assert player.store is not None
    # each entry has a leader of its own
    ids = [node.entry.log_id for node in player.ledger.live]
    answer.check = lambda value: (
        None
        if value == ids or len(player.called) > 1 or player.is_poisoned
        else f"{value} instead of {ids}"
    )
    return player.store.get_key_log_ids()


def _state(player: Player, answer: Answer) -> Awaitable[Any]:
    assert player.store is not None
    return player.store.get_log_state()


async def _reader(player: Player, answer: Answer) -> list[Entry]:
    assert player.store is not None
    _expects(player, answer)
    return await (await player.store.get_log_reader()).try_get_log_entries(0)


def _text(entries: list[Entry]) -> str:
    return re.sub(r"[LogId()a-z_= ]", "", str([entry.log_id for entry in entries]))[:120]


#: by name
OPERATIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    "open": _open,
    "close": _close,
    "aclose": _aclose,
    "append": _append,
    "receive": _receive,
    "mend": _mend,
    "truncate": _truncate,
    "after": _after,
    "purge": _purge,
    "vote": _vote,
    "committed": _committed,
    "flush": _flush,
    "read": _read,
    "limited": _limited,
    "stream": _stream,
    "leader": _leader,
    "keys": _keys,
    "state": _state,
    "reader": _reader,
}
