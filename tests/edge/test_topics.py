import pytest
from event_samples import TOPICS

from edge.config import parse_config
from edge.topics import Channel, Topics, topics_of

STATION = {"site": "linz", "line": "line3", "camera": "top", "source": {"kind": "simulated"}}


def test_a_topic_names_root_site_line_camera_and_channel() -> None:
    assert [TOPICS.topic(channel) for channel in Channel] == [
        "rust-edge/linz/line3/top/defect",
        "rust-edge/linz/line3/top/strip",
        "rust-edge/linz/line3/top/status",
        "rust-edge/linz/line3/top/health",
    ]


def test_a_station_with_a_broker_publishes_under_the_root_of_its_file() -> None:
    station = parse_config({**STATION, "sinks": {"mqtt": {"topic_root": "plant"}}}, "station.yaml")
    assert topics_of(station) == Topics("plant", "linz", "line3", "top")


def test_a_station_without_a_broker_has_the_default_root() -> None:
    assert topics_of(parse_config(dict(STATION), "station.yaml")) == TOPICS


@pytest.mark.parametrize("part", ["", "a/b", "+", "#"])
def test_a_part_that_would_change_the_topic_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="part of a topic"):
        Topics("rust-edge", part, "line", "camera")
