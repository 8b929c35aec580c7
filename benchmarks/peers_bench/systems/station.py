"""Ours, through its public interface: a station file, its engines, their segmenter or the whole pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.bundle import open_bundle
from edge.config import parse_config
from edge.engines import Engines
from edge.frame import Frame, Lines
from edge.pipeline import Findings, Pipeline
from edge.scores import Bytes
from edge.segmenters import MaskRows, Segmenter

FRAME_LINES = 128
"""What a camera hands over at once."""
TITLES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}


class _WarmEngines(Engines):
    """Engines that give every pipeline the same segmenter: a new one's first inference plans and allocates."""

    _warm: Segmenter | None = None

    def segmenter(self, width: int) -> Segmenter:
        """The one segmenter, of the width asked for first."""
        if self._warm is None:
            self._warm = super().segmenter(width)
        return self._warm


class _Station:
    """A station's engines for strips of one width. options: keys of a station file."""

    def __init__(self, name: str, how: str, options: dict[str, Any], backend: str, threads: int) -> None:
        document = {"source": {"kind": "simulated"}, "session": {"backend": backend, "threads": threads}, **options}
        self.name, self.how = name, how
        config = parse_config(document, "benchmarks/peers.py")
        self.precision = open_bundle(config.bundle).manifest.precision
        self.engine = f"{TITLES[backend]} {self.precision.upper()}"
        self._engines = _WarmEngines(config, "benchmarks/peers.py").__enter__()

    def close(self) -> None:
        """Give the engines back."""
        self._engines.__exit__(None, None, None)


class StationSegmenter(_Station):
    """Lines in, mask rows out: what the tilers do, frame by frame as a camera delivers."""

    def __init__(self, name: str, how: str, options: dict[str, Any], backend: str, threads: int, width: int) -> None:
        super().__init__(name, how, options, backend, threads)
        self._segmenter = self._engines.segmenter(width)

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> list[MaskRows]:
        """Finished rows of the strip."""
        self._segmenter.start(0)
        rows = []
        for first in range(0, len(strip), FRAME_LINES):
            rows += self._segmenter.push(strip[first : first + FRAME_LINES])
        return rows + self._segmenter.flush()

    def mask(self, answer: list[MaskRows], strip: Lines) -> Bytes:
        """The rows as one."""
        return np.concatenate([rows.mask for rows in answer])


class StationPipeline(_Station):
    """Lines in, events out: segmentation, regions joined and filtered, events with crops. More than any tiler does."""

    def prepare(self, strip: Lines) -> None:
        """A new strip's pipeline."""
        self._pipeline: Pipeline = self._engines.pipeline(strip.shape[1], "peers")

    def run(self, strip: Lines) -> list[Findings]:
        """What every frame brought, and the end of the strip."""
        found = [
            self._pipeline.push(Frame(strip[first : first + FRAME_LINES], first, 0))
            for first in range(0, len(strip), FRAME_LINES)
        ]
        return [*found, self._pipeline.finish()]

    def mask(self, answer: list[Findings], strip: Lines) -> Bytes:
        """The rows as one."""
        return np.concatenate([rows.mask for findings in answer for rows in findings.rows])
