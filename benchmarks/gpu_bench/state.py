"""Clocks, power mode and temperatures as the tools of the box tell them; nothing is set."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu_bench.results import GpuState
from edge.bench.results import now_utc

_ASKED = {
    "driver": "driver_version",
    "performance_state": "pstate",
    "sm_clock_mhz": "clocks.sm",
    "highest_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "highest_memory_clock_mhz": "clocks.max.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "throttled": "clocks_throttle_reasons.active",
}
"""Field -> what nvidia-smi calls it. Source: `nvidia-smi --help-query-gpu`."""
_WORDS = ("driver", "performance_state", "throttled")
_SYSTEM = Path("/sys/class")


def read_state(system: Path = _SYSTEM) -> GpuState:
    """What the box tells now. system: where the kernel shows its classes of devices."""
    smi = _told("nvidia-smi", f"--query-gpu={','.join(_ASKED.values())}", "--format=csv,noheader,nounits", "-i", "0")
    return GpuState(
        at=now_utc(),
        power_mode=_told("nvpmodel", "-q"),
        zones_c=_zones(system),
        frequencies_mhz=_frequencies(system),
        **parse_smi(smi or ""),
    )


def parse_smi(line: str) -> Mapping[str, str | float]:
    """The fields of nvidia-smi's answer; what a GPU does not tell, `[N/A]` on a Jetson, is left out.

    >>> parse_smi("540.3.0, [N/A], 1300, [Not Supported], 2133, , 51.5, [N/A], [N/A], 0x0000000000000000")["sm_clock_mhz"]
    1300.0
    """
    told: dict[str, str | float] = {}
    for field, value in zip(_ASKED, (part.strip() for part in line.split(",")), strict=False):
        if not value or value.startswith("["):
            continue
        try:
            told[field] = value if field in _WORDS else float(value)
        except ValueError:
            continue
    return told


def _told(*command: str) -> str | None:
    """What a tool prints; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return " ".join(asked.stdout.split()) or None if asked.returncode == 0 else None


def _zones(system: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted((system / "thermal").glob("thermal_zone*")):
        try:
            name, millidegrees = (zone / "type").read_text().strip(), int((zone / "temp").read_text())
        except (OSError, ValueError):
            continue
        zones[f"{zone.name.removeprefix('thermal_zone')} {name}"] = millidegrees / 1000
    return zones


def _frequencies(system: Path) -> dict[str, float]:
    """Of a Jetson's GPU and memory, which are devfreq devices, as they are and at most."""
    found = {}
    for device in sorted((system / "devfreq").glob("*")):
        for name in ("cur_freq", "max_freq"):
            try:
                found[f"{device.name} {name}"] = int((device / name).read_text()) / 1e6
            except (OSError, ValueError):
                continue
    return found
