"""The box itself: its cores, its processor's name, its memory."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """What the processor calls itself."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or "processor"


def memory_mib() -> tuple[int, int] | None:
    """Total and available memory; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    kibibytes = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", text, re.MULTILINE))
    return int(kibibytes["MemTotal"]) // 1024, int(kibibytes["MemAvailable"]) // 1024
