"""However the lines of a run arrive, the segmenters see them in the same spans, anchored in strip coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge.errors import ConfigError
from edge.frame import Lines
from edge.window import StripWindow

OpenWindow = Callable[[int, int], StripWindow]
"""Columns of the strip, lines to keep -> a window."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lines of the strip that a streaming engine is fed together.

    line: the first of them, maybe before the strip. before: where the chunks begin that an engine at rest is fed before this
    one, so that the rows which this one finishes have the bits of an unbroken run.
    """

    line: int
    before: range


class Spans:
    """The spans [k * step - before, k * step + after) of a run, and which of them can be cut out of its window.

    Span k finishes the mask rows [k * step - delay, (k + 1) * step - delay). The spans of a run are those that finish
    rows of it, and the ones before whose lines those rows depend on; where spans overlap because delay is below 0, none
    that begins before another one that the run's begin lies in.
    mirrored: how many lines before a row may, reflected at the run's end, still matter to it.
    kept: how many spans before the one that is ready can still be cut.
    """

    def __init__(self, *, step: int, before: int, after: int, delay: int, mirrored: int = 0, kept: int = 0) -> None:
        self.step = step
        self.before = before
        self.after = after
        self._delay = delay
        self._mirrored = mirrored
        self.kept_lines = kept * step
        self._window: StripWindow | None = None
        self._first_line = 0
        self._span = self._first_span = 0

    @property
    def lag_lines(self) -> int:
        """Lines after a row that its span wants at most: to its own end, or as many as are reflected at the run's begin."""
        return max(self._delay + self.after, self.before + self.step)

    @property
    def settling_lines(self) -> int:
        """Lines after a multiple of `step` that are wanted, far from a run's begin, until all rows before it are finished."""
        return self.after - self.step + self._delay + -self._delay % self.step

    @property
    def capacity(self) -> int:
        """Lines that a window must keep to which lines are appended at most `step` at a time."""
        # Behind the newest line a cut reaches back over one span; at a run's begin over the lines that are reflected
        # there, at its end over those reflected beyond it.
        reach = max(self.before + self.step + 1, self.before + self.after, self._delay + self.after + 1)
        return reach + self.step + self.kept_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its spans look at, back to the strip's first line at most."""
        first = min(self._span_of(first_line) * self.step - self.before, first_line - self._mirrored)
        return first_line - max(0, first)

    def start(self, first_line: int, window: StripWindow) -> None:
        """The rows of a run that are wanted begin at `first_line`; its lines come into `window`, which begins there or before."""
        self._window = window
        self._first_line = first_line
        self._span = self._first_span = max(self._span_of(first_line), window.begin // self.step)

    def ready(self) -> int | None:
        """The next span, if it can be cut; None where lines are wanted first, or none is left of an ended run."""
        window = self._window
        if window is None or not (self._span == self._first_span or self.first_row(self._span) < window.line_stop):
            return None
        start = self._span * self.step
        return self._span if window.can_cut(start - self.before, start + self.after) else None

    def advance(self) -> None:
        """The span that was ready is done."""
        self._span += 1

    def first_row(self, span: int) -> int:
        """The first row that a span finishes, on the run or before it."""
        return span * self.step - self._delay

    def chunk(self, span: int) -> Chunk:
        """A span as what a streaming engine is fed."""
        first = max(self._first_span, self._span_of(max(self.first_row(span), self._first_line)))
        return Chunk(
            span * self.step - self.before, range(first * self.step - self.before, span * self.step - self.before, self.step)
        )

    def rows(self, span: int) -> tuple[int, int]:
        """Wanted rows of the run that a span finishes, half-open; none where the stop is not above the start."""
        start = self.first_row(span)
        newest = self._window.line_stop if self._window else self._first_line
        return max(start, self._first_line), min(start + self.step, newest)

    def _span_of(self, line: int) -> int:
        """The first span whose lines the mask row depends on, in a run that began long before."""
        return max(0, (line + min(self._delay, 0)) // self.step)


class SpanFeed:
    """Re-cuts a run to spans and says when each can be cut out of `window`, which is its own. Arguments as of `Spans`."""

    def __init__(
        self,
        width: int,
        *,
        step: int,
        before: int,
        after: int,
        delay: int,
        mirrored: int = 0,
        kept: int = 0,
        open_window: OpenWindow = StripWindow,
    ) -> None:
        self._spans = Spans(step=step, before=before, after=after, delay=delay, mirrored=mirrored, kept=kept)
        self.step = step
        self.before = before
        self.after = after
        self.window = open_window(width, self._spans.capacity)
        self.window.end()
        self._first_line = 0

    @property
    def lag_lines(self) -> int:
        """Lines after a row that its span wants at most."""
        return self._spans.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its spans look at, back to the strip's first line at most."""
        return self._spans.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run at `first_line`. The run is reflected before its context, which may be shorter than asked for."""
        kept = last_lines(context, self.context_lines(first_line))
        self._first_line = first_line
        self.window.start(first_line - len(kept))
        self._spans.start(first_line, self.window)
        for position in range(0, len(kept), self.step):
            self.window.append(kept[position : position + self.step])

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

    def chunk(self, span: int) -> Chunk:
        """A span as what a streaming engine is fed."""
        return self._spans.chunk(span)

    def rows(self, span: int) -> tuple[int, int]:
        """Mask rows of the run that a span finishes, half-open; none where the stop is not above the start."""
        return self._spans.rows(span)

    def _ready(self) -> Iterator[int]:
        while (span := self._spans.ready()) is not None:
            yield span
            self._spans.advance()


def last_lines(context: Lines | None, count: int) -> Lines:
    """The last `count` lines of a context, fewer where it has fewer; none of None."""
    if context is None:
        return np.empty((0, 0), np.uint8)
    return context[max(0, len(context) - count) :]


def spans_before(step: int, delay: int) -> int:
    """How many spans an engine at rest is fed before one whose rows count."""
    return -(-delay // step)


def check_geometry(*, halo: int, stride: int, **sizes: int) -> None:
    """Halo, and the sizes named, must be multiples of the engine's stride, or its rows would shift. Raises ConfigError."""
    for name, size in {"halo": halo, **sizes}.items():
        if size % stride or (size < 1 and name != "halo") or size < 0:
            raise ConfigError(f"{name}: got {size}; expected a multiple of the engine's stride {stride}")
