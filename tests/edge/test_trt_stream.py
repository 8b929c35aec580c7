"""Line-streaming on TensorRT: the same scores as on the CPU, a state that stays on the GPU, two graphs in turn."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import adding_unet, concatenating_unet, images
from strict_device import StrictDevice
from tensorrt_sessions import EVERY_VERSION, a_device, bundle_around, open_stream
from test_trt_session import count_calls
from toy_engines import write_cell_gate

from calibration.activations import activation_ranges, collect
from edge.bundle import Bundle, open_bundle
from edge.errors import SessionError
from edge.sessions.on_device import DeviceStream
from edge.sessions.ort import OrtStreamingSession
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe

VERSION = "10.3.0.30"
WIDTH, LINES = 48, 16


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return streaming_bundle(tmp_path / "toy", concatenating_unet())


def streaming_bundle(folder: Path, model: Any, **changes: object) -> Bundle:
    return bundle_around(folder, model, stream(model), **changes)


def quantized(model: Any) -> Any:
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(8, 32, 48)])))


def steps(session: Any, count: int, seed: int = 4) -> list[np.ndarray]:
    strip = images(1, count * session.chunk_lines, WIDTH, seed=seed)
    lines = range(0, strip.shape[2], session.chunk_lines)
    return [session.step(strip[:, :, line : line + session.chunk_lines]).copy() for line in lines]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("version", EVERY_VERSION)
def test_a_stream_is_onnx_runtimes_bit_for_bit_over_steps_and_resets(version, precision, tmp_path):
    model = adding_unet() if precision == "fp32" else quantized(adding_unet())
    bundle = streaming_bundle(tmp_path / "toy", model)
    with (
        open_stream(version, bundle, a_device(version), WIDTH, LINES) as got,
        OrtStreamingSession(*bundle.streaming(), WIDTH, LINES, threads=1) as wanted,
    ):
        for count in (5, 2, 1):
            np.testing.assert_array_equal(steps(got, count, seed=count), steps(wanted, count, seed=count))
            got.reset()
            wanted.reset()


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("integrated", [False, True])
def test_it_does_not_depend_on_when_the_gpu_gets_to_its_work(bundle, integrated, schedule):
    device = StrictDevice(integrated=integrated, schedule=schedule, strict_leaks=True)
    with (
        open_stream(VERSION, bundle, device, WIDTH, LINES) as got,
        OrtStreamingSession(*bundle.streaming(), WIDTH, LINES, threads=1) as wanted,
    ):
        np.testing.assert_array_equal(steps(got, 4), steps(wanted, 4))


def test_only_lines_go_up_and_only_scores_come_down(bundle, monkeypatch):
    device = StrictDevice()
    moved: list[int] = []
    with open_stream(VERSION, bundle, device, WIDTH, LINES) as session:
        for name, array in (("upload", 2), ("download", 0)):
            real = getattr(device, name)
            monkeypatch.setattr(
                device, name, lambda *given, real=real, array=array: (moved.append(given[array].nbytes), real(*given))[1]
            )
        steps(session, 3)
    assert moved == [LINES * WIDTH, 3 * LINES * WIDTH * 4] * 3


@pytest.mark.parametrize("integrated", [False, True])
def test_both_directions_are_captured_when_it_opens_and_replayed_ever_after(bundle, monkeypatch, integrated):
    device = StrictDevice(integrated=integrated)
    with open_stream(VERSION, bundle, device, WIDTH, LINES) as session:
        calls = count_calls(monkeypatch, device, "capture", "enqueue", "allocate")
        for _ in range(2):
            steps(session, 3)
            session.reset()
        with device.active():
            for _ in range(3):
                session.lane.run()
            session.lane.stream.synchronize()
        assert not calls


def test_its_lane_takes_the_next_step_on_the_device(bundle):
    device = StrictDevice(strict_leaks=True)
    with open_stream(VERSION, bundle, device, WIDTH, LINES) as session:
        assert isinstance(session, DeviceStream)
        wanted = steps(session, 5)
        session.reset()
        lane, strip, got = session.lane, images(1, 5 * LINES, WIDTH, seed=4), []
        assert (lane.shape, lane.scores_shape, lane.dtype) == ((1, 1, LINES, WIDTH), (1, 3, LINES, WIDTH), np.float32)
        with device.active():
            up, down = device.page_locked(lane.input.nbytes), device.page_locked(lane.scores.nbytes)
            for line in range(0, strip.shape[2], LINES):
                up.array[:] = strip[0, 0, line : line + LINES].reshape(-1)
                device.upload(lane.input, 0, up.array, lane.stream)
                lane.run()
                device.download(down.array, lane.scores, 0, lane.stream)
                lane.stream.synchronize()
                got.append(down.array.view(np.float32).reshape(lane.scores_shape).copy())
            up.free()
            down.free()
    np.testing.assert_array_equal(got, wanted)


def test_a_gate_of_cells_streams_too(tmp_path):
    bundle = open_bundle(write_cell_gate(tmp_path / "gate"))
    with (
        open_stream(VERSION, bundle, a_device(VERSION), WIDTH, LINES) as got,
        OrtStreamingSession(*bundle.streaming(), WIDTH, LINES, threads=1) as wanted,
    ):
        np.testing.assert_array_equal(steps(got, 4), steps(wanted, 4))


def test_a_stream_that_cannot_be_captured_gives_the_same_and_says_so_once(bundle, caplog):
    with open_stream(VERSION, bundle, a_device(VERSION), WIDTH, LINES, uncapturable=True) as session:
        first = steps(session, 3)
        session.reset()
        np.testing.assert_array_equal(steps(session, 3), first)
    with open_stream(VERSION, bundle, a_device(VERSION), WIDTH, LINES) as session:
        np.testing.assert_array_equal(steps(session, 3), first)
    assert sum("runs without a CUDA graph" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("integrated", [False, True])
def test_however_little_memory_there_is_nothing_is_left_behind(bundle, integrated):
    failed = 0
    for nbytes in range(0, 200_000, 20_000):
        device = StrictDevice(integrated=integrated, strict_leaks=True, memory_bytes=nbytes)
        with device:
            try:
                with open_stream(VERSION, bundle, device, WIDTH, LINES, lent=contextlib.nullcontext(device)) as session:
                    steps(session, 1)
            except SessionError:
                failed += 1
    assert 0 < failed < 10


def test_a_gpu_that_is_lost_anywhere_is_a_session_error_and_closing_raises_nothing(bundle):
    told = []
    for operations in range(0, 24):
        device = StrictDevice()
        with open_stream(VERSION, bundle, device, WIDTH, LINES) as session:
            device.lose_gpu(operations)
            try:
                steps(session, 3)
                session.reset()
            except SessionError as error:
                told.append(str(error))
    assert 5 < len(told) < 24
    assert all("the GPU is lost" in each for each in told)


def test_chunks_that_do_not_fit_are_refused(bundle):
    for width, lines in ((WIDTH + 2, LINES), (WIDTH, 6), (0, LINES)):
        with pytest.raises(SessionError, match=f"got chunks of {lines} lines and {width} columns, expected multiples of 4"):
            open_stream(VERSION, bundle, StrictDevice(), width, lines)
    with open_stream(VERSION, bundle, a_device(VERSION), WIDTH, LINES) as session:
        with pytest.raises(SessionError, match=r"got a chunk uint8 \(1, 1, 8, 48\), expected uint8 \(1, 1, 16, 48\)"):
            session.step(np.zeros((1, 1, 8, WIDTH), np.uint8))
        steps(session, 1)


def test_a_file_whose_states_are_not_the_manifests_is_refused(tmp_path):
    model = adding_unet()
    streamed = stream(model)
    renamed = streamed.states[0].model_copy(update={"output": "somewhere_else"})
    states = [state.model_dump() for state in (renamed, *streamed.states[1:])]
    bundle = streaming_bundle(tmp_path / "toy", model, streaming={"lag_lines": streamed.lag_lines, "cell": 1, "states": states})
    device = StrictDevice(strict_leaks=True)
    lent = contextlib.nullcontext(device)
    with device, pytest.raises(SessionError, match=r"the \d+ states of the manifest; export the bundle again"):
        open_stream(VERSION, bundle, device, WIDTH, LINES, lent=lent)
