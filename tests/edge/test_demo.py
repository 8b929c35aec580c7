"""The demonstration, whole: embedded broker, camera, shipped engines, a subscriber in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("iotcore", reason="the embedded broker is not installed: pip install 'rust-edge[demo]'")


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_every_planted_defect_is_found_every_event_arrives_and_every_line_is_accounted_for():
    done = demo("--seconds", "4", "--line-rate-hz", "1000", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    card = json.loads(done.stdout)
    assert card["passed"]
    assert card["found"] == card["planted"]
    assert sum(card["planted"].values()) >= 3
    assert card["events_missing"] == 0
    assert card["coverage"]["total"] == 4000
    assert card["position_error_mm_max"] < 5.0


def test_alerts_and_the_score_card_are_printed_for_people():
    done = demo("--seconds", "3", "--line-rate-hz", "1000", "--seed", "21")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " opened " in done.stdout
    assert "lines/s" in done.stdout
    assert done.stdout.rstrip().endswith("PASSED")


def test_a_camera_far_too_fast_sheds_lines_says_so_and_fails():
    done = demo("--seconds", "1", "--line-rate-hz", "100000", "--json")
    card = json.loads(done.stdout)
    assert card["coverage"]["shed"] > 0
    assert card["coverage"]["total"] == 100_000
    assert done.returncode == (0 if card["missed"] == 0 and card["events_missing"] == 0 else 1)


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--line-rate-hz", "-1")])
def test_impossible_arguments_are_refused(arguments):
    done = demo(*arguments)
    assert done.returncode == 2
    assert "expected 1 to 3600 s" in done.stderr
