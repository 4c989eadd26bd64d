"""Every speed benchmark from end to end, so small that it takes seconds; and how they reckon."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from nanoevolve_jax.configs import screen
from test_search import write_corpus

from benchmarks import document, optimizer
from benchmarks.search import Parts
from benchmarks.timing import interleaved, ratio
from nanoevolve_jax.execution.settings import make_task

TINY = "model.n_layer=1,model.n_embd=24,model.sequence_len=16,data.vocab_size=300"


def run(repository, tmp_path, name, *flags):
    """Runs a benchmark; returns what it printed and its document."""
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
    found = json.loads(path.read_text())
    assert found["command"].startswith(f"python -m benchmarks.{name} --steps=2")
    assert "--out" not in found["command"]
    assert found["device"]["platform"] == "cpu" and found["versions"]["jax"]
    return process.stdout, found["results"]


def test_population_measures_a_lane_and_virtual_devices(repository, tmp_path):
    flags = [f"--set={TINY}", "--max_lanes=1", "--rounds=2"]
    output, results = run(repository, tmp_path, "population", *flags)
    (cell,) = results["cpu"]["cells"]
    assert cell["lanes"] == cell["times_one_lane"] == 1
    assert 0 < cell["utilisation"] < 1
    assert cell["compile_seconds"] > 0 and cell["peak_bytes"] > 0
    assert results["cpu"]["virtual_devices"]["times_in_turn"] > 0
    assert f"{cell['tokens_per_second']:,.0f}" in output


def test_what_would_take_too_long_is_left_out_and_said_so(repository, tmp_path):
    flags = ["--variants=d12", "--rounds=1", "--seconds=60"]
    output, results = run(repository, tmp_path, "population", *flags)
    assert results["d12"]["cells"] == [] and results["d12"]["virtual_devices"] is None
    assert results["d12"]["ended"].startswith("1 lanes: left out: about ")
    assert results["d12"]["ended"] in " ".join(output.split())


@pytest.mark.slow
def test_more_lanes_are_timed_against_one_until_there_are_enough(repository, tmp_path):
    output, results = run(repository, tmp_path, "population", f"--set={TINY}", "--max_lanes=2")
    one, two = results["cpu"]["cells"]
    assert (one["lanes"], two["lanes"]) == (1, 2)
    assert two["peak_bytes"] > one["peak_bytes"]
    assert two["times_one_lane"] > 0
    assert results["cpu"]["ended"] == "2 lanes: as many as asked for"
    assert "2 lanes: as many as asked for" in output


@pytest.mark.slow
def test_optimizer_compares_six_and_judges_its_goals_by_the_training_step(repository, tmp_path):
    output, results = run(repository, tmp_path, "optimizer", f"--set={TINY}", "--rounds=3")
    found = results["cpu"]
    assert len(found["subjects"]) == 6
    rows = found["subjects"]
    traced, specialised = rows[optimizer.BASELINE], rows[optimizer.SPECIALISED]
    assert traced["state_bytes"] == specialised["state_bytes"]
    assert traced["update_flops"] > specialised["update_flops"]
    assert all(goal["goal"] in output for goal in found["goals"])
    for goal in found["goals"][:-1]:
        assert goal["quartiles"][0] <= goal["found"] <= goal["quartiles"][1]


@pytest.mark.slow
def test_search_is_run_with_cold_and_warm_caches_and_its_parts_add_up(repository, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    changes = f"--set={TINY},train.steps=4,search.generations=1,data.corpus=parquet:{corpus}"
    output, results = run(repository, tmp_path, "search", changes, "--set=data.folds=3")
    first, second = results["cpu"]["first run"], results["cpu"]["second run"]
    assert first["xla_compilations"]["train_segment"] == 1
    assert second["xla_compilations"]["train_segment"] == 0
    assert second["wall_seconds"] < first["wall_seconds"]
    for found in (first, second):
        assert found["candidates"] == 3 + 8
        assert sum(found["parts"].values()) == pytest.approx(found["wall_seconds"], rel=0.02)
    assert f"{second['outside_share']:.1%} of the second run" in output


@pytest.mark.slow
def test_a_run_repeats_bit_for_bit_under_every_set_of_flags_on_a_cpu(repository, tmp_path):
    _, results = run(repository, tmp_path, "repeat", f"--set={TINY}")
    assert len(results["cpu"]) == 3
    for row in results["cpu"].values():
        assert row["same_in_one_process"] and row["same_in_two_processes"]


# How they reckon ---------------------------------------------------------------------------


def test_rounds_take_every_subject_in_turn():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert times["a"].shape == times["b"].shape == (3,)


def test_a_ratio_is_taken_within_rounds_so_that_a_slow_spell_cancels():
    slow = np.array([1.0, 10.0, 1.0])
    assert ratio(3.0 * slow, slow) == pytest.approx(3.0)


def test_what_a_part_spends_in_another_counts_there_alone():
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
    """One layer of width w: four square matrices and two of w x 4w, and a gate of 12 x heads."""
    config = screen.get_config()
    config.model.n_layer, config.model.n_embd = 1, 64

    def products(short, long):
        return 2 * short * short * long + 2 * short**3 + 2 * short * short * long

    expected = 4 * products(64, 64) + 2 * products(64, 256) + products(2, 12)
    found = optimizer.iteration_flops(make_task(config))
    assert expected < found < 1.05 * expected


# The document ------------------------------------------------------------------------------


def test_the_tables_of_the_document_are_what_the_results_say(repository):
    text = (repository / "docs" / "BENCHMARKS.md").read_text()
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
