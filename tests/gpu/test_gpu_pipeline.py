"""A simulated strip through the whole pipeline on the GPU and on the CPU: the same masks, the same defects."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from stand import BUILDING_S, chosen, skip_without_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILDING_S)]
skip_without_gpu()

for module in ("pydantic", "yaml", "onnxruntime", "onnx", "cv2"):
    pytest.importorskip(module, reason=f"{module} is not installed")

from edge.bench.pipeline import count_found  # noqa: E402
from edge.bench.strips import make_strip  # noqa: E402
from edge.bundle import OUTLIERS, SCORE_TOLERANCE  # noqa: E402
from edge.config import Scale, SessionOptions, SimulatedSource, StationConfig  # noqa: E402
from edge.cuda.kernels import StripKernels  # noqa: E402
from edge.engines import Engines, dense_halo  # noqa: E402
from edge.events import DefectClosed  # noqa: E402
from edge.frame import Frame, Lines  # noqa: E402
from edge.scorecard import MIN_AREA_MM2, NEAR_MM  # noqa: E402
from edge.scores import Reading  # noqa: E402

SCALE = Scale()
THREADS = 0 if chosen().real else 1


@dataclass(frozen=True)
class Found:
    """What came out of a strip. segmented: rows that the U-Net saw."""

    mask: np.ndarray
    confidence: np.ndarray
    segmented: np.ndarray
    closed: list[DefectClosed]


def station(backend: str, mode: str, dense: str, width: int, unet: str, gate: str, **changes: object) -> StationConfig:
    return StationConfig(
        source=SimulatedSource(kind="simulated", width=width),
        bundle=unet,
        gate=gate if mode == "cascade" else None,
        mode=mode,
        dense=dense,
        session=SessionOptions(backend=backend, threads=THREADS),
        **changes,
    )


class Complaints(logging.Handler):
    """What the product logs when it leaves the GPU, in part or for good."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def without_complaints() -> Iterator[None]:
    """Fails where the product went on without the GPU: what it then finds is the CPU's, and right."""
    heard, log = Complaints(), logging.getLogger("edge")
    log.addHandler(heard)
    try:
        yield
    finally:
        log.removeHandler(heard)
    assert not [said for said in heard.said if "on the GPU" in said or "on the host" in said or "not on tensorrt" in said]


def inspect(config: StationConfig, strip: Lines, portions: Sequence[int] = (256,)) -> Found:
    """The strip in frames of these heights, again and again."""
    rows, events = [], []
    with without_complaints(), Engines(config, "the test") as engines:
        pipeline = engines.pipeline(strip.shape[1], "a strip")
        line = turn = 0
        while line < len(strip):
            lines = strip[line : line + portions[turn % len(portions)]]
            found = pipeline.push(Frame(lines, line, 0))
            rows, events = rows + found.rows, events + found.events
            line, turn = line + len(lines), turn + 1
        found = pipeline.finish()
        rows, events = rows + found.rows, events + found.events
        assert pipeline.coverage.total == len(strip)
        assert {choice.backend for choice in engines.choices} == {config.session.backend}
    return Found(
        np.concatenate([part.mask for part in rows]),
        np.concatenate([part.confidence for part in rows]),
        np.concatenate([np.full(len(part.mask), part.segmented) for part in rows]),
        [event for event in events if isinstance(event, DefectClosed)],
    )


def close_calls(config: StationConfig, strip: Lines) -> np.ndarray:
    """(lines, columns) bool: the two best scores of one inference over the whole strip lie within the tolerance."""
    cpu = config.model_copy(update={"session": SessionOptions(backend="ort", threads=THREADS)})
    with Engines(cpu, "the test") as engines:
        manifest, halo = engines.bundle.manifest, dense_halo(engines.bundle)
        lines, width = strip.shape
        sides = [(halo, halo + -size % manifest.stride) for size in (lines, width)]
        scores = engines._engines.tiles.infer(np.pad(strip, sides, mode="reflect")[None, None])[0]
        inner = scores[:, halo : halo + lines, halo : halo + width].astype(np.float32)
    assert Reading(manifest.activation, manifest.head).activation == "softmax"
    second, best = np.sort(inner, axis=0)[-2:]
    return best - second <= SCORE_TOLERANCE * np.ptp(inner)


def assert_same_defects(gpu: Found, cpu: Found) -> None:
    """Every large defect of one is reported by the other too; as many, but for those that hang on single pixels."""
    margin = (round(NEAR_MM / SCALE.mm_per_line), round(NEAR_MM / SCALE.mm_per_column))
    for wanted, reported in ((gpu, cpu), (cpu, gpu)):
        large = [event for event in wanted.closed if event.data.area_mm2 >= MIN_AREA_MM2]
        assert large, "the strip holds no defect to compare"
        for kind in {event.data.class_name for event in large}:
            of_kind = [[event for event in events if event.data.class_name == kind] for events in (large, reported.closed)]
            assert count_found(*of_kind, margin) == len(of_kind[0])


@pytest.fixture(scope="module")
def strip(stand) -> Lines:
    """Simulated steel with defects on a tenth of its tiles; for the toy engines of a stand-in, rectangles."""
    if stand.real:
        return make_strip(2048, 2048, SCALE, 0.9).lines
    from toy_engines import steel

    return steel(512, 200, (30, 20, 40, 30, 20), (130, 60, 16, 90, 230), (250, 170, 200, 12, 230), (480, 0, 32, 20, 20))


@pytest.fixture(scope="module")
def bundles(request, stand, tmp_path_factory) -> tuple[str, str]:
    """U-Net and gate."""
    if stand.real:
        return f"steel-unet-{request.param}", f"steel-gate-{request.param}"
    from toy_engines import write_cell_gate, write_streaming_segmenter

    folder = tmp_path_factory.mktemp("toys")
    return str(write_streaming_segmenter(folder / "segmenter")), str(write_cell_gate(folder / "gate"))


@pytest.fixture(scope="module", params=["streaming", "slabs", "cascade"])
def ways(request, tensorrt: None, strip: Lines, bundles: tuple[str, str]) -> tuple[StationConfig, Found, Found]:
    """A way through the strip, and what it brought on the GPU and on the CPU."""
    mode, dense = ("cascade", "streaming") if request.param == "cascade" else ("dense", request.param)
    gpu, cpu = (station(backend, mode, dense, strip.shape[1], *bundles) for backend in ("tensorrt", "ort"))
    return gpu, inspect(gpu, strip), inspect(cpu, strip)


def test_masks_are_the_cpu_s_but_where_two_classes_are_as_good_as_equal(ways, strip):
    config, gpu, cpu = ways
    assert gpu.mask.shape == strip.shape
    with Engines(config, "the test") as engines:
        allowed = OUTLIERS[engines.bundle.manifest.precision]
    # what the gate let through is the gate's to say: compared where both looked
    both = (gpu.segmented & cpu.segmented)[:, None]
    differs = (gpu.mask != cpu.mask) & both & ~close_calls(config, strip)
    assert differs.mean() <= allowed
    assert (gpu.segmented == cpu.segmented).mean() >= 1 - SCORE_TOLERANCE
    assert (cpu.mask > 0).any()


def test_defects_are_the_cpu_s(ways):
    _, gpu, cpu = ways
    assert_same_defects(gpu, cpu)


def test_what_is_found_does_not_depend_on_how_the_lines_arrive(ways, strip):
    config, gpu, _ = ways
    again = inspect(config, strip, (1, 37, 256, 5, 64))
    np.testing.assert_array_equal(again.mask, gpu.mask)
    np.testing.assert_array_equal(again.confidence, gpu.confidence)
    assert [event.data.defect_id for event in again.closed] == [event.data.defect_id for event in gpu.closed]


@pytest.mark.parametrize(
    ("mode", "dense", "kernels"),
    [
        ("dense", "streaming", {"gather", "classes"}),
        ("dense", "slabs", {"gather", "classes"}),
        ("cascade", "streaming", {"gather", "classes", "reduce"}),
    ],
)
def test_the_strip_is_read_by_kernels_on_the_gpu(tensorrt, strip, bundles, monkeypatch, mode, dense, kernels):
    launched: Counter[str] = Counter()
    launch = StripKernels._launch

    def note(self, name, *arguments):
        launched[name.partition("_of_")[0]] += 1
        return launch(self, name, *arguments)

    monkeypatch.setattr(StripKernels, "_launch", note)
    inspect(station("tensorrt", mode, dense, strip.shape[1], *bundles), strip)
    assert set(launched) == kernels


def test_streaming_and_slabs_agree_on_the_gpu(tensorrt, strip, bundles):
    streamed, slabbed = (
        inspect(station("tensorrt", "dense", dense, strip.shape[1], *bundles), strip) for dense in ("streaming", "slabs")
    )
    config = station("tensorrt", "dense", "slabs", strip.shape[1], *bundles)
    differs = (streamed.mask != slabbed.mask) & ~close_calls(config, strip)
    with Engines(config, "the test") as engines:
        assert differs.mean() <= OUTLIERS[engines.bundle.manifest.precision]


def test_two_stations_at_once_find_what_each_finds_alone(tensorrt, strip, bundles):
    """In threads, as two cameras of one box are: a dense one and a cascade on one GPU, the strips turned against each other."""
    configs = [station("tensorrt", mode, "streaming", strip.shape[1], *bundles) for mode in ("dense", "cascade")]
    strips = [strip, strip[::-1].copy()]
    alone = [inspect(config, lines) for config, lines in zip(configs, strips, strict=True)]
    found: dict[int, Found | BaseException] = {}

    def work(index: int) -> None:
        try:
            found[index] = inspect(configs[index], strips[index])
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, wanted in enumerate(alone):
        assert isinstance(found[index], Found), found[index]
        np.testing.assert_array_equal(found[index].mask, wanted.mask)
        assert [event.data.defect_id for event in found[index].closed] == [event.data.defect_id for event in wanted.closed]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_strip_without_end_takes_no_more_memory_with_time(tensorrt, strip, bundles, stand):
    """Some seconds there and back; the device's memory, where the seam tells it, and the process's stay as they were."""
    config = station("tensorrt", "dense", "streaming", strip.shape[1], *bundles)
    laps = 60 if stand.real else 4
    with Engines(config, "the test") as engines:
        segmenter = engines.segmenter(strip.shape[1])
        segmenter.start(0)
        taken = []
        for lap in range(laps):
            for line in range(0, len(strip), 256):
                segmenter.push((strip if lap % 2 == 0 else strip[::-1])[line : line + 256])
            taken.append((resident_bytes(), stand.device_bytes_used()))
        segmenter.flush()
    settled = taken[laps // 4 :]
    for kind in zip(*settled, strict=True):
        # a page here and there; what a strip costs that is kept would be far more
        assert kind[-1] - kind[0] <= 16 << 20
