"""Calls of this Python's pip, and the error of all that makes a wheelhouse."""

from __future__ import annotations

import os
import subprocess
import sys


class RefusalError(Exception):
    """What was got, what is expected, what to do."""


def pip(*words: str, doing: str) -> None:
    """Run this Python's pip. Raises RefusalError with what it said last."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", words[0], "--quiet", *words[1:]]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore", "PIP_NO_INPUT": "1"}
    )
    if ran.returncode == 0:
        return
    if "No module named pip" in ran.stderr:
        raise RefusalError(f"{sys.executable} has no pip; expected one: on Debian and Ubuntu apt-get install python3-pip")
    said = [
        line for line in ran.stderr.splitlines() if line.strip() and not line.startswith(("WARNING", "DEPRECATION", "[notice]"))
    ]
    raise RefusalError("\n".join([f"{doing}: pip failed; nothing was written. It said:", *said[-8:]]))
