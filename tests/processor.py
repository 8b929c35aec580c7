"""What tests ask of the processor that they run on."""

from __future__ import annotations

from pathlib import Path

import pytest

_CPUINFO = Path("/proc/cpuinfo")


def require_whole_integer_products() -> None:
    """Skip where two neighbouring products of 8-bit integers are added with 16 bits: OpenVINO halves signed engines' weights."""
    flags = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    if "avx" in flags and "vnni" not in flags:
        pytest.skip("the processor has no VNNI: signed integers are exact in ONNX Runtime alone")
