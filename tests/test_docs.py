"""The documents: their commands parse, their links and pages hold, their patch applies and runs."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.base import CONFIRM_SETTINGS, SETTINGS
from nanoevolve_jax.execution.settings import allowed
from nanoevolve_jax.terminal.mistakes import parses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("nanoevolve_jax", "benchmarks", "model", "examples")


def commands():
    """Every command of ours in a fenced block or between backticks, as (page, words)."""
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for line in [*lines, *re.findall(r"`(python -m [^`]+)`", text)]:
            words = shlex.split(line.strip(), comments=True) if "python -m " in line else []
            if words[:2] == ["python", "-m"] and words[2].split(".")[0] in OURS:
                yield pytest.param(words[2:], id=f"{page.stem}: {' '.join(words[2:])[:60]}")


@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_documents_exists_and_its_settings_do(words):
    module, *arguments = words
    assert importlib.util.find_spec(module) is not None
    settings = CONFIRM_SETTINGS if module.endswith(".confirm") else SETTINGS
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--config":
            assert (ROOT / value.partition(":")[0]).is_file()
        elif name.startswith("--config."):
            path = name.removeprefix("--config.")
            assert path in settings
            assert parses(value, settings[path]) or value in ("...", "N"), allowed(settings[path])


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "tutorial" / "own_sensor.html").exists()


@pytest.mark.slow
def test_the_sensor_of_the_tutorial_can_be_added_and_is_recorded(tmp_path):
    copy = tmp_path / "copy"
    for name in ("nanoevolve_jax", "model", "data", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    patch = ROOT / "docs" / "tutorial" / "own_sensor.patch"
    subprocess.run(["git", "apply", patch], cwd=copy, check=True)
    fields = {
        **{"train.steps": 20, "train.segment_steps": 10, "train.batch_size": 2},
        **{"search.generations": 1, "search.population": 2, "search.survivors": 2},
        **{"data.cache_dir": tmp_path / "cache", "data.max_train_tokens": 200_000},
        **{"workdir": tmp_path / "run", "model.n_layer": 1, "model.n_embd": 32},
    }
    flags = [f"--config.{path}={value}" for path, value in fields.items()]
    command = [sys.executable, "-m", "nanoevolve_jax.search", *flags]
    ran = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "run" / "telemetry" / "annealing.npz") as telemetry:
        assert np.ptp(telemetry["weight_norm_ema"]) > 0.1
    record = json.loads((tmp_path / "run" / "archive.jsonl").read_text().splitlines()[0])
    assert record["spec"]["control"]["coefficients"]["weight_norm_ema"] == 0
