"""pycuda's device: what it says where something is missing, and its contract on a GPU that is emulated by the CPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulated_driver
import pytest

from edge.cuda import driver_calls
from edge.cuda.driver import open_device
from edge.errors import SessionError

TESTS = Path(__file__).parents[1]


def a_pycuda(folder: Path, driver: str) -> None:
    """A package of that name, whose module `driver` says this."""
    (folder / "pycuda").mkdir()
    (folder / "pycuda" / "__init__.py").touch()
    (folder / "pycuda" / "driver.py").write_text(driver)


@pytest.fixture
def no_pycuda_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulated driver")
    return emulated_driver.build(tmp_path_factory.mktemp("driver"))


def test_without_pycuda_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(SessionError, match=r"pip install 'rust-edge\[tensorrt\]'.* on a Jetson .*/usr/local/cuda/bin"):
        open_device()


@pytest.mark.usefixtures("no_pycuda_imported")
def test_without_a_driver_it_is_said_that_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_pycuda(tmp_path, "raise AssertionError('pycuda is not asked where there is no driver')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(driver_calls, "LIBRARY", "libcuda-of-no-box.so.1")
    with pytest.raises(SessionError, match=r"no NVIDIA driver on this box \(libcuda-of-no-box.so.1\)"):
        open_device()


def test_a_pycuda_that_does_not_load_is_said_to_be_of_another_python_or_cuda(tmp_path: Path, library: Path) -> None:
    a_pycuda(tmp_path, "raise ImportError('undefined symbol: cuFuture')")
    # in a process of its own: a driver that was loaded once is found by everybody
    told = subprocess.run(
        [sys.executable, "-c", "from edge.cuda.driver import open_device; open_device()"],
        env={**emulated_driver.environment(library), "PYTHONPATH": str(tmp_path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert "SessionError: pycuda cannot be used: undefined symbol: cuFuture; expected one that was built for" in told.stderr


def test_importing_the_device_imports_no_pycuda() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import edge.cuda.driver, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert "pycuda" not in told.stdout.split()


def test_pycuda_on_an_emulated_gpu_keeps_the_contract(library: Path) -> None:
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed: .ci/pycuda .venv/bin/python")
    files = [TESTS / "contracts" / "test_cuda_device.py", TESTS / "cuda" / "driver_on_emulated_gpu.py"]
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "pycuda or on_emulated_gpu", *files],
        env=emulated_driver.environment(library),
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"^\d+ passed, \d+ deselected", told.stdout, re.MULTILINE), told.stdout
