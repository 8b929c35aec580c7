"""Dense inspection without state: slabs of the strip's full width, their halo computed again each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge.frame import Lines
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.crops import Crop, HostCrops, OpenCrops
from edge.segmenters.spans import SpanFeed, check_geometry
from edge.sessions import Session
from edge.window import padded_columns


class SlabSegmenter:
    """The masks of the streaming segmenter, for any engine: it costs (chunk_lines + 2 * halo) / chunk_lines times the work.

    session: infers (1, 1, chunk_lines + 2 * halo, padded_columns(width, halo, stride)).
    halo: at least the engine's receptive radius, a multiple of the stride. reading: what the engine's answers mean.
    crops: who reads the slabs with it.
    Slab k finishes the strip's rows [k * chunk_lines, (k + 1) * chunk_lines), wherever the run begins. Raises ConfigError.
    """

    def __init__(
        self,
        session: Session,
        *,
        width: int,
        chunk_lines: int,
        halo: int,
        stride: int,
        reading: Reading,
        crops: OpenCrops = HostCrops,
    ) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=chunk_lines)
        self._halo, self._width = halo, width
        self._size = (chunk_lines + 2 * halo, padded_columns(width, halo, stride))
        self._slabs = crops(session, reading, [self._size], 1)
        self._feed = SpanFeed(
            width,
            step=chunk_lines,
            before=halo,
            after=chunk_lines + halo,
            delay=0,
            kept=self._slabs.spans_ahead,
            open_window=self._slabs.window,
        )

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: one chunk and the halo."""
        return self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its slab looks at."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run."""
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out slab by slab."""
        return self._read(self._feed.push(lines))

    def flush(self) -> list[MaskRows]:
        """End the run: its last slab is filled up with reflected lines."""
        return self._read(self._feed.finish())

    def _read(self, spans: Iterable[int]) -> list[MaskRows]:
        read = self._slabs.read(self._feed.window, self._wanted(spans))
        return [MaskRows(slab.line + slab.top, mask, confidence) for slab, mask, confidence in read]

    def _wanted(self, spans: Iterable[int]) -> Iterator[Crop]:
        for span in spans:
            start, stop = self._feed.rows(span)
            line = span * self._feed.step - self._halo
            yield Crop(line, -self._halo, self._size, start - line, self._halo, (stop - start, self._width))
