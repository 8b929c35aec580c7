"""Real brokers for the tests of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mosquitto import EXECUTABLE, Mosquitto


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers, each with its own folder; ends them after the test."""
    if EXECUTABLE is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with ExitStack() as brokers:

        def start(*settings: str, users: dict[str, str] | None = None) -> Mosquitto:
            folder = tmp_path / f"mosquitto-{len(list(tmp_path.glob('mosquitto-*')))}"
            return brokers.enter_context(Mosquitto(folder, settings, users))

        yield start


@pytest.fixture
def mosquitto(start_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A broker with the persistence that the project ships, open to everybody."""
    return start_mosquitto()
