from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from types import ModuleType

import onnx
import pytest
from small_networks import adding_unet, gate
from tensorrt_shims import VERSIONS, asked, file_of, tensorrt, unsupported

from edge.bundle import MODEL, STREAM, Bundle, open_bundle, shipped_bundles
from edge.engine_cache import cache_path, engines_beside
from edge.errors import SessionError
from edge.sessions.gpu import Gpu
from edge.sessions.trt.build import BuildOptions, build, engine_key, obtain_engine
from edge.sessions.trt.shapes import Profile, ShapeRange, stream_profile, tile_profile

ORIN = Gpu("Orin", "8.7")
TILES: Sequence[Profile] = (tile_profile(open_bundle("steel-gate-int8")),)
ONE_GATE_TILE: Sequence[Profile] = ({"image": ShapeRange.of(1, 1, 256, 256)},)
ONE_TILE: Sequence[Profile] = ({"image": ShapeRange.of(1, 1, 32, 48)},)


@pytest.fixture(params=VERSIONS)
def trt(request) -> ModuleType:
    return tensorrt(request.param)


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    reason = "TensorRT for RTX is not installed (tensorrt-rtx-cu13-bindings)"
    return pytest.importorskip("tensorrt_rtx_bindings", reason=reason)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return adding_unet()


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    shutil.copytree(open_bundle("steel-gate-int8").path, tmp_path / "line-3")
    return open_bundle(tmp_path / "line-3")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_version_builds_from_a_file_and_from_bytes(trt, model, precision, tmp_path):
    from_bytes = build(trt, model.SerializeToString(), ONE_TILE, precision)
    assert build(trt, file_of(model, tmp_path), ONE_TILE, precision) == from_bytes


@pytest.mark.parametrize(("version", "flags"), list(zip(VERSIONS, (["INT8"], [], [], []), strict=True)))
def test_only_a_weakly_typed_builder_is_told_of_the_precision(version, flags):
    engine = asked(build(tensorrt(version), open_bundle("steel-gate-int8").model_path, ONE_GATE_TILE, "int8"))
    assert engine["flags"] == flags
    assert engine["strongly_typed"] == (not flags)


def test_a_version_that_drops_the_last_creation_flag_is_still_built_with():
    trt = tensorrt("11.1.0.106", without=("STRONGLY_TYPED",))
    assert asked(build(trt, open_bundle("steel-gate-int8").model_path, ONE_GATE_TILE, "int8"))["flags"] == []


def test_options_reach_the_builder(trt, model):
    chosen = BuildOptions(workspace_mib=256, optimization_level=5, tf32=True)
    engine = asked(build(trt, model.SerializeToString(), ONE_TILE, "fp32", options=chosen))
    assert (engine["workspace"], engine["optimization_level"], engine["flags"]) == (256 << 20, 5, ["TF32"])


def test_contexts_may_share_a_profile_and_layers_treat_all_of_a_batch_alike_where_a_builder_knows_of_it(trt, model):
    engine = asked(build(trt, model.SerializeToString(), ONE_TILE, "fp32"))
    assert ("PROFILE_SHARING_0806" in engine["previews"]) == (int(trt.__version__.split(".")[0]) < 11)
    assert ("DISTRIBUTIVE_INDEPENDENCE" in engine["beside"]) == (not trt.__version__.startswith(("8", "10.3")))


def test_a_streams_state_is_as_wide_as_its_strip():
    manifest = open_bundle("steel-unet-int8").manifest
    profile = stream_profile(manifest, width=512, chunk_lines=64)
    assert profile["image"] == ShapeRange.of(1, 1, 64, 512)
    assert profile["state_07_encoder_16_0_0_Conv"] == ShapeRange.of(1, 96, 2, 512 // 16)
    assert len(profile) == 1 + len(manifest.streaming.states)


def test_what_the_parser_refuses_is_named_by_node(trt, model):
    faulty = unsupported(model)
    name = faulty.graph.node[3].name if int(trt.__version__.split(".")[0]) >= 10 else "node 3"
    with pytest.raises(SessionError, match=rf"cannot read it: {name}.*: No importer registered.*export the bundle again"):
        build(trt, faulty.SerializeToString(), ONE_TILE, "fp32")


def test_what_the_builder_refuses_is_told_in_its_own_words(caplog):
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(SessionError, match="builds no engine: Error Code 4: Int8 precision has been set"),
    ):
        build(tensorrt("8.6.1.6"), open_bundle("steel-gate-int8").model_path, ONE_GATE_TILE, "fp32")
    assert [record.name for record in caplog.records] == ["edge.sessions.trt.library"]


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ((), "got no shapes for image; expected a profile"),
        (({"picture": ShapeRange.of(1, 1, 32, 48)},), "got no shapes for image; expected a range"),
        (({"image": ShapeRange.of(1, 1, 32, 32)},), "got shapes 1x1x32x32 for image, expected anyx1x32x48"),
        (({"image": ShapeRange.of(32, 48)},), "got shapes 32x48 for image"),
    ],
)
def test_shapes_that_the_file_does_not_take_are_refused(trt, model, profiles, message):
    with pytest.raises(SessionError, match=message):
        build(trt, model.SerializeToString(), profiles, "fp32")


def test_a_range_grows_from_smallest_to_largest():
    ShapeRange((1, 1, 8, 8), (4, 1, 8, 8), (16, 1, 8, 8))
    with pytest.raises(ValueError, match="grow from smallest to largest"):
        ShapeRange((4, 1, 8, 8), (1, 1, 8, 8), (16, 1, 8, 8))


def test_progress_is_told_where_the_builder_tells_it(trt, model):
    seen: list[tuple[str, int, int]] = []
    build(trt, model.SerializeToString(), ONE_TILE, "fp32", progress=lambda *told: seen.append(told))
    told = [("Building engine", done, 3) for done in (0, 1, 2, 3, 3)]
    assert seen == (told if hasattr(trt, "IProgressMonitor") else [])


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_an_interrupted_build_ends_with_the_interruption(version, model):
    def interrupt(phase: str, done: int, steps: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tensorrt(version), model.SerializeToString(), ONE_TILE, "fp32", progress=interrupt)


def test_an_engine_is_built_once_and_kept_beside_the_bundle(trt, bundle):
    first = obtain_engine(trt, ORIN, bundle, TILES, engines_beside(bundle.path))
    second = obtain_engine(trt, ORIN, bundle, TILES, engines_beside(bundle.path))
    assert first.content == second.content
    assert first.built.startswith("no engine is kept in ")
    assert second.built is None
    assert first.path == second.path == cache_path(bundle.path, MODEL, engine_key(trt, ORIN, bundle, TILES))
    assert first.path.parent == bundle.path.parent / "line-3.engines"
    assert open_bundle(bundle.path).sha256 == bundle.sha256


CHANGES = {
    "device: Orin, now Thor": {"gpu": Gpu("Thor", "8.7")},
    "compute capability: 8.7, now 11.0": {"gpu": Gpu("Orin", "11.0")},
    "library: tensorrt 10.3.0.30, now tensorrt 10.13.3.9": {"trt": tensorrt("10.13.3.9")},
    "input shapes: image 1x1x16x16 to 16x1x256x256, now image 1x1x256x256": {
        "profiles": ({"image": ShapeRange.of(1, 1, 256, 256)},)
    },
    "builder options: optimization_level=3, now optimization_level=5": {"options": BuildOptions(optimization_level=5)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_engine_is_built_again_where_anything_it_depends_on_differs(bundle, change):
    usual = {"trt": tensorrt("10.3.0.30"), "gpu": ORIN, "profiles": TILES, "options": BuildOptions()}
    first = obtain(bundle, **usual)
    second = obtain(bundle, **usual | CHANGES[change])
    assert second.path != first.path
    assert second.built == f"none of the 1 kept in {first.path.parent} fits: {change}"
    assert obtain(bundle, **usual).built is None


def obtain(bundle, trt, gpu, profiles, options):
    return obtain_engine(trt, gpu, bundle, profiles, engines_beside(bundle.path), options=options)


def test_a_stream_whose_weights_lie_in_the_model_is_keyed_by_both_files(tmp_path):
    trt = tensorrt("10.3.0.30")
    folder = tmp_path / "copy"
    shutil.copytree(open_bundle("steel-unet-int8").path, folder)
    bundle = open_bundle(folder)
    profiles = [stream_profile(bundle.manifest, 512, 64)]
    before = engine_key(trt, ORIN, bundle, profiles, file=STREAM)
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes() + b"\0")
    assert engine_key(trt, ORIN, bundle, profiles, file=STREAM) != before


def test_an_engine_that_cannot_be_kept_runs_all_the_same(trt, bundle, caplog):
    (bundle.path.parent / "line-3.engines").write_text("a file where the folder should be")
    obtained = obtain_engine(trt, ORIN, bundle, TILES, engines_beside(bundle.path))
    assert asked(obtained.content)["profiles"]
    assert obtained.path is None
    assert "cannot be kept" in caplog.text
    assert "built again at the next start" in caplog.text


@pytest.mark.parametrize("name", shipped_bundles())
def test_the_real_builder_builds_every_shipped_bundle_for_the_ranges_that_stations_ask_for(rtx, name, tmp_path):
    bundle = open_bundle(name)
    for shape in (None, (1, 1, 416, 672)):
        obtained = obtain_engine(rtx, ORIN, bundle, [tile_profile(bundle, shape)], tmp_path)
        assert len(obtained.content) > 10_000
        assert obtained.path.read_bytes() == obtained.content


@pytest.mark.parametrize("name", [name for name in shipped_bundles() if open_bundle(name).stream_path])
def test_the_real_builder_builds_streams_whose_weights_lie_in_another_file(rtx, name, tmp_path):
    bundle = open_bundle(name)
    profile = stream_profile(bundle.manifest, width=256, chunk_lines=32)
    obtained = obtain_engine(rtx, ORIN, bundle, [profile], tmp_path, file=STREAM)
    assert len(obtained.content) > bundle.model_path.stat().st_size / 2


def test_the_real_builder_has_no_dla_and_says_so(rtx):
    with pytest.raises(SessionError, match=r"session.dla: got 0, and TensorRT .* finds none here"):
        build(rtx, gate().SerializeToString(), ({"image": ShapeRange.of(1, 1, 32, 32)},), "fp32", options=BuildOptions(dla=0))


def test_the_real_parser_names_the_node_that_it_refuses(rtx, caplog):
    faulty = unsupported(gate())
    with caplog.at_level(logging.CRITICAL), pytest.raises(SessionError, match=rf"{faulty.graph.node[3].name} \(NonMax.*\): "):
        build(rtx, faulty.SerializeToString(), (), "fp32")


def test_the_real_builder_is_interrupted_and_tells_its_progress(rtx):
    phases = set()

    def interrupt(phase: str, done: int, steps: int) -> None:
        phases.add(phase)
        if len(phases) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(rtx, gate().SerializeToString(), ({"image": ShapeRange.of(1, 1, 32, 32)},), "fp32", progress=interrupt)
    assert "Building engine" in phases
