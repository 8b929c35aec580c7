from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from small_checkpoints import random_gate, trained_unet

from export.checkpoints import Checkpoint, StateContent, load_network, read_checkpoint
from export.errors import ExportError
from export.networks import find_architecture


def saved(document: object, folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(document, path)
    return path


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_where_training_scripts_put_it(key: str | None, prefix: str, tmp_path: Path) -> None:
    state = {prefix + name: value for name, value in trained_unet().state_dict().items()}
    checkpoint = read_checkpoint(saved({key: state, "epoch": 3, "note": "best"} if key else state, tmp_path))
    image = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(load_network(checkpoint, find_architecture("steel-unet"))(image), trained_unet()(image))


def test_an_averaged_model_counts_its_updates_beside_the_weights(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(random_gate())
    assert "n_averaged" in averaged.state_dict()
    load_network(read_checkpoint(saved(averaged.state_dict(), tmp_path)), find_architecture("steel-gate"))


class Intruder:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(write: object, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "intruder-was-here"
    write({"state_dict": Intruder(mark)}, path)  # type: ignore[operator]
    with pytest.raises(ExportError, match=r"evil\.pt"):
        read_checkpoint(path)
    assert not mark.exists()


def test_a_pickled_module_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch.save\(model.state_dict"):
        read_checkpoint(saved(trained_unet(), tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_clear_line(kept: float, tmp_path: Path) -> None:
    path = saved(trained_unet().state_dict(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept < 1 else int(kept)])
    with pytest.raises(ExportError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.pt: cannot be read"):
        read_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize("document", [{}, {"epoch": 3}, {"state_dict": {"epoch": 3}}, [1, 2], "weights"])
def test_a_file_without_a_state_dict_says_what_it_holds(document: object, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a state dict, or one under model_state_dict"):
        read_checkpoint(saved(document, tmp_path))


def test_layers_that_do_not_fit_are_named_first_ones_first() -> None:
    state = dict(trained_unet().state_dict())
    state["encoder_2.0.weight"] = torch.zeros(8, 8, 5, 5)
    del state["lateral_8.0.weight"]
    state["attention.weight"] = torch.zeros(4)
    with pytest.raises(ExportError) as caught:
        load_network(Checkpoint("mine.pt", "", StateContent(state)), find_architecture("steel-unet"))
    message = str(caught.value)
    assert "encoder_2.0.weight is (8, 8, 5, 5), expected (8, 8, 3, 3)" in message
    assert "lateral_8.0.weight is missing" in message
    assert "attention.weight (4,) is not of this network" in message


def test_the_architecture_that_would_fit_is_suggested() -> None:
    with pytest.raises(ExportError, match="it would fit --arch steel-unet"):
        load_network(Checkpoint("mine.pt", "", StateContent(trained_unet().state_dict())), find_architecture("steel-gate"))


def test_weights_that_are_no_numbers_are_refused() -> None:
    state = dict(random_gate().state_dict())
    state["head.bias"] = torch.full((1,), float("nan"))
    with pytest.raises(ExportError, match=r"head\.bias holds values that are no finite numbers"):
        load_network(Checkpoint("mine.pt", "", StateContent(state)), find_architecture("steel-gate"))


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(ExportError, match="steel-unet, steel-gate"):
        find_architecture("resnet")
