"""Mode tiles, held against plain recomputation: every tile cut out of the padded image, judged alone, merged pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from toy_engines import range_logits, relative_logits, steel, write_range_classifier, write_relative_segmenter

from edge.engines import channels_of, reading_of, tile_engine
from edge.errors import ConfigError
from edge.manifest import EngineInput, Manifest, Resize
from edge.preparation import Preparation
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.tiles import TileEngine, TileGate, TileSegmenter
from edge.sessions.ort import OrtSession
from edge.tiling import TileAxis

Tile = Callable[[np.ndarray], np.ndarray]


def image_of(lines: int, columns: int, seed: int = 0) -> np.ndarray:
    """Grey of slowly varying level, with noise: what is far above or below a tile's middle depends on the tile."""
    rng = np.random.default_rng([lines, columns, seed])
    level = 40 + 120 * np.sin(np.arange(lines) / 250 + seed)[:, None] ** 2 + 60 * np.cos(np.arange(columns) / 150)[None] ** 2
    return (level + rng.integers(-12, 13, (lines, columns))).clip(0, 255).astype(np.uint8)


def starts_of(length: int, tile: int, step: int) -> list[int]:
    """0, step, 2 * step, ... up to the first tile that reaches the end."""
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + step)
    return starts


def tiles_of(image: np.ndarray, tile: tuple[int, int], step: tuple[int, int]) -> list[tuple[int, int, np.ndarray]]:
    """Line, column and pixels of every tile; what lies beyond the image is reflected."""
    rows, columns = (starts_of(image.shape[axis], tile[axis], step[axis]) for axis in (0, 1))
    beyond = [(0, max(0, starts[-1] + tile[axis] - image.shape[axis])) for axis, starts in enumerate((rows, columns))]
    padded = np.pad(image, beyond, mode="reflect")
    return [(row, column, padded[row : row + tile[0], column : column + tile[1]]) for row in rows for column in columns]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def as_defects(probability: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of sigmoid probabilities (c, h, w)."""
    found = probability.max(axis=0) >= level
    mask = np.where(found, probability.argmax(axis=0) + 1, 0)
    return mask, np.where(found, np.rint(probability.max(axis=0) * 255), 0)


def segmenter_of(
    folder: Path,
    width: int,
    tile: tuple[int, int],
    step: tuple[int, int],
    merge: str,
    batch: int = 3,
    gate: TileGate | None = None,
    level: float | None = None,
) -> TileSegmenter:
    """A segmenter of the bundle in a folder, as a station makes it."""
    manifest = Manifest.model_validate(yaml.safe_load((folder / "manifest.yaml").read_text()))
    session = OrtSession(folder / "model.onnx", threads=1)
    axes = {"lines": TileAxis(tile[0], step[0]), "columns": TileAxis(tile[1], step[1])}
    engine = tile_engine(session, manifest, batch)
    return TileSegmenter(engine, reading_of(manifest, level), channels_of(manifest), width=width, merge=merge, gate=gate, **axes)


def inspect(segmenter: TileSegmenter, image: np.ndarray, portion: int = 50) -> list[MaskRows]:
    segmenter.start(0)
    rows = []
    for first in range(0, len(image), portion):
        rows += segmenter.push(image[first : first + portion])
    rows += segmenter.flush()
    assert [part.first_line for part in rows[1:]] == [part.line_stop for part in rows[:-1]]
    assert (rows[0].first_line, rows[-1].line_stop) == (0, len(image))
    return rows


def planes(rows: list[MaskRows]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([part.mask for part in rows]), np.concatenate([part.confidence for part in rows])


SLICES = ((224, 224), (100, 100))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Relative segmenters for tiles of 224 px: of one class, of two, and of one as probabilities."""
    folder = tmp_path_factory.mktemp("bundles")
    write_relative_segmenter(folder / "one", (224, 224))
    write_relative_segmenter(folder / "two", (224, 224), defects=2)
    write_relative_segmenter(folder / "probable", (224, 224), defects=2, head="probabilities")
    write_range_classifier(folder / "classifier", (32, 32))
    return folder


@pytest.mark.parametrize("size", [(460, 530), (224, 224), (225, 324), (100, 90), (1, 1)])
def test_union_of_slices_is_the_logical_or_of_all_of_them_up_to_the_last_line_and_column(bundles, size):
    image = image_of(*size)
    expected = np.zeros(size, bool)
    for line, column, tile in tiles_of(image, *SLICES):
        here = expected[line : line + 224, column : column + 224]
        here |= (sigmoid(relative_logits(tile)[0]) >= 0.5)[: here.shape[0], : here.shape[1]]
    mask, _ = planes(inspect(segmenter_of(bundles / "one", size[1], *SLICES, "union"), image))
    np.testing.assert_array_equal(mask, expected)
    if min(size) > 224:
        alone = sigmoid(relative_logits(image)[0]) >= 0.5
        assert expected.any()
        assert not expected.all()
        assert (expected != alone).any()  # slices see other ranges of grey than the whole image


@pytest.mark.parametrize("name", ["two", "probable"])
def test_where_slices_disagree_a_pixel_has_the_class_that_any_is_surest_of(bundles, name):
    image = image_of(460, 530)
    best = np.zeros(image.shape, np.int64)
    classes = np.zeros(image.shape, np.int64)
    differ = 0
    for line, column, tile in tiles_of(image, *SLICES):
        here = (slice(line, min(line + 224, 460)), slice(column, min(column + 224, 530)))
        part = (slice(0, here[0].stop - line), slice(0, here[1].stop - column))
        mask, confidence = (plane[part] for plane in as_defects(sigmoid(relative_logits(tile, 2)), 0.5))
        both = (mask > 0) & (classes[here] > 0) & (mask != classes[here])
        differ += int(both.sum())
        better = (confidence > best[here]) | ((confidence == best[here]) & (mask > 0) & (mask < classes[here]))
        best[here] = np.where(better, confidence, best[here])
        classes[here] = np.where(better, mask, classes[here])
    assert differ > 0
    got = planes(inspect(segmenter_of(bundles / name, 530, *SLICES, "union"), image))
    np.testing.assert_array_equal(got[0], classes)
    assert np.abs(got[1] - best).max() <= (1 if name == "probable" else 0)  # the engine's own sigmoid has fewer digits


def test_of_a_core_s_pixels_its_own_tile_decides_and_beyond_the_outer_cores_the_nearest_one(bundles):
    image = image_of(460, 530)
    answers = {(line, column): sigmoid(relative_logits(tile, 2)) for line, column, tile in tiles_of(image, *SLICES)}
    lines, columns = (starts_of(length, 224, 100) for length in image.shape)
    expected = np.zeros((2, *image.shape))
    for row in range(460):
        # the tile whose middle 100 px hold the row: from 62 px below its start on
        line = min(max((row - 62) // 100 * 100, 0), lines[-1])
        for column in columns:
            left = 0 if column == 0 else column + 62
            right = 530 if column == columns[-1] else column + 162
            expected[:, row, left:right] = answers[line, column][:, row - line, left - column : right - column]
    got = planes(inspect(segmenter_of(bundles / "two", 530, *SLICES, "core"), image))
    for plane, wanted in zip(got, as_defects(expected, 0.5), strict=True):
        np.testing.assert_array_equal(plane, wanted)


@pytest.mark.parametrize("merge", ["core", "union"])
def test_a_run_after_lost_lines_begins_with_the_last_tile_row_that_starts_at_or_before_it(bundles, merge):
    image, begin = image_of(330, 224), 250
    padded = np.pad(image, ((50, 100 + 224 - 80), (0, 0)), mode="reflect")  # the strip's lines 200 to 824
    wanted = np.zeros((330, 224), bool)
    for line in starts_of(330 + 50, 224, 100):
        told = sigmoid(relative_logits(padded[line : line + 224])[0]) >= 0.5
        first, stop = max(line, 50) - 50, min(line + 224 - 50, 330)
        if merge == "core":
            first = max(line + 62 - 50, 0) if line else 0
            wanted[first:stop] = told[first + 50 - line : stop + 50 - line]
        else:
            wanted[first:stop] |= told[first + 50 - line : stop + 50 - line]
    segmenter = segmenter_of(bundles / "one", 224, *SLICES, merge)
    segmenter.start(begin)
    rows = segmenter.push(image) + segmenter.flush()
    assert (rows[0].first_line, rows[-1].line_stop) == (begin, begin + 330)
    np.testing.assert_array_equal(planes(rows)[0], wanted)


@pytest.mark.parametrize("name", ["two", "probable"])
def test_mean_averages_the_probabilities_of_all_slices_that_a_pixel_lies_in(bundles, name):
    image = image_of(460, 530)
    sums, counts = np.zeros((2, 700, 800)), np.zeros((700, 800))
    for line, column, tile in tiles_of(image, *SLICES):
        sums[:, line : line + 224, column : column + 224] += sigmoid(relative_logits(tile, 2))
        counts[line : line + 224, column : column + 224] += 1
    mean = (sums / np.maximum(counts, 1))[:, :460, :530]
    mask, confidence = planes(inspect(segmenter_of(bundles / name, 530, *SLICES, "mean"), image))
    undecided = np.abs(mean - 0.5).min(axis=0) < 1e-5
    wanted = as_defects(mean, 0.5)
    np.testing.assert_array_equal(mask[~undecided], wanted[0][~undecided])
    assert np.abs(confidence - wanted[1])[~undecided].max() <= 1
    assert undecided.mean() < 0.01
    assert mask.any()


def test_a_level_of_the_station_goes_before_the_bundle_s(bundles):
    image = image_of(224, 224)
    for level in (0.02, 0.5, 0.98):
        mask, _ = planes(inspect(segmenter_of(bundles / "one", 224, *SLICES, "core", level=level), image))
        np.testing.assert_array_equal(mask, sigmoid(relative_logits(image)[0]) >= level)


def test_contrast_is_equalized_in_each_part_alone_and_masks_come_back_at_the_part_s_size(tmp_path):
    """Four parts of an image: CLAHE, resized to 64 x 64, judged, thresholded at 0.6, resized back, put together."""
    steps = [{"kind": "clahe", "clip_limit": 10.0}, {"kind": "resize"}]
    write_relative_segmenter(tmp_path / "unet", (64, 64), preparation=steps, pixel_threshold=0.6, strip_tile=[150, 203])
    image = image_of(300, 406)
    expected = np.zeros((2, *image.shape))
    for line, column, part in tiles_of(image, (150, 203), (150, 203)):
        equalized = cv2.createCLAHE(clipLimit=10.0, tileGridSize=(8, 8)).apply(np.ascontiguousarray(part))
        probability = sigmoid(relative_logits(cv2.resize(equalized, (64, 64))))
        for plane, whole in zip(as_defects(probability, 0.6), expected, strict=True):
            back = cv2.resize(plane.astype(np.uint8), (203, 150), interpolation=cv2.INTER_NEAREST)
            whole[line : line + 150, column : column + 203] = back
    before = image.copy()
    got = planes(inspect(segmenter_of(tmp_path / "unet", 406, (150, 203), (150, 203), "core"), image))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(image, before)
    assert expected[0].any()
    assert not expected[0].all()


def test_the_mean_of_resized_tiles_is_taken_of_their_probabilities_resized_back_bilinearly(tmp_path):
    write_relative_segmenter(tmp_path / "unet", (32, 32), defects=2, preparation=[{"kind": "resize", "method": "area"}])
    image = image_of(150, 200)
    sums, counts = np.zeros((2, 300, 300)), np.zeros((300, 300))
    for line, column, tile in tiles_of(image, (64, 80), (32, 40)):
        small = cv2.resize(np.ascontiguousarray(tile), (32, 32), interpolation=cv2.INTER_AREA)
        for total, plane in zip(sums, sigmoid(relative_logits(small, 2)), strict=True):
            total[line : line + 64, column : column + 80] += cv2.resize(plane, (80, 64), interpolation=cv2.INTER_LINEAR)
        counts[line : line + 64, column : column + 80] += 1
    mean = (sums / np.maximum(counts, 1))[:, :150, :200]
    mask, _ = planes(inspect(segmenter_of(tmp_path / "unet", 200, (64, 80), (32, 40), "mean"), image))
    decided = np.abs(mean - 0.5).min(axis=0) > 1e-5
    np.testing.assert_array_equal(mask[decided], as_defects(mean, 0.5)[0][decided])
    assert mask.any()


def gate_of(session: OrtSession, threshold: float, method: str = "linear", batch: int = 2) -> TileGate:
    """A gate of three softmax classes, 0 clean, that has tiles resized to 32 x 32."""
    preparation = Preparation((Resize(method=method),), EngineInput(tile_height=32, tile_width=32))
    return TileGate(TileEngine(session, preparation, batch), "softmax", "logits", threshold)


def any_defect(logits: np.ndarray) -> float:
    powers = np.exp(logits.astype(np.float64))
    return float(powers[1:].sum() / powers.sum())


def test_the_gate_looks_first_with_its_own_preparation_and_only_tiles_at_or_above_its_threshold_go_on(tmp_path, bundles):
    """Images of 256 x 1600 one below the other, each brought to 256 x 256 for the segmenter and to 32 x 32 for the gate."""
    write_relative_segmenter(tmp_path / "unet", (256, 256), preparation=[{"kind": "resize"}], strip_tile=[256, 1600])
    strip = np.concatenate([image_of(256, 1600, seed) for seed in range(2)] + [steel(256, 1600), image_of(40, 1600, 7)])
    strip[-1] = 255
    tile = (256, 1600)
    with OrtSession(bundles / "classifier" / "model.onnx", threads=1) as session:
        rows = inspect(segmenter_of(tmp_path / "unet", 1600, tile, tile, "core", gate=gate_of(session, 0.01, "area")), strip)
    assert [len(part.mask) for part in rows] == [256, 256, 256, 40]
    passed = []
    for part, (_, _, pixels) in zip(rows, tiles_of(strip, tile, tile), strict=True):
        score = any_defect(range_logits(cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)))
        np.testing.assert_allclose(part.gate_scores, [score], rtol=1e-5)
        assert part.tile_columns == 1600
        assert part.segmented == (score >= 0.01)
        passed.append(part.segmented)
        logits = relative_logits(cv2.resize(pixels, (256, 256)))
        mask = cv2.resize(as_defects(sigmoid(logits), 0.5)[0].astype(np.uint8), (1600, 256), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(part.mask, mask[: len(part.mask)] if part.segmented else 0)
    assert len(set(passed)) == 2


@pytest.mark.parametrize("merge", ["core", "union", "mean"])
def test_tiles_that_the_gate_stops_count_for_nothing_and_rows_without_any_other_are_gated(bundles, merge):
    rng = np.random.default_rng(5)
    strip = steel(900, 500)
    for line, column in ((330, 40), (350, 300), (700, 460)):
        strip[line : line + 20, column : column + 20] = rng.integers(180, 256, (20, 20))
    threshold = 0.2
    with OrtSession(bundles / "classifier" / "model.onnx", threads=1) as session:
        rows = inspect(segmenter_of(bundles / "one", 500, *SLICES, merge, gate=gate_of(session, threshold)), strip)
    scores = {
        (line, column): any_defect(range_logits(cv2.resize(np.ascontiguousarray(tile), (32, 32))))
        for line, column, tile in tiles_of(strip, *SLICES)
    }
    probability = {(line, column): sigmoid(relative_logits(tile)[0]) for line, column, tile in tiles_of(strip, *SLICES)}
    last = {axis: starts_of(strip.shape[axis], 224, 100)[-1] for axis in (0, 1)}

    def tiles_at(line: int, column: int) -> list[tuple[int, int]]:
        if merge == "core":
            return [(min(max((line - 62) // 100 * 100, 0), last[0]), min(max((column - 62) // 100 * 100, 0), last[1]))]
        return [(row, left) for row, left in scores if row <= line < row + 224 and left <= column < left + 224]

    mask, _ = planes(rows)
    for part in rows:
        in_rows = {row for column in range(0, 500, 2) for row, _ in tiles_at(part.first_line, column)}
        assert in_rows == {row for row, _ in tiles_at(part.line_stop - 1, 0)}
        assert part.segmented == any(score >= threshold for (row, _), score in scores.items() if row in in_rows)
        cells = [
            max(scores[tile] for tile in tiles_at(part.first_line, c * part.tile_columns)) for c in range(len(part.gate_scores))
        ]
        np.testing.assert_allclose(part.gate_scores, cells, rtol=1e-5)
    assert {part.segmented for part in rows} == {True, False}
    for line in range(0, 900, 7):
        for column in range(0, 500, 7):
            votes = [
                probability[tile][line - tile[0], column - tile[1]]
                for tile in tiles_at(line, column)
                if scores[tile] >= threshold
            ]
            merged = 0.0 if not votes else (np.mean(votes) if merge == "mean" else max(votes))
            assert mask[line, column] == (merged >= 0.5)
    assert mask.any()


def test_a_classifier_gives_every_tile_s_core_its_class_and_its_probability(bundles):
    image = np.concatenate([image_of(90, 130), np.full((40, 130), 200, np.uint8), np.full((33, 130), 20, np.uint8)])
    rows = inspect(segmenter_of(bundles / "classifier", 130, (32, 32), (32, 32), "core"), image)
    mask, confidence = planes(rows)
    for line, column, tile in tiles_of(image, (32, 32), (32, 32)):
        powers = np.exp(range_logits(tile).astype(np.float64))
        probability = powers / powers.sum()
        here = (slice(line, line + 32), slice(column, column + 32))
        assert (mask[here] == probability.argmax()).all()
        assert (confidence[here] == (np.rint(probability.max() * 255) if probability.argmax() else 0)).all()
    assert set(mask.ravel()) == {0, 1, 2}


def test_a_classifier_that_states_a_score_calls_tiles_defective_from_it_on(tmp_path, bundles):
    stated = {"score": 0.05, "recall": 1.0, "passed_clean": 0.5}
    write_range_classifier(tmp_path / "strict", (32, 32), gate=stated)
    image = image_of(128, 160)
    mask, confidence = planes(inspect(segmenter_of(tmp_path / "strict", 160, (32, 32), (32, 32), "core"), image))
    called = 0
    for line, column, tile in tiles_of(image, (32, 32), (32, 32)):
        powers = np.exp(range_logits(tile).astype(np.float64))
        probability = powers / powers.sum()
        kind = 1 + probability[1:].argmax() if probability[1:].sum() >= 0.05 else 0
        assert (mask[line : line + 32, column : column + 32] == kind).all()
        assert confidence[line, column] == (np.rint(probability[kind] * 255) if kind else 0)
        called += bool(kind) and not probability.argmax()
    assert called > 0  # tiles that are most probably clean


@pytest.mark.parametrize("merge", ["core", "union", "mean"])
def test_classified_tiles_overlap_as_segmented_ones_do(bundles, merge):
    image = image_of(100, 90)
    mask, confidence = planes(inspect(segmenter_of(bundles / "classifier", 90, (32, 32), (16, 8), merge), image))
    tiles = {}
    for line, column, tile in tiles_of(image, (32, 32), (16, 8)):
        powers = np.exp(range_logits(tile).astype(np.float64))
        tiles[line, column] = powers / powers.sum()
    for line, column in np.ndindex(100, 90):
        near = [p for (row, left), p in tiles.items() if row <= line < row + 32 and left <= column < left + 32]
        if merge == "core":
            row = min(max((line - 8) // 16 * 16, 0), starts_of(100, 32, 16)[-1])
            left = min(max((column - 12) // 8 * 8, 0), starts_of(90, 32, 8)[-1])
            near = [tiles[row, left]]
        if merge == "mean":
            near = [np.mean(near, axis=0)]
        sure, kind = max(
            ((np.rint(p.max() * 255), p.argmax()) for p in near if p.argmax()), default=(0, 0), key=lambda best: best[0]
        )
        assert (mask[line, column], confidence[line, column]) == (kind, pytest.approx(sure, abs=merge == "mean"))


class PlainSession:
    """An ONNX Runtime session whose answer is handed on in whatever type it has."""

    backend = "ort"
    steps = None

    def __init__(self, model: bytes) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"image": batch})[0]


def mask_engine() -> bytes:
    """Class 1 from grey 128 on, its confidence the grey; the background has a confidence too: 255 - grey."""
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["wide", "half"], ["ratio"]),
        helper.make_node("Floor", ["ratio"], ["class"]),
        helper.make_node("Sub", ["full", "wide"], ["inverse"]),
        helper.make_node("Max", ["wide", "inverse"], ["sure"]),
        helper.make_node("Concat", ["class", "sure"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["scores"], to=TensorProto.UINT8),
    ]
    constants = [numpy_helper.from_array(np.float32(128), "half"), numpy_helper.from_array(np.float32(255), "full")]
    graph = helper.make_graph(
        nodes,
        "decided",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.UINT8, ["n", 2, "h", "w"])],
        initializer=constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("merge", ["core", "union"])
def test_an_engine_that_answers_with_a_mask_is_taken_at_its_word(merge):
    image = image_of(70, 50)
    engine = TileEngine(PlainSession(mask_engine()), Preparation((), EngineInput(tile_height=32, tile_width=32)), 4)
    axes = {"lines": TileAxis(32, 16), "columns": TileAxis(32, 32)}
    segmenter = TileSegmenter(engine, Reading("softmax", "mask"), 2, width=50, merge=merge, **axes)
    mask, confidence = planes(inspect(segmenter, image))
    np.testing.assert_array_equal(mask, image >= 128)
    np.testing.assert_array_equal(confidence, np.where(image >= 128, image, 0))


@pytest.mark.parametrize("merge", ["core", "union", "mean"])
def test_neither_portions_nor_batches_matter(tmp_path, merge):
    steps = [{"kind": "clahe", "clip_limit": 4.0, "grid_rows": 2, "grid_columns": 3}, {"kind": "resize"}]
    write_relative_segmenter(tmp_path / "unet", (24, 24), defects=2, preparation=steps)
    image = image_of(130, 101)
    one, *others = (
        planes(inspect(segmenter_of(tmp_path / "unet", 101, (40, 36), (20, 12), merge, batch), image, portion))
        for batch, portion in ((1, 1), (3, 7), (50, 130))
    )
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_rows_of_stopped_tiles_share_one_array_of_zeros(bundles):
    with OrtSession(bundles / "classifier" / "model.onnx", threads=1) as session:
        rows = inspect(segmenter_of(bundles / "one", 300, *SLICES, "union", gate=gate_of(session, 1.0)), steel(700, 300))
    assert not any(part.segmented or part.mask.any() for part in rows)
    assert all(np.shares_memory(part.mask, rows[0].mask) for part in rows)


def test_a_tile_that_the_engine_cannot_be_given_is_refused(bundles):
    with pytest.raises(ConfigError, match=r"got a tile of 100 x 224 px; expected 224 x 224 px times 1, or a preparation with"):
        inspect(segmenter_of(bundles / "one", 300, (100, 224), (100, 224), "core"), steel(100, 300))
