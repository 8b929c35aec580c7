"""The GPU's kernels, their source run on the CPU: bit for bit what the CPU's own path gives, at any geometry, and compiled."""

from __future__ import annotations

import ctypes
import shutil
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from host_kernels import HostLauncher, build, signatures
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twins import TWINS

from edge.cuda import kernels
from edge.cuda.compilers import compilers
from edge.cuda.kernels import NAMES, Ring, StripKernels, compile_kernels
from edge.errors import SessionError
from edge.scores import Reading, classify
from edge.segmenters.streaming_gate import StreamingGate, gate_columns
from edge.sessions import Steps
from edge.window import StripWindow

STREAM = object()
READINGS = [Reading(activation, head) for activation in ("softmax", "sigmoid") for head in ("logits", "probabilities")]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> HostLauncher:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the CPU")
    return HostLauncher(build(tmp_path_factory.mktemp("kernels")))


class Twins:
    """The same seam, but the numpy twins compute."""

    def __init__(self, launcher: HostLauncher) -> None:
        self.properties = launcher.properties

    def load(self, cubin, names):
        return {name: TWINS[name] for name in names}

    def launch(self, kernel, grid, block, arguments, stream):
        kernel(view, *(argument.item() for argument in arguments))


def view(address: int, nbytes: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


class Arena:
    """Memory with arrays in it, between them bytes by which it is seen whether anything else was written."""

    def __init__(self, seed: int = 0, nbytes: int = 1 << 16) -> None:
        self._memory = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
        self._used = -self._memory.ctypes.data % 64
        self._outputs = np.zeros(nbytes, np.bool_)

    def put(self, values: np.ndarray, misalignment: int = 0) -> int:
        """The address of a copy."""
        place = self._place(values.nbytes, misalignment)
        self._memory[place] = np.frombuffer(values.tobytes(), np.uint8)
        return self._memory.ctypes.data + place.start

    def output(self, *shape: int, misalignment: int = 0) -> np.ndarray:
        """Where a kernel may write, uint8."""
        place = self._place(int(np.prod(shape)), misalignment)
        self._outputs[place] = True
        return self._memory[place].reshape(shape)

    def may_write(self, address: int, nbytes: int) -> None:
        self._outputs[address - self._memory.ctypes.data :][:nbytes] = True

    def untouched(self) -> bytes:
        """All that no kernel may write."""
        return self._memory[~self._outputs].tobytes()

    def _place(self, nbytes: int, misalignment: int) -> slice:
        start = self._used + 64 + misalignment
        self._used = start + nbytes + -(start + nbytes + self._memory.ctypes.data) % 64
        assert self._used + 64 <= len(self._memory)
        return slice(start, start + nbytes)


def both(launcher: HostLauncher, enqueue, seed: int = 0, nbytes: int = 1 << 16) -> np.ndarray:
    """What kernels wrote: `enqueue(kernels, arena)` gives the output. The same by the twin, and whatever lies around it."""
    results = []
    for device, around in ((launcher, seed), (launcher, seed + 1), (Twins(launcher), seed)):
        arena = Arena(around, nbytes)
        prepared = enqueue(StripKernels(device, b"cubin"), arena)
        before = arena.untouched()
        written = prepared()
        assert arena.untouched() == before, "written beyond the output"
        results.append(written.copy())
    np.testing.assert_array_equal(results[0], results[1], err_msg="depends on what lies beyond its input")
    np.testing.assert_array_equal(results[0], results[2], err_msg="otherwise than its twin")
    return results[0]


@dataclass(frozen=True)
class Run:
    """Lines of a strip from `begin` on, of which a ring keeps the last; misalignment: of the ring's address."""

    begin: int
    lines: np.ndarray
    capacity: int
    misalignment: int

    @property
    def line_stop(self) -> int:
        return self.begin + len(self.lines)

    def window(self) -> StripWindow:
        window = StripWindow(self.lines.shape[1], self.capacity)
        window.start(self.begin)
        for first in range(0, len(self.lines), self.capacity):
            window.append(self.lines[first : first + self.capacity])
        window.end()
        return window

    def ring(self, arena: Arena) -> Ring:
        rows = np.zeros((self.capacity, self.lines.shape[1]), np.uint8)
        for line, pixels in enumerate(self.lines, self.begin):
            rows[line % self.capacity] = pixels
        return Ring(arena.put(rows, self.misalignment), *rows.shape, self.begin, self.line_stop)


@st.composite
def runs(draw: st.DrawFn, lines: int = 40, width: int = 40) -> Run:
    seed, capacity = draw(st.integers(0, 1000)), draw(st.integers(1, 30))
    size = draw(st.integers(1, lines)), draw(st.integers(1, width))
    pixels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    begin = draw(st.sampled_from([0, 1, 7, 2**31 - 3, 10**12]) | st.integers(-50, 50))
    return Run(begin, pixels, capacity, draw(st.sampled_from([0, 0, 1, 2, 3])))


@st.composite
def spans(draw: st.DrawFn, run: Run) -> tuple[int, int]:
    """First line of a rectangle and its height, of lines that are still kept."""
    if len(run.lines) <= run.capacity:
        return run.begin + draw(st.integers(-90, 90)), draw(st.integers(1, 40))
    top = draw(st.integers(run.line_stop - run.capacity, run.line_stop - 1))
    return top, draw(st.integers(1, run.line_stop - top + run.capacity - 1))


@settings(deadline=None)
@given(st.data())
def test_gathered_crops_are_what_the_window_cuts(launcher, data):
    run = data.draw(runs())
    top, height = data.draw(spans(run))
    columns, misalignment = data.draw(st.integers(1, 150)), data.draw(st.sampled_from([0, 0, 1, 2, 3]))
    lefts = data.draw(st.lists(st.sampled_from([0, 4, -4, -8]) | st.integers(-90, 90), min_size=1, max_size=3))

    def enqueue(kernels, arena):
        ring, corners = run.ring(arena), arena.put(np.array([(top, left) for left in lefts], np.int64))
        out = arena.output(len(lefts), height, columns, misalignment=misalignment)

        def gather():
            kernels.gather(ring, corners, len(lefts), height, columns, out.ctypes.data, STREAM)
            return out

        return gather

    cut = [run.window().cut(top, top + height, left, left + columns) for left in lefts]
    np.testing.assert_array_equal(both(launcher, enqueue), np.stack(cut))


def test_crops_of_one_call_begin_at_lines_of_their_own(launcher):
    run = Run(90, np.arange(60 * 64, dtype=np.uint32).reshape(60, 64).astype(np.uint8), 60, 0)
    corners = [(90, 0), (97, 16), (70, -20), (140, 50), (-300, 200)]

    def enqueue(kernels, arena):
        ring, places = run.ring(arena), arena.put(np.array(corners, np.int64))
        out = arena.output(len(corners), 24, 600)

        def gather():
            kernels.gather(ring, places, len(corners), 24, 600, out.ctypes.data, STREAM)
            return out

        return gather

    window = run.window()
    expected = [window.cut(line, line + 24, column, column + 600) for line, column in corners]
    np.testing.assert_array_equal(both(launcher, enqueue, nbytes=1 << 18), np.stack(expected))


@settings(deadline=None)
@given(line=st.integers(-(2**40), 2**40), column=st.integers(-(2**40), 2**40), begin=st.integers(-9, 9))
def test_whatever_a_corner_says_nothing_beyond_the_ring_is_read(launcher, line, column, begin):
    def enqueue(kernels, arena):
        ring = Ring(arena.put(np.full((5, 9), 77, np.uint8), 1), 5, 9, begin, begin + 100)
        corners, out = arena.put(np.array([(line, column)], np.int64)), arena.output(1, 12, 24)

        def gather():
            kernels.gather(ring, corners, 1, 12, 24, out.ctypes.data, STREAM)
            return out

        return gather

    assert (both(launcher, enqueue) == 77).all()


@settings(deadline=None)
@given(st.data())
def test_a_reduced_rectangle_is_the_mean_of_the_reflected_strip(launcher, data):
    run, factor = data.draw(runs()), data.draw(st.integers(1, 8))
    top, height = data.draw(spans(run))
    lines, columns = max(1, height // factor), data.draw(st.integers(1, 40))
    left = data.draw(st.integers(-90, 90))
    assume(lines * factor <= height or len(run.lines) <= run.capacity)

    def enqueue(kernels, arena):
        ring, out = run.ring(arena), arena.output(lines, columns, misalignment=1)

        def reduce():
            kernels.reduce(ring, top, left, factor, lines, columns, out.ctypes.data, STREAM)
            return out

        return reduce

    cut = run.window().cut(top, top + lines * factor, left, left + columns * factor)
    expected = cv2.resize(cut, (columns, lines), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(both(launcher, enqueue), expected.reshape(lines, columns))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_every_sum_of_a_block_is_rounded_as_opencv_rounds_it(launcher, factor):
    area = factor * factor
    sums = np.arange(0, 255 * area + 1, max(1, area // 64))
    blocks = np.clip(sums[:, None] - 255 * np.arange(area), 0, 255).astype(np.uint8)
    strip = blocks.reshape(-1, factor, factor).swapaxes(0, 1).reshape(factor, -1)
    run = Run(3, np.ascontiguousarray(strip), factor, 0)

    def enqueue(kernels, arena):
        ring, out = run.ring(arena), arena.output(1, len(sums))

        def reduce():
            kernels.reduce(ring, 3, 0, factor, 1, len(sums), out.ctypes.data, STREAM)
            return out

        return reduce

    expected = cv2.resize(run.lines, (len(sums), 1), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(both(launcher, enqueue, nbytes=strip.nbytes + (1 << 16)), expected)


class Chunks:
    """A streaming session that keeps what it was fed."""

    backend, steps, lag_lines = "none", None, 0

    def __init__(self, chunk_lines: int, cell: int) -> None:
        self.chunk_lines, self._cell, self.fed = chunk_lines, cell, []

    def reset(self) -> None: ...

    def step(self, chunk):
        self.fed.append(chunk[0, 0].copy())
        return np.zeros((1, 1, chunk.shape[2] // self._cell, chunk.shape[3] // self._cell), np.float32)


@pytest.mark.parametrize(
    ("width", "reduce", "lines"), [(41, 4, 70), (64, 2, 50), (5, 4, 3), (1, 8, 20), (90, 3, 90), (33, 1, 40)]
)
def test_a_streaming_gate_is_fed_what_one_reduction_gives(launcher, width, reduce, lines):
    cell, halo, stride, step = 4, 8, 4, 16
    session = Chunks(step, cell)
    gate = StreamingGate(
        session, width=width, reduce=reduce, cell=cell, halo=halo, stride=stride, activation="sigmoid", head="logits"
    )
    pixels = np.random.default_rng(width).integers(0, 256, (lines, width), np.uint8)
    run = Run(reduce, pixels, lines, 0)
    window, spans = run.window(), gate.spans
    gate.begin()
    spans.start(run.begin, window)
    columns, looks = gate_columns(width, reduce, halo, stride), []
    while (span := spans.ready()) is not None:
        gate.look(window, span)
        looks.append(span * spans.step - spans.before)
        spans.advance()
    assert len(session.fed) == len(looks) > 0
    for first, fed in zip(looks, session.fed, strict=True):

        def enqueue(kernels, arena, first=first):
            ring, out = run.ring(arena), arena.output(step, columns)

            def reduction():
                kernels.reduce(ring, first, -halo * reduce, reduce, step, columns, out.ctypes.data, STREAM)
                return out

            return reduction

        np.testing.assert_array_equal(both(launcher, enqueue), fed)


def classes(launcher, scores, rectangle, reading) -> np.ndarray:
    """(n, 2, lines, columns) of the kernel, the twin's being the same."""

    def enqueue(kernels, arena):
        place = arena.put(scores)
        out = arena.output(len(scores), 2, *rectangle[2:], misalignment=1)

        def classify():
            kernels.classes(place, scores.dtype, scores.shape, rectangle, reading, out.ctypes.data, STREAM)
            return out

        return classify

    return both(launcher, enqueue, nbytes=4 * scores.nbytes + (1 << 16))


def expected_classes(scores, rectangle, reading) -> np.ndarray:
    """The product's own path, tile by tile; its cast of no number to a byte warns."""
    top, left, lines, columns = rectangle
    part = scores[:, :, top : top + lines, left : left + columns].astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.stack([classify(tile, reading.activation, reading.head, reading.level) for tile in part])


def is_same_but_for_halves(got, expected, scores, rectangle, reading) -> bool:
    """Classes equal, confidences too but where 255 probabilities lie as close to a half as two exps may differ."""
    top, left, lines, columns = rectangle
    if (got[:, 0] != expected[:, 0]).any():
        return False
    logits = scores[:, :, top : top + lines, left : left + columns].astype(np.longdouble)
    with np.errstate(all="ignore"):
        if reading.activation == "softmax":
            probability = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        else:
            probability = 1 / (1 + np.exp(-logits.max(axis=1)))
        steps = 255 * probability
        close = np.abs(steps - np.floor(steps) - 0.5) <= 255 * (scores.shape[1] + 4) * 2.0**-52
    differing = got[:, 1] != expected[:, 1]
    apart = np.abs(got[:, 1].astype(int) - expected[:, 1])
    return bool((~differing | (close & (apart == 1))).all())


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 12), st.integers(1, 70)),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([np.float32, np.float16]),
    reading=st.sampled_from(READINGS),
    level=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    specials=st.sampled_from([0.0, 0.1, 0.6]),
    data=st.data(),
)
def test_classes_and_confidences_are_those_of_the_cpu(launcher, shape, seed, dtype, reading, level, specials, data):
    rng = np.random.default_rng(seed)
    logits = reading.head == "logits"
    scores = (rng.normal(0, 3, shape) if logits else rng.random(shape)).astype(dtype)
    pool = np.array([0, -0.0, 1, 0.25, 0.5, np.nan, np.inf, -np.inf, 1e-30, -2], dtype)
    scores = np.where(rng.random(shape) < specials, rng.choice(pool, shape), scores)
    top, left = data.draw(st.integers(0, shape[2] - 1)), data.draw(st.integers(0, shape[3] - 1))
    rectangle = top, left, data.draw(st.integers(1, shape[2] - top)), data.draw(st.integers(1, shape[3] - left))
    reading = replace(reading, level=level)
    got, expected = classes(launcher, scores, rectangle, reading), expected_classes(scores, rectangle, reading)
    if logits:
        assert is_same_but_for_halves(got, expected, scores, rectangle, reading)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("reading", READINGS)
def test_of_equal_scores_the_lowest_channel_wins_and_the_background_against_all(launcher, reading):
    values = np.array([0.25, 0.5, 0.5625], np.float32)
    scores = np.stack(np.meshgrid(values, values, values, values)).reshape(1, 4, 9, 9)
    got = classes(launcher, scores, (0, 0, 9, 9), reading)
    np.testing.assert_array_equal(got, expected_classes(scores, (0, 0, 9, 9), reading))
    winner = scores[0].argmax(axis=0)
    if reading.activation == "softmax":
        np.testing.assert_array_equal(got[0, 0], winner)
    else:
        least = 0.5 if reading.head == "probabilities" else 0.0
        np.testing.assert_array_equal(got[0, 0], np.where(scores[0].max(axis=0) >= least, winner + 1, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("reading", READINGS)
def test_infinite_scores_and_those_that_are_no_numbers_count_as_they_do_on_the_cpu(launcher, reading, dtype):
    values = np.array([-np.inf, -1, 0.75, np.inf, np.nan], dtype)
    scores = np.stack(np.meshgrid(values, values, values)).reshape(1, 3, 5, 25)
    for level in (0.0, 0.5, 1.0):
        taken, whole = replace(reading, level=level), (0, 0, 5, 25)
        np.testing.assert_array_equal(classes(launcher, scores, whole, taken), expected_classes(scores, whole, taken))


def test_half_a_step_is_exact_in_a_probability_of_one_half(launcher):
    scores = np.array([0.5, 0.0], np.float32).reshape(1, 1, 1, 2)
    for reading, score in ((READINGS[3], scores[:, :, :, :1]), (READINGS[2], scores[:, :, :, 1:])):
        got = classes(launcher, np.ascontiguousarray(score), (0, 0, 1, 1), reading)
        assert got.ravel().tolist() == [1, 128]  # 127.5, and 128 is the even one
    assert classes(launcher, np.zeros((1, 2, 1, 1), np.float32), (0, 0, 1, 1), READINGS[0]).ravel().tolist() == [0, 0]


@pytest.mark.parametrize("shift", [0, 1, 2, 1023, 1024, 32768])
def test_every_binary16_is_compared_as_the_float_of_its_value(launcher, shift):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.stack([every, np.roll(every, shift)]).reshape(1, 2, 256, 256)
    whole = (0, 0, 256, 256)
    for reading in (READINGS[1], READINGS[3]):
        got = classes(launcher, halves, whole, reading)
        np.testing.assert_array_equal(got, classes(launcher, halves.astype(np.float32), whole, reading))
        np.testing.assert_array_equal(got, expected_classes(halves, whole, reading))


def test_the_classes_of_a_rectangle_are_those_of_the_whole_plane_there(launcher):
    scores = np.random.default_rng(5).normal(0, 4, (2, 5, 23, 77)).astype(np.float32)
    for reading in READINGS[::2]:
        whole = classes(launcher, scores, (0, 0, 23, 77), reading)
        part = classes(launcher, scores, (6, 13, 11, 40), reading)
        np.testing.assert_array_equal(part, whole[:, :, 6:17, 13:53])


@settings(deadline=None)
@given(n=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 50), seed=st.integers(0, 99), data=st.data())
def test_a_mask_head_is_taken_as_it_is_but_for_the_background_s_confidence(launcher, n, height, width, seed, data):
    planes = np.random.default_rng(seed).integers(0, 3, (n, 2, height, width), np.uint8)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rectangle = top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    got = classes(launcher, planes, rectangle, Reading("softmax", "mask"))
    part = planes[:, :, top : top + rectangle[2], left : left + rectangle[3]]
    np.testing.assert_array_equal(got, np.stack([classify(tile, "softmax", "mask") for tile in part]))


@settings(deadline=None)
@given(
    width=st.integers(1, 60),
    capacity=st.integers(1, 20),
    line=st.integers(0, 60),
    seed=st.integers(0, 99),
    misalignment=st.integers(0, 3),
    data=st.data(),
)
def test_a_flat_field_takes_the_dark_signal_away_and_multiplies_the_rest(
    launcher, width, capacity, line, seed, misalignment, data
):
    rng = np.random.default_rng(seed)
    lines = data.draw(st.integers(1, capacity))
    raw = rng.integers(0, 256, (capacity, width), np.uint8)
    dark, gain = rng.integers(0, 30 * 256, width, np.uint16), rng.integers(2048, 3 * 4096, width, np.uint16)
    extreme = rng.random(width) < 0.2
    dark[extreme], gain[extreme] = rng.choice([0, 65535], extreme.sum()), rng.choice([0, 65535], extreme.sum())

    def in_place(kernels, arena):
        ring = Ring(arena.put(raw, misalignment), capacity, width, 0, line + lines)
        where = arena.put(dark), arena.put(gain)
        arena.may_write(ring.address, raw.nbytes)

        def correct():
            kernels.flat_field(ring, line, lines, *where, ring.address, STREAM)
            return view(ring.address, raw.nbytes).reshape(raw.shape)

        return correct

    def elsewhere(kernels, arena):
        ring, where = Ring(arena.put(raw, misalignment), capacity, width, 0, line + lines), (arena.put(dark), arena.put(gain))
        out = arena.output(capacity, width)
        out[:] = raw

        def correct():
            kernels.flat_field(ring, line, lines, *where, out.ctypes.data, STREAM)
            return out

        return correct

    grey = (raw - dark / 256).clip(0) * (gain / 4096)
    corrected = np.floor(grey.clip(0, 255) + 0.5).clip(0, 255)
    rows = [row % capacity for row in range(line, line + lines)]
    expected = raw.copy()
    expected[rows] = corrected[rows]
    np.testing.assert_array_equal(both(launcher, in_place), expected)
    np.testing.assert_array_equal(both(launcher, elsewhere), expected)


@pytest.mark.parametrize(
    ("dark", "gain", "expected"),
    [
        (0, 4096, np.arange(256)),
        (0, 2048, (np.arange(256) + 1) // 2),  # a half goes up
        (128, 4096, np.arange(256)),
        (129, 4096, np.maximum(np.arange(256) - 1, 0)),
        (65535, 65535, np.zeros(256)),
        (0, 65535, np.minimum(np.arange(256) * 16, 255)),  # the largest product of all, in 32 bits
    ],
)
def test_each_grey_level_of_a_flat_field_is_rounded_and_kept_to_a_byte(launcher, dark, gain, expected):
    def enqueue(kernels, arena):
        ring = Ring(arena.put(np.arange(256, dtype=np.uint8)), 1, 256, 0, 1)
        tables = [arena.put(np.full(256, value, np.uint16)) for value in (dark, gain)]
        out = arena.output(1, 256)

        def correct():
            kernels.flat_field(ring, 0, 1, *tables, out.ctypes.data, STREAM)
            return out

        return correct

    np.testing.assert_array_equal(both(launcher, enqueue)[0], expected)


def test_launches_name_every_kernel_of_the_source():
    assert sorted(NAMES) == sorted(signatures()) == sorted(TWINS)


RING = Ring(256, 8, 8, 0, 8)
WRONG = {
    "a ring without lines": (lambda on: Ring(256, 0, 8, 0, 8), "capacity: got 0"),
    "a run without lines": (lambda on: Ring(256, 8, 8, 5, 5), "got lines 5 to 5"),
    "no ring": (lambda on: Ring(0, 8, 8, 0, 8), "ring: got the address 0x0"),
    "no crop": (lambda on: on.gather(RING, 8, 0, 4, 4, 1, STREAM), "crops: got 0"),
    "corners between int64": (lambda on: on.gather(RING, 12, 1, 4, 4, 1, STREAM), "corners: got the address 0xc, expected a mu"),
    "too many crops": (lambda on: on.gather(RING, 8, 65536, 4, 4, 1, STREAM), "got 4 lines of 65536 crops"),
    "too many lines": (lambda on: on.gather(RING, 8, 1, 524281, 4, 1, STREAM), "got 524281 lines"),
    "a line beyond counting": (lambda on: on.reduce(RING, 2**62, 0, 2, 1, 1, 1, STREAM), "line: got 4611686018427387904"),
    "too strong a reduction": (lambda on: on.reduce(RING, 0, 0, 257, 1, 1, 1, STREAM), "got a reduction by 257"),
    "a rectangle beyond the plane": (
        lambda on: on.classes(8, np.float32, (1, 2, 4, 4), (2, 0, 3, 4), READINGS[0], 1, STREAM),
        r"got 3 x 4 pixels from \(2, 0\) on, expected some of 4 x 4",
    ),
    "doubles": (
        lambda on: on.classes(8, np.float64, (1, 2, 4, 4), (0, 0, 4, 4), READINGS[0], 1, STREAM),
        "got scores float64, expected float32 or float16",
    ),
    "more classes than a byte holds": (
        lambda on: on.classes(8, np.float32, (1, 256, 4, 4), (0, 0, 4, 4), READINGS[2], 1, STREAM),
        "got 256 channels, expected at most 255 with sigmoid",
    ),
    "integer logits": (
        lambda on: on.classes(8, np.float32, (1, 2, 4, 4), (0, 0, 4, 4), replace(READINGS[0], steps=Steps(0.5, 0)), 1, STREAM),
        "got logits in steps of 0.5, expected floats",
    ),
    "a mask in floats": (
        lambda on: on.classes(8, np.float32, (1, 2, 4, 4), (0, 0, 4, 4), Reading("softmax", "mask"), 1, STREAM),
        "got a mask of 2 channels float32",
    ),
    "a classifier's reading": (
        lambda on: on.classes(8, np.float32, (1, 2, 1, 1), (0, 0, 1, 1), replace(READINGS[0], defective_from=0.5), 1, STREAM),
        "got a classifier's reading",
    ),
    "lines that the run has not": (
        lambda on: on.flat_field(RING, 5, 4, 2, 2, 1, STREAM),
        "got lines 5 to 9, expected at most 8 of 0 to 8",
    ),
    "an odd table": (lambda on: on.flat_field(RING, 0, 4, 2, 3, 1, STREAM), "gain: got the address 0x3"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_kernel_can_do_is_refused_before_it_is_launched(launcher, wrong):
    call, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        call(StripKernels(launcher, b"cubin"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rust-edge" / "kernels"


@pytest.mark.parametrize("compute", ["7.2", "8.7", "8.9", "9.0", "12.0"])
def test_the_kernels_compile_for_the_gpus_of_the_edge(cache, compute):
    architecture = f"sm_{compute.replace('.', '')}"
    found = list(compilers())
    able = [compiler for compiler in found if architecture in compiler.architectures]
    if not able:
        pytest.skip(f"no NVRTC nor nvcc that knows {architecture}: {', '.join(map(str, found)) or 'neither is there'}")
    cubin = compile_kernels(compute)
    machine = struct.unpack_from("<H", cubin, 18)[0]
    assert (cubin[:4], machine) == (b"\x7fELF", 190)  # EM_CUDA
    assert all(f".text.{name}\0".encode() in cubin for name in NAMES)


@pytest.fixture
def compute() -> str:
    """A GPU that a compiler of this machine knows."""
    for compiler in compilers():
        for known in ("8.7", "9.0"):
            if f"sm_{known.replace('.', '')}" in compiler.architectures:
                return known
    pytest.skip("neither NVRTC nor nvcc is there")


def test_compiled_kernels_are_kept_and_a_damaged_file_is_compiled_again(cache, compute, monkeypatch):
    cubin = compile_kernels(compute)
    (kept,) = cache.glob("*.engine")
    assert kept.read_bytes() == cubin
    compiled = []
    real = compilers

    def counted():
        for compiler in real():
            to_cubin = compiler.to_cubin
            yield replace(
                compiler, to_cubin=lambda source, options, to=to_cubin: (compiled.append(options), to(source, options))[1]
            )

    monkeypatch.setattr(kernels, "compilers", counted)
    assert compile_kernels(compute) == cubin
    assert not compiled
    kept.write_bytes(cubin[:100])
    assert compile_kernels(compute)[:4] == b"\x7fELF"
    assert len(compiled) == 1
    assert len(kept.read_bytes()) > 100


def test_without_a_place_to_keep_them_kernels_are_compiled_all_the_same(tmp_path, compute, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_kernels(compute)[:4] == b"\x7fELF"
    assert "compiled at every start" in caplog.text


def test_a_compiler_newer_than_the_driver_is_not_taken(cache, compute):
    with pytest.raises(SessionError, match=r"is newer than the driver's CUDA 10\.2"):
        compile_kernels(compute, "10.2")


def test_without_a_compiler_it_is_said_what_to_install(cache, monkeypatch):
    monkeypatch.setattr(kernels, "compilers", lambda: iter(()))
    with pytest.raises(SessionError, match=r"neither NVRTC nor nvcc is there; .*cuda-nvrtc.*pip install nvidia-cuda-nvrtc"):
        compile_kernels("8.7")


def test_what_the_compiler_finds_wrong_is_in_the_error(compute):
    compiler = next(compilers())
    with pytest.raises(SessionError, match="undefined"):
        compiler.to_cubin("__global__ void kernel() { nothing(); }", (f"-arch=sm_{compute.replace('.', '')}",))
