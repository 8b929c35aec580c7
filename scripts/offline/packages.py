"""Wheels and source archives as their metadata has them."""

from __future__ import annotations

import email
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from offline.pip_calls import pip

NAMED_GLIBC = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}  # PEP 513, 571, 599
OLDEST_GLIBC = 5  # 2.5, of manylinux1


@dataclass(frozen=True)
class Package:
    """A wheel, or a source archive, as its metadata has it. requires: requirements with their markers."""

    path: Path
    name: str
    version: str
    requires: tuple[str, ...]
    extras: tuple[str, ...] = ()


def download_source(requirement: str, folder: Path) -> Package:
    """The source archive of what has no wheels. Raises RefusalError."""
    name = name_of(requirement)
    pip("download", "--no-deps", "--no-binary", name, "--dest", str(folder), requirement, doing=f"downloading {name}'s source")
    (archive,) = folder.glob(f"{name}-*.tar.gz")
    fields = email.message_from_string(_member(archive, "PKG-INFO"))
    return Package(archive, canonical(fields["Name"]), fields["Version"], tuple(fields.get_all("Requires-Dist") or []))


def build_requirements(source: Package) -> list[str]:
    """What a source archive's build needs (PEP 518)."""
    import tomli

    return list(tomli.loads(_member(source.path, "pyproject.toml"))["build-system"]["requires"])


def _member(archive: Path, name: str) -> str:
    """A file of a source archive's top folder."""
    with tarfile.open(archive) as files:
        top = files.getnames()[0].split("/")[0]
        file = files.extractfile(f"{top}/{name}")
        assert file is not None
        return file.read().decode()


def package_of(wheel: Path) -> Package:
    """A wheel's metadata. Source: PEP 427."""
    with zipfile.ZipFile(wheel) as files:
        path = next(name for name in files.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = email.message_from_string(files.read(path).decode())
    requires, extras = (tuple(fields.get_all(key) or []) for key in ("Requires-Dist", "Provides-Extra"))
    return Package(wheel, canonical(fields["Name"]), fields["Version"], requires, extras)


def glibc_of(wheels: Iterable[Path]) -> int:
    """Minor version of the oldest glibc that all wheels run on.

    >>> glibc_of([Path("a-1-cp310-cp310-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"), Path("b-1-py3-none-any.whl")])
    27
    """
    least = OLDEST_GLIBC
    for wheel in wheels:
        tags = wheel.stem.rpartition("-")[2].split(".")
        minors = [int(found[1]) for tag in tags if (found := re.match(r"manylinux_2_(\d+)_", tag))]
        minors += [minor for tag in tags for name, minor in NAMED_GLIBC.items() if tag.startswith(f"{name}_")]
        least = max(least, min(minors, default=OLDEST_GLIBC))
    return least


def name_of(requirement: str) -> str:
    """Canonical name of what a requirement asks for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return canonical(found[0])


def canonical(name: str) -> str:
    """A distribution's name as indices compare it. Source: PEP 503.

    >>> canonical("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
