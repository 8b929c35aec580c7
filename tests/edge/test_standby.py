"""Engines that fail at work, and those that take over: nothing is lost, and who stood in is known."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stations import events_in, station, told, write_strip
from toy_engines import write_cell_gate, write_segmenter

from edge import backends
from edge.backends import BundleEngines
from edge.bundle import Bundle, open_bundle
from edge.config import BackendName, Kserve, SessionOptions, parse_config
from edge.daemon import Daemon
from edge.errors import BundleError, SessionError, StateLostError
from edge.events import HealthData
from edge.lineup import Runtime
from edge.sessions import Steps
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.sessions.slab_stream import SlabStream
from edge.sessions.standby import StandbySession, StandbyStream, shown


class Fuse:
    """Engines go through it, and fail from its `left`th inference after `burn` on, as a GPU that is lost."""

    def __init__(self) -> None:
        self.left = 10**9
        self.golden = 1.0

    def burn(self, left: int = 0) -> None:
        self.left = left

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise SessionError("the GPU is lost")


class FusedSession(OrtSession):
    """An engine that can fail."""

    def __init__(self, bundle: Bundle, fuse: Fuse, name: str, answer: Any) -> None:
        super().__init__(bundle.model_path, 1, answer=answer)
        self.backend, self._fuse = name, fuse
        self.prepared: list[tuple[int, ...]] = []

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self._fuse.spend()
        return super().infer(batch) * self._fuse.golden if self._fuse.golden != 1.0 else super().infer(batch)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self.prepared.append(shape)


class FusedStream(OrtStreamingSession):
    """A stream that can fail."""

    def __init__(self, bundle: Bundle, fuse: Fuse, name: str, width: int, lines: int, answer: Any) -> None:
        super().__init__(*bundle.streaming(), width, lines, 1, answer=answer)
        self.backend, self._fuse = name, fuse

    def step(self, chunk: np.ndarray) -> np.ndarray:
        self._fuse.spend()
        return super().step(chunk)


@pytest.fixture
def fuses(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fuse]:
    """Of the backends tensorrt and openvino, which are engines that can fail here; tensorrt answers in floats."""
    found: dict[str, Fuse] = {"tensorrt": Fuse(), "openvino": Fuse()}

    def runtime(name: BackendName, answer: Any) -> Callable[[SessionOptions], Runtime]:
        fuse = found[name]
        return lambda options: Runtime(
            name,
            "1",
            lambda bundle, folder: FusedSession(bundle, fuse, name, answer),
            lambda bundle, folder, width, lines: FusedStream(bundle, fuse, name, width, lines, answer),
        )

    made = {"tensorrt": runtime("tensorrt", "scores"), "openvino": runtime("openvino", "integers")}
    monkeypatch.setattr(backends, "_RUNTIMES", {**backends._RUNTIMES, **made})
    return found


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter(tmp_path / "toy"))


def options(*names: str, **keys: Any) -> SessionOptions:
    return SessionOptions(threads=1, backend=names, **keys)


def tiles(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 1, side, side), dtype=np.uint8)


def here(bundle: Bundle, batch: np.ndarray) -> np.ndarray:
    with OrtSession(bundle.model_path, threads=1) as session:
        return session.infer(batch).copy()


class TestTiles:
    """An engine for tiles that fails at work."""

    def test_the_next_backend_answers_the_same_batch_and_it_is_said_loudly(
        self, toy: Bundle, fuses: dict[str, Fuse], caplog: pytest.LogCaptureFixture
    ) -> None:
        with BundleEngines(toy, options("tensorrt", "ort")) as engines:
            session, stood_in = engines.tiles, engines.substitutes()
            np.testing.assert_array_equal(session.infer(tiles(3)), here(toy, tiles(3)))
            assert (session.backend, stood_in()) == ("tensorrt", None)
            fuses["tensorrt"].burn()
            np.testing.assert_array_equal(session.infer(tiles(4)), here(toy, tiles(4)))
            assert (session.backend, engines.choice.backend, stood_in()) == ("ort", "ort", "ort")
            assert "the GPU is lost" in engines.choice.reason
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
            "toy: not on tensorrt, ort comes next: the GPU is lost"
        ]

    def test_one_that_answers_the_golden_tiles_otherwise_does_not_take_over(self, toy: Bundle, fuses: dict[str, Fuse]) -> None:
        fuses["openvino"].golden = 1.5
        with BundleEngines(toy, options("tensorrt", "openvino", "ort")) as engines:
            fuses["tensorrt"].burn()
            np.testing.assert_array_equal(engines.tiles.infer(tiles(2)), here(toy, tiles(2)))
            assert engines.choice.backend == "ort"
            assert "answers the golden tiles otherwise" in engines.choice.reason

    def test_a_backend_that_is_named_alone_has_to_do(self, toy: Bundle, fuses: dict[str, Fuse]) -> None:
        with BundleEngines(toy, options("tensorrt")) as engines:
            fuses["tensorrt"].burn()
            with pytest.raises(SessionError, match=r"^the GPU is lost$"):
                engines.tiles.infer(tiles(1))

    def test_where_none_is_left_every_reason_is_told(self, toy: Bundle, fuses: dict[str, Fuse]) -> None:
        with BundleEngines(toy, options("tensorrt", "openvino")) as engines:
            for fuse in fuses.values():
                fuse.burn(2)
            for _ in range(2):
                engines.tiles.infer(tiles(1))
            fuses["openvino"].burn(1)  # the golden tiles, and no more
            with pytest.raises(SessionError, match=r"(?s)tensorrt: the GPU is lost\nopenvino: the GPU is lost"):
                engines.tiles.infer(tiles(1))

    def test_threads_that_fail_at_once_change_the_engine_once(self, toy: Bundle, fuses: dict[str, Fuse]) -> None:
        guard = threading.Lock()

        class OneAtATime:
            def __init__(self, session: Any) -> None:
                self.session, self.backend, self.steps = session, session.backend, session.steps

            def infer(self, batch: np.ndarray) -> np.ndarray:
                with guard:
                    return self.session.infer(batch).copy()

        with BundleEngines(toy, options("tensorrt", "openvino", "ort"), OneAtATime) as engines, ThreadPoolExecutor(4) as threads:
            fuses["tensorrt"].burn()
            for batch, scores in zip(
                map(tiles, range(1, 9)), threads.map(lambda count: engines.tiles.infer(tiles(count)), range(1, 9)), strict=True
            ):
                np.testing.assert_array_equal(scores, here(toy, batch))
            assert engines.choice.backend == "openvino"

    def test_sizes_that_were_prepared_are_prepared_on_the_next_one(self, toy: Bundle, fuses: dict[str, Fuse]) -> None:
        with BundleEngines(toy, options("tensorrt", "openvino")) as engines:
            for shape in ((4, 1, 32, 32), (8, 1, 32, 32), (1, 1, 64, 96)):
                engines.tiles.prepare(shape)
            fuses["tensorrt"].burn()
            engines.tiles.infer(tiles(1))
            assert sorted(engines.tiles_in_use().prepared) == [(1, 1, 64, 96), (8, 1, 32, 32)]


class TestKindOfAnswer:
    """What has been read once stays of its kind."""

    def test_integers_and_floats_stand_for_each_other(self) -> None:
        steps, integers = Steps(0.037, 91), np.arange(256, dtype=np.uint8)
        floats = shown(integers, steps, None)
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(shown(floats, None, steps), integers)
        assert shown(integers, steps, steps) is integers
        np.testing.assert_array_equal(shown(integers, Steps(0.5, 0), Steps(1.0, 10))[:6], [10, 10, 11, 12, 12, 12])

    @pytest.mark.parametrize("order", [("tensorrt", "ort"), ("openvino", "tensorrt")])
    def test_the_first_engine_s_kind_is_kept(self, order: tuple[str, str], fuses: dict[str, Fuse]) -> None:
        bundle = open_bundle("steel-unet-int8")
        batch = bundle.golden().tiles(448, 448)[:1]
        with BundleEngines(bundle, options(*order)) as engines:
            session = engines.tiles
            before, steps = session.infer(batch).copy(), session.steps
            assert (before.dtype == np.uint8) == (steps is not None) == (order[0] == "openvino")
            fuses[order[0]].burn()
            after = session.infer(batch)
            assert (session.steps, after.dtype) == (steps, before.dtype)
            np.testing.assert_array_equal(after, before)


class TestStreams:
    """A stream that fails at work."""

    @pytest.fixture
    def cells(self, tmp_path: Path) -> Bundle:
        return open_bundle(write_cell_gate(tmp_path / "cells"))

    def test_the_next_one_stands_there_at_rest_and_it_is_said(self, cells: Bundle, fuses: dict[str, Fuse]) -> None:
        chunks = [tiles(1, 32) for _ in range(5)]
        with BundleEngines(cells, options("tensorrt", "ort")) as engines:
            stream, stood_in = engines.stream(32, 32), engines.substitutes()
            assert isinstance(stream, StandbyStream)
            wanted = [stream.step(chunk).copy() for chunk in chunks]
            fuses["tensorrt"].burn()
            assert stood_in() is None
            with pytest.raises(StateLostError, match="tensorrt failed, ort goes on: the GPU is lost"):
                stream.step(chunks[0])
            assert stream.backend == engines.choice.backend == stood_in() == "ort"
            for chunk, scores in zip(chunks, wanted, strict=True):
                np.testing.assert_array_equal(stream.step(chunk), scores)

    def test_where_none_is_left_the_error_comes_out(self, cells: Bundle, fuses: dict[str, Fuse]) -> None:
        with BundleEngines(cells, options("tensorrt", "openvino")) as engines:
            stream = engines.stream(32, 32)
            fuses["tensorrt"].burn()
            fuses["openvino"].burn()
            with pytest.raises(SessionError, match=r"(?s)tensorrt: the GPU is lost\nopenvino: the GPU is lost") as told:
                stream.step(tiles(1))
            assert not isinstance(told.value, StateLostError)

    def test_slabs_on_an_engine_for_tiles_give_a_stream_s_rows(self, cells: Bundle) -> None:
        strip = np.random.default_rng(5).integers(0, 256, (1, 1, 320, 64), dtype=np.uint8)
        streaming = cells.manifest.streaming
        assert streaming is not None
        found = []
        with (
            OrtSession(cells.model_path, 1) as session,
            OrtStreamingSession(*cells.streaming(), 64, 32, 1) as stream,
            SlabStream(session, cells.manifest, 64, 32) as slabs,
        ):
            for one in (stream, slabs):
                for _ in range(2):  # the second time from rest again
                    one.reset()
                    rows = [one.step(strip[:, :, line : line + 32]).copy() for line in range(0, 320, 32)]
                found.append(np.concatenate(rows, axis=2)[:, :, one.lag_lines // streaming.cell :])
        rows = min(part.shape[2] for part in found)
        reach = -(-cells.manifest.radius // streaming.cell)
        np.testing.assert_array_equal(found[0][:, :, reach:rows], found[1][:, :, reach:rows])
        assert rows - reach > 50


def undisturbed(folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    files = {"outbox": {"path": str(folder / "reference.db")}, "sinks": {"jsonl": str(folder / "reference.jsonl")}}
    document = station(folder, session={"backend": "ort", "threads": 1}, **files, **changes)
    with Daemon(parse_config(document, "station"), "station", strip_id="strip") as daemon:
        daemon.run()
    return without_fallback(told(events_in(folder / "reference.jsonl")))


def without_fallback(events: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in event.items() if not key.startswith("fallback")} for name, event in events.items()
    }


CASCADE = {
    "mode": "cascade",
    "tiling": {"halo": 4, "band_lines": 64},
    "filters": {"default": {"min_area_mm2": 0.1}},
}


@pytest.mark.parametrize("mode", [{"dense": "slabs"}, {"mode": "tiles"}, CASCADE])
def test_a_station_whose_gpu_is_lost_tells_the_same_events_and_where_another_engine_stood_in(
    mode: dict[str, Any], tmp_path: Path, fuses: dict[str, Fuse]
) -> None:
    write_strip(tmp_path / "strip", lines=1500)
    if mode is CASCADE:  # whose gate streams
        mode = {**mode, "gate": str(write_cell_gate(tmp_path / "cells"))}
    expected = undisturbed(tmp_path, **mode)
    seen: list[HealthData] = []
    document = station(tmp_path, session={"backend": ["tensorrt", "ort"], "threads": 1}, **mode)

    def observe(health: HealthData) -> None:
        seen.append(health)
        assert health.coverage is not None
        if health.coverage.total > 500:
            fuses["tensorrt"].burn()

    with Daemon(parse_config(document, "station"), "station", "strip", observe, observe_every_s=0.0) as daemon:
        summary = daemon.run()
    events = told(events_in(tmp_path / "events.jsonl"))
    assert without_fallback(events) == expected
    (finished,) = [event for event in events.values() if event["type"].endswith("strip.finished.v1")]
    (stretch,) = finished["fallback"]
    assert (stretch["backend"], stretch["line_stop"]) == ("ort", 1500)
    assert 0 < stretch["line_start"] < 1500
    assert finished["fallback_lines"] == summary.fallback.lines == 1500 - stretch["line_start"]
    assert summary.coverage.inspected + summary.coverage.gated == 1500
    assert bool(summary.coverage.gated) == ("gate" in mode)
    assert seen[0].fallback_lines == 0
    assert seen[-1].fallback_lines == summary.fallback.lines
    assert seen[-1].engines[0].startswith("ort ")
    assert "the GPU is lost" in seen[-1].engines[0]


class TestServer:
    """A server that goes away and comes back."""

    @pytest.fixture
    def server(self, toy: Bundle) -> Iterator[Any]:
        pytest.importorskip("grpc", reason="gRPC is not installed: the extra kserve")
        from inference_server import InferenceServer

        with InferenceServer(toy) as server:
            yield server

    @staticmethod
    def options(server: Any, *names: str, **keys: Any) -> SessionOptions:
        quickly = {"retries": 0, "ask_again_max_s": 0.2, "deadline_ms": 5000}
        return options(*names, kserve=Kserve(url=server.url, **{**quickly, **keys}))

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.01)

    def test_the_next_backend_stands_in_until_it_is_back(
        self, toy: Bundle, server: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with BundleEngines(toy, self.options(server, "kserve", "ort")) as engines:
            session, stood_in = engines.tiles, engines.substitutes()
            assert isinstance(session, StandbySession)
            for _ in range(2):
                np.testing.assert_array_equal(session.infer(tiles(3)), here(toy, tiles(3)))
                assert (session.backend, stood_in()) == ("kserve", None)
                server.stop()
                np.testing.assert_array_equal(session.infer(tiles(4)), here(toy, tiles(4)))
                assert (session.backend, stood_in()) == ("ort", "ort")
                assert "nobody answers" in engines.choice.reason
                server.start()
                self.wait(lambda: engines.choice.backend == "kserve")
                assert engines.choice.reason == "session.backend"
                # asked again, nobody has stood in since
                assert stood_in() is None
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert [line.split(":")[1].split(",")[0].split(" after")[0].strip() for line in said] == [
            "ort stands in for kserve",
            "kserve answers again",
        ] * 2

    def test_an_answer_that_stood_in_between_two_questions_is_known(self, toy: Bundle, server: Any) -> None:
        with BundleEngines(toy, self.options(server, "kserve", "ort")) as engines:
            stood_in = engines.substitutes()
            server.stop()
            engines.tiles.infer(tiles(1))
            server.start()
            self.wait(lambda: engines.choice.backend == "kserve")
            assert [stood_in(), stood_in()] == ["ort", None]

    def test_one_that_comes_back_with_another_model_is_not_used(
        self, toy: Bundle, server: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with BundleEngines(toy, self.options(server, "kserve", "ort")) as engines:
            server.stop()
            engines.tiles.infer(tiles(1))
            server.answer = lambda scores: scores * np.float32(1.5)
            server.start()
            self.wait(lambda: "is back and not used" in caplog.text)
            np.testing.assert_array_equal(engines.tiles.infer(tiles(2)), here(toy, tiles(2)))
            assert engines.choice.backend == "ort"
            server.answer = lambda scores: scores
            self.wait(lambda: engines.choice.backend == "kserve")

    def test_one_that_is_away_at_the_start_is_used_once_it_is_there(self, toy: Bundle, server: Any) -> None:
        server.stop()
        with BundleEngines(toy, self.options(server, "kserve", "ort")) as engines:
            stood_in = engines.substitutes()
            engines.tiles.infer(tiles(1))
            assert (engines.choice.backend, stood_in()) == ("ort", "ort")
            server.start()
            self.wait(lambda: engines.choice.backend == "kserve")
            np.testing.assert_array_equal(engines.tiles.infer(tiles(2)), here(toy, tiles(2)))

    def test_engines_are_closed_while_it_is_asked(self, toy: Bundle, server: Any) -> None:
        with BundleEngines(toy, self.options(server, "kserve", "ort", ask_again_max_s=0.01)) as engines:
            server.stop()
            engines.tiles.infer(tiles(1))
        assert not [thread for thread in threading.enumerate() if "asks kserve" in thread.name]

    def test_one_that_fails_again_at_once_is_asked_less_and_less_often(
        self, toy: Bundle, server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from grpc import StatusCode

        pauses: list[float] = []
        monkeypatch.setattr(random, "uniform", lambda low, high: high)
        with BundleEngines(toy, self.options(server, "kserve", "ort", ask_again_max_s=30)) as engines:
            monkeypatch.setattr(engines._lineup._closed, "wait", pauses.append)  # it does not wait, and is not closed
            for _ in range(4):
                server.before = lambda context, number: context.abort(StatusCode.INVALID_ARGUMENT, "too many")
                engines.tiles.infer(tiles(1))
                server.before = lambda context, number: None
                self.wait(lambda: engines.choice.backend == "kserve")
        assert pauses[0] == 0.5
        assert pauses == sorted(pauses)
        assert len(set(pauses)) >= 4

    def test_one_that_stands_by_and_cannot_be_made_ready_does_not_stop_the_server(
        self, toy: Bundle, server: Any, fuses: dict[str, Fuse], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_room(session: FusedSession, shape: tuple[int, ...]) -> None:
            raise SessionError("no memory for crops of that size")

        monkeypatch.setattr(FusedSession, "prepare", no_room)
        with BundleEngines(toy, self.options(server, "kserve", "openvino", "ort")) as engines:
            engines.tiles.prepare((2, 1, 64, 64))
            assert engines.choice.backend == "kserve"
            server.stop()
            np.testing.assert_array_equal(engines.tiles.infer(tiles(2)), here(toy, tiles(2)))
            assert engines.choice.backend == "ort"

    def test_where_nothing_stands_in_the_error_comes_out(self, toy: Bundle, server: Any) -> None:
        with BundleEngines(toy, self.options(server, "kserve")) as engines:
            server.stop()
            with pytest.raises(SessionError, match="nobody answers ModelInfer"):
                engines.tiles.infer(tiles(1))

    def test_a_server_whose_answers_are_late_is_left(self, toy: Bundle, server: Any) -> None:
        ended = threading.Event()
        with BundleEngines(toy, self.options(server, "kserve", "ort", deadline_ms=300)) as engines:
            server.before = lambda context, number: ended.wait(20)
            np.testing.assert_array_equal(engines.tiles.infer(tiles(2)), here(toy, tiles(2)))
            assert "had no answer within 300 ms" in engines.choice.reason
            ended.set()

    def test_a_bundle_that_could_stream_runs_in_slabs_and_finds_the_same(self, tmp_path: Path) -> None:
        pytest.importorskip("grpc", reason="gRPC is not installed: the extra kserve")
        from inference_server import InferenceServer

        cells = open_bundle(write_cell_gate(tmp_path / "cells"))
        write_strip(tmp_path / "strip", lines=700)
        cascade = {**CASCADE, "gate": str(cells.path)}
        expected = undisturbed(tmp_path, **cascade)
        with InferenceServer(cells) as server:
            session = {"backend": "ort", "gate_backend": ["kserve", "ort"], "threads": 1}
            session["kserve"] = {"url": server.url, "retries": 0, "deadline_ms": 5000, "ask_again_max_s": 0.2}
            document = station(tmp_path, session=session, **cascade)

            def observe(health: HealthData) -> None:
                assert health.coverage is not None
                if health.coverage.total > 300:
                    server.stop()

            with Daemon(parse_config(document, "station"), "station", "strip", observe, observe_every_s=0.0) as daemon:
                summary = daemon.run()
        assert without_fallback(told(events_in(tmp_path / "events.jsonl"))) == expected
        assert summary.coverage.gated
        (stretch,) = summary.fallback.stretches
        assert (stretch.backend, stretch.line_stop) == ("ort", 700)

    def test_without_a_fallback_the_strip_is_gone_on_with_by_the_next_start(
        self, toy: Bundle, server: Any, tmp_path: Path
    ) -> None:
        write_strip(tmp_path / "strip", lines=1500)
        expected = undisturbed(tmp_path)
        session = {"backend": "kserve", "threads": 1, "kserve": {"url": server.url, "retries": 0, "deadline_ms": 5000}}
        config = parse_config(station(tmp_path, session=session), "station")

        def observe(health: HealthData) -> None:
            assert health.coverage is not None
            if health.coverage.total > 500:
                server.stop()

        with (
            pytest.raises(SessionError, match="nobody answers ModelInfer"),
            Daemon(config, "station", "strip", observe, observe_every_s=0.0) as daemon,
        ):
            daemon.run()
        server.start()
        with Daemon(config, "station", "strip") as daemon:
            summary = daemon.run()
        assert summary.coverage.inspected == summary.coverage.total == 1500
        assert not summary.fallback.lines
        assert without_fallback(told(events_in(tmp_path / "events.jsonl"))) == expected


def test_backends_that_cannot_be_opened_are_warned_of_where_they_were_named(
    toy: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(options: SessionOptions) -> Runtime:
        raise SessionError("no TensorRT")

    monkeypatch.setattr(backends, "_RUNTIMES", {**backends._RUNTIMES, "tensorrt": absent})
    with BundleEngines(toy, options("tensorrt", "ort")) as engines:
        stood_in = engines.substitutes()
        engines.tiles.infer(tiles(1))
        # it was named first, so that what runs in its place is told
        assert stood_in() == "ort"
    assert [record.levelno for record in caplog.records if "not on tensorrt" in record.getMessage()] == [logging.WARNING]


def test_errors_of_bundles_are_told_as_such(toy: Bundle, fuses: dict[str, Fuse]) -> None:
    fuses["openvino"].golden = 1.5
    with BundleEngines(toy, options("tensorrt", "openvino")) as engines:
        fuses["tensorrt"].burn()
        with pytest.raises(BundleError, match=r"(?s)tensorrt: the GPU is lost\nopenvino: .+answers the golden tiles otherwise"):
            engines.tiles.infer(tiles(1))
