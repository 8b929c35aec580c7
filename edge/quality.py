"""Quality of a bundle on labelled images: what `rust-edge evaluate` reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from edge.bundle import Bundle
from edge.engines import channels_of, dense_halo, reading_of, tile_engine
from edge.evaluation import Confusion
from edge.frame import Lines
from edge.labelled import ClassedImage, MaskedImage, read_mask
from edge.manifest import Manifest, Resize
from edge.preparation import Size
from edge.segmenters import Segmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.tiles import TileSegmenter
from edge.sessions import Session
from edge.sources.images import read_image
from edge.station import reasons_for_tiles
from edge.tile_plan import grid_tile
from edge.tiling import TileAxis
from edge.window import reflect

Mask = npt.NDArray[np.uint8]
SLAB_LINES = 1024
"""Of 16,384 columns, the widest strip: some 20 million pixels at once, half a gigabyte for the reference U-Net's first layer."""
TILES_AT_ONCE = 8
"""As many as a station has at once by default (`tiling.batch`); the answers do not depend on it."""


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
    """Each image as a strip of its own, inspected whole. Raises ImageError."""
    classes = bundle.manifest.classes
    quality = SegmenterQuality(Confusion(classes))
    for pair in images:
        lines = read_image(pair.image)
        truth = read_mask(pair.mask, (lines.shape[0], lines.shape[1]), len(classes))
        quality.add(truth, inspect_whole(session, bundle, lines))
    return quality


def inspect_whole(session: Session, bundle: Bundle, lines: Lines) -> Mask:
    """Class of every pixel of a whole strip, (h, w) uint8: one dense inference, reflected at the strip's four sides.

    A strip of more than SLAB_LINES goes through in slabs, which bounds memory and gives the same mask. A segmenter that runs
    on tiles alone sees the tiles of `image_tile`, without overlap.
    """
    tiled = bool(reasons_for_tiles(bundle.manifest))
    size = (lines.shape[0], lines.shape[1])
    segmenter = _tile_segmenter(session, bundle.manifest, size) if tiled else _slab_segmenter(session, bundle, size)
    segmenter.start(0)
    return np.concatenate([rows.mask for rows in segmenter.push(lines) + segmenter.flush()])


def image_tile(manifest: Manifest, image: Size) -> Size:
    """Lines and columns of the tiles that an image is cut into.

    The bundle's `strip_tile`, else the engine's input times `reduce`; but the whole image where tiles are resized to the
    engine's input and the bundle does not say how large they are.
    """
    resized = any(isinstance(step, Resize) for step in manifest.preparation)
    return image if resized and manifest.strip_tile is None else grid_tile(manifest)


def _slab_segmenter(session: Session, bundle: Bundle, image: Size) -> Segmenter:
    manifest = bundle.manifest
    return SlabSegmenter(
        session,
        width=image[1],
        chunk_lines=min(-(-image[0] // manifest.stride), -(-SLAB_LINES // manifest.stride)) * manifest.stride,
        halo=dense_halo(bundle),
        stride=manifest.stride,
        reading=reading_of(manifest),
    )


def _tile_segmenter(session: Session, manifest: Manifest, image: Size) -> Segmenter:
    lines, columns = image_tile(manifest, image)
    return TileSegmenter(
        tile_engine(session, manifest, TILES_AT_ONCE),
        reading_of(manifest),
        channels_of(manifest),
        width=image[1],
        lines=TileAxis(lines, lines),
        columns=TileAxis(columns, columns),
        merge="core",
    )


def evaluate_classifier(session: Session, manifest: Manifest, images: Iterable[MaskedImage | ClassedImage]) -> Confusion:
    """Every tile of every image judged; a tile's label is that of its image, or of its mask: defective from one pixel on.

    With several defect classes the most frequent one in the tile's mask is its label. A gate of cells is judged by them where
    there are masks; where there are none a tile is what its worst cell is. Raises ImageError.
    """
    confusion, class_count = Confusion(manifest.classes), len(manifest.classes)
    engine, reading = tile_engine(session, manifest, TILES_AT_ONCE), replace(reading_of(manifest), steps=session.steps)
    for labelled in images:
        lines = read_image(labelled.image)
        tiles, spans = zip(*tiles_of(lines, manifest), strict=True)
        verdicts = [reading.classes(answer)[0] for answer in engine.answers(tiles)]
        if isinstance(labelled, ClassedImage):
            confusion.add(np.full(len(spans), labelled.class_index), np.array([verdict.max() for verdict in verdicts]))
            continue
        # to a gate that knows of one kind of defect only, any value but 0 is one
        mask = read_mask(labelled.mask, (lines.shape[0], lines.shape[1]), 256 if class_count == 2 else class_count)
        for tile, span, verdict in zip(tiles, spans, verdicts, strict=True):
            truth = [(_label(part, class_count), got) for part, got in _cells(mask[span], tile.shape, verdict)]
            confusion.add(*np.array(truth).T)
    return confusion


def _cells(mask: Mask, tile: Size, verdict: Mask) -> Iterator[tuple[Mask, int]]:
    """The part of a tile's mask that each verdict (rows, columns) is about; the mask may end before the tile does."""
    height, width = tile[0] // verdict.shape[0], tile[1] // verdict.shape[1]
    for (row, column), got in np.ndenumerate(verdict):
        part = mask[row * height : (row + 1) * height, column * width : (column + 1) * width]
        if part.size:
            yield part, int(got)


def tiles_of(lines: Lines, manifest: Manifest) -> list[tuple[Lines, tuple[slice, slice]]]:
    """An image cut into the tiles of `image_tile`, as a strip is: each (lines, columns) uint8, not yet prepared, and its span.

    A tile that reaches beyond the image is filled up by reflection; spans lie within the image.
    """
    height, width = image_tile(manifest, (lines.shape[0], lines.shape[1]))
    tiles = []
    for top in range(0, lines.shape[0], height):
        rows = reflect(np.arange(top, top + height), 0, lines.shape[0])
        for left in range(0, lines.shape[1], width):
            tile: Lines = lines[np.ix_(rows, reflect(np.arange(left, left + width), 0, lines.shape[1]))]
            tiles.append((tile, (slice(top, min(top + height, lines.shape[0])), slice(left, min(left + width, lines.shape[1])))))
    return tiles


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
