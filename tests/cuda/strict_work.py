"""Work on the streams of the strict fake: queues, the orders in which hardware may run them, captures."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["late", "early"] | int
"""late: work runs when something waits for it, and no other with it. early: at once. A number: the seed of a random interleaving
of all streams, whenever something waits. What is right gives the same under each of them."""


class Misuse(AssertionError):  # noqa: N818 - says what the caller did
    """What hardware would have answered with rubbish, a crash, or by chance rightly."""


@dataclass(eq=False)
class Queue:
    """What is still to run on a stream."""

    operations: deque[Operation] = field(default_factory=deque)

    def can_run(self) -> bool:
        return bool(self.operations) and (self.operations[0].after is None or self.operations[0].after.done)


@dataclass(eq=False)
class Mark:
    """A place on a stream. capture: the one that it was made in, with the number of operations before it there."""

    queue: Queue
    capture: Capture | None = None
    position: int = 0
    done: bool = False
    seconds: float = 0.0

    def pass_it(self) -> None:
        self.done, self.seconds = True, time.perf_counter()


@dataclass(frozen=True)
class Operation:
    """reads, writes: places in page-locked memory. poison: spoils what it will write. after: what has to be done before."""

    work: Callable[[], None]
    reads: range = range(0)
    writes: range = range(0)
    poison: Callable[[], None] | None = None
    after: Mark | None = None


@dataclass(eq=False)
class Capture:
    """put: operations on each stream that takes part. joined: how many of them the captured one waits for."""

    origin: Queue
    thread: int = field(default_factory=threading.get_ident)
    operations: list[Operation] = field(default_factory=list)
    put: dict[Queue, int] = field(default_factory=dict)
    joined: dict[Queue, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.put[self.origin] = 0

    def record(self, queue: Queue, operation: Operation) -> None:
        self.require(queue)
        self.operations.append(operation)
        self.put[queue] += 1

    def mark(self, queue: Queue) -> Mark:
        self.require(queue)
        return Mark(queue, self, self.put[queue])

    def wait(self, queue: Queue, mark: Mark | None) -> None:
        """A stream that waits for a mark of the capture takes part in it from there on."""
        if mark is None or mark.capture is not self:
            raise Misuse("Stream.wait in a capture for an event that was not recorded in it")
        self.put.setdefault(queue, 0)
        if queue is self.origin:
            self.joined[mark.queue] = mark.position

    def require(self, queue: Queue) -> None:
        if queue not in self.put:
            raise Misuse("work put on a stream during a capture that it is no part of: it would run at once")

    def require_all_joined(self) -> None:
        for queue, put in self.put.items():
            if queue is not self.origin and self.joined.get(queue, 0) != put:
                raise Misuse("capture: a stream was forked, and the captured one does not wait for its end")


class Work:
    """All queues of a device, run in the order of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self._early = schedule == "early"
        self._chance = random.Random(schedule) if isinstance(schedule, int) else None
        self._queues: list[Queue] = []

    def queue(self) -> Queue:
        self._queues.append(queue := Queue())
        return queue

    def put(self, queue: Queue, operation: Operation) -> None:
        # what an earlier copy still has to read is not spoilt
        if operation.poison and not any(overlap(operation.writes, read) for read in self._read()):
            operation.poison()
        queue.operations.append(operation)
        if self._early:
            self.finish(queue)

    def finish(self, queue: Queue) -> None:
        mark = Mark(queue)
        queue.operations.append(Operation(mark.pass_it))
        self.run_until(mark)

    def finish_all(self) -> None:
        for queue in self._queues:
            self.finish(queue)

    def run_until(self, goal: Mark) -> None:
        wanted = [goal]
        while not goal.done:
            if self._chance is not None:
                _run_next(self._chance.choice([queue for queue in self._queues if queue.can_run()]))
                continue
            while wanted[-1].done:
                wanted.pop()
            after = wanted[-1].queue.operations[0].after
            if after is not None and not after.done:
                wanted.append(after)
            else:
                _run_next(wanted[-1].queue)

    def uses(self, span: range) -> bool:
        """Whether a copy from or to a place in page-locked memory is still to run."""
        return any(
            overlap(span, used)
            for queue in self._queues
            for operation in queue.operations
            for used in (operation.reads, operation.writes)
        )

    def drop(self) -> None:
        for queue in self._queues:
            queue.operations.clear()

    def _read(self) -> Iterator[range]:
        for queue in self._queues:
            for operation in queue.operations:
                yield operation.reads


def overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _run_next(queue: Queue) -> None:
    # taken off before it runs: what raises is not run again
    queue.operations.popleft().work()
