"""Where frames come from."""

from __future__ import annotations

from edge import config
from edge.frame import FrameSource


def open_source(source: config.Source, scale: config.Scale | None = None) -> FrameSource:
    """The source that a station file describes, to be entered as a context manager.

    scale: the station's; a simulated strip is made to it. None: the station file's default. Raises SourceError, ConfigError.
    """
    # imported here, so that whoever needs one source does not wait for what the other one imports
    if isinstance(source, config.FolderSource):
        from edge.sources.folder import FolderSource

        return FolderSource(source)
    from edge.sources.simulated import SimulatedSource

    return SimulatedSource(source, config.Scale() if scale is None else scale)
