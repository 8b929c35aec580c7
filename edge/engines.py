"""The engines of a station: bundles opened, verified, loaded, and asked their golden tiles before the first line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

from edge.backends import BundleEngines, Choice
from edge.box import BoxKey, chunk_lines_for
from edge.bundle import Bundle, open_bundle
from edge.config import BackendName, SessionOptions, StationConfig
from edge.fallback import StandIn
from edge.machine import cores
from edge.manifest import Manifest
from edge.pipeline import Pipeline, as_delivered
from edge.preparation import Preparation
from edge.radiometry import Correction, FlatField, read_flat_field, require_width
from edge.readers import ReaderChoice, Readers
from edge.reporting import StripContext
from edge.scores import Reading
from edge.segmenters import Segmenter
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.gates import Gate
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.segmenters.streaming_gate import StreamingGate, gate_columns
from edge.segmenters.tile_row_gate import TileRowGate
from edge.segmenters.tiles import TileEngine, TileGate, TileSegmenter
from edge.sessions import Session, StreamingSession
from edge.sessions.on_device import DeviceSession, DeviceStream
from edge.station import class_thresholds, require_sound
from edge.tile_plan import band_lines, gate_chunk_lines, tile_axes
from edge.topics import topics_of
from edge.tracking.filters import resolve_rules
from edge.tracking.tracker import DefectTracker
from edge.window import padded_columns

_NO_MATTER = {
    "source": True,
    "sinks": True,
    "outbox": True,
    "session": True,
    "queue_frames": True,
    "chunk_lines": True,
    "dense": True,
    "flat_field": True,
}


def config_hash(config: StationConfig, flat_field: FlatField | None = None) -> str:
    """sha256 of what decides over findings; how lines are cut and batched, and where events go, is left out, secrets too.

    flat_field: the station's; what is in it counts, not where it lies.
    """
    told = config.model_dump_json(exclude={**_NO_MATTER, "tiling": {"batch"}})
    return hashlib.sha256((told + (flat_field.sha256 if flat_field else "")).encode()).hexdigest()


def dense_halo(bundle: Bundle) -> int:
    """Margin of dense inference: the receptive radius, rounded up to the stride."""
    manifest = bundle.manifest
    return -(-manifest.radius // manifest.stride) * manifest.stride


def reading_of(manifest: Manifest, level: float | None = None, defective_from: float | None = None) -> Reading:
    """What a bundle's answers mean.

    level: of a sigmoid segmenter, None: the bundle's. defective_from: of a classifier, None: the bundle's gate threshold,
    or where it states none the most probable class.
    """
    if manifest.kind == "classifier":
        if defective_from is None and manifest.gate is not None:
            defective_from = manifest.gate.score
        return Reading(manifest.activation, manifest.head, defective_from=defective_from)
    return Reading(manifest.activation, manifest.head, manifest.pixel_threshold if level is None else level)


def channels_of(manifest: Manifest) -> int:
    """Channels of a bundle's logits or probabilities: a sigmoid has none for class 0."""
    return len(manifest.classes) - (manifest.activation == "sigmoid")


def tile_engine(session: Session, manifest: Manifest, batch: int) -> TileEngine:
    """A bundle's engine behind the preparation of its tiles, ready for as many of them at once as it is asked."""
    preparation = Preparation(manifest.preparation, manifest.input)
    engine = TileEngine(session, preparation, batch)
    session.prepare((batch, 1, *preparation.engine_size))
    return engine


class EngineSet(Protocol):
    """A bundle's engines, as a station asks them: `BundleEngines`, or a camera's share of them. A context manager."""

    @property
    def choice(self) -> Choice:
        """What the engines run on now."""
        ...

    @property
    def tiles(self) -> Session:
        """The engine for tiles."""
        ...

    def stream(self, width: int, chunk_lines: int) -> StreamingSession:
        """The streaming engine at one size; closed with the others."""
        ...

    def on_device(self, session: Session) -> DeviceSession | None:
        """The part of one of these sessions that computes on a GPU now; None: it does not, or others ask it too."""
        ...

    def stream_on_device(self, session: StreamingSession) -> DeviceStream | None:
        """The same of a streaming one."""
        ...

    def substitutes(self) -> Callable[[], BackendName | None]:
        """A question for who reads answers: which backend stood in for the first choice since it was last asked, if one did."""
        ...

    def __enter__(self) -> EngineSet: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Engines:
    """Verified engines of one station. A context manager: opened once, closed when the daemon stops.

    origin: names the station file, or the command, in errors. opened_by: makes a bundle's engines; a bench listens in there, and
    several cameras share them. bundles: opens a bundle by what the station calls it. config_hash: as the function of that name,
    flat field and all.
    Raises BundleError, ConfigError, SessionError.
    """

    def __init__(
        self,
        config: StationConfig,
        origin: str,
        opened_by: Callable[[Bundle, SessionOptions], EngineSet] = BundleEngines,
        bundles: Callable[[str], Bundle] = open_bundle,
    ) -> None:
        self._config, self._open = config, opened_by
        self.bundle = bundles(config.bundle)
        self.gate = bundles(config.gate) if config.mode != "dense" and config.gate else None
        require_sound(config, self.bundle, self.gate, origin)
        self._flat_field = read_flat_field(config.flat_field) if config.flat_field else None
        self.config_hash = config_hash(config, self._flat_field)
        self._readers = ReaderChoice()
        self._opened = ExitStack()

    @property
    def sha256(self) -> str:
        """Of all engines together."""
        return hashlib.sha256("".join(bundle.sha256 for bundle in (self.bundle, self.gate) if bundle).encode()).hexdigest()

    def __enter__(self) -> Engines:
        with ExitStack() as opening:
            self._engines = opening.enter_context(self._open(self.bundle, self._config.session))
            if self.gate:
                self._gate_engines = opening.enter_context(self._open(self.gate, self._config.session.of_gate))
            opening.callback(self._readers.close)
            self._opened = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the bundle runs on, and the gate where there is one."""
        return (self._engines.choice, self._gate_engines.choice) if self.gate else (self._engines.choice,)

    def segmenter(self, width: int) -> Segmenter:
        """The station's segmenter for strips of `width` columns."""
        config, manifest = self._config, self.bundle.manifest
        if config.mode == "tiles":
            return self._tile_segmenter(width)
        if self.gate is not None:
            return self._cascade(self.gate, width)
        halo, stride, reading = dense_halo(self.bundle), manifest.stride, reading_of(manifest, config.tiling.pixel_threshold)
        chunk_lines, engines = self.chunk_lines(width), self._engines
        if config.dense == "streaming" and self.bundle.stream_path and manifest.streaming:
            stream = engines.stream(padded_columns(width, halo, stride), chunk_lines)
            return self._readers.segmenter(
                engines.stream_on_device(stream),
                lambda readers: StreamingSegmenter(
                    stream, width=width, halo=halo, stride=stride, reading=reading, chunks=readers.chunks(engines, stream)
                ),
            )
        tiles = engines.tiles
        return self._readers.segmenter(
            engines.on_device(tiles),
            lambda readers: SlabSegmenter(
                tiles,
                width=width,
                chunk_lines=chunk_lines,
                halo=halo,
                stride=stride,
                reading=reading,
                crops=readers.crops(engines, tiles),
            ),
        )

    def _cascade(self, gate: Bundle, width: int) -> CascadeSegmenter:
        config, manifest, tiles = self._config, self.bundle.manifest, self._engines.tiles
        make_gate = self._gate_of_cascade(gate, width)
        return self._readers.segmenter(
            self._engines.on_device(tiles),
            lambda readers: CascadeSegmenter(
                make_gate(readers),
                tiles,
                width=width,
                threshold=self._gate_threshold(gate),
                band_lines=band_lines(config.tiling, gate.manifest),
                halo=manifest.halo if config.tiling.halo is None else config.tiling.halo,
                stride=manifest.stride,
                reading=reading_of(manifest, config.tiling.pixel_threshold),
                batch=config.tiling.batch,
                crops=readers.crops(self._engines, tiles),
            ),
        )

    def _gate_of_cascade(self, gate: Bundle, width: int) -> Callable[[Readers], Gate]:
        manifest, engines = gate.manifest, self._gate_engines
        size, activation, head = manifest.input, manifest.activation, manifest.head
        if manifest.cell is None:
            tiles = engines.tiles
            return lambda readers: TileRowGate(
                tiles, width=width, size=size, activation=activation, head=head, rows=readers.tile_rows(engines, tiles)
            )
        cell, halo = manifest.cell, dense_halo(gate)
        chunk = gate_chunk_lines(self.chunk_lines(width), band_lines(self._config.tiling, manifest), manifest)
        stream = engines.stream(gate_columns(width, size.reduce, halo, manifest.stride), chunk)
        return lambda readers: StreamingGate(
            stream,
            width=width,
            reduce=size.reduce,
            cell=cell,
            halo=halo,
            stride=manifest.stride,
            activation=activation,
            head=head,
            maps=readers.maps(engines, stream),
        )

    def _tile_segmenter(self, width: int) -> TileSegmenter:
        tiling, manifest = self._config.tiling, self.bundle.manifest
        gate = None
        if self.gate is not None:
            asked = tile_engine(self._gate_engines.tiles, self.gate.manifest, tiling.batch)
            gate = TileGate(asked, self.gate.manifest.activation, self.gate.manifest.head, self._gate_threshold(self.gate))
        lines, columns = tile_axes(tiling, manifest)
        return TileSegmenter(
            tile_engine(self._engines.tiles, manifest, tiling.batch),
            # where there is a gate the threshold of the file is the gate's
            reading_of(manifest, tiling.pixel_threshold, tiling.gate_threshold if gate is None else None),
            channels_of(manifest),
            width=width,
            lines=lines,
            columns=columns,
            merge=tiling.merge,
            gate=gate,
        )

    def chunk_lines(self, width: int) -> int:
        """Of the dense path; with `auto` what was measured on this box for strips of `width` columns."""
        return chunk_lines_for(self._config.chunk_lines, self.box_key(width))

    def box_key(self, width: int) -> BoxKey:
        """What a chunk height of this station is kept by."""
        choice = self._engines.choice
        return BoxKey(self.bundle.sha256, choice.backend, width, choice.threads or cores())

    def _gate_threshold(self, gate: Bundle) -> float:
        if self._config.tiling.gate_threshold is not None:
            return self._config.tiling.gate_threshold
        # `require_sound` has seen that the manifest states one
        return gate.manifest.gate.score if gate.manifest.gate else 0.0

    def pipeline(self, width: int, strip_id: str) -> Pipeline:
        """A new strip's pipeline. Raises ConfigError where the station's flat field is of another width."""
        if self._flat_field is not None:
            require_width(self._flat_field, width)
        corrected = Correction(self._flat_field) if self._flat_field else as_delivered
        config, manifest = self._config, self.bundle.manifest
        rules = resolve_rules(config.filters, manifest.classes, class_thresholds(config.tiling, manifest), config.scale)
        tracker = DefectTracker(
            rules,
            config.scale,
            manifest.classes,
            strip_id,
            update_every_mm=config.events.update_every_mm,
            max_rle_runs=config.events.max_rle_runs,
        )
        context = StripContext(
            source=topics_of(config).source,
            strip_id=strip_id,
            width=width,
            scale=config.scale,
            mode=config.mode,
            bundle=manifest.name,
            engine_hash=self.bundle.sha256,
            gate=self.gate.manifest.name if self.gate else None,
            gate_hash=self.gate.sha256 if self.gate else None,
            config_hash=self.config_hash,
        )
        crop_max_px = config.events.crop_max_px if config.events.crop else None
        return Pipeline(self.segmenter(width), tracker, context, crop_max_px, self._stand_in(), corrected)

    def _stand_in(self) -> StandIn:
        """Who stood in for the bundle's first choice of a backend, else for the gate's."""
        asked = [engines.substitutes() for engines in ((self._engines, self._gate_engines) if self.gate else (self._engines,))]

        def since() -> str | None:
            answers = [one() for one in asked]
            return next((name for name in answers if name is not None), None)

        return since
