"""The segmenters of `segmenting` on a strict device, with the same engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial

from ort_on_device import OrtOnDevice, OrtStreamOnDevice, Spares
from segmenting import BAND, CELL, CORE, REDUCE, Engine, gate, map_gate
from strict_device import StrictDevice, StrictDeviceMemory

from edge.cuda.kernels import StripKernels
from edge.cuda.strip import DeviceStrip
from edge.errors import SessionError
from edge.manifest import EngineInput, Streaming
from edge.scores import Reading
from edge.segmenters import Segmenter
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.device_chunks import DeviceChunks
from edge.segmenters.device_crops import DeviceCrops
from edge.segmenters.device_maps import DeviceMaps
from edge.segmenters.device_tile_rows import DeviceTileRows
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.segmenters.streaming_gate import StreamingGate, gate_columns
from edge.segmenters.tile_row_gate import TileRowGate
from edge.sessions.ort import OrtStreamingSession
from edge.sessions.standby import StandbyStream

HELD = ("streaming", "slabs", "cascade of tiles", "cascade of cells")
"""Kinds of `segmenting` that can keep the strip on a GPU."""
NO_CUBIN = b"its kernels are twins"


class CountingDevice(StrictDevice):
    """Notes what goes up and comes down, as device memory and bytes, and refuses one call if asked to."""

    def __init__(self, **changes) -> None:
        super().__init__(strict_leaks=True, **changes)
        self.up: list[tuple[StrictDeviceMemory, int]] = []
        self.down: list[tuple[StrictDeviceMemory, int]] = []
        self._until_refused: int | None = None

    @property
    def refused(self) -> bool:
        return self._until_refused is not None and self._until_refused < 0

    def refuse_after(self, calls: int) -> None:
        """So many calls more are done, the next one fails, and those after it are done again."""
        self._until_refused = calls

    def upload(self, target, offset, source, stream) -> None:
        self._count()
        super().upload(target, offset, source, stream)
        self.up.append((target, source.nbytes))

    def download(self, target, source, offset, stream) -> None:
        self._count()
        super().download(target, source, offset, stream)
        self.down.append((source, target.nbytes))

    def launch(self, *arguments) -> None:
        self._count()
        super().launch(*arguments)

    def enqueue(self, handle, work) -> None:
        self._count()
        super().enqueue(handle, work)

    def record(self, event, stream) -> None:
        self._count()
        super().record(event, stream)

    def synchronize_event(self, event) -> None:
        self._count()
        super().synchronize_event(event)

    def _count(self) -> None:
        if self._until_refused is None or self._until_refused < 0:
            return
        self._until_refused -= 1
        if self._until_refused < 0:
            raise SessionError("refused on request")


class OnDevice:
    """Opens segmenters on a device, each with sessions of its own, and streams that stand by on the host."""

    def __init__(self, device: StrictDevice, opened: ExitStack) -> None:
        self.device, self._opened = device, opened
        with device.active():
            self.kernels = StripKernels(device, NO_CUBIN)
        self.sessions: list[OrtOnDevice | OrtStreamOnDevice] = []

    def segmenter(
        self, kind: str, net: Engine, width: int, chunk_lines: int = 20, batch: int = 3, threshold: float = 0.99
    ) -> Segmenter:
        strip = DeviceStrip(self.device, self.kernels)
        segmenter = self._on(strip, kind, net, width, chunk_lines, batch, threshold)
        # before the sessions, whose streams it uses
        self._opened.callback(strip.close)
        return segmenter

    def _on(
        self, strip: DeviceStrip, kind: str, net: Engine, width: int, chunk_lines: int, batch: int, threshold: float
    ) -> Segmenter:
        common = {"width": width, "halo": net.halo, "stride": net.stride, "reading": Reading("softmax")}
        if kind == "streaming":
            stream, ask = self._stream(net.streaming(width, chunk_lines), fresh(net, width, chunk_lines), net.columns(width))
            return StreamingSegmenter(stream, chunks=partial(DeviceChunks, strip, ask), **common)
        session = self._session(net.session())
        common["crops"] = partial(DeviceCrops, strip, lambda: session)
        if kind == "slabs":
            return SlabSegmenter(session, chunk_lines=chunk_lines, **common)
        guard = self._tile_row_gate(strip, width) if kind == "cascade of tiles" else self._streaming_gate(strip, width)
        return CascadeSegmenter(guard, session, threshold=threshold, band_lines=BAND, batch=batch, **common)

    def _tile_row_gate(self, strip: DeviceStrip, width: int) -> TileRowGate:
        size = EngineInput(tile_height=CORE // REDUCE, tile_width=CORE // REDUCE, reduce=REDUCE)
        session = self._session(gate())
        rows = partial(DeviceTileRows, strip, lambda: session)
        return TileRowGate(session, width=width, size=size, activation="sigmoid", head="logits", rows=rows)

    def _streaming_gate(self, strip: DeviceStrip, width: int, chunk_lines: int = 16) -> StreamingGate:
        net, reduced = map_gate(), -(-width // REDUCE)
        assert net.cell * REDUCE == CELL
        lines, columns = chunk_lines // REDUCE, gate_columns(width, REDUCE, net.halo, net.stride)
        stream, ask = self._stream(net.streaming(reduced, lines), fresh(net, reduced, lines), columns)
        geometry = {"reduce": REDUCE, "cell": net.cell, "halo": net.halo, "stride": net.stride}
        maps = partial(DeviceMaps, strip, ask)
        return StreamingGate(stream, width=width, activation="sigmoid", head="logits", maps=maps, **geometry)

    def _session(self, session) -> OrtOnDevice:
        opened = self._opened.enter_context(OrtOnDevice(self.device, session))
        self.sessions.append(opened)
        return opened

    def _stream(self, session, spare, columns: int):
        """A stream with another one that stands by, and who tells which part of it is on the device now."""
        opened = self._opened.enter_context(OrtStreamOnDevice(self.device, session, columns))
        self.sessions.append(opened)
        standby = StandbyStream(Spares(spare), opened, None)
        return standby, lambda: opened if standby.engine is opened else None


@lru_cache(maxsize=256)
def fresh(net: Engine, width: int, chunk_lines: int, which: int = 0) -> OrtStreamingSession:
    """Another session of the same stream, of as many as are wanted."""
    streamed = net.streamed()
    manifest = Streaming(lag_lines=streamed.lag_lines, cell=net.cell, states=streamed.states)
    return OrtStreamingSession(streamed.model.SerializeToString(), manifest, net.columns(width), chunk_lines, threads=1)


@contextmanager
def on_device(**changes) -> Iterator[OnDevice]:
    """A counting device, and who opens segmenters on it."""
    with CountingDevice(**changes) as device, ExitStack() as opened:
        yield OnDevice(device, opened)
