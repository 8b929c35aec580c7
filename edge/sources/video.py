"""Video through OpenCV's FFmpeg: a file as one strip, or the stream of a network camera.

A stream says nothing about images that its server left out, but by their time stamps: see `frame_rate_hz`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import cv2

from edge.config import VideoSource
from edge.errors import ConfigError, SourceError
from edge.frame import Frame, FrameSource, Lines, SourceHealth
from edge.sources.camera import CameraOptions, CameraSource, Grab
from edge.sources.cutting import cut_frames
from edge.sources.images import grey_lines
from edge.sources.pace import Pace

_log = logging.getLogger(__name__)

_WAITING_IMAGES = 32
"""How many images of a stream wait for their consumer; an older one then is left out, and its lines are lost."""
_OPEN_MS = 5000
_RELEASE_S = 0.5


def open_video(source: VideoSource) -> FrameSource:
    """The source that a station file describes, to be entered as a context manager. Raises ConfigError, SourceError."""
    if source.path is not None:
        return VideoFileSource(source.path, source.frame_lines, source.line_rate_hz)
    assert source.url is not None
    rate_hz = None if source.frame_rate_hz is None else source.frame_rate_hz * source.frame_lines
    options = CameraOptions(source.url, source.frozen_s, "free", rate_hz)
    return CameraSource(lambda: StreamLink(source), options)


class VideoFileSource:
    """Frames of `frame_lines` lines cut from a video's images, which follow each other without a gap; it waits for its consumer.

    A strip entered later is decoded from its start: codecs keep differences, and what a container says about places is not
    exact.
    """

    def __init__(self, path: Path, frame_lines: int, line_rate_hz: float | None = None) -> None:
        if not path.is_file():
            raise ConfigError(f"{path}: {'is a folder' if path.exists() else 'does not exist'}; expected a video file")
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            # OpenCV would end the process
            raise ConfigError(f"{str(path)!a}: is no UTF-8; expected a video file under another name") from error
        self._path, self._frame_lines, self._line_rate_hz = path, frame_lines, line_rate_hz
        self._size: tuple[int, int] | None = None
        self._closed = threading.Event()
        self._health = SourceHealth()

    @property
    def width(self) -> int:
        """Columns of the video. Raises SourceError."""
        return self._lines_and_columns()[1]

    @property
    def waits(self) -> bool:
        """True: nothing is lost where the consumer is slow, whatever the pace."""
        return True

    def __enter__(self) -> VideoFileSource:
        self._closed.clear()
        self._health = SourceHealth()
        _ = self.width
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()

    def health(self) -> SourceHealth:
        """Frames and lines handed out since it was opened."""
        return self._health

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        """Frames from strip line `first_line` on. Raises SourceError where the file cannot be decoded."""
        pace = Pace(self._line_rate_hz, self._closed)
        for frame in cut_frames(self._images_from(first_line), first_line, self._frame_lines, pace):
            self._health = SourceHealth(self._health.frames + 1, self._health.lines + frame.lines.shape[0])
            yield frame

    def _images_from(self, line: int) -> Iterator[Lines]:
        """Decoded images from a strip line on, the first one cut to begin there."""
        height, width = self._lines_and_columns()
        passed, within = divmod(line, height)
        video = self._opened()
        try:
            count = 0
            while count < passed and video.grab():
                count += 1
            if count < passed:
                return
            while (image := next_image(video)) is not None:
                if image.shape != (height, width):
                    got = f"{image.shape[1]} x {image.shape[0]}"
                    raise SourceError(f"{self._path}: image {count} is {got} pixels, expected {width} x {height} as the first")
                count += 1
                yield image[within:]
                del image
                within = 0
            announced = round(video.get(cv2.CAP_PROP_FRAME_COUNT))
            if count < announced:
                _log.warning(
                    "%s: ends after %d images, and its header announces %d: is it cut off?", self._path, count, announced
                )
        finally:
            video.release()

    def _lines_and_columns(self) -> tuple[int, int]:
        if self._size is None:
            video = self._opened()
            first = next_image(video)
            video.release()
            if first is None:
                raise SourceError(f"{self._path}: no image can be decoded; expected a video that FFmpeg reads")
            self._size = first.shape[0], first.shape[1]
        return self._size

    def _opened(self) -> cv2.VideoCapture:
        video = opened_video(str(self._path.absolute()), [])
        if not video.isOpened():
            raise SourceError(f"{self._path}: cannot be read; expected a video that FFmpeg reads, such as AVI, MP4 or MKV")
        return video


class StreamLink:
    """One open connection to a stream, read by a thread of its own. Raises SourceError, ConfigError."""

    def __init__(self, source: VideoSource) -> None:
        assert source.url is not None
        self._name, self._rate_hz = source.url, source.frame_rate_hz
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(source.frozen_s * 1000)]
        self._video = opened_video(_with_user(source), limits)
        first = next_image(self._video) if self._video.isOpened() else None
        if first is None:
            self._video.release()
            raise SourceError(f"{self._name}: no image comes; expected a stream that FFmpeg reads: is its server there?")
        self._height, self._width = int(first.shape[0]), int(first.shape[1])
        if self._height != source.frame_lines:
            self._video.release()
            raise ConfigError(
                f"source.frame_lines: got {source.frame_lines}, and the images of {self._name} have {self._height} lines; "
                f"expected {self._height}"
            )
        self._decoded = self._left_out = 0
        self._newest_id = -1
        self._images: queue.Queue[Grab | None] = queue.Queue(_WAITING_IMAGES)
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(first,), name=f"stream {self._name}", daemon=True)
        self._reader.start()

    @property
    def width(self) -> int:
        """Columns of every image."""
        return self._width

    @property
    def height(self) -> int:
        """Lines of every image."""
        return self._height

    @property
    def last_frame_id(self) -> int | None:
        """None: ids are counted here."""
        return None

    @property
    def line_rate_hz(self) -> float | None:
        """As the station file has it: what streams say of their rate is often their clock's."""
        return None if self._rate_hz is None else self._rate_hz * self._height

    def grab(self, timeout_s: float) -> Grab | None:
        """The next image; None: nothing came in time. Raises SourceError where the stream has ended."""
        try:
            image = self._images.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if image is None:
            raise SourceError(f"{self._name}: the stream has ended")
        return image

    def ask(self) -> None:
        """Nothing to ask: a stream comes without a trigger, and its end is seen."""

    def counters(self) -> dict[str, int]:
        """Images decoded, and those that were left out because nobody took them in time."""
        return {"decoded": self._decoded, "left_out": self._left_out}

    def close(self) -> None:
        """Give the stream back; where an image is being waited for, as soon as that is over."""
        self._closed.set()
        self._reader.join(_RELEASE_S)

    def _read(self, first: Lines) -> None:
        image: Lines | None = first
        try:
            while image is not None and image.shape == (self._height, self._width) and not self._closed.is_set():
                self._decoded += 1
                self._put(Grab(image, self._id(), self._height, time.time_ns()))
                image = next_image(self._video)
        finally:
            self._put(None)
            self._video.release()

    def _id(self) -> int:
        """Of the image decoded last: the next one, or later where time stamps say that images are missing before it."""
        stamped = 0 if self._rate_hz is None else round(self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000 * self._rate_hz)
        self._newest_id = max(self._newest_id + 1, stamped)
        return self._newest_id

    def _put(self, image: Grab | None) -> None:
        while True:
            try:
                self._images.put_nowait(image)
                return
            except queue.Full:
                # the oldest goes: its id will be missing
                self._left_out += self._images.get() is not None


def _with_user(source: VideoSource) -> str:
    assert source.url is not None
    if source.username is None:
        return source.url
    scheme, _, rest = source.url.partition("://")
    return f"{scheme}://{quote(source.username, safe='')}:{quote(source.password or '', safe='')}@{rest}"


def opened_video(address: str, limits: list[int]) -> cv2.VideoCapture:
    """A file or a stream through FFmpeg, its images as they are stored. limits: OpenCV's properties and values, for opening."""
    video = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    # a telephone's mark "turn by 90 degrees" would make columns of lines
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    return video


def next_image(video: cv2.VideoCapture) -> Lines | None:
    """The next image as grey lines, colour as `grey_lines` has it, more than 8 bits made 8; None: there is none."""
    got, image = video.read()
    return grey_lines(image) if got else None
