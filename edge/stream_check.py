"""A streaming engine asked what its bundle's tile engine answers: the golden tiles, laid side by side as a strip."""

from __future__ import annotations

import numpy as np

from edge.bundle import LEAST_SPREAD, OUTLIERS, SCORE_TOLERANCE, Bundle
from edge.errors import BundleError
from edge.sessions import Session, StreamingSession

_COMPARED_COLUMNS = 64


def check_stream(bundle: Bundle, tiles: Session, stream: StreamingSession, width: int) -> float:
    """Share of scores by which a stream differs from one inference beyond SCORE_TOLERANCE of their spread.

    tiles: the bundle's other engine, which has answered its golden tiles. width: columns of the stream. The strip is made of
    the golden patches, and long enough that rows no edge of it reaches come out; the inference gets as many of its columns as
    64 of them need. The stream is reset. Raises BundleError beyond what golden tiles may differ.
    """
    manifest = bundle.manifest
    if manifest.streaming is None:
        raise BundleError(f"{bundle.path}: holds no stream; expected dense: slabs")
    cell, chunk = manifest.streaming.cell, stream.chunk_lines
    halo = -(-manifest.radius // manifest.stride) * manifest.stride
    fed = -(-(2 * halo + 2 * max(manifest.stride, cell) + stream.lag_lines) // chunk) * chunk
    strip = _strip(bundle, fed, width)
    stream.reset()
    rows = [stream.step(strip[:, :, line : line + chunk]).copy() for line in range(0, fed, chunk)]
    stream.reset()
    streamed = np.concatenate(rows, axis=2)[:, :, stream.lag_lines // cell :]
    height = (fed - stream.lag_lines) // manifest.stride * manifest.stride
    columns = min(width, -(-(2 * halo + _COMPARED_COLUMNS) // manifest.stride) * manifest.stride)
    judged = tiles.infer(np.ascontiguousarray(strip[:, :, :height, :columns]))
    lines = slice(-(-halo // cell), (height - halo) // cell)
    # the strip's own edges are padded alike in both; a cut edge is not
    across = slice(0, (columns if columns == width else columns - halo) // cell)
    expected, got = (scores[:, :, lines, across].astype(np.float32) for scores in (judged, streamed))
    spread = max(float(np.ptp(expected)), LEAST_SPREAD if tiles.steps is not None else 0.0) or 1.0
    outliers = float((~(np.abs(got - expected) <= SCORE_TOLERANCE * spread)).mean())  # a NaN is an outlier
    allowed = OUTLIERS[manifest.precision] if manifest.head != "mask" else max(OUTLIERS[manifest.precision], SCORE_TOLERANCE)
    if not expected.size or outliers > allowed:
        raise BundleError(
            f"{bundle.path}: {stream.backend} streams otherwise than it infers: {outliers:.3%} of the scores differ by more than "
            f"{SCORE_TOLERANCE:.0%} of their spread, expected {allowed:.1%} at most: use dense: slabs or another backend, "
            "or export again"
        )
    return outliers


def _strip(bundle: Bundle, lines: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(1, 1, lines, width) uint8: the golden patches side by side and mirrored, over and over."""
    patches = bundle.golden().patches
    row = np.concatenate([*patches, *patches[::-1, :, ::-1]], axis=1)
    block = np.concatenate([row, row[::-1]])
    whole = np.tile(block, (-(-lines // block.shape[0]), -(-width // block.shape[1])))
    return np.ascontiguousarray(whole[None, None, :lines, :width])
