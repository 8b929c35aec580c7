"""GenICam features by name: set, read back, and faults told in the camera's own terms. The same on every transport."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edge.errors import ConfigError

Value = bool | int | float | str
Kind = Literal["boolean", "integer", "float", "enumeration", "string", "command"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature as the camera has it now. value: None where it cannot be read.

    least, most, step: of numbers, where the camera tells them. choices: of an enumeration, those that can be chosen now.
    """

    name: str
    kind: Kind
    value: Value | None = None
    least: float | None = None
    most: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    writable: bool = True


class FeatureAccess(Protocol):
    """An open camera's features."""

    def names(self) -> Sequence[str]:
        """All features that it has, in its own order."""
        ...

    def feature(self, name: str) -> Feature | None:
        """One of them as it is now; None: the camera has none of that name."""
        ...

    def write(self, feature: Feature, value: Value) -> None:
        """Set it; of a command, have it executed. Raises ValueError with the camera's reason."""
        ...


def set_features(camera: FeatureAccess, wanted: Mapping[str, Value], where: str) -> None:
    """Set features in the order they are given in, each read back. where: the camera, and the key they stand under.

    Raises ConfigError naming feature, what was wanted, and what the camera has.
    """
    for name, value in wanted.items():
        set_feature(camera, name, value, where)


def set_feature(camera: FeatureAccess, name: str, value: Value, where: str) -> None:
    """The same for one."""
    feature = camera.feature(name)
    if feature is None:
        near = difflib.get_close_matches(name, camera.names(), 3, 0.5)
        told = f"the nearest ones it has are {', '.join(near)}" if near else "`rust-edge cameras --features ADDRESS` lists them"
        raise ConfigError(f"{where}: {name}: the camera has no such feature; {told}")
    wanted = checked(feature, value, where)
    if not feature.writable:
        if feature.value == wanted:
            return
        raise ConfigError(f"{where}: {name}: got {value!r}, and it cannot be written now; the camera has {feature.value!r}")
    try:
        camera.write(feature, wanted)
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: got {value!r}, refused by the camera: {error}; {_told(feature)}") from error
    if feature.kind == "command":
        return
    after = camera.feature(name)
    if after is None or not _same(after, wanted):
        has = None if after is None else after.value
        raise ConfigError(
            f"{where}: {name}: got {value!r}, and the camera has {has!r} after it was set; {_told(after or feature)}"
        )


def checked(feature: Feature, value: Value, where: str) -> Value:
    """The value as the feature's kind has it. Raises ConfigError where it is none, or beyond the limits."""
    fits = {
        "boolean": lambda: isinstance(value, bool),
        "integer": lambda: isinstance(value, int) and not isinstance(value, bool),
        "float": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "enumeration": lambda: value in feature.choices,
        "string": lambda: isinstance(value, str),
        "command": lambda: value is True,
    }[feature.kind]()
    if fits and isinstance(value, int | float) and feature.kind in ("integer", "float"):
        fits = (feature.least is None or value >= feature.least) and (feature.most is None or value <= feature.most)
        if fits and feature.kind == "integer" and feature.step and feature.step > 1:
            fits = (value - (feature.least or 0)) % feature.step == 0
    if not fits:
        raise ConfigError(f"{where}: {feature.name}: got {value!r}; {_told(feature)}")
    return float(value) if feature.kind == "float" else value


def _same(feature: Feature, wanted: Value) -> bool:
    """Whether the camera has what was wanted; floats may be rounded to what its clock can do, by 1 %."""
    if feature.kind == "float" and isinstance(feature.value, int | float) and isinstance(wanted, int | float):
        return abs(feature.value - wanted) <= max(0.01 * abs(wanted), (feature.step or 0.0), 1e-9)
    return feature.value == wanted


def _told(feature: Feature) -> str:
    """What the camera takes, and has."""
    if feature.kind == "enumeration":
        return f"the camera takes {', '.join(feature.choices) or 'none now'}; it has {feature.value}"
    if feature.kind == "boolean":
        return f"the camera takes true or false; it has {str(feature.value).lower()}"
    if feature.kind == "command":
        return "the camera takes true, which executes it"
    if feature.kind == "string":
        return f"the camera takes text; it has {feature.value!r}"
    limits = [f"{word} {limit:g}" for word, limit in (("from", feature.least), ("to", feature.most)) if limit is not None]
    if feature.kind == "integer" and feature.step and feature.step > 1:
        limits.append(f"in steps of {feature.step:g}")
    kind = "whole numbers" if feature.kind == "integer" else "numbers"
    return f"the camera takes {' '.join([kind, *limits])}; it has {feature.value}"
