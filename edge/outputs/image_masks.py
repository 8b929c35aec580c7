"""Masks of the images that a strip was put together from, cut out of the strip's rows again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StripImage:
    """An image's part of the strip: its name and its lines."""

    name: str
    lines: int


class ImageMasks:
    """Takes the strip's mask row by row and gives each image's own. Rows are kept until their image is complete."""

    def __init__(self, images: Sequence[StripImage]) -> None:
        self._images = list(images)
        self._kept: list[Mask] = []
        self._kept_lines = 0

    def push(self, mask: Mask) -> Iterator[tuple[str, Mask]]:
        """Take rows of the strip's class mask, (h, width) uint8; names and masks, (lines, width), of the images now complete."""
        while self._images and self._kept_lines + len(mask) >= self._images[0].lines:
            image = self._images.pop(0)
            missing = image.lines - self._kept_lines
            whole = np.concatenate([*self._kept, mask[:missing]])
            self._kept, self._kept_lines, mask = [], 0, mask[missing:]
            yield image.name, whole
        if len(mask):
            self._kept.append(mask.copy())
            self._kept_lines += len(mask)

    def finish(self) -> None:
        """The strip has ended. ValueError where rows and images do not come out even."""
        if self._images or self._kept_lines:
            raise ValueError(f"{len(self._images)} images without all their rows, {self._kept_lines} rows without an image")
