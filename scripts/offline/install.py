#!/usr/bin/env python3
"""Install rust-edge from this folder, without internet, into a new virtual environment.

    python3.10 wheelhouse/install /opt/rust-edge                           CPU
    python3.10 wheelhouse/install /opt/rust-edge --system-site-packages    with the system's TensorRT, on a Jetson
    python3.10 wheelhouse/install --check                                  look whether it fits, install nothing

The Python that runs it is the one that the environment gets. Neither pip nor python3-venv need be there.
"""

# It goes to the device alone, and gets as far as its refusal on Python 3.7: standard library, no newer syntax.
import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FORMAT = 1  # of the manifest


class InstallError(Exception):
    """What was got, what is expected, what to do."""


def main(arguments, here):
    """Check this machine and the files in `here`, then install; the exit code."""
    parser = argparse.ArgumentParser(prog="install", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of the virtual environment; it must not exist yet")
    parser.add_argument("--system-site-packages", action="store_true", help="let it see the system's packages, as TensorRT's")
    parser.add_argument("--check", action="store_true", help="look whether files and this machine fit, install nothing")
    args = parser.parse_args(arguments)
    try:
        manifest = read_manifest(here)
        faults = machine_faults(manifest) + file_faults(manifest, here)
        if faults:
            raise InstallError("\n".join(faults))
        if args.check:
            print(f"{named(manifest)} fits, all {len(manifest['files'])} files are as they were made")
            return 0
        if args.folder is None:
            raise InstallError("got no folder; expected the virtual environment's: install /opt/rust-edge")
        install(manifest, here, args.folder.absolute(), args.system_site_packages)
    except InstallError as error:
        for line in str(error).splitlines():
            print(f"install: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error.filename or here}: {error.strerror or error}; nothing was installed", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; nothing was installed", file=sys.stderr)
        return 130
    return 0


def read_manifest(here):
    """What the wheelhouse says of itself. Raises InstallError."""
    try:
        manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InstallError(f"{here}: got no readable manifest ({error}); expected a whole wheelhouse: copy it again") from error
    if not known:
        raise InstallError(f"{here}: got format {manifest['format']}; expected {FORMAT}: make the wheelhouse again")
    return manifest


def machine_faults(manifest):
    """Why this machine or this Python is not the one that the wheelhouse was made for."""
    faults = []
    python, wanted = ".".join(platform.python_version_tuple()[:2]), manifest["python"]
    if python != wanted or sys.implementation.name != "cpython":
        got = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
        todo = f"run it with python{wanted}, or make a wheelhouse with --python {python}"
        faults.append(f"got {got}; expected Python {wanted}: {todo}")
    if platform.machine() != manifest["machine"]:
        todo = f"make a wheelhouse with --platform {platform.machine()}"
        faults.append(f"got a machine of {platform.machine()}; expected {manifest['machine']}: {todo}")
    library, version = platform.libc_ver()
    if library != "glibc" or numbers(version) < numbers(manifest["glibc"]):
        got = f"{library} {version}".strip() or "an unknown C library"
        faults.append(f"got {got}; expected glibc {manifest['glibc']} or later: make a wheelhouse with --glibc")
    return faults


def file_faults(manifest, here):
    """Files that are missing, altered, or not of this wheelhouse."""
    faults = []
    for name, file in sorted(manifest["files"].items()):
        path = here / name
        if not path.is_file():
            faults.append(f"{name}: missing; expected a whole wheelhouse: copy it again")
        elif sha256_of(path) != file["sha256"]:
            got = f"{path.stat().st_size} bytes with another sha256"
            faults.append(f"{name}: got {got}; expected the {file['bytes']} bytes of the manifest: copy it again")
    there = {f"wheels/{path.name}" for path in (here / "wheels").glob("*")}
    for name in sorted(there - set(manifest["files"])):
        faults.append(f"{name}: got a file that the manifest does not name; expected none: remove it")
    return faults


def install(manifest, here, folder, system_site_packages):
    """Make the environment and install into it; whatever fails, the folder is gone afterwards. Raises InstallError."""
    if folder.exists() or folder.is_symlink():
        raise InstallError(f"got {folder}, which exists; expected a new folder: name another one, or remove it")
    if not folder.parent.is_dir():
        raise InstallError(f"got {folder}; expected {folder.parent} to be a folder that exists")
    command = folder / "bin" / manifest["distribution"]
    try:
        venv.EnvBuilder(system_site_packages=system_site_packages, symlinks=True, with_pip=False).create(str(folder))
        run(pip_command(folder / "bin" / "python", here), "installing")
        run([str(command), "--version"], "the first start")
    except BaseException:
        shutil.rmtree(str(folder), ignore_errors=True)
        raise
    print(f"{named(manifest)} is in {folder}; next: {command} doctor")


def pip_command(python, here):
    """The one call of pip, out of the wheelhouse's own wheel of it: no index, no other folder, every hash held again."""
    (pip,) = (here / "wheels").glob("pip-*.whl")
    offline = ["--no-index", "--no-cache-dir", "--quiet", "--find-links", str(here / "wheels")]
    return [str(python), str(pip / "pip"), "install", *offline, "--require-hashes", "-r", str(here / "requirements.txt")]


def run(command, doing):
    """Run a command without the user's settings of pip, which may name an index. Raises InstallError with what it said last."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH", "PYTHONHOME"))}
    # by the environment, so that it holds for the pip that builds a source archive too
    kept.update(PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONWARNINGS="ignore")
    ran = subprocess.run(command, capture_output=True, text=True, env=kept)
    if ran.returncode:
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        raise InstallError("\n".join([f"{doing} failed; nothing was installed. It said:", *said[-12:]]))


def named(manifest):
    """`rust-edge[openvino] 0.1.0`."""
    extras = f"[{','.join(manifest['extras'])}]" if manifest["extras"] else ""
    return f"{manifest['distribution']}{extras} {manifest['version']}"


def numbers(version):
    """`2.35` as (2, 35)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def sha256_of(path):
    """Hexadecimal, read in pieces: a wheel has up to 50 MB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
