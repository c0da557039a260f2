"""A host runs a node: it starts its process, wakes it, pauses it, and notices that it died.

What a node is, is of no matter here: :class:`Node` is all that is asked of it. So whoever writes
another Raft puts in a class of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from ._clock import Clock, Trace, chance
from ._machine import Died, Machine, Process
from ._network import Endpoint, Network

__all__ = ["Host", "Node", "World"]


class Node(Protocol):
    """What runs on a host. It is made with the host, and ends without being told.

    It keeps what must last in the files of ``host.process``, an ``Environment``, and nowhere
    else; the time is ``host.process.now``, chance ``host.process.chance``; what has arrived is
    in ``host.endpoint.inbox``.
    """

    def wake(self) -> float:
        """Does what there is to do now: in how many seconds it wants to be woken again.

        Something that arrives wakes it earlier.
        """

    def stop(self) -> None:
        """Ends in good order."""


class World:
    """What all hosts of a simulation have in common."""

    def __init__(self, seed: int, *, keeps_lines: bool = False) -> None:
        self.seed = seed
        self.clock = Clock()
        self.trace = Trace(self.clock, keeps_lines=keeps_lines)
        self.network = Network(self.clock, chance(seed, "network"), self.trace)
        #: the host whose process runs just now
        self.running: Host | None = None


class Host:
    """A machine on the network, and the node on it."""

    def __init__(self, world: World, name: str, make: Callable[[Host], Node]) -> None:
        self.world = world
        self.name = name
        self.machine = Machine(name, world.clock, world.seed)
        self.process: Process | None = None
        self.node: Node | None = None
        self.endpoint: Endpoint | None = None
        self.is_paused = False
        #: how long, since its process began
        self.paused_seconds = 0.0
        self.starts = 0
        #: those that ended are only memory, which a child of theirs still has
        self.processes: list[Process] = []
        #: told of a node that raised, or could not be made; without it, the error is raised
        self.on_error: Callable[[Host, BaseException], None] | None = None
        #: told of the end of a process, before the next begins
        self.on_end: Callable[[Host], None] | None = None
        #: told whenever the node has run
        self.on_run: Callable[[Host], None] | None = None
        self._make = make
        self._wakes_at = math.inf
        self._planned = math.inf
        self._plan = 0

    @property
    def is_up(self) -> bool:
        return self.node is not None

    # --- life and death ------------------------------------------------------------------

    def start(self) -> None:
        """A process begins, and in it a node. Where it cannot, ``on_error`` is told."""
        if self.process is not None:
            return
        self.starts += 1
        self.world.trace.note(self.name, "starts")
        process = self.process = self.machine.start()
        self.processes.append(process)
        self.endpoint = self.world.network.attach(self.name, self._arrived)
        self.is_paused, self.paused_seconds = False, 0.0
        self._wakes_at = math.inf

        def make() -> None:
            self.node = self._make(self)

        if self._run(make) and self.node is not None:
            self._wakes_at = process.now
            self._schedule()

    def die(self, *, has_power: bool) -> None:
        """Kills the process, or cuts the machine's power, now."""
        process, machine = self.process, self.machine
        if process is not None:
            process.death = machine.kill if has_power else machine.cut_power
            process.die()
            self._bury()
        elif not has_power:
            machine.cut_power()

    def stop(self) -> None:
        """Ends the node in good order."""
        if self.node is not None and not self.is_paused:
            self.world.trace.note(self.name, "is stopped")
            self.call_soon(self.node.stop)
        self.die(has_power=True)

    def _bury(self) -> None:
        """What has to be done once a process is dead."""
        process, endpoint = self.process, self.endpoint
        assert process is not None
        if endpoint is not None:
            now = max(self.world.clock.now, min(process.now, process.dies_at))
            self.world.network.detach(endpoint, now, has_power=self.machine.has_power)
        self.world.trace.note(self.name, "ended after", process.disk_calls, "calls of the disk")
        self.process = self.node = self.endpoint = None
        if self.on_end is not None:
            self.on_end(self)

    def pause(self, seconds: float) -> None:
        """As SIGSTOP does, and SIGCONT later: what arrives is kept, and the clock goes on."""
        if self.process is not None and not self.is_paused:
            self.is_paused = True
            process = self.process

            def resume() -> None:
                if self.process is process:
                    self.is_paused = False
                    self.paused_seconds += seconds
                    process.now = max(process.now, self.world.clock.now)
                    self._schedule()

            self.world.clock.after(seconds, resume)

    # --- waking --------------------------------------------------------------------------

    def _arrived(self) -> None:
        self._wakes_at = min(self._wakes_at, self.world.clock.now)
        self._schedule()

    def call_soon(self, call: Callable[[], Any]) -> bool:
        """Makes a call of the node's process, as an application does in it; False where none is."""
        if self.node is None or self.is_paused or self.process is None:
            return False
        self.process.now = max(self.process.now, self.world.clock.now)
        self._run(call)
        self._arrived()
        return True

    def _schedule(self) -> None:
        process = self.process
        if process is None or self.is_paused:
            return
        when = math.inf if self.node is None else max(self._wakes_at, process.now)
        background = process.next_background
        if background is not None:
            when = min(when, background)
        if when < self._planned or self._planned < self.world.clock.now:
            self._planned = when
            self._plan += 1
            self.world.clock.at(when, self._due, self._plan)

    def _due(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._planned = math.inf
        process = self.process
        if process is None or self.is_paused:
            return
        now = self.world.clock.now
        background = process.next_background
        if background is not None and background <= now:
            self._run(lambda: process.run_background(now))
        if self.node is not None and max(self._wakes_at, process.now) <= now:
            process.now = now
            self._run(self._wake)
        self._schedule()

    def _wake(self) -> None:
        assert self.node is not None
        assert self.process is not None
        self._wakes_at = math.inf
        wait = self.node.wake()
        if self.endpoint is not None and self.endpoint.inbox:
            wait = min(wait, 0.0001)
        self._wakes_at = min(self._wakes_at, self.process.now + wait)

    def _run(self, call: Callable[[], Any]) -> bool:
        """Whether the process is still there after it."""
        process, world = self.process, self.world
        assert process is not None
        before, world.running = world.running, self
        error: BaseException | None = None
        try:
            call()
        except Died:
            pass
        except Exception as raised:
            error = raised
        finally:
            world.running = before
        if process.is_dead:
            if self.process is process:
                self._bury()
            return False
        if error is not None:
            if self.on_error is None:
                raise error
            self.on_error(self, error)
        if self.on_run is not None and self.process is process:
            self.on_run(self)
        return self.process is process
