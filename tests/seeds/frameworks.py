"""The seed systems' networks in the frameworks that train them: their checkpoints as the systems leave them, and their answers.

Run as a script it does so for the systems of Keras: `python frameworks.py tf_keras|keras FOLDER`. FOLDER holds NAME.tiles.npy,
float32 (n, h, w, channels), as the system feeds its network; beside it come the checkpoint and NAME.answers.npy. Weights are
drawn from a seed; the last layer is brought to where the system's threshold tells the tiles apart.
"""

from __future__ import annotations

import importlib
import math
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
BUILDERS = TESTS.parent / "export" / "networks" / "keras_builders.py"
SPREAD = 2.0
"""Standard deviation of the logits: probabilities on both sides, few of them near 0 or 1, where a sigmoid hides what differs."""

# builder, outputs, the logit around which the answers are to lie, the share of them that lies below
KERAS = {
    "rust-cls": ("rust_cls", 3, 0.0, 0.45),
    "severstal-gate": ("severstal_gate", 1, math.log(0.01 / 0.99), 0.4),
    "severstal-unet": ("severstal_unet", 4, 0.0, 0.95),
    "coating-unet": ("coating_unet", 1, math.log(0.6 / 0.4), 0.7),
}


def write_keras(keras, name: str, folder: Path) -> None:
    """Checkpoint and answers of one system. TF-Keras 2 writes `.h5`, Keras 3 its own forms."""
    builder, outputs, level, below = KERAS[name]
    tiles = np.load(folder / f"{name}.tiles.npy")
    keras.backend.clear_session()
    settle = runpy.run_path(str(TESTS / "export" / "keras_checkpoints.py"))["settle"]
    model = settle(runpy.run_path(str(BUILDERS))[builder](keras, outputs), seed=3)
    some = tiles[::3] if len(model.output_shape) == 4 else tiles  # of a mask's pixels a few tiles have enough
    _learn(keras, model, some)
    head = model.layers[-1]  # a dense layer or a 1x1 convolution
    kernel, bias = (np.asarray(weight) for weight in head.get_weights())
    features = _predict(keras.Model(model.inputs, head.input), some)
    head.set_weights(list(balanced(kernel, bias, features @ kernel.reshape(kernel.shape[-2:]) + bias, level, below)))
    np.save(folder / f"{name}.answers.npy", _predict(model, tiles))
    old = keras.__name__ == "tf_keras"
    if name.startswith("severstal"):
        (folder / f"{name}.json").write_text(model.to_json())
        model.save_weights(folder / (f"{name}.hdf5" if old else f"{name}.weights.h5"))
    else:
        model.compile("adam", "sparse_categorical_crossentropy" if name == "rust-cls" else "binary_crossentropy")
        model.save(folder / (f"{name}.h5" if old else f"{name}.keras"))


def _learn(keras, model, tiles) -> None:
    """What training does to a random network for rounding not to grow from layer to layer until it is seen in the answer.

    Normalisations hold what they see; the blocks of a ResNet add little each to what they are given.
    """
    normalisations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalisations:
        layer.momentum = 0.0
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(np.asarray(layer.get_weights()[0]) * 0.2)
    if normalisations:
        model(tiles, training=True)
    for layer in normalisations:
        layer.momentum = 0.99  # Keras's own


def balanced(kernel, bias, logits, level: float, below: float):
    """Kernel (..., outputs) and bias of a last layer after which each of the logits has SPREAD around `level`.

    logits: (..., outputs), as they are. below: the share of each that is to lie below `level`.
    """
    flat = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    gain = SPREAD / flat.std(axis=0)
    middle = np.quantile(flat, below, axis=0)
    return (kernel * gain).astype(np.float32), ((bias - middle) * gain + level).astype(np.float32)


def rust_cnn(tiles):
    """Tiles (n, 3, 32, 32) float32, normalised, to the network and its softmax (n, 2)."""
    import torch

    from export.networks.rust_cnn import RustCnn

    torch.manual_seed(5)
    network = RustCnn().eval()
    _balance(network, network.fc_layers[4], tiles, 0.45)
    with torch.inference_mode():
        return network, network(torch.from_numpy(tiles)).softmax(1).numpy()


def pits_unet(slices, width: int = 8):
    """The plain U-Net for slices (n, 1, h, w) float32, 0 to 1; the system's has a width of 64."""
    import torch

    from export.networks.pits_unet import PitsUNet

    torch.manual_seed(6)
    network = _settled(PitsUNet(width=width))
    _balance(network, network.final_conv, slices, 0.8)
    return network


def pits_unetpp(smp, slices):
    """The same of the U-Net++."""
    import torch

    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library will drop the encoder's name one day
        network = smp.UnetPlusPlus(encoder_name="timm-efficientnet-b0", encoder_weights=None, in_channels=1, classes=1)
    _settled(network)
    _balance(network, network.segmentation_head[0], slices, 0.8)
    return network


def sigmoids(network, slices):
    """Probabilities of a network of torch, slice by slice as the system asks it."""
    import torch

    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(slice_[None])).sigmoid().numpy() for slice_ in slices])


def _settled(network):
    """No normalisation idle, as after training."""
    import torch
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.8, 1.2), (module.running_var, 0.6, 1.2)):
                torch.nn.init.uniform_(values, low, high)
            for values in (module.bias, module.running_mean):
                torch.nn.init.normal_(values, 0.0, 0.1)
    return network.eval()


def _balance(network, head, tiles, below: float) -> None:
    import torch

    with torch.no_grad():
        logits = torch.cat([network(torch.from_numpy(tile[None])) for tile in tiles]).movedim(1, -1).numpy()
        kernel, bias = balanced(head.weight.movedim(0, -1).numpy(), head.bias.numpy(), logits, 0.0, below)
        head.weight.copy_(torch.from_numpy(kernel).movedim(-1, 0))
        head.bias.copy_(torch.from_numpy(bias))


def _predict(model, tiles):
    return np.concatenate([np.asarray(model.predict(tile[None], verbose=0), np.float32) for tile in tiles])


def main(arguments: Sequence[str]) -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "torch"}
    keras, folder = importlib.import_module(arguments[0]), Path(arguments[1])
    if arguments[0] == "keras":
        importlib.import_module("torch").set_num_threads(1)
    for name in KERAS:
        if (folder / f"{name}.tiles.npy").exists():
            write_keras(keras, name, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
