"""Engines on the GPU against ONNX Runtime on the CPU, with the shipped bundles and those that RUST_EDGE_GPU_BUNDLES names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from stand import BUILDING_S, skip_without_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILDING_S)]
skip_without_gpu()

for module in ("pydantic", "yaml", "onnxruntime", "onnx", "cv2"):
    pytest.importorskip(module, reason=f"{module} is not installed")

from edge.backends import BundleEngines  # noqa: E402
from edge.bundle import OUTLIERS, ROUNDED_ELSEWHERE, SCORE_TOLERANCE, Bundle, check_golden, compare_golden  # noqa: E402
from edge.config import SessionOptions  # noqa: E402
from edge.errors import SessionError  # noqa: E402
from edge.sessions import Session  # noqa: E402
from edge.stream_check import check_stream  # noqa: E402

GPU, CPU = SessionOptions(backend="tensorrt"), SessionOptions(backend="ort")


@pytest.fixture(scope="module")
def engines(tensorrt: None, bundle: Bundle) -> Iterator[BundleEngines]:
    with BundleEngines(bundle, GPU) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[BundleEngines]:
    with BundleEngines(bundle, CPU) as opened:
        yield opened


def tiles_of(bundle: Bundle, count: int) -> np.ndarray:
    """(count, 1, h, w): the golden tiles, which look like what the network was trained on, moved and mirrored."""
    size = bundle.manifest.input
    golden = bundle.golden().tiles(size.tile_height, size.tile_width)
    return np.stack([np.roll(golden[index % len(golden)], 5 * index, axis=(1, 2)) for index in range(count)])


def assert_near(got: np.ndarray, wanted: np.ndarray, bundle: Bundle) -> None:
    """Scores within the tolerance of their spread, but for the share that a bundle of this precision may have beyond it."""
    assert got.shape == wanted.shape
    if bundle.manifest.head == "mask":
        assert (got[:, 0] == wanted[:, 0]).mean() >= 1 - max(OUTLIERS[bundle.manifest.precision], SCORE_TOLERANCE)
        return
    spread = np.ptp(wanted)
    assert np.isfinite(got).all()
    int8 = bundle.manifest.precision == "int8"
    allowed = ROUNDED_ELSEWHERE["tensorrt"] if int8 else OUTLIERS[bundle.manifest.precision]
    assert (np.abs(got - wanted) > SCORE_TOLERANCE * spread).mean() <= allowed


def test_the_golden_tiles_are_answered_as_when_the_bundle_was_verified(engines, bundle):
    assert engines.choice.backend == "tensorrt"
    answer = check_golden(bundle, engines.tiles)
    assert answer.labels > 0


def test_the_golden_tiles_are_answered_as_onnx_runtime_answers_them(engines, reference, bundle):
    tiles = tiles_of(bundle, 8)
    assert_near(engines.tiles.infer(tiles), reference.tiles.infer(tiles), bundle)


def test_an_engine_of_another_bundle_would_not_have_passed(engines, bundle):
    """The comparison sees a difference: scores that belong to the next tile are refused."""
    size, golden = bundle.manifest.input, bundle.golden()
    scores = engines.tiles.infer(golden.tiles(size.tile_height, size.tile_width))
    answer = compare_golden(golden, np.roll(scores, 1, axis=0), bundle.manifest.activation, bundle.manifest.head)
    assert answer.outliers > max(OUTLIERS[bundle.manifest.precision], ROUNDED_ELSEWHERE["tensorrt"])


def test_a_tile_s_scores_do_not_depend_on_the_batch_that_it_comes_in(engines, bundle, stand):
    tiles = tiles_of(bundle, 33 if stand.real else 6)
    alone = np.concatenate([engines.tiles.infer(tile[None]).copy() for tile in tiles])
    for size in (2, 3, 4, 5, 8, 15, 16, 17, 32, 33) if stand.real else (2, 5, 6):
        np.testing.assert_array_equal(engines.tiles.infer(tiles[:size]), alone[:size])
        np.testing.assert_array_equal(engines.tiles.infer(tiles[-size:]), alone[-size:])


def test_the_same_tiles_get_the_same_bits_again_and_again(engines, bundle, stand):
    tiles = tiles_of(bundle, 4)
    first = engines.tiles.infer(tiles).copy()
    for _ in range(stand.turns(50)):
        np.testing.assert_array_equal(engines.tiles.infer(tiles), first)


def test_a_batch_that_does_not_fit_is_refused_and_the_session_goes_on(engines, bundle):
    tiles = tiles_of(bundle, 2)
    wanted = engines.tiles.infer(tiles).copy()
    with pytest.raises(SessionError):
        engines.tiles.infer(np.repeat(tiles, 2, axis=1))
    np.testing.assert_array_equal(engines.tiles.infer(tiles), wanted)


def test_two_lanes_at_once_give_the_bits_of_one_after_the_other(engines, bundle, stand):
    session = engines.on_device(engines.tiles)
    device, batches = session.device, [tiles_of(bundle, 3), tiles_of(bundle, 3)[::-1].copy()]
    with device.active():
        lanes = session.lanes(batches[0].shape)
        sources = [device.page_locked(batch.nbytes) for batch in batches]
        targets = [device.page_locked(lane.scores.nbytes) for lane in lanes]
        for source, batch in zip(sources, batches, strict=True):
            source.array[:] = batch.reshape(-1)

        def start(index: int) -> None:
            device.upload(lanes[index].input, 0, sources[index].array, lanes[index].stream)
            lanes[index].run()
            device.download(targets[index].array, lanes[index].scores, 0, lanes[index].stream)

        alone = []
        for index, lane in enumerate(lanes):
            start(index)
            lane.stream.synchronize()
            alone.append(targets[index].array.copy())
        for _ in range(stand.turns(40)):
            for index in range(2):
                start(index)
            for index, lane in enumerate(lanes):
                lane.stream.synchronize()
                np.testing.assert_array_equal(targets[index].array, alone[index])
        scores = alone[0].view(lanes[0].dtype).reshape(lanes[0].scores_shape)
        for memory in (*sources, *targets):
            memory.free()
    np.testing.assert_array_equal(engines.tiles.infer(batches[0]), scores.astype(np.float32))


def stream_of(bundle: Bundle, width: int, stand) -> tuple[int, int]:
    """Columns and chunk height of a stream; a gate's in pixels of its own, which are larger."""
    if bundle.manifest.streaming is None:
        pytest.skip(f"{bundle.manifest.name} cannot stream")
    stride = bundle.manifest.stride
    return -(-width // stride) * stride, -(-(64 if stand.real else 32) // stride) * stride


def strip_of(bundle: Bundle, lines: int, width: int) -> np.ndarray:
    patches = bundle.golden().patches
    row = np.concatenate([*patches, *patches[::-1, :, ::-1]], axis=1)
    return np.tile(np.concatenate([row, row[::-1]]), (-(-lines // (2 * len(row))), -(-width // row.shape[1])))[:lines, :width]


@pytest.mark.parametrize("width", [256, 2048])
def test_a_stream_answers_what_the_engine_for_tiles_answers_to_the_whole_strip(engines, bundle, stand, width):
    columns, chunk = stream_of(bundle, width if stand.real else 128, stand)
    assert check_stream(bundle, engines.tiles, engines.stream(columns, chunk), columns) <= OUTLIERS[bundle.manifest.precision]


def test_a_stream_answers_what_onnx_runtime_s_stream_answers(engines, reference, bundle, stand):
    columns, chunk = stream_of(bundle, 640 if stand.real else 128, stand)
    strip = strip_of(bundle, 12 * chunk if stand.real else 4 * chunk, columns)[None, None]
    got, wanted = engines.stream(columns, chunk), reference.stream(columns, chunk)
    for line in range(0, strip.shape[2], chunk):
        assert_near(got.step(strip[:, :, line : line + chunk]), wanted.step(strip[:, :, line : line + chunk]), bundle)


def test_a_stream_that_was_reset_repeats_every_bit(engines, bundle, stand):
    columns, chunk = stream_of(bundle, 640 if stand.real else 128, stand)
    steps = 12 if stand.real else 3
    strip = strip_of(bundle, steps * chunk, columns)[None, None]
    session = engines.stream(columns, chunk)
    session.reset()
    first = [session.step(strip[:, :, line : line + chunk]).copy() for line in range(0, strip.shape[2], chunk)]
    for turn in range(stand.turns(20)):
        session.reset()
        for done in range(turn % 3):  # an odd number of steps too: two sets of addresses take turns
            session.step(255 - strip[:, :, done * chunk : (done + 1) * chunk])
        session.reset()
        for step, wanted in enumerate(first):
            np.testing.assert_array_equal(session.step(strip[:, :, step * chunk : (step + 1) * chunk]), wanted)


def test_two_threads_with_engines_of_their_own_get_what_each_gets_alone(tensorrt, bundle, stand):
    """Two stations in one process: sessions of their own on one device, at work at the same time."""
    tiles = [tiles_of(bundle, 4), tiles_of(bundle, 4)[::-1].copy()]
    with ExitStack() as opened:
        sessions: list[Session] = [opened.enter_context(BundleEngines(bundle, GPU)).tiles for _ in tiles]
        wanted = [session.infer(batch).copy() for session, batch in zip(sessions, tiles, strict=True)]
        faults: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for _ in range(stand.turns(60)):
                    np.testing.assert_array_equal(sessions[index].infer(tiles[index]), wanted[index])
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults, faults
