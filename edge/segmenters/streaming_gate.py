"""A gate that runs as the strip runs: one pass over the reduced strip, every row computed once, a score for every cell."""

from __future__ import annotations

from edge.scores import Activation, Head
from edge.segmenters.gates import CellScores, read_cells
from edge.segmenters.maps import HostMaps, OpenMaps
from edge.segmenters.reduction import Reduction
from edge.segmenters.spans import Spans, check_geometry, spans_before
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow, padded_columns


class StreamingGate:
    """The map that one inference over the whole run gives, reflected at its four sides; implements `edge.segmenters.gates.Gate`.

    session: made for `gate_columns(width, reduce, halo, stride)` columns.
    reduce: the strip is averaged over reduce x reduce pixels (cv2.INTER_AREA), counted from its first line and column.
    cell, halo, stride: of the engine, in pixels of its input: after `reduce`. halo: at least the engine's receptive radius.
    maps: who reads the strip's chunks with the session.
    Chunk k always holds the same lines of the strip, wherever a run begins. Raises ConfigError.
    """

    def __init__(
        self,
        session: StreamingSession,
        *,
        width: int,
        reduce: int,
        cell: int,
        halo: int,
        stride: int,
        activation: Activation,
        head: Head,
        maps: OpenMaps = HostMaps,
    ) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=session.chunk_lines)
        self.cell_lines = self.cell_columns = cell * reduce
        self.cells_across = -(-width // self.cell_columns)
        step, lag = session.chunk_lines, session.lag_lines
        # fed some lines earlier, a chunk ends where the rows before a multiple of `step` do: none waits for the next chunk
        before = halo + -(halo + lag) % step // stride * stride
        self._session = session
        self._activation: Activation = activation
        self._head: Head = head
        self._cells = slice(halo // cell, halo // cell + self.cells_across)
        self._maps = maps(session, Reduction(width, reduce, halo, step, gate_columns(width, reduce, halo, stride)))
        self.spans = Spans(
            step=step * reduce,
            before=before * reduce,
            after=(step - before) * reduce,
            delay=(before + lag) * reduce,
            mirrored=(halo + cell) * reduce,
            kept=self._maps.spans_kept(spans_before(step, before + lag)),
        )

    def begin(self) -> None:
        """What the engine's state held is forgotten."""
        self._maps.begin()

    def look(self, window: StripWindow, span: int) -> Scores:
        """Answers (channels, chunk lines / cell, cells across)."""
        return self._maps.read(window, self.spans.chunk(span))[0, :, :, self._cells]

    def read(self, answers: Scores) -> CellScores:
        """Probability of a defect of each cell."""
        return read_cells(answers, self._activation, self._head, self._session.steps)


def gate_columns(width: int, reduce: int, halo: int, stride: int) -> int:
    """Columns that a gate's engine gets: the reduced strip, a halo at either side, and what the stride wants at the right."""
    return padded_columns(-(-width // reduce), halo, stride)
