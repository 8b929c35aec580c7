"""TensorRT's own parser and builder take every seed network in every precision, and the shipped bundles."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from tensorrt_builder import build

from calibration.activations import RangeMethod, activation_ranges, collect
from edge.bundle import open_bundle, shipped_bundles
from export.passes.half_precision import half_tensors, to_half
from export.passes.lint import require_clean
from export.passes.row_geometry import StreamRefused
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe

NETWORKS = ("rust_cls", "rust_cnn", "severstal_gate", "severstal_unet", "coating_unet", "pits_unet", "pits_unetpp")
STREAMING = {"severstal_unet", "coating_unet", "pits_unet"}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own


@pytest.mark.parametrize("network", NETWORKS)
def test_every_seed_network_builds_in_every_precision(network, request) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (tensorrt-rtx-cu13-bindings)")
    bundle = request.getfixturevalue(network).bundle
    model = onnx.load(bundle.model_path)
    size = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    tile = np.random.default_rng(0).integers(0, 256, (1, 1, *size), np.uint8)
    observed = {*tensors_to_observe(model), *half_tensors(model)}
    ranges = activation_ranges(collect(model, observed, [tile], 1), RangeMethod.MIN_MAX)
    for precision, engine in (("fp32", model), ("fp16", to_half(model, ranges)), ("int8", quantize(model, ranges))):
        require_clean(engine, precision)
        build(engine)
        if network in STREAMING and precision == "int8":
            build(stream(engine).model)
    assert (bundle.stream_path is not None) == (network in STREAMING)


@pytest.mark.parametrize("name", shipped_bundles())
def test_every_shipped_engine_builds(name) -> None:
    bundle = open_bundle(name)
    for path in filter(None, (bundle.model_path, bundle.stream_path)):
        build(onnx.load(path))


@pytest.mark.parametrize("network", sorted({*NETWORKS} - STREAMING - {"rust_cls", "rust_cnn", "severstal_gate"}))
def test_what_looks_at_a_whole_tile_is_not_streamed_and_names_the_node(network, request) -> None:
    bundle = request.getfixturevalue(network).bundle
    model = onnx.load(bundle.model_path)
    with pytest.raises(StreamRefused) as refused:
        stream(model)
    named = re.search("'([^']+)'", str(refused.value))
    assert named is not None
    assert named[1] in {node.name for node in model.graph.node}
    assert f"'{named[1]}'" in bundle.manifest.whole_tile
