"""What a station file promises, held against the bundles and folders that it names: faults that no single key shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.bundle import Bundle
from edge.config import FolderSource, GenicamCamera, SimulatedSource, StationConfig, StationFile, Tiling, stations_of
from edge.errors import ConfigError
from edge.manifest import Manifest, Threshold
from edge.radiometry import read_flat_field, require_exposure, require_width
from edge.tile_plan import cascade_faults, gate_tile_faults, tile_faults
from edge.tracking.filters import resolve_rules

_DECIDED = Threshold(low=0.0, high=0.0)


def require_sound(config: StationConfig, bundle: Bundle, gate: Bundle | None, origin: str) -> None:
    """Raise ConfigError naming every fault that `check_station` finds. origin: the file, or the command, that said so."""
    faults = check_station(config, bundle, gate)
    if faults:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))


def check_file(file: StationFile, bundle: Bundle | None, gate: Bundle | None) -> list[str]:
    """The same of every camera of a file. What concerns one of several begins with its place, as `cameras.1.`."""
    if not file.cameras:
        return check_station(stations_of(file)[0], bundle, gate)
    found = [check_station(station, bundle, gate) for station in stations_of(file)]
    faults: list[str] = []
    for index, camera in enumerate(file.cameras):
        said = camera.model_dump(exclude_unset=True)
        for fault in found[index]:
            # of what the station says for all of them every camera tells the same
            shared = not _stands_in(said, fault.partition(":")[0]) and all(fault in others for others in found)
            told = fault if shared else f"cameras.{index}.{fault}"
            if told not in faults:
                faults.append(told)
    return faults


def _stands_in(document: Any, key: str) -> bool:
    """Whether a document has something at a key path."""
    for part in key.split("."):
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True


def check_station(config: StationConfig, bundle: Bundle | None, gate: Bundle | None) -> list[str]:
    """Every fault that needs the bundles or the disk to be seen, as `key: got ...; expected ...`.

    bundle, gate: None where one could not be opened (or none is configured); what needs it is then left out.
    """
    faults = _missing_files(config) + _flat_field_faults(config)
    if bundle is not None:
        faults += _bundle_faults(config, bundle.manifest)
    if gate is not None and config.gate is not None:
        faults += _gate_faults(config.gate, gate.manifest)
    if config.mode != "tiles":
        faults += _keys_of_tiles(config)
    if config.mode != "cascade" and config.tiling.band_lines is not None:
        got = f"tiling.band_lines: got {config.tiling.band_lines}, and mode {config.mode}"
        faults.append(f"{got}; expected mode: cascade, or none")
    if bundle is not None and config.mode != "dense":
        check = _cascade_faults if config.mode == "cascade" else _tiles_faults
        faults += check(config, bundle.manifest, gate.manifest if gate else None)
    return faults


def class_thresholds(tiling: Tiling, manifest: Manifest) -> Mapping[str, Threshold]:
    """The bundle's thresholds; 0 for classes without any where a level below a half, or a classifier, has decided.

    The tracker's default of a half would else take back what `pixel_threshold: 0.3` or a gate's 0.01 let through.
    """
    level = manifest.pixel_threshold if tiling.pixel_threshold is None else tiling.pixel_threshold
    if manifest.kind == "segmenter" and (manifest.activation == "softmax" or level >= 0.5):
        return manifest.thresholds
    return {name: manifest.thresholds.get(name, _DECIDED) for name in manifest.classes[1:]}


def _missing_files(config: StationConfig) -> list[str]:
    named: list[tuple[str, Path, str]] = []
    if isinstance(config.source, FolderSource):
        paths = config.source.path if isinstance(config.source.path, list) else [config.source.path]
        named += [("source.path", path, "a folder of images, or an image") for path in paths]
    servers = {"sinks.mqtt": config.sinks.mqtt, "session.kserve": config.session.kserve}
    for where, tls in ((where, server.tls) for where, server in servers.items() if server is not None):
        keys = {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key} if tls else {}
        named += [(f"{where}.tls.{key}", path, "a PEM file") for key, path in keys.items() if path is not None]
    return [f"{key}: got {path}, which does not exist; expected {what}" for key, path, what in named if not path.exists()]


def _flat_field_faults(config: StationConfig) -> list[str]:
    if config.flat_field is None:
        return []
    try:
        flat_field = read_flat_field(config.flat_field)
        if isinstance(config.source, SimulatedSource | GenicamCamera) and config.source.width is not None:
            require_width(flat_field, config.source.width)
        if isinstance(config.source, GenicamCamera) and config.source.exposure_us is not None:
            require_exposure(flat_field, config.source.exposure_us)
    except ConfigError as error:
        return [str(error)]
    return []


def _bundle_faults(config: StationConfig, manifest: Manifest) -> list[str]:
    if manifest.kind != "segmenter" and config.mode != "tiles":
        return [f"bundle: got {config.bundle}, a {manifest.kind}; expected a segmenter, or mode: tiles"]
    faults = _pixel_threshold_faults(config, manifest)
    if config.mode != "tiles":
        faults += [f"mode: got {config.mode}; {config.bundle} {why}: expected mode: tiles" for why in reasons_for_tiles(manifest)]
    if config.mode == "dense":
        if config.chunk_lines != "auto" and config.chunk_lines % manifest.stride:
            faults.append(f"chunk_lines: got {config.chunk_lines}; expected a multiple of {manifest.stride}, the bundle's stride")
        # a station that does not say gets slabs, which find the same; one that says so wants to know
        if config.dense == "streaming" and "dense" in config.model_fields_set and manifest.streaming is None:
            faults.append(f"dense: got streaming; {config.bundle} cannot stream: expected slabs")
    try:
        resolve_rules(config.filters, manifest.classes, class_thresholds(config.tiling, manifest), config.scale)
    except ConfigError as error:
        faults += str(error).splitlines()
    return faults


def _pixel_threshold_faults(config: StationConfig, manifest: Manifest) -> list[str]:
    got = config.tiling.pixel_threshold
    why = None
    if manifest.kind == "classifier":
        why = f"{config.bundle} is a classifier: expected tiling.gate_threshold"
    elif manifest.head == "mask":
        why = f"{config.bundle} answers with classes that its engine has decided on: expected none"
    elif manifest.activation == "softmax":
        why = f"{config.bundle} has one probability for each class and the background, the highest counts: expected none"
    return [] if got is None or why is None else [f"tiling.pixel_threshold: got {got}; {why}"]


def reasons_for_tiles(manifest: Manifest) -> list[str]:
    """Why a bundle runs on tiles alone."""
    reasons = []
    if manifest.preparation:
        reasons.append(f"prepares each tile by itself ({steps_in_words(manifest)})")
    if manifest.input.reduce > 1:
        reasons.append(f"wants tiles averaged over {manifest.input.reduce} x {manifest.input.reduce} px")
    if manifest.whole_tile is not None:
        reasons.append(f"looks at a whole tile at once ({manifest.whole_tile})")
    return reasons


def steps_in_words(manifest: Manifest) -> str:
    """What each tile goes through, as `clahe, resize`."""
    return ", ".join(step.kind for step in manifest.preparation)


def _keys_of_tiles(config: StationConfig) -> list[str]:
    """Keys that are set and that only mode tiles has."""
    tiling = config.tiling
    said = {key: getattr(tiling, key) for key in ("tile_lines", "tile_columns", "step_lines", "step_columns")}
    said["merge"] = tiling.merge if tiling.merge != "core" else None
    return [
        f"tiling.{key}: got {value}, and mode {config.mode}; expected mode: tiles, or none"
        for key, value in said.items()
        if value is not None
    ]


def _gate_faults(named: str, manifest: Manifest) -> list[str]:
    if manifest.kind != "classifier":
        return [f"gate: got {named}, a {manifest.kind}; expected a classifier"]
    return []


def _cascade_faults(config: StationConfig, manifest: Manifest, gate: Manifest | None) -> list[str]:
    faults = []
    halo = manifest.halo if config.tiling.halo is None else config.tiling.halo
    said = f"got {halo}" if config.tiling.halo is not None else f"got none, so the bundle's {halo}"
    if halo % manifest.stride:
        faults.append(f"tiling.halo: {said}; expected a multiple of {manifest.stride}, the bundle's stride")
    if gate is None or gate.kind != "classifier":
        return faults
    if gate.preparation:
        return [
            *faults,
            f"gate: got {config.gate}, which prepares each tile by itself ({steps_in_words(gate)}); "
            "expected one that does not, or mode: tiles",
        ]
    faults += cascade_faults(config.tiling, manifest, gate, config.bundle, str(config.gate))
    return faults + _gate_threshold_faults(config, gate)


def _gate_threshold_faults(config: StationConfig, gate: Manifest) -> list[str]:
    if config.tiling.gate_threshold is None and gate.gate is None:
        return [f"tiling.gate_threshold: got none, and {config.gate} states none; expected a value from 0 to 1"]
    return []


def _tiles_faults(config: StationConfig, manifest: Manifest, gate: Manifest | None) -> list[str]:
    tiling = config.tiling
    faults = tile_faults(tiling, manifest, config.bundle)
    if tiling.merge == "mean" and manifest.head == "mask":
        faults.append(f"tiling.merge: got mean; {config.bundle} answers with classes, not probabilities: expected core or union")
    if tiling.halo is not None:
        faults.append(f"tiling.halo: got {tiling.halo}, and mode tiles; expected none, and steps smaller than the tile")
    if config.gate is None and tiling.gate_threshold is not None and manifest.kind == "segmenter":
        faults.append(f"tiling.gate_threshold: got {tiling.gate_threshold}, and no gate; expected a gate, or none")
    if config.gate is not None and gate is not None and gate.kind == "classifier":
        faults += gate_tile_faults(tiling, manifest, gate, config.gate) + _gate_threshold_faults(config, gate)
    return faults
