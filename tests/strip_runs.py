"""A strip through an engine in one go, and through its streaming engine chunk by chunk."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from export.passes.streaming import StreamedModel
from export.to_onnx import with_input_size


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_session(model).run(None, feeds)


def whole_rows(model: onnx.ModelProto, strip: np.ndarray) -> np.ndarray:
    """Answer (c, lines, columns) to a strip (lines, columns)."""
    return run(with_input_size(model, *strip.shape), {"image": strip[None, None]})[0][0]


def streamed_rows(streamed: StreamedModel, strip: np.ndarray, chunk: int) -> np.ndarray:
    """The same, in chunks of so many lines; within the reach of the strip's ends the rows are not the same."""
    names = ["scores", *(state.output for state in streamed.states)]
    shapes = {s.input: ((1, s.channels, s.rows, strip.shape[1] // s.stride), s.dtype) for s in streamed.states}
    states = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    steps = -(-(len(strip) + streamed.lag_lines) // chunk)
    fed = np.pad(strip, ((0, steps * chunk - len(strip)), (0, 0)))
    session = open_session(streamed.model)
    rows = []
    for lines in np.split(fed, steps):
        scores, *after = session.run(names, {"image": lines[None, None], **states})
        states = dict(zip(states, after, strict=True))
        rows.append(scores[0])
    return np.concatenate(rows, axis=1)[:, streamed.lag_lines : streamed.lag_lines + len(strip)]
