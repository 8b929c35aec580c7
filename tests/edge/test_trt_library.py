from __future__ import annotations

from types import ModuleType

import pytest
from tensorrt_shims import RTX, VERSIONS, tensorrt

from edge.errors import SessionError
from edge.sessions.gpu import Gpu
from edge.sessions.trt.library import find_tensorrt, missing_parts, require_supported, version_of


def test_a_module_that_is_not_there_is_told_from_one_that_is_broken(tmp_path, monkeypatch):
    assert find_tensorrt(("tensorrt_of_another_box",)) == "no TensorRT"
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    (tmp_path / "hollow_trt.py").write_text("import libs_of_another_box")
    (tmp_path / "sound_trt.py").write_text("__version__ = '10.3.0.30'")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_tensorrt(("broken_trt",)) == "broken_trt that cannot be loaded (libnvinfer.so.10: cannot open shared object file)"
    assert find_tensorrt(("hollow_trt",)) == "hollow_trt without libs_of_another_box"
    assert find_tensorrt(("broken_trt", "sound_trt")).__version__ == "10.3.0.30"


def test_all_that_a_box_lacks_is_named_at_once():
    lacking = missing_parts(lambda: "no NVIDIA driver (libcuda.so.1)", ("tensorrt_of_another_box",), "pycuda_of_another_box")
    assert lacking == ["no TensorRT", "no pycuda", "no NVIDIA driver (libcuda.so.1)"]
    assert missing_parts(lambda: Gpu("Orin", "8.7"), ("tensorrt_of_another_box", "json"), "json") == []


def test_tensorrt_for_rtx_counts_its_versions_anew():
    assert version_of(tensorrt(RTX)) == "1.7.1.116 for RTX"
    assert version_of(tensorrt("10.3.0.30")) == "10.3.0.30"
    for version in (*VERSIONS, RTX):
        require_supported(tensorrt(version))


def test_a_version_that_is_too_old_is_refused():
    jetpack_5 = ModuleType("tensorrt")
    jetpack_5.__version__ = "8.5.2.2"
    with pytest.raises(SessionError, match=r"TensorRT 8.5.2.2 is installed, expected 8.6 or newer"):
        require_supported(jetpack_5)
