"""OpenVINO Model API: SemanticSegmentationTiler over a SegmentationModel; its hook for filtering tiles takes the gate."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import SegmentationModel
from model_api.tilers import SemanticSegmentationTiler
from openvino.preprocess import PrePostProcessor

from benchmarks.peers_bench.gate import Alarms, TileGate, passed
from benchmarks.peers_bench.slicing import Slicing, framed, unframed
from benchmarks.peers_bench.systems import Credit
from edge.bundle import Bundle
from edge.frame import Lines
from edge.scores import Bytes
from edge.sessions.ov_rewrite import rewrite_for_openvino

CREDIT = Credit(
    "openvino-model-api",
    version("openvino-model-api"),
    "Apache-2.0",
    "https://openvinotoolkit.github.io/model_api/latest/python/tilers/semantic_segmentation.html",
)
TILES = Slicing((512, 512), (102, 102))
"""The others' fifth: its own default overlap, a half, would cost it four times the pixels."""


class ModelApiTiles:
    """Asynchronous tiles, logits averaged where they overlap; as many streams as threads, its recipe for throughput."""

    name = "Model API Tiler"

    def __init__(self, bundle: Bundle, threads: int, slicing: Slicing = TILES, gate: TileGate | None = None) -> None:
        if slicing.tile[0] != slicing.tile[1]:
            raise ValueError(f"got tiles of {slicing.tile}, expected squares: Model API has no others")
        self.precision = bundle.manifest.precision
        self.engine = f"OpenVINO {self.precision.upper()}"
        self._slicing, self._gate = slicing, gate
        self.how = f"{slicing.described()}, averaged, asynchronous"
        self._tiler = _StripTiler(_model(bundle, threads, slicing.tile), slicing)

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> Bytes:
        """The mask of the framed strip."""
        self._tiler.alarms = self._gate.alarms(strip) if self._gate else None
        image = framed(strip, self._slicing)
        if self._tiler.alarms is not None and not self._tiler.alarms.any():
            return np.zeros(image.shape, np.uint8)
        with np.errstate(invalid="ignore"):  # it divides by 0 where no tile was
            return self._tiler(image[:, :, None]).resultImage

    def mask(self, answer: Bytes, strip: Lines) -> Bytes:
        """The strip's part of it."""
        return unframed(answer, self._slicing, strip.shape).astype(np.uint8)

    def close(self) -> None:
        """Nothing: the model goes with the object."""


class _StripTiler(SemanticSegmentationTiler):
    """Tiles that the last ones do not hold anyway; its own grid adds slivers at the end, which a model of one size distorts."""

    def __init__(self, model: SegmentationModel, slicing: Slicing) -> None:
        self._cut, self.alarms = slicing, None
        configuration = {
            "tile_size": slicing.tile[0],
            # it rounds the product down to whole pixels
            "tiles_overlap": (slicing.overlap[0] - 0.5) / slicing.tile[0],
            "tile_with_full_img": False,
        }
        super().__init__(model, configuration, execution_mode="async")

    alarms: Alarms | None

    def _tile(self, image: Any) -> list[list[int]]:
        height, width = image.shape[:2]
        tile = self._cut.tile[0]
        whole = [(max(0, min(left, width - tile)), max(0, min(top, height - tile))) for left, top, _, _ in super()._tile(image)]
        return [[left, top, min(left + tile, width), min(top + tile, height)] for left, top in dict.fromkeys(whole)]

    def _filter_tiles(self, image: Any, tile_coords: list[list[int]]) -> list[list[int]]:
        return [coord for coord in tile_coords if passed(self.alarms, coord[1], coord[0])]

    def _postprocess_tile(self, predictions: Any, coord: list[int]) -> dict[str, Any]:
        result: dict[str, Any] = super()._postprocess_tile(predictions, coord)
        margin = self._cut.margin
        if margin:
            left, top, right, bottom = coord
            result["coord"] = [left + margin, top + margin, right - margin, bottom - margin]
            result["masks"] = result["masks"][margin:-margin, margin:-margin]
        return result


def _model(bundle: Bundle, threads: int, tile: tuple[int, int]) -> SegmentationModel:
    """The bundle's engine, rewritten as the station's OpenVINO session does it, for tiles of one size.

    Its own preprocessing takes colour images only: the engine, which normalises itself, is given to it as one with
    embedded preprocessing, grey images (lines, columns, 1) in.
    """
    rewritten = rewrite_for_openvino(onnx.load(bundle.model_path))
    model = openvino.Core().read_model(rewritten.SerializeToString())
    model.reshape([1, 1, *tile])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    plugin_config = {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": "NO",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(steps.build(), path, compress_to_fp16=False)
        adapter = OpenvinoAdapter(create_core(), str(path), plugin_config=plugin_config)
    labels = list(bundle.manifest.classes)
    configuration = {"labels": labels, "embedded_processing": True, "orig_height": tile[0], "orig_width": tile[1]}
    return SegmentationModel(adapter, configuration, preload=True)
