from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
from small_networks import adding_unet, images

from calibration.thresholds import ThresholdSearch
from edge.bundle import open_bundle
from edge.evaluation import Confusion, classifier_figures
from edge.manifest import GateThreshold, HaloShare, Manifest
from edge.pages.page import Section
from edge.pages.plots import Bars, Histogram, Steps
from export.halo import HaloMeasurement
from export.parity import compare_scores
from export.passes.streaming import stream
from export.quality import ClassifierQuality, SegmenterQuality, WorstImage
from export.report import Report, render_html, render_json
from export.report_sections import EPOCHS_SHOWN, Measured, classifier_report, segmenter_report
from export.sensitivity import Quantization

CLASSES = ("background", "inclusion", "patches", "scratches")
GROUPS = tuple(f"encoder.blocks.{number}.conv_pwl to encoder.blocks.{number + 1}.conv_dw" for number in range(24))


def manifest(name: str = "steel-unet-int8") -> Manifest:
    return open_bundle(name).manifest


def quality(wrong: float, pictures: int = 3, side: int = 256) -> SegmenterQuality:
    """A segmenter that gets so large a share of random pixels wrong, and pictures that no codec makes small."""
    rng = np.random.default_rng(0)
    confusion, search, worst = Confusion(CLASSES), ThresholdSearch(CLASSES), []
    for _ in range(pictures):
        truth = rng.integers(0, 4, (side, side)).astype(np.uint8)
        mask = np.where(rng.random(truth.shape) < wrong, (truth + 1) % 4, truth).astype(np.uint8)
        confusion.add(truth, mask)
        search.add(truth[:8, :8], mask[:8, :8], np.full((8, 8), 200, np.uint8))
        worst.append(WorstImage(wrong, images(1, side, side)[0, 0], truth, mask))
    return SegmenterQuality(confusion, search.choose(), tuple(worst))


def quantization(loss: float, curve: tuple[float, ...] = ()) -> Quantization:
    steps = tuple(zip(GROUPS, curve, strict=False))
    alone = {name: 1.0 - 0.01 * index for index, name in enumerate(GROUPS)} if curve else {}
    methods = {"min_max": 2.5, "entropy": 1.5 if curve else loss}
    return Quantization(onnx.ModelProto(), "entropy", ("stem/Conv",) if curve else (), loss, methods, alone, steps)


@pytest.fixture(scope="module")
def measured() -> Measured:
    scores = [np.random.default_rng(1).normal(size=(2, 4, 16, 16)).astype(np.float32)]
    near = [scores[0] + np.float32(0.01)]
    return Measured(
        arch="steel-unet",
        checkpoint="best.pt (sha256 93bde514...)",
        calibration_tiles=240,
        tile_flops=5.4e9,
        parities={
            "source and ONNX": compare_scores(scores, scores, "softmax"),
            "float and INT8": compare_scores(scores, near, "softmax"),
        },
        quantization=quantization(0.25, (1.0, 0.6, 0.25)),
        max_drop=0.5,
        sizes={"FP32": 3_000_000, "INT8": 750_000},
        speeds={"ONNX Runtime": {"FP32": 10.0, "INT8": 25.0}, "OpenVINO": {"FP32": 12.0, "INT8": 42.0}},
        tuning_losses=tuple(1.0 / number for number in range(1, 51)),
    )


def report(measured: Measured, **changes: object) -> Report:
    given = {"halos": None, "streamed": None, "refused": "Resize pools over all of a tile", "labelled": True} | changes
    return segmenter_report(manifest(), measured, quality(0.2), quality(0.15), **given)


def plots(of: Report) -> dict[str, Bars | Steps | Histogram]:
    return {plot.title: plot for plot in of.plots}


def test_the_float_engine_and_the_result_stand_side_by_side_by_class(measured):
    shown = plots(report(measured))["IoU by class"]
    assert shown.labels == CLASSES
    assert [series.name for series in shown.series] == ["FP32", "INT8"]
    after, before = quality(0.2).confusion.iou(), quality(0.15).confusion.iou()
    assert shown.series[0].values == tuple(before.values())
    assert shown.series[1].values == tuple(after.values())
    assert float(shown.remarks[1].replace("−", "-")) == pytest.approx(100 * (after["inclusion"] - before["inclusion"]), abs=0.005)


def test_a_float_bundle_is_compared_with_nothing(measured):
    floating = dataclasses.replace(measured, quantization=None)
    made = segmenter_report(manifest("steel-unet-fp32"), floating, quality(0.2), quality(0.2), None, None, None, True)
    shown = plots(made)["IoU by class"]
    assert len(shown.series) == 1
    assert "points gained" not in shown.note
    assert not [fact for fact in made.facts if "lost" in fact.name]


def test_the_curve_begins_with_all_in_int8_and_marks_what_was_taken(measured):
    curve = plots(report(measured))["Loss against layer groups in float"]
    assert curve.labels == ("all in INT8", *(f"+ {name}" for name in GROUPS[:3]))
    assert curve.values == (1.5, 1.0, 0.6, 0.25)
    assert (curve.limit, curve.chosen) == (0.5, 3)


def test_a_curve_whose_best_step_is_not_its_last_marks_the_best(measured):
    found = dataclasses.replace(measured, quantization=quantization(0.6, (1.0, 0.6, 0.9)))
    assert plots(report(found))["Loss against layer groups in float"].chosen == 2


def test_a_fine_tuned_network_took_none_of_the_steps(measured):
    tried = quantization(0.1, (1.0, 0.6, 0.9))
    tuned = dataclasses.replace(tried, method="fine_tuned", methods=tried.methods | {"fine_tuned": 0.1}, float_layers=())
    shown = plots(report(dataclasses.replace(measured, quantization=tuned)))
    curve = shown["Loss against layer groups in float"]
    assert (curve.values[0], curve.chosen) == (1.5, None)
    assert not any(shown["Sensitivity by layer group"].remarks)


def test_groups_that_stay_float_are_marked_among_all(measured):
    bars = plots(report(measured))["Sensitivity by layer group"]
    assert bars.remarks == ("float",) * 3 + ("",) * 21


def test_within_the_budget_at_once_there_is_no_curve(measured):
    shown = plots(report(dataclasses.replace(measured, quantization=quantization(0.1))))
    assert not {"Loss against layer groups in float", "Sensitivity by layer group"} & set(shown)


@pytest.mark.parametrize(("loss", "verdict"), [(0.25, "good"), (0.75, "bad")])
def test_the_loss_is_held_against_what_was_allowed(measured, loss, verdict):
    found = dataclasses.replace(measured, quantization=quantization(loss, (1.0, loss)))
    (fact,) = (fact for fact in report(found).facts if fact.name == "points lost by INT8")
    assert (fact.value, fact.verdict, fact.remark) == (f"{loss:.2f}", verdict, "0.5 allowed; 1 layer in float")


def test_sizes_and_speeds_say_by_how_much(measured):
    shown = plots(report(measured))
    assert shown["Size"].remarks == ("÷4",)
    assert shown["Speed"].labels == ("ONNX Runtime", "OpenVINO")
    assert shown["Speed"].remarks == ("×2.5", "×3.5")


def test_shares_of_differences_are_those_of_the_comparison(measured):
    histogram = plots(report(measured))["Differences of scores"]
    same, near = histogram.series
    assert same.values[0] == 1.0
    assert near.values[0] == 0.0
    assert sum(near.values) == pytest.approx(1.0)


def test_a_long_fine_tuning_shows_some_epochs_and_its_last(measured):
    shown = plots(report(measured))["Quantization-aware fine-tuning"]
    assert len(shown.labels) <= EPOCHS_SHOWN
    assert shown.labels[-1] == "epoch 50"
    assert shown.values[-1] == pytest.approx(1 / 50)


def test_a_network_that_streams_has_its_table_and_another_says_why_not(measured):
    streamed = stream(adding_unet())
    table = {section.title: section for section in report(measured, streamed=streamed, refused=None).sections}["Streaming"]
    assert len(table.rows) == len(streamed.table)
    without = {section.title: section for section in report(measured).sections}["Streaming"]
    assert without.note == "Runs on tiles alone: Resize pools over all of a tile."


def test_halos_are_shown_where_they_were_measured(measured):
    halos = HaloMeasurement(16, (HaloShare(halo=0, changed=0.01), HaloShare(halo=16, changed=0.0)), 40_000)
    assert [section.title for section in report(measured, halos=halos).sections].count("Halo") == 1
    assert "Halo" not in [section.title for section in report(measured).sections]


def test_without_labels_no_image_is_called_wrong(measured):
    made = report(measured, labelled=False)
    assert made.worst == ()
    assert "nobody labelled any" in plots(made)["IoU by class"].note
    assert made.facts[0].name == "agreement with float"


def gate_quality(wrong: int, threshold: bool = True) -> ClassifierQuality:
    confusion = Confusion(("clean", "defect"))
    truth = np.repeat([0, 1], 100)
    confusion.add(truth, np.where(np.arange(200) % 100 < wrong, 1 - truth, truth))
    chosen = GateThreshold(score=0.3, recall=0.995, passed_clean=0.01 * wrong)
    return ClassifierQuality(classifier_figures(confusion), chosen if threshold else None, (0.995, 0.02), 100, 100)


def test_a_gates_decisions_are_compared_at_its_threshold_too(measured):
    made = classifier_report(manifest("steel-gate-int8"), measured, gate_quality(4), gate_quality(2), 16)
    shown = plots(made)["Decisions"]
    assert shown.labels == ("accuracy", "recall", "precision", "recall at threshold", "clean let through")
    assert shown.remarks[0] == "−2.00"
    assert shown.remarks[3] == "0.00"
    assert made.facts[0].value == "99.50 %"
    sections = {section.title: section for section in made.sections}
    assert sections["Confusion"].rows == (("clean", 96, 4), ("defect", 4, 96))
    assert sections["Quality"].rows[0][:2] == ("int8", 0.96)


def test_a_classifier_without_a_threshold_is_judged_by_its_accuracy(measured):
    qualities = gate_quality(4, threshold=False), gate_quality(2, threshold=False)
    made = classifier_report(manifest("steel-gate-int8"), measured, *qualities, 16)
    assert plots(made)["Decisions"].labels == ("accuracy", "recall", "precision")
    assert (made.facts[0].name, made.facts[0].value) == ("accuracy", "96.00 %")
    assert {section.title: section for section in made.sections}["Quality"].head == ("engine", "accuracy", "recall", "precision")


def test_the_largest_report_stays_small_and_its_numbers_are_all_there_for_machines(measured):
    """Two dozen groups with long names, noise for pictures: what compresses worst."""
    listed = Section("Calibration list", "", ("image", "row"), tuple((f"line-3/2026-11-21/{n:06}.png", n) for n in range(500)))
    full = dataclasses.replace(
        measured,
        quantization=quantization(0.25, tuple(1.0 / n for n in range(1, 25))),
        sections=(listed,),
    )
    made = report(full, streamed=stream(adding_unet()), refused=None)
    assert len(render_html(made).encode()) < 150_000
    document = json.loads(render_json(made))
    assert set(document["plots"]) == {plot.title for plot in made.plots}
    assert not [value for value in document["summary"].values() if isinstance(value, float) and math.isnan(value)]
