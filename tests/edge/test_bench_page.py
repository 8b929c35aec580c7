"""The page of a bench run: every figure that was measured stands on it, and nothing that was not."""

from __future__ import annotations

from datetime import datetime, timezone
from html.parser import HTMLParser

import pytest

from edge.bench.page import page_of
from edge.bench.results import (
    ChunkChoice,
    ChunkFigures,
    EngineFigures,
    LatencyFigures,
    LoadFigures,
    Machine,
    MemoryFigures,
    MemorySample,
    OverloadFigures,
    PipelineFigures,
    Results,
    Station,
    StripTruth,
    figure_of,
)

STATION = Station(
    origin="station <one>.yaml",
    bundle="unet",
    bundle_sha256="aa",
    precision="int8",
    gate="gate",
    mode="cascade",
    dense="streaming",
    backend="ort",
    threads=2,
    chunk_lines=64,
    width_px=4096,
    frame_lines=128,
    mm_per_line=0.25,
    mm_per_column=0.25,
    config_hash="cc",
)
NOTHING = Results(
    began_at=datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
    seconds=12.0,
    command="rust-edge bench",
    versions={"rust-edge": "1"},
    machine=Machine(processor="Processor & co", architecture="x86_64", system="Linux", cores=2),
    station=STATION,
)


def pipeline(mode: str, clean: float, lines_per_s: float) -> PipelineFigures:
    return PipelineFigures(
        mode=mode,
        wanted_clean_share=clean,
        clean_share=clean,
        lines_per_s=figure_of([lines_per_s]),
        megapixels_per_s=figure_of([lines_per_s * 4096e-6]),
        megapixels_per_cpu_s=figure_of([2.0]),
        planted=10,
        found=9,
        false_alarms=1,
        dense_defects=10,
        dense_defects_found=9,
    )


def load(share: float, p99: float | None) -> LoadFigures:
    some = None if p99 is None else figure_of([p99])
    return LoadFigures(
        load_share=share,
        line_rate_hz=1000 * share,
        seconds=5,
        alerts=0 if p99 is None else 40,
        p50_ms=some,
        p90_ms=some,
        p99_ms=some,
        p99_9_ms=some,
        floor_ms=50,
        shed_lines=0,
        alerts_missing=0,
    )


EVERYTHING = NOTHING.model_copy(
    update={
        "verdict": ("this box carries a lot",),
        "strips": (
            StripTruth(
                wanted_clean_share=0.95, clean_share=0.951, tiles=64, width_px=4096, lines=1024, seed=7, planted=10, smaller=2
            ),
        ),
        "engines": tuple(
            EngineFigures(
                engine="stream",
                bundle="unet",
                precision="int8",
                backend=backend,
                threads=1,
                chunk_lines=height,
                megapixels_per_s=figure_of([8.0]),
                megapixels_per_cpu_s=figure_of([8.0, 9.0]),
            )
            for backend in ("ort", "openvino")
            for height in (16, 64)
        ),
        "pipeline": (pipeline("dense", 0.95, 2000.0), pipeline("cascade", 0.95, 21_000.0)),
        "latency": LatencyFigures(
            clean_share=0.95,
            capacity_lines_per_s=figure_of([20_000]),
            capacity_megapixels_per_s=figure_of([80]),
            loads=(load(0.5, None), load(0.8, 90.0)),
        ),
        "overload": OverloadFigures(
            load_share=1.2,
            line_rate_hz=24_000,
            seconds=5,
            queue_frames=64,
            captured_lines=1000,
            inspected_lines=700,
            gated_lines=100,
            lost_lines=0,
            shed_lines=200,
            shed_share=0.2,
            ledger_exact=True,
        ),
        "memory": (
            MemoryFigures(
                metres=100,
                lines=400_000,
                seconds=9,
                settled_mib=300,
                last_mib=301,
                peak_mib=302,
                samples=tuple(MemorySample(seconds=n, metres=10 * n, rss_mib=300 + n) for n in range(3)),
            ),
        ),
        "chunks": ChunkChoice(
            latency_budget_ms=50,
            line_rate_hz=10_000,
            heights=(
                ChunkFigures(
                    chunk_lines=64,
                    lag_lines=96,
                    us_per_line=figure_of([400]),
                    cpu_us_per_line=figure_of([800]),
                    latency_ms=40,
                    within_budget=True,
                ),
            ),
            chosen_lines=64,
        ),
        "not_measured": {"pipeline": "no gate"},
    }
)


class Text(HTMLParser):
    """Words of a page, and whether what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("results", [NOTHING, EVERYTHING], ids=["nothing", "everything"])
def test_the_page_is_well_formed_and_needs_nothing_else(results):
    page = page_of(results)
    assert Text(page).open == []
    assert "http" not in page.replace("http-equiv", "")
    assert "nan" not in " ".join(Text(page).words)


def test_every_part_that_was_measured_has_its_table():
    words = " ".join(Text(page_of(EVERYTHING)).words)
    for title in ("Pipeline", "Engines alone", "Latency", "Overload", "Chunk height", "Memory", "Strips", "Not measured"):
        assert title in words
    assert "this box carries a lot" in words
    assert "9 of 10" in words


def test_a_part_that_was_not_measured_is_not_there():
    words = Text(page_of(NOTHING)).words
    assert not {"Pipeline", "Latency", "Overload", "Memory"} & set(words)


def test_an_interrupted_run_says_so_first():
    page = page_of(EVERYTHING.model_copy(update={"complete": False, "interrupted_in": "latency"}))
    assert "Interrupted in latency: not everything is here." in page


def test_a_ledger_that_does_not_add_up_stands_out():
    overload = EVERYTHING.overload.model_copy(update={"ledger_exact": False})
    page = page_of(EVERYTHING.model_copy(update={"overload": overload}))
    assert 'class="bad"' in page
    assert 'class="bad"' not in page_of(EVERYTHING)


def test_what_comes_from_outside_is_escaped():
    page = page_of(EVERYTHING)
    assert "station &lt;one&gt;.yaml" in page
    assert "Processor &amp; co" in page
