"""TensorRT sessions on shims and a strict device, as a station opens them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import onnx
from strict_device import StrictDevice
from tensorrt_shims import RTX, VERSIONS, tensorrt
from toy_engines import write_bundle

from edge.bundle import Bundle, open_bundle
from edge.cuda.device import CudaDevice
from edge.sessions.trt.build import BuildOptions
from edge.sessions.trt.session import TrtSession
from edge.sessions.trt.stream import TrtStreamingSession
from export.passes.streaming import StreamedModel

EVERY_VERSION = (*VERSIONS, RTX)


def a_device(version: str, **how: object) -> StrictDevice:
    """What a version usually runs on: the oldest two on a Jetson, the others on a card; whatever it keeps is a misuse."""
    return StrictDevice(**{"integrated": version.startswith(("8", "10.3")), "strict_leaks": True, **how})


def bundle_around(folder: Path, model: onnx.ModelProto, streamed: StreamedModel | None = None, **changes: object) -> Bundle:
    """A bundle of a small network's engine, whose tile is the model's."""
    tile = tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[2:])
    answer = model.graph.output[0].type.tensor_type.shape.dim
    kind = "segmenter" if len(answer) == 4 else "classifier"
    nodes = (streamed.model if streamed is not None else model).graph.node
    quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
    manifest: dict[str, object] = {
        "kind": kind,
        "classes": ["background", "a", "b"] if kind == "segmenter" else ["clean", "defect"],
        "activation": "softmax" if kind == "segmenter" else "sigmoid",
        "precision": "int8" if quantized else "fp32",
        "input": {"tile_height": tile[0], "tile_width": tile[1]},
    }
    if streamed is not None:
        states = [state.model_dump() for state in streamed.states]
        manifest["streaming"] = {"lag_lines": streamed.lag_lines, "cell": streamed.cell, "states": states}
    content = streamed.model.SerializeToString() if streamed is not None else None
    return open_bundle(write_bundle(folder, model.SerializeToString(), manifest | changes, tile, content))


def open_tiles(
    version: str,
    bundle: Bundle,
    device: StrictDevice,
    folder: Path | None = None,
    *,
    lent: AbstractContextManager[CudaDevice] | None = None,
    options: BuildOptions | None = None,
    **shims: object,
) -> TrtSession:
    """lent: the device where several sessions have it; None: it is opened and closed with the session."""
    return TrtSession(tensorrt(version, device=device, **shims), lent or device, bundle, folder, options or BuildOptions())


def open_stream(
    version: str,
    bundle: Bundle,
    device: StrictDevice,
    width: int,
    lines: int,
    *,
    lent: AbstractContextManager[CudaDevice] | None = None,
    **shims: object,
) -> TrtStreamingSession:
    """lent: as of `open_tiles`."""
    trt = tensorrt(version, device=device, **shims)
    return TrtStreamingSession(trt, lent or device, bundle, None, width, lines, BuildOptions())
