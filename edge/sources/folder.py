"""Images as one strip, in the order of their names."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from edge import config
from edge.errors import ConfigError, ImageError, SourceError
from edge.frame import Frame, Lines, SourceHealth
from edge.sources.cutting import cut_frames
from edge.sources.images import IMAGE_SUFFIXES, read_image, read_image_size
from edge.sources.pace import Pace


def images_of(path: Path | list[Path]) -> tuple[Path, ...]:
    """The images that a folder, a file or a list of both names, sorted by their whole names.

    Of a folder: the files in it whose suffix is in IMAGE_SUFFIXES, hidden ones left out. A file that is named itself may
    be called anything.
    Raises ConfigError where a path does not exist, SourceError where there is no image.
    """
    images: list[Path] = []
    for entry in path if isinstance(path, list) else [path]:
        if entry.is_dir():
            inside = [file for file in entry.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
            if not inside:
                raise SourceError(
                    f"{entry}: a folder without images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
            images += inside
        elif entry.exists():
            images.append(entry)
        else:
            raise ConfigError(f"{entry}: does not exist; expected an image or a folder of images")
    if not images:
        raise SourceError("got an empty list of images; expected at least one")
    return tuple(sorted(images, key=str))


class FolderSource:
    """Frames of `frame_lines` lines cut from images that follow each other without a gap; it waits for its consumer.

    Frames end at multiples of `frame_lines` in strip coordinates, wherever the images meet; the strip's last one may be
    shorter. One image is held at a time, and of those before the first line asked for only the headers are read.
    """

    def __init__(self, options: config.FolderSource) -> None:
        self._options = options
        self._images = images_of(options.path)
        self._stops: list[int] = []
        self._width: int | None = None
        self._closed = threading.Event()
        self._health = SourceHealth()

    @property
    def width(self) -> int:
        """Columns of the first image, and so of all. Raises ImageError."""
        if self._width is None:
            self._width = read_image_size(self._images[0]).columns
        return self._width

    @property
    def waits(self) -> bool:
        """True: nothing is lost where the consumer is slow, whatever the pace."""
        return True

    def __enter__(self) -> FolderSource:
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
        """Frames from strip line `first_line` on. Raises ImageError naming the image that does not belong to the strip."""
        pace = Pace(self._options.line_rate_hz, self._closed)
        for frame in cut_frames(self._images_from(first_line), first_line, self._options.frame_lines, pace):
            self._health = SourceHealth(self._health.frames + 1, self._health.lines + frame.lines.shape[0])
            yield frame

    def _images_from(self, line: int) -> Iterator[Lines]:
        """Decoded images from a strip line on, the first one cut to begin there."""
        index, within = self._place_of(line)
        while index is not None:
            image = read_image(self._images[index])
            self._check_width(self._images[index], image.shape[1])
            yield image[within:]
            # the next one is read when this one has gone
            del image
            index, within = index + 1, 0
            if index == len(self._images):
                index = 0 if self._options.loop else None

    def _place_of(self, line: int) -> tuple[int | None, int]:
        """The image that a strip line lies in, and where in it; None beyond the strip's end."""
        while not self._stops or self._stops[-1] <= line:
            index = len(self._stops)
            if index == len(self._images):
                if not self._options.loop:
                    return None, 0
                line %= self._stops[-1]
                break
            size = read_image_size(self._images[index])
            self._check_width(self._images[index], size.columns)
            self._stops.append((self._stops[-1] if self._stops else 0) + size.lines)
        index = bisect_right(self._stops, line)
        return index, line - (self._stops[index - 1] if index else 0)

    def _check_width(self, image: Path, columns: int) -> None:
        if columns != self.width:
            raise ImageError(
                f"{image}: got {columns} columns, expected {self.width} as in the strip's first image, {self._images[0]}"
            )
