"""The strip reduced on the GPU for a gate whose engine is there too: only the map of scores comes back."""

from __future__ import annotations

from edge.cuda.strip import DeviceStrip
from edge.segmenters.reduction import Reduction
from edge.segmenters.returned import ReturnedScores
from edge.segmenters.spans import Chunk
from edge.segmenters.state import RefilledFeed
from edge.segmenters.stream_path import AskStream, StreamPath
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow


class DeviceMaps:
    """Averages and steps on a GPU; implements `edge.segmenters.maps.MapReader`.

    ask: for the part of the session on the GPU. Raises SessionError.
    """

    def __init__(self, strip: DeviceStrip, ask: AskStream, session: StreamingSession, reduction: Reduction) -> None:
        self._strip, self._reduction = strip, reduction
        self._path = StreamPath(strip, ask, RefilledFeed(session, reduction.columns, reduction.write), "gate")
        self._scores = ReturnedScores(strip, self._path.lane)

    def spans_kept(self, spans_before: int) -> int:
        """Those that the session is fed again."""
        return spans_before

    def begin(self) -> None:
        """A run begins."""
        self._path.begin()

    def read(self, window: StripWindow, chunk: Chunk) -> Scores:
        """Average, step, copy back."""
        scores = self._path.attempt(lambda: self._step(chunk.line))
        return self._path.on_host(window, chunk) if scores is None else scores

    def _step(self, line: int) -> Scores:
        lane, sizes = self._path.lane, self._reduction
        with self._strip.read_by(lane.stream, line, line + sizes.strip_lines) as ring:
            column, out = -sizes.halo * sizes.factor, lane.input.address
            self._strip.kernels.reduce(ring, line, column, sizes.factor, sizes.lines, sizes.columns, out, lane.stream)
        lane.run()
        self._scores.fetch(lane)
        return self._scores.wait(lane)
