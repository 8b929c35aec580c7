"""Activation calibration: what values the tensors of a float engine take over representative tiles.

Statistics are gathered in batches and merged; ranges are pure functions of them. A histogram's bins are powers of two wide,
so that merging two bins into one of double width gives exactly the histogram that the wider bins would have counted: the
result does not depend on how the tiles were cut into batches.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from edge.errors import RustEdgeError
from edge.sessions import Batch

BINS = 2048
"""The widest value lies in the upper half of the bins, so a percentile is known to 1/1024 of it: an eighth of an int8 step."""
_SMALLEST_BIN_EXPONENT = -60
"""Bins are at least 2**-60 wide: values below 2e-15 of a network with inputs around 1 are nothing."""


class CalibrationError(RustEdgeError):
    """Tiles and engine do not give ranges; the message says what was got and what to do."""


class RangeMethod(enum.Enum):
    """How the range of a tensor follows from its values: all of them, a share of |x|, or as much as costs least information."""

    MIN_MAX = "min_max"
    PERCENTILE_99_99 = "percentile_99_99"
    PERCENTILE_99_9 = "percentile_99_9"
    ENTROPY = "entropy"


PERCENTILES = {RangeMethod.PERCENTILE_99_99: 99.99, RangeMethod.PERCENTILE_99_9: 99.9}
"""Percent of the values that a range covers."""

LEVELS = 128
"""Magnitudes that int8 tells apart in [0, limit], of a symmetric tensor as of a non-negative one."""


@dataclass(frozen=True, slots=True, eq=False)
class ActivationStatistics:
    """Everything that is kept of a tensor's values.

    abs_max: largest |x| seen.
    non_negative: no value was below 0.
    bin_exponent: bins of the histogram of |x| are 2**bin_exponent wide.
    counts: (BINS,) int64, bin i counts i <= |x| / 2**bin_exponent < i + 1.
    """

    abs_max: float
    non_negative: bool
    bin_exponent: int
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """The interval that int8 has to cover: [-limit, limit], of which a non-negative tensor uses the upper half."""

    limit: float
    non_negative: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit >= 0.0):
            raise ValueError(f"a range's limit is finite and not negative, got {self.limit}")


def observe(values: npt.NDArray[np.float32]) -> ActivationStatistics:
    """Statistics of one array of any shape, at least one value. Raises ValueError where a value is not finite."""
    magnitudes = np.abs(values.ravel())
    abs_max = float(magnitudes.max())
    if not math.isfinite(abs_max):
        raise ValueError(f"values are not finite: {np.count_nonzero(~np.isfinite(magnitudes))} of {magnitudes.size}")
    # frexp: abs_max < 2**exponent, so dividing by 2**(exponent - 11) gives indices below 2048.
    exponent = math.frexp(abs_max)[1] - (BINS.bit_length() - 1) if abs_max > 0.0 else _SMALLEST_BIN_EXPONENT
    exponent = max(exponent, _SMALLEST_BIN_EXPONENT)
    indices = np.ldexp(magnitudes, -exponent).astype(np.int64)
    counts = np.bincount(indices, minlength=BINS).astype(np.int64)
    return ActivationStatistics(abs_max, bool(values.min() >= 0.0), exponent, counts)


def merge(first: ActivationStatistics, second: ActivationStatistics) -> ActivationStatistics:
    """Statistics of both sets of values together; commutative and associative, bit for bit."""
    exponent = max(first.bin_exponent, second.bin_exponent)
    return ActivationStatistics(
        max(first.abs_max, second.abs_max),
        first.non_negative and second.non_negative,
        exponent,
        _widened(first, exponent) + _widened(second, exponent),
    )


def activation_range(statistics: ActivationStatistics, method: RangeMethod) -> ActivationRange:
    """Range of one tensor; never beyond its largest value."""
    bins: float
    if method is RangeMethod.MIN_MAX:
        bins = BINS
    elif method is RangeMethod.ENTROPY:
        bins = _least_divergence(statistics.counts)
    else:
        cumulative = np.cumsum(statistics.counts)
        wanted = math.ceil(cumulative[-1] * PERCENTILES[method] / 100.0)
        bins = int(np.searchsorted(cumulative, wanted)) + 1
    return ActivationRange(min(bins * 2.0**statistics.bin_exponent, statistics.abs_max), statistics.non_negative)


def activation_ranges(
    statistics: Mapping[str, ActivationStatistics], method: RangeMethod = RangeMethod.MIN_MAX
) -> dict[str, ActivationRange]:
    """Ranges by tensor name."""
    return {name: activation_range(of_tensor, method) for name, of_tensor in statistics.items()}


def collect(
    model: onnx.ModelProto, tensors: Collection[str], batches: Iterable[Batch], threads: int = 0
) -> dict[str, ActivationStatistics]:
    """Statistics of the named float tensors while ONNX Runtime runs the float engine over all batches.

    model: float engine with one uint8 input; tensors: names inside its graph; batches: (n, c, h, w) uint8 each.
    threads: of ONNX Runtime; 0: one per core.
    Raises CalibrationError where there are no tiles, a tensor does not exist, or its values are not finite.
    """
    names = sorted(tensors)
    session = _observing_session(model, names, threads)
    input_name = session.get_inputs()[0].name
    statistics: dict[str, ActivationStatistics] = {}
    for batch in batches:
        for name, values in zip(names, session.run(names, {input_name: batch}), strict=True):
            try:
                seen = observe(values)
            except ValueError as error:
                raise CalibrationError(f"tensor {name}: {error}; check the checkpoint's weights") from error
            statistics[name] = merge(statistics[name], seen) if name in statistics else seen
    if names and not statistics:
        raise CalibrationError("got no calibration tiles, expected some hundreds, defects among them")
    return statistics


def _least_divergence(counts: npt.NDArray[np.int64]) -> int:
    """Number of bins whose int8 levels tell most of what the histogram tells: the least Kullback-Leibler divergence.

    For every number of bins i from LEVELS on, P is the histogram clipped to them (what lies beyond counts in the last one),
    Q the same bins spread over LEVELS levels and each level back over its bins that are not empty; KL(P || Q) is
    sum p log(p / q). Of equals the widest range is kept.
    Bin 0 holds the zeros of a ReLU, which every range represents exactly: it gets no more than its neighbour has.
    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, "Entropy Calibration - pseudocode"; bin 0: NVIDIA
    pytorch-quantization, calib/histogram.py, which sets it to its neighbour.
    """
    counts = np.append(min(counts[0], counts[1]), counts[1:])
    total = int(counts.sum())
    occupied = np.flatnonzero(counts)
    if not total or occupied[-1] < LEVELS:
        return BINS
    stops = np.arange(LEVELS, occupied[-1] + 2)
    # All sums over a level are differences of running sums: 129 of them for each candidate instead of up to 2048 bins.
    edges = -(-stops[:, None] * np.arange(LEVELS + 1) // LEVELS)
    in_level = np.diff(_running(counts)[edges], axis=1)
    bins_in_level = np.diff(_running(counts > 0)[edges], axis=1)
    last, inside = counts[stops - 1], _running(counts)[stops]
    clipped = last + (total - inside)
    # q of a bin in a level is (in_level / bins_in_level) / inside, p is count / total, of the last bin clipped / total
    log_q = np.where(in_level > 0, _log(in_level) - _log(bins_in_level), 0.0)
    cross = (in_level * log_q).sum(axis=1) + (clipped - last) * log_q[:, -1] - total * _log(inside)
    own = _running(counts * _log(counts))[stops] - last * _log(last) + clipped * _log(clipped) - total * math.log(total)
    # where the last bin is empty but values lie beyond, q is 0 and p is not: the divergence is infinite
    divergence = np.where((last == 0) & (clipped > 0), np.inf, own - cross) / total
    return int(stops[len(stops) - 1 - np.argmin(divergence[::-1])])


def _running(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _log(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Natural logarithm; 0 of 0, which every term here multiplies with 0."""
    return np.log(np.maximum(np.asarray(values, np.float64), 1.0))


def _widened(statistics: ActivationStatistics, exponent: int) -> npt.NDArray[np.int64]:
    """The histogram counted in bins 2**exponent wide, exponent not below its own."""
    indices = np.arange(BINS) >> min(exponent - statistics.bin_exponent, BINS.bit_length())
    widened = np.zeros(BINS, np.int64)
    np.add.at(widened, indices, statistics.counts)
    return widened


def _observing_session(model: onnx.ModelProto, names: list[str], threads: int) -> ort.InferenceSession:
    """A session of the model that has the named tensors among its outputs."""
    produced = {output for node in model.graph.node for output in node.output}
    unknown = [name for name in names if name not in produced]
    if unknown:
        raise CalibrationError(f"got tensor names that the engine does not have: {', '.join(unknown)}")
    observing = onnx.ModelProto()
    observing.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    observing.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(observing.SerializeToString(), options, providers=["CPUExecutionProvider"])
