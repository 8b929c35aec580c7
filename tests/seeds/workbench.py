"""What a user of a seed system does: export its checkpoint with the recipe, run its station over images, look at the files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl

from edge.bundle import Bundle, open_bundle
from edge.cli import main
from edge.events import DefectClosed, parse_event

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICK = {"precision": "fp32", "speed_s": 0}
csv.field_size_limit(1 << 24)  # the run lengths of an image are one field


def export(recipe: str, **values: Any) -> Bundle:
    """`rust-edge export configs/export/RECIPE.yaml --set ...`."""
    flags = ["--trust-checkpoint"] if values.pop("trust", False) else []
    run("export", str(CONFIGS / "export" / f"{recipe}.yaml"), *flags, *_overrides(QUICK | values))
    return open_bundle(values["out"])


@dataclass(frozen=True)
class Inspected:
    """What `rust-edge inspect` wrote; tables as rows, their headings first."""

    summary: dict[str, Any]
    mask: np.ndarray
    closed: list[Any]
    rle: list[list[Any]]
    contours: list[list[Any]]
    fractions: list[list[Any]]


def inspect(
    station: str, images: dict[str, np.ndarray], folder: Path, contours: str = "contours.csv", **values: Any
) -> Inspected:
    """Images by name, written to a folder, through `rust-edge inspect -c configs/seeds/STATION.yaml --set ...`."""
    shots = write_images(folder / "shots", images)
    outputs = {name: folder / name for name in ("mask.png", "rle.csv", contours, "events.jsonl")}
    flags = [word for name, path in outputs.items() for word in (f"--{Path(name).stem}", str(path))]
    shown = run("inspect", str(shots), "-c", str(CONFIGS / "seeds" / f"{station}.yaml"), "--json", *flags, *_overrides(values))
    tables = (
        [_read_table(folder / name) for name in (contours, "contours.fractions.csv")]
        if contours.endswith("csv")
        else (_read_workbook(folder / contours))
    )
    events = [parse_event(line) for line in outputs["events.jsonl"].read_text().splitlines()]
    return Inspected(
        summary=json.loads(shown),
        mask=cv2.imread(str(outputs["mask.png"]), cv2.IMREAD_UNCHANGED),
        closed=[event.data for event in events if isinstance(event, DefectClosed)],
        rle=_read_table(outputs["rle.csv"]),
        contours=tables[0],
        fractions=tables[1],
    )


def run(*arguments: str) -> str:
    """What `rust-edge` prints; an exit code that is not 0 is a failure."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        code = main(list(arguments))
    assert code == 0, f"rust-edge {' '.join(arguments)}: {said.getvalue()}"
    return shown.getvalue()


def write_images(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """PNG files by name; names may have folders."""
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
    return folder


def _read_table(path: Path) -> list[list[Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _read_workbook(path: Path) -> list[list[list[Any]]]:
    book = openpyxl.load_workbook(path, read_only=True)
    assert book.sheetnames == ["Contours", "Fractions"]
    return [[list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book]


def _overrides(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={_text(value)}")]


def _text(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else "null" if value is None else str(value)
