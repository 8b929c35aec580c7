"""The regions under way and the groups that they form, from one block to the next: what the tracker has in its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.defects import Ending
from edge.tracking.filters import MAX_CLASSES, Reason, Rules, region_fault
from edge.tracking.geometry import near_pairs
from edge.tracking.groups import Group, Region
from edge.tracking.regions import Joined, Parts, Statistics

LENS_LAYER = MAX_CLASSES
"""Added to the class of pixels in columns known as dirt: they are joined and counted by themselves."""


class Fragments:
    """Admits regions that pass the rules for connected pixels, and unites those of one class that lie near each other.

    Near is measured between the boxes of their parts in single blocks, so that a long diagonal scratch does not swallow
    whatever lies in its box. Only parts that a row to come can still be near to are remembered; a region that is
    admitted late meets the others from there on.

    growing: regions that a later row can touch, by number. groups: those not yet complete. absorbed: since the tracker
    last emptied it, opened groups that became part of others, as they were. rejected: regions that never became part of
    a group, by reason.
    """

    def __init__(self, rules: Rules, max_runs: int) -> None:
        self.growing: dict[int, Region] = {}
        self.groups: list[Group] = []
        self.absorbed: list[tuple[Group, Group]] = []
        self.rejected: Counter[str] = Counter()
        self._rules = rules
        self._max_runs = max_runs
        self._recent: list[tuple[list[int], Region]] = []

    def __bool__(self) -> bool:
        return bool(self.growing or self.groups)

    def open_line(self) -> int | None:
        """First line of anything under way; None if nothing is."""
        waiting = [region.statistics for region in self.growing.values()] + [group.statistics for group in self.groups]
        return min((statistics.box.line_start for statistics in waiting if statistics is not None), default=None)

    def take_in(self, parts: Parts, joined: Joined) -> None:
        """The parts of a block, joined to the regions of earlier blocks."""
        for gone, into in joined.merged:
            self._merge(self.growing.pop(gone), self.growing[into])
        self._grow(parts, joined)
        for number in joined.region:
            region = self.growing.get(number)
            if region is not None and region.statistics is not None and self._fault_of(region.layer, region.statistics) is None:
                self._group_of(region)
        self.end(joined.ended)

    def end(self, numbers: Sequence[int], cut: tuple[int, Ending] | None = None) -> None:
        """No later row can touch these regions. cut: the line where the strip breaks off there, and what that means."""
        for number in numbers:
            region = self.growing.pop(number, None)
            if region is None:
                continue
            if region.group is not None:
                group = region.group.root()
                group.growing -= 1
                group.changed = True
                group.cut = cut or group.cut
            elif region.statistics is not None:
                self._reject(region, self._fault_of(region.layer, region.statistics))

    def unite_near(self) -> None:
        """Groups of one class with parts near each other become one."""
        limits = self._rules.merge
        near = [(box, region.group.root()) for box, region in self._alive() if region.group is not None]
        if limits is None or len(near) < 2:
            return
        groups = list(dict.fromkeys(group for _, group in near))
        numbers = {group: number for number, group in enumerate(groups)}
        owner = np.array([numbers[group] for _, group in near], np.int64)
        kind = np.array([group.class_index for _, group in near], np.int64)
        boxes = np.array([box for box, _ in near], np.int64)
        first, second = (owner[part] for part in near_pairs(kind, boxes, limits.along_lines, limits.across_columns))
        apart = first != second
        # Groups are united all at once: one after another, each step would sort the runs of all before.
        for members in _linked(zip(first[apart].tolist(), second[apart].tolist(), strict=True)):
            self._unite([groups[number] for number in members])

    def drop_in(self, columns: npt.NDArray[np.bool_]) -> tuple[set[int], list[Group]]:
        """Forget what lies, by at least half the width of its recent parts, in these columns (w,).

        Returns the numbers of the regions no longer followed, and the groups that are gone, whose fragments are not yet
        counted as rejected. Their parts go with the next `forget`.
        """
        covered = np.concatenate(([0], np.cumsum(columns)))
        balance: dict[Group | Region, int] = {}
        for box, region in self._alive():
            inside = int(covered[box[3]] - covered[box[2]])
            owner = _owner(region)
            balance[owner] = balance.get(owner, 0) + 2 * inside - (box[3] - box[2])
        dropped = {owner for owner, more_inside in balance.items() if more_inside >= 0}
        numbers = {number for number, region in self.growing.items() if _owner(region) in dropped}
        for number in sorted(numbers):
            region = self.growing.pop(number)
            if region.group is None:
                self._reject(region, Reason.FIXED_COLUMNS)
        groups = sorted((group for group in self.groups if group in dropped), key=lambda group: group.order)
        self.groups = [group for group in self.groups if group not in dropped]
        return numbers, groups

    def forget(self, line: int) -> None:
        """Keep only the parts that a row from `line` on can still be near to."""
        along = 0 if self._rules.merge is None else self._rules.merge.along_lines
        live = {None, *self.groups}
        self._recent = [
            (box, region)
            for box, region in self._alive()
            if line - box[1] <= along and (region.group and region.group.root()) in live
        ]

    def state(self) -> dict[str, Any]:
        """As JSON values, of a moment when nothing is in `absorbed`."""
        groups = {group: index for index, group in enumerate(self.groups)}
        recent = self._alive()
        regions = {region.number: region for _, region in recent} | self.growing
        return {
            "groups": [group.state() for group in self.groups],
            "regions": [
                [
                    region.number,
                    region.layer,
                    None if region.statistics is None else region.statistics.state(),
                    None if region.group is None else groups[region.group.root()],
                ]
                for region in regions.values()
            ],
            "growing": list(self.growing),
            "recent": [[box, region.number] for box, region in recent],
            "rejected": dict(self.rejected),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.groups = [Group.restored(group) for group in state["groups"]]
        regions: dict[int, Region] = {}
        for number, layer, statistics, group in state["regions"]:
            known = None if statistics is None else Statistics.restored(statistics)
            regions[number] = Region(number, layer, known, None if group is None else self.groups[group])
        self.growing = {number: regions[number] for number in state["growing"]}
        self._recent = [(box, regions[number]) for box, number in state["recent"]]
        self.rejected = Counter(state["rejected"])

    def _merge(self, gone: Region, into: Region) -> None:
        gone.joined = into
        if gone.statistics is not None and into.statistics is not None:
            into.statistics = into.statistics.merge(gone.statistics, self._max_runs)
            gone.statistics = None
            return
        # One of them is admitted, so both are now; what was two fragments is one.
        group = self._unite([self._group_of(gone), self._group_of(into)])
        group.fragments -= 1
        group.growing -= 1
        group.changed = True

    def _grow(self, parts: Parts, joined: Joined) -> None:
        ended = set(joined.ended)
        boxes = parts.boxes.tolist()
        for index, number in enumerate(joined.region):
            region = self.growing.get(number)
            if region is None:
                layer = parts.layer[index]
                if number in ended:
                    # Begun and ended in this block: what fails is counted, without ever becoming an object.
                    fault = self._fault(layer, parts.area[index], parts.confidence_peak[index], parts.inside[index])
                    if fault is not None:
                        self.rejected[fault.value] += 1
                        continue
                region = self.growing[number] = Region(number, layer)
            region.grow(parts.statistics(index, self._max_runs), self._max_runs)
            self._recent.append((boxes[index], region))

    def _alive(self) -> list[tuple[list[int], Region]]:
        roots = [(box, region.root()) for box, region in self._recent]
        return [(box, region) for box, region in roots if region.statistics is not None or region.group is not None]

    def _reject(self, region: Region, fault: Reason | None) -> None:
        assert fault is not None, "a region without a fault is admitted in the block that ends it"
        self.rejected[fault.value] += 1
        region.statistics = None

    def _group_of(self, region: Region) -> Group:
        """The region's group; from now on one of its own if it had none."""
        if region.group is None:
            assert region.statistics is not None, "a region has its statistics until it has a group"
            region.group = Group(region.layer, region.statistics)
            region.statistics = None
            self.groups.append(region.group)
        return region.group.root()

    def _unite(self, groups: Sequence[Group]) -> Group:
        """One group of all, which is the one with the earliest first pixel."""
        first, *others = sorted(set(groups), key=lambda group: group.order)
        if others:
            self.absorbed += [(other, first) for other in others if other.defect_id is not None]
            first.absorb(others, self._max_runs)
            self.groups = [group for group in self.groups if group.joined is None]
        return first

    def _fault_of(self, layer: int, statistics: Statistics) -> Reason | None:
        return self._fault(layer, statistics.moments.area, statistics.confidence_peak, statistics.inside)

    def _fault(self, layer: int, area: int, confidence_peak: int, inside: int) -> Reason | None:
        limits = self._rules.classes[layer % LENS_LAYER]
        if layer >= LENS_LAYER and not limits.ignore:
            return Reason.FIXED_COLUMNS
        return region_fault(limits, area, confidence_peak, inside)


def _owner(region: Region) -> Group | Region:
    return region if region.group is None else region.group.root()


def _linked(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The numbers that are linked to each other by pairs of two, directly or not."""
    into: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := into.setdefault(number, number)) != number:
            into[number] = into[above]
            number = above
        return number

    for pair in pairs:
        one, other = map(root, pair)
        if one != other:
            into[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for number in sorted(into):
        members.setdefault(root(number), []).append(number)
    return list(members.values())
