"""Stand-in checkpoints of the seed systems' networks, trained briefly in the framework that trains them.

Their own weights are not public. What is wanted of these is that they have learnt something real, so that what INT8 takes
from them means something; not that they are good. Three steps, since TensorFlow wants an environment of its own:

    python benchmarks/seed_checkpoints.py data DATA OUT            # DATA: folder with neu_seg, neu_cls, pits
    python benchmarks/seed_checkpoints.py torch OUT NAME...        # rust-cnn, pits-unet, pits-unetpp
    TENSORFLOW_PYTHON benchmarks/seed_checkpoints.py keras OUT NAME...   # rust-cls, severstal-gate, severstal-unet, coating-unet

`OUT/<name>/` then holds images, masks or class folders to calibrate with, and the checkpoint as its system leaves it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
SIMULATED_TILES = 480
"""Tiles of 256 x 1600 px of the simulated strip, for the severstal networks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    data = steps.add_parser("data")
    data.add_argument("data", type=Path)
    data.add_argument("out", type=Path)
    data.set_defaults(handler=lambda args: write_data(args.data, args.out))
    for framework, trainers in (("torch", TORCH), ("keras", KERAS)):
        train = steps.add_parser(framework)
        train.add_argument("out", type=Path)
        train.add_argument("names", nargs="+", choices=sorted(trainers))
        train.add_argument("--epochs", type=int, default=None)
        train.set_defaults(
            handler=lambda args, trainers=trainers: [trainers[name](args.out / name, args.epochs) for name in args.names]
        )
    args = parser.parse_args()
    args.handler(args)


def write_data(data: Path, out: Path) -> None:
    import cv2

    from edge.config import Scale, SimulatedDefects
    from edge.sources.steel_strip import SteelStrip

    def put(name: str, number: str, image: Any, mask: Any) -> None:
        for kind, content in (("images", image), ("masks", mask)):
            path = out / name / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), content)

    def pairs(images: Path, masks: Path) -> Iterator[tuple[str, Any, Any]]:
        for path in sorted(images.rglob("*")):
            mask = cv2.imread(str(masks / path.relative_to(images).with_suffix(".png")), cv2.IMREAD_GRAYSCALE)
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is not None and mask is not None:
                yield path.stem, image, mask

    for stem, image, mask in pairs(data / "pits/train/images", data / "pits/train/masks"):
        for name in ("pits-unet", "pits-unetpp"):
            put(name, stem, image, mask)
    rng = np.random.default_rng(SEED)
    for stem, image, mask in pairs(data / "neu_seg/train/images", data / "neu_seg/train/masks"):
        if rng.random() < 0.25:
            put("coating-unet", stem, image, (mask > 0).astype(np.uint8))
        for corner in range(2):
            row, column = rng.integers(0, 200 - 64, 2)
            tile = (slice(row, row + 64), slice(column, column + 64))
            share = (mask[tile] > 0).mean()
            if share == 0 or share > 0.15:
                folder = out / "rust-cnn" / "images" / ("rust" if share else "clean")
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{stem}-{corner}.png"), image[tile])
    for path in sorted((data / "neu_cls/train").rglob("*.*")):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is not None:
            folder = out / "rust-cls" / "images" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{path.stem}.png"), image)
    defects = SimulatedDefects(
        rust_every_mm=250, pit_every_mm=500, inclusion_every_mm=250, scratch_every_mm=500, scratch_max_mm=300
    )
    for number in range(SIMULATED_TILES // 20):
        strip = SteelStrip(1600, SEED + number, defects, Scale())
        for tile in range(20):
            first = tile * 256 * 3  # apart, so that neighbours are not nearly the same
            image, mask = strip.lines(first, 256), strip.truth(first, 256)
            for name in ("severstal-gate", "severstal-unet"):
                put(name, f"{number:03d}-{tile:02d}", image, mask)


def labelled(folder: Path, size: tuple[int, int], clahe: bool = False) -> tuple[Any, Any]:
    """Images and masks (n, h, w) uint8 as the network gets them; without masks, indices of the class folders (n,)."""
    import cv2

    images, truths = [], []
    paths = sorted((folder / "images").rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if clahe:
            image = cv2.createCLAHE(10.0, (8, 8)).apply(image)
        images.append(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))
        mask_path = folder / "masks" / path.relative_to(folder / "images")
        if mask_path.exists():
            mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
            truths.append(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST))
        else:
            truths.append(names.index(path.parent.name))
    return np.stack(images), np.stack(truths)


def train_rust_cnn(folder: Path, epochs: int | None) -> None:
    from export.networks.grey_input import IMAGENET, GreyInput
    from export.networks.rust_cnn import RustCnn

    images, labels = labelled(folder, (32, 32))
    network = RustCnn(2)
    loss = fit_torch(GreyInput(network, IMAGENET), images, labels, epochs or 12, batch=64, rate=1e-3)
    import torch

    state = {
        "epoch": epochs or 12,
        "model_state_dict": network.state_dict(),
        "optimizer_state_dict": {},
        "loss": loss,
        "accuracy": 0.0,
    }
    torch.save(state, folder / "best_model.pth")


def train_pits_unet(folder: Path, epochs: int | None) -> None:
    import torch

    from export.networks.grey_input import UNIT, GreyInput
    from export.networks.pits_unet import PitsUNet

    images, masks = labelled(folder, (200, 200))
    network = PitsUNet()
    fit_torch(GreyInput(network, UNIT), images, (masks > 0).astype(np.uint8), epochs or 24, batch=8, rate=1e-3, crop=128)
    torch.save(network.state_dict(), folder / "unet.pth")


def train_pits_unetpp(folder: Path, epochs: int | None) -> None:
    import segmentation_models_pytorch as smp
    import torch

    from export.networks.grey_input import UNIT, GreyInput

    images, masks = labelled(folder, (200, 200))
    network = smp.UnetPlusPlus("timm-efficientnet-b0", encoder_weights=None, in_channels=1, classes=1)
    fit_torch(GreyInput(network, UNIT), images, (masks > 0).astype(np.uint8), epochs or 40, batch=8, rate=2e-3, crop=160)
    torch.save(network, folder / "model.pth")


def fit_torch(network: Any, images: Any, truth: Any, epochs: int, batch: int, rate: float, crop: int | None = None) -> float:
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    steps = max(1, len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps + 1)
    network.train()
    begun, total = time.monotonic(), 0.0
    for epoch in range(epochs):
        order, total = rng.permutation(len(images)), 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            examples = [vary(images[index], truth[index], crop, rng) for index in chosen]
            shown = torch.from_numpy(np.stack([image for image, _ in examples]))[:, None]
            wanted = torch.from_numpy(np.stack([target for _, target in examples]))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = network(shown).float()
            if truth.ndim == 1:
                loss = nn.functional.cross_entropy(scores, wanted.long())
            else:
                loss = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], wanted.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"epoch {epoch + 1}/{epochs}  loss {total:.4f}  {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return total


def vary(image: Any, truth: Any, crop: int | None, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random part, turned at random; labels of whole images stay."""
    if crop is not None:
        row, column = (int(rng.integers(0, side - crop + 1)) for side in image.shape)
        image, truth = (values[row : row + crop, column : column + crop] for values in (image, truth))
    turns, flip = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
    image = np.rot90(image, turns)[:, :: -1 if flip else 1]
    if truth.ndim == 2:
        truth = np.ascontiguousarray(np.rot90(truth, turns)[:, :: -1 if flip else 1])
    return np.ascontiguousarray(image), truth


def train_keras(name: str, folder: Path, epochs: int) -> None:
    """Train with TF-Keras 2, and save as the system does."""
    import runpy

    import tf_keras

    builders = runpy.run_path(str(Path(__file__).parents[1] / "export" / "networks" / "keras_builders.py"))
    images, truth = labelled(folder, (256, 256), clahe=name == "coating-unet")
    outputs, loss, activation = 1, "binary_crossentropy", truth
    if name == "rust-cls":
        outputs, loss = int(truth.max()) + 1, "sparse_categorical_crossentropy"
    elif name == "severstal-gate":
        activation = ((truth > 0).sum(axis=(1, 2)) >= 8).astype(np.float32)
    elif name == "severstal-unet":
        outputs = 4
        activation = np.stack([truth == index for index in range(1, 5)], axis=-1).astype(np.float32)
    else:
        activation = (truth > 0).astype(np.float32)[..., None]
    network = builders[name.replace("-", "_")](tf_keras, outputs)
    for layer in network.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # a few hundred steps: the default would average over thousands
    channels = network.inputs[0].shape[-1]
    fed = np.repeat(images[..., None].astype(np.float32), channels, axis=-1) / (1.0 if name == "rust-cls" else 255.0)
    network.compile(optimizer=tf_keras.optimizers.Adam(1e-3), loss=loss)
    order = np.random.default_rng(SEED).permutation(len(fed))[: {"coating-unet": 60, "severstal-gate": 240}.get(name)]
    network.fit(fed[order], activation[order], batch_size=8, epochs=epochs, verbose=2)
    if name == "severstal-unet":
        (folder / "model.json").write_text(network.to_json())
        network.save_weights(folder / "model.hdf5")
    elif name == "severstal-gate":
        (folder / "gate.json").write_text(network.to_json())
        network.save_weights(folder / "gate.hdf5")
    else:
        network.save(folder / f"{name}.h5")


TORCH = {"rust-cnn": train_rust_cnn, "pits-unet": train_pits_unet, "pits-unetpp": train_pits_unetpp}
KERAS = {
    name: lambda folder, epochs, name=name, default=default: train_keras(name, folder, epochs or default)
    for name, default in (("rust-cls", 3), ("severstal-gate", 3), ("severstal-unet", 5), ("coating-unet", 3))
}

if __name__ == "__main__":
    main()
