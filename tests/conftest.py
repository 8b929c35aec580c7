"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Among several workers a file stays on one; so do the seed systems, whose exports are shared and take longest."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "seeds" if "/seeds/" in file else file

    return Files(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development images beside the project; tests that need them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no development images at ../shared/data")
    return folder


@pytest.fixture(scope="session", autouse=True)
def interrupts_as_in_a_terminal() -> None:
    """Run in a shell's background interrupts are ignored, under nohup hang-ups, by the processes that tests start as well."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def engines_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines that this box compiles are kept for one run of the tests, in every process that they start."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
