"""The engines of a station: bundles opened, verified, loaded, and asked their golden tiles before the first line."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from types import TracebackType

from edge.bundle import Bundle, check_golden, open_bundle
from edge.config import StationConfig
from edge.pipeline import Pipeline
from edge.reporting import StripContext
from edge.segmenters import Segmenter
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.station import require_sound
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
}


def config_hash(config: StationConfig) -> str:
    """sha256 of what decides over findings; how lines are cut and batched, and where events go, is left out, secrets too."""
    return hashlib.sha256(config.model_dump_json(exclude={**_NO_MATTER, "tiling": {"batch"}}).encode()).hexdigest()


def dense_halo(bundle: Bundle) -> int:
    """Margin of dense inference: the receptive radius, rounded up to the stride."""
    manifest = bundle.manifest
    return -(-manifest.radius // manifest.stride) * manifest.stride


class Engines:
    """Verified engines of one station. A context manager: opened once, closed when the daemon stops.

    origin: names the station file, or the command, in errors.
    Raises BundleError, ConfigError, SessionError.
    """

    def __init__(self, config: StationConfig, origin: str) -> None:
        self._config = config
        self.bundle = open_bundle(config.bundle)
        self.gate = open_bundle(config.gate) if config.mode == "cascade" and config.gate else None
        require_sound(config, self.bundle, self.gate, origin)
        self._opened = ExitStack()

    @property
    def sha256(self) -> str:
        """Of all engines together."""
        return hashlib.sha256("".join(bundle.sha256 for bundle in (self.bundle, self.gate) if bundle).encode()).hexdigest()

    def __enter__(self) -> Engines:
        with ExitStack() as opening:
            self._tiles = opening.enter_context(OrtSession(self.bundle.model_path, self._config.session.threads))
            check_golden(self.bundle, self._tiles)
            if self.gate:
                self._gate_tiles = opening.enter_context(OrtSession(self.gate.model_path, self._config.session.threads))
                check_golden(self.gate, self._gate_tiles)
            self._opened = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def segmenter(self, width: int) -> Segmenter:
        """The station's segmenter for strips of `width` columns."""
        config, manifest = self._config, self.bundle.manifest
        if self.gate is not None:
            return self._cascade(self.gate, width)
        halo = dense_halo(self.bundle)
        if config.dense == "streaming" and self.bundle.stream_path and manifest.streaming:
            columns = padded_columns(width, halo, manifest.stride)
            stream = OrtStreamingSession(
                self.bundle.stream_path, manifest.streaming, columns, config.chunk_lines, config.session.threads
            )
            session = self._opened.enter_context(stream)
            return StreamingSegmenter(session, width=width, halo=halo, stride=manifest.stride, activation=manifest.activation)
        return SlabSegmenter(
            self._tiles,
            width=width,
            chunk_lines=config.chunk_lines,
            halo=halo,
            stride=manifest.stride,
            activation=manifest.activation,
        )

    def _cascade(self, gate: Bundle, width: int) -> CascadeSegmenter:
        config, manifest = self._config, self.bundle.manifest
        threshold = config.tiling.gate_threshold
        if threshold is None:
            # `require_sound` has seen that the manifest states one
            threshold = gate.manifest.gate.score if gate.manifest.gate else 0.0
        return CascadeSegmenter(
            self._gate_tiles,
            self._tiles,
            width=width,
            gate_input=gate.manifest.input,
            gate_activation=gate.manifest.activation,
            threshold=threshold,
            halo=manifest.halo if config.tiling.halo is None else config.tiling.halo,
            stride=manifest.stride,
            activation=manifest.activation,
            batch=config.tiling.batch,
        )

    def pipeline(self, width: int, strip_id: str) -> Pipeline:
        """A new strip's pipeline."""
        config, manifest = self._config, self.bundle.manifest
        rules = resolve_rules(config.filters, manifest.classes, manifest.thresholds, config.scale)
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
            config_hash=config_hash(config),
        )
        return Pipeline(self.segmenter(width), tracker, context, config.events.crop_max_px if config.events.crop else None)
