"""A real RTSP server on a free port: GStreamer's, in a Python that has it. Run as a program it is the server itself."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HAS_GSTREAMER = "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0')"
USER, PASSWORD = "camera", "p@ss/word"


@functools.cache
def python_with_gstreamer() -> str | None:
    """Debian's modules of GStreamer are those of Debian's Python."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([python, "-c", _HAS_GSTREAMER], capture_output=True, check=False).returncode == 0:
                return python
        except OSError:
            continue
    return None


def require_rtsp_server() -> None:
    """Skip where there is none."""
    # here: the server itself runs in a Python without it
    import pytest

    if python_with_gstreamer() is None:
        pytest.skip("GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0, python3-gi)")


@contextmanager
def serving(
    images: Path, rate_hz: int, port: int = 0, dropped: float = 0.0, access: str = "open"
) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server of a folder's images 000.png, 001.png, ... in a loop, as rtsp://127.0.0.1:PORT/strip: (port, its process)."""
    python = python_with_gstreamer()
    assert python is not None
    command = [python, __file__, str(port), str(images / "%03d.png"), str(rate_hz), str(dropped), access]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline()), server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def _serve(port: str, images: str, rate_hz: str, dropped: str, access: str) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f'( multifilesrc location="{images}" index=0 loop=true caps="image/png,framerate={rate_hz}/1" ! pngdec ! videoconvert '
        # JPEG over RTP knows no grey
        f"! video/x-raw,format=I420 ! identity drop-probability={dropped} ! jpegenc quality=95 ! rtpjpegpay name=pay0 pt=26 )"
    )
    factory.set_shared(True)
    if access == "password":
        auth, token, permissions = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(USER, PASSWORD), token)
        server.set_auth(auth)
        for right in ("access", "construct"):
            permissions.add_permission_for_role("user", f"media.factory.{right}", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/strip", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
