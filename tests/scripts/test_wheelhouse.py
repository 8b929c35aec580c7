"""`scripts/wheelhouse` and the `install` that goes with it: what they refuse, and that an installation takes nothing else.

That a real one installs and inspects is shown by `.ci/wheelhouse`, which needs an index.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from offline.packages import Package, glibc_of, package_of  # noqa: E402
from offline.pip_calls import RefusalError  # noqa: E402
from offline.resolution import Target, applicable, missing_of, own_requirements, reachable  # noqa: E402

PYTHON = ".".join(platform.python_version_tuple()[:2])
ORIN = Target("aarch64", "3.10", 35, ())


def package(name: str, version: str, *requires: str, extras: tuple[str, ...] = ()) -> Package:
    return Package(Path(f"{name}-{version}-py3-none-any.whl"), name, version, requires, extras)


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str], *metadata: str) -> Path:
    """A wheel that pip installs. Source: PEP 427, 376."""
    info = f"{name}-{version}.dist-info"
    head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *metadata]
    files = files | {
        f"{info}/METADATA": "\n".join(head) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = [f"{path},sha256={digest[path]},{len(text.encode())}" for path, text in files.items()]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse as the script writes it, for this machine: a toy rust-edge, what it needs, and this environment's pip."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    needed = {
        "station_toy/__init__.py": "from toy_part import ANSWER\ndef main():\n    print(f'toy {ANSWER}')\n",
        "rust_edge-1.0.dist-info/entry_points.txt": "[console_scripts]\nrust-edge = station_toy:main\n",
    }
    own = package_of(write_wheel(folder, "rust_edge", "1.0", needed, "Requires-Dist: toy-part>=2"))
    part = package_of(write_wheel(folder, "toy_part", "2.1", {"toy_part.py": "ANSWER = 42\n"}))
    pip = package_of(wheel_of_pip(folder))
    target = Target(platform.machine(), PYTHON, 17, ())
    script = runpy.run_path(str(SCRIPTS / "wheelhouse"))
    script["write"](folder / "wheelhouse", own, [part, pip], [part, pip], target)
    return folder / "wheelhouse"


def wheel_of_pip(folder: Path) -> Path:
    """This environment's pip, packed up again: its files are those of its wheel."""
    import pip

    package_folder = Path(pip.__file__).parent
    path = folder / f"pip-{pip.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for root in (package_folder, package_folder.parent / f"pip-{pip.__version__}.dist-info"):
            for file in sorted(root.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    wheel.write(file, file.relative_to(package_folder.parent))
    return path


@pytest.fixture
def wheelhouse(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "wheelhouse"))


def install(wheelhouse: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(wheelhouse / "install"), *words]
    # an index that does not exist: whoever asked it would fail
    elsewhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "/nowhere", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=elsewhere, check=False)


def test_an_environment_is_made_from_the_wheelhouse_alone(wheelhouse: Path, tmp_path: Path) -> None:
    done = install(wheelhouse, str(tmp_path / "environment"))
    assert (done.returncode, done.stderr) == (0, "")
    ran = subprocess.run([tmp_path / "environment" / "bin" / "rust-edge"], capture_output=True, text=True, check=True)
    assert ran.stdout == "toy 42\n"


def test_check_installs_nothing(wheelhouse: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = install(wheelhouse, "--check")
    assert (done.returncode, done.stdout) == (0, "rust-edge 1.0 fits, all 5 files are as they were made\n")
    assert sorted(tmp_path.rglob("*")) == before


def alter(wheelhouse: Path) -> str:
    path = next((wheelhouse / "wheels").glob("toy_part*"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return f"wheels/{path.name}: got {size} bytes with another sha256; expected the {size} bytes of the manifest: copy it again"


def remove(wheelhouse: Path) -> str:
    next((wheelhouse / "wheels").glob("toy_part*")).unlink()
    return "wheels/toy_part-2.1-py3-none-any.whl: missing; expected a whole wheelhouse: copy it again"


def add(wheelhouse: Path) -> str:
    (wheelhouse / "wheels" / "numpy-9.whl").touch()
    return "wheels/numpy-9.whl: got a file that the manifest does not name; expected none: remove it"


def of_another(key: str, value: str) -> Callable[[Path], str]:
    told = {
        "python": f"got CPython {platform.python_version()} ({sys.executable}); expected Python {value}: run it with "
        f"python{value}, or make a wheelhouse with --python {PYTHON}",
        "machine": f"got a machine of {platform.machine()}; expected {value}: make a wheelhouse with --platform "
        f"{platform.machine()}",
        "glibc": f"got glibc {platform.libc_ver()[1]}; expected glibc {value} or later: make a wheelhouse with --glibc",
    }

    def change(wheelhouse: Path) -> str:
        manifest: dict[str, Any] = json.loads((wheelhouse / "manifest.json").read_text())
        (wheelhouse / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        return told[key]

    return change


def without_manifest(wheelhouse: Path) -> str:
    (wheelhouse / "manifest.json").unlink()
    told = f"[Errno 2] No such file or directory: '{wheelhouse / 'manifest.json'}'"
    return f"{wheelhouse}: got no readable manifest ({told}); expected a whole wheelhouse: copy it again"


SPOILT = {
    "a file altered": alter,
    "a file missing": remove,
    "a file too many": add,
    "another Python": of_another("python", "3.9"),
    "another processor": of_another("machine", "s390x"),
    "an older C library": of_another("glibc", "2.999"),
    "no manifest": without_manifest,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_installed(
    spoil: Callable[[Path], str], wheelhouse: Path, tmp_path: Path
) -> None:
    expected = spoil(wheelhouse)
    done = install(wheelhouse, str(tmp_path / "environment"))
    assert (done.returncode, done.stderr) == (1, f"install: {expected}\n")
    assert not (tmp_path / "environment").exists()


def test_a_folder_that_exists_is_left_alone(wheelhouse: Path, tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    done = install(wheelhouse, str(tmp_path / "environment"))
    assert done.returncode == 1
    assert "which exists; expected a new folder" in done.stderr
    assert list((tmp_path / "environment").iterdir()) == []


def test_an_installation_that_fails_halfway_leaves_no_folder(wheelhouse: Path, tmp_path: Path) -> None:
    requirements = wheelhouse / "requirements.txt"
    requirements.write_text(requirements.read_text() + "absent==1 --hash=sha256:" + "0" * 64 + "\n")
    manifest = json.loads((wheelhouse / "manifest.json").read_text())
    manifest["files"]["requirements.txt"]["sha256"] = hashlib.sha256(requirements.read_bytes()).hexdigest()
    (wheelhouse / "manifest.json").write_text(json.dumps(manifest))
    done = install(wheelhouse, str(tmp_path / "environment"))
    assert done.returncode == 1
    assert "installing failed; nothing was installed" in done.stderr
    assert "absent==1" in done.stderr
    assert not (tmp_path / "environment").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--glibc", "2.12"], "--glibc: got '2.12'; expected 2.17 or later"),
        (["--glibc", "musl"], "--glibc: got 'musl'"),
        (["--out", "{folder}"], "which exists; expected a new folder"),
        (["--out", "{folder}/none/wheelhouse"], "none to be a folder that exists"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_fetched(words: list[str], told: str, tmp_path: Path) -> None:
    asked = [word.format(folder=tmp_path) for word in words]
    asked += [] if "--out" in asked else ["--out", str(tmp_path / "new")]
    command = [sys.executable, str(SCRIPTS / "wheelhouse"), "--platform", "aarch64", "--python", "3.10", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.startswith("wheelhouse: ")
    assert list(tmp_path.iterdir()) == []


OWN = package(
    "rust-edge",
    "1",
    "numpy>=1.24",
    "tomli>=2; python_version < '3.11'",
    "openvino; extra == 'openvino'",
    "torch>=2.6; extra == 'export'",
    "rust-edge[export]; extra == 'train'",
    "pycuda; extra == 'tensorrt'",
    extras=("openvino", "export", "train", "tensorrt"),
)


def test_an_extra_that_is_not_there_or_needs_torch_is_refused() -> None:
    with pytest.raises(RefusalError, match="--extras: got onnx; expected some of export, openvino, tensorrt, train"):
        own_requirements(OWN, Target("aarch64", "3.10", 35, ("onnx",)))
    for extra in ("export", "train"):
        with pytest.raises(RefusalError, match=f"--extras: got {extra}, which needs torch"):
            own_requirements(OWN, Target("aarch64", "3.10", 35, (extra,)))


def test_requirements_are_those_that_hold_on_the_device_and_not_here() -> None:
    assert own_requirements(OWN, ORIN) == ["numpy>=1.24", "tomli>=2"]
    assert own_requirements(OWN, Target("aarch64", "3.12", 39, ("openvino",))) == ["numpy>=1.24", "openvino"]
    windows = package("tqdm", "1", "colorama; platform_system == 'Windows'", "arm; platform_machine == 'aarch64'")
    assert list(applicable(windows, (), ORIN)) == ["arm"]


def test_what_a_package_needs_is_followed_to_its_end_and_what_is_missing_or_too_old_is_named() -> None:
    packages = [package("a", "1", "b[fast]>=2"), package("b", "1", "c; extra == 'fast'", "d; extra == 'slow'")]
    assert missing_of(["a"], packages, ORIN) == ["b[fast]>=2", "c"]
    sound = [packages[0], package("b", "2", "c; extra == 'fast'"), package("c", "1"), package("unused", "1")]
    assert missing_of(["a"], sound, ORIN) == []
    assert [found.name for found in reachable(["a"], sound, ORIN)] == ["a", "b", "c"]


def test_the_c_library_that_is_needed_is_that_of_the_newest_wheel() -> None:
    names = ("a-1-cp310-cp310-manylinux_2_27_aarch64.manylinux_2_28_aarch64", "b-1-cp310-cp310-manylinux2014_aarch64")
    assert glibc_of(Path(f"{name}.whl") for name in names) == 27
    assert glibc_of([Path(f"{names[1]}.whl")]) == 17
