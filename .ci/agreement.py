"""Whether two inspections of one strip found the same: `agreement.py THIS OTHER`, folders that hold events.jsonl and mask.png."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.events import DefectClosed, parse_event

MOST_CONFIDENCE = 0.02
"""Kernels of another processor round otherwise: a hundredth of the scores' spread is what golden tiles may differ by as well."""
MOST_PIXELS = 0.001
"""Of all pixels: those whose two best classes are as near to each other."""


def main(this: Path, other: Path) -> int:
    """Print what differs; 1 where a defect does, or more than rounding explains."""
    ours, theirs = closed_defects(this / "events.jsonl"), closed_defects(other / "events.jsonl")
    same = ours.keys() == theirs.keys() and all(ours[key].class_name == theirs[key].class_name for key in ours)
    if not same or not ours:
        print(f"{this}: {described(ours)}\n{other}: {described(theirs)}\nexpected the same ids and classes, at least one")
        return 1
    confidence = max(abs(ours[key].confidence_mean - theirs[key].confidence_mean) for key in ours)
    masks = [cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED) for folder in (this, other)]
    if masks[0].shape != masks[1].shape:
        print(f"masks of {masks[0].shape} and {masks[1].shape}; expected one size")
        return 1
    differing = int(np.count_nonzero(masks[0] != masks[1]))
    boxes = sum(ours[key].box_px != theirs[key].box_px for key in ours)
    print(
        f"{this.name}: the same {len(ours)} defects ({described(ours)}), {boxes} with another box, "
        f"confidence {confidence:.4f} apart at most, {differing} of {masks[0].size} pixels differ"
    )
    if confidence > MOST_CONFIDENCE or differing > MOST_PIXELS * masks[0].size:
        print(f"expected at most {MOST_CONFIDENCE} and {MOST_PIXELS:.1%} of the pixels")
        return 1
    return 0


def closed_defects(events: Path) -> dict[str, Any]:
    """Data of the events that close a defect, by their ids."""
    found = (parse_event(line) for line in events.read_text(encoding="utf-8").splitlines())
    return {event.id: event.data for event in found if isinstance(event, DefectClosed)}


def described(defects: dict[str, Any]) -> str:
    """`4b1f scratches, ...`."""
    return ", ".join(f"{key[:8]} {defect.class_name}" for key, defect in sorted(defects.items())) or "no defect"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
