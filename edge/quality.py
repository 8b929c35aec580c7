"""Quality of a bundle on labelled images: what `rust-edge evaluate` reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from edge.bundle import Bundle
from edge.engines import dense_halo
from edge.evaluation import Confusion
from edge.frame import Lines
from edge.labelled import ClassedImage, MaskedImage, read_mask
from edge.manifest import Manifest
from edge.scores import gate_scores
from edge.segmenters.slabs import SlabSegmenter
from edge.sessions import Session
from edge.sources.images import read_image
from edge.window import reflect

Mask = npt.NDArray[np.uint8]
SLAB_LINES = 1024
"""Of 16,384 columns, the widest strip: some 20 million pixels at once, half a gigabyte for the reference U-Net's first layer."""


@dataclass(slots=True)
class DefectCount:
    """Defects of one class, as 8-connected regions of the labels and of the answer.

    found: labelled ones of which at least one pixel was given their class; missed: the others.
    false_alarms: answered ones that hold no pixel labelled with their class.
    """

    found: int = 0
    missed: int = 0
    false_alarms: int = 0


@dataclass(slots=True)
class SegmenterQuality:
    """Summed over all images that were added."""

    confusion: Confusion
    defects: dict[str, DefectCount] = field(default_factory=dict)

    def add(self, truth: Mask, answer: Mask) -> None:
        """Count one image: both masks (h, w) uint8."""
        self.confusion.add(truth, answer)
        for index, name in enumerate(self.confusion.classes[1:], start=1):
            count = self.defects.setdefault(name, DefectCount())
            hit, labelled = _regions_touching(truth == index, answer == index)
            touching, answered = _regions_touching(answer == index, truth == index)
            count.found += hit
            count.missed += labelled - hit
            count.false_alarms += answered - touching


def evaluate_segmenter(session: Session, bundle: Bundle, images: Iterable[MaskedImage]) -> SegmenterQuality:
    """Each image as a strip of its own, in one dense inference. Raises ImageError."""
    classes = bundle.manifest.classes
    quality = SegmenterQuality(Confusion(classes))
    for pair in images:
        lines = read_image(pair.image)
        truth = read_mask(pair.mask, (lines.shape[0], lines.shape[1]), len(classes))
        quality.add(truth, inspect_whole(session, bundle, lines))
    return quality


def inspect_whole(session: Session, bundle: Bundle, lines: Lines) -> Mask:
    """Class of every pixel of a whole strip, (h, w) uint8: one dense inference, reflected at the strip's four sides.

    A strip of more than SLAB_LINES goes through in slabs, which bounds memory and gives the same mask.
    """
    manifest = bundle.manifest
    chunk_lines = min(-(-lines.shape[0] // manifest.stride), -(-SLAB_LINES // manifest.stride)) * manifest.stride
    segmenter = SlabSegmenter(
        session,
        width=lines.shape[1],
        chunk_lines=chunk_lines,
        halo=dense_halo(bundle),
        stride=manifest.stride,
        activation=manifest.activation,
    )
    segmenter.start(0)
    return np.concatenate([rows.mask for rows in segmenter.push(lines) + segmenter.flush()])


def evaluate_classifier(session: Session, manifest: Manifest, images: Iterable[MaskedImage | ClassedImage]) -> Confusion:
    """Every tile of every image judged; a tile's label is that of its image, or of its mask: defective from one pixel on.

    With several defect classes the most frequent one in the tile's mask is its label. Raises ImageError.
    """
    confusion, class_count = Confusion(manifest.classes), len(manifest.classes)
    for labelled in images:
        lines = read_image(labelled.image)
        tiles = tiles_of(lines, manifest)
        batch, spans = np.stack([tile for tile, _ in tiles])[:, None], [span for _, span in tiles]
        answers = _classes(session.infer(batch), manifest)
        if isinstance(labelled, ClassedImage):
            truth = np.full(len(spans), labelled.class_index)
        else:
            # to a gate that knows of one kind of defect only, any value but 0 is one
            mask = read_mask(labelled.mask, (lines.shape[0], lines.shape[1]), 256 if class_count == 2 else class_count)
            truth = np.array([_label(mask[span], class_count) for span in spans])
        confusion.add(truth, answers)
    return confusion


def tiles_of(lines: Lines, manifest: Manifest) -> list[tuple[Lines, tuple[slice, slice]]]:
    """An image cut on the gate's grid as the cascade cuts a strip: engine input, (tile_height, tile_width) uint8, and its span.

    A tile that reaches beyond the image is filled up by reflection; spans lie within the image.
    """
    size = manifest.input
    height, width = size.tile_height * size.reduce, size.tile_width * size.reduce
    tiles = []
    for top in range(0, lines.shape[0], height):
        rows = reflect(np.arange(top, top + height), 0, lines.shape[0])
        for left in range(0, lines.shape[1], width):
            tile: Lines = lines[np.ix_(rows, reflect(np.arange(left, left + width), 0, lines.shape[1]))]
            if size.reduce > 1:
                tile = np.asarray(cv2.resize(tile, (size.tile_width, size.tile_height), interpolation=cv2.INTER_AREA), np.uint8)
            span = slice(top, min(top + height, lines.shape[0])), slice(left, min(left + width, lines.shape[1]))
            tiles.append((tile, span))
    return tiles


def _classes(scores: npt.NDArray[np.float32], manifest: Manifest) -> npt.NDArray[np.int64]:
    """Class of each tile: with two classes by the gate's threshold, a half where none is stated; else the most probable."""
    if len(manifest.classes) == 2:
        threshold = manifest.gate.score if manifest.gate else 0.5
        return np.asarray(gate_scores(scores, manifest.activation) >= np.float32(threshold), np.int64)
    best = np.asarray(scores.argmax(axis=1), np.int64)
    if manifest.activation == "sigmoid":  # no channel for clean steel: that is where no other reaches a half
        best = np.where(scores.max(axis=1) >= 0, best + 1, 0)
    return best


def _label(mask: Mask, class_count: int) -> int:
    if class_count == 2:
        return int(mask.any())
    counts = np.bincount(mask.ravel(), minlength=class_count)[1:]
    return int(counts.argmax()) + 1 if counts.any() else 0


def _regions_touching(regions: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """How many 8-connected regions hold a pixel of the others, and how many there are."""
    count, labels = cv2.connectedComponents(regions.astype(np.uint8), connectivity=8)
    touched = np.unique(labels[others & regions])
    return len(touched), count - 1
