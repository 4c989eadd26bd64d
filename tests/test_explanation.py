"""Explanations of policies, checked on trajectories with a known course."""

import re

import numpy as np
import pytest
from histories import family, make_columns, make_history, save
from hypothesis import given
from hypothesis import strategies as st
from records import make_dead, make_record
from specs import specs

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, TRUST_RATIO, set_field
from nanoevolve_jax.reporting.descriptions import constant_differences, shared_with_nanochat
from nanoevolve_jax.reporting.explanation import (
    NO_GATE,
    course,
    crossing_steps,
    crossings,
    drivers,
    explain,
    gate_course,
    seed_spread,
)

WEIGHTS = "control.coefficients."
SENSING = set_field(ANNEALING, f"{WEIGHTS}grad_alignment_ema", 1.0)
REACTING = set_field(SENSING, f"{WEIGHTS}step_fraction", 0.0)
RISING = np.linspace(0.1, 0.9, 30)
NOISE = np.tile([-1.0, 1.0], 15)


def explained(folder, spec, gate=None, make=make_record, **fields):
    """Returns the explanation of a candidate whose screening run had this gate."""
    record = make("g001c00", spec=spec, **fields)
    if gate is not None:
        save(folder, "g001c00", make_columns(gate))
    sentences = explain(make_history(folder, [make_record(), record]), record)
    assert all(re.fullmatch(r"[A-Z].*[^.]\.", sentence) for sentence in sentences)
    return " ".join(sentences)


# Courses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trajectory", "words"),
    [
        (np.repeat([1.17, 1.0, 0.84], 5), ["falls", "1.17 early", "1.00", "0.84 late"]),
        (np.repeat([0.1, 0.2, 0.9], 5), ["rises", "0.10 early", "0.20", "0.90 late"]),
        (np.repeat([0.1, 0.8, 0.3], 5), ["rises", "0.80 in the middle", "falls to 0.30"]),
        (np.repeat([0.9, 0.1, 0.5], 5), ["falls", "0.10 in the middle", "rises to 0.50"]),
        (np.full(15, 0.31), ["stays at 0.31"]),
        (np.tile([0.2, 0.4], 30), ["varies around 0.30"]),
    ],
)
def test_a_course_is_described_by_its_thirds(trajectory, words):
    phrase = course(trajectory, 0.02)
    positions = [phrase.index(word) for word in words]
    assert positions == sorted(positions)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_every_gate_has_a_course(values):
    assert "nan" not in gate_course(np.array(values))


def test_crossings_are_steps_counted_from_1():
    gate = np.array([0.1, 0.4, 0.6, 0.7, 0.2])
    assert crossing_steps(gate) == [3, 5]
    assert "2 times" in crossings(gate) and "step 3 of 5 (60% of the run)" in crossings(gate)
    assert "upwards at step 3 of 4" in crossings(gate[:4])
    assert "downwards at step 2 of 2" in crossings(gate[3:])
    assert "stays below 0.5" in crossings(gate[:2])


# Drivers of the gate ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "columns", "words"),
    [
        (ANNEALING, {}, ["only the step fraction"]),
        (SENSING, {}, ["step_fraction (100%)", "like a schedule"]),  # no sensor moves
        (REACTING, {"grad_alignment_ema": NOISE}, ["grad_alignment (100%)", "not to the step"]),
        (SENSING, {"grad_alignment_ema": NOISE * 0.3}, ["partly a schedule"]),
    ],
)
def test_the_sensors_that_move_a_gate_are_named(spec, columns, words):
    (sentence,) = drivers([make_columns(RISING, **columns)], spec)
    assert all(word in sentence for word in words)
    shares = [int(share) for share in re.findall(r"(\d+)%", sentence)]
    assert not shares or sum(shares) == 100


def test_shares_are_means_over_runs():
    spec = set_field(REACTING, f"{WEIGHTS}loss_ema", 1.0)
    runs = [make_columns(RISING, **{name: NOISE}) for name in ("grad_alignment_ema", "loss_ema")]
    assert "grad_alignment (50%)" in drivers(runs, spec)[0]


def test_equal_courses_over_seeds_are_distinguished_from_different_ones():
    assert "0.212: the gate differs" in seed_spread(np.stack([RISING, RISING + 0.3]))[0]
    assert "nearly equal" in seed_spread(np.stack([RISING, RISING + 0.01]))[0]
    assert "One seed" in seed_spread(RISING[None])[0]
    assert seed_spread(np.full((3, 9), 0.4)) == []


# Complete explanations -------------------------------------------------------------------


def test_the_annealing_preset_is_explained_by_its_run(tmp_path):
    text = explained(tmp_path, ANNEALING, RISING)
    for part in (
        "one run of screening, 30 steps",
        "rises from 0.22 early through 0.50 in the middle to 0.78 late",
        "the update multiplier falls from 1.11 early",
        "upwards at step 16 of 30",
    ):
        assert part in text
    assert "clip threshold" not in text  # it has no effect


def test_a_constant_gate_has_neither_crossing_nor_driver(tmp_path):
    text = explained(tmp_path, SENSING, np.full(30, 0.31))
    assert "stays at 0.31" in text and "the update multiplier stays at 1.08" in text
    assert "crosses" not in text and "moved by" not in text
    spec = set_field(ANNEALING, f"{WEIGHTS}step_fraction", 0.0)
    text = explained(tmp_path, spec, np.full(9, 0.12))
    assert "reads no sensor and stays at 0.12" in text


def test_a_policy_without_gate_or_telemetry_says_so(tmp_path):
    assert NO_GATE in explained(tmp_path, TRUST_RATIO)
    assert "the course of its gate is unknown" in explained(tmp_path, ANNEALING)


def test_a_gate_with_equal_poles_moves_nothing(tmp_path):
    poles = ANNEALING.control.aggressive
    spec = ANNEALING._replace(control=ANNEALING.control._replace(conservative=poles))
    text = explained(tmp_path, spec, RISING)
    assert "moves no actuator" in text and "the update multiplier at 1.2 instead of 1" in text


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (None, ["2 runs of screening and promotion", "rises from 0.27 early", "over 2 seeds"]),
        ("loss", ["one run of screening", "rises from 0.22 early"]),
    ],
)
def test_successful_promotion_runs_count_beside_screening(tmp_path, monkeypatch, failure, words):
    run = Run("main-1", "promote", "main", {"seed": 7}, 2.0, 3.0, failure, 3, 30, 1, [], 0.0)
    save(tmp_path, "main-1", make_columns(RISING + 0.1))
    history_type = type(make_history(tmp_path, family()))
    monkeypatch.setattr(history_type, "runs_of", lambda self, record: [run])
    text = explained(tmp_path, SENSING, RISING)
    assert all(word in text for word in words)


def test_a_failure_is_named_with_its_stage_and_step(tmp_path):
    text = explained(tmp_path, ANNEALING, RISING[:3], make=make_dead)
    assert text.startswith("It failed in screening at step 3: non-finite loss.")
    assert "unknown" in text
    failure = {"reason": "non-finite loss", "step": 9}
    text = explained(tmp_path, SENSING, RISING, failure=failure)
    assert text.startswith("It failed in promotion at step 9: non-finite loss. In one run of")


def test_controls_and_the_baseline_are_called_so(tmp_path):
    history = make_history(tmp_path, family())
    record = family()[3]._replace(recipe={"momentum": 0.8, "matrix_lr": 2.5})
    text = " ".join(explain(history, record))
    assert "only the recipe (momentum 0.8335 -> 0.8, matrix_lr 1.858 -> 2.5)" in text
    assert "the baseline" in explain(history, history.baseline)[0]


# Constant differences --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("decay", 1, "weight decay to every weight; the baseline applies weight decay only where"),
        ("decay", 0, "no weight decay"),
        ("nesterov", 0, "plain momentum"),
        ("momentum_placement", 1, "to update directions"),
        ("orthogonalize", 0, "normalised momentum"),
        ("ns_steps", 3, "Polar Express iterations to 3 instead of 5"),
        ("second_moment", 0, "no second moment"),
        ("second_moment_beta", 0.7, "second-moment decay to 0.7 instead of 0.9"),
        ("update_multiplier", 1.3, "update multiplier to 1.3 instead of 1"),
        ("trust_ratio", 1, "between 0.1 and 10"),
        ("clip", 2, "global gradient norm at 1 times its running mean"),
    ],
)
def test_each_switch_is_described(path, value, words):
    (sentence,) = constant_differences(set_field(NANOCHAT, path, value), NANOCHAT)
    assert words in sentence


def test_settings_without_an_effect_are_left_out():
    spec = NANOCHAT._replace(trust_ratio_min=0.5, clip_threshold=3.0)
    assert constant_differences(spec, NANOCHAT) == []
    (sentence,) = constant_differences(NANOCHAT._replace(clip=1, clip_threshold=2.0), NANOCHAT)
    assert "never reached" in sentence


@given(specs())
def test_equal_policies_have_equal_descriptions(spec):
    sentences = [x for x in constant_differences(spec, NANOCHAT) if "never reached" not in x]
    assert sentences == constant_differences(canonical(spec), NANOCHAT)


def test_features_shared_with_nanochat_are_listed():
    assert "five Polar Express iterations" in shared_with_nanochat(NANOCHAT)
    assert "five Polar" not in shared_with_nanochat(NANOCHAT._replace(ns_steps=4))
    assert "no trust ratio" not in shared_with_nanochat(TRUST_RATIO)
