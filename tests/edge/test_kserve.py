"""A session on an inference server: what it answers, what it asks of the server, and what it says of one that is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_engines import write_cell_gate, write_gate, write_segmenter

from edge.bundle import Bundle, check_golden, open_bundle
from edge.config import Kserve, SessionOptions, Tls, parse_config
from edge.errors import ConfigError, SessionError
from edge.sessions import Session
from edge.sessions.ort import OrtSession
from edge.station import check_station

grpc = pytest.importorskip("grpc", reason="gRPC is not installed: the extra kserve")

from certificates import Authority  # noqa: E402
from inference_server import InferenceServer  # noqa: E402

from edge.sessions.kserve.session import KserveSession, server_software  # noqa: E402


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_segmenter(tmp_path_factory.mktemp("toy") / "toy"))


@pytest.fixture
def server(toy: Bundle) -> Iterator[InferenceServer]:
    with InferenceServer(toy) as server:
        yield server


def tiles(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 1, height, width), dtype=np.uint8)


def refused(server: InferenceServer, bundle: Bundle, **keys: Any) -> str:
    with pytest.raises(SessionError) as told:
        KserveSession(server.options(**keys), bundle.manifest)
    return str(told.value)


@pytest.mark.parametrize("write", [write_segmenter, write_gate, write_cell_gate])
def test_a_server_answers_what_the_engine_does_here_bit_for_bit(write: Any, tmp_path: Path) -> None:
    bundle = open_bundle(write(tmp_path / "bundle"))
    with (
        InferenceServer(bundle) as server,
        KserveSession(server.options(), bundle.manifest) as session,
        OrtSession(bundle.model_path, threads=1) as here,
    ):
        assert isinstance(session, Session)
        assert check_golden(bundle, session).max_difference == check_golden(bundle, here).max_difference
        np.testing.assert_array_equal(session.infer(tiles(5)), here.infer(tiles(5)))


def test_a_batch_beyond_what_the_server_takes_goes_in_several_calls(toy: Bundle, server: InferenceServer) -> None:
    batch = tiles(37)
    with KserveSession(server.options(max_batch=16), toy.manifest) as session, OrtSession(toy.model_path, 1) as here:
        np.testing.assert_array_equal(session.infer(batch), here.infer(batch))
    assert server.batches == [16, 16, 5]


def test_a_view_is_sent_as_it_is_seen(toy: Bundle, server: InferenceServer) -> None:
    view = tiles(4, 64, 96)[::2, :, 16:48, 32:64]
    with KserveSession(server.options(), toy.manifest) as session:
        np.testing.assert_array_equal(session.infer(view), session.infer(view.copy()))


def test_what_does_not_fit_is_not_sent_and_leaves_the_session_usable(toy: Bundle, server: InferenceServer) -> None:
    with KserveSession(server.options(), toy.manifest) as session:
        for wrong in (
            np.zeros((2, 2, 32, 32), np.uint8),
            np.zeros((1, 1, 32, 32), np.float32),
            np.zeros((0, 1, 32, 32), np.uint8),
        ):
            with pytest.raises(SessionError, match=r"got a batch .+ expected uint8"):
                session.infer(wrong)
        assert not server.calls["ModelInfer"]
        assert session.infer(tiles(1)).shape == (1, 3, 32, 32)


def test_threads_get_their_own_answers(toy: Bundle, server: InferenceServer) -> None:
    batches = [tiles(count) for count in range(1, 25)]
    with (
        KserveSession(server.options(), toy.manifest) as session,
        OrtSession(toy.model_path, 1) as here,
        ThreadPoolExecutor(6) as threads,
    ):
        for batch, scores in zip(batches, threads.map(session.infer, batches), strict=True):
            np.testing.assert_array_equal(scores, here.infer(batch))


def test_it_says_what_serves(server: InferenceServer) -> None:
    assert server_software(server.options()) == "toy 1.2"


def test_a_server_with_tls_is_spoken_to_where_its_authority_is_known(toy: Bundle, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with InferenceServer(toy, credentials) as server:
        with KserveSession(server.options(tls=Tls(ca=authority.ca)), toy.manifest) as session:
            assert len(session.infer(tiles(2))) == 2
        assert "no TLS with who answers" in refused(server, toy, tls=Tls(ca=Authority(tmp_path, "another").ca), retries=0)
        assert "expected a PEM file" in refused(server, toy, tls=Tls(ca=tmp_path / "gone.pem"))


def test_tls_to_a_server_without_it_is_told_in_one_line(server: InferenceServer) -> None:
    asks = (
        "from edge.config import Kserve, Tls; from edge.errors import SessionError; from edge.sessions.kserve.session import *\n"
        f"try: server_software(Kserve(url='{server.url}', retries=0, tls=Tls()))\n"
        "except SessionError as error: print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    asked = subprocess.run([sys.executable, "-c", asks], env=environment, capture_output=True, text=True, timeout=60)
    assert asked.stderr == ""
    (said,) = asked.stdout.splitlines()
    assert "no TLS with who answers" in said
    assert "expected a server with TLS there, and the files of session.kserve.tls" in said


def test_files_that_are_no_certificates_are_told(toy: Bundle, server: InferenceServer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    assert "and the files of session.kserve.tls" in refused(server, toy, tls=Tls(ca=tmp_path / "ca.pem"), retries=0)


def test_what_a_triton_takes_is_not_exceeded(toy: Bundle, server: InferenceServer) -> None:
    server.most_tiles = 4
    with KserveSession(server.options(), toy.manifest) as session, OrtSession(toy.model_path, 1) as here:
        np.testing.assert_array_equal(session.infer(tiles(9)), here.infer(tiles(9)))
    assert server.batches == [4, 4, 1]


def test_a_batch_that_is_too_large_all_the_same_is_told_with_the_key(toy: Bundle, server: InferenceServer) -> None:
    server.before = lambda context, number: context.abort(
        grpc.StatusCode.INVALID_ARGUMENT, "inference request batch-size must be <= 4 for 'toy'"
    )
    said = r"<= 4 for 'toy'; expected session\.kserve\.max_batch to be no more than that"
    with KserveSession(server.options(), toy.manifest) as session, pytest.raises(SessionError, match=said):
        session.infer(tiles(9))


class TestAtOpening:
    """What is asked of a server before it is used."""

    def test_nobody_there(self, toy: Bundle, server: InferenceServer) -> None:
        server.stop()
        assert "nobody answers ServerLive at 3 attempts" in refused(server, toy)
        server.start()

    def test_a_web_server_is_told_from_one_that_infers(self, toy: Bundle) -> None:
        with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            try:
                with pytest.raises(SessionError, match=r"expected (the port of its gRPC service|a server there)"):
                    KserveSession(Kserve(url=f"127.0.0.1:{web.server_port}", retries=0), toy.manifest)
            finally:
                web.shutdown()

    def test_what_answers_in_other_words_is_told_from_one_that_infers(self, toy: Bundle) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as connections:

            def speak() -> None:
                with suppress(OSError):
                    while True:
                        connections.enter_context(other.accept()[0]).sendall(b"<!DOCTYPE HTML>" * 10)

            threading.Thread(target=speak, daemon=True).start()
            with pytest.raises(SessionError, match=r"or another one .*expected the port of its gRPC service"):
                KserveSession(Kserve(url=f"127.0.0.1:{other.getsockname()[1]}", retries=0), toy.manifest)

    def test_another_protocol(self, toy: Bundle) -> None:
        other = grpc.server(ThreadPoolExecutor(1))
        port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        with pytest.raises(SessionError, match=r"has no ServerLive .*expected the Open Inference Protocol v2"):
            KserveSession(Kserve(url=f"127.0.0.1:{port}"), toy.manifest)
        other.stop(None).wait()

    def test_a_server_that_is_not_live(self, toy: Bundle, server: InferenceServer) -> None:
        server.live = False
        assert "is not live" in refused(server, toy)

    def test_an_unknown_model(self, toy: Bundle, server: InferenceServer) -> None:
        told = refused(server, toy, model="coil")
        assert "unknown model coil" in told
        assert "rust-edge export --target triton" in told
        assert server.calls["ModelReady"] == 1

    @pytest.mark.parametrize(("ready", "said"), [(True, "the server is ready"), (False, "not ready either")])
    def test_a_model_that_is_not_ready(self, toy: Bundle, server: InferenceServer, ready: bool, said: str) -> None:
        server.model_ready, server.ready = False, ready
        assert said in refused(server, toy)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda told: setattr(told.inputs[0], "datatype", "FP32"), "image FP32 (any, 1, any, any)"),
            (lambda told: told.inputs[0].shape.__setitem__(slice(None), [-1, 3, -1, -1]), "(any, 3, any, any)"),
            (lambda told: told.inputs[0].shape.__setitem__(slice(None), [-1, 1, 64, 64]), "(any, 1, 64, 64)"),
            (lambda told: told.inputs.add(name="more", datatype="UINT8", shape=[1]), "more UINT8 (1)"),
            (lambda told: told.inputs.__delitem__(0), "got inputs none"),
            (lambda told: told.outputs[0].shape.__setitem__(slice(None), [-1, 5, -1, -1]), "(any, 5, any, any)"),
            (lambda told: told.outputs[0].shape.__setitem__(slice(None), [-1, 3]), "scores FP32 (any, 3)"),
            (lambda told: setattr(told.outputs[0], "datatype", "FP16"), "scores FP16"),
        ],
    )
    def test_a_model_with_other_tensors_than_the_manifest_s(
        self, toy: Bundle, server: InferenceServer, change: Any, said: str
    ) -> None:
        server.metadata = change
        told = refused(server, toy)
        assert said in told
        assert "as the manifest of toy says: serve the bundle's own model.onnx" in told

    def test_a_model_of_one_size_takes_no_slabs(self, toy: Bundle, server: InferenceServer) -> None:
        server.metadata = lambda told: told.inputs[0].shape.__setitem__(slice(None), [-1, 1, 32, 32])
        with KserveSession(server.options(), toy.manifest) as session:
            assert len(session.infer(tiles(2))) == 2
            with pytest.raises(SessionError, match=r"got a batch uint8 \(1, 1, 64, 128\), expected .*\(any, 1, 32, 32\)"):
                session.prepare((1, 1, 64, 128))


class TestAtWork:
    """Calls that fail, and answers that are none."""

    def session(self, server: InferenceServer, bundle: Bundle, **keys: Any) -> KserveSession:
        return KserveSession(server.options(**keys), bundle.manifest)

    @pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
    def test_a_call_is_tried_again_where_a_moment_may_mend_it(self, toy: Bundle, server: InferenceServer, code: Any) -> None:
        server.before = lambda context, number: context.abort(code, "busy") if number < 3 else None
        with self.session(server, toy) as session:
            assert len(session.infer(tiles(1))) == 1
        assert server.calls["ModelInfer"] == 3

    def test_no_more_often_than_asked_for(self, toy: Bundle, server: InferenceServer) -> None:
        server.before = lambda context, number: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full")
        said = "failed at 2 attempts: RESOURCE_EXHAUSTED: queue is full"
        with self.session(server, toy, retries=1) as session, pytest.raises(SessionError, match=said):
            session.infer(tiles(1))
        assert server.calls["ModelInfer"] == 2

    def test_what_waiting_does_not_mend_is_told_at_once(self, toy: Bundle, server: InferenceServer) -> None:
        server.before = lambda context, number: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "batch 2 exceeds 1")
        with self.session(server, toy) as session, pytest.raises(SessionError, match="INVALID_ARGUMENT: batch 2 exceeds 1"):
            session.infer(tiles(2))
        assert server.calls["ModelInfer"] == 1

    def test_a_late_answer_is_not_waited_for(self, toy: Bundle, server: InferenceServer) -> None:
        ended = threading.Event()
        with self.session(server, toy, deadline_ms=200, retries=1) as session:
            server.before = lambda context, number: ended.wait(20)
            with pytest.raises(SessionError, match=r"had no answer within 200 ms at 2 attempts; session.kserve.deadline_ms"):
                session.infer(tiles(1))
            ended.set()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (lambda scores: scores[:, :2], r"\(1, 2, 32, 32\)"),
            (lambda scores: scores[:, :, :16], r"\(1, 3, 16, 32\)"),
            (lambda scores: scores.astype(np.float16), "FP16"),
            (lambda scores: np.repeat(scores, 2, axis=0), r"\(2, 3, 32, 32\)"),
        ],
    )
    def test_an_answer_of_another_shape_or_type_is_an_error_at_once(
        self, toy: Bundle, server: InferenceServer, answer: Any, said: str
    ) -> None:
        with self.session(server, toy) as session:
            server.answer = answer
            with pytest.raises(SessionError, match=rf"got an answer scores .*{said}.*; expected scores FP32 \(1, 3, 32, 32\)"):
                session.infer(tiles(1))
        assert server.calls["ModelInfer"] == 1

    @pytest.mark.parametrize("raw", [[], [b"\0" * 100], [b"", b""]])
    def test_an_answer_without_its_bytes_is_an_error(self, toy: Bundle, server: InferenceServer, raw: list[bytes]) -> None:
        def short(response: Any) -> Any:
            response.ClearField("raw_output_contents")
            response.raw_output_contents.extend(raw)
            return response

        with self.session(server, toy) as session:
            server.answered = short
            with pytest.raises(SessionError, match=r"bytes of raw tensors .*expected one of 12288"):
                session.infer(tiles(1))

    def test_a_session_that_was_closed_says_so(self, toy: Bundle, server: InferenceServer) -> None:
        with self.session(server, toy) as session:
            pass
        with pytest.raises(SessionError, match=r"session\.kserve\.url"):
            session.infer(tiles(1))


class TestInTheStationFile:
    """Keys of `session.kserve`."""

    def faults(self, **session: Any) -> list[str]:
        with pytest.raises(ConfigError) as told:
            parse_config({"source": {"kind": "simulated"}, "session": session}, "station")
        return str(told.value).splitlines()

    def test_the_backend_needs_an_address(self) -> None:
        (fault,) = self.faults(backend=["kserve", "ort"])
        assert "kserve: got none, and backend kserve, ort; expected kserve: {url: host:8001}" in fault

    @pytest.mark.parametrize("url", ["http://gpu:8000", "gpu", "gpu:http", "gpu:8001/v2", "gpu:0", "gpu:99999"])
    def test_an_address_is_host_and_port(self, url: str) -> None:
        (fault,) = self.faults(backend="kserve", kserve={"url": url})
        assert fault == f"station: session.kserve.url: got {url!r}; expected host:port of a gRPC service, such as inference:8001"

    def test_a_backend_stands_in_a_list_once(self) -> None:
        (fault,) = self.faults(gate_backend=["ort", "ort"])
        assert "gate_backend: got ort twice" in fault

    def test_files_that_are_named_have_to_exist(self, toy: Bundle, tmp_path: Path) -> None:
        session = {"backend": "kserve", "kserve": {"url": "gpu:8001", "tls": {"ca": str(tmp_path / "gone.pem")}}}
        config = parse_config({"source": {"kind": "simulated"}, "bundle": str(toy.path), "session": session}, "station")
        (fault,) = check_station(config, toy, None)
        assert fault == f"session.kserve.tls.ca: got {tmp_path / 'gone.pem'}, which does not exist; expected a PEM file"

    def test_a_gate_goes_by_its_own_name_and_may_stay_here(self) -> None:
        options = SessionOptions(backend="kserve", gate_backend="ort", kserve=Kserve(url="gpu:8001", model="coil", version="3"))
        assert options.of_gate.backends == ("ort",)
        assert options.of_gate.kserve == Kserve(url="gpu:8001")
