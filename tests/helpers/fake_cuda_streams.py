"""Streams, events and captures of the simulated GPUs: queues of work that runs when something makes it run.

Work is a graph: an operation comes after the previous one of its stream and after the events its stream waited for.
When an operation runs is up to the policy:

- "eager": at once.
- "lazy": only when a synchronisation needs it, and only what it needs.
- "random": at every call some operations run, of streams picked by chance; always in an order that CUDA allows.

Apart from when things run, every operation carries a vector clock of what is known to come before it, and the memory
it touches. Two operations that touch the same memory, one of them writing, with nothing that orders them, are a
race: it is reported whatever order they happened to run in.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from helpers.fake_cuda_memory import AccessError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    Policy = Literal["eager", "lazy", "random"]
    Clock = dict[int, int]


@dataclass(frozen=True)
class Access:
    """Memory, or a resource, that an operation touches.

    Attributes:
        resource: "memory", or any token of a thing that must not be used twice at a time (an execution context).
        pointer: first address (0 for a token).
        nbytes: bytes touched (1 for a token).
        write: whether it is written.
    """

    resource: Hashable
    pointer: int
    nbytes: int
    write: bool

    def conflicts(self, other: Access) -> bool:
        """Return whether the two must be ordered."""
        return (
            (self.write or other.write)
            and self.resource == other.resource
            and self.pointer < other.pointer + other.nbytes
            and other.pointer < self.pointer + self.nbytes
        )


def reads(pointer: int, nbytes: int) -> Access:
    """Return the access of reading [pointer, pointer + nbytes)."""
    return Access("memory", pointer, nbytes, write=False)


def writes(pointer: int, nbytes: int) -> Access:
    """Return the access of writing [pointer, pointer + nbytes)."""
    return Access("memory", pointer, nbytes, write=True)


def exclusive(token: Hashable) -> Access:
    """Return the access of using a thing that can serve one user at a time."""
    return Access(token, 0, 1, write=True)


@dataclass(eq=False)
class Operation:
    """Work for a device. `function` runs once, after everything in `after`."""

    label: str
    function: Callable[[], object]
    accesses: tuple[Access, ...]
    device: int
    after: list[Operation] = field(default_factory=list)
    done: bool = False
    finished_at: int = 0


@dataclass(eq=False)
class Stream:
    """A queue. `clock` counts, for every stream, how much of its work is known to come before what is added next."""

    handle: int
    device: int
    blocking: bool
    last: Operation | None = None
    clock: Clock = field(default_factory=dict)
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    """A mark in a stream. Before its first record, waiting for it does nothing, as in CUDA."""

    handle: int
    device: int
    timing: bool
    operation: Operation | None = None
    clock: Clock = field(default_factory=dict)
    capture: Capture | None = None
    queries: int = 0


@dataclass(frozen=True)
class Node:
    """One operation of a captured graph."""

    label: str
    function: Callable[[], object]
    accesses: tuple[Access, ...]


@dataclass(eq=False)
class Capture:
    """A capture under way; `clocks` says for each stream in it what its latest node comes after."""

    origin: Stream
    mode: int
    thread: int
    nodes: list[Node] = field(default_factory=list)
    clocks: dict[int, Clock] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    invalid: bool = False

    def add(self, stream: Stream, node: Node) -> None:
        """Record `node` at the end of `stream`."""
        self.nodes.append(node)
        clock = self.clocks[stream.handle]
        clock[stream.handle] = clock.get(stream.handle, 0) + 1

    def join(self, stream: Stream, clock: Clock) -> None:
        """Make `stream` part of the capture, after what `clock` says."""
        if stream not in self.streams:
            self.streams.append(stream)
            stream.capture = self
        merge(self.clocks.setdefault(stream.handle, {}), clock)

    @property
    def joined(self) -> bool:
        """Whether the work of every stream comes before the end of the first one."""
        end = self.clocks[self.origin.handle]
        return all(end.get(s.handle, 0) >= self.clocks[s.handle].get(s.handle, 0) for s in self.streams)


@dataclass(eq=False)
class GraphExec:
    """An instantiated graph; launches of one graph are ordered one after the other, as in CUDA."""

    nodes: Sequence[Node]
    last: Operation | None = None
    clock: Clock = field(default_factory=dict)


def merge(into: Clock, other: Clock) -> None:
    """Raise every count of `into` to that of `other`."""
    for stream, count in other.items():
        into[stream] = max(into.get(stream, 0), count)


@dataclass(frozen=True)
class _Past:
    """An access that the host has not waited for: operation number `count` of a stream made it."""

    access: Access
    stream: int
    count: int
    label: str


class Scheduler:
    """Runs operations in an order CUDA allows, by a policy, and finds races.

    Args:
        policy: when operations run.
        seed: of the "random" policy.
        violations: where races and failing operations are written down.
        on_fault: called with the device of an operation that failed or touched memory it must not.
    """

    def __init__(self, policy: Policy, seed: int, violations: list[str], on_fault: Callable[[int, bool], None]) -> None:
        self.policy = policy
        self._random = random.Random(seed)  # noqa: S311  a schedule, not a secret
        self._violations = violations
        self._on_fault = on_fault
        self._pending: dict[int, Operation] = {}
        self._time = 0
        self._host: Clock = {}
        self._queued: dict[int, Clock] = {}
        self._past: list[_Past] = []

    def add(self, stream: Stream, node: Node, after: Iterable[Operation | None] = ()) -> Operation:
        """Queue `node` on `stream`, after the work of the stream and the operations in `after`."""
        stream.clock[stream.handle] = stream.clock.get(stream.handle, 0) + 1
        merge(self._queued.setdefault(stream.device, {}), {stream.handle: stream.clock[stream.handle]})
        self._check_races(stream, node)
        earlier = [op for op in (stream.last, *after) if op is not None and not op.done]
        operation = Operation(node.label, node.function, node.accesses, stream.device, earlier)
        stream.last = operation
        self._pending[id(operation)] = operation
        if self.policy == "eager":
            self.force(operation)
        return operation

    def force(self, target: Operation) -> None:
        """Run `target` and what it needs; under "random" perhaps other work before it."""
        while self.policy == "random" and not target.done and self._random.random() < 0.9:
            self.step()
        stack = [target]
        while stack:
            operation = stack[-1]
            waiting = [op for op in operation.after if not op.done]
            if waiting:
                stack.extend(waiting)
            else:
                stack.pop()
                self._run(operation)

    def progress(self) -> None:
        """Let time pass: under "random" some operations run."""
        while self.policy == "random" and self._pending and self._random.random() < 0.5:
            self.step()

    def drain(self, device: int) -> None:
        """Run everything queued on `device`; the host knows it then."""
        for operation in [op for op in self._pending.values() if op.device == device]:
            self.force(operation)
        self.host_waited(self._queued.get(device, {}))

    def step(self) -> None:
        """Run one operation that is ready, picked by chance."""
        ready = [op for op in self._pending.values() if all(before.done for before in op.after)]
        if ready:
            self._run(self._random.choice(ready))

    def host_waited(self, clock: Clock) -> None:
        """Note that the host knows that what `clock` says has finished."""
        merge(self._host, clock)
        self._past = [past for past in self._past if past.count > self._host.get(past.stream, 0)]

    def unfinished(self, pointer: int, nbytes: int) -> list[str]:
        """Return the operations on [pointer, pointer + nbytes) that nothing the host did has waited for."""
        whole = writes(pointer, nbytes)
        return [past.label for past in self._past if past.access.conflicts(whole)]

    def _run(self, operation: Operation) -> None:
        if operation.done:
            return
        operation.done = True
        operation.after.clear()
        self._pending.pop(id(operation), None)
        self._time += 1
        operation.finished_at = self._time
        try:
            operation.function()
        except AccessError:
            self._on_fault(operation.device, True)
        except Exception as error:  # noqa: BLE001  whatever a kernel raises must not pass through an unrelated call
            self._violations.append(f"{operation.label} failed on the device: {error!r}")
            self._on_fault(operation.device, False)

    def _check_races(self, stream: Stream, node: Node) -> None:
        for access in node.accesses:
            for past in self._past:
                ordered = stream.clock.get(past.stream, 0) >= past.count
                if access.conflicts(past.access) and not ordered:
                    what = (
                        f"memory {max(access.pointer, past.access.pointer):#x}"
                        if access.resource == "memory"
                        else f"{access.resource}"
                    )
                    self._violations.append(
                        f"race on {what}: nothing orders {node.label} on stream {stream.handle:#x} "
                        f"after {past.label} on stream {past.stream:#x}"
                    )
        here = stream.clock[stream.handle]
        self._past += [_Past(access, stream.handle, here, node.label) for access in node.accesses]
