"""What the README says, done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_prints_the_summary_of_a_strip():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kinds = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("io.rust-edge.")]
    assert kinds[0] == "io.rust-edge.strip.started.v1"
    assert kinds[-1] == "io.rust-edge.strip.finished.v1"


def test_every_page_and_picture_that_the_documents_link_to_is_there():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_that_the_readme_names_is_one():
    named = set(re.findall(r"^    rust-edge (\w+)", README, re.MULTILINE))
    done = subprocess.run([sys.executable, "-m", "edge.cli", "--help"], capture_output=True, text=True, check=True)
    offered = set(re.findall(r"^    (\w+)", done.stdout, re.MULTILINE))
    assert named <= offered
    assert {"run", "inspect", "evaluate", "export", "train", "subscribe", "doctor", "config"} <= named
