"""What was measured on this box and is kept for it: the chunk height that `chunk_lines: auto` takes.

The file is looked for in this order, and the first one that is there counts:

    $RUST_EDGE_BOX
    $XDG_CONFIG_HOME/rust-edge/box.yaml, ~/.config/rust-edge/box.yaml where that is not set
    /etc/rust-edge/box.yaml

A service with a user of its own, and without a home, finds the last one; so root writes it there.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ConfigError
from edge.outputs.output_file import OutputFile

_log = logging.getLogger(__name__)

VARIABLE = "RUST_EDGE_BOX"
SYSTEM_FILE = Path("/etc/rust-edge/box.yaml")
FALLBACK_LINES = 64
"""Chunk height of `auto` where nothing was measured: within 15 % of the cheapest on every processor tried, at a fair latency."""


@dataclass(frozen=True, slots=True)
class BoxKey:
    """What a chunk height was measured for. threads: of one inference, counted out. width_px: of the strip."""

    bundle_sha256: str
    backend: str
    width_px: int
    threads: int


class ChunkHeight(BaseModel):
    """One measured choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle_sha256: str
    backend: str
    width_px: int = Field(ge=1)
    threads: int = Field(ge=1)
    chunk_lines: int = Field(ge=1, le=4096)
    latency_budget_ms: float = Field(gt=0)
    measured_at: AwareDatetime

    @property
    def key(self) -> BoxKey:
        """What it was measured for."""
        return BoxKey(self.bundle_sha256, self.backend, self.width_px, self.threads)


class Box(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["rust-edge-box"] = "rust-edge-box"
    format_version: Literal[1] = 1
    chunk_heights: tuple[ChunkHeight, ...] = ()


def box_files() -> tuple[Path, ...]:
    """Where the file may be, the first one that is there counts."""
    named = os.environ.get(VARIABLE)
    return ((Path(named),) if named else ()) + _user_files() + (SYSTEM_FILE,)


def own_box_file() -> Path:
    """Where a measurement is kept unless something else is said: root's are for the services of the box."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    users = _user_files()
    return SYSTEM_FILE if os.geteuid() == 0 or not users else users[0]


def chunk_lines_for(wanted: int | Literal["auto"], key: BoxKey) -> int:
    """The chunk height of a station: what its file says, with `auto` what was measured here for the same. Raises ConfigError."""
    if wanted != "auto":
        return wanted
    path = next((path for path in box_files() if path.is_file()), None)
    measured = {entry.key: entry for entry in read_box(path).chunk_heights} if path else {}
    if key not in measured:
        why = f"{path} holds nothing for this bundle, backend, width and threads" if path else "no file of this box is there"
        _log.warning("chunk_lines: auto is %d: %s; measure it: rust-edge bench --only chunks", FALLBACK_LINES, why)
        return FALLBACK_LINES
    _log.info("chunk_lines: auto is %d, from %s", measured[key].chunk_lines, path)
    return measured[key].chunk_lines


def read_box(path: Path) -> Box:
    """A box's file; an empty box where there is none. Raises ConfigError."""
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Box()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())}); measure again, or remove it") from error
    try:
        return Box.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}; "
            "expected a file that `rust-edge bench` wrote: measure again, or remove it"
        ) from error


def keep_chunk_height(path: Path, height: ChunkHeight) -> None:
    """Put a choice into a box's file, in place of an earlier one for the same. Raises ConfigError."""
    others = [entry for entry in read_box(path).chunk_heights if entry.key != height.key]
    box = Box(chunk_heights=(*others, height))
    with OutputFile(path, "--box") as output:
        output.file.write(yaml.safe_dump(box.model_dump(mode="json"), sort_keys=False).encode())
    path.chmod(0o644)  # a service of another user reads it


def _user_files() -> tuple[Path, ...]:
    """Source: XDG Base Directory Specification, which wants relative paths ignored."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if named.is_absolute():
        return (named / "rust-edge" / "box.yaml",)
    try:
        return (Path.home() / ".config" / "rust-edge" / "box.yaml",)
    except RuntimeError:  # a service without a home
        return ()
