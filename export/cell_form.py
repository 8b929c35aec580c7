"""How a strip, or an image of one, becomes what a gate that scores cells looks at, and what of its scores is the image's."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.scores import Activation, gate_scores
from edge.sessions import Batch, Scores
from export.radius import Reach
from export.samples import Image, reflect


def in_whole_cells(mask: Image, cell: int) -> Image:
    """A mask (lines, columns) reflected below and right up to whole cells of `cell` px, as its image is."""
    return np.pad(mask, [(0, -side % cell) for side in mask.shape], mode="reflect")


@dataclass(frozen=True, slots=True)
class CellForm:
    """cell: pixels of the network's input a side. reduce: strip pixels per input pixel, averaged. reach: of the network."""

    cell: int
    reduce: int
    reach: Reach

    @property
    def strip_px(self) -> int:
        """Side of a cell on the strip."""
        return self.cell * self.reduce

    def image(self, image: Image) -> Batch:
        """An image (lines, columns) of the strip as the network gets it, (1, 1, h, w).

        It is reflected by the halo at its four sides, as a station does with a run, and up to whole cells below and right.
        """
        around = reflect(image, self.reach.halo * self.reduce, self.reach.stride * self.reduce)
        return self.reduced(around)[None, None]

    def reduced(self, image: Image) -> Image:
        """An image at the scale of the network's input; sides are multiples of `reduce`."""
        size = (image.shape[1] // self.reduce, image.shape[0] // self.reduce)
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

    def probabilities(self, scores: Scores, image: Image, activation: Activation) -> npt.NDArray[np.float32]:
        """Probability of a defect in each cell of an image, (rows, columns): of `scores` (channels, h, w), without the margin."""
        first = self.reach.halo // self.cell
        rows, columns = (-(-side // self.strip_px) for side in image.shape)
        inner = scores[:, first : first + rows, first : first + columns]
        return gate_scores(inner.reshape(len(inner), -1).T, activation).reshape(rows, columns)
