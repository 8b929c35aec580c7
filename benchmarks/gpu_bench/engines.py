"""Engines alone, by batch and precision, beside the CPU's: on the clock with the host's pixels, and by events on the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_bench.ceilings import matrix_ceiling
from benchmarks.gpu_bench.results import Ceilings, EngineFigures, OverlapFigures
from benchmarks.gpu_bench.turns import Trial, clock_s, device_ms, take_turns
from edge.backends import BundleEngines
from edge.bench.results import figure_of
from edge.bundle import Bundle
from edge.config import SessionOptions
from edge.errors import BundleError, SessionError
from edge.sessions.on_device import DeviceSession, Lane

CPU_BATCH = 4
"""The batch at which the CPU's engine is held against the GPU's: its rate hardly depends on it."""


@dataclass(slots=True)
class _Row:
    """A bundle at one batch."""

    bundle: Bundle
    batch: int
    clock: Trial
    events: Trial
    cpu: Trial | None
    cpu_backend: str | None

    @property
    def trials(self) -> list[Trial]:
        return [self.clock, self.events, *([self.cpu] if self.cpu else [])]

    def figures(self, ceilings: Ceilings | None) -> EngineFigures:
        manifest = self.bundle.manifest
        size = (manifest.input.tile_height, manifest.input.tile_width)
        operations = manifest.flops_per_pixel * size[0] * size[1] * self.batch
        device = figure_of(1e3 * self.batch / ms for ms in self.events.rounds)
        tflop_per_s = figure_of(operations / ms / 1e9 for ms in self.events.rounds)
        ceiling = matrix_ceiling(ceilings, manifest.precision)
        clock, cpu = self.clock.figure, self.cpu.figure if self.cpu else None
        return EngineFigures(
            bundle=manifest.name,
            precision=manifest.precision,
            batch=self.batch,
            tile_px=size,
            tiles_per_s=clock,
            device_tiles_per_s=device,
            device_ms=self.events.figure,
            tflop_per_s=tflop_per_s,
            matrix_share=tflop_per_s.value / ceiling if ceiling else None,
            cpu_tiles_per_s=cpu,
            cpu_backend=self.cpu_backend,
            cpu_ratio=clock.value / cpu.value if cpu else None,
        )


def open_gpu(bundle: Bundle, opened: ExitStack) -> tuple[BundleEngines, DeviceSession]:
    """A bundle's engines on the GPU. Raises SessionError, BundleError."""
    engines = opened.enter_context(BundleEngines(bundle, SessionOptions(backend="tensorrt")))
    session = engines.on_device(engines.tiles)
    if session is None:
        raise SessionError(f"{bundle.manifest.name}: its TensorRT session does not show its device")
    return engines, session


def measure_engines(
    bundles: Sequence[Bundle],
    batches: Sequence[int],
    cpu_backends: Sequence[str],
    ceilings: Ceilings | None,
    rounds: int,
    least_s: float,
    failed: dict[str, str],
) -> tuple[EngineFigures, ...]:
    """Figures of every bundle at every batch; all take turns. What cannot be had is put into `failed`."""
    rows: list[_Row] = []
    with ExitStack() as opened:
        for bundle in bundles:
            try:
                rows += _rows(bundle, batches, cpu_backends, least_s, opened, failed)
            except (SessionError, BundleError) as error:
                failed[f"engine {bundle.manifest.name}"] = str(error)
        take_turns([trial for row in rows for trial in row.trials], rounds)
    return tuple(row.figures(ceilings) for row in rows)


def _rows(
    bundle: Bundle,
    batches: Sequence[int],
    cpu_backends: Sequence[str],
    least_s: float,
    opened: ExitStack,
    failed: dict[str, str],
) -> list[_Row]:
    engines, session = open_gpu(bundle, opened)
    cpu = opened.enter_context(BundleEngines(bundle, SessionOptions(backend=tuple(cpu_backends))))
    beside = min(batches, key=lambda batch: abs(batch - CPU_BATCH))
    rows = []
    for batch in batches:
        tiles = _tiles(bundle, batch)
        try:
            engines.tiles.prepare(tiles.shape)
            engines.tiles.infer(tiles)
            lane = filled_lane(session, tiles)
        except SessionError as error:
            failed[f"engine {bundle.manifest.name}, batch {batch}"] = str(error)
            continue
        rows.append(
            _Row(
                bundle,
                batch,
                Trial(lambda infer=engines.tiles.infer, tiles=tiles: len(tiles) / clock_s(lambda: infer(tiles), least_s)),
                Trial(lambda session=session, lane=lane: _inference_ms(session, lane, least_s)),
                Trial(lambda infer=cpu.tiles.infer, tiles=tiles: len(tiles) / clock_s(lambda: infer(tiles), least_s))
                if batch == beside
                else None,
                cpu.choice.backend if batch == beside else None,
            )
        )
    return rows


def measure_overlap(bundle: Bundle, batch: int, rounds: int, least_s: float) -> OverlapFigures:
    """Upload, inference and download of a batch: each alone, and all of them on two lanes in turn. Raises SessionError."""
    with ExitStack() as opened:
        _, session = open_gpu(bundle, opened)
        device, tiles = session.device, _tiles(bundle, batch)
        filled_lane(session, tiles)
        with device.active():
            lanes = session.lanes(tiles.shape)
            sources = [device.page_locked(lane.input.nbytes) for lane in lanes]
            targets = [device.page_locked(lane.scores.nbytes) for lane in lanes]
            for source in sources:
                source.array[: tiles.nbytes] = tiles.reshape(-1)
            first = lanes[0]

            def upload(index: int) -> None:
                lane = lanes[index]
                device.upload(lane.input, 0, sources[index].array, lane.stream)

            def download(index: int) -> None:
                lane = lanes[index]
                device.download(targets[index].array, lane.scores, 0, lane.stream)

            def together() -> None:
                for index, lane in enumerate(lanes):
                    # the lane's batch before this one is done: its memory is free again
                    lane.stream.synchronize()
                    upload(index)
                    lane.run()
                    download(index)

            trials = [
                Trial(lambda: device_ms(device, first.stream, lambda: upload(0), least_s)),
                Trial(lambda: device_ms(device, first.stream, first.run, least_s)),
                Trial(lambda: device_ms(device, first.stream, lambda: download(0), least_s)),
                Trial(lambda: 1e3 * clock_s(together, least_s) / len(lanes)),
            ]
            take_turns(trials, rounds)
            for lane in lanes:
                lane.stream.synchronize()
            for memory in (*sources, *targets):
                memory.free()
    pieces = [trial.figure.value for trial in trials[:3]]
    could, was = sum(pieces) - max(pieces), sum(pieces) - trials[3].figure.value
    return OverlapFigures(
        bundle=bundle.manifest.name,
        batch=batch,
        upload_ms=trials[0].figure,
        compute_ms=trials[1].figure,
        download_ms=trials[2].figure,
        pieces_ms=sum(pieces),
        together_ms=trials[3].figure,
        hidden=was / could if could else 0.0,
    )


def filled_lane(session: DeviceSession, tiles: np.ndarray) -> Lane:
    """The first lane of a batch, its pixels on the device and an inference behind it. Raises SessionError."""
    with session.device.active():
        lanes = session.lanes(tiles.shape)
        host = session.device.page_locked(tiles.nbytes)
        host.array[:] = tiles.reshape(-1)
        for lane in lanes:
            session.device.upload(lane.input, 0, host.array, lane.stream)
            lane.run()
            lane.stream.synchronize()
        host.free()
    return lanes[0]


def _inference_ms(session: DeviceSession, lane: Lane, least_s: float) -> float:
    with session.device.active():
        return device_ms(session.device, lane.stream, lane.run, least_s)


def _tiles(bundle: Bundle, batch: int) -> np.ndarray:
    """(batch, 1, h, w) uint8 noise: what a GPU draws, hence its clock, depends on the bits."""
    size = bundle.manifest.input
    return np.random.default_rng(batch).integers(64, 192, (batch, 1, size.tile_height, size.tile_width), np.uint8)
