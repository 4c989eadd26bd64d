"""Policies in words: trajectories whose course is known, and sentences that must follow."""

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
from nanoevolve_jax.reporting import explain as explaining
from nanoevolve_jax.reporting.differences import as_in_nanochat, fixed_differences
from nanoevolve_jax.reporting.explain import (
    agreement,
    course,
    crossing_steps,
    crossings,
    drivers,
    explain,
    gate_course,
)

SENSING = set_field(ANNEALING, "control.coefficients.grad_alignment_ema", 1.0)
RISING = np.linspace(0.1, 0.9, 30)


def explained(folder, spec, *gates, **fields):
    """What is said of a candidate whose screening run had a gate, and runs of other seeds."""
    record = make_record("g001c00", spec=spec, **fields)
    if gates:
        save(folder, "g001c00", make_columns(gates[0]))
    return " ".join(explain(make_history(folder, [make_record(), record]), record))


# Courses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thirds", "words"),
    [
        ((1.17, 1.0, 0.84), "falls from 1.17 early through 1.00 in the middle to 0.84 late"),
        ((0.1, 0.2, 0.9), "rises from 0.10 early through 0.20 in the middle to 0.90 late"),
        ((0.1, 0.8, 0.3), "rises from 0.10 early to 0.80 in the middle and falls to 0.30 late"),
        ((0.9, 0.1, 0.5), "falls from 0.90 early to 0.10 in the middle and rises to 0.50 late"),
        ((0.31, 0.31, 0.31), "stands still at 0.31"),
    ],
)
def test_a_course_is_told_by_its_thirds(thirds, words):
    assert course(np.repeat(thirds, 5), 0.02) == words


def test_a_course_that_only_trembles_is_not_said_to_rise():
    trembling = np.tile([0.2, 0.4], 30)
    assert course(trembling, 0.02) == "stays around 0.30 in every third, between 0.20 and 0.40"


def test_a_gate_says_how_far_it_moves():
    assert gate_course(RISING).endswith("it moves by 0.80, between 0.10 and 0.90")
    assert gate_course(np.full(9, 0.31)) == "stands still at 0.31"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_any_trajectory_has_a_course(values):
    assert "nan" not in gate_course(np.array(values))


def test_crossings_are_steps_counted_from_1():
    gate = np.array([0.1, 0.4, 0.6, 0.7, 0.2])
    assert crossing_steps(gate) == [3, 5]
    assert "2 times, first at step 3 of 5 (60% of the run), last at step 5 of 5" in crossings(gate)
    assert "upwards at step 3 of 4" in crossings(gate[:4])
    assert "downwards at step 2 of 2" in crossings(gate[3:])
    assert crossings(gate[:2]).startswith("It stays below 0.5")


# What drives the gate --------------------------------------------------------------------


def test_a_gate_that_reads_only_the_calendar_is_called_a_schedule():
    assert drivers([make_columns(RISING)], ANNEALING) == [
        "It reads nothing but the share of the run: a schedule could do all it does."
    ]


def test_a_sensor_that_never_moves_drives_nothing_whatever_its_weight():
    (said,) = drivers([make_columns(RISING)], SENSING)
    assert said == (
        "What drives its gate: step_fraction 100%; it follows the calendar, as a schedule does."
    )


def test_a_gate_that_reacts_is_said_to():
    noise = np.tile([-1.0, 1.0], 15)
    spec = set_field(SENSING, "control.coefficients.step_fraction", 0.0)
    (said,) = drivers([make_columns(RISING, grad_alignment_ema=noise)], spec)
    assert said.startswith("What drives its gate: grad_alignment 100%")
    assert said.endswith("it follows what it senses of training, not the calendar.")
    (said,) = drivers([make_columns(RISING, grad_alignment_ema=noise * 0.3)], SENSING)
    shares = [int(x) for x in re.findall(r"(\d+)%", said)]
    assert sum(shares) == 100
    assert "in part" in said


def test_shares_are_means_over_runs():
    noise = np.tile([-1.0, 1.0], 15)
    spec = set_field(SENSING, "control.coefficients.step_fraction", 0.0)
    spec = set_field(spec, "control.coefficients.loss_ema", 1.0)
    runs = [make_columns(RISING, **{name: noise}) for name in ("grad_alignment_ema", "loss_ema")]
    assert "grad_alignment 50%" in drivers(runs, spec)[0]


def test_seeds_that_agree_are_told_from_seeds_that_do_not():
    apart = np.stack([RISING, RISING + 0.3])
    assert "0.212 apart (standard deviation): it differs" in agreement(apart)[0]
    assert "nearly the same every time" in agreement(np.stack([RISING, RISING + 0.01]))[0]
    assert agreement(RISING[None])[0].startswith("One seed cannot show")
    assert agreement(np.full((3, 9), 0.4)) == []


# Whole explanations ----------------------------------------------------------------------


def test_the_annealing_preset_is_told_from_its_run(tmp_path):
    said = explained(tmp_path, ANNEALING, RISING)
    assert "In one run of screening, 30 steps: its gate" in said
    assert "rises from 0.22 early through 0.50 in the middle to 0.78 late" in said
    assert "the update multiplier falls from 1.11 early" in said
    assert "clip threshold" not in said  # nothing reads it
    assert "upwards at step 16 of 30 (53% of the run)" in said


def test_a_gate_that_stands_still_has_neither_crossing_nor_driver(tmp_path):
    said = explained(tmp_path, SENSING, np.full(30, 0.31))
    assert "stands still at 0.31" in said
    assert "the update multiplier stands still at 1.08" in said
    assert "hardly moves it" in said
    assert "crosses" not in said


def test_a_gate_without_senses_is_said_to_stand(tmp_path):
    spec = set_field(ANNEALING, "control.coefficients.step_fraction", 0.0)
    assert "senses nothing and stands still at 0.12" in explained(tmp_path, spec, np.full(9, 0.12))


def test_a_policy_without_gate_or_telemetry_says_so(tmp_path):
    assert "It has no gate" in explained(tmp_path, TRUST_RATIO)
    assert "how its gate moves is not known" in explained(tmp_path, ANNEALING)


def test_a_gate_whose_poles_coincide_moves_nothing(tmp_path):
    poles = ANNEALING.control.aggressive
    spec = ANNEALING._replace(control=ANNEALING.control._replace(conservative=poles))
    said = explained(tmp_path, spec, RISING)
    assert "Its gate moves nothing that acts" in said
    assert "Throughout it holds the update multiplier at 1.2 instead of 1." in said


def test_runs_of_promotion_count_beside_the_screening_run(tmp_path, monkeypatch):
    run = Run("main-1", "promote", "main", {"seed": 7}, 2.0, 3.0, None, None, 30, 1, [], 0.0)
    save(tmp_path, "main-1", make_columns(RISING + 0.1))
    history_type = type(make_history(tmp_path, family()))
    monkeypatch.setattr(history_type, "runs_of", lambda self, record: [run])
    said = explained(tmp_path, SENSING, RISING)
    assert "In 2 runs of screening and promotion, 30 steps: its gate" in said
    assert "rises from 0.27 early" in said  # the mean of 0.22 and 0.32
    assert "Over 2 seeds" in said


def test_runs_that_failed_are_left_out(tmp_path, monkeypatch):
    run = Run("main-1", "promote", "main", {}, np.nan, np.nan, "loss", 3, 3, 1, [], np.nan)
    history_type = type(make_history(tmp_path, family()))
    monkeypatch.setattr(history_type, "runs_of", lambda self, record: [run])
    save(tmp_path, "main-1", make_columns(RISING[:3]))
    assert "In one run of screening" in explained(tmp_path, SENSING, RISING)


def test_a_dead_candidate_says_where_it_failed(tmp_path):
    record = make_dead("g001c00", spec=ANNEALING)
    save(tmp_path, "g001c00", make_columns(RISING[:3]))
    said = explain(make_history(tmp_path, [make_record(), record]), record)
    assert said[0] == "It failed in screening at step 3: non-finite loss."
    assert "not known" in said[1]


def test_a_candidate_that_failed_in_promotion_keeps_what_screening_showed(tmp_path):
    failure = {"reason": "non-finite loss", "step": 9}
    said = explained(tmp_path, SENSING, RISING, failure=failure)
    assert said.startswith("It failed in promotion at step 9: non-finite loss. In one run of")


def test_a_control_is_told_by_all_of_its_recipe(tmp_path):
    record = family()[3]._replace(recipe={"momentum": 0.8, "matrix_lr": 2.5})
    said = " ".join(explain(make_history(tmp_path, family()), record))
    assert "only the recipe (momentum 0.8335 -> 0.8, matrix_lr 1.858 -> 2.5)" in said


def test_the_baseline_is_called_the_baseline(tmp_path):
    history = make_history(tmp_path, family())
    assert explain(history, history.baseline)[0].startswith("It is the baseline")


# Fixed differences -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("decay", 1, "It decays weights everywhere; the baseline decays weights only where"),
        ("decay", 0, "It decays no weights"),
        ("nesterov", 0, "It takes the momentum as it is"),
        ("momentum_placement", 1, "It averages directions"),
        ("orthogonalize", 0, "It takes the normalised momentum"),
        ("ns_steps", 3, "It sets the Polar Express iterations to 3 instead of 5."),
        ("second_moment", 0, "It has no second moment"),
        ("second_moment_beta", 0.7, "It sets the second-moment decay to 0.7 instead of 0.9."),
        ("update_multiplier", 1.3, "It sets the update multiplier to 1.3 instead of 1."),
        ("trust_ratio", 1, "kept between 0.1 and 10."),
        ("clip", 2, "It limits the global gradient norm to 1 times its running mean."),
    ],
)
def test_a_switch_is_told_in_words(path, value, words):
    (said,) = fixed_differences(set_field(NANOCHAT, path, value), NANOCHAT)
    assert words in said


def test_a_limit_that_is_never_reached_is_called_that():
    spec = NANOCHAT._replace(clip=1, clip_threshold=2.0)
    assert fixed_differences(spec, NANOCHAT) == ["Its limit on the update is never reached."]


def test_fields_that_nothing_reads_are_not_told():
    spec = NANOCHAT._replace(trust_ratio_min=0.5, clip_threshold=3.0)
    assert fixed_differences(spec, NANOCHAT) == []


@given(specs())
def test_equal_policies_are_told_alike(spec):
    limited = "Its limit on the update is never reached."
    said = [x for x in fixed_differences(spec, NANOCHAT) if x != limited]
    assert said == fixed_differences(canonical(spec), NANOCHAT)


def test_what_is_shared_with_nanochat_is_listed():
    assert "cautious" not in as_in_nanochat(NANOCHAT)
    assert "five Polar Express iterations" in as_in_nanochat(NANOCHAT)
    assert "five Polar" not in as_in_nanochat(NANOCHAT._replace(ns_steps=4))
    assert "no trust ratio" not in as_in_nanochat(TRUST_RATIO)


def test_every_sentence_is_one(tmp_path):
    for gate in (RISING, np.full(30, 0.2)):
        save(tmp_path, "g001c00", make_columns(gate))
        record = make_record("g001c00", spec=SENSING)
        for said in explaining.explain(make_history(tmp_path, [make_record(), record]), record):
            assert re.fullmatch(r"[A-Z].*[^.]\.", said)
