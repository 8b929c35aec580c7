"""A GigE Vision camera as a process of its own: libaravis' fake camera serving lines of images, on UDP 3956.

    python gige_camera.py COUNT STRIP.npy [--lost-per-1000 N] [--first-id N] [--address A] [--serial S]

The strip, (lines, columns) uint8, comes frame by frame, before and after it clean steel.
COUNT, 8 bytes, says how many frames were made.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import mmap
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LIBRARY = "libaravis-0.8.so.0"
STEEL = 128


def load() -> ctypes.CDLL | None:
    """libaravis with the functions used here; None: it is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("arv_gv_fake_camera_new_full", pointer, [text, text, text]),
        ("arv_gv_fake_camera_get_fake_camera", pointer, [pointer]),
        ("arv_gv_fake_camera_is_running", ctypes.c_int, [pointer]),
        ("arv_fake_camera_set_fill_pattern", None, [pointer, pointer, pointer]),
        ("arv_buffer_get_data", pointer, [pointer, pointer]),
        ("arv_buffer_get_image_width", ctypes.c_int, [pointer]),
        ("arv_buffer_get_image_height", ctypes.c_int, [pointer]),
        ("arv_buffer_get_frame_id", ctypes.c_uint64, [pointer]),
        ("arv_buffer_set_frame_id", None, [pointer, ctypes.c_uint64]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Count:
    """How many frames the camera has made, readable by other processes even after it was killed."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)

    def put(self, frames: int) -> None:
        self._shared[:] = struct.pack("<Q", frames)


def frames_made(path: Path) -> int:
    return int(struct.unpack("<Q", path.read_bytes())[0])


class CameraProcess:
    """The camera as a process of its own, the only one at its address. A context manager; SIGKILL ends it."""

    def __init__(self, folder: Path, strip: np.ndarray, *options: object) -> None:
        self._folder, self._options = folder, options
        folder.mkdir(exist_ok=True)
        np.save(folder / "strip.npy", strip)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> CameraProcess:
        # every camera here has the one port of the protocol
        self._alone = Path(tempfile.gettempdir(), "rust-edge-gige-camera.lock").open("w")
        fcntl.flock(self._alone, fcntl.LOCK_EX)
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        self._alone.close()

    def _start(self) -> None:
        command = [sys.executable, __file__, str(self._folder / "count"), str(self._folder / "strip.npy")]
        self._process = subprocess.Popen([*command, *map(str, self._options)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the camera does not start: is another one at its address?"

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def frames_made(self) -> int:
        return frames_made(self._folder / "count")

    @contextmanager
    def killed_and_started_again(self, after_frames: int, away_s: float) -> Iterator[None]:
        """In the background: SIGKILL once it has made so many frames, and from its first frame on again a while later."""

        def away() -> None:
            while self.frames_made() < after_frames:
                time.sleep(0.01)
            self._kill()
            time.sleep(away_s)
            self._start()

        thread = threading.Thread(target=away)
        thread.start()
        yield
        thread.join()


def serve(options: argparse.Namespace) -> int:
    library = load()
    assert library is not None
    strip = np.ascontiguousarray(np.load(options.strip))
    count = Count(options.count)
    made = 0

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
    def fill(buffer: int, _user: int, _exposure_us: int, _gain: int, pixel_format: int) -> None:
        nonlocal made
        width, height = library.arv_buffer_get_image_width(buffer), library.arv_buffer_get_image_height(buffer)
        frame = np.full((height, width), STEEL, np.uint8)
        first = options.first_line + made * height
        lines = strip[max(first, 0) : max(first + height, 0), :width]
        frame[max(-first, 0) :][: lines.shape[0], : lines.shape[1]] = lines
        if made == options.frozen_after:
            time.sleep(options.frozen_s)
        if (pixel_format >> 16) & 0xFF == 16:
            # the low byte is noise that must not show
            frame = (frame.astype("<u2") << 8) | 0x5A
        ctypes.memmove(library.arv_buffer_get_data(buffer, None), frame.ctypes.data, frame.nbytes)
        if options.first_id is not None:
            # 65535 is followed by 1
            library.arv_buffer_set_frame_id(buffer, (options.first_id - 1 + made) % 65535 + 1)
        made += 1
        count.put(made)

    camera = library.arv_gv_fake_camera_new_full(options.address.encode(), options.serial.encode(), None)
    if not camera or not library.arv_gv_fake_camera_is_running(camera):
        print("no camera", flush=True)
        return 1
    set_property = ctypes.CDLL("libgobject-2.0.so.0").g_object_set
    set_property(
        ctypes.c_void_p(camera), b"gvsp-lost-ratio", ctypes.c_double(options.lost_per_1000 / 1000), ctypes.c_void_p(None)
    )
    library.arv_fake_camera_set_fill_pattern(library.arv_gv_fake_camera_get_fake_camera(camera), fill, None)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=Path)
    parser.add_argument("strip", type=Path)
    parser.add_argument("--lost-per-1000", type=float, default=0.0)
    parser.add_argument("--first-id", type=int)
    parser.add_argument("--first-line", type=int, default=0, help="below 0: clean steel before the strip")
    parser.add_argument("--frozen-after", type=int, help="frames after which it neither sends nor answers for a while")
    parser.add_argument("--frozen-s", type=float, default=0.0)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--serial", default="RUST-EDGE-1")
    # before the library's threads are made, so that they do not take the signals
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    return serve(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
