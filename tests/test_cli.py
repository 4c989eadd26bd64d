"""The entry point of all commands, and their help."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

import nanoevolve_jax
from nanoevolve_jax.cli import COMMANDS
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS, SETTINGS

SCREEN = 24


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_a_module(name):
    assert importlib.util.find_spec(f"nanoevolve_jax.{name}") is not None


def help_of(shell, tmp_path, *arguments):
    code, output, errors = shell(*arguments, folder=tmp_path)
    assert (code, errors) == (0, "")
    assert all(len(line) <= 80 for line in output.splitlines() if "--config=" not in line)
    return output


def test_without_a_command_all_of_them_are_named(shell, tmp_path):
    overview = help_of(shell, tmp_path)
    assert all(f"  {name} " in overview for name in COMMANDS)
    assert len(overview.splitlines()) <= SCREEN
    for arguments in (["--help"], ["-h"], ["help"]):
        assert help_of(shell, tmp_path, *arguments) == overview


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_names_the_command(shell, tmp_path, name):
    output = help_of(shell, tmp_path, name, "--help")
    assert len(output.splitlines()) <= SCREEN
    assert f"nanoevolve {name} " in output
    assert "nanoevolve_jax" not in output
    assert help_of(shell, tmp_path, "help", name) == output
    assert help_of(shell, tmp_path, name, "-h") == output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings"), [("search", SETTINGS), ("confirm", CONFIRM_SETTINGS)]
)
def test_the_full_help_names_every_field_with_its_default_and_bounds(
    shell, tmp_path, name, settings
):
    output = help_of(shell, tmp_path, name, "--helpfull")
    rows = [line.split()[:2] for line in output.splitlines() if line.startswith("  ")]
    words = " ".join(output.split())
    for path, setting in settings.items():
        assert [path, str(setting.default)] in rows
        assert f"{setting.meaning}; {setting.limits}" in words


def test_what_a_command_does_stands_behind_it(shell, tmp_path):
    lines = help_of(shell, tmp_path, "show", "--help").splitlines()
    commands = [line for line in lines if line.startswith("  nanoevolve show ")]
    assert len(commands) == 3
    assert len({len(line) - len(line.split("  ")[-1].lstrip()) for line in commands}) == 1


def test_a_flag_of_a_command_stands_in_its_help_with_its_default(shell, tmp_path):
    output = help_of(shell, tmp_path, "export", "--help")
    assert "  --isolation  required " in output
    assert "--config" not in output


def test_help_is_help_among_other_arguments_and_not_after_two_dashes(shell, tmp_path):
    asked = help_of(shell, tmp_path, "search", "--config.seed=1", "--help", "--nope")
    assert asked == help_of(shell, tmp_path, "search", "--help")
    code, output, errors = shell("search", "--", "--help", folder=tmp_path)
    assert (code, output) == (2, "")
    assert "argument '--help' is not a flag" in errors


def test_the_version_is_one_line_and_that_of_the_project(shell, repository, tmp_path):
    line = help_of(shell, tmp_path, "--version")
    assert line == (
        f"nanoevolve {metadata.version('nanoevolve-jax')} "
        f"(jax {metadata.version('jax')}, Python {sys.version.split()[0]})\n"
    )
    # Only pyproject.toml states the version.
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert metadata.version("nanoevolve-jax") == project["version"]
    assert not hasattr(nanoevolve_jax, "__version__")


def test_the_entry_imports_no_jax_and_the_library_still_offers_its_names(repository):
    script = (
        "import json, sys, nanoevolve_jax, nanoevolve_jax.cli as cli\n"
        "cli.main(['--help']), cli.main(['--version'])\n"
        "before = [n for n in ('jax', 'numpy', 'absl', 'rich') if n in sys.modules]\n"
        "found = [hasattr(nanoevolve_jax, n) for n in nanoevolve_jax.__all__]\n"
        "print(json.dumps([before, all(found), 'jax' in sys.modules]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == [[], True, True]


def test_python_m_is_the_same_command(repository, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(repository), "PATH": ""},
            capture_output=True,
            text=True,
        )

    whole, alone = (
        run("nanoevolve_jax", "search", "--config.seed=x"),
        run("nanoevolve_jax.search", "--config.seed=x"),
    )
    assert (whole.returncode, whole.stderr) == (alone.returncode, alone.stderr)
    assert "config.seed must be an integer from 0 to 65,535, got 'x'" in whole.stderr
    assert "  python -m nanoevolve_jax.search --config" in run("nanoevolve_jax.search", "-h").stdout


# Configurations -----------------------------------------------------------------------------


def plan(shell, folder, *arguments):
    """Runs `nanoevolve search` with an invalid field, so that only the config is read."""
    return shell("search", *arguments, "--config.search.survivors=1000", folder=folder).errors


def test_a_packaged_config_is_found_from_any_folder(shell, tmp_path):
    for arguments in ([], ["--config=configs/screen.py:cpu"], ["--config", "configs/screen.py"]):
        errors = plan(shell, tmp_path, *arguments)
        assert (
            "config.search.survivors must be at most config.search.population, 8, got 1000"
            in errors
        )


def test_a_config_on_disk_goes_before_the_packaged_one(shell, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "screen.py").write_text(
        "from nanoevolve_jax.configs import base\n"
        "def get_config(population='7'):\n"
        "    config = base.get_config()\n"
        "    config.search.population = int(population)\n"
        "    return config\n"
    )
    for arguments, expected in [
        ([], 7),
        (["--config=configs/screen.py"], 7),
        (["--config=./configs/screen.py:5"], 5),
        (["--config", str(tmp_path / "configs/screen.py:6")], 6),
    ]:
        assert f"must be at most config.search.population, {expected}," in plan(
            shell, tmp_path, *arguments
        )
