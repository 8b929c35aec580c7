"""The system pits: a pickled U-Net++ on slices that overlap, and its plain U-Net, which needs none."""

from __future__ import annotations

import frameworks
import numpy as np
import plain
import pytest
import torch
from agreement import assert_agrees, assert_same_mask, assert_tables
from workbench import CONFIGS, inspect

from edge.cli import main


def test_the_engine_of_the_unetpp_answers_as_torch_did(pits_unetpp):
    assert_agrees(pits_unetpp.bundle, pits_unetpp.tiles, pits_unetpp.answers)


def test_the_pickle_is_not_loaded_without_the_users_word(pits_unetpp, tmp_path, capsys):
    torch.save(pits_unetpp.network, tmp_path / "model.pth")
    out = tmp_path / "bundle"
    flags = ["--set", f"checkpoint={tmp_path / 'model.pth'}", "--set", f"calibration={tmp_path}", "--set", f"out={out}"]
    assert main(["export", str(CONFIGS / "export" / "pits-unetpp.yaml"), "--set", "masks=null", *flags]) == 1
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("shot", ["made-0", "real"])
def test_the_mask_is_the_union_of_all_slices_and_their_rest_is_inspected_too(pits_unetpp, shots, shot, tmp_path):
    if shot not in shots["pits"]:
        pytest.skip("no development images at ../shared/data")
    image = shots["pits"][shot]
    height, width = image.shape

    answers = {}

    def ask(part):
        if part.tobytes() not in answers:  # most slices are theirs and ours
            answers[part.tobytes()] = frameworks.sigmoids(pits_unetpp.network, plain.slice_inputs([part]))[0, 0]
        return answers[part.tobytes()]

    found = inspect("pits", {shot: image}, tmp_path, bundle=pits_unetpp.bundle.path)
    # as the system has it: its last rows and columns stay empty, and whatever else a slice there would have added
    theirs, near, seen = plain.union_of_slices(image, ask)
    assert not seen[-1].any()
    assert not seen[:, -1].any()
    inner = np.s_[: plain.slice_starts(height)[-1] + 100, : plain.slice_starts(width)[-1] + 100]
    assert_same_mask(found.mask[inner], theirs[inner], near[inner])
    assert (found.mask >= theirs)[~near].all()
    # and as it would be if their image were reflected until slices cover all of it
    whole = np.pad(image, ((0, 424 - height), (0, 524 - width)), mode="reflect")
    ours, near, _ = (values[:height, :width] for values in plain.union_of_slices(whole, ask))
    assert_same_mask(found.mask, ours, near)
    assert ours[~seen].any()
    assert_tables(found, {f"{shot}.png": found.mask}, ("background", "particle"))


def test_the_engine_of_the_plain_unet_answers_as_torch_did(pits_unet):
    manifest = pits_unet.bundle.manifest
    assert manifest.streaming is not None
    # with a halo of reflected pixels, which torch gets too
    margin = manifest.halo
    tiles = np.pad(np.stack(pits_unet.tiles), ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    assert tiles.shape[1:] == (manifest.input.tile_height, manifest.input.tile_width)
    answers = frameworks.sigmoids(pits_unet.network, plain.slice_inputs(tiles))
    assert_agrees(pits_unet.bundle, tiles, answers)


@pytest.mark.parametrize("dense", ["streaming", "slabs"])
def test_the_plain_unet_sees_an_image_as_a_whole(pits_unet, shots, dense, tmp_path):
    name, image = list(shots["pits"].items())[-1]
    dense_keys = {f"tiling__step_{axis}": None for axis in ("lines", "columns")} | {"tiling__merge": "core", "mode": "dense"}
    found = inspect("pits", {name: image}, tmp_path, bundle=pits_unet.bundle.path, dense=dense, chunk_lines=64, **dense_keys)
    manifest = pits_unet.bundle.manifest
    halo = -(-manifest.radius // manifest.stride) * manifest.stride
    below, right = (halo + -side % manifest.stride for side in image.shape)
    whole = np.pad(image, ((halo, below), (halo, right)), mode="reflect")
    answer = frameworks.sigmoids(pits_unet.network, plain.slice_inputs([whole]))[0, 0][halo:, halo:][
        : image.shape[0], : image.shape[1]
    ]
    assert_same_mask(found.mask, (answer > 0.5).astype(np.uint8), abs(answer - 0.5) < plain.NEAR)
