"""Regions under way and the groups that they form: fragments near each other, which together are one defect or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.defects import Ending
from edge.tracking.regions import Statistics, merge_all


@dataclass(slots=True, eq=False)
class Group:
    """Admitted regions of one class that lie near each other: a defect, or what may still become one.

    fragments: regions in it, growing of which a later row can still touch. defect_id, revision, reported_stop: of the
    last report; defect_id is None until it is opened. must_open: it took in an opened defect, so it is one.
    changed: since it was last judged. cut: where the strip broke off and what that means for a group that ends there.
    """

    class_index: int
    statistics: Statistics
    fragments: int = 1
    growing: int = 1
    defect_id: str | None = None
    revision: int = 0
    reported_stop: int = 0
    must_open: bool = False
    changed: bool = True
    cut: tuple[int, Ending] | None = None
    joined: Group | None = None

    def root(self) -> Group:
        """The group that this one has become part of."""
        group = self
        while group.joined is not None:
            group = group.joined
        return group

    @property
    def order(self) -> tuple[tuple[int, int], int]:
        """Groups are judged and reported in the order of their first pixels."""
        return self.statistics.first, self.class_index

    @property
    def ending(self) -> Ending:
        """What closing it now would mean."""
        at_cut = self.cut is not None and self.cut[0] == self.statistics.box.line_stop
        return self.cut[1] if self.cut is not None and at_cut else Ending.COMPLETE

    def grow(self, statistics: Statistics, max_runs: int) -> None:
        """Add pixels."""
        self.statistics = self.statistics.merge(statistics, max_runs)
        self.changed = True

    def absorb(self, others: Sequence[Group], max_runs: int) -> None:
        """Take in groups whose first pixels lie behind this one's."""
        self.statistics = merge_all([self.statistics, *(other.statistics for other in others)], max_runs)
        self.changed = True
        for other in others:
            self.fragments += other.fragments
            self.growing += other.growing
            self.must_open = self.must_open or other.must_open or other.defect_id is not None
            if other.cut is not None and (self.cut is None or other.cut[0] > self.cut[0]):
                self.cut = other.cut
            other.joined = self

    def state(self) -> list[Any]:
        """As JSON values, of a group that is its own root."""
        cut = None if self.cut is None else [self.cut[0], self.cut[1].value]
        kept = [self.class_index, self.fragments, self.growing, self.defect_id, self.revision, self.reported_stop, self.must_open]
        return [*kept, self.changed, cut, self.statistics.state()]

    @staticmethod
    def restored(state: list[Any]) -> Group:
        """What `state` was taken from."""
        class_index, fragments, growing, defect_id, revision, reported_stop, must_open, changed, cut, statistics = state
        group = Group(class_index, Statistics.restored(statistics), fragments, growing, defect_id, revision, reported_stop)
        group.must_open, group.changed = must_open, changed
        group.cut = None if cut is None else (cut[0], Ending(cut[1]))
        return group


@dataclass(slots=True, eq=False)
class Region:
    """Connected pixels of a layer. Until it is admitted it holds its own statistics; from then on its group does."""

    number: int
    layer: int
    statistics: Statistics | None = None
    group: Group | None = None
    joined: Region | None = None

    def root(self) -> Region:
        """The region that this one has turned out to be part of."""
        region = self
        while region.joined is not None:
            region = region.joined
        return region

    def grow(self, statistics: Statistics, max_runs: int) -> None:
        """Add pixels to it, or to the group that it is part of."""
        if self.group is not None:
            self.group.root().grow(statistics, max_runs)
        else:
            self.statistics = statistics if self.statistics is None else self.statistics.merge(statistics, max_runs)
