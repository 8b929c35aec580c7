"""What a camera delivers: frames of lines, and the contract of everything that delivers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Lines = npt.NDArray[np.uint8]
"""Grey lines of a strip, (lines, columns), 0 black to 255 white."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Consecutive camera lines and where on the strip they lie.

    lines: (h, w) uint8, h >= 1.
    first_line: strip coordinate of `lines[0]`; a frame that starts beyond the last one's end says that lines were lost.
    captured_ns: `time.time_ns()` when the last of its lines was read out.
    """

    lines: Lines
    first_line: int
    captured_ns: int

    def __post_init__(self) -> None:
        if self.lines.ndim != 2 or self.lines.dtype != np.uint8 or 0 in self.lines.shape:
            raise ValueError(f"a frame is (lines, columns) uint8, got {self.lines.dtype} {self.lines.shape}")
        if self.first_line < 0:
            raise ValueError(f"first_line starts at 0, got {self.first_line}")

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the last line."""
        return self.first_line + len(self.lines)


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """Counters since the source was opened; published as they are. counters: what else the source counts, by name."""

    frames: int = 0
    lines: int = 0
    lost_lines: int = 0
    counters: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class FrameSource(Protocol):
    """Delivers one strip's frames in order. A context manager: opened once, at the top.

    width: columns of every frame.
    waits: True where the source can wait for its consumer (a folder); False for a camera, whose lines pass whether
        or not anybody looks: what the consumer cannot take is shed and counted.
    """

    @property
    def width(self) -> int:
        """Columns of every frame."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it can wait for its consumer."""
        ...

    def __enter__(self) -> FrameSource: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        """Frames from strip line `first_line` on, until the strip ends.

        The first frame starts exactly at `first_line`. Raises SourceError.
        """
        ...

    def health(self) -> SourceHealth:
        """Counters since it was opened."""
        ...
