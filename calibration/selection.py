"""Which tiles an engine is calibrated with: every kind of steel that the candidates hold, chosen by a seed and listed.

Activation ranges follow from the rarest tile as much as from the commonest one: chosen at random, five hundred tiles of a
strip with one defect in a thousand would hold none. So candidates are put into strata by the classes that they show and by
their brightness, one of each stratum is taken, and the rest in proportion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calibration.activations import CalibrationError

Image = npt.NDArray[np.uint8]

BRIGHTNESS_STRATA = 4
"""Quartiles of the mean grey level: dark, bright, and what lies between, as the lamps' drift leaves them."""

CONTRAST_STRATA = 3
"""Thirds of the contrast, for tiles without a mask: a defect is among those of high contrast more often than not."""

RECOMMENDED = 500
"""Tiles. Source: NVIDIA, TensorRT Developer Guide, "INT8 Calibration": about 500 images suffice for ImageNet classifiers."""

FEW = 100
"""Below so many tiles ranges are told to be doubtful: calibration wants hundreds."""

_NAMED = 3  # how many names a warning lists


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tile that could be taken.

    origin: name of the image or strip. row, column: the tile's first pixel in it.
    mean: grey level, 0 to 255. contrast: standard deviation of the grey levels.
    classes: index of every class that occurs in it, 0 being clean steel; None where nobody has labelled it.
    """

    origin: str
    row: int
    column: int
    mean: float
    contrast: float
    classes: frozenset[int] | None = None

    @property
    def defects(self) -> frozenset[int] | None:
        """Its classes but for clean steel; None where they are not known."""
        return None if self.classes is None else self.classes - {0}


@dataclass(frozen=True, slots=True)
class Stratum:
    """Candidates of one kind, and how many of them were chosen.

    defects: the classes that they show, clean steel left out; None: not labelled. darkest, brightest: mean grey levels.
    least_contrast, most_contrast: standard deviations of the grey levels; strata of labelled tiles are not split by them.
    """

    defects: frozenset[int] | None
    darkest: float
    brightest: float
    least_contrast: float
    most_contrast: float
    candidates: int
    chosen: int

    def named(self, class_names: Sequence[str]) -> str:
        """What its tiles show, in words.

        >>> Stratum(frozenset({1, 2}), 90.2, 101.0, 3.0, 9.0, 40, 5).named(["clean", "pit", "scratch"])
        'pit + scratch, grey 90 to 101'
        """
        grey = f"grey {self.darkest:.0f} to {self.brightest:.0f}"
        if self.defects is None:
            return f"unlabelled, {grey}, contrast {self.least_contrast:.0f} to {self.most_contrast:.0f}"
        return f"{_shown(self.defects, class_names)}, {grey}"


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen of the candidates, and from what.

    chosen: by origin, row and column. strata: in a fixed order, those of which nothing was chosen too.
    warnings: what makes ranges from these tiles doubtful, a sentence each.
    """

    chosen: tuple[Candidate, ...]
    strata: tuple[Stratum, ...]
    warnings: tuple[str, ...] = ()


def select(candidates: Sequence[Candidate], count: int, seed: int, class_names: Sequence[str] = ()) -> Selection:
    """`count` tiles, or all where there are fewer: one of each stratum, the rest in proportion to the strata.

    Where `count` is below the number of strata, those come first that show a class, or a brightness, that is not there yet.
    Within a stratum tiles are taken evenly over its brightness. The order of the candidates does not matter.
    class_names: by index, for the warnings; with them, classes that no candidate shows are told too.
    Raises CalibrationError where there are no candidates, `count` is below 1, or one is there twice.
    """
    _require_sound(candidates, count)
    strata = _strata(candidates)
    shares = _shares(strata, min(count, len(candidates)))
    random = np.random.default_rng(seed)
    # drawn for strata without a share too: what is taken of one does not depend on the shares of those before it
    offsets = {kind: int(random.integers(len(members))) for kind, members in strata.items()}
    chosen = [tile for kind, members in strata.items() for tile in _evenly(members, shares[kind], offsets[kind])]
    table = tuple(_described(kind, members, shares[kind]) for kind, members in strata.items())
    selection = Selection(tuple(sorted(chosen, key=_place)), table)
    return replace(selection, warnings=tuple(_warnings(candidates, selection, class_names)))


def candidates_of(name: str, image: Image, mask: Image | None, tile_height: int, tile_width: int) -> list[Candidate]:
    """The tiles that an image or a strip is cut into.

    Row by row without overlap; the last of a row and of a column reach back so as to be whole; an image smaller than a tile
    is one candidate. Tiles are looked at one at a time: image and mask may be memory maps of any length.
    image: (h, w) uint8. mask: (h, w) uint8 class indices, 0 clean, or None. Raises CalibrationError where they do not match.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise CalibrationError(f"{name}: got an image of {image.dtype} {image.shape}, expected grey (h, w) uint8")
    if mask is not None and (mask.shape != image.shape or mask.dtype != np.uint8):
        raise CalibrationError(
            f"{name}: got a mask of {mask.dtype} {mask.shape} for an image of {image.shape}, expected the same shape, uint8"
        )
    if min(tile_height, tile_width) < 1:
        raise CalibrationError(f"{name}: got tiles of {tile_height} x {tile_width} px, expected at least 1 x 1")
    found = []
    for row in _starts(image.shape[0], tile_height):
        for column in _starts(image.shape[1], tile_width):
            window = np.s_[row : row + tile_height, column : column + tile_width]
            tile = image[window]
            classes = None if mask is None else frozenset(np.flatnonzero(np.bincount(mask[window].ravel())).tolist())
            found.append(Candidate(name, row, column, float(tile.mean()), float(tile.std()), classes))
    return found


def _starts(extent: int, side: int) -> Iterator[int]:
    yield from range(0, max(extent - side, 0) + 1, side)
    if extent > side and extent % side:
        yield extent - side


def _place(candidate: Candidate) -> tuple[str, int, int]:
    return candidate.origin, candidate.row, candidate.column


def _require_sound(candidates: Sequence[Candidate], count: int) -> None:
    if not candidates:
        raise CalibrationError(f"got no tiles to calibrate with, expected about {RECOMMENDED}, defects among them")
    if count < 1:
        raise CalibrationError(f"got {count} calibration tiles to choose, expected at least 1, better {RECOMMENDED}")
    seen: set[tuple[str, int, int]] = set()
    for candidate in candidates:
        if _place(candidate) in seen:
            raise CalibrationError(
                f"{candidate.origin}: its tile at row {candidate.row}, column {candidate.column} is there twice; "
                "expected every image once, under a name of its own"
            )
        seen.add(_place(candidate))


@dataclass(frozen=True, slots=True, order=True)
class _Kind:
    """What the tiles of a stratum have in common. Ranges are counted from 0, dark to bright, smooth to rough."""

    unlabelled: bool
    defects: tuple[int, ...]
    brightness: int
    contrast: int

    @property
    def shown(self) -> frozenset[int]:
        """Classes that a tile of it stands for: its defects, or clean steel; none where nobody knows."""
        return frozenset() if self.unlabelled else frozenset(self.defects or (0,))


Strata = dict[_Kind, list[Candidate]]


def _strata(candidates: Sequence[Candidate]) -> Strata:
    """Candidates by kind, in the order of the kinds; within one from dark to bright."""
    ordered = sorted(candidates, key=lambda candidate: (candidate.mean, _place(candidate)))
    brightness = _ranges([candidate.mean for candidate in ordered], BRIGHTNESS_STRATA)
    contrast = _ranges([candidate.contrast for candidate in ordered], CONTRAST_STRATA)
    strata: Strata = {}
    for candidate, bright, rough in zip(ordered, brightness, contrast, strict=True):
        defects = candidate.defects
        kind = _Kind(True, (), bright, rough) if defects is None else _Kind(False, tuple(sorted(defects)), bright, 0)
        strata.setdefault(kind, []).append(candidate)
    return {kind: strata[kind] for kind in sorted(strata)}


def _ranges(values: Sequence[float], parts: int) -> list[int]:
    """Which of `parts` about equally populated ranges each value lies in; equal values lie in the same one."""
    edges = np.quantile(values, np.arange(1, parts) / parts)
    return [int(index) for index in np.searchsorted(edges, values, side="left")]


def _shares(strata: Strata, count: int) -> dict[_Kind, int]:
    """How many tiles to take of each stratum; together `count`, which is at most the number of candidates."""
    first = set(_most_telling(strata)[:count])
    shares = {kind: int(kind in first) for kind in strata}
    left = count - len(first)
    if left == 0:
        return shares
    # largest remainders, in whole numbers: the same on every machine
    spare = {kind: len(members) - 1 for kind, members in strata.items()}
    total = sum(spare.values())
    for kind in strata:
        shares[kind] += left * spare[kind] // total
    by_remainder = sorted(strata, key=lambda kind: (-(left * spare[kind] % total), kind))
    for kind in by_remainder[: count - sum(shares.values())]:
        shares[kind] += 1
    return shares


def _most_telling(strata: Strata) -> list[_Kind]:
    """Kinds in the order in which they are worth a tile: new classes before new brightness before size."""
    left, order = list(strata), list[_Kind]()
    classes: frozenset[int] = frozenset()
    brightness: set[tuple[bool, int]] = set()
    while left:
        # of equals the first one: max keeps it
        best = max(
            left,
            key=lambda kind: (
                len(kind.shown - classes),
                # a bright labelled tile says nothing of what bright unlabelled ones show
                (kind.unlabelled, kind.brightness) not in brightness,
                len(strata[kind]),
            ),
        )
        left.remove(best)
        order.append(best)
        classes |= best.shown
        brightness.add((best.unlabelled, best.brightness))
    return order


def _evenly(members: Sequence[Candidate], share: int, offset: int) -> list[Candidate]:
    """`share` of the members at equal distances; offset: 0 to len(members) - 1, where between the first two to begin."""
    return [members[(offset + step * len(members)) // share] for step in range(share)]


def _described(kind: _Kind, members: Sequence[Candidate], chosen: int) -> Stratum:
    contrasts = [candidate.contrast for candidate in members]
    return Stratum(
        defects=None if kind.unlabelled else frozenset(kind.defects),
        darkest=members[0].mean,
        brightest=members[-1].mean,
        least_contrast=min(contrasts),
        most_contrast=max(contrasts),
        candidates=len(members),
        chosen=chosen,
    )


def _warnings(candidates: Sequence[Candidate], selection: Selection, class_names: Sequence[str]) -> Iterator[str]:
    chosen = len(selection.chosen)
    if chosen < FEW:
        yield f"{chosen} tiles to calibrate with: ranges are doubtful below {FEW}; {RECOMMENDED} are recommended"
    skipped = [stratum for stratum in selection.strata if not stratum.chosen]
    if skipped:
        listed = _listed([stratum.named(class_names) for stratum in skipped], "; ")
        yield (
            f"{chosen} tiles are fewer than the {len(selection.strata)} kinds of them; left out: {listed}; "
            f"expected at least {len(selection.strata)} tiles"
        )
    yield from _class_warnings(candidates, selection, class_names)
    constant = _constant_images(candidates)
    if constant:
        yield f"of one grey level throughout: {_listed(constant)}; expected images of steel"


def _class_warnings(candidates: Sequence[Candidate], selection: Selection, class_names: Sequence[str]) -> Iterator[str]:
    kinds = {stratum.defects for stratum in selection.strata}
    if None in kinds:
        return  # what unlabelled tiles show is not known
    shown = frozenset[int]().union(*(defects for defects in kinds if defects is not None))
    if not shown:
        yield f"all {len(candidates)} tiles are clean: none shows a defect; expected some of every class"
    elif frozenset() not in kinds:
        only = f"all {len(candidates)} tiles show {_shown(shown, class_names)} alone: " if kinds == {shown} else ""
        yield f"{only}no tile is clean; expected some without a defect"
    missing = [name for index, name in enumerate(class_names) if index and index not in shown]
    if shown and missing:
        yield f"no tile shows {_listed(missing)}; expected some of every class"
    seen = frozenset[int]().union(*(candidate.defects or () for candidate in selection.chosen))
    if shown - seen:
        yield f"none of the {len(selection.chosen)} chosen tiles shows {_shown(shown - seen, class_names)}; expected more tiles"


def _constant_images(candidates: Sequence[Candidate]) -> list[str]:
    """Names of the images whose tiles all have one and the same grey level."""
    greys: dict[str, set[float | None]] = {}
    for candidate in candidates:
        greys.setdefault(candidate.origin, set()).add(candidate.mean if candidate.contrast == 0.0 else None)
    return sorted(name for name, found in greys.items() if len(found) == 1 and None not in found)


def _shown(defects: frozenset[int], class_names: Sequence[str]) -> str:
    return " + ".join(_class_name(index, class_names) for index in sorted(defects or {0}))


def _class_name(index: int, class_names: Sequence[str]) -> str:
    if index < len(class_names):
        return class_names[index]
    return f"class {index}" if index else "clean"


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more
