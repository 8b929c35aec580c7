"""Images that follow each other without a gap, cut into frames of one height."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from edge.frame import Frame, Lines
from edge.sources.pace import Pace


def cut_frames(images: Iterator[Lines], first_line: int, frame_lines: int, pace: Pace) -> Iterator[Frame]:
    """Frames that end at multiples of `frame_lines` in strip coordinates, wherever the images meet; the last may be shorter.

    images: the strip from line `first_line` on; one is held at a time. Ends early where the pace says that the source closed.
    """
    line, missing, parts = first_line, frame_lines - first_line % frame_lines, list[Lines]()
    for image in images:
        used = 0
        while used < image.shape[0]:
            parts.append(image[used : used + missing])
            used += parts[-1].shape[0]
            missing -= parts[-1].shape[0]
            if missing == 0:
                if not pace.wait_for(line + sum(map(len, parts)) - first_line):
                    return
                frame = _framed(parts, line)
                yield frame
                line, missing, parts = frame.line_stop, frame_lines, []
        # neither a view nor this name keeps the image in memory while the next one is read
        parts = [part.copy() for part in parts]
        del image
    if parts and pace.wait_for(line + sum(map(len, parts)) - first_line):
        yield _framed(parts, line)


def _framed(parts: list[Lines], line: int) -> Frame:
    # a copy even of a single part: frames outlive the image they were cut from
    return Frame(np.concatenate(parts), line, time.time_ns())
