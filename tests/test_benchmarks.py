"""Benchmarks run end to end on tiny models, and the tables of the docs match their output."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from test_search import write_corpus

from benchmarks import document, optimizer
from benchmarks.search import Parts
from benchmarks.timing import interleaved, ratio
from nanoevolve_jax.configs import screen
from nanoevolve_jax.execution.settings import make_task

TINY = "model.n_layer=1,model.n_embd=24,model.sequence_len=16,data.vocab_size=300"


def run(repository, tmp_path, name, *flags):
    """Runs a benchmark and returns its output and its results."""
    path = tmp_path / "out" / f"{name}.json"
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", f"--out={path}", "--steps=2", *flags],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    written = json.loads(path.read_text())
    assert written["command"].startswith(f"python -m benchmarks.{name} --steps=2")
    assert "--out" not in written["command"]
    assert written["device"]["platform"] == "cpu" and written["versions"]["jax"]
    return process.stdout, written["results"]


@pytest.mark.slow
def test_population_compares_lanes_and_virtual_devices_until_there_are_enough(repository, tmp_path):
    flags = [f"--set={TINY}", "--max_lanes=2", "--rounds=2"]
    output, results = run(repository, tmp_path, "population", *flags)
    one, two = results["cpu"]["cells"]
    assert (one["lanes"], two["lanes"], one["times_one_lane"]) == (1, 2, 1)
    assert 0 < one["utilisation"] < 1 and one["compile_seconds"] > 0
    assert two["peak_bytes"] > one["peak_bytes"] and two["times_one_lane"] > 0
    assert results["cpu"]["virtual_devices"]["times_in_turn"] > 0
    assert results["cpu"]["ended"] in output
    assert f"{two['tokens_per_second']:,.0f}" in output


def test_a_cell_that_would_take_too_long_is_skipped_with_a_message(repository, tmp_path):
    flags = ["--variants=d12", "--rounds=1", "--seconds=60"]
    output, results = run(repository, tmp_path, "population", *flags)
    assert results["d12"]["cells"] == [] and results["d12"]["virtual_devices"] is None
    assert results["d12"]["ended"].startswith("1 lanes: skipped: about ")
    assert results["d12"]["ended"] in " ".join(output.split())


@pytest.mark.slow
def test_optimizer_judges_its_goals_by_the_training_step(repository, tmp_path):
    output, results = run(repository, tmp_path, "optimizer", f"--set={TINY}", "--rounds=3")
    rows, goals = results["cpu"]["subjects"], results["cpu"]["goals"]
    assert len(rows) == 6
    traced, specialised = rows[optimizer.BASELINE], rows[optimizer.SPECIALISED]
    assert traced["state_bytes"] == specialised["state_bytes"]
    assert traced["update_flops"] > specialised["update_flops"]
    assert all(goal["goal"] in output for goal in goals)
    assert all(g["quartiles"][0] <= g["found"] <= g["quartiles"][1] for g in goals[:-1])


@pytest.mark.slow
def test_search_runs_with_cold_and_warm_caches_and_its_parts_add_up(repository, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    changes = f"--set={TINY},train.steps=4,search.generations=1,data.corpus=parquet:{corpus}"
    output, results = run(repository, tmp_path, "search", changes, "--set=data.folds=3")
    first, second = results["cpu"]["first run"], results["cpu"]["second run"]
    assert first["xla_compilations"]["train_segment"] == 1
    assert second["xla_compilations"]["train_segment"] == 0
    assert second["wall_seconds"] < first["wall_seconds"]
    for result in (first, second):
        assert result["candidates"] == 3 + 8
        assert sum(result["parts"].values()) == pytest.approx(result["wall_seconds"], rel=0.02)
    assert f"{second['outside_share']:.1%} of the second run" in output


@pytest.mark.slow
def test_a_run_on_a_cpu_repeats_bit_for_bit_under_all_flags(repository, tmp_path):
    _, results = run(repository, tmp_path, "repeat", f"--set={TINY}")
    assert len(results["cpu"]) == 3
    for row in results["cpu"].values():
        assert row["same_in_one_process"] and row["same_in_two_processes"]


def test_subjects_take_turns_and_a_ratio_within_a_round_cancels_a_slow_spell():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert times["a"].shape == times["b"].shape == (3,)
    slow = np.array([1.0, 10.0, 1.0])
    assert ratio(3.0 * slow, slow) == pytest.approx(3.0)


def test_time_inside_a_nested_part_counts_only_for_the_nested_one():
    parts = Parts()
    with parts.timed("outer"):
        time.sleep(0.02)
        with parts.timed("inner"):
            time.sleep(0.05)
            parts.on_event("/jax/core/compile/backend_compile_duration", 0.03)
    assert parts.seconds["outer"] == pytest.approx(0.02, abs=0.015)
    assert parts.seconds["inner"] == pytest.approx(0.02, abs=0.015)
    assert sum(parts.seconds.values()) == pytest.approx(0.07, abs=0.03)


def test_an_iteration_counts_three_products_of_every_matrix():
    """A layer of width w has four square matrices, two of w x 4w, and a gate of 12 x heads."""
    config = screen.get_config()
    config.model.n_layer, config.model.n_embd = 1, 64

    def products(short, long):
        return 2 * short * short * long + 2 * short**3 + 2 * short * short * long

    expected = 4 * products(64, 64) + 2 * products(64, 256) + products(2, 12)
    assert expected < optimizer.iteration_flops(make_task(config)) < 1.05 * expected


@pytest.mark.parametrize(
    "page",
    [
        "BENCHMARKS.md",
        "CONFIGURATION.md",
        "POLICY.md",
        pytest.param("EVALUATION.md", marks=pytest.mark.slow),
    ],
)
def test_generated_tables_of_the_docs_are_up_to_date(repository, page):
    text = (repository / "docs" / page).read_text()
    assert document.filled(text, repository / "results") == text


def test_a_table_is_empty_until_there_is_a_result_and_then_holds_it(tmp_path):
    text = "before\n<!-- gpu/repeat -->\nold\n<!-- end -->\nafter\n"
    empty = document.filled(text, tmp_path)
    assert "not measured" in empty and "old" not in empty
    row = {"same_in_one_process": True, "same_in_two_processes": False, "step_ms": 1.5}
    result = {
        "command": "python -m benchmarks.repeat",
        "device": {"kind": "GPU of the test", "count": 1, "cores": 16},
        "versions": {"jax": "1.2.3"},
        "results": {"d4": {"default": row | {"to_default": 1.0}}},
    }
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "repeat.json").write_text(json.dumps(result))
    full = document.filled(empty, tmp_path)
    assert "| `:d4`, default | same | differs | 1.50 | 1.00 |" in full
    assert "GPU of the test, 16 cores, JAX 1.2.3" in full
    assert full.startswith("before\n") and full.endswith("<!-- end -->\nafter\n")
