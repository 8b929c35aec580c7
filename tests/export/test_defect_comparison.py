from __future__ import annotations

import numpy as np
import pytest
from small_checkpoints import steel_image
from toy_engines import SEGMENTER_CLASSES, steel, write_relative_segmenter, write_segmenter

from edge.bundle import open_bundle
from edge.config import Scale
from edge.manifest import Threshold
from edge.sessions.ort import OrtSession
from export.defect_comparison import Inspection, compare_defects, inspection_of, strips_of
from export.errors import ExportError

SURE, UNSURE = 20, 58
"""Grey of a dark patch: the toy engine's logit is half of what it is below 64."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Inspection:
    bundle = open_bundle(write_segmenter(tmp_path_factory.mktemp("toy") / "segmenter"))
    return inspection_of(OrtSession(bundle.model_path, threads=1), bundle.manifest)


def changed(inspection: Inspection, **changes: object) -> Inspection:
    fields = ("segmenter", "classes", "thresholds", "filters", "scale")
    return Inspection(**{name: getattr(inspection, name) for name in fields} | changes)


def stricter(inspection: Inspection, low: float, high: float) -> Inspection:
    return changed(inspection, thresholds={name: Threshold(low=low, high=high) for name in SEGMENTER_CLASSES[1:]})


def test_an_engine_reports_the_defects_that_it_reports(toy):
    strip = steel(700, 300, (40, 40, 12, 12, SURE), (300, 200, 8, 40, 250), (650, 10, 50, 6, SURE))
    comparison = compare_defects(toy, toy, [strip, strip[::-1].copy()])
    assert (comparison.found, comparison.missed, comparison.added, comparison.flipped) == (6, (), (), 0.0)


def test_a_defect_that_only_the_float_engine_is_sure_of_is_missed_and_the_other_way_round_added(toy):
    strip = steel(300, 200, (40, 40, 12, 12, SURE), (200, 100, 10, 20, UNSURE))
    comparison = compare_defects(toy, stricter(toy, 0.99, 0.99), [steel(64, 200), strip], allowed=1.0)
    (missed,) = comparison.missed
    assert (missed.strip, missed.class_name, missed.area_mm2) == (1, "dark", pytest.approx(200 * 0.25**2))
    assert (missed.box.line_start, missed.box.line_stop, missed.box.column_start, missed.box.column_stop) == (200, 210, 100, 120)
    assert (comparison.found, comparison.added, comparison.flipped) == (1, (), 0.5)
    swapped = compare_defects(stricter(toy, 0.99, 0.99), toy, [steel(64, 200), strip], allowed=1.0)
    assert (swapped.found, swapped.missed, swapped.added) == (1, (), (missed,))


def test_more_flips_than_allowed_are_refused(toy):
    strip = steel(300, 200, (40, 40, 12, 12, SURE), (200, 100, 10, 20, UNSURE))
    with pytest.raises(ExportError, match="of 2 defects that the float engine reports 1 are missed, and 0 are added"):
        compare_defects(toy, stricter(toy, 0.99, 0.99), [strip], allowed=0.49)


def test_what_is_smaller_is_not_asked_for_and_explains_a_larger_one_all_the_same(toy):
    """Rims of the patches are unsure: the strict engine sees 6 x 6 px = 2.25 mm2 of 8 x 8, and 4 x 4 = 1 mm2 of 6 x 6."""
    strip = steel(300, 200, (40, 40, 8, 8, UNSURE), (41, 41, 6, 6, SURE), (200, 100, 6, 6, UNSURE), (201, 101, 4, 4, SURE))
    comparison = compare_defects(toy, stricter(toy, 0.99, 0.99), [strip])
    assert (comparison.found, comparison.missed, comparison.added) == (2, (), ())
    tiny = steel(300, 200, (40, 40, 5, 5, UNSURE))
    assert compare_defects(toy, stricter(toy, 0.99, 0.99), [tiny]).missed == ()
    asked = compare_defects(toy, stricter(toy, 0.99, 0.99), [tiny], smallest_mm2=1.0, allowed=1.0)
    assert len(asked.missed) == 1


def test_another_class_at_the_same_place_is_another_defect(toy):
    strip = steel(300, 200, (40, 40, 12, 12, SURE))
    renamed = changed(toy, classes=("background", "bright", "dark"))
    comparison = compare_defects(toy, renamed, [strip], allowed=1.0)
    assert (comparison.found, len(comparison.missed), len(comparison.added), comparison.flipped) == (0, 1, 1, 1.0)


def test_a_defect_inside_another_s_box_but_away_from_its_pixels_is_not_it(toy):
    """An L and a patch in its empty corner; the strict engine sees the L alone, and nothing of the patch."""
    strip = steel(400, 300, (40, 40, 200, 4, SURE), (236, 40, 4, 200, SURE), (60, 150, 12, 12, UNSURE))
    comparison = compare_defects(toy, stricter(toy, 0.99, 0.99), [strip], allowed=1.0)
    assert comparison.found == 1
    assert [defect.box.column_start for defect in comparison.missed] == [150]


def shifted(inspection: Inspection, columns: int) -> Inspection:
    """The same engine, to which the strip comes so many columns further to the right."""

    class Shifted(Inspection):
        def defects(self, strip: np.ndarray, strip_id: str) -> list:
            return Inspection.defects(self, np.roll(strip, columns, axis=1), strip_id)

    return Shifted(inspection.segmenter, inspection.classes)


@pytest.mark.parametrize(("columns", "missed"), [(2, 0), (4, 1)])
def test_thin_masks_that_lie_beside_each_other_are_of_one_defect(toy, columns, missed):
    scratch = steel(300, 200, (40, 40, 100, 1, SURE))
    comparison = compare_defects(toy, shifted(toy, columns), [scratch], allowed=1.0)
    assert (comparison.found, len(comparison.missed), len(comparison.added)) == (1 - missed, missed, missed)


def test_a_scale_turns_pixels_into_the_area_that_is_asked_for(toy):
    strip = steel(300, 200, (40, 40, 12, 12, UNSURE))
    fine = Scale(mm_per_line=0.05, mm_per_column=0.05)
    assert len(compare_defects(toy, stricter(toy, 0.99, 0.99), [strip], allowed=1.0).missed) == 1
    comparison = compare_defects(changed(toy, scale=fine), changed(stricter(toy, 0.99, 0.99), scale=fine), [strip])
    assert (comparison.found, comparison.missed) == (0, ())


def test_an_engine_that_looks_at_tiles_whole_is_inspected_on_tiles(tmp_path):
    path = write_relative_segmenter(tmp_path / "relative", whole_tile="the brightest pixel of a tile")
    bundle = open_bundle(path)
    with OrtSession(bundle.model_path, threads=1) as session:
        inspection = inspection_of(session, bundle.manifest)
        comparison = compare_defects(inspection, inspection, [steel(128, 96, (40, 40, 12, 12, 250))])
    assert comparison.found >= 1
    assert comparison.flipped == 0.0


def test_strips_are_put_together_from_all_images():
    images = [steel_image(seed, 200, 200)[0] for seed in range(12)]
    strips = strips_of(images, most=3)
    assert [strip.shape for strip in strips] == [(400, 400)] * 3
    for index, strip in enumerate(strips):
        np.testing.assert_array_equal(strip[:200, :200], images[4 * index])
    assert [strip.shape for strip in strips_of(images[:1])] == [(200, 200)]
