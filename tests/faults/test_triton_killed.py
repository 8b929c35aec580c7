"""A real Triton: it loads what `--target triton` writes, answers as the engine here, and is killed in the middle of a strip."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stations import events_in, station, told, write_strip
from toy_engines import write_cell_gate, write_gate, write_segmenter
from triton_server import Triton, needs_triton

from edge.bundle import Bundle, check_golden, open_bundle
from edge.config import Kserve, parse_config
from edge.daemon import Daemon
from edge.errors import SessionError
from edge.events import HealthData
from edge.sessions.ort import OrtSession
from export.triton import write_model

pytest.importorskip("grpc", reason="gRPC is not installed: the extra kserve")
from edge.sessions.kserve.session import KserveSession, server_software

pytestmark = needs_triton
MODELS = ("toy", "gate", "cells", "steel-gate-int8", "steel-unet-int8")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    written = {"toy": write_segmenter, "gate": write_gate, "cells": write_cell_gate}
    made = {name: open_bundle(write(folder / name)) for name, write in written.items()}
    return made | {name: open_bundle(name) for name in MODELS[3:]}


@pytest.fixture(scope="module")
def triton(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    for bundle in bundles.values():
        write_model(bundle, folder / "models")
    with Triton(folder / "models", folder) as server:
        server.wait(*bundles)
        yield server


def open_session(triton: Triton, bundle: Bundle, **keys: Any) -> KserveSession:
    return KserveSession(Kserve(url=triton.url, deadline_ms=20_000, **keys), bundle.manifest)


def tiles(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 1, height, width), dtype=np.uint8)


def test_it_is_triton(triton: Triton) -> None:
    assert server_software(Kserve(url=triton.url)).startswith("triton 2.")


@pytest.mark.parametrize("name", MODELS)
def test_the_golden_tiles_are_answered_as_verified(name: str, triton: Triton, bundles: dict[str, Bundle]) -> None:
    with open_session(triton, bundles[name]) as session:
        assert check_golden(bundles[name], session).changed == 0


@pytest.mark.parametrize("name", MODELS[:3])
def test_rows_of_a_batch_are_those_of_each_tile_alone_and_of_the_engine_here(
    name: str, triton: Triton, bundles: dict[str, Bundle]
) -> None:
    batch = tiles(21)
    with open_session(triton, bundles[name]) as session, OrtSession(bundles[name].model_path, 1) as here:
        np.testing.assert_array_equal(np.concatenate([session.infer(tile[None]) for tile in batch]), here.infer(batch))
        for size in (1, 2, 5, 8, 16, 21):
            np.testing.assert_array_equal(session.infer(batch[:size]), here.infer(batch[:size]))


def test_it_takes_slabs_and_crops_of_any_size(triton: Triton, bundles: dict[str, Bundle]) -> None:
    with open_session(triton, bundles["toy"]) as session, OrtSession(bundles["toy"].model_path, 1) as here:
        for height, width in ((4, 8), (72, 2048), (416, 64)):
            slab = tiles(1, height, width)
            np.testing.assert_array_equal(session.infer(slab), here.infer(slab))
    with open_session(triton, bundles["gate"]) as session, pytest.raises(SessionError, match=r"\(any, 1, 32, 32\)"):
        session.infer(tiles(1, 64, 64))


def test_stations_that_ask_at_once_get_their_own_answers(triton: Triton, bundles: dict[str, Bundle]) -> None:
    def ask(count: int) -> np.ndarray:
        with open_session(triton, bundles["toy"]) as session:
            return np.concatenate([session.infer(tile[None]) for tile in tiles(count)])

    with ThreadPoolExecutor(8) as stations, OrtSession(bundles["toy"].model_path, 1) as here:
        for count, scores in zip(range(4, 16), stations.map(ask, range(4, 16)), strict=True):
            np.testing.assert_array_equal(scores, here.infer(tiles(count)))


def test_a_model_or_version_that_it_does_not_hold_is_told(triton: Triton, bundles: dict[str, Bundle]) -> None:
    for asked in ({"model": "coil"}, {"version": "7"}):
        with pytest.raises(
            SessionError, match=r"expected model (coil|toy in version 7) there: `rust-edge export --target triton`"
        ):
            open_session(triton, bundles["toy"], **asked)


def test_another_bundle_s_model_is_told(triton: Triton, bundles: dict[str, Bundle]) -> None:
    with pytest.raises(SessionError, match=r"got outputs scores FP32 \(any, 1\); expected one FP32 \(any, 3, 32, 32\)"):
        open_session(triton, bundles["toy"], model="gate")


class TestKilled:
    """`kill -9` of the server in the middle of a strip."""

    LINES = 2000

    @pytest.fixture
    def server(self, bundles: dict[str, Bundle], tmp_path: Path) -> Iterator[Triton]:
        write_model(bundles["toy"], tmp_path / "models")
        with Triton(tmp_path / "models", tmp_path) as server:
            server.wait("toy")
            yield server

    def document(self, server: Triton, tmp_path: Path, bundles: dict[str, Bundle], *backends: str) -> dict[str, Any]:
        kserve = {"url": server.url, "deadline_ms": 20_000, "retries": 1, "ask_again_max_s": 0.5}
        session = {"backend": list(backends), "threads": 1, "kserve": kserve}
        return station(tmp_path, session=session, bundle=str(bundles["toy"].path))

    def expected(self, tmp_path: Path, bundles: dict[str, Bundle]) -> dict[str, dict[str, Any]]:
        write_strip(tmp_path / "strip", lines=self.LINES)
        files = {"outbox": {"path": str(tmp_path / "here.db")}, "sinks": {"jsonl": str(tmp_path / "here.jsonl")}}
        document = station(tmp_path, bundle=str(bundles["toy"].path), session={"backend": "ort", "threads": 1}, **files)
        with Daemon(parse_config(document, "station"), "station", "strip") as daemon:
            daemon.run()
        return without_fallback(told(events_in(tmp_path / "here.jsonl")))

    def test_with_a_fallback_nothing_is_lost_and_the_stretch_is_told(
        self, server: Triton, bundles: dict[str, Bundle], tmp_path: Path
    ) -> None:
        expected = self.expected(tmp_path, bundles)
        document = self.document(server, tmp_path, bundles, "kserve", "ort")
        steps = iter(("kill", "start"))
        step = next(steps)

        def observe(health: HealthData) -> None:
            nonlocal step
            assert health.coverage is not None
            if step == "kill" and health.coverage.total > 500:
                server.kill()
                step = next(steps)
            elif step == "start" and health.coverage.total > 1200:
                server.start()
                until = time.monotonic() + 100
                while running._engines.choices[0].backend != "kserve":
                    assert time.monotonic() < until, server.log[-2000:]
                    time.sleep(0.05)
                step = "done"

        with Daemon(parse_config(document, "station"), "station", "strip", observe, observe_every_s=0.0) as running:
            summary = running.run()
        events = told(events_in(tmp_path / "events.jsonl"))
        assert step == "done"
        assert len(expected) > 30
        assert without_fallback(events) == expected
        assert (summary.coverage.inspected, summary.coverage.lost, summary.coverage.shed) == (self.LINES, 0, 0)
        (finished,) = [event for event in events.values() if event["type"].endswith("strip.finished.v1")]
        (stretch,) = finished["fallback"]
        assert stretch["backend"] == "ort"
        assert 0 < stretch["line_start"] < 1200 < stretch["line_stop"] < self.LINES
        assert finished["fallback_lines"] == stretch["line_stop"] - stretch["line_start"] == summary.fallback.lines

    def test_without_one_the_error_is_clear_and_the_next_start_goes_on(
        self, server: Triton, bundles: dict[str, Bundle], tmp_path: Path
    ) -> None:
        expected = self.expected(tmp_path, bundles)
        config = parse_config(self.document(server, tmp_path, bundles, "kserve"), "station")

        def observe(health: HealthData) -> None:
            assert health.coverage is not None
            if health.coverage.total > 500:
                server.kill()

        with (
            pytest.raises(SessionError, match=r"session\.kserve\.url .+: (nobody answers ModelInfer|ModelInfer failed)"),
            Daemon(config, "station", "strip", observe, observe_every_s=0.0) as daemon,
        ):
            daemon.run()
        with pytest.raises(SessionError, match="nobody answers ServerLive"), Daemon(config, "station"):
            pass
        server.start()
        server.wait("toy")
        with Daemon(config, "station") as daemon:
            summary = daemon.run()
        assert (summary.strip_id, summary.coverage.inspected) == ("strip", self.LINES)
        assert without_fallback(told(events_in(tmp_path / "events.jsonl"))) == expected


def without_fallback(events: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in event.items() if not key.startswith("fallback")} for name, event in events.items()
    }
