"""Lines that a camera is measured from: read from images, or taken from a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import SourceError
from edge.frame import FrameSource, Lines
from edge.sources.folder import images_of
from edge.sources.images import read_image_size, read_levels

Levels = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MOST_PIXELS = 1 << 28
"""Of one recording: 256 MiB of 8 bits, 32768 lines of 8192 columns, more than any of these measurements gains from."""
LEVELS_16_BIT_PER_GREY = 257
"""As edge.sources.images makes 8 bits of 16: 65535 is 255."""


class RecordingError(SourceError):
    """What was recorded does not tell what is to be measured: record again as the message says."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Consecutive lines of one scene. levels: (n, width) uint8 or uint16. origin: names it in errors. files: it was read from."""

    levels: Levels
    origin: str
    files: tuple[str, ...] = ()

    @property
    def levels_per_grey(self) -> int:
        """1 of 8 bits, 257 of 16."""
        return LEVELS_16_BIT_PER_GREY if self.levels.dtype == np.uint16 else 1

    @property
    def lines(self) -> int:
        """How many."""
        return len(self.levels)

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.levels.shape[1])


def read_recording(paths: Sequence[Path], argument: str) -> Recording:
    """Images and folders of them, in name order, one below the other. argument: names them in errors.

    Raises ConfigError, SourceError where there is none, ImageError, RecordingError where they do not belong together.
    """
    images = images_of(list(paths))
    sizes = [read_image_size(image) for image in images]
    for image, size in zip(images, sizes, strict=True):
        if size.columns != sizes[0].columns:
            raise RecordingError(
                f"{argument}: {image} has {size.columns} columns, {images[0]} has {sizes[0].columns}; expected one width"
            )
    _require_room(sum(size.lines for size in sizes), sizes[0].columns, argument)
    parts = [read_levels(image) for image in images]
    for image, part in zip(images, parts, strict=True):
        if part.dtype != parts[0].dtype:
            raise RecordingError(f"{argument}: {image} has {part.dtype} levels, {images[0]} {parts[0].dtype}; expected one depth")
    return Recording(np.concatenate(parts), argument, tuple(image.name for image in images))


def record(source: FrameSource, lines: int, origin: str, first_line: int = 0) -> Recording:
    """The next `lines` lines of a source that is open. Raises RecordingError where it ends before, or loses some; SourceError."""
    _require_room(lines, source.width, origin)
    parts: list[Lines] = []
    taken = 0
    for frame in source.frames(first_line):
        if frame.first_line != first_line + taken:
            lost = frame.first_line - first_line - taken
            raise RecordingError(f"{origin}: {lost} lines were lost after {taken}; expected {lines} in a row: a lower line rate")
        parts.append(frame.lines[: lines - taken].copy())
        taken += len(parts[-1])
        if taken == lines:
            return Recording(np.concatenate(parts), origin)
    raise RecordingError(f"{origin}: the source ended after {taken} lines; expected {lines}")


def require_width(recordings: Sequence[Recording]) -> None:
    """Raise RecordingError where recordings are not of one camera: width and depth."""
    first = recordings[0]
    for other in recordings[1:]:
        if other.width != first.width:
            raise RecordingError(
                f"{other.origin}: got {other.width} columns, {first.origin} has {first.width}; expected both of one camera"
            )
        if other.levels.dtype != first.levels.dtype:
            raise RecordingError(
                f"{other.origin}: got {other.levels.dtype} levels, {first.origin} {first.levels.dtype}; expected the same depth"
            )


def _require_room(lines: int, width: int, origin: str) -> None:
    if lines * width > MOST_PIXELS:
        raise RecordingError(
            f"{origin}: got {lines} lines of {width} columns; expected at most {MOST_PIXELS // width}: more tell nothing more"
        )
