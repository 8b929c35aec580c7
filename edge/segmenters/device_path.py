"""The way over the GPU, taken until it fails once, and the order in which what is under way there comes back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from edge.cuda.strip import DeviceStrip
from edge.errors import SessionError
from edge.sessions.on_device import DeviceSession

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Ticket = TypeVar("Ticket")
Result = TypeVar("Result")

UNDER_WAY = 2
"""Jobs at once: one is copied to the host while the next one is inferred."""


AskDevice = Callable[[], DeviceSession | None]
"""The part of a session for tiles that computes on a GPU now; None: it does not, or no longer."""


def engine_of(ask: AskDevice) -> DeviceSession:
    """The part that there is. Raises SessionError."""
    engine = ask()
    if engine is None:
        raise SessionError("the session computes on no GPU")
    return engine


class DevicePath:
    """Whether a segmenter's work still goes over the GPU. what: named where that ends."""

    def __init__(self, strip: DeviceStrip, what: str) -> None:
        self.strip, self._what = strip, what
        self.open = True

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """What the work gives on the GPU; None where that fails, then and from then on."""
        if not self.open:
            return None
        try:
            with self.strip.device.active():
                return work()
        except SessionError as error:
            self.open = False
            _log.error("%s: goes on without the strip on the GPU, for good; no line is lost: %s", self._what, error)
            return None


class Overlapped(Generic[Job, Ticket, Result]):
    """Does jobs over the GPU, two at a time, and on the host what it does not do; results come in the order of the jobs.

    begin: puts a job on the GPU's streams. finish: waits for it. instead: does it on the host.
    """

    def __init__(
        self,
        path: DevicePath,
        begin: Callable[[Job], Ticket],
        finish: Callable[[Ticket], Result],
        instead: Callable[[Job], Result],
    ) -> None:
        self._path, self._begin, self._finish, self._instead = path, begin, finish, instead

    def results(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Jobs are drawn as results are taken, one ahead of them at most."""
        under_way: deque[tuple[Job, Ticket | None]] = deque()
        for job in jobs:
            under_way.append((job, self._begun(job)))
            while under_way and (len(under_way) == UNDER_WAY or not self._path.open):
                yield self._result(*under_way.popleft())
        while under_way:
            yield self._result(*under_way.popleft())

    def _begun(self, job: Job) -> Ticket | None:
        return self._path.attempt(lambda: self._begin(job))

    def _result(self, job: Job, ticket: Ticket | None) -> Result:
        done = None if ticket is None else self._path.attempt(lambda: self._finish(ticket))
        return self._instead(job) if done is None else done
