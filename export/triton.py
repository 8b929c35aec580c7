"""`--target triton`: a bundle's engine as a model of Triton's, in a repository that any number of bundles share.

    REPOSITORY/NAME/config.pbtxt      sizes, batches, warm-up
    REPOSITORY/NAME/1/model.onnx      the bundle's engine, height and width free where it takes any

The model goes by the bundle's name, which is how a station's `session.kserve` asks for it.

Source: NVIDIA Triton Inference Server, Model Repository, Model Configuration, Dynamic Batcher; its ONNX Runtime backend.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

from edge.bundle import MODEL, Bundle, check_golden
from edge.sessions.ort import OrtSession
from edge.sessions.ort_rewrite import free_height_and_width
from export.bundle import Existing, check_writable, whole_folder
from export.errors import ExportError

MODEL_REPOSITORY: Final = Path("model_repository")
"""Where none is named."""
CONFIG: Final = "config.pbtxt"
VERSION: Final = "1"
MAX_BATCH: Final = 16
"""Tiles of one inference: as many as `session.kserve.max_batch` sends; with more, slabs of a wide strip want much memory."""
PREFERRED_BATCHES: Final = (8, 16)
QUEUE_DELAY_US: Final = 1000
"""How long a tile waits for others: a tenth of the 9 ms that 16 tiles of 256 px took to a server on the same box and back."""

_MARK: Final = "# Written by `rust-edge export --target triton`"
_TYPES: Final[dict[int, str]] = {TensorProto.UINT8: "TYPE_UINT8", TensorProto.FLOAT: "TYPE_FP32"}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A model's input or output without its batch. dims: -1 where any size is taken."""

    name: str
    datatype: str
    dims: tuple[int, ...]


def check_model_repository(repository: Path, name: str, existing: Existing) -> None:
    """Raise ExportError where a model of that name cannot be put; called before any work is done, and makes nothing."""
    place = repository / name
    if place.is_symlink() or (place.exists() and not _is_ours(place)):
        raise ExportError(f"{place}: is no model that rust-edge wrote, and is not replaced; name another --model-repository")
    if place.exists() and existing is Existing.KEEP:
        raise ExportError(
            f"{place}: exists; expected a new model: name another --model-repository, or give --force to replace it"
        )
    check_writable(place)


def write_model(bundle: Bundle, repository: Path, existing: Existing = Existing.KEEP) -> Path:
    """Write the bundle's model into a repository, whole or not at all; gives its folder.

    What is written is asked the golden tiles before it is put in place. Raises ExportError, BundleError, SessionError.
    """
    place = repository / bundle.manifest.name
    check_model_repository(repository, bundle.manifest.name, existing)
    model = onnx.load(bundle.model_path)
    if _takes_any_size(bundle):
        free_height_and_width(model)
    with whole_folder(place, existing) as folder:
        (folder / VERSION).mkdir()
        path = folder / VERSION / MODEL
        path.write_bytes(model.SerializeToString(deterministic=True))
        (folder / CONFIG).write_text(model_config(bundle, model), encoding="utf-8")
        with OrtSession(path) as session:
            check_golden(bundle, session)
    return place


def told_of_model(bundle: Bundle, place: Path) -> str:
    """What was written, and what an answer weighs on the network, in one line for the user."""
    head, classes = bundle.manifest.head, len(bundle.manifest.classes)
    told = f"model for Triton: {place}; serve it: tritonserver --model-repository={place.parent}"
    if bundle.manifest.kind == "segmenter" and head != "mask":
        told += f"; an answer is {4 * (classes - (bundle.manifest.activation == 'sigmoid'))} bytes a pixel, with --head mask 2"
    return told


def model_config(bundle: Bundle, model: onnx.ModelProto) -> str:
    """`config.pbtxt` of a bundle's model, a ModelConfig as protobuf text."""
    size = bundle.manifest.input
    tile = None if _takes_any_size(bundle) else (size.tile_height, size.tile_width)
    (image,), (scores,) = ([_tensor(value, tile) for value in values] for values in (model.graph.input, model.graph.output))
    warm_up = ",\n".join(
        f'  {{ name: "{count} tiles" batch_size: {count} inputs {{ key: "{image.name}" '
        f"value {{ data_type: {image.datatype} dims: {_listed((1, size.tile_height, size.tile_width))} zero_data: true }} }} }}"
        for count in (1, *PREFERRED_BATCHES)
    )
    return f"""{_MARK} of bundle {bundle.manifest.name}, manifest {bundle.sha256}.
name: "{bundle.manifest.name}"
platform: "onnxruntime_onnx"
max_batch_size: {MAX_BATCH}
input [
  {_described(image)}
]
output [
  {_described(scores)}
]
# Tiles of all stations that come within the delay are inferred together.
dynamic_batching {{ preferred_batch_size: {_listed(PREFERRED_BATCHES)} max_queue_delay_microseconds: {QUEUE_DELAY_US} }}
# On every GPU, or on the CPU of a box without one; a higher count lets one copy while another computes.
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
# The model is not ready before these are inferred: no station waits for a first inference.
model_warmup [
{warm_up}
]
"""


def _takes_any_size(bundle: Bundle) -> bool:
    manifest = bundle.manifest
    return manifest.whole_tile is None and (manifest.kind == "segmenter" or manifest.cell is not None)


def _tensor(value: onnx.ValueInfoProto, tile: tuple[int, int] | None) -> _Tensor:
    """tile: its height and width where the bundle takes no other; a graph may leave them free all the same."""
    tensor = value.type.tensor_type
    dims = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim[1:])
    if tile is not None and len(dims) == 3:
        dims = (dims[0], *tile)
    return _Tensor(value.name, _TYPES[tensor.elem_type], dims)


def _described(tensor: _Tensor) -> str:
    return f'{{ name: "{tensor.name}" data_type: {tensor.datatype} dims: {_listed(tensor.dims)} }}'


def _listed(sizes: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, sizes))} ]"


def _is_ours(place: Path) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (place / CONFIG).read_text(encoding="utf-8").startswith(_MARK)
    return False
