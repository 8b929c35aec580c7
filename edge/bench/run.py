"""One bench run: its parts one after the other, what each has found so far, and an end at any time."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

from edge import __version__, machine
from edge.bench.chunks import measure_chunks
from edge.bench.engines import measure_engines
from edge.bench.latency import measure_latency
from edge.bench.memory import can_measure_memory, measure_memory
from edge.bench.overload import measure_overload
from edge.bench.pipeline import measure_pipeline
from edge.bench.plan import LATENCY_SHARE, Plan
from edge.bench.progress import Progress
from edge.bench.results import Machine, Part, Results, now_utc
from edge.bench.verdict import judge
from edge.errors import RustEdgeError

_LIBRARIES = ("onnxruntime", "openvino", "numpy", "opencv-python-headless")


def begin_results(plan: Plan, command: str) -> Results:
    """The results before anything was measured."""
    memory = machine.memory_mib()
    return Results(
        began_at=now_utc(),
        seconds=0.0,
        command=command,
        versions=_versions(),
        machine=Machine(
            processor=machine.processor(),
            architecture=platform.machine(),
            system=platform.platform(),
            cores=machine.cores(),
            memory_mib=memory[0] if memory else None,
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        ),
        station=plan.station,
    )


def measure(plan: Plan, parts: Sequence[Part], command: str, progress: Progress) -> Results:
    """All parts that apply; an interrupt ends the run with what was found until then, said to be incomplete.

    A part that fails is told in `failed`, and the next one begins.
    """
    results, began_s = begin_results(plan, command), time.monotonic()
    for part in parts:
        progress.show(part)
        try:
            for found in _measure_part(plan, part, results):
                results = results.model_copy(update=found)
                progress.show(part)
        except RustEdgeError as error:
            results = _without(results, part, str(error))
        except KeyboardInterrupt:
            results = results.model_copy(update={"complete": False, "interrupted_in": part})
            break
    truths = tuple(plan.strip(share).truth for share in _strips_used(results))
    results = results.model_copy(update={"seconds": time.monotonic() - began_s, "strips": truths})
    return results.model_copy(update={"verdict": tuple(judge(results))})


def reason_against(plan: Plan, part: Part) -> str | None:
    """Why a part does not apply to this station or this box; None where it does."""
    if part in ("latency", "overload") and importlib.util.find_spec("iotcore") is None:
        return "the embedded broker is not installed; expected the extra: pip install 'rust-edge[demo]'"
    if part == "memory" and not can_measure_memory():
        return "this system does not tell a process its memory in /proc"
    if part == "chunks" and plan.config.mode == "tiles":
        return "mode tiles has no chunks; expected mode dense or cascade"
    return None


def _measure_part(plan: Plan, part: Part, results: Results) -> Iterator[dict[str, Any]]:
    """What is known after each round, as fields of the results."""
    reason = reason_against(plan, part)
    if reason is not None:
        yield {"not_measured": {**results.not_measured, part: reason}}
    elif part == "engines":
        yield from ({"engines": found} for found in measure_engines(plan, machine.cores()))
    elif part == "pipeline":
        yield from ({"pipeline": found} for found in measure_pipeline(plan))
    elif part == "latency":
        yield from ({"latency": found} for found in measure_latency(plan))
    elif part == "overload":
        capacity = results.latency.capacity_lines_per_s.value if results.latency else None
        yield from ({"overload": found} for found in measure_overload(plan, capacity))
    elif part == "memory":
        yield from ({"memory": found} for found in measure_memory(plan))
    else:
        yield from ({"chunks": found} for found in measure_chunks(plan))


def _without(results: Results, part: Part, reason: str) -> Results:
    """What a part had found before it failed is not kept: it would read as if it were all."""
    return results.model_copy(update={part: None, "failed": {**results.failed, part: reason}})


def _strips_used(results: Results) -> Sequence[float]:
    """Clean shares of the strips that figures were measured on; each was made by then. Memory has a short one of its own."""
    shares = {row.wanted_clean_share for row in results.pipeline or ()}
    if any((results.engines, results.latency, results.overload, results.chunks)):
        shares.add(LATENCY_SHARE)
    return sorted(shares)


def _versions() -> dict[str, str]:
    versions = {"rust-edge": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
