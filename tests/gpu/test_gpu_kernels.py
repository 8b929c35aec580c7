"""Every kernel on the device, launched as the product launches it, against its numpy twin: all bytes of what it may write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from stand import Stand, skip_without_gpu

from edge.cuda.device import CudaDevice
from edge.cuda.kernels import NAMES, Ring, StripKernels, compile_kernels
from edge.scores import Reading

pytestmark = pytest.mark.gpu
skip_without_gpu()


GUARD = 256
"""Bytes before and after everything: written to by nobody."""


class Bench:
    """Kernels on the device, and the same bytes at the same addresses on the host for their twins."""

    def __init__(self, device: CudaDevice, module: bytes | None) -> None:
        self._device, self._stream = device, device.stream()
        self._blocks: dict[int, tuple[np.ndarray, object]] = {}
        self._calls: list[tuple[str, list]] = []
        self.kernels = StripKernels(self, module)

    properties = property(lambda self: self._device.properties)
    stream = property(lambda self: self._stream)

    def load(self, cubin: bytes, names: Sequence[str]) -> dict:
        return self._device.load(cubin, names)

    def launch(self, kernel, grid, block, arguments, stream) -> None:
        """As the device does it, and noted."""
        self._calls.append((kernel.name, [argument.item() for argument in arguments]))
        self._device.launch(kernel, grid, block, arguments, stream)

    def put(self, values: np.ndarray, offset: int = 0) -> int:
        """Address of some values on the device; offset: to what an address divides by 4, for example."""
        content = np.full(2 * GUARD + offset + values.nbytes, 0xEE, np.uint8)
        content[GUARD + offset : GUARD + offset + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        memory, host = self._device.allocate(len(content)), self._device.page_locked(len(content))
        host.array[:] = content
        self._device.upload(memory, 0, host.array, self._stream)
        self._stream.synchronize()
        host.free()
        self._blocks[memory.address] = (content, memory)
        return memory.address + GUARD + offset

    def room(self, nbytes: int, offset: int = 0) -> int:
        """Address of bytes to be written, none of which are right by chance."""
        return self.put(np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8), offset)

    def view(self, address: int, nbytes: int) -> np.ndarray:
        for start, (content, _) in self._blocks.items():
            if start <= address and address + nbytes <= start + len(content):
                return content[address - start : address - start + nbytes]
        raise AssertionError(f"nothing at {address:#x}")

    def compare(self, a_step_apart: bool = False) -> None:
        """All memory after the kernels that were launched, against all memory after their twins. It is gone then.

        a_step_apart: two bytes in a million may be, as confidences, whose exponentials are the libraries' own.
        """
        from twins import TWINS

        assert self._calls, "nothing was launched"
        for name, arguments in self._calls:
            TWINS[name](self.view, *arguments)
        self._stream.synchronize()
        for content, memory in self._blocks.values():
            got = self._device.page_locked(len(content))
            self._device.download(got.array, memory, 0, self._stream)
            self._stream.synchronize()
            if a_step_apart:
                apart = np.abs(got.array.astype(int) - content)
                assert apart.max() <= 1
                assert (apart > 0).sum() <= max(1, 2e-6 * len(content))
            else:
                np.testing.assert_array_equal(got.array, content)
            got.free()
            memory.free()
        self._blocks.clear()
        self._calls.clear()


@pytest.fixture(scope="module")
def module(stand: Stand) -> bytes | None:
    """Compiled by StripKernels itself; the strict fake takes any bytes."""
    return stand.kernels


@pytest.fixture
def bench(device: CudaDevice, module: bytes | None) -> Iterator[Bench]:
    return Bench(device, module)


def test_the_kernels_compile_on_this_machine_for_its_own_gpu(device, stand):
    if not stand.real:
        pytest.skip("no GPU to compile for")
    cubin = compile_kernels(device.properties.compute, device.properties.driver)
    assert cubin[:4] == b"\x7fELF"
    assert set(device.load(cubin, NAMES)) == set(NAMES)


def ring_of(bench: Bench, rng: np.random.Generator, capacity: int, width: int, offset: int = 0) -> Ring:
    """A ring of noise, holding a run that may have wrapped many times and may begin far down the strip."""
    address = bench.put(rng.integers(0, 256, (capacity, width), np.uint8), offset)
    begin = int(rng.choice([0, 7, 10**6 + 3, 10**12]))
    return Ring(address, capacity, width, begin, begin + int(rng.integers(1, 3 * capacity + 1)))


@pytest.mark.parametrize("seed", range(24))
def test_crops_are_those_of_the_twin_wherever_they_lie(bench, seed):
    rng = np.random.default_rng(seed)
    capacity, width = int(rng.integers(1, 90)), int(rng.choice([1, 2, 3, 4, 5, 31, 64, 127, 200]))
    for offset in range(4):
        ring = ring_of(bench, rng, capacity, width, offset)
        crops, lines, columns = (int(size) for size in rng.integers(1, (6, 70, 260)))
        lowest, highest = (ring.line_stop - capacity - 20, -150), (ring.line_stop + 20, width + 150)
        corners = rng.integers(lowest, highest, (crops, 2), np.int64)
        out = bench.room(crops * lines * columns, int(rng.integers(0, 4)))
        bench.kernels.gather(ring, bench.put(corners), crops, lines, columns, out, bench.stream)
        bench.compare()


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8, 16, 255, 256])
def test_reduced_pixels_are_those_of_the_twin(bench, factor):
    rng = np.random.default_rng(factor)
    for width in (1, 9, 130):
        ring = ring_of(bench, rng, int(rng.integers(1, 60)), width)
        lines, columns = (int(size) for size in rng.integers(1, (40, 50) if factor < 100 else (3, 3)))
        line, column = ring.line_stop - int(rng.integers(0, 40)), int(rng.integers(-30, 30))
        bench.kernels.reduce(ring, line, column, factor, lines, columns, bench.room(lines * columns, 1), bench.stream)
        bench.compare()


def test_sums_that_end_in_a_half_are_rounded_as_the_twin_rounds_them(bench):
    """Every sum of 2 x 2 and of 4 x 4 pixels that can be: blocks whose pixels differ by one at most."""
    for factor, across in ((2, 30), (4, 60)):
        sums = np.arange(255 * factor**2 + 1)
        sums = np.resize(sums, (-(-len(sums) // across), across))
        each, more = np.divmod(sums[..., None], factor**2)
        blocks = (each + (np.arange(factor**2) < more)).reshape(*sums.shape, factor, factor)
        strip = blocks.swapaxes(1, 2).reshape(len(sums) * factor, across * factor).astype(np.uint8)
        ring = Ring(bench.put(strip), *strip.shape, 0, len(strip))
        bench.kernels.reduce(ring, 0, 0, factor, *sums.shape, bench.room(sums.size), bench.stream)
        bench.compare()


def awkward_scores(rng: np.random.Generator, shape: tuple[int, int, int, int], dtype: type, head: str) -> np.ndarray:
    """Noise in which ties, zeros of both signs, infinities, numbers beyond the normal ones and no numbers lie about."""
    scores = rng.normal(0, 4, shape) if head == "logits" else rng.uniform(0, 1, shape)
    picked = rng.integers(0, 8, (shape[0], 1, *shape[2:]))
    scores = np.where(picked == 1, np.round(scores), scores)
    scores = np.where(picked == 2, scores[:, :1], scores).astype(dtype)
    specials = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).tiny / 4, np.finfo(dtype).max], dtype)
    strange = (picked == 3) & (rng.random(shape) < 0.3)
    return np.where(strange, rng.choice(specials, shape), scores).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("head", ["logits", "probabilities"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_classes_are_those_of_the_twin_with_ties_and_without_numbers(bench, activation, head, dtype):
    rng = np.random.default_rng([activation == "sigmoid", head == "logits", dtype == np.float16])
    for channels, (height, width) in ((1, (5, 7)), (2, (1, 1)), (4, (33, 65)), (7, (64, 40))):
        shape = (int(rng.integers(1, 4)), channels, height, width)
        scores = bench.put(awkward_scores(rng, shape, dtype, head))
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        rectangle = (top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)))
        out = bench.room(2 * shape[0] * rectangle[2] * rectangle[3], int(rng.integers(0, 4)))
        reading = Reading(activation, head, level=float(rng.uniform(0.05, 0.95)))
        bench.kernels.classes(scores, dtype, shape, rectangle, reading, out, bench.stream)
        bench.compare(a_step_apart=True)


def test_every_float16_counts_as_the_float_of_its_value(bench):
    """All 65,536 of them against 0, as a sigmoid's and as the second of two channels."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    two = np.concatenate([np.zeros_like(halves), halves], axis=1)
    for activation, scores in (("sigmoid", halves), ("softmax", two)):
        out = bench.room(2 << 16)
        reading = Reading(activation, "logits")
        bench.kernels.classes(bench.put(scores), np.float16, scores.shape, (0, 0, 256, 256), reading, out, bench.stream)
        bench.compare(a_step_apart=True)


def test_a_mask_head_s_classes_are_taken_as_they_are(bench):
    rng = np.random.default_rng(5)
    shape = (3, 2, 37, 41)
    planes = rng.integers(0, 4, shape, np.uint8) * rng.integers(0, 64, shape, np.uint8)
    out = bench.room(2 * 3 * 30 * 33, 3)
    bench.kernels.classes(bench.put(planes), np.uint8, shape, (4, 5, 30, 33), Reading("softmax", "mask"), out, bench.stream)
    bench.compare()


@pytest.mark.parametrize("width", [1, 3, 4, 129, 256])
def test_the_flat_field_is_the_twin_s_for_every_grey_level_also_in_place_and_around_the_ring(bench, width):
    rng = np.random.default_rng(width)
    capacity = 300
    grey = np.resize(np.arange(256, dtype=np.uint8), (width, capacity)).T
    raw = bench.put(grey)
    ring = Ring(raw, capacity, width, 1000, 1000 + capacity + 77)
    dark = bench.put(rng.choice([0, 1, 255, 256, 5000, 65535], width).astype(np.uint16))
    gain = bench.put(rng.choice([0, 1, 4095, 4096, 4097, 9000, 65535], width).astype(np.uint16))
    for out, line, lines in ((bench.room(capacity * width), 1100, 277), (raw, 1377 - 300, 300)):
        bench.kernels.flat_field(ring, line, lines, dark, gain, out, bench.stream)
    bench.compare()


def test_a_strip_of_16_000_columns_is_cut_reduced_and_corrected_as_the_twins_do_it(bench, stand):
    """Sizes of a real station, where an index that overflows or a grid that does not cover would show."""
    rng = np.random.default_rng(9)
    width, capacity, lines = (16000, 700, 288) if stand.real else (330, 70, 20)
    ring = Ring(bench.put(rng.integers(0, 256, (capacity, width), np.uint8)), capacity, width, 5, 5 + 3 * capacity)
    corners = bench.put(np.array([[ring.line_stop - lines, -112]], np.int64))
    columns = width + 224
    bench.kernels.gather(ring, corners, 1, lines, columns, bench.room(lines * columns), bench.stream)
    bench.kernels.reduce(ring, ring.line_stop - lines, -16, 4, lines // 4, width // 4, bench.room(lines * width), bench.stream)
    dark, gain = (bench.put(rng.integers(0, 9000, width).astype(np.uint16)) for _ in range(2))
    where = (ring.line_stop - lines, lines)
    bench.kernels.flat_field(ring, *where, dark, gain, bench.room(capacity * width), bench.stream)
    bench.compare()


def test_a_kernel_that_is_replayed_sees_the_bytes_that_are_there_now(device, module, stand):
    """The product records its kernels with the engine; scores change under them."""
    kernels, stream = StripKernels(device, module), device.stream()
    shape = (1, 2, 64, 96)
    scores, classes = device.allocate(4 * np.prod(shape).item()), device.allocate(2 * 64 * 96)
    up, down = device.page_locked(scores.nbytes), device.page_locked(classes.nbytes)

    def enqueue() -> None:
        device.upload(scores, 0, up.array, stream)
        kernels.classes(scores.address, np.float32, shape, (0, 0, 64, 96), Reading("softmax"), classes.address, stream)
        device.download(down.array, classes, 0, stream)

    graph = device.capture(stream, enqueue)
    for seed in range(stand.turns(20)):
        values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        up.array[:] = values.reshape(-1).view(np.uint8)
        graph.launch(stream)
        stream.synchronize()
        mask, _ = Reading("softmax").classes(values[0])
        np.testing.assert_array_equal(down.array[: 64 * 96].reshape(64, 96), mask)


def test_kernels_write_into_memory_that_the_host_sees(device, module):
    kernels, stream = StripKernels(device, module), device.stream()
    strip, crop = device.mapped(50 * 40), device.mapped(20 * 60)
    corners = device.mapped(16)
    strip.array[:] = np.random.default_rng(1).integers(0, 256, 2000, np.uint8)
    corners.array[:] = np.array([[30, -10]], np.int64).view(np.uint8).reshape(-1)
    ring = Ring(strip.device_address, 50, 40, 0, 50)
    kernels.gather(ring, corners.device_address, 1, 20, 60, crop.device_address, stream)
    stream.synchronize()
    wanted = np.pad(strip.array.reshape(50, 40)[30:], ((0, 0), (10, 10)), mode="reflect")
    np.testing.assert_array_equal(crop.array.reshape(20, 60), wanted)
