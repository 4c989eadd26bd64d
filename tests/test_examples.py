"""The examples run and do what their docstrings promise."""

import json
import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import nanoevolve_jax as ne


@pytest.fixture
def example(repository, tmp_path):
    """Returns a function that runs an example in an empty folder and returns its output."""

    def run(name, *arguments):
        done = subprocess.run(
            [sys.executable, str(repository / "examples" / name), *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "100"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_every_example_has_its_command_line_and_a_test(repository):
    tests = (repository / "tests" / "test_examples.py").read_text()
    examples = sorted((repository / "examples").glob("*.py"))
    assert examples
    for path in examples:
        assert f"  python examples/{path.name}" in path.read_text()
        assert f'example("{path.name}"' in tests


def test_a_policy_trains_another_model_in_an_optax_loop(example, tmp_path):
    spec = tmp_path / "winner.json"
    spec.write_text(json.dumps(ne.spec_to_json(ne.PRESETS["annealing"])))
    output = example("optax_loop.py", f"--spec={spec}", "--steps=100")
    gates = [float(gate) for gate in re.findall(r"gate (\S+)", output)]
    assert gates == sorted(gates)  # this policy becomes more conservative over time
    assert gates[-1] > gates[0] + 0.5
    (right,) = re.findall(r"(\S+)% of 450 test digits", output)
    assert float(right) > 90


@pytest.mark.slow
def test_a_search_runs_on_text_files(example, repository, tmp_path):
    files = [repository / "README.md", *(repository / "docs").glob("*.md")]
    output = example("own_corpus.py", "--steps=4", *files)
    assert "generation 1: best" in output
    folder = tmp_path / "runs" / "own_corpus"
    training, validation = (
        pq.read_table(folder / "corpus" / f"{name}.parquet")["text"].to_pylist()
        for name in ("shard_00000", "shard_00001")
    )
    assert f"{len(training)} pieces of text for training, {len(validation)} for val" in output
    words = " ".join(training + validation).split()
    assert len(words) == sum(len(file.read_text().split()) for file in files)
    assert json.loads((folder / "search" / "summary.json").read_text())["evaluated"] == 7


@pytest.mark.slow
def test_a_sweep_compares_a_search_for_every_combination(example, tmp_path):
    tiny = {
        "data.max_train_tokens": 100_000,
        "data.vocab_size": 300,
        "model.n_layer": 1,
        "model.n_embd": 24,
        "train.steps": 4,
        "search.generations": 1,
        "search.population": 2,
        "search.survivors": 2,
    }
    rates = ["--over=seed=3", "--over=recipe.matrix_lr=0.5,2.0"]
    output = example("sweep.py", *rates, "--", *(f"--config.{k}={v}" for k, v in tiny.items()))
    table = [line for line in output.splitlines() if "│" in line]
    results = []
    for rate in ("0.5", "2.0"):
        folder = tmp_path / "runs" / "sweep" / f"seed=3,recipe.matrix_lr={rate}"
        summary = json.loads((folder / "summary.json").read_text())
        config = json.loads((folder / "config.json").read_text())["config"]
        assert (config["seed"], config["recipe"]["matrix_lr"]) == (3, float(rate))
        (row,) = [line for line in table if folder.name in line]
        assert f"{summary['baseline_val_bpb']:.4f}" in row
        assert f"{summary['best']['val_bpb']:.4f}" in row
        results.append((summary["best"]["val_bpb"], table.index(row)))
    assert sorted(results) == sorted(results, key=lambda pair: pair[1])  # best candidate first
