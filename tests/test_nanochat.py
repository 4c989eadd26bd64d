"""Import and export of weights, and the parity command on the shipped reference figures."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoevolve_jax.model import nanochat, parity, parity_optimizer
from nanoevolve_jax.model.gpt import GPTConfig, init_params
from nanoevolve_jax.model.reference import BadReference, Reference, drawn_params, write_cut
from nanoevolve_jax.policy.spec import NANOCHAT
from nanoevolve_jax.terminal.console import Console

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = ROOT / "tests" / "reference"
WHOLE = ROOT.parent / "shared" / "reference"
CONFIG = GPTConfig(
    sequence_len=8, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=24, window_pattern="L"
)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 4),
    kv_heads=st.sampled_from([1, 2, 4]),
    vocab=st.integers(1, 130),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_round_trip_is_exact(layers, kv_heads, vocab, dtype):
    config = GPTConfig(8, vocab, layers, 4, kv_heads, 24, "SL", dtype)
    state = drawn_params(config)
    assert sum(array.size for array in state.values()) == config.num_params
    params = nanochat.from_nanochat(state, config)
    again = nanochat.from_nanochat(nanochat.to_nanochat(params, config), config)
    assert_trees_equal(again, params)
    if dtype == "float32":
        assert_trees_equal(nanochat.to_nanochat(params, config), state)


def test_every_parameter_has_exactly_one_place():
    params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    paths = [place.path for place in nanochat.places(CONFIG).values()]
    leaves = [
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    assert sorted(map(str, paths)) == sorted(map(str, leaves))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("lm_head.weight"), "misses lm_head.weight$"),
        (lambda s: s.update(bias=np.zeros(3)), "has unknown bias$"),
        (
            lambda s: s.update({"lm_head.weight": s["lm_head.weight"].T}),
            r"lm_head.weight must have shape \(64, 24\), got \(24, 64\)$",
        ),
    ],
)
def test_wrong_states_get_one_clear_line(change, message):
    state = drawn_params(CONFIG)
    change(state)
    with pytest.raises(ValueError, match=message) as error:
        nanochat.from_nanochat(state, CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a", "b", "muon"])
def test_model_and_candidate_optimizer_compute_what_pytorch_nanochat_computed(name):
    whole = WHOLE / f"reference_{name}.npz"
    checks = parity.run_checks(Reference(whole if whole.exists() else SHIPPED / f"{name}.npz"))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) >= 22


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"ns_steps": 4}, "muon/64x64/ns5/params"),
        ({"nesterov": 0}, "muon/64x64/ns5/params"),
        ({"second_moment": 0}, "muon/64x64/ns5/params"),
        ({"decay": 1}, "muon/64x64/ns5/params"),
        ({"momentum_placement": 1}, "muon/64x64/momentum_buffer"),
    ],
)
def test_a_mistake_in_the_optimizer_fails_the_kernel_checks(change, broken):
    reference = Reference(SHIPPED / "muon.npz")
    spec = NANOCHAT._replace(**change)
    checks = parity_optimizer.check_muon_kernel(reference, "64x64", spec, key="ns5")
    assert broken in [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("name", ["a", "b", "muon"])
def test_shipped_figures_are_cut_from_the_whole_ones(name, tmp_path):
    whole, shipped = WHOLE / f"reference_{name}.npz", Reference(SHIPPED / f"{name}.npz")
    if not whole.exists():
        pytest.skip("the whole reference files are not here")
    write_cut(whole, tmp_path / "cut.npz")
    cut = Reference(tmp_path / "cut.npz").arrays
    assert cut.keys() == shipped.arrays.keys()
    for key, array in cut.items():
        np.testing.assert_array_equal(array, shipped[key])
    if shipped.has_model:
        assert_trees_equal(shipped.params, Reference(whole).params)


def changed(tmp_path, **arrays):
    """Writes a copy of the shipped file `a` with some arrays replaced, or removed if None."""
    kept = Reference(SHIPPED / "a.npz").arrays | arrays
    path = tmp_path / "changed.npz"
    np.savez(path, **{key: array for key, array in kept.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": None}, "must have the array 'logits'"),
        ({"config": None}, "must have the array 'config'"),
        ({"logits": np.zeros((2, 3))}, r"'logits' must have shape \(2, 32, 128\), got \(2, 3\)"),
        ({"idx": np.full((2, 32), 128)}, "'idx' must hold token ids from 0 to 127"),
        ({"config": "{"}, "'config' must be JSON"),
        ({"config": json.dumps({"n_heads": 3})}, "config: .*n_heads"),
        (
            {"config": json.dumps({"n_embd": 65, "n_head": 2})},
            "config: GPTConfig.n_embd must be a multiple of n_head = 2, got 65",
        ),
        ({"params/lm_head.weight": np.zeros((128, 64))}, "params: NanoChat state misses"),
    ],
)
def test_files_off_the_schema_get_one_clear_line(arrays, message, tmp_path):
    path = changed(tmp_path, **arrays)
    with pytest.raises(BadReference, match=message) as error:
        parity.run_checks(Reference(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_files_that_are_no_npz_get_one_clear_line(content, tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(BadReference, match="must be an npz file that can be read"):
        Reference(path)


def test_a_truncated_npz_gets_one_clear_line(tmp_path):
    path = tmp_path / "half.npz"
    path.write_bytes((SHIPPED / "a.npz").read_bytes()[:50_000])
    with pytest.raises(BadReference, match="must be an npz file that can be read"):
        Reference(path)


def test_a_wrong_figure_fails_its_gate_and_exits_1(tmp_path):
    logits = Reference(SHIPPED / "a.npz")["logits"].copy()
    logits[1, 3, 7] += 1e-5
    path = changed(tmp_path, logits=logits)
    failed = [check.name for check in parity.run_checks(Reference(path)) if not check.passed]
    assert failed == ["logits"]
    assert parity.run([path]) == 1


def test_values_that_are_not_finite_never_pass():
    assert not parity.within("x", np.nan, 1.0, 5e-6).passed
    assert not parity.within("x", np.inf, np.inf, relative=1.0).passed
    assert parity.within("x", np.zeros(2), np.zeros(2), relative=0.0).passed


def test_a_missing_file_does_not_keep_the_others_from_being_checked(tmp_path, capsys):
    paths = [tmp_path / "none.npz", SHIPPED / "a.npz"]
    assert parity.run(paths, Console(width=100)) == 2
    printed = capsys.readouterr().out
    assert "does not exist" in printed and "loss_none" in printed and "FAIL" not in printed
    assert parity.run([]) == 2


def test_the_command_exits_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "model.parity", f"--reference={tmp_path / 'none.npz'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1 and "does not exist" in done.stdout
    assert not done.stderr
