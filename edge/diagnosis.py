"""What this box has and lacks, one finding a part; measured, not assumed."""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge import __version__, machine
from edge.bundle import open_bundle, shipped_bundles
from edge.config import Mqtt, SessionOptions, SimulatedDefects, parse_config
from edge.errors import RustEdgeError, SessionError

DISTRIBUTION = "rust-edge"
_MEASURED_WIDTH, _PORTION_LINES = 4096, 64
_AS_SHIPPED = SessionOptions()


class State(enum.Enum):
    """How a part is."""

    OK = "ok"
    ABSENT = "absent"  # not there, and not needed for what is installed
    FAULT = "fault"  # not there or not working, though needed


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of the box. figures: what was measured or counted, by name with its unit."""

    part: str
    state: State
    told: str
    figures: dict[str, float]


def software() -> Iterator[Finding]:
    """rust-edge, Python, the inference backends, and the extras with what each of them lacks."""
    yield _ok("rust-edge", f"{__version__} on Python {platform.python_version()} ({sys.executable})")
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    yield _ok("onnxruntime", f"{onnxruntime.__version__}, providers {providers}")
    yield _openvino()
    yield tensorrt()
    for extra, lacking in missing_of_extras().items():
        if lacking:
            told = f"lacks {', '.join(lacking)}: pip install '{DISTRIBUTION}[{extra}]'"
            yield Finding(f"extra {extra}", State.ABSENT, told, {})
        else:
            yield _ok(f"extra {extra}", "installed")


def missing_of_extras() -> dict[str, list[str]]:
    """Extra of this distribution -> the distributions that it asks for and that are not installed."""
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    wanted: dict[str, list[str]] = {extra: [] for extra in metadata.get_all("Provides-Extra") or []}
    for requirement in metadata.get_all("Requires-Dist") or []:
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and name and extra[1] in wanted and not _installed(name[0]):
            wanted[extra[1]].append(name[0])
    return wanted


def hardware() -> Iterator[Finding]:
    """Cores, memory, GPU."""
    cores = machine.cores()
    yield Finding("cores", State.OK, f"{cores} x {machine.processor()} ({platform.machine()})", {"cores": cores})
    memory = machine.memory_mib()
    if memory:
        total, available = memory
        figures = {"total_mib": float(total), "available_mib": float(available)}
        yield Finding("memory", State.OK, f"{available} MiB available of {total} MiB", figures)
    yield _gpu()


def disk(folder: Path) -> Finding:
    """Room for the outbox in a folder, which need not exist yet."""
    folder = folder.resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**20
    told = f"{free:.0f} MiB free for the outbox in {folder}"
    if not os.access(there, os.W_OK):
        return Finding("disk", State.FAULT, f"{there} cannot be written; expected room for the outbox: another outbox.path", {})
    return Finding("disk", State.OK, told, {"free_mib": round(free)})


def broker(host: str, port: int, timeout_s: float = 5.0) -> Finding:
    """Whether an MQTT broker answers there, and how: connects as nobody, with clean start."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    where = f"{host}:{port}"
    answers: list[str] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda client, data, flags, reason, properties: answers.append(str(reason))
    client.connect_timeout = timeout_s
    begun = time.monotonic()
    try:
        client.connect(host, port)
        while not answers and time.monotonic() - begun < timeout_s and client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
            pass
        milliseconds = (time.monotonic() - begun) * 1000
        client.disconnect()
    except (OSError, ValueError) as error:
        return Finding("broker", State.ABSENT, f"{where} is not reachable ({error})", {})
    if not answers:
        return Finding("broker", State.ABSENT, f"{where} answers, but not as an MQTT broker without TLS does", {})
    return Finding("broker", State.OK, f"{where} answers: {answers[0]}", {"milliseconds": round(milliseconds, 1)})


def bundles(options: SessionOptions = _AS_SHIPPED) -> Iterator[Finding]:
    """Every shipped bundle: its files' hashes, and its golden tiles on this box, on the backend that a station takes."""
    from edge.backends import BundleEngines

    names = shipped_bundles()
    if not names:
        yield Finding("bundles", State.FAULT, "none is installed; expected shipped ones: install rust-edge again", {})
    for name in names:
        try:
            with BundleEngines(open_bundle(name), options) as engines:
                answer, choice = engines.golden, engines.choice
        except RustEdgeError as error:
            yield Finding(f"bundle {name}", State.FAULT, str(error), {})
            continue
        told = f"golden tiles answered as verified (largest difference {answer.max_difference:.2%} of the spread) by {choice}"
        yield Finding(f"bundle {name}", State.OK, told, {"max_difference": answer.max_difference})


def dense_speed(bundle: str, seconds: float, options: SessionOptions = _AS_SHIPPED) -> Finding:
    """How fast a strip of 4096 px this box inspects densely with a bundle, measured for about so many seconds.

    bundle: a shipped name or a path. options: how a station would run it. Raises RustEdgeError where its engine cannot be used.
    """
    from edge.bench.dense_rate import measure_lines_per_s
    from edge.engines import Engines
    from edge.sources.steel_strip import SteelStrip

    station = parse_config({"source": {"kind": "simulated"}, "bundle": bundle}, "rust-edge doctor")
    config = station.model_copy(update={"session": options})
    lines = SteelStrip(_MEASURED_WIDTH, 1, SimulatedDefects(), config.scale).lines(0, 8 * _PORTION_LINES)
    with Engines(config, "rust-edge doctor") as engines:
        rate = measure_lines_per_s(engines.segmenter(_MEASURED_WIDTH), lines, _PORTION_LINES, seconds)
        name, choice = engines.bundle.manifest.name, engines.choices[0]
    megapixels = rate * _MEASURED_WIDTH / 1e6
    told = f"this box carries {_MEASURED_WIDTH} px at {rate:.0f} lines/s dense ({megapixels:.2f} MPix/s, {name} on {choice})"
    return Finding("speed", State.OK, told, {"lines_per_s": round(rate, 1), "megapixels_per_s": round(megapixels, 3)})


def broker_of(mqtt: Mqtt | None) -> tuple[str, int]:
    """Address of a station's broker; the default one for a station without."""
    where = mqtt or Mqtt()
    return where.host, where.port


def _openvino() -> Finding:
    try:
        from edge.sessions.ov import device, version
    except SessionError as error:
        there = importlib.util.find_spec("openvino") is not None
        return Finding("openvino", State.ABSENT, str(error) if there else "not installed", {})
    return _ok("openvino", f"{version()} on {device()}")


def tensorrt() -> Finding:
    """What the engines of a GPU need: TensorRT, pycuda, a driver with a GPU; all that is missing at once."""
    from edge.sessions.trt.library import find_tensorrt, missing_parts, require_supported, version_of

    trt, missing = find_tensorrt(), missing_parts()
    there = [] if isinstance(trt, str) else [f"TensorRT {version_of(trt)}"]
    if "no pycuda" not in missing:
        there.append(f"pycuda {importlib.metadata.version('pycuda')}")
    if isinstance(trt, str) and trt not in missing:
        missing.insert(0, trt)
    if missing or isinstance(trt, str):
        beside = f"; there is {', '.join(there)}" if there else ""
        told = f"{', '.join(missing)}{beside}: engines run on the CPU"
        return Finding("tensorrt", State.ABSENT, told, {})
    from edge.cuda.open_devices import OPEN_DEVICES

    try:
        require_supported(trt)
        with OPEN_DEVICES.lend(0) as device:
            gpu = device.properties
    except SessionError as error:
        return Finding("tensorrt", State.FAULT, f"{', '.join(there)}, and they do not run: {error}", {})
    memory = "shared with the CPU" if gpu.integrated else "of its own"
    told = f"{', '.join(there)} on {gpu.name} (compute capability {gpu.compute}, driver for CUDA {gpu.driver}, memory {memory})"
    return Finding("tensorrt", State.OK, told, {"memory_mib": float(gpu.memory_bytes >> 20)})


def _ok(part: str, told: str) -> Finding:
    return Finding(part, State.OK, told, {})


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gpu() -> Finding:
    tegra = Path("/etc/nv_tegra_release")
    if tegra.exists():
        return _ok("gpu", f"Jetson: {tegra.read_text().splitlines()[0].lstrip('# ')}")
    listing = shutil.which("nvidia-smi")
    if listing is None:
        return Finding("gpu", State.ABSENT, "no NVIDIA driver (nvidia-smi) and no Jetson: engines run on the CPU", {})
    try:
        query = [listing, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("gpu", State.ABSENT, f"nvidia-smi does not answer ({error})", {})
    return _ok("gpu", found.stdout.strip().replace("\n", "; "))
