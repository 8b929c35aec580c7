"""Fixtures of the tests that want a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from stand import Opener, Stand, chosen, more_bundles, seams_there

from edge.cuda.device import CudaDevice

if TYPE_CHECKING:
    from edge.bundle import Bundle


def pytest_configure(config: pytest.Config) -> None:
    # pytest-timeout's, which a machine with a GPU may lack
    config.addinivalue_line("markers", "timeout(seconds): a test's own limit")


@pytest.fixture(scope="session")
def stand() -> Stand:
    return chosen()


@pytest.fixture(scope="session")
def opener(request: pytest.FixtureRequest, stand: Stand) -> Opener:
    """Opens the device, through pycuda and through the driver alone."""
    return stand.opener(request.param)


@pytest.fixture
def device(opener: Opener) -> Iterator[CudaDevice]:
    """The device, this thread's until the test's end."""
    with opener() as opened, opened.active():
        yield opened


@pytest.fixture(scope="session")
def tensorrt(stand: Stand) -> Iterator[None]:
    """Backend tensorrt runs."""
    with stand.tensorrt() as missing:
        if missing:
            pytest.skip(missing)
        yield


def _bundle_names() -> list[str]:
    from edge.bundle import shipped_bundles

    # on a stand-in, whose arithmetic is ONNX Runtime's, a small bundle shows as much as all of them
    return [*shipped_bundles(), *more_bundles()] if chosen().real else ["steel-gate-int8"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opener" in metafunc.fixturenames:
        # those that there are: what another one lacks is told once, not by every test
        metafunc.parametrize("opener", seams_there(chosen()), indirect=True, scope="session")
    if "bundles" in metafunc.fixturenames:
        precisions = ["fp32", "int8"] if chosen().real else ["fp32"]
        metafunc.parametrize("bundles", precisions, indirect=True, scope="module")
    if "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", _bundle_names(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A shipped bundle, or one that the environment names."""
    from edge.bundle import open_bundle

    return open_bundle(request.param)
