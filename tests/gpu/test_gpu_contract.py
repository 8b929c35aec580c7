"""The contract of every CudaDevice, held against the device that needs no pycuda; tests/contracts holds pycuda's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand as stands

stands.skip_without_gpu("plain")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "contracts"))
import scaling  # noqa: E402
import test_cuda_device as contract  # noqa: E402
from test_cuda_device import *  # noqa: E402, F403
from test_cuda_device import Made  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture
def kind(stand: stands.Stand, monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        opener = stand.opener("plain")
    except stands.Absent as absent:
        pytest.skip(str(absent))
    monkeypatch.setattr(contract, "opened", lambda kind: opener())
    return "plain"


@pytest.fixture
def made(kind: str, stand: stands.Stand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    module = scaling.PTX if stand.real else scaling.host_module(tmp_path_factory.mktemp("kernel"))
    with contract.opened(kind) as opened, opened.active():
        yield Made(opened, module)


def test_the_gpu_of_this_box_is_held_to_all_of_it_too() -> None:
    """pycuda's, where tests/contracts runs; here in its place nothing is left out."""
