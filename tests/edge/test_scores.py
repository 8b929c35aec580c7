"""Classes and confidences from what an engine answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.scores import Reading, classify, classify_defective, float_scores, gate_scores, probabilities
from edge.sessions import Steps

logits = st.floats(-30, 30, width=32)


def planes(rng: np.random.Generator, channels: int, lines: int, columns: int, clean: float = 0.5) -> np.ndarray:
    scores = rng.normal(size=(channels, lines, columns)).astype(np.float32) * 4
    scores[0, rng.random((lines, columns)) < clean] = 40
    return scores


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    return powers / powers.sum(axis=0)


@given(
    seed=st.integers(0, 99),
    channels=st.integers(1, 6),
    lines=st.integers(1, 40),
    columns=st.integers(1, 40),
    clean=st.floats(0, 1),
)
def test_softmax_class_is_the_arg_max_and_confidence_its_probability(seed, channels, lines, columns, clean):
    scores = planes(np.random.default_rng(seed), channels, lines, columns, clean)
    mask, confidence = classify(scores, "softmax")
    np.testing.assert_array_equal(mask, scores.argmax(axis=0))
    exact = np.where(mask > 0, softmax(scores).max(axis=0) * 255, 0)
    assert np.abs(confidence - exact).max() <= 0.5 + 1e-6
    assert (confidence[mask > 0] > 0).all()
    assert mask.dtype == confidence.dtype == np.uint8


@given(seed=st.integers(0, 99), channels=st.integers(1, 6), lines=st.integers(1, 40), columns=st.integers(1, 40))
def test_sigmoid_class_is_the_highest_channel_at_or_above_one_half(seed, channels, lines, columns):
    scores = np.random.default_rng(seed).normal(size=(channels, lines, columns)).astype(np.float32) * 3
    mask, confidence = classify(scores, "sigmoid")
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    found = probability.max(axis=0) >= 0.5
    np.testing.assert_array_equal(mask, np.where(found, scores.argmax(axis=0) + 1, 0))
    assert np.abs(confidence - np.where(found, probability.max(axis=0) * 255, 0)).max() <= 0.5 + 1e-6


def test_equal_scores_go_to_the_lowest_class():
    scores = np.array([[0, -1, -1], [0, 2, -2], [0, 2, -1]], np.float32).reshape(3, 1, 3)
    mask, confidence = classify(scores, "softmax")
    assert mask.tolist() == [[0, 1, 0]]
    assert [value > 0 for value in confidence[0]] == [False, True, False]
    assert classify(scores[1:], "sigmoid")[0].tolist() == [[1, 1, 0]]


def test_a_sigmoid_logit_of_zero_is_a_defect_with_half_confidence():
    mask, confidence = classify(np.zeros((1, 1, 1), np.float32), "sigmoid")
    assert (mask.item(), confidence.item()) == (1, 128)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_huge_logits_stay_within_range(activation):
    scores = np.array([[-3e38, 0], [3e38, -3e38], [0, 3e38]], np.float32).reshape(3, 1, 2)
    mask, confidence = classify(scores, activation)
    assert mask.all()
    assert (confidence == 255).all()


@given(seed=st.integers(0, 99), activation=st.sampled_from(["softmax", "sigmoid"]), data=st.data())
def test_a_pixel_does_not_depend_on_what_is_classified_with_it(seed, activation, data):
    scores = planes(np.random.default_rng(seed), 4, 23, 31)
    top, left = data.draw(st.integers(0, 22)), data.draw(st.integers(0, 30))
    bottom, right = data.draw(st.integers(top + 1, 23)), data.draw(st.integers(left + 1, 31))
    part = (slice(None), slice(top, bottom), slice(left, right))
    for alone in (scores[part], np.ascontiguousarray(scores[part])):
        for got, expected in zip(classify(alone, activation), classify(scores, activation), strict=True):
            np.testing.assert_array_equal(got, expected[part[1:]])


def test_large_frames_are_classified_like_small_ones():
    scores = planes(np.random.default_rng(1), 4, 300, 1000, clean=0.999)
    mask, confidence = classify(scores, "softmax")
    np.testing.assert_array_equal(mask, scores.argmax(axis=0))
    parts = [classify(scores[:, line : line + 1], "softmax")[1] for line in range(300)]
    np.testing.assert_array_equal(confidence, np.concatenate(parts))


@given(rows=st.lists(st.tuples(logits, logits, logits), min_size=1, max_size=40))
def test_gate_probability_is_that_of_any_defect_and_independent_of_the_batch(rows):
    scores = np.array(rows, np.float32)
    together = gate_scores(scores, "softmax")
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, 1 - softmax(scores.T)[0], atol=1e-6)
    np.testing.assert_allclose(
        gate_scores(scores[:, :1], "sigmoid"), 1 / (1 + np.exp(-scores[:, 0].astype(np.float64))), rtol=1e-6
    )
    for activation in ("softmax", "sigmoid"):
        alone = np.concatenate([gate_scores(row[None], activation) for row in scores])
        np.testing.assert_array_equal(gate_scores(scores, activation), alone)


def test_gate_probability_keeps_its_digits_where_a_defect_is_unlikely():
    assert gate_scores(np.array([[20.0, 0.0]], np.float32), "softmax")[0] == pytest.approx(2.061e-9, rel=1e-3)


@given(seed=st.integers(0, 99), channels=st.integers(1, 5), level=st.sampled_from([0.0, 0.01, 0.3, 0.6, 0.99, 1.0]))
def test_a_sigmoid_class_is_there_from_the_level_on(seed, channels, level):
    scores = np.random.default_rng(seed).normal(size=(channels, 13, 17)).astype(np.float32) * 3
    mask, confidence = classify(scores, "sigmoid", level=level)
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    found = probability.max(axis=0) >= level
    np.testing.assert_array_equal(mask, np.where(found, scores.argmax(axis=0) + 1, 0))
    assert np.abs(confidence - np.where(found, probability.max(axis=0) * 255, 0)).max() <= 0.5 + 1e-6


@given(seed=st.integers(0, 99), channels=st.integers(2, 5), activation=st.sampled_from(["softmax", "sigmoid"]))
def test_probabilities_give_what_their_logits_give(seed, channels, activation):
    scores = planes(np.random.default_rng(seed), channels, 23, 31)
    known = probabilities(scores, activation)
    assert known.dtype == np.float32
    exact = softmax(scores) if activation == "softmax" else 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose(known, exact, atol=1e-7)
    expected, got = classify(scores, activation, level=0.4), classify(known, activation, "probabilities", 0.4)
    ordered = np.sort(known, axis=0)
    decided = (ordered[-1] - ordered[-2] > 1e-6) & (np.abs(known - 0.4).min(axis=0) > 1e-6)
    np.testing.assert_array_equal(got[0][decided], expected[0][decided])
    assert np.abs(got[1].astype(int) - expected[1])[decided].max() <= 1
    tiles = scores.reshape(channels, -1).T
    np.testing.assert_allclose(
        gate_scores(known.reshape(channels, -1).T, activation, "probabilities"), gate_scores(tiles, activation), atol=1e-6
    )


def test_a_mask_is_taken_as_it_is_but_for_the_background_s_confidence():
    answer = np.array([[[0, 2, 1]], [[250, 3, 0]]], np.uint8)
    mask, confidence = classify(answer, "softmax", "mask")
    assert (mask.tolist(), confidence.tolist()) == ([[0, 2, 1]], [[0, 3, 0]])
    assert not np.shares_memory(mask, answer)
    with pytest.raises(ValueError, match="expected logits or probabilities"):
        probabilities(answer, "softmax", "mask")


@given(rows=st.lists(st.tuples(logits, logits, logits), min_size=1, max_size=30), score=st.sampled_from([0.01, 0.3, 0.9]))
def test_from_a_stated_score_on_a_tile_is_of_its_most_probable_kind_of_defect(rows, score):
    scores = np.array(rows, np.float32)
    for activation in ("softmax", "sigmoid"):
        for row, defect in zip(scores, gate_scores(scores, activation), strict=True):
            mask, confidence = Reading(activation, defective_from=score).classes(row[:, None, None])
            known = probabilities(row, activation)
            first = 0 if activation == "sigmoid" else 1
            if defect >= np.float32(score):
                assert (mask.item(), confidence.item()) == (row[first:].argmax() + 1, np.rint(known[first:].max() * 255))
            else:
                assert (mask.item(), confidence.item()) == (0, 0)


steps = st.builds(Steps, size=st.floats(2.0**-20, 1024.0, width=32), zero=st.integers(0, 255))
activations = st.sampled_from(["softmax", "sigmoid"])


@st.composite
def integer_logits(draw: st.DrawFn, channels: int | None = None) -> np.ndarray:
    """Planes of few and of many different integers, cut out of wider ones or not."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    low = draw(st.integers(0, 255))
    high = draw(st.integers(low, min(255, low + draw(st.sampled_from([0, 1, 3, 255])))))
    lines, columns, margin = draw(st.integers(1, 30)), draw(st.integers(1, 40)), draw(st.sampled_from([0, 0, 3]))
    wide = rng.integers(low, high + 1, (channels or draw(st.integers(1, 6)), lines + 2 * margin, columns + 2 * margin), np.uint8)
    return wide[:, margin : margin + lines, margin : margin + columns]


@given(logits=integer_logits(), steps=steps, activation=activations, level=st.floats(0, 1))
def test_integers_are_classified_as_the_floats_that_they_stand_for(logits, steps, activation, level):
    got = classify(logits, activation, level=level, steps=steps)
    expected = classify(float_scores(logits, steps), activation, level=level)
    for plane, wanted in zip(got, expected, strict=True):
        assert plane.dtype == np.uint8
        np.testing.assert_array_equal(plane, wanted)


@given(logits=integer_logits(channels=1), steps=steps, place=st.integers(0, 255))
def test_an_integer_whose_probability_is_the_level_itself_is_found(logits, steps, place):
    level = float(probabilities(np.array([[place]], np.uint8), "sigmoid", steps=steps).item())
    got, expected = (
        classify(logits, "sigmoid", level=level, steps=steps)[0],
        classify(float_scores(logits, steps), "sigmoid", level=level)[0],
    )
    np.testing.assert_array_equal(got, expected)


@given(logits=integer_logits(channels=4), steps=steps, activation=activations, score=st.sampled_from([0.01, 0.3, 0.9]))
def test_probabilities_and_verdicts_of_integers_are_those_of_their_floats(logits, steps, activation, score):
    floats = float_scores(logits, steps)
    np.testing.assert_array_equal(probabilities(logits, activation, steps=steps), probabilities(floats, activation))
    tiles = logits.reshape(4, -1).T
    np.testing.assert_array_equal(
        gate_scores(tiles, activation, steps=steps), gate_scores(float_scores(tiles, steps), activation)
    )
    expected = classify_defective(floats, activation, score)
    for got, wanted in zip(classify_defective(logits, activation, score, steps=steps), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_reading_looks_integers_up_and_takes_probabilities_as_they_are():
    known, logits = Steps(0.25, 128), np.array([[[128, 120]], [[132, 140]]], np.uint8)
    reading = Reading("softmax", steps=known)
    np.testing.assert_array_equal(float_scores(logits, known), [[[0, -2]], [[1, 3]]])
    mask, confidence = reading.classes(logits)
    assert mask.tolist() == [[1, 1]]
    assert confidence.tolist() == [[round(255 / (1 + np.exp(-1))), round(255 / (1 + np.exp(-5)))]]
    chances = reading.probabilities(logits)
    np.testing.assert_array_equal(chances, probabilities(float_scores(logits, known), "softmax"))
    averaged = Reading("softmax", "probabilities", steps=known)
    for got, wanted in zip(averaged.classes(chances), (mask, confidence), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_large_frames_of_integers_are_classified_like_small_ones():
    known, rng = Steps(0.1, 128), np.random.default_rng(2)
    scores = rng.integers(0, 256, (4, 700, 1000), np.uint8)
    scores[0, rng.random((700, 1000)) < 0.99] = 255
    mask, confidence = classify(scores, "softmax", steps=known)
    parts = [classify(scores[:, line : line + 1, 7:], "softmax", steps=known) for line in range(700)]
    np.testing.assert_array_equal(mask[:, 7:], np.concatenate([part for part, _ in parts]))
    np.testing.assert_array_equal(confidence[:, 7:], np.concatenate([part for _, part in parts]))
