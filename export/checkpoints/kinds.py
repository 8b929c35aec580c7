"""Which kind of checkpoint a file is, by its bytes; its name says nothing."""

from __future__ import annotations

import enum
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from export.errors import ExportError

LARGEST_BYTES: Final = 8 << 30
"""Of a file, unpacked: hundreds of times what a network for a line's box weighs, and as much as a small box has memory."""

_BOMB_RATIO, _BOMB_BYTES = 50, 256 << 20
"""An archive that unpacks to more than 256 MiB and 50 times its size is none of trained weights, which hardly compress."""

EXPECTED: Final = "expected a checkpoint of PyTorch, Keras, safetensors or ONNX"


class FileKind(enum.Enum):
    """What reads the file."""

    TORCH_SAVED = "torch.save"
    TORCHSCRIPT = "TorchScript"
    EXPORTED_PROGRAM = "torch.export"
    SAFETENSORS = "safetensors"
    ONNX = "ONNX"
    KERAS = "Keras"


_MAGIC: Final = (
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"BM", "a BMP image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (4, b"TFL3", "a TensorFlow Lite model, whose weights are already converted; export from the Keras model it came from"),
    (4, b"ORTM", "a model in ONNX Runtime's own format; export from the .onnx it came from"),
    (0, b"ptrt", "a TensorRT engine, which no other machine reads; export from the network it was built from"),
    (0, b"ftrt", "a TensorRT engine, which no other machine reads; export from the network it was built from"),
    (0, b"\x7fELF", "a program"),
    (0, b"GGUF", "a GGUF language model"),
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LFS = b"version https://git-lfs"
_PICKLE = tuple(bytes((0x80, version)) for version in (2, 3, 4, 5))
_HEAD_BYTES = 1 << 16
_PROTOBUF_FIELDS = 64
"""Top-level fields that are looked at: a graph stands behind a handful."""


def recognise(path: Path) -> FileKind:
    """The kind of a checkpoint file, or of a SavedModel's folder. Raises ExportError saying what the file is instead."""
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.exists() and not path.is_file():
            raise ExportError(f"{path}: is no regular file; {EXPECTED}")
        size = path.stat().st_size
        with path.open("rb") as file:
            return _of_file(path, file, size)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror or error}); {EXPECTED}") from error


def archive_names(path: Path) -> list[str]:
    """The members of a zip archive that is no bomb. Raises ExportError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ExportError(f"{path}: damaged: an archive whose end is missing or broken ({error}); copy it again") from error
    unpacked, packed = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > LARGEST_BYTES or (unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed):
        raise ExportError(
            f"{path}: unpacks from {packed} to {unpacked} bytes; expected weights, which hardly compress, "
            f"of at most {LARGEST_BYTES >> 30} GiB"
        )
    if any(member.flag_bits & 1 for member in members):
        raise ExportError(f"{path}: an archive with a password; unpack it first")
    _require_whole(path, members)
    return [member.filename for member in members]


def _require_whole(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """torch does not look at an archive's checksums: a flipped bit would be loaded as a weight. It may write none (0)."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in members:
                if member.CRC and not member.is_dir():
                    with archive.open(member) as content:
                        while content.read(1 << 20):
                            pass  # the reader compares the checksum at the end
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise ExportError(f"{path}: damaged inside ({error}); copy it again") from error


def _of_folder(path: Path) -> FileKind:
    if (path / "saved_model.pb").is_file():
        return FileKind.KERAS
    raise ExportError(f"{path}: is a folder without saved_model.pb; expected a checkpoint file, or the folder of a SavedModel")


def _of_file(path: Path, file: BinaryIO, size: int) -> FileKind:
    head = file.read(_HEAD_BYTES)
    if not head:
        raise ExportError(f"{path}: damaged: the file is empty; copy it again")
    if size > LARGEST_BYTES:
        raise ExportError(f"{path}: has {size} bytes; expected at most {LARGEST_BYTES >> 30} GiB")
    if head.startswith(b"PK\x03\x04"):
        return _of_archive(path)
    if head.startswith(_HDF5):
        return FileKind.KERAS
    if head.startswith(_PICKLE):
        return FileKind.TORCH_SAVED
    if _is_safetensors(head):
        return FileKind.SAFETENSORS
    for offset, magic, what in _MAGIC:
        if head[offset:].startswith(magic):
            raise ExportError(f"{path}: is {what}; {EXPECTED}")
    kind = _of_text(path, head, size) or _of_protobuf(path, file, size)
    if kind is None:
        raise ExportError(f"{path}: damaged or no checkpoint (it starts with {head[:8].hex(' ')}); {EXPECTED}")
    return kind


def _of_archive(path: Path) -> FileKind:
    names = archive_names(path)
    inner = {name.partition("/")[2] for name in names}
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return FileKind.KERAS
    if "serialized_exported_program.json" in names or {"archive_format", "archive_version"} <= inner:
        return FileKind.EXPORTED_PROGRAM
    if "data.pkl" in inner:
        scripted = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
        return FileKind.TORCHSCRIPT if scripted else FileKind.TORCH_SAVED
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    raise ExportError(f"{path}: is an archive with {shown or 'nothing in it'}; {EXPECTED}, unpacked")


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of the header's length, then the header, which is JSON. Source: safetensors, format."""
    return len(head) > 9 and head[8:9] == b"{" and head[9:10] in b'"} \n' and head[6:8] == b"\0\0"


def _of_text(path: Path, head: bytes, size: int) -> FileKind | None:
    text = _as_text(head)
    if text is None:
        return None
    if head.startswith(_LFS):
        raise ExportError(f"{path}: is a pointer of Git LFS, not the file itself; fetch it (`git lfs pull`)")
    if text.lstrip()[:1] == "{" and size <= LARGEST_BYTES:
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise ExportError(f"{path}: damaged: JSON that breaks off ({error}); copy it again") from error
        if isinstance(document, dict) and "class_name" in document and "config" in document:
            return FileKind.KERAS
        keys = ", ".join(map(str, list(document)[:4]))
        raise ExportError(f"{path}: is JSON with {keys or 'nothing'}, no model.json of Keras (class_name, config); {EXPECTED}")
    if text.lstrip()[:2].lower() in ("<!", "<h"):
        raise ExportError(f"{path}: is a web page: the download failed; {EXPECTED}")
    raise ExportError(f"{path}: is a text file ({text.strip().splitlines()[0][:40] if text.strip() else 'blank'}); {EXPECTED}")


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # the last character may be cut in two
        if error.start < len(head) - 3 or len(head) < _HEAD_BYTES:
            return None
        text = head[: error.start].decode("utf-8")
    return text if all(character.isprintable() or character in "\r\n\t\f" for character in text) else None


def _of_protobuf(path: Path, file: BinaryIO, size: int) -> FileKind | None:
    """ONNX's ModelProto starts with its version (1) and holds a graph (7); TensorFlow's files have neither, or no graph."""
    fields = _protobuf_fields(file, size)
    if fields is None or not fields:
        return None
    if (7, 2) in fields and (1, 2) not in fields:
        return FileKind.ONNX
    if fields[0] == (1, 0) and (2, 2) in fields:
        if path.name == "saved_model.pb":
            raise ExportError(f"{path}: is a part of a SavedModel; give the folder, {path.parent}")
        raise ExportError(f"{path}: damaged, or a part of a TensorFlow SavedModel; give the folder it came in")
    if fields[0] == (1, 2):
        raise ExportError(
            f"{path}: is no ONNX file but another protobuf, as TensorFlow's frozen graphs are; "
            "export from the Keras model or SavedModel it came from"
        )
    return None


def _protobuf_fields(file: BinaryIO, size: int) -> list[tuple[int, int]] | None:
    """Numbers and wire types of the first top-level fields; None: no protobuf. Source: protobuf, encoding."""
    fields: list[tuple[int, int]] = []
    file.seek(0)
    while len(fields) < _PROTOBUF_FIELDS and file.tell() < size:
        tag = _varint(file)
        if tag is None or tag >> 3 == 0 or tag >> 3 > 1000:
            return None
        number, wire = tag >> 3, tag & 7
        fields.append((number, wire))
        length = {0: 0, 1: 8, 5: 4}.get(wire, _varint(file) if wire == 2 else None)
        if length is None or (wire == 0 and _varint(file) is None):
            # broken off in the middle of a field: what came before it still tells what the file was
            return fields if file.tell() >= size else None
        file.seek(length, 1)
    return fields


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
