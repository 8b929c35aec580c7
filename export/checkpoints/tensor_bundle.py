"""TensorFlow's checkpoint files (`variables.index`, `variables.data-00000-of-00001`), read without TensorFlow.

The index is a sorted table of LevelDB's kind, from a tensor's key to where its values stand in the data files. TensorFlow
writes it uncompressed. Every block and every tensor has a checksum, which is held against what is read.

Source: TensorFlow, `tensorflow/core/util/tensor_bundle/tensor_bundle.h`, `tensorflow/core/protobuf/tensor_bundle.proto`,
`tensorflow/core/lib/io/format.h`; LevelDB, "Table format".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoints.wire_format import Value, as_bytes, as_number, read_fields, read_varint
from export.errors import ExportError

Array = npt.NDArray[Any]

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5
"""Behind each block: its compression, one byte, and its checksum, four."""

_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
"""Source: TensorFlow, `tensorflow/core/framework/types.proto`."""
_STRING = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor stands. dtype: TensorFlow's number for it; crc: its masked checksum."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorBundle:
    """A checkpoint's tensors by key. prefix: the files' path without `.index`. Raises ExportError."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        index = Path(f"{prefix}.index")
        content = _content(index)
        try:
            table = dict(_table(content))
            header = dict(read_fields(table.pop(b"", b"")))
            self._entries = {key.decode("utf-8"): _entry(value) for key, value in table.items()}
        except (ValueError, IndexError) as error:
            raise ExportError(f"{index}: damaged or no TensorFlow checkpoint index ({error}); copy the folder again") from error
        self._shards = as_number(header.get(1, 1))
        self._read: dict[int, bytes] = {}
        if header.get(2, 0):
            raise ExportError(
                f"{index}: is of a big-endian machine; expected little-endian tensors: save it again on another one"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        """Keys in the table's order."""
        return iter(self._entries)

    def tensor(self, key: str) -> Array:
        """A tensor of numbers. Raises ExportError."""
        entry = self._entries[key]
        if entry.dtype not in _DTYPES:
            raise ExportError(f"{self._prefix}: {key} has TensorFlow's type {entry.dtype}; expected one of {sorted(_DTYPES)}")
        values = np.frombuffer(self._bytes(key, entry), _DTYPES[entry.dtype])
        if values.size != math.prod(entry.shape):
            raise ExportError(f"{self._prefix}: {key} has {values.size} values, expected {entry.shape}; copy the folder again")
        return values.reshape(entry.shape)

    def text(self, key: str) -> bytes:
        """A tensor of one text. Raises ExportError."""
        entry = self._entries[key]
        if entry.dtype != _STRING or math.prod(entry.shape) != 1:
            raise ExportError(f"{self._prefix}: {key} is no text; expected one")
        # the length, the length's checksum, the text
        content = self._file(entry)[entry.offset : entry.offset + entry.size]
        length, start = read_varint(content, 0)
        if start + 4 + length != len(content):
            raise ExportError(f"{self._prefix}: {key} is cut off; copy the folder again")
        return content[start + 4 :]

    def _bytes(self, key: str, entry: Entry) -> bytes:
        content = self._file(entry)[entry.offset : entry.offset + entry.size]
        if len(content) != entry.size:
            raise ExportError(f"{self._prefix}: {key} is cut off, {len(content)} of {entry.size} bytes; copy the folder again")
        if _masked(crc32c(content)) != entry.crc:
            raise ExportError(f"{self._prefix}: {key} is damaged, its checksum differs; copy the folder again")
        return content

    def _file(self, entry: Entry) -> bytes:
        if entry.shard not in self._read:
            self._read[entry.shard] = _content(Path(f"{self._prefix}.data-{entry.shard:05d}-of-{self._shards:05d}"))
        return self._read[entry.shard]


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum. Long contents run as many lanes side by side, joined at the end. Source: RFC 3720, B.4."""
    # as many lanes as bytes in each of them: about as many vectorised steps as table lookups to join them with
    length = math.isqrt(len(content)) if len(content) >= 1 << 12 else 0
    lanes = len(content) // length if length else 0
    crc = 0xFFFFFFFF
    if lanes:
        columns = np.frombuffer(content, np.uint8, lanes * length).reshape(lanes, length)
        parts = np.zeros(lanes, np.uint32)
        for column in np.ascontiguousarray(columns.T):
            parts = _step(parts, column)
        # what a checksum becomes when `length` zeros follow: linear, so told by what becomes of each of its 32 bits
        bits = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
        for _ in range(length):
            bits = _step(bits, np.zeros(32, np.uint8))
        moved = [int(bit) for bit in bits]
        for part in parts.tolist():
            shifted = 0
            for index in range(32):
                if crc >> index & 1:
                    shifted ^= moved[index]
            crc = shifted ^ part
    table = _crc_table().tolist()
    for byte in content[lanes * length :]:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _step(crcs: npt.NDArray[np.uint32], column: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    stepped: npt.NDArray[np.uint32] = np.right_shift(crcs, 8) ^ _crc_table()[(crcs & 0xFF).astype(np.uint8) ^ column]
    return stepped


@functools.cache
def _crc_table() -> npt.NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, values >> 1 ^ np.uint32(0x82F63B78), values >> 1).astype(np.uint32)
    return values


def _masked(crc: int) -> int:
    """A checksum as it is stored. Source: TensorFlow, `tensorflow/core/lib/hash/crc32c.h`."""
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = content[-_FOOTER:]
    if len(footer) < _FOOTER or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("its footer is not that of a table")
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    for _, handle in _block(content, index):
        yield from _block(content, _handle(handle, 0)[0])


def _handle(content: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = read_varint(content, position)
    size, position = read_varint(content, position)
    return (offset, size), position


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    offset, size = handle
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + _TRAILER]
    if len(trailer) != _TRAILER or _masked(crc32c(block + trailer[:1])) != int.from_bytes(trailer[1:], "little"):
        raise ValueError(f"the checksum of the block at byte {offset} differs")
    if trailer[0]:
        raise ValueError(f"the block at byte {offset} is compressed; TensorFlow writes plain ones")
    # entries share the start of their key with the one before; behind them the restart points and their count
    end, position, key = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little"), 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        own, position = read_varint(block, position)
        length, position = read_varint(block, position)
        key = key[:shared] + block[position : position + own]
        yield key, block[position + own : position + own + length]
        position += own + length


def _entry(message: bytes) -> Entry:
    fields: dict[int, Value] = dict(read_fields(message))
    shape = tuple(
        as_number(dict(read_fields(as_bytes(dimension))).get(1, 0))
        for number, dimension in read_fields(as_bytes(fields.get(2, b"")))
        if number == 2
    )
    if 7 in fields:
        raise ValueError("a tensor is stored in slices, as several machines write it")
    return Entry(
        dtype=as_number(fields.get(1, 0)),
        shape=shape,
        shard=as_number(fields.get(3, 0)),
        offset=as_number(fields.get(4, 0)),
        size=as_number(fields.get(5, 0)),
        crc=int.from_bytes(as_bytes(fields.get(6, bytes(4))), "little"),
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); expected the files of a TensorFlow checkpoint") from error
