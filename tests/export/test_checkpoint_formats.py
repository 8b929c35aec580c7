from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from small_checkpoints import random_gate, trained_unet
from torch import Tensor, nn

from export.checkpoints import Checkpoint, Hints, ModuleContent, OnnxContent, StateContent, load_network, read_checkpoint
from export.checkpoints.weights import PLAIN
from export.errors import ExportError
from export.networks import find_architecture
from export.networks.grey_input import IMAGENET, UNIT_RGB, GreyInput, Normalisation
from export.to_onnx import to_onnx

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of formats that it means to give up: users have files of them


class Classifier(nn.Module):
    """Two classes of 8x8 colour tiles; its reshape asks for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4))
        self.head = nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(image)
        return self.head(features.view(features.size(0), -1))


class InDict(Classifier):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        scores = super().forward(image)
        return {"aux": scores * 2.0, "out": scores}


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = Classifier()
    nn.init.uniform_(network.features[1].weight, 0.5, 2.0)
    return network.eval()


def images(count: int = 3) -> Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def save_pt2(network: nn.Module, path: Path, batch: int = 1, dynamic: bool = False, **options: object) -> None:
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.export.save(torch.export.export(network, (images(batch),), dynamic_shapes=shapes), path, **options)


def save_onnx(network: nn.Module, path: Path, **options: object) -> None:
    torch.onnx.export(network, (images(1),), str(path), dynamo=False, opset_version=17, dynamic_axes={"image": {0: "n"}},
                      input_names=["image"], **options)  # fmt: skip


def save_outside(network: nn.Module, path: Path) -> None:
    save_onnx(network, path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def save_safetensors(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({name: value.clone() for name, value in network.state_dict().items()}, path, metadata)


STATES: dict[str, Callable[[nn.Module, Path], None]] = {
    "torch.save": lambda n, p: torch.save(n.state_dict(), p),
    "torch.save of old": lambda n, p: torch.save(n.state_dict(), p, _use_new_zipfile_serialization=False),
    "safetensors": save_safetensors,
}
MODULES: dict[str, Callable[[nn.Module, Path], None]] = {
    "TorchScript, traced": lambda n, p: torch.jit.trace(n, images(1)).save(str(p)),
    "TorchScript, scripted": lambda n, p: torch.jit.script(n).save(str(p)),
    "torch.export, one tile": save_pt2,
    "torch.export, two tiles": lambda n, p: save_pt2(n, p, batch=2),
    "torch.export, any batch": lambda n, p: save_pt2(n, p, batch=2, dynamic=True),
}
GRAPHS: dict[str, Callable[[nn.Module, Path], None]] = {"ONNX": save_onnx, "ONNX, weights beside it": save_outside}
PICKLES: dict[str, Callable[[nn.Module, Path], None]] = {
    "module": lambda n, p: torch.save(n, p),
    "module of old": lambda n, p: torch.save(n, p, _use_new_zipfile_serialization=False),
    "module in a dict": lambda n, p: torch.save({"epoch": 3, "model": n}, p),
    "module in DataParallel": lambda n, p: torch.save(nn.DataParallel(n), p),
}


@pytest.fixture(params=["best", "best.pt", "best.onnx", "best.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Names that say nothing, or the wrong thing."""
    return tmp_path / request.param


@pytest.mark.parametrize("kind", STATES)
def test_a_state_dict_is_read_whatever_the_file_is_called(kind: str, path: Path) -> None:
    STATES[kind](classifier(), path)
    checkpoint = read_checkpoint(path)
    assert isinstance(checkpoint.content, StateContent)
    assert (checkpoint.origin, len(checkpoint.sha256)) == (str(path), 64)
    expected = classifier().state_dict()
    assert checkpoint.state.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", MODULES)
def test_a_saved_program_answers_as_its_network_to_any_batch(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    MODULES[kind](classifier(), path)
    content = read_checkpoint(path).content
    assert isinstance(content, ModuleContent)
    with torch.inference_mode():
        torch.testing.assert_close(content.module(images(3)), classifier()(images(3)))


@pytest.mark.parametrize("kind", MODULES)
def test_a_saved_program_exports_with_a_dynamic_batch(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    MODULES[kind](classifier(), path)
    model = to_onnx(GreyInput(read_checkpoint(path).content.module, UNIT_RGB), 8, 8)
    assert [d.dim_value or d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim] == ["n", 2]
    tiles = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = classifier()(torch.from_numpy(tiles).float().expand(-1, 3, -1, -1) / 255)
    np.testing.assert_allclose(session.run(None, {"image": tiles})[0], expected, atol=1e-5)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


@pytest.mark.parametrize("kind", GRAPHS)
def test_an_onnx_file_is_read_with_its_weights(kind: str, path: Path) -> None:
    GRAPHS[kind](classifier(), path)
    content = read_checkpoint(path).content
    assert isinstance(content, OnnxContent)
    session = ort.InferenceSession(content.model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"image": images().numpy()})[0], classifier()(images()), atol=1e-5)


def test_the_hash_of_an_onnx_file_counts_the_weights_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save_outside(classifier(), path)
    before = read_checkpoint(path).sha256
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[1] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert read_checkpoint(path).sha256 != before


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickled_network_is_loaded_by_those_who_trust_it(kind: str, path: Path) -> None:
    PICKLES[kind](classifier(), path)
    with pytest.raises(ExportError, match=r"runs code in the file.*--trust-checkpoint"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, trust=True)
    assert isinstance(checkpoint.content, ModuleContent)
    assert checkpoint.state.keys() == classifier().state_dict().keys()
    with torch.inference_mode():
        assert torch.equal(checkpoint.content.module(images()), classifier()(images()))


def test_a_network_that_answers_a_dict_gives_its_scores(tmp_path: Path) -> None:
    network = InDict()
    network.load_state_dict(classifier().state_dict())
    torch.save(network, tmp_path / "net.pt")
    with torch.inference_mode():
        answer = read_checkpoint(tmp_path / "net.pt", trust=True).content.module(images())
        assert torch.equal(answer, network.eval()(images())["out"])


def test_a_pickled_network_whose_class_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(classifier(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"test_checkpoint_formats", b"tests_that_are_not_here"))
    with pytest.raises(ExportError, match=r"class of tests_that_are_not_here, which is not installed.*model\.state_dict"):
        read_checkpoint(path, trust=True)


def test_weights_that_training_scripts_save_with_their_figures_need_no_trust(tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    document = {
        "epoch": np.int64(3), "model_state_dict": classifier().state_dict(), "loss": np.float64(0.1), "accuracy": np.float32(0.9),
        "history": np.zeros(3), "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "optimizer_state_dict": torch.optim.Adam(classifier().parameters()).state_dict(),
    }  # fmt: skip
    torch.save(document, path)
    assert read_checkpoint(path).state.keys() == classifier().state_dict().keys()


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("document", [
    lambda s: {"state_dict": s, "state_dict_ema": averaged(s)},
    lambda s: {"params": s, "params_ema": averaged(s)},
    lambda s: {"model": s, "ema": {"shadow": averaged(s), "decay": 0.99}},
    lambda s: {"model": s, "ema": {"module": {f"module.{name}": value for name, value in averaged(s).items()}}},
    lambda s: {"model": s, "ema": {"shadow": {n: v for n, v in averaged(s).items() if n.endswith(("weight", "bias"))}}},
])  # fmt: skip
def test_averaged_weights_come_before_the_last_ones(document: Callable[..., object], tmp_path: Path) -> None:
    state = classifier().state_dict()
    torch.save(document(state), tmp_path / "best.pt")
    found = read_checkpoint(tmp_path / "best.pt").state
    assert found.keys() == state.keys()
    assert torch.equal(found["head.bias"], state["head.bias"] + 1)


@pytest.mark.parametrize("key", PLAIN)
def test_a_state_dict_is_found_under_every_usual_key(key: str, tmp_path: Path) -> None:
    torch.save({"epoch": 1, key: classifier().state_dict()}, tmp_path / "best.pt")
    checkpoint = read_checkpoint(tmp_path / "best.pt")
    assert checkpoint.state.keys() == classifier().state_dict().keys()
    assert isinstance(checkpoint.content, StateContent)
    assert checkpoint.content.found_at == key


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "net.unet.",
        "ema_model.",
    ],
)
def test_what_wrappers_put_before_the_names_is_no_difference(prefix: str, tmp_path: Path) -> None:
    state = {prefix + name: value for name, value in random_gate().state_dict().items()}
    if prefix in ("model.", "ema_model."):
        state |= {"loss.weight": torch.ones(2), "initted": torch.tensor(True)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4"}, tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    if prefix == "net.unet.":
        with pytest.raises(ExportError, match="does not fit steel-gate"):
            load_network(checkpoint, find_architecture("steel-gate"))
        return
    network = load_network(checkpoint, find_architecture("steel-gate"))
    tile = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(tile), random_gate()(tile))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["torch.save", "safetensors"])
def test_weights_of_another_width_become_float32(kind: torch.dtype, form: str, tmp_path: Path) -> None:
    STATES[form](classifier().to(kind), tmp_path / "half")
    state = read_checkpoint(tmp_path / "half").state
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(state["head.weight"], classifier().head.weight.detach(), atol=1e-2, rtol=0)


def with_nan(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        network.head.weight[0, 0] = float("nan")
    return network


@pytest.mark.parametrize("kind", [*STATES, *MODULES, *GRAPHS, *PICKLES])
def test_weights_that_are_no_numbers_are_refused_whatever_holds_them(kind: str, tmp_path: Path) -> None:
    ({**STATES, **MODULES, **GRAPHS, **PICKLES})[kind](with_nan(classifier()), tmp_path / "net")
    with pytest.raises(ExportError, match=r"head.weight holds values that are no finite numbers"):
        read_checkpoint(tmp_path / "net", trust=True)


def test_quantized_weights_are_refused_with_what_to_export_instead(tmp_path: Path) -> None:
    state = dict(classifier().state_dict())
    state["head.weight"] = torch.quantize_per_tensor(state["head.weight"], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "int8.pt")
    with pytest.raises(ExportError, match=r"head\.weight is quantized.*export from the float network"):
        read_checkpoint(tmp_path / "int8.pt")


def hints(path: Path) -> Hints:
    return read_checkpoint(path).hints


def test_a_training_dict_tells_classes_size_and_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    weights = {"model": classifier().state_dict()}
    torch.save(weights, path)
    assert hints(path) == Hints()
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    torch.save({**weights, "classes": ["clean", "rust"], "img_size": 224, **imagenet}, path)
    found = hints(path)
    assert (found.classes, found.tile) == (("clean", "rust"), (224, 224))
    assert found.normalisation is not None
    np.testing.assert_allclose(found.normalisation.mean, IMAGENET.mean)
    np.testing.assert_allclose(found.normalisation.deviation, IMAGENET.deviation)
    torch.save({**weights, "class_to_idx": {"rust": 1, "clean": 0}, "hyper_parameters": {"input_size": (3, 96, 128)}}, path)
    assert hints(path) == Hints(("clean", "rust"), (96, 128))
    torch.save({**weights, "names": {0: "a", 1: "b"}, "config": {"mean": 127.5, "std": 64.0}}, path)
    assert hints(path) == Hints(("a", "b"), None, Normalisation((127.5,), (64.0,)))


@pytest.mark.parametrize("said", [
    {"classes": 4}, {"classes": ["a", "a"]}, {"names": {0: "a", 2: "b"}}, {"img_size": "large"}, {"img_size": -1},
    {"img_size": True}, {"input_size": [1, 2, 3, 4, 5]}, {"mean": [0.5], "std": [0.0]}, {"mean": "grey"},
    {"mean": [0.5, 0.5], "std": [0.1, 0.1, 0.1]},
])  # fmt: skip
def test_what_is_not_understood_is_taken_for_nothing(said: dict[str, object], tmp_path: Path) -> None:
    torch.save({"model": classifier().state_dict(), **said}, tmp_path / "best.pt")
    assert hints(tmp_path / "best.pt") == Hints()


def test_metadata_and_static_inputs_tell_what_they_can(tmp_path: Path) -> None:
    save_safetensors(classifier(), tmp_path / "a", {"classes": '["clean", "rust"]', "mean": "0.5", "std": "0.25"})
    assert hints(tmp_path / "a") == Hints(("clean", "rust"), None, Normalisation((127.5,), (63.75,)))
    save_onnx(classifier(), tmp_path / "b")
    assert hints(tmp_path / "b") == Hints(tile=(8, 8))
    model = onnx.load(tmp_path / "b")
    onnx.helper.set_model_props(model, {"names": "{0: 'clean', 1: 'rust'}", "imgsz": "[640, 320]"})
    onnx.save(model, tmp_path / "b")
    assert hints(tmp_path / "b") == Hints(("clean", "rust"), (640, 320))
    save_pt2(classifier(), tmp_path / "c", extra_files={"classes": "clean, rust"})
    assert hints(tmp_path / "c") == Hints(("clean", "rust"), (8, 8))
    torch.jit.script(classifier()).save(str(tmp_path / "d"), _extra_files={"config.json": '{"class_names": ["x", "y"]}'})
    assert hints(tmp_path / "d") == Hints(("x", "y"))


class Intruder:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


class Writer(nn.Module):
    """Running it makes a file."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, image: Tensor) -> Tensor:
        return image + torch.from_file(self.mark, True, 4).sum()


def replaced(path: Path, ending: str, change: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert sum(name.endswith(ending) for name in members) == 1
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith(ending) else content)


def evil_tensors(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Intruder(mark),), buffer)
    return buffer.getvalue()


def as_pickled_weight(content: bytes) -> bytes:
    document = json.loads(content)
    document["config"]["head.bias"]["use_pickle"] = True
    return json.dumps(document).encode()


EVIL_PT2: dict[str, Callable[[Path, Path], None]] = {
    "example inputs": lambda p, m: replaced(p, "sample_inputs/model.pt", lambda _: evil_tensors(m)),
    "weights": lambda p, m: replaced(p, "weights_config.json", as_pickled_weight),
    "sizes": lambda p, m: replaced(
        p,
        "models/model.json",
        lambda c: c.replace(b'"expr_str": "', f"\"expr_str\": \"__import__('os').mkdir('{m}') or ".encode()),
    ),
    "calls": lambda p, m: replaced(
        p, "models/model.json", lambda c: c.replace(b"torch.ops.aten.relu.default", b"torch.hub.load")
    ),
    "opens files": lambda p, m: replaced(
        p, "models/model.json", lambda c: c.replace(b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default")
    ),
}


@pytest.mark.parametrize("way", EVIL_PT2)
def test_an_exported_program_that_would_run_code_is_refused_and_runs_none(way: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt2", tmp_path / "intruder-was-here"
    save_pt2(classifier(), path, batch=2, dynamic=True)
    read_checkpoint(path)
    EVIL_PT2[way](path, mark)
    with pytest.raises(ExportError, match=r"evil\.pt2: .*--trust-checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()


def test_torchscript_that_opens_files_is_refused_and_opens_none(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "intruder-was-here"
    torch.jit.script(Writer(str(mark))).save(str(path))
    with pytest.raises(ExportError, match=r"from_file.*--trust-checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("write", [
    lambda m, p: torch.save(Intruder(m), p),
    lambda m, p: torch.save({"model": classifier().state_dict(), "extra": Intruder(m)}, p),
    lambda m, p: torch.save({"model": Intruder(m)}, p, _use_new_zipfile_serialization=False),
    lambda m, p: p.write_bytes(pickle.dumps(Intruder(m), protocol=4)),
])  # fmt: skip
def test_a_pickle_that_would_make_a_folder_is_refused_and_makes_none(
    write: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "intruder-was-here"
    write(mark, path)
    with pytest.raises(ExportError, match=r"evil\.pth: "):
        read_checkpoint(path)
    assert not mark.exists()


def test_a_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    save_pt2(classifier().train(), tmp_path / "net.pt2", batch=2)
    with pytest.raises(ExportError, match=r"training mode.*model\.eval\(\)"):
        read_checkpoint(tmp_path / "net.pt2")


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def image_file(ending: str) -> bytes:
    return bytes(cv2.imencode(ending, np.zeros((4, 4), np.uint8))[1])


def field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2, len(content))) + content


FROZEN = field(1, field(1, b"conv") + field(2, b"Conv2D")) * 3
"""A TensorFlow GraphDef: nodes of a name and an operator."""

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"loss 0.1\nloss 0.2\n", "is a text file"),
    "web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "JSON": (b'{"epochs": 3}', "JSON with epochs, no model.json of Keras"),
    "broken JSON": (b'{"class_name": "Model", ', "JSON that breaks off"),
    "PNG": (image_file(".png"), "is a PNG image"),
    "JPEG": (image_file(".jpg"), "is a JPEG image"),
    "BMP": (image_file(".bmp"), "is a BMP image"),
    "numpy": (b"\x93NUMPY\x01\x00", "is a numpy array"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "gzip archive; unpack it first"),
    "TFLite": (b"\x1c\0\0\0TFL3rest", "TensorFlow Lite"),
    "frozen graph": (FROZEN, "frozen graphs"),
    "part of a SavedModel": (b"\x08\x01" + field(2, b"\x0a\x00"), "part of a TensorFlow SavedModel; give the folder"),
    "noise": (np.random.default_rng(0).bytes(4096), "damaged or no checkpoint"),
    "archive": (archive_of({"a.csv": b"1", "b.csv": b"2"}), "is an archive with a.csv, b.csv"),
    "packed checkpoint": (archive_of({"best.pth": b"1"}), "is an archive with best.pth.*unpacked"),
    "bomb": (archive_of({"x/data.pkl": bytes(300 << 20)}, zipfile.ZIP_DEFLATED), r"unpacks from \d+ to 3145\d+ bytes"),
    "pickle": (pickle.dumps({"weights": [1, 2]}), "damaged, or not written by torch.save"),
    "safetensors that is short": (b"\xff\0\0\0\0\0\0\0" + b'{"a":', "damaged safetensors"),
    "ONNX without nodes": (onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(), "no nodes"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_checkpoint_is_one_line_that_says_what_it_is(what: str, tmp_path: Path) -> None:
    content, expected = BAD[what]
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=expected) as caught:
        read_checkpoint(path, trust=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_folders_and_devices_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is a folder without saved_model\.pb"):
        read_checkpoint(tmp_path)
    with pytest.raises(ExportError, match="is no regular file"):
        read_checkpoint(Path("/dev/null"))
    with pytest.raises(ExportError, match="cannot be read"):
        read_checkpoint(tmp_path / "absent" / "best.pt")


@pytest.mark.parametrize("kind", [*STATES, *MODULES, *GRAPHS])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_half_a_file_is_one_line(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "half"
    ({**STATES, **MODULES, **GRAPHS})[kind](classifier(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ExportError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_claim_more_than_a_box_has_are_refused_before_they_are_made(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1, dtype=torch.float16).expand(1 << 36)}, tmp_path / "huge.pt")
    with pytest.raises(ExportError, match="claim 256 GiB"):
        read_checkpoint(tmp_path / "huge.pt")


def test_onnx_weights_that_are_not_beside_it_are_named(tmp_path: Path) -> None:
    save_outside(classifier(), tmp_path / "net.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"in weights\.bin, which is not beside it; copy both"):
        read_checkpoint(tmp_path / "net.onnx")


def test_onnx_weights_outside_the_folder_are_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "net.onnx"
    save_outside(classifier(), path)
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../eights.b"))
    (tmp_path / "eights.b").write_bytes((tmp_path / "weights.bin").read_bytes())
    with pytest.raises(ExportError, match="damaged or invalid ONNX file"):
        read_checkpoint(path)


def test_weights_go_with_a_keras_description_alone(tmp_path: Path) -> None:
    torch.save(classifier().state_dict(), tmp_path / "best.pt")
    with pytest.raises(ExportError, match=r"holds its weights itself.*--weights goes with a model\.json"):
        read_checkpoint(tmp_path / "best.pt", weights=tmp_path / "other.h5")


def test_safetensors_without_its_library_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(classifier(), tmp_path / "net.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ExportError, match=r"pip install 'rust-edge\[export\]'"):
        read_checkpoint(tmp_path / "net.safetensors")


def test_weights_without_a_network_name_the_architectures_that_fit() -> None:
    import dataclasses

    graphs = dataclasses.replace(find_architecture("steel-unet"), name="any-segmenter", build=None, framework="any")
    with pytest.raises(ExportError, match=r"any-segmenter builds no network from them; it would fit --arch steel-unet"):
        load_network(Checkpoint("mine.pt", "", StateContent(trained_unet().state_dict())), graphs)


def test_a_graph_has_no_state_dict(tmp_path: Path) -> None:
    save_onnx(classifier(), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"net\.onnx: holds an ONNX graph, expected weights of PyTorch"):
        load_network(read_checkpoint(tmp_path / "net.onnx"), find_architecture("steel-gate"))


def test_a_bit_that_flipped_on_the_way_is_told_and_not_loaded_as_a_weight(tmp_path: Path) -> None:
    path = tmp_path / "unet.pt"
    torch.save(trained_unet().state_dict(), path)
    content = bytearray(path.read_bytes())
    weights = max(zipfile.ZipFile(path).infolist(), key=lambda member: member.file_size)
    content[weights.header_offset + 256 + weights.file_size // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"unet\.pt: damaged inside \(.*\); copy it again"):
        read_checkpoint(path)
