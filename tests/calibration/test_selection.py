from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.activations import CalibrationError
from calibration.selection import FEW, RECOMMENDED, Candidate, candidates_of, select

tiles = st.builds(
    Candidate,
    origin=st.sampled_from(["a.png", "b.png", "strip.png"]),
    row=st.integers(0, 60),
    column=st.integers(0, 60),
    mean=st.integers(0, 255).map(float),
    contrast=st.integers(0, 60).map(float),
    classes=st.none() | st.frozensets(st.integers(0, 3), min_size=1),
)
candidate_lists = st.lists(tiles, min_size=1, max_size=60, unique_by=lambda tile: (tile.origin, tile.row, tile.column))
seeds = st.integers(0, 5)


def steel(count, classes=frozenset({0}), grey=100.0, origin="clean"):
    """Tiles of rising brightness, of an image each."""
    return [Candidate(f"{origin}-{index:04d}", 0, 0, grey + index * 0.1, 8.0, classes) for index in range(count)]


@settings(deadline=None)
@given(candidate_lists, st.integers(1, 80), seeds)
def test_as_many_as_asked_for_are_chosen_and_none_twice(candidates, count, seed):
    selection = select(candidates, count, seed)
    assert len(set(selection.chosen)) == len(selection.chosen) == min(count, len(candidates))
    assert set(selection.chosen) <= set(candidates)
    assert sum(stratum.candidates for stratum in selection.strata) == len(candidates)
    assert sum(stratum.chosen for stratum in selection.strata) == len(selection.chosen)


@settings(deadline=None)
@given(candidate_lists, st.integers(1, 80), seeds, st.randoms(use_true_random=False))
def test_the_same_seed_gives_the_same_tiles_in_whatever_order_they_were_found(candidates, count, seed, random):
    selection = select(candidates, count, seed)
    random.shuffle(candidates)
    assert select(candidates, count, seed) == selection


@settings(deadline=None)
@given(candidate_lists, st.integers(1, 80), seeds)
def test_every_stratum_gives_one_and_the_rest_is_shared_in_proportion(candidates, count, seed):
    strata = select(candidates, count, seed).strata
    chosen = min(count, len(candidates))
    if chosen < len(strata):
        assert {stratum.chosen for stratum in strata} <= {0, 1}
        return
    spare = max(len(candidates) - len(strata), 1)
    for stratum in strata:
        assert stratum.chosen >= 1
        assert abs(stratum.chosen - 1 - (chosen - len(strata)) * (stratum.candidates - 1) / spare) < 1


@settings(deadline=None)
@given(candidate_lists.map(lambda found: [tile for tile in found if tile.classes]).filter(bool), seeds)
def test_every_class_and_clean_steel_are_there_from_as_many_tiles_on(candidates, seed):
    def shown(chosen):
        return {index for tile in chosen for index in (tile.defects or {0})}

    wanted = shown(candidates)
    assert shown(select(candidates, len(wanted), seed).chosen) == wanted


def test_one_defect_among_a_thousand_clean_tiles_is_chosen():
    rare = Candidate("z", 0, 0, 110.0, 30.0, frozenset({0, 2}))
    for seed in range(3):
        assert rare in select([*steel(1000), rare], 10, seed).chosen


def test_the_range_of_brightness_is_chosen_evenly():
    candidates = [Candidate("strip", row, 0, float(row % 250), 5.0, frozenset({0})) for row in range(2000)]
    greys = sorted(tile.mean for tile in select(candidates, 100, seed=3).chosen)
    assert greys[0] < 10
    assert greys[-1] > 240
    assert max(np.diff(greys)) < 10


def test_unlabelled_tiles_are_chosen_over_brightness_and_contrast():
    rng = np.random.default_rng(0)
    candidates = [Candidate("strip", row, 0, *rng.uniform(20, 60, 2)) for row in range(500)]
    strata = select(candidates, 60, seed=0).strata
    assert len(strata) == 12
    assert all(stratum.chosen >= 1 and stratum.defects is None for stratum in strata)
    assert max(stratum.most_contrast for stratum in strata) > 55


def test_another_seed_chooses_other_tiles_of_the_same_strata():
    candidates = steel(300) + steel(40, frozenset({1}), origin="pit")
    first, second = (select(candidates, 100, seed) for seed in (1, 2))
    assert first.chosen != second.chosen
    assert first.strata == second.strata


def test_strata_are_named_by_what_their_tiles_show():
    candidates = [
        *steel(5, grey=80.0),
        Candidate("both", 0, 0, 80.25, 30.0, frozenset({0, 2, 1})),
        Candidate("unknown", 0, 0, 80.05, 3.0),
    ]
    strata = select(candidates, 7, seed=0, class_names=["clean", "pit", "scratch"]).strata
    named = [stratum.named(["clean", "pit", "scratch"]) for stratum in strata]
    assert named[0] == "clean, grey 80 to 80"
    assert "pit + scratch, grey 80 to 80" in named
    assert named[-1] == "unlabelled, grey 80 to 80, contrast 3 to 3"
    assert strata[0].named([]) == "clean, grey 80 to 80"
    assert dataclasses.replace(strata[0], defects=frozenset({2})).named([]) == "class 2, grey 80 to 80"


def warned(candidates, count=500, names=("clean", "pit", "scratch")):
    return select(candidates, count, 0, names).warnings


SOUND = steel(100) + steel(20, frozenset({0, 1}), origin="pit") + steel(20, frozenset({2}), origin="scratch")


def test_sound_candidates_bring_no_warning():
    assert warned(SOUND) == ()


def test_few_tiles_are_told_with_how_many_are_recommended():
    (told,) = warned(SOUND, FEW - 1)
    assert told == f"{FEW - 1} tiles to calibrate with: ranges are doubtful below {FEW}; {RECOMMENDED} are recommended"


def test_clean_steel_alone_is_told():
    assert warned(steel(200)) == ("all 200 tiles are clean: none shows a defect; expected some of every class",)


def test_one_class_alone_is_told():
    told = warned(steel(200, frozenset({1})))
    assert told == (
        "all 200 tiles show pit alone: no tile is clean; expected some without a defect",
        "no tile shows scratch; expected some of every class",
    )


def test_no_clean_tile_is_told():
    told = warned(SOUND[100:] + steel(100, frozenset({1}), origin="more"))
    assert told == ("no tile is clean; expected some without a defect",)


def test_strata_and_classes_that_are_left_out_are_named():
    told = warned(SOUND, 2)
    assert any(line.startswith("2 tiles are fewer than the 8 kinds of them; left out: clean, grey") for line in told)
    assert "none of the 2 chosen tiles shows scratch; expected more tiles" in told


def test_images_of_one_grey_level_are_named():
    black = [Candidate("black.png", row, 0, 0.0, 0.0, frozenset({0})) for row in range(3)]
    half = [Candidate("half.png", 0, 0, 0.0, 0.0, frozenset({0})), Candidate("half.png", 1, 0, 100.0, 9.0, frozenset({0}))]
    assert warned(SOUND + black + half) == ("of one grey level throughout: black.png; expected images of steel",)


def test_what_unlabelled_tiles_show_is_not_guessed():
    unlabelled = [dataclasses.replace(tile, classes=None) for tile in SOUND]
    assert warned(unlabelled) == ()


@pytest.mark.parametrize(
    ("candidates", "count", "told"),
    [
        ([], 10, r"got no tiles to calibrate with, expected about 500, defects among them"),
        (steel(3), 0, r"got 0 calibration tiles to choose, expected at least 1, better 500"),
        (steel(3) * 2, 4, r"clean-0000: its tile at row 0, column 0 is there twice"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(candidates, count, told):
    with pytest.raises(CalibrationError, match=told):
        select(candidates, count, 0)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), seeds)
def test_tiles_cover_the_image_and_tell_what_is_in_them(height, width, tile_height, tile_width, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width), dtype=np.uint8)
    mask = (rng.random((height, width)) < 0.05).astype(np.uint8) * 3
    covered = np.zeros((height, width), int)
    candidates = candidates_of("i.png", image, mask, tile_height, tile_width)
    for tile in candidates:
        window = np.s_[tile.row : tile.row + tile_height, tile.column : tile.column + tile_width]
        assert image[window].shape == (min(tile_height, height), min(tile_width, width))
        assert tile.mean == pytest.approx(image[window].mean())
        assert tile.contrast == pytest.approx(image[window].astype(float).std())
        assert tile.classes == set(np.unique(mask[window]).tolist())
        covered[window] += 1
    assert covered.min() == 1
    assert len(candidates) == -(-height // tile_height) * -(-width // tile_width)
    assert len({(tile.row, tile.column) for tile in candidates}) == len(candidates)


def test_a_strip_is_read_tile_by_tile_from_a_memory_map(tmp_path):
    strip = np.lib.format.open_memmap(tmp_path / "strip.npy", "w+", np.uint8, (4096, 64))
    strip[:] = np.arange(4096, dtype=np.uint64)[:, None] // 16
    candidates = candidates_of("strip", strip, None, 64, 64)
    assert len(candidates) == 64
    assert [tile.classes for tile in candidates] == [None] * 64
    assert candidates[-1].mean == pytest.approx(253.5)


@pytest.mark.parametrize(
    ("image", "mask", "side", "told"),
    [
        (np.zeros((8, 8, 3), np.uint8), None, 4, r"i: got an image of uint8 \(8, 8, 3\), expected grey"),
        (np.zeros((0, 8), np.uint8), None, 4, r"i: got an image of uint8 \(0, 8\)"),
        (np.zeros((8, 8), np.uint16), None, 4, r"i: got an image of uint16"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 7), np.uint8), 4, r"i: got a mask of uint8 \(8, 7\) for an image of \(8, 8\)"),
        (np.zeros((8, 8), np.uint8), None, 0, r"i: got tiles of 0 x 0 px, expected at least 1 x 1"),
    ],
)
def test_what_cannot_be_cut_is_refused_and_named(image, mask, side, told):
    with pytest.raises(CalibrationError, match=told):
        candidates_of("i", image, mask, side, side)


@pytest.mark.data
def test_of_real_steel_every_class_is_chosen(shared_data):
    mask = cv2.imread(str(shared_data / "strips" / "mt_sparse_mask.png"), cv2.IMREAD_GRAYSCALE)
    strip = cv2.imread(str(shared_data / "strips" / "mt_sparse.png"), cv2.IMREAD_GRAYSCALE)
    selection = select(candidates_of("strip", strip, mask, 256, 256), 40, seed=1)
    assert {index for tile in selection.chosen for index in tile.classes} == set(np.unique(mask).tolist())
