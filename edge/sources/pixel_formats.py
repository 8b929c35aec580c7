"""Grey pixels of a GenICam camera as 8 bits: the 8 highest of what it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.frame import Lines

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One way to send grey pixels.

    group: pixels that lie in `group_bytes` bytes together. shift: bits that are cut off.
    grey: bytes (n * group_bytes,) uint8 of n groups to grey levels (n * group,) uint8; a view where the bytes are them.
    Source: EMVA GenICam Pixel Format Naming Convention 2.4; GigE Vision 2.2, section 26, for the two `Packed` ones.
    """

    name: str
    shift: int
    group: int
    group_bytes: int
    grey: Callable[[Bytes], Bytes]

    def bytes_of(self, lines: int, width: int) -> int:
        """What a frame takes; the last group is filled up."""
        return -(-lines * width // self.group) * self.group_bytes

    def lines(self, data: Bytes, lines: int, width: int) -> Lines:
        """A frame's bytes as (lines, width) uint8."""
        return self.grey(data[: self.bytes_of(lines, width)])[: lines * width].reshape(lines, width)


def _wide(bits: int) -> Callable[[Bytes], Bytes]:
    # little-endian words
    return lambda data: (data.view("<u2") >> (bits - 8)).astype(np.uint8)


def _first_and_third(data: Bytes) -> Bytes:
    """Of three bytes the second one holds the low bits of both pixels."""
    return np.ascontiguousarray(data.reshape(-1, 3)[:, ::2]).reshape(-1)


def _mono12p(data: Bytes) -> Bytes:
    low, mixed, high = data.reshape(-1, 3).T
    return np.stack([low >> 4 | mixed << 4, high], axis=1).reshape(-1)


def _mono10p(data: Bytes) -> Bytes:
    a, b, c, d, e = data.reshape(-1, 5).T
    return np.stack([a >> 2 | b << 6, b >> 4 | c << 4, c >> 6 | d << 2, e], axis=1).reshape(-1)


PIXEL_FORMATS = {
    each.name: each
    for each in (
        PixelFormat("Mono8", 0, 1, 1, lambda data: data),
        PixelFormat("Mono10", 2, 1, 2, _wide(10)),
        PixelFormat("Mono12", 4, 1, 2, _wide(12)),
        PixelFormat("Mono16", 8, 1, 2, _wide(16)),
        PixelFormat("Mono10Packed", 2, 2, 3, _first_and_third),
        PixelFormat("Mono12Packed", 4, 2, 3, _first_and_third),
        PixelFormat("Mono10p", 2, 4, 5, _mono10p),
        PixelFormat("Mono12p", 4, 2, 3, _mono12p),
    )
}
"""By name."""
