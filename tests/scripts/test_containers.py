"""What can be held of the images without building them: arguments, what they copy, who they run as; and of the compose file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.cli import OWN_COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instruction and what follows, comments gone, continued lines joined."""
    lines = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    words = re.sub(r"\\\n\s*", "", lines).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in words if line.strip())]


def given(file: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(file) if instruction == name]


def test_there_is_an_image_for_the_cpu_and_one_for_tensorrt() -> None:
    assert [file.stem for file in FILES] == ["cpu", "tensorrt"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_base_is_an_argument_of_every_stage(file: Path) -> None:
    assert instructions(file)[0][0] == "ARG"
    assert instructions(file)[0][1].startswith("BASE=")
    assert given(file, "FROM") == ["${BASE} AS build", "${BASE}"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_everything_that_is_copied_exists_and_is_let_through_to_the_build(file: Path) -> None:
    ignored, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    sources = [word for rest in given(file, "COPY") if not rest.startswith("--from") for word in rest.split()[:-1]]
    assert {"pyproject.toml", "README.md", "LICENSE"} < {*sources}
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in kept
    # every package that the wheel is made of
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {*sources}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_container_is_rust_edge_and_runs_a_station_as_nobody_in_particular(file: Path) -> None:
    (entry,), (command,), (user,) = (given(file, name) for name in ("ENTRYPOINT", "CMD", "USER"))
    assert json.loads(entry) == ["rust-edge"]
    assert json.loads(command) == ["run", "-c", "/etc/rust-edge/station.yaml"]
    assert user == "10001:10001"
    created = " ".join(given(file, "RUN"))
    assert "useradd --uid 10001" in created
    (volumes,) = given(file, "VOLUME")
    assert all(f" {folder} " in f"{created} " for folder in json.loads(volumes))
    assert given(file, "WORKDIR")[-1] in json.loads(volumes)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_health_is_asked_with_a_command_that_there_is(file: Path) -> None:
    (check,) = given(file, "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert words[0] == "rust-edge"
    assert words[1] in OWN_COMMANDS
    assert words[-1] == "/etc/rust-edge/station.yaml"


def test_the_extras_that_images_install_are_the_projects_own() -> None:
    named = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert named is not None
    extras = re.findall(r"^(\w+) = ", named[1], re.MULTILINE)
    asked = {file.stem: re.findall(r"EXTRAS=(\w+)", file.read_text()) for file in FILES}
    assert asked == {"cpu": ["openvino"], "tensorrt": ["tensorrt"]}
    assert {name for names in asked.values() for name in names} <= {*extras}


def test_compose_names_files_that_exist_and_volumes_that_it_makes() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            build = service["build"]
            assert (FOLDER / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file()
        for volume in service["volumes"]:
            source = re.sub(r"\$\{STATION:-(.*?)\}", r"\1", volume).split(":")[0]
            if source == "./passwd":
                continue  # the user's; its head says how
            assert (FOLDER / source).exists() if "/" in source else source in COMPOSE["volumes"], f"{name}: {volume}"


def test_compose_stations_write_only_where_images_have_volumes() -> None:
    for file in FILES:
        service = COMPOSE["services"]["cpu" if file.stem == "cpu" else "jetson"]
        inside = {volume.split(":")[-1 if volume.count(":") == 1 else -2] for volume in service["volumes"]}
        (volumes,) = given(file, "VOLUME")
        assert {path for path in json.loads(volumes) if path != "/etc/rust-edge"} < inside
        assert service["read_only"]


def test_the_broker_in_compose_has_the_store_and_passwords_of_the_shipped_configuration() -> None:
    settings = (ROOT / "configs" / "mosquitto" / "mosquitto.conf").read_text()
    volumes = COMPOSE["services"]["mosquitto"]["volumes"]
    (store,) = re.findall(r"^persistence_location (\S+?)/?$", settings, re.MULTILINE)
    (passwords,) = re.findall(r"^password_file (\S+)$", settings, re.MULTILINE)
    assert f"broker:{store}" in volumes
    assert f"./passwd:{passwords}:ro" in volumes
    assert store in COMPOSE["services"]["mosquitto"]["command"][-1]
