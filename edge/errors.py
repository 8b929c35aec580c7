"""Every error that rust-edge raises on purpose, one class per decision that the caller has to make.

RustEdgeError
├── ConfigError      correct the station file or the command's arguments
├── BundleError      export the bundle again, or name another one
├── SourceError      look at the camera, or at the images
│   └── ImageError   one image that cannot be part of a strip
├── SessionError     this box cannot run this engine: another backend, another bundle
│   └── StateLostError  another engine goes on in place of a streaming one that failed: feed it the lines before again
├── BrokerError      correct the broker's address or credentials
├── OutboxError      make room on the disk, or name another path
└── StageError       a stage of the daemon died: the log names it; restart resumes

A message says what was got, what was expected, where, and what to do. Upper floors derive their own from the root.
"""

from __future__ import annotations


class RustEdgeError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command line leaves with."""

    exit_code = 1


class ConfigError(RustEdgeError):
    """A station file, a recipe or a command's argument is wrong: fix it and start again."""

    exit_code = 2


class BundleError(RustEdgeError):
    """A bundle is incomplete, altered, too new, or answers otherwise than when it was verified."""

    exit_code = 3


class SourceError(RustEdgeError):
    """A frame source cannot deliver."""

    exit_code = 4


class ImageError(SourceError):
    """An image cannot be read, or does not fit the strip it is to be part of."""


class SessionError(RustEdgeError):
    """A backend is missing or cannot run the engine."""

    exit_code = 5


class StateLostError(SessionError):
    """A streaming engine failed, and another one, at rest, stands in its place: feed it the lines before again."""


class BrokerError(RustEdgeError):
    """The broker refuses this client for a reason that waiting does not mend."""

    exit_code = 6


class OutboxError(RustEdgeError):
    """The outbox cannot keep an event."""

    exit_code = 7


class StageError(RustEdgeError):
    """A thread of the daemon died."""

    exit_code = 8
