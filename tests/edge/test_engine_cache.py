from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edge.engine_cache import EngineKey, cache_path, read_engine, write_engine

KEY = EngineKey(
    model_sha256="a" * 64,
    builder="tensorrt 10.3.0.30",
    device="Orin",
    compute="8.7",
    precision="int8",
    profiles=("image 1x1x448x448", "image 4x1x448x448"),
    options=("workspace_mib=1024", "tf32=False"),
)
OTHERS = {
    "model_sha256": ("b" * 64, "the model: aaaaaaaaaaaa..., now bbbbbbbbbbbb..."),
    "builder": ("tensorrt 10.3.0.31", "library: tensorrt 10.3.0.30, now tensorrt 10.3.0.31"),
    "device": ("Thor", "device: Orin, now Thor"),
    "compute": ("8.6", "compute capability: 8.7, now 8.6"),
    "precision": ("fp16", "precision: int8, now fp16"),
    "profiles": (("image 1x1x448x448", "image 2x1x448x448"), "input shapes: image 4x1x448x448, now image 2x1x448x448"),
    "options": (("workspace_mib=1024",), "builder options: tf32=False, now without it"),
}


def test_an_engine_is_read_back_as_it_was_written(tmp_path):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    assert read_engine(path, KEY).content == b"engine"
    write_engine(path, b"a newer one", KEY)
    assert read_engine(path, KEY).content == b"a newer one"


def test_the_cache_lies_beside_the_bundle_and_its_names_tell_tiles_from_streams(tmp_path):
    tiles, stream = (cache_path(tmp_path / "unet", file, KEY) for file in ("model.onnx", "stream.onnx"))
    assert tiles.parent == stream.parent == tmp_path / "unet.engines"
    assert (tiles.name, stream.name) == (f"model-{KEY.digest[:16]}.engine", f"stream-{KEY.digest[:16]}.engine")


def test_a_bundle_named_by_a_relative_path_has_the_same_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_path(Path("unet"), "model.onnx", KEY) == cache_path(tmp_path / "unet", "model.onnx", KEY)


@pytest.mark.parametrize("part", OTHERS)
def test_another_part_is_another_engine_and_is_named(tmp_path, part):
    value, change = OTHERS[part]
    other = dataclasses.replace(KEY, **{part: value})
    assert other.digest != KEY.digest
    write_engine(cache_path(tmp_path / "unet", "model.onnx", KEY), b"engine", KEY)
    found = read_engine(cache_path(tmp_path / "unet", "model.onnx", other), other)
    assert found.content is None
    assert found.reason == f"none of the 1 kept in {tmp_path / 'unet.engines'} fits: {change}"


def test_the_nearest_of_several_engines_tells_what_has_changed(tmp_path):
    far = dataclasses.replace(KEY, device="Thor", compute="11.0", builder="tensorrt 10.13.3.9")
    for key in (far, KEY):
        write_engine(cache_path(tmp_path / "unet", "model.onnx", key), b"engine", key)
    wanted = dataclasses.replace(KEY, precision="fp32")
    reason = read_engine(cache_path(tmp_path / "unet", "model.onnx", wanted), wanted).reason
    assert reason.startswith("none of the 2 kept in ")
    assert reason.endswith(" fits: precision: int8, now fp32")


def test_an_empty_cache_says_so(tmp_path):
    found = read_engine(cache_path(tmp_path / "unet", "model.onnx", KEY), KEY)
    assert found.reason == f"no engine is kept in {tmp_path / 'unet.engines'}"


def test_an_engine_under_a_name_that_is_not_its_keys_is_not_used(tmp_path):
    """Copied from another box, or two keys of the same first digits."""
    other = dataclasses.replace(KEY, device="Thor")
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", other)
    found = read_engine(path, KEY)
    assert found.content is None
    assert found.reason == f"{path.name} was built otherwise: device: Thor, now Orin"


@pytest.mark.parametrize("content", [b"engin", b"", b"Engine"])
def test_a_damaged_engine_is_not_used(tmp_path, content):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    path.write_bytes(content)
    found = read_engine(path, KEY)
    assert found.content is None
    assert "is damaged" in found.reason


def test_an_engine_that_is_gone_is_not_used(tmp_path):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    path.unlink()
    assert "cannot be read (No such file or directory)" in read_engine(path, KEY).reason


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": {}}', '{"key": {"gpu": "Orin"}, "sha256": "0"}', '{"key": 1, "sha256": 2}'],
)
def test_a_sidecar_that_says_nothing_counts_as_none(tmp_path, text):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    path.with_suffix(".json").write_text(text)
    assert read_engine(path, KEY).content is None


def test_the_sidecar_holds_the_key_in_the_open(tmp_path):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["key"] == {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(KEY).items()}


def test_a_service_under_another_user_can_read_what_was_kept(tmp_path):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o644}


def test_a_full_disk_leaves_no_engine_and_no_litter(tmp_path, monkeypatch):
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    write_engine(path, b"engine", KEY)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_engine(path, b"a newer one", KEY)
    assert read_engine(path, KEY).content is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_writer_killed_at_any_moment_leaves_a_whole_engine_or_none(tmp_path):
    """Two engines in turn, killed again and again: what is read is one of them, all of it."""
    path = cache_path(tmp_path / "unet", "model.onnx", KEY)
    writer = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from edge.engine_cache import EngineKey, write_engine
        key = EngineKey(**{dataclasses.asdict(KEY)!r})
        print("ready", flush=True)
        while True:
            for content in (b"a" * 300_000, b"b" * 200_000):
                write_engine(Path({str(path)!r}), content, key)
    """)
    engines = {b"a" * 300_000, b"b" * 200_000}
    for moment in range(6):
        with subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.03 + 0.007 * moment)
            process.send_signal(signal.SIGKILL)
        assert read_engine(path, KEY).content in engines | {None}
    write_engine(path, b"engine", KEY)
    assert read_engine(path, KEY).content == b"engine"
