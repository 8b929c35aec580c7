"""Errors of turning a checkpoint into a bundle."""

from __future__ import annotations

from edge.errors import RustEdgeError


class ExportError(RustEdgeError):
    """A checkpoint, calibration set or graph cannot become a bundle; the message says what was got, expected and what to do."""
