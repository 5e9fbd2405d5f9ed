"""What is shipped: the wheel, the sdist and the image work away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

import expirer
from tests.inventory import Inventory
from tests.reader import ROOT
from tests.servers import RedisServer
from tests.test_supply import LOCKS, locked

pytestmark = pytest.mark.slow

DOCKERFILE = (ROOT / "Dockerfile").read_text()
OF_PYTHON = ("pip", "setuptools")
"""What comes with a virtual environment, in some versions."""
SOURCES = ["expirer", "lua", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"]
"""Enough for a build; CHANGELOG and the like are in the sdist, and nothing needs them."""


def run(
    arguments: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program that sees nothing of the checkout."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**outside, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def copy_project(folder: Path, names: Sequence[str]) -> Path:
    """Copy some of the project's files; return the folder."""
    folder.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def files_of(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel, its metadata aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def package_files() -> set[str]:
    """Return what a wheel must hold: the package, the page, the mark that it is typed, and every script."""
    modules = {f"expirer/{path.relative_to(ROOT / 'expirer')}" for path in (ROOT / "expirer").rglob("*.py")}
    page = {"expirer/web/page.html", "expirer/web/page.css"}
    return {*modules, *page, "expirer/py.typed", *(f"expirer/lua/{path.name}" for path in (ROOT / "lua").iterdir())}


def image_files() -> list[str]:
    """Return what the Dockerfile copies from the project."""
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for names in copies for name in names.split()]


@dataclass(frozen=True, slots=True)
class Image:
    """What the commands of the Dockerfile leave: the build's environment, the wheel, and the image's environment."""

    builder: Path
    wheel: Path
    environment: Path

    @property
    def program(self) -> Path:
        """The program of the image."""
        return self.environment / "bin" / "expirer"

    def build(self, source: Path, to: Path) -> Path:
        """Build a wheel from a folder or an sdist; RuntimeError if that fails."""
        flags = ("--no-build-isolation", "--no-deps", "--wheel-dir")
        must(run([self.builder / "bin" / "pip", "wheel", *flags, to, source], cwd=to.parent))
        (wheel,) = to.glob("*.whl")
        return wheel


def must(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed; RuntimeError if it failed."""
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Run the commands of the Dockerfile on what it copies: the one build and the one installation of all tests."""
    folder = tmp_path_factory.mktemp("docker")
    source, dist = copy_project(folder / "src", image_files()), folder / "dist"
    dist.mkdir()
    (source / "requirements.txt").rename(dist / "requirements.txt")
    steps: list[str] = re.findall(r"^RUN (pip .*)$", DOCKERFILE, re.MULTILINE)
    assert ["install", "wheel", "install", "install"] == [step.split()[1] for step in steps]
    for name, some in (("build", steps[:2]), ("image", steps[2:])):
        must(run([sys.executable, "-m", "venv", folder / name], cwd=folder))
        for step in some:
            command = f"{folder / name}/bin/{step.replace('/dist', shlex.quote(str(dist)))}"
            must(run(["/bin/sh", "-c", command], cwd=source))
    (wheel,) = dist.glob("*.whl")
    return Image(folder / "build", wheel, folder / "image")


def test_the_wheel_is_the_package(image: Image) -> None:
    """The wheel holds every module, every script and py.typed, and nothing else: no tests."""
    assert package_files() == files_of(image.wheel)


def test_the_sdist_builds_the_same_wheel(image: Image, tmp_path: Path) -> None:
    """The wheel built from the sdist holds what the one built from the checkout does."""
    source = copy_project(tmp_path / "src", SOURCES)
    must(run([image.builder / "bin" / "python", "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=source))
    (sdist,) = tmp_path.glob("*.tar.gz")

    assert package_files() == files_of(image.build(sdist, tmp_path / "dist"))


def test_a_build_without_the_scripts_fails(image: Image, tmp_path: Path) -> None:
    """No wheel is built that lacks the scripts."""
    folder = copy_project(tmp_path / "src", [name for name in image_files() if name != "lua"])

    with pytest.raises(RuntimeError, match="lua"):
        image.build(folder, tmp_path / "dist")


def test_what_is_locked_is_all_that_is_installed(image: Image, tmp_path: Path) -> None:
    """The image has the program, which runs, and the locked versions, which suffice, and nothing else."""
    pip = image.environment / "bin" / "pip"
    listing = json.loads(must(run([pip, "list", "--format", "json"], cwd=tmp_path)))
    versions = {canonicalize_name(found["name"]): Version(found["version"]) for found in listing}
    version = versions.pop(canonicalize_name("expirer"))

    assert {name: one for name, one in versions.items() if name not in OF_PYTHON} == locked(LOCKS[0])
    assert f"expirer {version}\n" == must(run([image.program, "--version"], cwd=tmp_path))
    assert f"{version}" == expirer.__version__
    assert "No broken requirements found.\n" == must(run([pip, "check"], cwd=tmp_path))


def test_the_installed_program_expires(image: Image, own_server: RedisServer, tmp_path: Path) -> None:
    """`expirer once` of the installed wheel gives a due reservation's units back."""
    with own_server.client() as client:
        inventory = Inventory(client)
        inventory.stock("sku", available=7, reserved=3)
        id_ = inventory.hold("sku", quantity=3, expires_at=time.time_ns() // 1_000_000 - 1)
        done = run([image.program, "once"], cwd=tmp_path, environment={"EXPIRER_REDIS_URL": own_server.url})

        assert done.returncode == 0, done.stderr
        assert inventory.status(id_) == "Expired"
        assert inventory.counters("sku") == (10, 0)
        inventory.assert_conserved({"sku": 10})


def test_the_installed_program_has_every_command(image: Image, own_server: RedisServer, tmp_path: Path) -> None:
    """The commands of the installed wheel work with what they brought along, scripts included: text and JSON."""
    with own_server.client() as client:
        inventory = Inventory(client)
        inventory.stock("sku", available=7, reserved=3)
        inventory.hold("sku", "three", 1_800_000_000_000, "o1:sku")
        environment = {"EXPIRER_REDIS_URL": own_server.url}

        def works(command: str, code: int = 0) -> str:
            done = run([image.program, *command.split()], cwd=tmp_path, environment=environment)
            assert (code, "") == (done.returncode, done.stderr), command
            return done.stdout

        assert '"kind": "quantity_invalid"' in works("audit --json", 1)
        works("pause --reason outage")
        assert json.loads(works("status --json", 1))["shards"][0]["paused"]["reason"] == "outage"
        works("resume")
        assert "rights: expire.lua works" in works("check", 1)
        assert json.loads(works("check --json", 1).splitlines()[0])["what"] == "connection"
        assert json.loads(works("pending --json"))["reservation_id"] == "o1:sku"
        client.zrem(inventory.keys.index, "o1:sku")
        client.hset(inventory.keys.quarantine, "o1:sku", "reason=quantity_invalid at=1 score=1800000000000")
        for command in ("show o1:sku", "quarantine show o1:sku", "quarantine list"):
            assert json.loads(works(f"{command} --json"))["shard"] == 0
            assert "o1:sku" in works(command)
        run(
            [image.program, "quarantine", "release", "o1:sku", "--quantity", "3"], cwd=tmp_path, environment=environment
        )
        assert inventory.counters("sku") == (10, 0)


def test_the_image_gets_what_it_copies() -> None:
    """.dockerignore lets exactly those files through that the Dockerfile copies."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in lines
    assert {f"!{name}" for name in image_files()} == {line for line in lines if line.startswith("!")}
