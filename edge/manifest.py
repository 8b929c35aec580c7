"""A bundle's manifest: everything that must be known of an engine to run it as it was verified."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 2
"""2 added what tiles go through before the engine, the head, and networks that look at whole tiles; 1 is still read."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Part(BaseModel):
    """A part of the manifest; frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineInput(Part):
    """What the engine wants: uint8 NCHW, grey.

    reduce: the strip is averaged over reduce x reduce pixels before it goes in (cv2.INTER_AREA); 1: as it is.
    tile_height, tile_width: pixels of the engine's input, after `reduce`.
    """

    tile_height: int = Field(ge=1)
    tile_width: int = Field(ge=1)
    reduce: int = Field(1, ge=1)


class Clahe(Part):
    """Contrast-limited adaptive histogram equalization of each tile, by itself (cv2.createCLAHE)."""

    kind: Literal["clahe"] = "clahe"
    clip_limit: float = Field(gt=0)
    grid_rows: int = Field(8, ge=1)
    grid_columns: int = Field(8, ge=1)


class Resize(Part):
    """A tile of any size brought to the engine's (cv2.resize)."""

    kind: Literal["resize"] = "resize"
    method: Literal["linear", "area", "nearest"] = "linear"


TileStep = Annotated[Clahe | Resize, Field(discriminator="kind")]


class StreamState(Part):
    """Rows of one tensor that the streaming engine carries to its next step: (1, channels, rows, width / stride)."""

    input: str
    output: str
    channels: int = Field(ge=1)
    rows: int = Field(ge=1)
    stride: int = Field(ge=1)
    dtype: Literal["float32", "float16", "int8", "uint8"]


class Streaming(Part):
    """Of `stream.onnx`: how far the scores trail the newest line, and what is carried.

    lag_lines: in lines of the engine's input, a multiple of `cell`.
    cell: input lines and columns per row and column of the scores; 1: of every pixel.
    """

    lag_lines: int = Field(ge=0)
    cell: int = Field(1, ge=1)
    states: tuple[StreamState, ...]


class Threshold(Part):
    """Confidence of a class: pixels count from `low` on, a region must peak at `high`."""

    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Threshold:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class HaloShare(Part):
    """Measured: the share of pixels whose class changes when crops have this halo instead of the full radius."""

    halo: int = Field(ge=0)
    changed: Fraction


class GateThreshold(Part):
    """Tiles, or cells, whose defect probability is at or above `score` go on to the U-Net.

    recall: share of defective validation tiles that do, of cells the share of defects that have one that does; passed_clean:
    share of clean tiles, or cells, that do.
    """

    score: Fraction
    recall: Fraction
    passed_clean: Fraction


class Manifest(Part):
    """`manifest.yaml`. Classes in index order; a segmenter's class 0 is the background.

    preparation: steps that each tile goes through, by itself and in this order, before it goes into the engine.
    strip_tile: lines and columns of the strip that one tile covers; None: as many as the engine's input, times `reduce`.
    head: what the engine's output holds: logits; probabilities; or mask, uint8 (n, 2, h, w), class index and its probability
        in steps of 1/255.
    pixel_threshold: sigmoid segmenters: a class is there from this probability on.
    whole_tile: why a segmenter runs on tiles alone: the node that looks at all of a tile. None: it can also run dense.
    cell: None: a classifier has one answer for a whole tile, (n, channels). A number: one for every cell of so many input
        pixels, (n, channels, h / cell, w / cell), for images of any size: a gate that runs line-streaming.
    stride: input pixels per pixel of the deepest tensor; crops and chunks are multiples of it.
    radius: receptive radius in input pixels, measured on the graph by perturbation.
    halo: margin that crops of the cascade need, a multiple of the stride.
    """

    format_version: int = FORMAT_VERSION
    name: str
    kind: Literal["segmenter", "classifier"]
    classes: tuple[str, ...] = Field(min_length=2)
    input: EngineInput
    activation: Literal["softmax", "sigmoid"]
    head: Literal["logits", "probabilities", "mask"] = "logits"
    preparation: tuple[TileStep, ...] = ()
    strip_tile: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    pixel_threshold: Fraction = 0.5
    whole_tile: str | None = None
    cell: Annotated[int, Field(ge=1)] | None = None
    stride: int = Field(ge=1)
    radius: int = Field(ge=0)
    halo: int = Field(ge=0)
    halo_shares: tuple[HaloShare, ...] = ()
    thresholds: dict[str, Threshold] = {}
    gate: GateThreshold | None = None
    precision: Literal["fp32", "fp16", "int8"]
    float_layers: tuple[str, ...] = ()
    parameters: int = Field(ge=1)
    flops_per_pixel: float = Field(gt=0)
    streaming: Streaming | None = None
    quality: dict[str, float] = Field(default={}, description="Measured figures by name, such as mean_iou, mean_iou_float.")
    files: dict[str, str] = Field(description="File name -> sha256 of every file beside the manifest.")
    source_checkpoint: str = Field(description="sha256 of the checkpoint that was exported.")
    tools: dict[str, str] = {}
