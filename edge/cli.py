"""The one entry point, `rust-edge`: finds the command, runs it, and turns its errors into one line and an exit code.

Only the command that is called for is imported, so that `rust-edge --help` answers at once. Commands of upper floors
come from the entry-point group `rust_edge.commands`: `NAME = "module:register"`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader
from typing import TYPE_CHECKING

from edge import __version__
from edge.errors import RustEdgeError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DISTRIBUTION = "rust-edge"
ENTRY_POINTS = "rust_edge.commands"
INTERRUPTED = 130  # what a shell shows for a process that SIGINT ended: 128 + 2
BROKEN_PIPE = 141  # and SIGPIPE: 128 + 13
OWN_COMMANDS = {
    "demo": "embedded broker, simulated strip with known defects, alerts as a subscriber gets them, a score card",
    "run": "the daemon of a station: camera to events, until it is stopped",
    "inspect": "images or folders as one strip through the same pipeline; writes events, mask, overlay, tables",
    "evaluate": "quality of a bundle on labelled images: IoU and Dice, or accuracy and recall",
    "subscribe": "print alerts as they arrive from a broker",
    "bundles": "shipped and given bundles, what each is and its measured quality",
    "cameras": "cameras that answer, and what one of them can be set to",
    "config": "check, show or describe a station file",
    "bench": "what this box carries with this bundle and station file, measured, and what it means",
    "doctor": "what this box has and lacks, and how fast a strip it can carry",
}
"""Commands of this floor: `edge.commands.NAME`, each with `register(subparsers)` that sets the default `handler`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code of the process. Misuse of the command line leaves by SystemExit(2), as argparse has it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in words if not word.startswith("-")), None)
    try:
        parsed = _parser(wanted).parse_args(words)
        code = parsed.handler(parsed)
        sys.stdout.flush()
    except RustEdgeError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _fail(_missing_extra(error, wanted), RustEdgeError.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone (`rust-edge bundles | head -1`)
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        # a full disk, a folder that is gone: the world's fault, wherever it shows
        code = _fail(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", RustEdgeError.exit_code)
        _drop_output()
    except MemoryError:
        return _fail(
            "not enough memory; expected smaller images or tiles, fewer threads, or more memory", RustEdgeError.exit_code
        )
    return int(code or 0)


def _drop_output() -> None:
    """Python flushes stdout once more at exit: where nobody takes it, give it somewhere to go.

    Source: Python documentation, signal, "Note on SIGPIPE".
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"{DISTRIBUTION}: {line}", file=sys.stderr)
    return code


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=DISTRIBUTION, description="Line-scan defect inspection at the edge.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    upper = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    for name, summary in OWN_COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"edge.commands.{name}").register(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    for name, point in upper.items():
        if name == wanted:
            register: Callable[[Subparsers], None] = point.load()
            register(subparsers)
        else:
            subparsers.add_parser(name, help=_first_sentence(point.module))
    return parser


def _first_sentence(module: str) -> str:
    """What a module says of itself, read without importing it."""
    spec = importlib.util.find_spec(module)
    loader = spec.loader if spec else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    said = ast.get_docstring(ast.parse(source)) if source else None
    first = said.splitlines()[0].rstrip(".") if said else ""
    return first.split("`: ")[-1].replace("%", "%%")


def _missing_extra(error: ModuleNotFoundError, command: str | None) -> str:
    """The line for a command whose optional parts are not installed. An own module that is missing is a defect: raised on."""
    missing = (error.name or "").partition(".")[0]
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    if missing in ("edge", "calibration", "export", "training", ""):
        raise error
    extras = metadata.get_all("Provides-Extra") or []
    if command in extras:
        return f"{command} needs {missing}, which is not installed; expected the extra: pip install '{DISTRIBUTION}[{command}]'"
    return f"{command} needs {missing}, which is not installed; expected a whole installation: pip install {DISTRIBUTION}"


if __name__ == "__main__":
    sys.exit(main())
