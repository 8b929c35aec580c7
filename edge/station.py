"""What a station file promises, held against the bundles and folders that it names: faults that no single key shows."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import Bundle
from edge.config import FolderSource, StationConfig
from edge.errors import ConfigError
from edge.manifest import Manifest
from edge.tracking.filters import resolve_rules


def require_sound(config: StationConfig, bundle: Bundle, gate: Bundle | None, origin: str) -> None:
    """Raise ConfigError naming every fault that `check_station` finds. origin: the file, or the command, that said so."""
    faults = check_station(config, bundle, gate)
    if faults:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))


def check_station(config: StationConfig, bundle: Bundle | None, gate: Bundle | None) -> list[str]:
    """Every fault that needs the bundles or the disk to be seen, as `key: got ...; expected ...`.

    bundle, gate: None where one could not be opened (or none is configured); what needs it is then left out.
    """
    faults = _missing_files(config)
    if bundle is not None:
        faults += _segmenter_faults(config, bundle.manifest)
    if gate is not None and config.gate is not None:
        faults += _gate_faults(config.gate, gate.manifest)
    if bundle is not None and config.mode == "cascade":
        faults += _tiling_faults(config, bundle.manifest, gate.manifest if gate else None)
    return faults


def grid_tile(gate: Manifest) -> tuple[int, int]:
    """Lines and columns of the strip that one tile of the gate's grid covers."""
    return gate.input.tile_height * gate.input.reduce, gate.input.tile_width * gate.input.reduce


def _missing_files(config: StationConfig) -> list[str]:
    named: list[tuple[str, Path, str]] = []
    if isinstance(config.source, FolderSource):
        paths = config.source.path if isinstance(config.source.path, list) else [config.source.path]
        named += [("source.path", path, "a folder of images, or an image") for path in paths]
    tls = config.sinks.mqtt.tls if config.sinks.mqtt else None
    if tls:
        keys = {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key}
        named += [(f"sinks.mqtt.tls.{key}", path, "a PEM file") for key, path in keys.items() if path is not None]
    return [f"{key}: got {path}, which does not exist; expected {what}" for key, path, what in named if not path.exists()]


def _segmenter_faults(config: StationConfig, manifest: Manifest) -> list[str]:
    if manifest.kind != "segmenter":
        return [f"bundle: got {config.bundle}, a {manifest.kind}; expected a segmenter"]
    faults = []
    if config.mode == "dense":
        if config.chunk_lines % manifest.stride:
            faults.append(f"chunk_lines: got {config.chunk_lines}; expected a multiple of {manifest.stride}, the bundle's stride")
        # a station that does not say gets slabs, which find the same; one that says so wants to know
        if config.dense == "streaming" and "dense" in config.model_fields_set and manifest.streaming is None:
            faults.append(f"dense: got streaming; {config.bundle} cannot stream: expected slabs")
    try:
        resolve_rules(config.filters, manifest.classes, manifest.thresholds, config.scale)
    except ConfigError as error:
        faults += str(error).splitlines()
    return faults


def _gate_faults(named: str, manifest: Manifest) -> list[str]:
    if manifest.kind != "classifier":
        return [f"gate: got {named}, a {manifest.kind}; expected a classifier"]
    return []


def _tiling_faults(config: StationConfig, manifest: Manifest, gate: Manifest | None) -> list[str]:
    faults = []
    halo = manifest.halo if config.tiling.halo is None else config.tiling.halo
    said = f"got {halo}" if config.tiling.halo is not None else f"got none, so the bundle's {halo}"
    if halo % manifest.stride:
        faults.append(f"tiling.halo: {said}; expected a multiple of {manifest.stride}, the bundle's stride")
    if gate is None or gate.kind != "classifier":
        return faults
    tile = grid_tile(gate)
    if min(tile) < 2 * halo:
        faults.append(
            f"tiling.halo: {said}, but a tile of {config.gate} is {tile[0]} x {tile[1]} px, smaller than twice the halo; "
            f"expected at most {min(tile) // 2}"
        )
    if any(side % manifest.stride for side in tile):
        faults.append(
            f"gate: got {config.gate} with tiles of {tile[0]} x {tile[1]} px; "
            f"expected multiples of {manifest.stride}, the stride of {config.bundle}"
        )
    if config.tiling.gate_threshold is None and gate.gate is None:
        faults.append(f"tiling.gate_threshold: got none, and {config.gate} states none; expected a value from 0 to 1")
    return faults
