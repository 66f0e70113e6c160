"""The Dockerfiles hold nothing that can't be run outside a container, and take nothing that isn't there."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
ALLOWED = {"ARG", "FROM", "COPY", "RUN", "USER", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_run_scripts_alone(path):
    found = instructions(path)
    assert {name for name, _ in found} <= ALLOWED
    copied: set[str] = set()
    for name, rest in found:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in (ROOT / ".dockerignore").read_text().split(), source
                copied |= {str(file.relative_to(ROOT)) for file in (ROOT / source).rglob("*")} | {source}
        if name in ("RUN", "ENTRYPOINT"):
            scripts = re.findall(r"/opt/detection3d/(docker/\w+\.sh)", rest)
            commands = rest.split("&&") if name == "RUN" else [rest]
            assert len(scripts) == len(commands), rest
            for script in scripts:
                assert script in copied, f"{script} is run before it is copied"
                assert os.access(ROOT / script, os.X_OK), script
    assert [rest for name, rest in found if name == "USER"] == ["65532:65532"], "not root"
    last_run = max(index for index, (name, _) in enumerate(found) if name == "RUN")
    assert [name for name, _ in found].index("USER") > last_run


def test_compose_runs_the_images_shut_off():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert {service["build"]["dockerfile"] for service in services.values()} == {
        str(path.relative_to(ROOT)) for path in DOCKERFILES
    }
    for service in services.values():
        assert service["network_mode"] == "none"
        assert service["read_only"] is True
        assert service["volumes"][0].endswith(":/in:ro")


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.stem)
def test_scripts_say_how_they_are_called(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.stem == "evaluate":  # it hands everything on
        return
    result = subprocess.run([str(script), "--nonsense", "more", "still more"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "usage: " in result.stderr


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("")
    for script in ("evaluation_environment.sh", "train_environment.sh"):
        result = subprocess.run([str(DOCKER / script), str(tmp_path)], capture_output=True, text=True)
        assert result.returncode == 1
        assert "is there and is no virtual environment" in result.stderr
    result = subprocess.run([str(DOCKER / "slim_environment.sh"), str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
