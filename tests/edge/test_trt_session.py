"""A bundle's tiles on TensorRT: its engines, buckets, lanes and graphs, and what becomes of them when something fails."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_networks import adding_unet, gate, images
from strict_device import StrictDevice
from tensorrt_sessions import EVERY_VERSION, a_device, bundle_around, open_tiles
from tensorrt_shims import RTX, asked, tensorrt
from toy_engines import write_gate, write_segmenter

from edge.bundle import MODEL, Bundle, check_golden, open_bundle
from edge.engine_cache import engine_path, write_engine
from edge.errors import BundleError, SessionError
from edge.sessions.gpu import Gpu
from edge.sessions.on_device import DeviceSession
from edge.sessions.ort import OrtSession
from edge.sessions.trt.build import BuildOptions, build, engine_key
from edge.sessions.trt.session import TrtSession
from edge.sessions.trt.shapes import ShapeRange, tile_profile

VERSION = "10.3.0.30"
RANGES = ["image 1x1x4x4 to 16x1x32x32", "image 1x1x4x4 to 16x1x64x96"]


@pytest.fixture
def toy(tmp_path) -> Bundle:
    return open_bundle(write_segmenter(tmp_path / "toy"))


@pytest.fixture
def device() -> StrictDevice:
    return a_device("11")


def answers(bundle: Bundle, tiles: np.ndarray) -> np.ndarray:
    with OrtSession(bundle.model_path, threads=1) as session:
        return session.infer(tiles).copy()


def tiles_of(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 1, height, width), dtype=np.uint8)


def count_calls(monkeypatch: pytest.MonkeyPatch, device: StrictDevice, *names: str) -> Counter[str]:
    """How often the session has called methods of its device."""
    calls: Counter[str] = Counter()

    def counting(name: str) -> Any:
        real = getattr(device, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return real(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(device, name, counting(name))
    return calls


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2, 3])
@pytest.mark.parametrize("integrated", [False, True])
def test_parts_of_a_batch_on_two_streams_are_what_each_tile_is_alone(toy, integrated, schedule):
    device = StrictDevice(integrated=integrated, strict_leaks=True, schedule=schedule)
    tiles = tiles_of(53)
    with open_tiles(VERSION, toy, device) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.infer(tiles), answers(toy, tiles))
        np.testing.assert_array_equal(session.infer(tiles[:3]), answers(toy, tiles[:3]))


@pytest.mark.parametrize(("integrated", "copied"), [(False, True), (True, False)])
def test_nothing_is_copied_on_a_gpu_that_shares_the_hosts_memory(toy, monkeypatch, integrated, copied):
    device = StrictDevice(integrated=integrated)
    calls = count_calls(monkeypatch, device, "upload", "download")
    with open_tiles(VERSION, toy, device) as session:
        session.infer(tiles_of(40))
    assert bool(calls["upload"]) == bool(calls["download"]) == copied


def test_a_batch_is_filled_up_to_the_next_bucket(toy, device):
    with open_tiles(VERSION, toy, device) as session, device.active():
        assert list(session.buckets((5, 1, 32, 32))) == [1, 4, 8]
        assert list(session.buckets((40, 1, 32, 32))) == [1, 4, 8, 16]


def test_buckets_that_score_otherwise_by_a_bit_are_left_out_and_that_is_said(toy, device, caplog):
    tiles = tiles_of(9)
    with open_tiles(VERSION, toy, device, uneven=1e-3) as session:
        whole = session.infer(tiles).copy()
        with device.active():
            assert list(session.buckets((9, 1, 32, 32))) == [4, 8, 16]
        for tile, wanted in zip(tiles, whole, strict=True):
            np.testing.assert_array_equal(session.infer(tile[None])[0], wanted)
    assert "32 x 32 px in batches of 1 are scored otherwise than in batches of 16; they are filled up" in caplog.text


def test_the_tiles_engine_serves_what_is_smaller_and_a_larger_crop_has_one_built_for_all_up_to_its_size(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    crops = [(2, 1, 52, 88), (7, 1, 40, 24), (3, 1, 64, 96), (1, 1, 8, 12)]
    for built in (RANGES, []):
        caplog.clear()
        with open_tiles(VERSION, toy, a_device(VERSION), tmp_path / "engines") as session:
            session.prepare(crops[0])
            for crop in crops:
                np.testing.assert_array_equal(
                    session.infer(tiles_of(*crop[:1], *crop[2:])), answers(toy, tiles_of(crop[0], *crop[2:]))
                )
        assert sum("building model.onnx of toy" in line for line in caplog.messages) == len(built)
    kept = sorted(asked(path.read_bytes())["profiles"][0]["image"][2] for path in (tmp_path / "engines").glob("*.engine"))
    assert kept == [[16, 1, 32, 32], [16, 1, 64, 96]]


def test_the_range_of_an_engine_does_not_hang_on_how_many_tiles_a_station_asks_at_once(toy):
    one, many = (tile_profile(toy, (count, 1, 52, 88))["image"] for count in (1, 16))
    assert one == many
    assert str(one) == "1x1x4x4 to 16x1x64x96"


def test_a_range_holds_no_batch_that_would_want_gigabytes(toy):
    assert tile_profile(toy, (1, 1, 224, 4256))["image"].largest == (1, 1, 256, 6144)
    assert tile_profile(toy, (1, 1, 4096, 16384))["image"].largest == (1, 1, 4096, 16384)


def test_a_network_that_looks_at_whole_tiles_gets_no_other_size(tmp_path, device):
    bundle = open_bundle(write_gate(tmp_path / "gate"))
    assert tile_profile(bundle)["image"] == ShapeRange((1, 1, 32, 32), (16, 1, 32, 32), (16, 1, 32, 32))
    with open_tiles(VERSION, bundle, device) as session:
        with pytest.raises(SessionError, match=r"got a batch \(2, 1, 64, 32\), expected uint8 .* sides of 32, 32"):
            session.prepare((2, 1, 64, 32))
        with pytest.raises(SessionError, match="got a batch float32"):
            session.infer(np.zeros((1, 1, 32, 32), np.float32))


def test_sides_are_multiples_of_the_stride(toy, device):
    with open_tiles(VERSION, toy, device) as session, pytest.raises(SessionError, match="sides of multiples of 4"):
        session.infer(np.zeros((1, 1, 30, 32), np.uint8))


def test_a_later_engine_that_answers_the_golden_tiles_otherwise_is_refused(toy, device):
    with open_tiles(VERSION, toy, device, uneven=8) as session:
        check_golden(toy, session)
        with pytest.raises(SessionError, match=r"an engine for other sizes: .* tensorrt answers the golden tiles otherwise"):
            session.prepare((1, 1, 52, 88))
        # a context must not outlive its engine
        assert {engine for side in session._sides for engine, _ in side._contexts} == set(session._engines)
        check_golden(toy, session)


def test_an_engine_that_answers_the_golden_tiles_otherwise_is_refused(tmp_path, device):
    bundle = bundle_around(tmp_path / "bundle", adding_unet())
    golden = dict(np.load(bundle.path / "golden.npz"))
    golden["scores"] = golden["scores"][::-1]
    np.savez(bundle.path / "golden.npz", **golden)
    with open_tiles(VERSION, bundle, device) as session, pytest.raises(BundleError, match="use another backend, or export again"):
        check_golden(bundle, session)


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_lanes_compute_side_by_side_in_memory_of_their_own(toy, version):
    device = a_device(version)
    tiles = tiles_of(6)
    with open_tiles(version, toy, device) as session, device.active():
        assert isinstance(session, DeviceSession)
        shape = (3, 1, 32, 32)
        lanes = session.lanes(shape)
        assert session.lanes(shape)[0] is lanes[0]
        assert lanes[0].stream is not lanes[1].stream
        assert (lanes[0].shape, lanes[0].scores_shape, lanes[0].dtype) == (shape, (3, 3, 32, 32), np.float32)
        up, down = device.page_locked(tiles.nbytes), device.page_locked(lanes[0].scores.nbytes * 2)
        up.array[:] = tiles.reshape(-1)
        halves = np.split(up.array, 2), np.split(down.array, 2)
        for lane, source in zip(lanes, halves[0], strict=True):
            device.upload(lane.input, 0, source, lane.stream)
        for lane in reversed(lanes):
            lane.run()
        for lane, target in zip(lanes, halves[1], strict=True):
            device.download(target, lane.scores, 0, lane.stream)
            lane.stream.synchronize()
        got = down.array.view(np.float32).reshape(6, 3, 32, 32).copy()
        up.free()
        down.free()
    np.testing.assert_array_equal(got, answers(toy, tiles))


def test_a_shape_is_captured_once_and_replayed(toy, device, monkeypatch):
    with open_tiles(VERSION, toy, device) as session:
        session.prepare((4, 1, 32, 32))
        calls = count_calls(monkeypatch, device, "capture", "enqueue")
        for count in (1, 3, 4, 2):
            session.infer(tiles_of(count))
        assert not calls


def test_what_was_ready_is_captured_again_when_its_memory_moves_and_stays_ready(toy, device, monkeypatch):
    tiles = tiles_of(20)
    with open_tiles(VERSION, toy, device) as session:
        session.prepare((4, 1, 32, 32))
        with device.active():
            session.lanes((2, 1, 32, 32))
        session.prepare((16, 1, 64, 96))  # more scratch memory, and more staging
        calls = count_calls(monkeypatch, device, "capture", "enqueue")
        np.testing.assert_array_equal(session.infer(tiles[:3]), answers(toy, tiles[:3]))
        with device.active():
            for lane in session.lanes((2, 1, 32, 32)):
                lane.run()
                lane.stream.synchronize()
        assert not calls


def test_memory_that_work_on_the_way_still_needs_is_not_taken_from_it(toy, device):
    with open_tiles(VERSION, toy, device) as session, device.active():
        lane, _ = session.lanes((2, 1, 32, 32))
        lane.run()
        session.lanes((8, 1, 32, 32))
        lane.run()
        lane.stream.synchronize()


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_an_engine_that_cannot_be_captured_runs_launch_by_launch_and_that_is_said_once(toy, version, caplog):
    tiles = tiles_of(21)
    with open_tiles(version, toy, a_device(version), uncapturable=True) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.infer(tiles), answers(toy, tiles))
    assert sum("runs without a CUDA graph" in line for line in caplog.messages) == 1


def plan_for(bundle: Bundle, version: str, where: StrictDevice) -> bytes:
    """The engine that another box has built."""
    return build(tensorrt(version, device=where), bundle.model_path, [tile_profile(bundle)], "fp32")


FOREIGN = {
    "built on another GPU": (lambda bundle: plan_for(bundle, VERSION, StrictDevice(integrated=False)), "was generated on"),
    "of another version": (lambda bundle: plan_for(bundle, "10.13.3.9", a_device(VERSION)), "is of version 10.13.3.9"),
    "cut short": (lambda bundle: plan_for(bundle, VERSION, a_device(VERSION))[:-9], "checksum does not match"),
}


@pytest.mark.parametrize("engine", FOREIGN)
def test_an_engine_that_tensorrt_does_not_load_is_built_again_once_and_the_reason_is_logged(toy, tmp_path, engine, caplog):
    device = a_device(VERSION)
    plan, why = FOREIGN[engine]
    gpu = Gpu(device.properties.name, device.properties.compute)
    key = engine_key(tensorrt(VERSION, device=device), gpu, toy, [tile_profile(toy)], options=BuildOptions())
    path = engine_path(tmp_path / "engines", MODEL, key)
    write_engine(path, plan(toy), key)
    with open_tiles(VERSION, toy, device, tmp_path / "engines") as session:
        np.testing.assert_array_equal(session.infer(tiles_of(2)), answers(toy, tiles_of(2)))
    told = [line for line in caplog.messages if "cannot be loaded" in line]
    assert len(told) == 1
    assert why in told[0]
    assert told[0].endswith("and is built again")
    caplog.clear()
    with open_tiles(VERSION, toy, a_device(VERSION), tmp_path / "engines"):
        assert not caplog.messages


def test_a_damaged_file_is_built_again(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with open_tiles(VERSION, toy, a_device(VERSION), tmp_path / "engines"):
            (path,) = (tmp_path / "engines").glob("*.engine")
        path.write_bytes(path.read_bytes()[:-9])
    assert f"{path.name} is damaged: {path.stat().st_size} bytes that are not what was written" in caplog.text


def test_without_room_for_the_engine_it_works_and_warns(toy, tmp_path, device, caplog):
    (tmp_path / "engines").write_text("a file where the folder should be")
    with open_tiles(VERSION, toy, device, tmp_path / "engines") as session:
        check_golden(toy, session)
    assert "the engine cannot be kept" in caplog.text


def test_out_of_memory_is_told_and_leaves_the_session_as_it_was(toy, device):
    with open_tiles(VERSION, toy, device) as session:
        wanted = session.infer(tiles_of(3)).copy()
        device.out_of_memory_after(50_000)
        with pytest.raises(SessionError, match="out of memory"):
            session.prepare((1, 1, 64, 96))
        np.testing.assert_array_equal(session.infer(tiles_of(3)), wanted)


@pytest.mark.parametrize("integrated", [False, True])
def test_however_little_memory_there_is_nothing_is_left_behind(toy, integrated):
    for nbytes in range(0, 400_000, 20_000):
        device = StrictDevice(integrated=integrated, strict_leaks=True, memory_bytes=nbytes)
        lent = contextlib.nullcontext(device)
        with device, contextlib.suppress(SessionError), open_tiles(VERSION, toy, device, lent=lent) as session:
            session.infer(tiles_of(21))
            with device.active():
                session.lanes((2, 1, 32, 32))


@pytest.mark.parametrize("integrated", [False, True])
def test_a_gpu_that_is_lost_anywhere_is_a_session_error_and_closing_raises_nothing(toy, integrated):
    told = []
    for operations in range(0, 60, 2):
        device = StrictDevice(integrated=integrated)
        with open_tiles(VERSION, toy, device) as session:
            session.prepare((4, 1, 32, 32))
            device.lose_gpu(operations)
            try:
                for count in (3, 9, 2):
                    session.infer(tiles_of(count))
            except SessionError as error:
                told.append(str(error))
    assert 5 < len(told) < 30
    assert all("the GPU is lost" in each for each in told)


def test_a_gpu_that_is_lost_at_the_start_is_a_session_error(toy):
    for operations in range(0, 4):
        device = StrictDevice()
        with device:
            device.lose_gpu(operations)
            with pytest.raises(SessionError, match="the GPU is lost"):
                open_tiles(VERSION, toy, device, lent=contextlib.nullcontext(device)).infer(tiles_of(1))


def with_scores(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The network with scores of another type."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[-1].output[0] = "in_float"
    changed.graph.node.append(helper.make_node("Cast", ["in_float"], ["scores"], name="cast_scores", to=kind))
    changed.graph.output[0].type.tensor_type.elem_type = kind
    return changed


def test_scores_in_half_precision_come_as_float32(tmp_path, device):
    bundle = bundle_around(tmp_path / "bundle", adding_unet())
    (bundle.path / MODEL).write_bytes(with_scores(adding_unet(), TensorProto.FLOAT16).SerializeToString())
    with open_tiles(VERSION, bundle, device) as session:
        for count in (3, 20):
            tiles = images(count, 32, 48)
            scores = session.infer(tiles)
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(
                scores, answers(bundle_around(tmp_path / "wanted", adding_unet()), tiles).astype(np.float16)
            )


def test_a_mask_head_answers_bytes(tmp_path, device):
    bundle = bundle_around(tmp_path / "bundle", with_scores(gate(), TensorProto.UINT8))
    with open_tiles(VERSION, bundle, device) as session:
        assert session.infer(images(20, 32, 32)).dtype == np.uint8


def test_an_engine_with_other_inputs_or_outputs_is_refused(tmp_path, device):
    bundle = bundle_around(tmp_path / "bundle", adding_unet())
    odd = adding_unet()
    odd.graph.output.append(helper.make_tensor_value_info("stem_out", TensorProto.FLOAT, None))
    (bundle.path / MODEL).write_bytes(odd.SerializeToString())
    with pytest.raises(SessionError, match="expected one uint8 image and one float or uint8 tensor of scores"):
        open_tiles(VERSION, bundle, device)


def test_a_dla_takes_shapes_one_by_one_and_is_part_of_the_engines_key(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    device = a_device(VERSION)
    with open_tiles(VERSION, toy, device, tmp_path, options=BuildOptions(dla=1), dla_cores=2) as session:
        np.testing.assert_array_equal(session.infer(tiles_of(3)), answers(toy, tiles_of(3)))
    engines = [asked(path.read_bytes()) for path in tmp_path.glob("*.engine")]
    assert sorted(engine["profiles"][0]["image"][0] for engine in engines) == [[1, 1, 32, 32], [4, 1, 32, 32]]
    assert {engine["dla"] for engine in engines} == {1}
    assert "DLA 1 computes 2 of 2 layers" in caplog.text
    assert all("dla=1" in path.read_text() for path in tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("shims", "told"),
    [
        ({"dla_cores": 0}, "session.dla: got 1, and TensorRT .* finds none here"),
        ({"dla_cores": 1}, "session.dla: got 1, and TensorRT .* finds 1 here"),
        ({"dla_cores": 2, "dla_layers": 0}, "a DLA can compute none of its 2 layers"),
    ],
)
def test_a_dla_that_is_not_there_or_of_no_use_is_refused(toy, shims, told):
    with pytest.raises(SessionError, match=told):
        open_tiles(VERSION, toy, a_device(VERSION), options=BuildOptions(dla=1), **shims)


def test_tensorrt_for_rtx_never_changes_a_shapes_kernels_while_it_runs(toy):
    """The shim lets no context be made that compiles kernels as it goes."""
    with open_tiles(RTX, toy, a_device(RTX)) as session:
        assert isinstance(session, TrtSession)
        check_golden(toy, session)


def quantized_to(kind: int, folder: Path) -> Bundle:
    """A network whose activations are quantized to a type."""
    bundle = bundle_around(folder, adding_unet())
    model = adding_unet()
    zero = helper.make_tensor("zero", kind, [], [0])
    scale = helper.make_tensor("size", TensorProto.FLOAT, [], [0.1])
    model.graph.initializer.extend([zero, scale])
    model.graph.node[-1].output[0] = "exact"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["exact", "size", "zero"], ["steps"], name="quantize"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["steps", "size", "zero"], ["scores"], name="dequantize"))
    (folder / MODEL).write_bytes(model.SerializeToString())
    return bundle


def test_integers_that_tensorrt_would_misread_are_refused(tmp_path, device):
    open_tiles("11.1.0.106", quantized_to(TensorProto.INT8, tmp_path / "signed"), device).__exit__(None, None, None)
    with pytest.raises(SessionError, match="got UINT8 integers in quantize and 1 more, which TensorRT takes for INT8"):
        open_tiles("11.1.0.106", quantized_to(TensorProto.UINT8, tmp_path / "unsigned"), a_device("11"))
