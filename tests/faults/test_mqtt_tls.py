"""TLS towards a real broker, with an authority made for the test."""

import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from event_samples import TOPICS, story
from mosquitto import Mosquitto
from mqtt_inbox import until

from edge.config import Mqtt
from edge.errors import BrokerError
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox

pytest.importorskip("cryptography", reason="certificates are made with the package cryptography")
from certificates import Authority

pytestmark = pytest.mark.broker
StartMosquitto = Callable[..., Mosquitto]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as opened:
        opened.commit(story(0))
        yield opened


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def settings(authority: Authority, name: str) -> tuple[str, ...]:
    certificate, key = authority.issue(name)
    return f"cafile {authority.ca}", f"certfile {certificate}", f"keyfile {key}"


def publisher(port: int, outbox: Outbox, host: str, **tls: Path) -> MqttPublisher:
    config = Mqtt.model_validate({"host": host, "port": port, "backoff_max_s": 0.3, "tls": tls})
    return MqttPublisher(config, TOPICS, outbox, drain_s=0.2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_broker_whose_name_is_in_its_certificate_gets_the_events(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox, host: str
) -> None:
    broker = start_mosquitto(*settings(authority, host))
    with publisher(broker.port, outbox, host, ca=authority.ca) as sending:
        until(lambda: sending.counters().acknowledged == 3, "delivered")


def test_many_events_over_tls_arrive_without_waiting_for_the_clock(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox
) -> None:
    broker = start_mosquitto(*settings(authority, "127.0.0.1"))
    for number in range(1, 60):
        outbox.commit(story(number))
    with publisher(broker.port, outbox, "127.0.0.1", ca=authority.ca) as sending:
        until(lambda: sending.counters().acknowledged == 180, "delivered")
    assert outbox.depth() == 0


def refused(sending: MqttPublisher, reason: str, caplog: pytest.LogCaptureFixture) -> str:
    """Runs until the reason was counted twice; the one line that was logged."""
    with sending:
        until(lambda: sending.counters().reasons.get(reason, 0) >= 2, f"{reason}, twice")
    assert sending.failure is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return line


def test_a_certificate_for_another_name_is_one_line_that_says_so(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_mosquitto(*settings(authority, "broker.plant.example"))
    line = refused(publisher(broker.port, outbox, "localhost", ca=authority.ca), "tls: name mismatch", caplog)
    assert "certificate for another name" in line
    assert "localhost" in line
    assert "expected sinks.mqtt.host to be a name in the broker's certificate" in line
    assert outbox.depth() == 3


def test_an_authority_that_is_not_trusted_is_one_line_that_says_so(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_mosquitto(*settings(authority, "127.0.0.1"))
    stranger = Authority(tmp_path, "stranger")
    line = refused(publisher(broker.port, outbox, "127.0.0.1", ca=stranger.ca), "tls: certificate not trusted", caplog)
    assert "expected sinks.mqtt.tls.ca to be the authority that signed it" in line


def test_a_broker_without_tls_is_one_line_that_says_so(
    mosquitto: Mosquitto, authority: Authority, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    sending = publisher(mosquitto.port, outbox, "127.0.0.1", ca=authority.ca)
    with sending:
        until(lambda: sum(sending.counters().reasons.values()) >= 2, "refused twice")
    assert "TLS" in caplog.text
    assert outbox.depth() == 3


def test_a_broker_that_asks_for_a_client_certificate_accepts_the_stations(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox
) -> None:
    broker = start_mosquitto(*settings(authority, "127.0.0.1"), "require_certificate true")
    certificate, key = authority.issue("station")
    with publisher(broker.port, outbox, "127.0.0.1", ca=authority.ca, certificate=certificate, key=key) as sending:
        until(lambda: sending.counters().acknowledged == 3, "delivered")


def test_a_missing_client_certificate_is_one_line_that_says_so(
    start_mosquitto: StartMosquitto, authority: Authority, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_mosquitto(*settings(authority, "127.0.0.1"), "require_certificate true")
    sending = publisher(broker.port, outbox, "127.0.0.1", ca=authority.ca)
    with sending:
        until(lambda: sum(sending.counters().reasons.values()) >= 2, "refused twice")
    assert "client certificate in sinks.mqtt.tls" in caplog.text


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_an_authority_file_that_cannot_be_used_is_refused_at_once(outbox: Outbox, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BrokerError, match=f"tls.ca: got {path}.*expected a PEM file"):
        publisher(8883, outbox, "127.0.0.1", ca=path)


def test_a_key_of_another_certificate_is_refused_at_once(authority: Authority, outbox: Outbox) -> None:
    certificate, _ = authority.issue("one")
    _, key = authority.issue("other")
    with pytest.raises(BrokerError, match=r"tls.certificate, tls.key") as caught:
        publisher(8883, outbox, "127.0.0.1", ca=authority.ca, certificate=certificate, key=key)
    assert isinstance(caught.value.__cause__, ssl.SSLError)
