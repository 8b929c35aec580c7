from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ConfigError
from edge.manifest import Resize
from export.recipe import ExportRecipe, flag_of, load_recipe, parse_recipe
from export.simulated import SimulatedSteel

ENOUGH = {"checkpoint": "unet.pt", "arch": "steel-unet", "calibration": "images", "out": "bundle"}


def parse(given: dict[str, Any] | None = None, overrides: tuple[str, ...] = (), **said: Any) -> ExportRecipe:
    return parse_recipe(ENOUGH | said, "r.yaml", overrides, given)


def fault_of(given: dict[str, Any] | None = None, overrides: tuple[str, ...] = (), **said: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(given, overrides, **said)
    return str(refused.value)


def test_four_keys_are_enough() -> None:
    recipe = parse()
    assert (recipe.checkpoint, recipe.out) == (Path("unet.pt"), Path("bundle"))
    assert (recipe.precision, recipe.max_drop, recipe.recall, recipe.force) == ("fp32", 0.5, 0.999, False)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("classes", "background, Rötung", ("background", "Rötung")),
        ("classes", ["a", "b"], ("a", "b")),
        ("tile", "256x1600", (256, 1600)),
        ("tile", [256, 1600], (256, 1600)),
        ("strip_tile", "64X32", (64, 32)),
        ("mean", 0, (0.0,)),
        ("labels", "folders", "folders"),
        ("labels", "labels.csv", Path("labels.csv")),
        ("simulated", "3", SimulatedSteel(strips=3)),
        ("simulated", {"strips": 3, "lines": 512}, SimulatedSteel(strips=3, lines=512)),
        ("preparation", [{"kind": "resize"}], (Resize(method="linear"),)),
        ("preparation", [], ()),
    ],
)
def test_lists_and_sizes_may_be_written_as_on_a_command_line(key: str, value: object, expected: object) -> None:
    said = {key: value} | ({"deviation": 255} if key == "mean" else {})
    assert getattr(parse(**said), key) == expected


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tile", "nonsense", "expected height and width in px, 1 to 16384, such as 256x256"),
        ("tile", "256", "expected height and width"),
        ("tile", "0x0", "expected height and width"),
        ("tile", [256], "expected height and width"),
        ("tile", "99999x99999", "expected height and width"),
        ("mean", "a,b", "expected numbers, one a channel"),
        ("mean", float("nan"), "expected numbers, one a channel"),
        ("deviation", "0", "expected numbers above 0"),
        ("classes", "rust", "expected two names or more"),
        ("classes", "a,,b", "expected two names or more"),
        ("classes", [True, False], "yes, no, on, off and numbers in quotes"),
        ("classes", "a,a", "expected every name once"),
        ("precision", "int4", "expected 'fp32', 'fp16' or 'int8'"),
        ("head", "argmax", "expected 'logits', 'probabilities' or 'mask'"),
        ("max_drop", "nan", "expected a finite number"),
        ("max_drop", -1, "expected at least 0"),
        ("recall", 0, "expected more than 0"),
        ("defect_px", 1.5, "expected a whole number"),
        ("threads", 10**12, "expected at most 1024"),
        ("pixel_threshold", 2, "expected at most 1"),
        ("labels", 5, "expected `folders`, or a CSV file"),
        ("simulated", "many", "expected how many strips"),
        ("simulated", {"strips": 0}, "expected how many strips"),
        ("preparation", [{"kind": "blur"}], "expected a list of steps"),
        ("preparation", [{"kind": "resize", "side": 3}], "expected a list of steps"),
        ("arch", 42, "expected text"),
        ("trust_checkpoint", "maybe", "expected true or false"),
        ("calibration", ["a", "b"], "expected a path"),
        ("checkpoint", "a\0b", "no file has a name with a zero byte in it"),
        ("checkpoint", os.fsdecode(b"\xff.pt"), "expected a name in UTF-8"),
    ],
)
def test_a_fault_is_one_line_with_what_was_got_and_expected(key: str, value: object, told: str) -> None:
    fault = fault_of(**{key: value})
    assert fault.startswith(f"r.yaml: {key}: got ")
    assert told in fault
    assert len(fault.splitlines()) == 1


def test_what_a_flag_said_is_told_of_the_flag_and_what_the_recipe_said_of_its_key() -> None:
    fault = fault_of({"max_drop": "x", "tile": "1"}, recall=2, depth=3)
    assert fault.splitlines() == [
        "--tile: got '1'; expected height and width in px, 1 to 16384, such as 256x256",
        "--max-drop: got 'x'; expected a number",
        "r.yaml: recall: got 2; expected at most 1.0",
        f"r.yaml: depth: unknown key; expected one of {', '.join(ExportRecipe.model_fields)}",
    ]


def test_flags_stand_above_the_recipe_and_overrides_above_both() -> None:
    recipe = parse({"precision": "fp16", "threads": "2"}, ("precision=int8",), precision="fp32", threads=1, speed_s=0)
    assert (recipe.precision, recipe.threads, recipe.speed_s) == ("int8", 2, 0.0)
    assert fault_of({"precision": "fp16"}, ("precision=int3",)).startswith("r.yaml: precision: got 'int3'")


def test_a_misspelt_key_is_told_with_the_one_that_is_meant() -> None:
    assert fault_of(precison="int8") == "r.yaml: precison: unknown key; expected precision"
    assert fault_of(overrides=("max-drop=1",)) == "r.yaml: max-drop: unknown key; expected max_drop"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("precision",), "--set precision: expected key.path=value"),
        (("checkpoint.x=1",), "--set checkpoint.x=1: checkpoint is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be_set_is_told(overrides: tuple[str, ...], told: str) -> None:
    assert fault_of(overrides=overrides) == told


def test_every_missing_key_is_told_with_what_it_is_for() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_recipe({"arch": "steel-unet"}, "r.yaml")
    assert str(refused.value).splitlines() == [
        "r.yaml: checkpoint: missing; expected the trained network: a file, or a SavedModel's folder",
        "r.yaml: calibration: missing; expected representative images, defects among them",
        "r.yaml: out: missing; expected folder to make",
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"mean": [0.0]}, "got 1 means and 0 deviations; expected one of each a channel, or neither"),
        ({"mean": [0, 1], "deviation": [1, 2, 3]}, "got 2 means and 3 deviations"),
        ({"masks": "masks", "labels": "folders"}, "got masks and labels; expected one of them"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(said: dict[str, object], told: str) -> None:
    assert fault_of(**said).startswith(f"r.yaml: {told}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected keys and values at the top, got NoneType"),
        (b"- a\n- b\n", "expected keys and values at the top, got list"),
        (b"a: [1, 2", "not YAML: while parsing a flow sequence"),
        (b"a:\n\t- b", "not YAML: while scanning"),
        (b"out: 2024-13-45", "not YAML: month must be in 1..12"),
        (bytes(range(256)), "is no text"),
        (b"[" * 10_000, "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_and_named(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "r.yaml")
    assert str(refused.value).startswith(f"{tmp_path / 'r.yaml'}: {told}")
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_recipe_that_unfolds_without_end_is_told_shortly(tmp_path: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))
    (tmp_path / "r.yaml").write_text(f"{levels}classes: *l11\n")
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "r.yaml")
    assert max(map(len, str(refused.value).splitlines())) < 1000


def test_every_key_but_preparation_has_a_flag() -> None:
    from edge.cli import _parser

    told = _parser("export").parse_args(["export", "--list"])
    flags = {flag_of(key) for key in ExportRecipe.model_fields} - {"--preparation", "CHECKPOINT"}
    assert flags <= {f"--{name.replace('_', '-')}" for name in vars(told)}
