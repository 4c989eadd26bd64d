"""Eight virtual devices: an uneven population, and candidates that several devices share.

A separate process takes the measurements, by `eight_devices.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Returns the figures that the script printed."""
    tests = Path(__file__).parent
    programs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs"))}
    done = subprocess.run(
        [sys.executable, str(tests / "eight_devices.py"), str(tmp_path_factory.mktemp("eight"))],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(tests.parent)} | programs,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_eleven_candidates_on_eight_devices_are_blind_to_order_and_padding(figures):
    uneven = figures["uneven"]
    assert uneven["jobs"] == uneven["distinct"] == 11
    assert uneven["order_changes_nothing"]
    assert uneven["loss_gap"] < 1e-5  # relative to one device that trains one candidate at a time


def test_every_mesh_gives_the_loss_curve_of_one_device(figures):
    first, last = figures["first_and_last_loss"]
    assert last < 0.8 * first  # the model learns
    assert set(figures["curves"]) == {"8x1", "4x2", "2x4", "1x8"}
    for mesh, gap in figures["curves"].items():
        assert gap < 1e-5, mesh


def test_the_matrix_optimizers_state_is_divided_among_the_devices(figures):
    for data, shares in figures["shares"].items():
        for moment in ("initial", "restored", "trained"):
            # Second moments of such small matrices, 3 % of the state, are not divided.
            assert 1 / int(data) <= shares[moment] < 1 / int(data) + 0.035, (data, moment)


def test_every_device_orthogonalises_its_share_of_the_matrices(figures):
    whole, halves = figures["products"]["1"], figures["products"]["2"]
    assert whole == {"4": 15}  # three products in each of five iterations
    assert halves == {"2": 15}


def test_a_run_on_the_data_axis_resumes_bitwise_and_compiles_nothing_more(figures):
    resumed = figures["resumed"]
    assert resumed["said"][0].endswith("0 jobs finished and step 4 of the next 2")
    assert resumed["same"]
    assert not resumed["compiled"]


def test_each_mesh_compiles_each_program_once(figures):
    compiled = figures["compiled"]
    assert compiled["train_segment"] == compiled["init_population"] == 5
