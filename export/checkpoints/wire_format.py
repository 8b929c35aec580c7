"""Protocol buffers without their schema: field numbers and raw values."""

from __future__ import annotations

from collections.abc import Iterator

Value = int | bytes


def read_fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Fields of a message in their order: whole numbers as they stand, everything else as bytes.

    Raises ValueError where it is no message. Source: Protocol Buffers, "Encoding".
    """
    position = 0
    while position < len(message):
        key, position = read_varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = read_varint(message, position)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, position = read_varint(message, position)
        if size is None or position + size > len(message):
            raise ValueError(f"field {key >> 3} of kind {kind} at byte {position} does not fit a message of {len(message)} bytes")
        yield key >> 3, message[position : position + size]
        position += size


def read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, lowest first, and the position behind it. Raises ValueError."""
    number = 0
    for index in range(10):
        if position + index >= len(content):
            raise ValueError(f"number at byte {position} is cut off")
        byte = content[position + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, position + index + 1
    raise ValueError(f"number at byte {position} has more than 64 bits")


def text_of(value: Value) -> str:
    """A text field. Raises ValueError."""
    return as_bytes(value).decode("utf-8")


def as_bytes(value: Value) -> bytes:
    """A field that is text or a message of its own. Raises ValueError."""
    if isinstance(value, int):
        raise ValueError(f"got the number {value}, expected text or a message")
    return value


def as_number(value: Value) -> int:
    """A field that is a whole number. Raises ValueError."""
    if isinstance(value, bytes):
        raise ValueError(f"got {len(value)} bytes, expected a whole number")
    return value
