"""A signal that comes after engines were closed ends a process as it should."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'rust-edge[openvino]'")

SESSIONS_COME_AND_GO = """
import gc, os, signal, time
import numpy as np
from edge.bundle import open_bundle
from edge.sessions.ov import OvSession

gate = open_bundle("steel-gate-int8")
tile = np.zeros((1, 1, gate.manifest.input.tile_height, gate.manifest.input.tile_width), np.uint8)
first, second = OvSession(gate.model_path, threads=1), OvSession(gate.model_path, threads=1)
for session in (first, second):
    session.infer(tile)
del session, first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_two_sessions_were_closed_in_the_order_of_their_opening_is_an_interrupt() -> None:
    done = subprocess.run([sys.executable, "-c", SESSIONS_COME_AND_GO], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
