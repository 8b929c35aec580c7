"""False alarms of a sensor with faults on clean simulated steel, without and with its flat field; and what correcting costs.

python benchmarks/flat_field.py --lines 4000 --width 1024
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration.flat_field import flat_field_of, measure_flat_field
from calibration.scenes import Scenes
from edge import __version__
from edge.config import SimulatedSource, StationConfig, parse_config
from edge.engines import Engines
from edge.events import DefectClosed, StripFinished
from edge.pipeline import frames_from
from edge.radiometry import Correction, FlatField, Provenance, Validity, write_flat_field
from edge.reporting import instant
from edge.sources import open_source

SENSOR: dict[str, Any] = {
    "dark_grey": 6.0,
    "dsnu_grey": 2.0,
    "prnu_percent": 4.0,
    "full_well_e": 15000.0,
    "read_noise_e": 20.0,
    "fall_off_deg": 22.0,
}
CLEAN = {"rust_every_mm": None, "pit_every_mm": None, "inclusion_every_mm": None, "scratch_every_mm": None}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--bundle", default="steel-unet-int8")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = [measure(args.bundle, args.width, args.lines, seed) for seed in args.seeds]
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(", ".join(f"{key} {value}" for key, value in result.items()))


def measure(bundle: str, width: int, lines: int, seed: int) -> dict[str, Any]:
    """Closed defects of the same clean strip: seen as it is, through the sensor, and corrected."""
    columns = np.random.default_rng(seed).permutation(width)[:4].tolist()
    faults = SENSOR | {"dead_columns": sorted(columns[:2]), "hot_columns": sorted(columns[2:])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flat-field.json"
        faulty = station(bundle, width, lines, seed, {"sensor": faults})
        scenes = Scenes(faulty, 1000)
        measured = measure_flat_field(scenes.take("dark"), scenes.take("bright"))
        provenance = Provenance(
            camera="simulated",
            made_at=instant(time.time_ns()),
            version=__version__,
            dark_lines=1000,
            bright_lines=1000,
            level=measured.level,
            noise_grey=measured.noise_grey,
        )
        field = flat_field_of(measured, provenance, Validity())
        write_flat_field(path, field, "--out")
        return {
            "seed": seed,
            "no sensor": found(station(bundle, width, lines, seed, {})),
            "sensor": found(faulty),
            "corrected": found(faulty.model_copy(update={"flat_field": path})),
            "ms/MPix": round(cost_ms(field), 2),
        }


def station(bundle: str, width: int, lines: int, seed: int, source: dict[str, Any]) -> StationConfig:
    """A station over a clean strip; strip edges are left out, as at any simulated one."""
    document: dict[str, Any] = {
        "source": {"kind": "simulated", "width": width, "lines": lines, "seed": seed, "defects": CLEAN, **source},
        "bundle": bundle,
        "session": {"threads": 1},
        "filters": {"strip_edges": {"background_below": 40}},
    }
    return parse_config(document, "benchmark")


def found(config: StationConfig) -> dict[str, Any]:
    """Closed defects by class, and their share of the pixels."""
    counts: Counter[str] = Counter()
    share = 0.0
    assert isinstance(config.source, SimulatedSource)
    with Engines(config, "benchmark") as engines, open_source(config.source, config.scale) as source:
        pipeline = engines.pipeline(source.width, "clean")
        for findings in frames_from(source.frames(), pipeline):
            for event in findings.events:
                if isinstance(event, DefectClosed) and event.data.ending != "merged":
                    counts[event.data.class_name] += 1
                if isinstance(event, StripFinished):
                    share = event.data.defective_area_fraction
    return {"defects": sum(counts.values()), **dict(sorted(counts.items())), "area": f"{share:.3%}"}


def cost_ms(field: FlatField, repeats: int = 15) -> float:
    """Milliseconds of one thread for a million pixels, the fastest of some repeats over portions of 64 lines."""
    cv2.setNumThreads(1)
    raw = np.random.default_rng(0).integers(0, 256, (1024, field.width), np.uint8)
    corrected = Correction(field)
    seconds = []
    for _ in range(repeats):
        begun = time.thread_time()
        for first in range(0, len(raw), 64):
            corrected(raw[first : first + 64])
        seconds.append(time.thread_time() - begun)
    return min(seconds) * 1e3 / (raw.size / 1e6)


if __name__ == "__main__":
    main()
