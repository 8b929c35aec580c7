"""What has to be in a wheelhouse for a device: requirements as they hold there, followed to their end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offline.packages import NAMED_GLIBC, OLDEST_GLIBC, Package, canonical, name_of, package_of
from offline.pip_calls import RefusalError, pip

NOT_OF_A_DEVICE = ("torch",)  # gigabytes that nothing on a device uses
MOST_ROUNDS = 12  # each round of the resolution adds at least one requirement; two are usual


@dataclass(frozen=True)
class Target:
    """The device. python: `3.10`. glibc: minor version of its C library, 35 for 2.35. extras: of rust-edge."""

    machine: str
    python: str
    glibc: int
    extras: tuple[str, ...]

    @property
    def pip_options(self) -> list[str]:
        """What makes pip choose for the device and not for this machine."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        tags += [f"{name}_{self.machine}" for name, minor in NAMED_GLIBC.items() if minor <= self.glibc]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        return options + [word for tag in tags for word in ("--platform", tag)]

    def environments(self) -> list[dict[str, str]]:
        """Values of environment markers (PEP 508) on the device: of its Python's first patch version and of a late one."""
        fixed = {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }
        return [
            fixed | {"python_full_version": f"{self.python}.{patch}", "implementation_version": f"{self.python}.{patch}"}
            for patch in (0, 99)
        ]


def own_requirements(own: Package, target: Target) -> list[str]:
    """What rust-edge asks for on the device, its own extras followed. Raises RefusalError."""
    unknown = [extra for extra in target.extras if extra not in own.extras]
    if unknown:
        raise RefusalError(f"--extras: got {', '.join(unknown)}; expected some of {', '.join(sorted(own.extras))}")
    wanted: dict[str, None] = {}
    for extra in target.extras:
        asked = list(applicable(own, (extra,), target))
        heavy = sorted({name_of(text) for text in asked} & {*NOT_OF_A_DEVICE})
        if heavy:
            raise RefusalError(
                f"--extras: got {extra}, which needs {', '.join(heavy)}; expected what a device runs: export elsewhere"
            )
        wanted |= dict.fromkeys(asked)
    return list(dict.fromkeys([*applicable(own, (), target), *wanted]))


def applicable(package: Package, extras: Iterable[str], target: Target) -> Iterator[str]:
    """Requirements of a package, with extras, that hold on the device; without markers; its own extras followed."""
    from packaging.requirements import Requirement

    pending, done = ["", *extras], set()
    while pending:
        extra = pending.pop()
        if extra in done:
            continue
        done.add(extra)
        for text in package.requires:
            requirement = Requirement(text)
            marker = requirement.marker
            if extra and (marker is None or "extra" not in str(marker)):
                continue  # it holds without the extra
            if marker is not None and not any(marker.evaluate({**here, "extra": extra}) for here in target.environments()):
                continue
            if canonical(requirement.name) == package.name:
                pending += requirement.extras
                continue
            requirement.marker = None
            yield str(requirement)


def resolve(requirements: Sequence[str], target: Target, folder: Path) -> list[Package]:
    """Wheels for the device that satisfy requirements and each other's. Raises RefusalError.

    pip evaluates environment markers for the Python that it runs in (pip issue 11664), not for the device's: what holds on the
    device alone is asked for by name in another round, until nothing is missing.
    """
    asked = list(dict.fromkeys(requirements))
    for number in range(MOST_ROUNDS):
        into = folder / f"round-{number}"
        pip("download", "--dest", str(into), *target.pip_options, *asked, doing=f"downloading for {target.machine}")
        packages = [package_of(path) for path in sorted(into.glob("*.whl"))]
        missing = missing_of(asked, packages, target)
        if not missing:
            return packages
        asked += missing
    raise RefusalError(
        f"got requirements that pip does not satisfy: {', '.join(missing)}; expected Python {target.python} to run this"
    )


def missing_of(requirements: Iterable[str], packages: Iterable[Package], target: Target) -> list[str]:
    """Requirements, those of the packages that they lead to included, that no package satisfies."""
    from packaging.requirements import Requirement

    by_name = {package.name: package for package in packages}
    missing: dict[str, None] = {}
    for text in _walk(requirements, by_name, target):
        requirement = Requirement(text)
        package = by_name.get(canonical(requirement.name))
        if package is None or not requirement.specifier.contains(package.version, prereleases=True):
            missing[text] = None
    return list(missing)


def reachable(requirements: Iterable[str], packages: Iterable[Package], target: Target) -> list[Package]:
    """The packages that requirements lead to: no more is installed."""
    by_name = {package.name: package for package in packages}
    names = {name_of(text) for text in _walk(requirements, by_name, target)}
    return [package for name, package in sorted(by_name.items()) if name in names]


def _walk(requirements: Iterable[str], by_name: dict[str, Package], target: Target) -> Iterator[str]:
    """Requirements and those of the packages that they lead to, each once."""
    from packaging.requirements import Requirement

    pending, seen = list(requirements), set()
    while pending:
        text = pending.pop(0)
        if text in seen:
            continue
        seen.add(text)
        yield text
        requirement = Requirement(text)
        package = by_name.get(canonical(requirement.name))
        if package is not None:
            pending += applicable(package, sorted(requirement.extras), target)
