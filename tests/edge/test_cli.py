"""One entry point: cheap to start, one line for every error, an exit code for every kind of it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge import __version__, errors
from edge.cli import OWN_COMMANDS, main
from edge.commands import config as config_command

HEAVY = ("numpy", "cv2", "onnx", "onnxruntime", "pydantic", "yaml", "paho", "torch", "iotcore")


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_help_names_every_command_of_every_floor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    told = capsys.readouterr().out
    assert left.value.code == 0
    for command in (*OWN_COMMANDS, "export", "train"):
        assert f"\n    {command}" in told


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    done = run(
        "import sys\nfrom edge.cli import main\n"
        f"try: main([{argument!r}])\nexcept SystemExit: pass\n"
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("command", [*OWN_COMMANDS, "export", "train"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"usage: rust-edge {command}" in capsys.readouterr().out


def test_no_command_needs_torch_to_explain_itself() -> None:
    done = run(
        "import sys\nsys.modules['torch'] = None\nfrom edge.cli import main\n"
        "for command in ('export', 'train'):\n"
        "    try: main([command, '--help'])\n    except SystemExit as left: print('left with', left.code)\n"
    )
    assert done.stdout.count("left with 0") == 2, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"rust-edge {__version__}\n"


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["config"], ["--no-such-option"]])
def test_misuse_leaves_with_code_2_and_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: rust-edge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "missing", "arguments"),
    [("train", "torch", ["configs/train/steel-unet.yaml"]), ("demo", "iotcore", ["--seconds", "1"])],
)
def test_a_command_whose_extra_is_missing_says_which_one_to_install(command: str, missing: str, arguments: list[str]) -> None:
    done = run(
        f"import sys\nsys.modules[{missing!r}] = None\nfrom edge.cli import main\nsys.exit(main({[command, *arguments]!r}))"
    )
    (told,) = done.stderr.splitlines()
    assert done.returncode not in (0, None)
    assert told.startswith("rust-edge: ")
    assert told.endswith(f"expected the extra: pip install 'rust-edge[{command}]'")


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RustEdgeError)],
)
def test_an_error_of_ours_is_its_lines_and_its_exit_code(
    kind: type[errors.RustEdgeError], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise kind("a: got 1; expected 2\nb: got 3; expected 4")

    monkeypatch.setattr(config_command, "_schema", fail)
    assert main(["config", "schema"]) == kind.exit_code != 0
    assert capsys.readouterr().err == "rust-edge: a: got 1; expected 2\nrust-edge: b: got 3; expected 4\n"


def test_a_defect_of_ours_is_not_dressed_up_as_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        import edge.no_such_module  # noqa: F401

        return 0

    monkeypatch.setattr(config_command, "_schema", fail)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["config", "schema"])


def test_an_interrupt_leaves_with_130_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(config_command, "_schema", interrupt)
    assert main(["config", "schema"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/etc/shadow"), "/etc/shadow: Permission denied"),
        (MemoryError(), "not enough memory; expected smaller images or tiles, fewer threads, or more memory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(config_command, "_schema", fail)
    assert main(["config", "schema"]) == 1
    assert capsys.readouterr().err == f"rust-edge: {told}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_finds_no_room_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", "config", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
            cwd=Path(__file__).parents[2],
        )
    assert (done.returncode, done.stderr) == (1, "rust-edge: No space left on device\n")


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", "config", "schema"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
            cwd=Path(__file__).parents[2],
        )
    assert (done.returncode, done.stderr) == (141, "")
