from __future__ import annotations

import shutil

import pytest
from tensorrt_shims import VERSIONS, asked, tensorrt

from edge.bundle import Bundle, open_bundle
from edge.errors import SessionError
from edge.sessions.gpu import Gpu
from export.tensorrt_build import build_for_device

ORIN = Gpu("Orin", "8.7")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    shutil.copytree(open_bundle("steel-gate-int8").path, tmp_path / "gate")
    return open_bundle(tmp_path / "gate")


@pytest.mark.parametrize("version", VERSIONS)
def test_where_tensorrt_and_a_gpu_are_the_engine_goes_into_the_cache(bundle, version):
    result = build_for_device(bundle, find_module=lambda: tensorrt(version), find_device=lambda: ORIN)
    assert result.said == f"engine built for Orin with TensorRT {version}: {result.engine}; other devices build theirs"
    assert result.engine.parent == bundle.path.parent / "gate.engines"
    assert asked(result.engine.read_bytes())["profiles"] == [{"image": [[1, 1, 16, 16], [16, 1, 256, 256], [16, 1, 256, 256]]}]
    again = build_for_device(bundle, find_module=lambda: tensorrt(version), find_device=lambda: ORIN)
    assert again.said.startswith("engine kept for Orin")


@pytest.mark.parametrize(
    ("module", "device", "why"),
    [
        ("no TensorRT", ORIN, "here is no TensorRT"),
        (tensorrt("10.3.0.30"), "no NVIDIA driver (libcuda.so.1)", "here is no NVIDIA driver (libcuda.so.1)"),
        ("no TensorRT", "no NVIDIA driver (libcuda.so.1)", "here is no TensorRT and no NVIDIA driver (libcuda.so.1)"),
    ],
)
def test_without_them_the_device_builds_at_its_first_start_and_the_reason_is_said(bundle, module, device, why):
    result = build_for_device(bundle, find_module=lambda: module, find_device=lambda: device)
    assert result.engine is None
    assert result.said == f"the engine will be built at the first start on the device: {why}"
    assert not (bundle.path.parent / "gate.engines").exists()


def test_a_file_that_tensorrt_refuses_here_is_an_error_here(bundle):
    trt = tensorrt("10.3.0.30", refuses="Relu")
    with pytest.raises(SessionError, match=r"cannot read it: \S+ \(Relu\): No importer"):
        build_for_device(bundle, find_module=lambda: trt, find_device=lambda: ORIN)


def test_a_cache_that_cannot_be_written_is_said(bundle):
    (bundle.path.parent / "gate.engines").write_text("in the way")
    result = build_for_device(bundle, find_module=lambda: tensorrt("10.3.0.30"), find_device=lambda: ORIN)
    assert result.engine is None
    assert "cannot be kept beside" in result.said
