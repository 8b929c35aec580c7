"""Where on the broker a station's events go, and the `source` they carry.

`<root>/<site>/<line>/<camera>/defect|strip|status|health`. Lens alerts go to `defect`: whoever watches for defects has
to learn, in order with them, that columns are no longer judged; the event's type tells the two apart. Only `status` is
retained; `health` is sent once and not kept for later, since the next one supersedes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edge.config import StationConfig


class Channel(enum.Enum):
    """The last part of a topic."""

    DEFECT = "defect"
    STRIP = "strip"
    STATUS = "status"
    HEALTH = "health"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one camera. The parts are `edge.config.Name`s: no `/`, `+` or `#` in them."""

    root: str
    site: str
    line: str
    camera: str

    def __post_init__(self) -> None:
        for part in (self.root, self.site, self.line, self.camera):
            if not part or any(sign in part for sign in "/+#"):
                raise ValueError(f"a part of a topic holds none of / + # and is not empty, got {part!r}")

    @property
    def source(self) -> str:
        """The CloudEvents `source`, `/<site>/<line>/<camera>`."""
        return f"/{self.site}/{self.line}/{self.camera}"

    def topic(self, channel: Channel) -> str:
        """The full topic of a channel."""
        return f"{self.root}{self.source}/{channel.value}"


def topics_of(station: StationConfig) -> Topics:
    """The topics of a station; the root of a station without a broker is the default one."""
    root = station.sinks.mqtt.topic_root if station.sinks.mqtt else "rust-edge"
    return Topics(root, station.site, station.line, station.camera)
