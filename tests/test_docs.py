"""Commands, flags, settings, files and links in the docs exist, and the tutorial's patch works."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nanoevolve_jax.cli import COMMANDS
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS, SETTINGS
from nanoevolve_jax.execution.settings import is_valid

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PACKAGES = ("nanoevolve_jax", "benchmarks", "model", "examples")
# Files and folders that commands write.
WRITTEN = re.compile(r"(runs|cache|ledgers|DIR|proposals|code|evidence|telemetry|nanoevolve)(/|$)")
GROUPS = {path.partition(".")[0] for path in SETTINGS if "." in path}


def commands() -> Iterator:
    """Yields every command in a fenced block or between backticks as a list of words."""
    for page in PAGES:
        text = page.read_text()
        lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
        for line in [*lines, *re.findall(r"`(python -m [^`]+)`", text)]:
            line = re.sub(
                r"^\s*nanoevolve (?!COMMAND|help)([a-z.]+)", r"python -m nanoevolve_jax.\1", line
            )
            words = shlex.split(line.strip(), comments=True) if "python -m " in line else []
            if words[:2] == ["python", "-m"] and words[2].split(".")[0] in PACKAGES:
                yield pytest.param(words[2:], id=f"{page.stem}: {' '.join(words[2:])[:60]}")


@pytest.mark.parametrize("words", commands())
def test_a_command_in_the_docs_exists_and_its_settings_are_valid(words):
    module, *arguments = words
    assert importlib.util.find_spec(module) is not None
    settings = CONFIRM_SETTINGS if module.endswith(".confirm") else SETTINGS
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--config":
            assert (ROOT / value.partition(":")[0]).is_file()
        elif name.startswith("--config."):
            path = name.removeprefix("--config.")
            kind = type(settings[path].default)
            assert value in ("...", "N", "true") or is_valid(kind(value), settings[path])


def test_flags_in_the_docs_exist(shell, tmp_path):
    used: dict[str, set[str]] = {}
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


def kind_and_existence(page: Path, text: str) -> tuple[str, bool] | None:
    """Returns the kind of a quoted name and whether it exists, or None for other text."""
    path = re.match(r"([\w.-]+/[\w./-]*)( |$)", text)
    if path and not WRITTEN.match(path[1]) and path[1] not in ("tokens/s", "gain/$"):
        return "file", any((folder / path[1]).exists() for folder in (ROOT, page.parent))
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


def test_files_fields_commands_and_targets_in_the_docs_exist():
    kinds, missing = set(), []
    for page in PAGES:
        for text in re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text())):
            if kind := kind_and_existence(page, text):
                kinds.add(kind[0])
                missing += [] if kind[1] else [(page.name, text)]
    assert kinds == {"file", "field", "field or module", "command", "target"}
    assert not missing


def test_links_between_pages_lead_to_files_and_headings():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not link.startswith("http") and heading not in ("only-light", "only-dark"):
                lines = target.read_text().splitlines() if heading and target.exists() else []
                titles = [re.sub(r"[^\w -]", "", line).strip().lower() for line in lines]
                if not target.exists() or (heading and heading.replace("-", " ") not in titles):
                    broken.append((page.name, link))
    assert not broken


def test_the_patch_of_the_tutorial_applies():
    check = ["git", "apply", "--check", ROOT / "docs" / "tutorial" / "own_sensor.patch"]
    assert subprocess.run(check, cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
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
    search = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert search.returncode == 0, search.stderr
    with np.load(tmp_path / "run" / "telemetry" / "annealing.npz") as telemetry:
        assert np.ptp(telemetry["weight_norm_ema"]) > 0.1
    record = json.loads((tmp_path / "run" / "archive.jsonl").read_text().splitlines()[0])
    assert record["spec"]["control"]["coefficients"]["weight_norm_ema"] == 0
