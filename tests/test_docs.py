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
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS, SETTINGS

from nanoevolve_jax.cli import COMMANDS
from nanoevolve_jax.terminal.mistakes import parses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = re.compile(r"^\s*nanoevolve (?!COMMAND|help)([a-z.]+)")
OURS = ("nanoevolve_jax", "benchmarks", "model", "examples")


def commands():
    """Every command of ours in a fenced block or between backticks, as (page, words)."""
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for line in [*lines, *re.findall(r"`(python -m [^`]+)`", text)]:
            line = PROGRAM.sub(r"python -m nanoevolve_jax.\1", line)
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
            assert parses(value, settings[path]) or value in ("...", "N"), settings[path].limits


MADE = re.compile(
    r"(runs|cache|DIR|proposals|code|evidence|nanoevolve)(/|$)"
)  # by commands, so not in the checkout
GROUPS = {path.partition(".")[0] for path in SETTINGS if "." in path}


def mentions():
    """Everything between single backticks outside of blocks, as (page, text)."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for text in sorted(set(re.findall(r"`([^`\n]+)`", prose))):
            yield page, text


def what_it_names(page, text):
    """The (kind, exists) of what stands between backticks; None if it names nothing of ours."""
    path = re.match(r"([\w.-]+/[\w./-]*)( |$)", text)
    if path and not MADE.match(path[1]) and path[1] not in ("tokens/s", "gain/$"):
        return "file", any((place / path[1]).exists() for place in (ROOT, page.parent))
    if field := re.fullmatch(r"--config\.([a-z_.]+)(=.*)?", text):
        return "field", field[1] in {*SETTINGS, *CONFIRM_SETTINGS}
    name = re.fullmatch(r"(?:config\.)?(([a-z]+)\.[a-z_0-9]+)(=.*)?", text)
    if name and name[2] in GROUPS:
        module = (ROOT / name[1].replace(".", "/")).with_suffix(".py")
        return "field or module", name[1] in {*SETTINGS, *COMMANDS} or module.exists()
    if command := re.match(r"nanoevolve ([a-z.]+)", text):
        return "command", command[1] in (*COMMANDS, "help")
    if target := re.fullmatch(r"make (\w+)", text):
        return "target", f"\n{target[1]}:" in (ROOT / "Makefile").read_text()
    return None


def test_files_fields_commands_and_targets_that_the_documents_name_exist():
    found = [(page.name, text, what_it_names(page, text)) for page, text in mentions()]
    named = [row for row in found if row[2]]
    assert {kind for *_, (kind, _) in named} >= {"file", "field", "field or module", "target"}
    assert not [row for row in named if not row[2][1]]


def test_flags_of_commands_in_the_documents_exist(shell, tmp_path):
    used = {}
    for parameter in commands():
        module, *arguments = parameter.values[0]
        if module.startswith("nanoevolve_jax."):
            flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            own = {flag for flag in flags if not flag.startswith("--config")}
            used.setdefault(module.removeprefix("nanoevolve_jax."), set()).update(own)
    assert len(used) >= 10
    for command, flags in used.items():
        words = shell(command, "--help", folder=tmp_path).output.split()
        assert not [flag for flag in flags if {flag, flag.replace("--no", "--")}.isdisjoint(words)]


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
