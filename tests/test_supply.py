"""What the image is made of: locked by hashes, complete, and listed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from tests.reader import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["deploy/requirements.txt", "deploy/build-requirements.txt"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OF_PYTHON = ("pip", "setuptools")
"""What comes with a virtual environment, in some versions."""


def locked(lock: str) -> dict[NormalizedName, Version]:
    """Read a lock as it is for this system: name -> version."""
    text = (ROOT / lock).read_text().replace("\\\n", "")
    entries = [Requirement(line.partition("--hash")[0]) for line in text.splitlines() if re.match(r"\w", line)]
    assert all(len(entry.specifier) == 1 for entry in entries)
    return {
        canonicalize_name(entry.name): Version(next(iter(entry.specifier)).version)
        for entry in entries
        if entry.marker is None or entry.marker.evaluate()
    }


@pytest.mark.parametrize(
    ("lock", "needed"),
    [
        (LOCKS[0], PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["http"]),
        (LOCKS[1], PROJECT["build-system"]["requires"]),
    ],
    ids=["program", "build"],
)
def test_the_lock_has_what_the_project_needs(lock: str, needed: list[str]) -> None:
    """Each dependency of expirer[http], and of its build, is locked at a version that pyproject.toml allows."""
    versions = locked(lock)

    assert [] == [text for text in needed if not allows(Requirement(text), versions)]


def allows(requirement: Requirement, versions: dict[NormalizedName, Version]) -> bool:
    """Say whether what is locked satisfies a requirement."""
    version = versions.get(canonicalize_name(requirement.name))
    return version is not None and version in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS)
def test_each_file_is_known_by_its_hash(lock: str) -> None:
    """Each entry has hashes, and no entry or option says from where it comes."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    entry = r"[\w-]+==\S+( ; [^-\n]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+"

    assert re.fullmatch(f"({entry})+", text)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the commands of the Dockerfile on what it copies; return the environment that they leave."""
    folder = tmp_path_factory.mktemp("docker")
    source, dist = folder / "src", folder / "dist"
    source.mkdir()
    dist.mkdir()
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        subprocess.run(["/bin/cp", "-r", *(ROOT / name for name in names.split()), source], check=True)
    (source / "requirements.txt").rename(dist / "requirements.txt")
    steps: list[str] = re.findall(r"^RUN (pip .*)$", DOCKERFILE, re.MULTILINE)
    assert ["install", "wheel", "install", "install"] == [step.split()[1] for step in steps]
    for name, some in (("build", steps[:2]), ("image", steps[2:])):
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        for step in some:
            command = f"{folder / name}/bin/{step.replace('/dist', shlex.quote(str(dist)))}"
            done = subprocess.run(["/bin/sh", "-c", command], cwd=source, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
    return folder / "image"


def said_by(program: Path, *arguments: str) -> str:
    """Return what a program prints."""
    return subprocess.check_output([program, *arguments], text=True)


def test_what_is_locked_is_all_that_is_installed(image: Path) -> None:
    """The Dockerfile installs the program, which runs, and the locked versions, which suffice, and nothing else."""
    listing = json.loads(said_by(image / "bin" / "pip", "list", "--format", "json"))
    versions = {canonicalize_name(found["name"]): Version(found["version"]) for found in listing}
    program = versions.pop(canonicalize_name("expirer"))

    assert {name: version for name, version in versions.items() if name not in OF_PYTHON} == locked(LOCKS[0])
    assert f"expirer {program}\n" == said_by(image / "bin" / "expirer", "--version")
    assert "No broken requirements found.\n" == said_by(image / "bin" / "pip", "check")


def test_the_list_of_parts_is_the_lock(image: Path, tmp_path: Path) -> None:
    """What `make sbom` writes has each locked dependency by name, version and licence, and what needs which."""
    (recipe,) = re.findall(r"^\t\$\(BIN\)/(cyclonedx-py .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = recipe.replace("dist/sbom.json", f"{tmp_path}/sbom.json").replace("dist/image", str(image)).split()
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, check=True)
    bom = json.loads((tmp_path / "sbom.json").read_text())
    parts = [part for part in bom["components"] if part["name"] not in OF_PYTHON]
    (needs,) = [of["dependsOn"] for of in bom["dependencies"] if of["ref"] == "root-component"]

    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "expirer")
    assert locked(LOCKS[0]) == {canonicalize_name(part["name"]): Version(part["version"]) for part in parts}
    assert [] == [part["name"] for part in parts if not part.get("licenses")]
    assert [True] == [name.startswith("redis==") for name in needs if "redis" in name]
