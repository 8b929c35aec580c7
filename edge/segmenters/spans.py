"""However the lines of a run arrive, the segmenters see them in the same spans, anchored in strip coordinates."""

from __future__ import annotations

from collections.abc import Iterator

from edge.errors import ConfigError
from edge.frame import Lines
from edge.window import StripWindow


class SpanFeed:
    """Re-cuts a run to the spans [k * step - before, k * step + after) and says when each can be cut out of `window`.

    Span k finishes the mask rows [k * step - delay, (k + 1) * step - delay). The spans of a run are those that finish
    rows of it, and the ones before whose lines those rows depend on; where spans overlap because delay is below 0, none
    that begins before another one that the run's begin lies in.
    mirrored: how many lines before a row may, reflected at the run's end, still matter to it.
    """

    def __init__(self, width: int, *, step: int, before: int, after: int, delay: int, mirrored: int = 0) -> None:
        self.step = step
        self.before = before
        self.after = after
        self._delay = delay
        self._mirrored = mirrored
        # Behind the newest line a cut reaches back over one span; at a run's begin over the lines that are reflected
        # there, at its end over those reflected beyond it. Lines are appended `step` at a time.
        capacity = max(before + step + 1, before + after, delay + after + 1) + step
        self.window = StripWindow(width, capacity)
        self.window.end()
        self._first_line = 0
        self._span = self._first_span = 0

    @property
    def lag_lines(self) -> int:
        """Lines after a row that its span wants at most: to its own end, or as many as are reflected at the run's begin."""
        return max(self._delay + self.after, self.before + self.step)

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its spans look at, back to the strip's first line at most."""
        first = min(self._span_of(first_line) * self.step - self.before, first_line - self._mirrored)
        return first_line - max(0, first)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run at `first_line`. The run is reflected before its context, which may be shorter than asked for."""
        kept = min(self.context_lines(first_line), 0 if context is None else len(context))
        self._first_line = first_line
        self._span = self._first_span = max(self._span_of(first_line), (first_line - kept) // self.step)
        self.window.start(first_line - kept)
        if context is not None and kept:
            for position in range(len(context) - kept, len(context), self.step):
                self.window.append(context[position : position + self.step])

    def push(self, lines: Lines) -> Iterator[int]:
        """Take lines; yields each span as soon as it can be cut. Exhaust the iterator before the next call."""
        for position in range(0, len(lines), self.step):
            self.window.append(lines[position : position + self.step])
            yield from self._ready()

    def finish(self) -> Iterator[int]:
        """End the run; yields the spans that are left, whose lines beyond the end are reflected."""
        self.window.end()
        if self.window.line_stop > self._first_line:
            yield from self._ready()

    def rows(self, span: int) -> tuple[int, int]:
        """Mask rows of the run that a span finishes, half-open; none where the stop is not above the start."""
        start = span * self.step - self._delay
        return max(start, self._first_line), min(start + self.step, self.window.line_stop)

    def _span_of(self, line: int) -> int:
        """The first span whose lines the mask row depends on, in a run that began long before."""
        return max(0, (line + min(self._delay, 0)) // self.step)

    def _ready(self) -> Iterator[int]:
        while self._span == self._first_span or self._span * self.step - self._delay < self.window.line_stop:
            start = self._span * self.step
            if not self.window.can_cut(start - self.before, start + self.after):
                return
            yield self._span
            self._span += 1


def check_geometry(*, halo: int, stride: int, **sizes: int) -> None:
    """Halo, and the sizes named, must be multiples of the engine's stride, or its rows would shift. Raises ConfigError."""
    for name, size in {"halo": halo, **sizes}.items():
        if size % stride or (size < 1 and name != "halo") or size < 0:
            raise ConfigError(f"{name}: got {size}; expected a multiple of the engine's stride {stride}")
