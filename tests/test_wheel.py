"""The wheel contains exactly the intended files and works in an empty folder.

It is installed into a new environment that finds its dependencies in the tests' environment.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
FOLDERS = ("configs", "data", "model")  # at the top of the repository, inside the package
TINY = {
    "data.max_train_tokens": 200_000,
    "data.vocab_size": 300,
    "data.validation_rows": 8,
    "model.n_layer": 1,
    "model.n_embd": 24,
    "train.steps": 4,
    "train.segment_steps": 2,
    "search.generations": 1,
    "search.population": 2,
    "search.survivors": 2,
}


class Installed(NamedTuple):
    """An environment in which the wheel is installed."""

    wheel: Path
    folder: Path

    def run(self, program: str, *arguments: str, cwd: Path) -> str:
        """Runs a program of the environment and returns its output."""
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd,
            env=clean,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory):
    """Builds the wheel from the source distribution and installs it."""
    root = tmp_path_factory.mktemp("wheel")
    # A build leaves files beside the sources, and the next build would include them.
    sources = root / "sources"
    for name in (*FOLDERS, "nanoevolve_jax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(repository / name, sources)
    python = [sys.executable, "-m"]
    subprocess.run([*python, "build", "--outdir", root / "dist", sources], check=True)
    (wheel,) = (root / "dist").glob("*.whl")
    assert len(list((root / "dist").glob("*.tar.gz"))) == 1

    folder = root / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    place = next((folder / "lib").glob("python*")) / "site-packages"
    install = ["pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*python, *install, wheel], check=True)
    (place / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(wheel, folder)


def test_the_wheel_installs_every_file_under_one_name(repository, installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    information = {name for name in names if ".dist-info/" in name}
    sources = {
        str(Path(inside) / path.relative_to(repository))
        for folder, inside in [("nanoevolve_jax", ""), *((n, "nanoevolve_jax") for n in FOLDERS)]
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - information == sources
    assert any(name.endswith("entry_points.txt") for name in information)
    assert any(name.endswith("LICENSE") for name in information)


def test_a_project_with_folders_of_the_same_names_keeps_its_own(installed, tmp_path):
    (tmp_path / "model.py").write_text("OWNER = 'user'\n")
    for name in ("data", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'user'\n")
    script = """
import configs, data, model
import nanoevolve_jax.configs, nanoevolve_jax.data, nanoevolve_jax.model.gpt
from nanoevolve_jax import evolved_muon
print(model.OWNER, data.OWNER, configs.OWNER, nanoevolve_jax.model.gpt.__file__)
"""
    *own, file = installed.run("python", "-c", script, cwd=tmp_path).split()
    assert own == ["user"] * 3
    assert Path(file).is_relative_to(installed.folder)


def test_an_installed_search_runs_in_an_empty_folder(installed, tmp_path):
    assert installed.run("nanoevolve", "--version", cwd=tmp_path).startswith("nanoevolve ")

    flags = [f"--config.{path}={value}" for path, value in TINY.items()]
    output = installed.run(
        "nanoevolve", "search", "--config=configs/screen.py", *flags, cwd=tmp_path
    )
    assert "generation 1: best" in output
    # Text and results are written to the current folder.
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "runs"}
    summary = json.loads((tmp_path / "runs/screen/summary.json").read_text())
    assert summary["training_runs"] == summary["evaluated"] == 5
