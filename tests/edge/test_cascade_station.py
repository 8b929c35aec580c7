"""A station whose gate scores cells, from its file to its masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stations import WIDTH, station, write_strip
from toy_engines import write_cell_gate, write_gate

from edge.config import parse_config
from edge.engines import Engines
from edge.frame import Lines
from edge.segmenters import MaskRows
from edge.segmenters.cascade import CascadeSegmenter

LINES = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("station")
    write_cell_gate(folder / "cells")
    write_gate(folder / "tiles")
    return folder


@pytest.fixture(scope="module")
def strip(folder: Path) -> Lines:
    return write_strip(folder / "strip", LINES)


def rows_of(folder: Path, strip: Lines, **changes: object) -> list[MaskRows]:
    document = station(folder, **changes)
    with Engines(parse_config(document, "f"), "f") as engines:
        segmenter = engines.segmenter(WIDTH)
        segmenter.start(0)
        rows = [part for first in range(0, LINES, 90) for part in segmenter.push(strip[first : first + 90])]
        if changes.get("mode") == "cascade":
            assert isinstance(segmenter, CascadeSegmenter)
        return rows + segmenter.flush()


def mask_of(rows: list[MaskRows]) -> np.ndarray:
    return np.concatenate([part.mask for part in rows])


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("gate", ["cells", "tiles"])
def test_a_cascade_finds_what_dense_inspection_does_and_looks_at_less(
    folder: Path, strip: Lines, gate: str, backend: str
) -> None:
    """Every pixel that the segmenter takes for a defect alarms its cell, its tile as well."""
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    session = {"threads": 1, "backend": backend}
    dense = mask_of(rows_of(folder, strip, session=session))
    rows = rows_of(
        folder, strip, session=session, mode="cascade", gate=str(folder / gate), tiling={"band_lines": 128, "batch": 1}
    )
    np.testing.assert_array_equal(mask_of(rows), dense)
    assert dense.any()
    assert {part.segmented for part in rows} == {True, False}
    assert {part.tile_columns for part in rows} == {8 if gate == "cells" else 32}


@pytest.mark.parametrize("chunk_lines", [8, 64, 100])
def test_the_station_s_chunks_change_nothing_about_a_cascade(folder: Path, strip: Lines, chunk_lines: int) -> None:
    common = {"mode": "cascade", "gate": str(folder / "cells"), "session": {"threads": 1, "backend": "ort"}}
    rows, usual = rows_of(folder, strip, chunk_lines=chunk_lines, **common), rows_of(folder, strip, **common)
    np.testing.assert_array_equal(mask_of(rows), mask_of(usual))
    assert [part.gate_scores.tolist() for part in rows] == [part.gate_scores.tolist() for part in usual]
