"""Flat-field correction: dark signal and gain of each sensor column, as the device applies them, and the file that holds them.

    grey = min(255, (max(0, 256 raw - dark) * gain + 2^19) >> 20)      dark in 1/256 grey level, gain in 1/4096

The GPU's kernel `flat_field` (edge/cuda/kernels.cu) computes the same. Dead and hot columns come after it: with the nearest
good columns l to the left and r to the right of column c, and n = r - l,

    grey[c] = ((r - c) grey[l] + (c - l) grey[r] + n // 2) // n        at the line's ends: the one good neighbour there is

so that each is a function of two corrected columns alone, whatever the order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ConfigError
from edge.frame import Lines
from edge.outputs.output_file import OutputFile

DARK_UNIT, GAIN_UNIT = 256, 4096
"""Steps in a grey level of dark signal, and in a gain of 1."""
DARK_MAX, GAIN_MAX = 65535 / DARK_UNIT, 65535 / GAIN_UNIT
"""What 16 bits hold: 255.996 grey levels, a gain of 15.9998."""
OFFSET_LIMIT = 1 << 31
"""dark * gain stays below it: 2048 corrected grey levels, beyond any camera, and all below is exact in float32 (see `_Terms`)."""
MOST_COLUMNS = 65536

_BLOCK_PIXELS = 1 << 16
"""Pixels corrected at once: their float32 then stay in a second-level cache of 512 KiB; half or twice as many cost more."""
_REMEDY = "make it again: rust-edge calibrate flat-field"

Words = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Part(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(Part):
    """From low to high, both included."""

    low: float
    high: float


class Provenance(Part):
    """How a flat field came about. What the camera did not tell, and nobody said, is none.

    level: grey level that the bright target has after correction. noise_grey: largest standard error of a column's bright mean.
    """

    camera: str
    made_at: AwareDatetime
    version: str = Field(description="Of rust-edge.")
    dark_lines: int = Field(ge=1)
    bright_lines: int = Field(ge=1)
    level: float = Field(gt=0)
    noise_grey: float = Field(ge=0)
    line_rate_hz: float | None = Field(None, gt=0)
    analogue_gain: str | None = None
    images: tuple[str, ...] = ()


class Validity(Part):
    """What a flat field holds for; none: not known, and nothing is checked."""

    exposure_us: Interval | None = None
    temperature_c: Interval | None = None


class _Document(Part):
    """The file, without its checksum."""

    format: Literal["rust-edge-flat-field"] = "rust-edge-flat-field"
    format_version: Literal[1] = 1
    provenance: Provenance
    validity: Validity
    width: int = Field(ge=1, le=MOST_COLUMNS)
    interpolated_columns: tuple[int, ...]
    dark_256ths: tuple[int, ...]
    gain_4096ths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a block is multiplied with and offset by, (block lines, width) float32 each, and which columns are made of which.

    In units of 1/4096 grey level a corrected pixel is floor((raw gain 256 - dark gain + 2^19) / 2^8) =
    raw gain + b with b = floor((2^19 - dark gain) / 2^8): |b| < 2^23 and raw gain < 2^24 are exact in float32. The offset is
    (b - 2047.5) / 4096, a multiple of 2^-13 below 2^11, exact too: rounding to the nearest is then the floor that is wanted, and
    a tie never comes. Sums beyond 2^11 may be rounded themselves, and are white anyway.
    """

    gain: Floats
    offset: Floats
    made: Ints
    left: Ints
    right: Ints
    left_weight: npt.NDArray[np.int32]
    right_weight: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class FlatField:
    """Dark signal and gain per column of one camera.

    dark: (width,) uint16, 1/256 grey level. gain: (width,) uint16, 1/4096. interpolated: columns made of their neighbours,
    rising. sha256: of the file's content. Raises ValueError where a value is out of range.
    """

    dark: Words
    gain: Words
    interpolated: tuple[int, ...]
    provenance: Provenance
    validity: Validity

    def __post_init__(self) -> None:
        if self.dark.ndim != 1 or self.dark.shape != self.gain.shape or not 1 <= len(self.dark) <= MOST_COLUMNS:
            raise ValueError(f"got dark {self.dark.shape} and gain {self.gain.shape}; expected (width,) each")
        if self.dark.dtype != np.uint16 or self.gain.dtype != np.uint16:
            raise ValueError(f"got {self.dark.dtype} and {self.gain.dtype}; expected uint16")
        columns = np.asarray(self.interpolated, np.int64)
        if len(columns) and (columns[0] < 0 or columns[-1] >= self.width or (np.diff(columns) <= 0).any()):
            raise ValueError(f"got interpolated columns {self.interpolated}; expected rising ones from 0 to {self.width - 1}")
        if len(columns) == self.width:
            raise ValueError("every column is interpolated; expected at least one good one")
        most = int((self.dark.astype(np.int64) * self.gain).max())
        if most >= OFFSET_LIMIT:
            raise ValueError(f"got a dark signal times gain of {most / 2**20:.0f} grey levels; expected less than 2048")

    @property
    def width(self) -> int:
        """Columns of the camera."""
        return len(self.dark)

    @property
    def sha256(self) -> str:
        """Of all that is in the file, hexadecimal."""
        return _checksum(_document_of(self))


class Correction:
    """A flat field ready to be applied to one camera's lines. For any thread; it remembers nothing of them."""

    def __init__(self, field: FlatField) -> None:
        self._field = field
        self._lines = max(1, min(64, _BLOCK_PIXELS // field.width))
        self._terms = _terms_of(field, self._lines)

    def __call__(self, lines: Lines, out: Lines | None = None) -> Lines:
        """Corrected lines, (h, width) uint8. out: written to and returned; it may be `lines` itself. Raises ConfigError."""
        require_width(self._field, lines.shape[1])
        corrected = np.empty_like(lines, order="C") if out is None else out
        terms = self._terms
        product = np.empty((self._lines, self._field.width), np.float32)
        for first in range(0, len(lines), self._lines):
            block = lines[first : first + self._lines]
            count = len(block)
            cv2.multiply(block, terms.gain[:count], dst=product[:count], dtype=cv2.CV_32F)
            target = corrected[first : first + count]
            cv2.add(product[:count], terms.offset[:count], dst=target, dtype=cv2.CV_8U)
            if len(terms.made):
                _interpolate(target, terms)
        return corrected


def correct(field: FlatField, lines: Lines, out: Lines | None = None) -> Lines:
    """Lines (h, width) uint8 corrected; for many of them keep a `Correction`. out: as there. Raises ConfigError."""
    return Correction(field)(lines, out)


def require_width(field: FlatField, width: int) -> None:
    """Raise ConfigError where a camera has another number of columns."""
    if field.width != width:
        raise ConfigError(
            f"flat_field: flat field has {field.width} columns, the camera delivers {width}; "
            "expected one made with this camera and this region of interest"
        )


def require_exposure(field: FlatField, exposure_us: float) -> None:
    """Raise ConfigError where the dark signal is that of another exposure."""
    valid = field.validity.exposure_us
    if valid is not None and not valid.low <= exposure_us <= valid.high:
        raise ConfigError(
            f"flat_field: flat field holds for exposures from {valid.low:g} to {valid.high:g} us, source.exposure_us is "
            f"{exposure_us:g}; expected one of these, or a flat field made with it"
        )


def neighbours_of(interpolated: Sequence[int], width: int) -> tuple[Ints, Ints]:
    """The nearest columns to the left and right of each interpolated one that are not, (n,) int64 each; at an end both the same.

    >>> [side.tolist() for side in neighbours_of([0, 3, 4, 7], 8)]
    [[1, 2, 2, 6], [1, 5, 5, 6]]
    """
    good = np.ones(width, np.bool_)
    good[list(interpolated)] = False
    columns = np.arange(width)
    left = np.maximum.accumulate(np.where(good, columns, -1))[list(interpolated)]
    right = np.minimum.accumulate(np.where(good, columns, width)[::-1])[::-1][list(interpolated)]
    return np.where(left < 0, right, left), np.where(right == width, left, right)


def read_flat_field(path: Path) -> FlatField:
    """The flat field of a file. Raises ConfigError where it is missing, damaged, or of another version."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"flat_field: {path}: cannot be read ({error.strerror}); expected a flat field, or none") from error
    except ValueError as error:  # not UTF-8, not JSON
        raise ConfigError(f"flat_field: {path}: is no flat field, or damaged ({error}); {_REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != "rust-edge-flat-field":
        raise ConfigError(f"flat_field: {path}: is no flat field; expected a file that `rust-edge calibrate flat-field` wrote")
    if content.get("format_version") != 1:
        raise ConfigError(f"flat_field: {path}: has version {content.get('format_version')}, expected 1; {_REMEDY}")
    told = content.pop("sha256", None)
    got = _checksum(content)
    if told != got:
        raise ConfigError(f"flat_field: {path}: is damaged: its sha256 is {got}, it says {told}; {_REMEDY}")
    try:
        document = _Document.model_validate(content)
        dark, gain = (_words(values, document.width) for values in (document.dark_256ths, document.gain_4096ths))
        return FlatField(dark, gain, document.interpolated_columns, document.provenance, document.validity)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"flat_field: {path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; {_REMEDY}") from error
    except ValueError as error:
        raise ConfigError(f"flat_field: {path}: {error}; {_REMEDY}") from error


def flat_field_bytes(field: FlatField) -> bytes:
    """The file's content: JSON of one key a line."""
    content = _document_of(field)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**content, "sha256": _checksum(content)}.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def write_flat_field(path: Path, field: FlatField, argument: str) -> None:
    """Put a flat field at a path, whole or not at all. argument: names the path in errors. Raises ConfigError."""
    with OutputFile(path, argument) as output:
        output.file.write(flat_field_bytes(field))


def words_of(values: npt.NDArray[np.float64], unit: int) -> Words:
    """Values in steps of 1/unit, the nearest ones, (n,) uint16. Raises ValueError where 16 bits do not hold one."""
    steps = np.rint(values * unit)
    if not (np.isfinite(steps).all() and steps.min() >= 0 and steps.max() <= 65535):
        raise ValueError(f"got values from {values.min():.4g} to {values.max():.4g}; expected 0 to {65535 / unit:.4g}")
    return steps.astype(np.uint16)


def _terms_of(field: FlatField, lines: int) -> _Terms:
    dark, gain = field.dark.astype(np.int64), field.gain.astype(np.int64)
    offset = ((1 << 19) - dark * gain) >> 8
    left, right = neighbours_of(field.interpolated, field.width)
    made = np.asarray(field.interpolated, np.int64)
    # where both neighbours are the same column either weight does
    return _Terms(
        _repeated((gain / GAIN_UNIT).astype(np.float32), lines),
        _repeated(((offset - 2047.5) / 4096).astype(np.float32), lines),
        made,
        left,
        right,
        np.where(left == right, 1, np.abs(right - made)).astype(np.int32),
        np.where(left == right, 0, np.abs(made - left)).astype(np.int32),
    )


def _interpolate(block: Lines, terms: _Terms) -> None:
    span = terms.left_weight + terms.right_weight
    weighted = block[:, terms.left] * terms.left_weight + block[:, terms.right] * terms.right_weight
    block[:, terms.made] = (weighted + span // 2) // span


def _repeated(row: Floats, lines: int) -> Floats:
    return np.ascontiguousarray(np.broadcast_to(row, (lines, len(row))))


def _words(values: Sequence[int], width: int) -> Words:
    if len(values) != width or min(values) < 0 or max(values) > 65535:
        raise ValueError(
            f"got {len(values)} values from {min(values, default=0)} to {max(values, default=0)}; "
            f"expected {width} from 0 to 65535"
        )
    return np.asarray(values, np.uint16)


def _document_of(field: FlatField) -> dict[str, Any]:
    return _Document(
        provenance=field.provenance,
        validity=field.validity,
        width=field.width,
        interpolated_columns=field.interpolated,
        dark_256ths=tuple(field.dark.tolist()),
        gain_4096ths=tuple(field.gain.tolist()),
    ).model_dump(mode="json")


def _checksum(content: dict[str, Any]) -> str:
    """Of JSON without spaces, keys sorted: whoever formats the file anew does not damage it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
