"""Streaming connected components: blocks of rows in, connected pixels with exact mergeable statistics out.

Between blocks only the runs of the last row are kept, each with the region it belongs to.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.defects import BoxPx
from edge.tracking.blocks import GateRows, Plane
from edge.tracking.geometry import Ints, Moments, box_around, pairs_of_ranges

_WORD = 8


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What is known of connected (or merged) pixels; everything adds up exactly, in any order.

    box, first: first is the pixel (line, column) of the lowest line, then the lowest column.
    confidence_sum, confidence_peak: in steps of 1/255. inside: pixels on steel that is judged.
    gate_score: highest of the tiles it lies in. runs: (n, 3) int64 line, column, length: the first ones, row-major
    along the strip, of run_count in all.
    """

    moments: Moments
    box: BoxPx
    first: tuple[int, int]
    confidence_sum: int
    confidence_peak: int
    inside: int
    gate_score: float | None
    runs: Ints
    run_count: int

    def merge(self, other: Statistics, max_runs: int) -> Statistics:
        """Of the pixels of both, which have none in common."""
        scores = [score for score in (self.gate_score, other.gate_score) if score is not None]
        return Statistics(
            self.moments + other.moments,
            box_around(self.box, other.box),
            min(self.first, other.first),
            self.confidence_sum + other.confidence_sum,
            max(self.confidence_peak, other.confidence_peak),
            self.inside + other.inside,
            max(scores) if scores else None,
            _first_runs(self.runs, other.runs, max_runs),
            self.run_count + other.run_count,
        )

    def state(self) -> list[Any]:
        """As JSON values; the runs, of which there may be thousands, as base64 of little-endian integers."""
        moments, box = self.moments, self.box
        return [
            [moments.area, moments.line, moments.column, moments.line_line, moments.line_column, moments.column_column],
            [box.line_start, box.line_stop, box.column_start, box.column_stop],
            list(self.first),
            [self.confidence_sum, self.confidence_peak, self.inside, self.run_count],
            self.gate_score,
            b64encode(self.runs.astype("<i8").tobytes()).decode(),
        ]

    @staticmethod
    def restored(state: list[Any]) -> Statistics:
        """What `state` was taken from."""
        moments, box, first, (confidence_sum, confidence_peak, inside, run_count), gate_score, runs = state
        kept = np.frombuffer(b64decode(runs), "<i8").astype(np.int64).reshape(-1, 3)
        sums = (confidence_sum, confidence_peak, inside, gate_score, kept, run_count)
        return Statistics(Moments(*moments), BoxPx(*box), (first[0], first[1]), *sums)


def merge_all(several: Sequence[Statistics], max_runs: int) -> Statistics:
    """Of the pixels of all, at least one: in pairs, and pairs of pairs, so that no run is sorted more often than it must be."""
    while len(several) > 1:
        pairs = [one.merge(other, max_runs) for one, other in zip(several[::2], several[1::2], strict=False)]
        several = pairs + list(several[2 * len(pairs) :])
    return several[0]


def _first_runs(first: Ints, second: Ints, count: int) -> Ints:
    if len(first) and len(second):
        if tuple(second[-1, :2]) < tuple(first[0, :2]):
            first, second = second, first
        if tuple(second[0, :2]) < tuple(first[-1, :2]):
            both = np.concatenate([first, second])
            return both[np.lexsort((both[:, 1], both[:, 0]))][:count]
        if len(first) >= count:
            return first
    return np.concatenate([first, second])[:count]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Connected pixels of one block, one entry per component, in the order of their first pixels.

    layer, area, confidence_peak, inside: (n,) lists. boxes: (n, 4) as in BoxPx. top, bottom: (m, 4) runs of the block's
    first and last row: layer, column start, column stop, component.
    """

    layer: list[int]
    area: list[int]
    confidence_peak: list[int]
    inside: list[int]
    boxes: Ints
    top: Ints
    bottom: Ints
    _sums: Ints
    _gate_scores: list[float] | None
    _runs: Ints
    _run_bounds: Ints

    def __len__(self) -> int:
        return len(self.layer)

    def statistics(self, index: int, max_runs: int) -> Statistics:
        """Of one component, in strip coordinates."""
        area, line, column, line_line, line_column, column_column, confidence = self._sums[index].tolist()
        line_start, line_stop, column_start, column_stop = self.boxes[index].tolist()
        begin, end = int(self._run_bounds[index]), int(self._run_bounds[index + 1])
        return Statistics(
            # Sums of the block are about the component's first line, where 64 bits hold them: moved by exact integers.
            Moments(area, line, column, line_line, line_column, column_column).moved_along(line_start),
            BoxPx(line_start, line_stop, column_start, column_stop),
            (line_start, int(self._runs[begin, 1])),
            confidence,
            self.confidence_peak[index],
            self.inside[index],
            None if self._gate_scores is None else self._gate_scores[index],
            self._runs[begin : min(end, begin + max_runs)].copy(),
            end - begin,
        )


NOTHING = np.zeros((0, 4), np.int64)
NO_PARTS = Parts(
    [], [], [], [], NOTHING, NOTHING, NOTHING, np.zeros((0, 7), np.int64), None, NOTHING[:, :3], np.zeros(1, np.int64)
)


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Foreground of a block, row-major. place: (n,) int64, row * width + column. layer, confidence: (n,) uint8.

    lines, width: of the block.
    """

    lines: int
    width: int
    place: Ints
    layer: Plane
    confidence: Plane

    def __len__(self) -> int:
        return len(self.place)

    def chosen(self, which: npt.NDArray[np.bool_]) -> Pixels:
        """Those at which `which` (n,) is True."""
        return Pixels(self.lines, self.width, self.place[which], self.layer[which], self.confidence[which])


def find_pixels(layers: Plane, confidence: Plane) -> Pixels:
    """The pixels of a block that are not 0. layers, confidence: (h, w) uint8.

    Foreground is rare: it is looked for in words of eight pixels.
    """
    flat = np.ascontiguousarray(layers).reshape(-1)
    whole = flat.size - flat.size % _WORD
    words = np.flatnonzero(flat[:whole].view(np.uint64))
    inside = np.flatnonzero(flat[:whole].reshape(-1, _WORD)[words])
    place = words[inside // _WORD] * _WORD + inside % _WORD
    if whole < flat.size:
        place = np.concatenate([place, whole + np.flatnonzero(flat[whole:])])
    place = place.astype(np.int64, copy=False)
    lines, width = layers.shape
    return Pixels(lines, width, place, flat[place], np.ascontiguousarray(confidence).reshape(-1)[place])


def find_parts(
    first_line: int,
    pixels: Pixels,
    judged: tuple[Ints, Ints] | None = None,
    gates: Sequence[GateRows] = (),
) -> Parts:
    """Connected components (8 neighbours) of pixels of one layer in one block, with their statistics.

    first_line: strip coordinate of row 0. judged: per row, columns from and to which pixels count as `inside`; None: all.
    One pass over the foreground's runs, whatever the number of components.
    """
    if not len(pixels):
        return NO_PARTS
    begin, line, start, stop, layer = _runs_of(pixels)
    run_sum = np.add.reduceat(pixels.confidence, begin, dtype=np.int64)
    run_peak = np.maximum.reduceat(pixels.confidence, begin)
    component = _components_of(line, start, stop, layer, pixels.width)
    order = component.argsort(kind="stable")
    component, line, start, stop, layer = component[order], line[order], start[order], stop[order], layer[order]
    bounds = component.searchsorted(np.arange(component[-1] + 2)).astype(np.int64, copy=False)
    begins, ends = bounds[:-1], bounds[1:]

    length = stop - start
    down = line - line[begins][component]
    # Sums over start, start + 1, ... start + length - 1 in closed form.
    column = length * start + length * (length - 1) // 2
    column_column = length * start * start + start * length * (length - 1) + (length - 1) * length * (2 * length - 1) // 6
    per_run = (length, length * down, column, length * down * down, down * column, column_column, run_sum[order])
    sums = np.add.reduceat(np.array(per_run), begins, axis=1).T
    along = first_line + line[begins], first_line + line[ends - 1] + 1
    boxes = np.array([*along, np.minimum.reduceat(start, begins), np.maximum.reduceat(stop, begins)]).T
    inside = sums[:, 0]
    if judged is not None:
        kept = np.minimum(stop, judged[1][line]) - np.maximum(start, judged[0][line])
        inside = np.add.reduceat(np.maximum(kept, 0), begins)
    edges = np.array([layer, start, stop, component]).T
    return Parts(
        layer[begins].tolist(),
        sums[:, 0].tolist(),
        np.maximum.reduceat(run_peak[order], begins).tolist(),
        inside.tolist(),
        boxes,
        _by_column(edges[line == 0]),
        _by_column(edges[line == pixels.lines - 1]),
        sums,
        _gate_scores(gates, line, start, stop, begins),
        np.array([first_line + line, start, length]).T.copy(),
        bounds,
    )


def _runs_of(pixels: Pixels) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Neighbours on a line of one layer, row-major: index of the first pixel, line, column start and stop, layer."""
    place, layer = pixels.place, pixels.layer
    follows = (place[1:] == place[:-1] + 1) & (layer[1:] == layer[:-1]) & (place[1:] % pixels.width != 0)
    bounds = np.concatenate(([0], (~follows).nonzero()[0] + 1, [len(place)]))
    begin = bounds[:-1]
    line, start = np.divmod(place[begin], pixels.width)
    return begin, line, start, start + bounds[1:] - begin, layer[begin].astype(np.int64)


def _components_of(line: Ints, start: Ints, stop: Ints, layer: Ints, width: int) -> Ints:
    """The component of each run, numbered in the order of their first runs. The runs are row-major."""
    # Lines one after another on one axis, so far apart that the end of one does not meet the begin of the next.
    pitch = width + 2
    starts, stops = line * pitch + start, line * pitch + stop
    low = stops.searchsorted(starts + pitch, side="left")
    high = starts.searchsorted(stops + pitch, side="right")
    above, below = pairs_of_ranges(low.astype(np.int64, copy=False), high.astype(np.int64, copy=False))
    alike = layer[above] == layer[below]
    above, below = above[alike], below[alike]
    # Each run knows the first run of its tree. In a round every tree that touches earlier ones is hung under the earliest of
    # them; only trees that touch none are left as they are, so that at least half of those that touch others are gone.
    itself = np.arange(len(line), dtype=np.int64)
    first = itself.copy()
    while len(above):
        np.minimum.at(first, np.maximum(above, below), np.minimum(above, below))
        while (first != (further := first[first])).any():
            first = further
        above, below = first[above], first[below]
        apart = above != below
        above, below = above[apart], below[apart]
    number = (first == itself).cumsum() - 1
    component: Ints = number[first]
    return component


def _gate_scores(gates: Sequence[GateRows], line: Ints, start: Ints, stop: Ints, begins: Ints) -> list[float] | None:
    if not gates:
        return None
    highest = np.zeros(len(line), np.float64)
    for gate in gates:
        here = (line >= gate.line_start) & (line < gate.line_stop)
        run, tile = pairs_of_ranges(start[here] // gate.tile_columns, (stop[here] - 1) // gate.tile_columns + 1)
        scores = np.zeros(int(here.sum()), np.float64)
        np.maximum.at(scores, run, gate.scores[np.minimum(tile, len(gate.scores) - 1)])
        highest[here] = scores
    return np.maximum.reduceat(highest, begins).tolist()  # type: ignore[no-any-return]


def _by_column(runs: Ints) -> Ints:
    return runs[np.lexsort((runs[:, 1], runs[:, 0]))]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a block did to the regions. Regions are numbers, given in the order of their first blocks and first pixels.

    region: of each part of the block. merged: (gone, into), regions of earlier blocks that turned out to be one.
    ended: regions that no later row can touch.
    """

    region: tuple[int, ...]
    merged: tuple[tuple[int, int], ...]
    ended: tuple[int, ...]


class RegionJoiner:
    """Joins the parts of successive blocks into regions; its memory is one row of runs.

    Two parts are one region if they touch across the seam (8 neighbours) and are of the same layer.
    """

    def __init__(self) -> None:
        self._next = 1
        self._bottom = NOTHING

    def join(self, parts: Parts) -> Joined:
        """Take in the next block's parts; an empty one ends every region."""
        before = set(self._bottom[:, 3].tolist())
        into: dict[int, int] = {}

        def root(region: int) -> int:
            while region in into:
                region = into[region]
            return region

        owner: list[int] = [0] * len(parts)
        for part, above in _touching(parts.top, self._bottom):
            region, known = root(above), root(owner[part])
            if not known:
                owner[part] = region
            elif known != region:
                into[max(known, region)] = min(known, region)
        for part, region in enumerate(owner):
            if not region:
                owner[part] = self._next
                self._next += 1
        region_of = [root(region) for region in owner]
        self._bottom = parts.bottom.copy()
        self._bottom[:, 3] = np.array(region_of, np.int64)[parts.bottom[:, 3]] if len(parts.bottom) else 0
        still_open = set(self._bottom[:, 3].tolist())
        ended = {root(region) for region in before} | set(region_of)
        merged = tuple((gone, root(gone)) for gone in sorted(into))
        return Joined(tuple(region_of), merged, tuple(sorted(ended - still_open)))

    def cut(self) -> tuple[int, ...]:
        """No row follows the last one: returns the regions that this ends."""
        return self.join(NO_PARTS).ended

    def drop(self, regions: set[int]) -> None:
        """Forget regions: what touches them later is a new one."""
        self._bottom = self._bottom[[region not in regions for region in self._bottom[:, 3].tolist()]]

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"next": self._next, "bottom": self._bottom.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._next = state["next"]
        self._bottom = np.array(state["bottom"], np.int64).reshape(-1, 4)


def _touching(top: Ints, bottom: Ints) -> list[tuple[int, int]]:
    """Pairs (part, region) of runs of one layer whose columns overlap or meet at a corner."""
    if not len(top) or not len(bottom):
        return []
    # Layers side by side on one axis, so far apart that corners do not meet.
    pitch = int(max(top[:, 2].max(), bottom[:, 2].max())) + 2
    low = np.searchsorted(bottom[:, 0] * pitch + bottom[:, 2], top[:, 0] * pitch + top[:, 1], side="left")
    high = np.searchsorted(bottom[:, 0] * pitch + bottom[:, 1], top[:, 0] * pitch + top[:, 2], side="right")
    run, above = pairs_of_ranges(low.astype(np.int64), high.astype(np.int64))
    return sorted(set(zip(top[run, 3].tolist(), bottom[above, 3].tolist(), strict=True)))
