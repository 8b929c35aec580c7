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
    if isinstance(source, config.GigeSource):
        from edge.sources.gige import open_gige

        return open_gige(source)
    if isinstance(source, config.BaslerSource):
        from edge.sources.basler import open_basler

        return open_basler(source)
    if isinstance(source, config.GentlSource):
        from edge.sources.gentl import open_gentl

        return open_gentl(source)
    if isinstance(source, config.VideoSource):
        from edge.sources.video import open_video

        return open_video(source)
    from edge.sources.simulated import SimulatedSource

    return SimulatedSource(source, config.Scale() if scale is None else scale)
