"""Zip archives that hold programs: their members as they were looked at, and as they are then handed on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from export.checkpoints.checkpoint import Hints
from export.checkpoints.hints import hints_of
from export.checkpoints.kinds import archive_names
from export.errors import ExportError

Members = dict[str, bytes]


def read_members(path: Path) -> Members:
    """The members of an archive by name. Raises ExportError where one is damaged or stands there twice."""
    names = archive_names(path)
    if len(set(names)) != len(names):
        raise ExportError(f"{path}: damaged: {max(names, key=names.count)} is in the archive twice; export it again")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise ExportError(f"{path}: damaged archive ({error}); copy it again") from error


def repacked(members: Members) -> io.BytesIO:
    """An archive of just these members.

    What was checked is what gets loaded: torch reads archives with a library of its own, which may see another file in one
    that was made to be ambiguous.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def extra_hints(members: Members) -> Hints:
    """What texts say that were saved along (`_extra_files`, `extra_files`): each a JSON document, or a value by its file name."""
    document: dict[str, object] = {}
    for name, content in members.items():
        folder, _, file = name.rpartition("/")
        if not folder.endswith("extra") and folder != "extra_files":
            continue
        try:
            text = content.decode("utf-8")
            value = json.loads(text)
        except UnicodeDecodeError:
            continue
        except ValueError:
            value = text
        if isinstance(value, dict):
            document |= value
        document[file.partition(".")[0]] = value
    return hints_of(document)
