"""`rust-edge export`: a trained checkpoint to a verified, quantized, self-describing bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers
    from export.job import Exported
    from export.recipe import ExportRecipe

RECIPES = (".yaml", ".yml")


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("export", help="a trained checkpoint to a verified bundle", description=__doc__)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT|RECIPE.yaml",
        help="PyTorch (state dict, training checkpoint, TorchScript, .pt2, safetensors, pickled module), Keras (.keras, .h5, "
        "model.json, SavedModel) or ONNX; or a recipe that says everything below",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="name the architectures with what they expect, and end")
    add(
        "--arch",
        metavar="NAME",
        help="architecture of the checkpoint (see --list); any-segmenter, any-classifier: the network that the file itself holds",
    )
    add("--weights", metavar="FILE", help="weights of a Keras model.json (default: the file of its name beside it)")
    add("--trust-checkpoint", action="store_true", default=None, help="load a file that runs code of its own when it is loaded")
    data = parser.add_argument_group("data")
    data.add_argument("--calibration", metavar="DIR", help="representative images, defects among them")
    data.add_argument(
        "--masks", metavar="DIR", help="masks of the same names, class index per pixel: what quality is measured on"
    )
    data.add_argument(
        "--labels", metavar="folders|CSV", help="a classifier's labels: by folders named as classes, or image,class"
    )
    data.add_argument(
        "--simulated", metavar="N", help="gate of cells: so many strips of the simulator beside the images (2048x2048 px)"
    )
    network = parser.add_argument_group("network, where neither checkpoint nor architecture says it")
    network.add_argument("--classes", metavar="A,B,...", help="class names in index order, background or clean steel first")
    network.add_argument("--clean", metavar="NAME", help="a classifier's class that is no defect (default: the first)")
    network.add_argument("--tile", metavar="HxW", help="height and width of the network's input")
    network.add_argument("--strip-tile", metavar="HxW", help="lines and columns of the strip that one tile covers, then resized")
    network.add_argument("--mean", metavar="M,...", help="grey level 0..255 taken off each channel; as many as the network has")
    network.add_argument("--deviation", metavar="D,...", help="grey levels that each channel is divided by")
    network.add_argument("--pixel-threshold", metavar="P", help="sigmoid segmenter: a class is there from this probability on")
    network.add_argument("--gate-threshold", metavar="P", help="classifier: a tile is defective from this probability on")
    result = parser.add_argument_group("result")
    result.add_argument("--precision", metavar="{fp32,fp16,int8}", help="default: fp32")
    result.add_argument("--max-drop", metavar="POINTS", help="what it may lose: points of mean IoU, or of recall (default: 0.5)")
    result.add_argument(
        "--recall", metavar="R", help="share of defective tiles, or regions, that a gate lets through (default: 0.999)"
    )
    result.add_argument(
        "--defect-px", metavar="N", help="so many defect pixels make a tile defective (default: 16), or a region to be found (8)"
    )
    result.add_argument("--head", metavar="{logits,probabilities,mask}", help="what the engine answers (default: logits)")
    result.add_argument("--qat", metavar="RECIPE", help="fine-tune where INT8 alone loses too much (configs/export/qat.yaml)")
    result.add_argument(
        "--target",
        metavar="{onnx,tensorrt,triton}",
        help="tensorrt also builds the engine, where a GPU is; triton also writes "
        "a model for Triton, of a BUNDLE that is there already without exporting again",
    )
    result.add_argument("--model-repository", metavar="DIR", help="Triton's (default: model_repository)")
    result.add_argument("--speed-s", metavar="S", help="processor time for measuring speed; 0: none (default: 2)")
    result.add_argument("--threads", metavar="N", help="threads of one inference (default: one per core)")
    result.add_argument("--out", metavar="BUNDLE", help="folder to make")
    result.add_argument("--force", action="store_true", default=None, help="replace a bundle that stands there")
    add("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="change one value of a recipe")
    add("--explain", action="store_true", help="print how the network streams: operator, stride, lag, state")
    add("--json", action="store_true", help="print the report for machines")
    parser.set_defaults(handler=_export)


_GIVEN = (
    "arch", "weights", "trust_checkpoint", "calibration", "masks", "labels", "simulated", "classes", "clean", "tile",
    "strip_tile", "mean", "deviation", "pixel_threshold", "gate_threshold", "precision", "max_drop", "recall", "defect_px",
    "head", "qat", "target", "model_repository", "speed_s", "threads", "out", "force",
)  # fmt: skip


def _export(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args.json)
    if args.target == "triton" and args.checkpoint and (_is_bundle(args.checkpoint) or _is_nothing(args)):
        return _write_model(args)
    recipe = read_arguments(args)
    # torch takes seconds to import: only once this command really runs. Until then there is nothing to clean up, and an
    # exception in the middle of a library's set-up aborts the process with a page of its own
    with _handling({signal.SIGINT: signal.SIG_DFL}):
        from export.passes.streaming import format_table
        from export.report import format_text, render_json
        from export.run import run_recipe
    # SIGTERM, and SIGHUP of a terminal that closes, end the work as an interrupt does: by an exception, which cleans up
    with _handling({signal.SIGTERM: _leave, signal.SIGHUP: _leave}):
        try:
            exported, notes = run_recipe(recipe)
        except (KeyboardInterrupt, SystemExit):
            print("rust-edge: export: stopped before its end; nothing half-written is left", file=sys.stderr)
            raise
    if args.json:
        print(render_json(exported.report), end="")
        return 0
    if args.explain:
        print(format_table(exported.streamed) if exported.streamed else f"not streamed: {exported.refused}", end="\n\n")
    print(format_text(exported.report))
    print("\n".join(["", *_ending(recipe, exported), *notes]))
    return 0


def _is_bundle(named: str) -> bool:
    from edge.bundle import MANIFEST, shipped_bundles

    return (Path(named) / MANIFEST).is_file() or named in shipped_bundles()


def _is_nothing(args: argparse.Namespace) -> bool:
    """Neither a file nor a bundle: a bundle's name that is mistyped."""
    return not args.arch and not Path(args.checkpoint).exists()


def _write_model(args: argparse.Namespace) -> int:
    """The Triton model of a bundle that is there."""
    from edge.bundle import open_bundle
    from edge.errors import ConfigError
    from export.bundle import Existing
    from export.triton import MODEL_REPOSITORY, told_of_model, write_model

    given = [name for name in _GIVEN if getattr(args, name) is not None and name not in ("target", "model_repository", "force")]
    if given or args.overrides or args.explain or args.json:
        flags = [f"--{name.replace('_', '-')}" for name in given] or ["--set, --explain or --json"]
        raise ConfigError(f"export: got {', '.join(flags)} for {args.checkpoint}, which is a bundle already; leave it out")
    bundle = open_bundle(args.checkpoint)
    repository = Path(args.model_repository) if args.model_repository else MODEL_REPOSITORY
    print(told_of_model(bundle, write_model(bundle, repository, Existing.REPLACE if args.force else Existing.KEEP)))
    return 0


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # what a shell shows for a process that a signal ended


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals so meanwhile. What somebody else has set stays: nohup ignores SIGHUP."""
    ours = threading.current_thread() is threading.main_thread()  # others may set none
    found = {number: signal.getsignal(number) for number in handlers if ours}
    before = {number: old for number, old in found.items() if old in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        for number in before:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def read_arguments(args: argparse.Namespace) -> ExportRecipe:
    """The recipe that the command line makes, on top of the file that it names. Raises ConfigError."""
    from edge.errors import ConfigError
    from export.recipe import load_recipe, parse_recipe

    given: dict[str, Any] = {name: getattr(args, name) for name in _GIVEN if getattr(args, name) is not None}
    if args.checkpoint and args.checkpoint.lower().endswith(RECIPES):
        return load_recipe(Path(args.checkpoint), args.overrides, given)
    if args.checkpoint:
        given["checkpoint"] = args.checkpoint
    named = {override.partition("=")[0] for override in args.overrides}
    missing = [name for name in ("checkpoint", "arch", "calibration", "out") if name not in given.keys() | named]
    if missing:
        flags = ", ".join(name.upper() if name == "checkpoint" else f"--{name}" for name in missing)
        raise ConfigError(
            f"export: got no {flags}; expected CHECKPOINT --arch NAME --calibration DIR --out BUNDLE, or RECIPE.yaml"
        )
    return parse_recipe({}, "export", args.overrides, given)


def _ending(recipe: ExportRecipe, exported: Exported) -> list[str]:
    # as a shell takes it, and as no shipped bundle's name
    path = shlex.quote(str(recipe.out if len(recipe.out.parts) > 1 else f"./{recipe.out}"))
    classifier = exported.bundle.manifest.kind == "classifier"
    use = "--gate" if classifier and exported.bundle.manifest.gate else "--bundle"
    return [f"written in {exported.seconds:.0f} s: {path}; in a browser: {path}/report.html; use it: {use} {path}"]


def _list(as_json: bool) -> int:
    from export.networks import ARCHITECTURES, GENERIC_NAMES

    listed = list(ARCHITECTURES.values())
    if as_json:
        documents = [
            {
                "name": a.name,
                "kind": a.kind,
                "framework": a.framework,
                "classes": a.classes,
                "activation": a.activation,
                "tile": a.tile,
                "reduce": a.reduce,
                "cell": a.cell,
                "strip_tile": a.strip_tile,
                "preparation": [step.model_dump() for step in a.preparation],
                "summary": a.summary,
            }
            for a in listed
        ]
        print(json.dumps(documents, indent=1))
        return 0
    for a in listed:
        size = f"{a.tile[0]}x{a.tile[1]}" if all(a.tile) else "any size"
        steps = ", ".join(step.kind for step in a.preparation)
        classes = f"classes {', '.join(a.classes) or 'from the checkpoint or --classes'}"
        classes += (
            f" ({a.activation})" if a.framework != "any" else "; so are size and normalisation: --tile, --mean, --deviation"
        )
        print(f"{a.name:<15} {a.kind:<10} {a.framework:<6} {size}")
        print(f"    {a.summary}\n    {classes}" + (f"; each tile first: {steps}" if steps else ""))
    print(f"and any network of a library: {', '.join(GENERIC_NAMES)}")
    return 0
