"""The promises of `test_seam_exactness`, on OpenVINO: the same engines, fewer looks, for every new shape is compiled.

Chunks of 4 to 64 lines, so that a step is lower, as high, and higher than the rows that a state holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processor import require_whole_integer_products
from segmenting import (
    CHUNKS,
    Engine,
    assert_dense,
    assert_same,
    engine,
    joined,
    rows_of,
    segmenter_of,
    strip_of,
    whole_scores,
)

from edge.manifest import Streaming

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from edge.sessions.ov import OvSession, OvStreamingSession

LOOKS = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ["exact", "float", "int8"]
kinds = st.sampled_from(["streaming", "slabs", "cascade of tiles", "union of tiles"])
lengths = st.integers(1, 150)
widths = st.sampled_from([1, 17, 45])
cuts = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@dataclass(frozen=True, eq=False)
class OpenVinoEngine(Engine):
    """The same network in sessions of OpenVINO."""

    exact: bool = False

    @property
    def bits(self) -> bool:
        return self.exact

    @cache  # noqa: B019 - engines live as long as the test run
    def session(self) -> OvSession:
        return OvSession(self.model.SerializeToString(), threads=1)

    @lru_cache(maxsize=64)  # noqa: B019
    def streaming(self, width: int, chunk_lines: int) -> OvStreamingSession:
        streamed = self.streamed()
        manifest = Streaming(lag_lines=streamed.lag_lines, cell=self.cell, states=streamed.states)
        return OvStreamingSession(streamed.model.SerializeToString(), manifest, self.columns(width), chunk_lines, threads=1)


@cache
def openvino_engine(name: str) -> OpenVinoEngine:
    if name == "int8":
        require_whole_integer_products()
    return OpenVinoEngine(engine(name).model, exact=name == "exact")


@pytest.mark.parametrize("name", NAMES)
@LOOKS
@given(kind=kinds, lines=lengths, width=widths, portions=cuts, chunk_lines=st.sampled_from(CHUNKS))
@example(kind="streaming", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="cascade of tiles", lines=150, width=45, portions=[1, 70], chunk_lines=64)
def test_the_same_rows_however_the_lines_arrive(name, kind, lines, width, portions, chunk_lines):
    strip = strip_of(lines, width)
    segmenter = segmenter_of(kind, openvino_engine(name), width, chunk_lines)
    assert_same(rows_of(segmenter, strip, portions), rows_of(segmenter, strip))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_lines", CHUNKS)
@pytest.mark.parametrize("kind", ["streaming", "slabs"])
def test_dense_inspection_equals_one_inference_over_the_whole_run(name, kind, chunk_lines):
    net, strip = openvino_engine(name), strip_of(150, 45)
    mask, confidence = joined(rows_of(segmenter_of(kind, net, 45, chunk_lines), strip), 0, 150)
    assert_dense(net, mask, confidence, whole_scores(net, strip))


@pytest.mark.parametrize("name", ["steel", "int8"])
def test_streams_of_any_chunk_height_give_the_same_bits(name):
    """The steel network adds its skips, the small one concatenates them."""
    net, strip = openvino_engine(name), strip_of(300, 40)
    chunks = [chunk for chunk in (16, 32, 48, 64, 160) if chunk % net.stride == 0]
    first, *others = (joined(rows_of(segmenter_of("streaming", net, 40, chunk), strip), 0, 300) for chunk in chunks)
    assert len(np.unique(first[0])) > 1
    for other in others:
        np.testing.assert_array_equal(other, first)
