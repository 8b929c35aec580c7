"""The Keras networks that other projects publish, with what they are fed and how their answers are read."""

from __future__ import annotations

from edge.manifest import Clahe, Resize
from export.networks.architecture import Architecture
from export.networks.grey_input import UNIT, UNIT_RGB, Normalisation
from export.networks.keras_builders import coating_unet, rust_cls, severstal_gate, severstal_unet

_GREY_LEVELS_RGB = Normalisation((0.0,) * 3, (1.0,) * 3)
"""A grey image as red, green and blue, 0 to 255: the network divides by itself."""


KERAS_ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="rust-cls",
        kind="classifier",
        summary="six convolutions, two dense layers (Keras); colour 256x256, the rescaling is part of the network",
        framework="keras",
        build_keras=rust_cls,
        classes=(),
        activation="softmax",
        tile=(256, 256),
        normalisation=_GREY_LEVELS_RGB,
        preparation=(Resize(method="linear"),),
    ),
    Architecture(
        name="severstal-gate",
        kind="classifier",
        summary="ResNet50, two dense layers (Keras); steel 256x1600 resized, one defect score",
        framework="keras",
        build_keras=severstal_gate,
        classes=("clean", "defect"),
        activation="sigmoid",
        tile=(256, 256),
        normalisation=UNIT_RGB,
        preparation=(Resize(method="linear"),),
        strip_tile=(256, 1600),
        gate_threshold=0.01,
    ),
    Architecture(
        name="severstal-unet",
        kind="segmenter",
        summary="ResUNet (Keras); steel 256x1600 resized, four defect classes that may overlap",
        framework="keras",
        build_keras=severstal_unet,
        classes=("background", "class-1", "class-2", "class-3", "class-4"),
        activation="sigmoid",
        tile=(256, 256),
        # how its images are normalised is not said: divided by 255, as those of its gate, and resized as those are
        normalisation=UNIT,
        preparation=(Resize(method="linear"),),
        strip_tile=(256, 1600),
    ),
    Architecture(
        name="coating-unet",
        kind="segmenter",
        summary="U-Net on ResNet50 (Keras); quarters of a microscope image after CLAHE, one class",
        framework="keras",
        build_keras=coating_unet,
        classes=("background", "coating"),
        activation="sigmoid",
        tile=(256, 256),
        normalisation=UNIT_RGB,
        preparation=(Clahe(clip_limit=10.0, grid_rows=8, grid_columns=8), Resize(method="linear")),
        pixel_threshold=0.6,
    ),
)
"""The entries for `export.networks.ARCHITECTURES`."""
