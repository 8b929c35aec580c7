"""A bundle on the device: opened by path or shipped name, verified file by file, and asked its golden tiles."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from edge.errors import BundleError
from edge.manifest import FORMAT_VERSION, Manifest, Streaming
from edge.scores import float_scores
from edge.sessions import Session

MANIFEST = "manifest.yaml"
MODEL = "model.onnx"
STREAM = "stream.onnx"
GOLDEN = "golden.npz"
SHIPPED = Path(__file__).parent / "bundles"

SCORE_TOLERANCE = 0.01
"""Share of the scores' spread by which a score may differ: what kernels of another shape or processor do (docs: promise 1)."""

LEAST_SPREAD = 127
"""Steps that the spread of scores in integers counts as at least, half of what they can be: then one step more or less, of which
there are 15 in 1,000 between ONNX Runtime and OpenVINO, is within the tolerance also where all golden tiles are clean steel."""

OUTLIERS = {"fp32": 0.0, "fp16": 0.001, "int8": 0.001}
"""Share of scores that may differ by more. A value at the border between two integer steps may round either way on another
processor; one step of a deep tensor then moves a few scores by more than the tolerance: 1 in 20,000 between ONNX Runtime's
integer kernels and its float ones on the same Q/DQ file. Another engine moves most of them."""

ROUNDED_ELSEWHERE = {"kserve": 0.03, "tensorrt": 0.03}
"""The same of an INT8 bundle's golden tiles on backends whose kernels round where they like, not where this station's rewrites
have it. Golden tiles are few: one such step may move a tenth of one tile's scores. The shipped INT8 U-Net's file as it stands, in
ONNX Runtime as a server runs it: 9 % of one tile, 1.1 % of all, and no label. Another engine moves more: every 500th weight of
one layer 8 steps off 13 %, one scale 1 % off 17 %, the FP32 U-Net 21 %."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Tiles that the engine was asked when it was verified, and what it answered.

    patches: (n, h, w) uint8; a tile is its patch reflected to the engine's input size, down and to the right.
    scores: (n, channels, rows, columns) of a segmenter, every `step`-th row and column of the patch; (n, channels) of a
        classifier; (n, channels, rows, columns) of one that scores cells, all of the tile's. Logits as float16.
    labels: (n, h, w) uint8, best class per pixel of the patch; (n,) of a classifier; (n, rows, columns) of one that scores cells.
    """

    patches: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    step: int

    def tiles(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Engine inputs, (n, 1, height, width) uint8."""
        below, right = height - self.patches.shape[1], width - self.patches.shape[2]
        return np.pad(self.patches, ((0, 0), (0, below), (0, right)), mode="reflect")[:, None]

    def answer(
        self, scores: npt.NDArray[np.generic], activation: str, head: str
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """What is kept of an engine's scores, (sampled scores, labels) as described above, and by how much each label won."""
        patch = np.asarray(scores, np.float32)
        if patch.ndim == 4:
            patch = patch[:, :, : self.patches.shape[1], : self.patches.shape[2]]
        sampled = patch[:, :, :: self.step, :: self.step] if patch.ndim == 4 else patch
        if head == "mask":
            return sampled, patch[:, 0].astype(np.uint8), np.full_like(patch[:, 0], np.inf)
        if activation == "sigmoid":  # the background has no channel: it wins where no logit is above 0
            nothing = 0.0 if head == "logits" else 0.5
            patch = np.concatenate([np.full_like(patch[:, :1], nothing), patch], axis=1)
        best = np.sort(patch, axis=1)
        return sampled, patch.argmax(axis=1).astype(np.uint8), best[:, -1] - best[:, -2]


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """How far an engine's answers are from the stored ones.

    max_difference: of the scores, as a share of their spread. outliers: share of scores beyond SCORE_TOLERANCE.
    changed: labels that differ though their two best scores are further apart than the tolerance. labels: how many there are.
    """

    max_difference: float
    outliers: float
    changed: int
    labels: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose files are what its manifest says."""

    path: Path
    manifest: Manifest
    sha256: str
    """Of the manifest file, which holds the hashes of all the others: names this engine in events."""

    @property
    def model_path(self) -> Path:
        """The engine for tiles."""
        return self.path / MODEL

    @property
    def stream_path(self) -> Path | None:
        """The engine for lines; None where the network cannot stream."""
        return self.path / STREAM if self.manifest.streaming else None

    def streaming(self) -> tuple[Path, Streaming]:
        """The engine for lines, and what the manifest says of it. Raises BundleError where the network cannot stream."""
        if self.manifest.streaming is None:
            raise BundleError(f"{self.path}: holds no stream; expected dense: slabs")
        return self.path / STREAM, self.manifest.streaming

    def golden(self) -> Golden:
        """Golden tiles. Raises BundleError."""
        path = self.path / GOLDEN
        try:
            with np.load(path, allow_pickle=False) as stored:
                golden = Golden(stored["patches"], stored["scores"], stored["labels"], int(stored["step"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{path}: no golden tiles ({error}); expected patches, scores, labels, step: export again"
            ) from error
        if golden.patches.ndim != 3 or golden.patches.dtype != np.uint8 or not len(golden.patches):
            raise BundleError(
                f"{path}: patches are {golden.patches.dtype} {golden.patches.shape}, expected (n, h, w) uint8: export again"
            )
        return golden


def shipped_bundles() -> list[str]:
    """Names of the bundles that came with this installation."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def open_bundle(path_or_name: str | Path) -> Bundle:
    """Open and verify a bundle: a shipped name, or a folder (`./steel-unet-int8` where a folder has a shipped name).

    Every file's sha256 is compared with the manifest's. Raises BundleError that names all faults.
    """
    path = _locate(path_or_name)
    manifest_path = path / MANIFEST
    try:
        text = manifest_path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: holds no {MANIFEST}; expected a bundle written by `rust-edge export`") from error
    except OSError as error:
        raise BundleError(f"{manifest_path}: cannot be read ({error})") from error
    manifest = _parse(text, manifest_path)
    faults = _inconsistencies(manifest) + _altered_files(path, manifest)
    if faults:
        raise BundleError("\n".join(f"{path}: {fault}" for fault in faults))
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_golden(bundle: Bundle, session: Session) -> GoldenAnswer:
    """Ask an engine the golden tiles; BundleError where it answers otherwise than when it was verified.

    Scores may differ by SCORE_TOLERANCE of their spread, an INT8 engine's by more in OUTLIERS of them, or ROUNDED_ELSEWHERE; a
    label may differ only where its two best scores (the background's is 0 where it has no channel) are within that tolerance.
    """
    golden = bundle.golden()
    size = bundle.manifest.input
    scores = session.infer(golden.tiles(size.tile_height, size.tile_width))
    if scores.shape[:2] != (len(golden.patches), golden.scores.shape[1]):
        raise BundleError(
            f"{bundle.path}: {session.backend} answers {scores.shape} to {len(golden.patches)} golden tiles, "
            f"expected ({len(golden.patches)}, {golden.scores.shape[1]}, ...): export again"
        )
    if bundle.manifest.cell is not None and scores.shape != golden.scores.shape:
        raise BundleError(
            f"{bundle.path}: {session.backend} answers the golden tiles with scores {scores.shape}, "
            f"expected {golden.scores.shape}: export again"
        )
    least_spread = 0.0
    if session.steps is not None:
        scores, least_spread = float_scores(scores, session.steps), LEAST_SPREAD * session.steps.size
    answer = compare_golden(golden, scores, bundle.manifest.activation, bundle.manifest.head, least_spread)
    allowed = allowed_labels = OUTLIERS[bundle.manifest.precision]
    if bundle.manifest.precision == "int8":
        allowed = ROUNDED_ELSEWHERE.get(session.backend, allowed)
    if bundle.manifest.head == "mask":  # it does not tell how near another class was
        allowed_labels = max(allowed_labels, SCORE_TOLERANCE)
    if answer.outliers > allowed or answer.changed > allowed_labels * answer.labels:
        raise BundleError(
            f"{bundle.path}: {session.backend} answers the golden tiles otherwise than when the bundle was verified: "
            f"{answer.outliers:.3%} of the scores differ by more than {SCORE_TOLERANCE:.0%} of their spread "
            f"(at most {answer.max_difference:.1%}), {answer.changed} of {answer.labels} labels are others; "
            f"expected {allowed:.1%} and {allowed_labels:.1%} at most: use another backend, or export again"
        )
    return answer


def compare_golden(
    golden: Golden, scores: npt.NDArray[np.generic], activation: str, head: str, least_spread: float = 0.0
) -> GoldenAnswer:
    """Difference between an engine's scores of the golden tiles and the stored ones, whose spread is no less than stated."""
    sampled, labels, margin = golden.answer(scores, activation, head)
    stored = golden.scores.astype(np.float32)
    spread = max(float(stored.max() - stored.min()), least_spread) or 1.0
    difference = np.abs(sampled - stored) / spread
    changed = (labels != golden.labels) & ~(margin <= SCORE_TOLERANCE * spread)
    return GoldenAnswer(
        max_difference=float(difference.max()),
        outliers=float((~(difference <= SCORE_TOLERANCE)).mean()),  # a NaN is an outlier
        changed=int(changed.sum()),
        labels=int(labels.size),
    )


def _locate(path_or_name: str | Path) -> Path:
    shipped = shipped_bundles()
    if str(path_or_name) in shipped:
        return SHIPPED / str(path_or_name)
    path = Path(path_or_name)
    if not path.is_dir():
        raise BundleError(
            f"{path}: no such bundle; expected a folder written by `rust-edge export`, "
            f"or a shipped one: {', '.join(shipped) or 'none is installed'}"
        )
    return path


def _parse(text: bytes, path: Path) -> Manifest:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not YAML ({' '.join(str(error).split())}); expected a manifest: export again") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected keys and values, got {type(document).__name__}: export again")
    version = document.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {version}, this rust-edge reads up to {FORMAT_VERSION}: "
            "update rust-edge on this box, or export with its version"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, fault['loc'])) or '(top)'}: {_explain(fault)}" for fault in error.errors()]
        raise BundleError("\n".join(faults)) from error


def _explain(fault: object) -> str:
    assert isinstance(fault, dict)
    if fault["type"] == "missing":
        return "missing; expected a value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key, got {fault['input']!r}; expected only keys of format version {FORMAT_VERSION}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"got {fault['input']!r}; {message[:1].lower() + message[1:]}"


def _inconsistencies(manifest: Manifest) -> list[str]:
    faults = []
    size = (manifest.input.tile_height, manifest.input.tile_width)
    if any(side % manifest.stride for side in size):
        faults.append(f"tile is {size[0]}x{size[1]}, expected multiples of the stride {manifest.stride}")
    if manifest.halo % manifest.stride:
        faults.append(f"halo is {manifest.halo}, expected a multiple of the stride {manifest.stride}")
    if not manifest.whole_tile and min(size) <= 2 * manifest.halo:
        faults.append(f"tile is {size[0]}x{size[1]}, expected more than twice the halo {manifest.halo}")
    faults += _cell_inconsistencies(manifest, size)
    if manifest.head == "mask" and manifest.kind == "classifier":
        faults.append("head is mask, which a classifier does not have; expected logits or probabilities")
    faults += [
        f"thresholds name {name!r}, expected one of {', '.join(manifest.classes)}"
        for name in manifest.thresholds
        if name not in manifest.classes
    ]
    return faults


def _cell_inconsistencies(manifest: Manifest, size: tuple[int, int]) -> list[str]:
    cell, streaming = manifest.cell, manifest.streaming
    faults = []
    if cell is not None and manifest.kind != "classifier":
        faults.append(f"cell is {cell}, but a {manifest.kind} scores pixels; expected a classifier, or no cell")
    elif cell is not None and (manifest.stride % cell or any(side % cell for side in size)):
        faults.append(f"cell is {cell}, the stride {manifest.stride}, the tile {size[0]}x{size[1]}; expected a divisor of these")
    if streaming is not None and streaming.cell != (cell or 1):
        faults.append(f"the stream scores cells of {streaming.cell} px, the engine of {cell or 1}; expected the same")
    elif streaming is not None and streaming.lag_lines % streaming.cell:
        faults.append(f"the stream's lag is {streaming.lag_lines} lines; expected a multiple of its cell, {streaming.cell}")
    return faults


def _altered_files(path: Path, manifest: Manifest) -> list[str]:
    needed = [MODEL, GOLDEN] + ([STREAM] if manifest.streaming else [])
    faults = [f"{MANIFEST} names no {name}; expected its sha256: export again" for name in needed if name not in manifest.files]
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            faults.append(f"{MANIFEST} names the file {name!r}, expected a name inside the bundle")
            continue
        try:
            got = file_sha256(path / name)
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror}); expected sha256 {expected[:12]}...: copy the bundle again")
            continue
        if got != expected:
            faults.append(f"{name} was altered: sha256 is {got[:12]}..., expected {expected[:12]}...: copy the bundle again")
    return faults
