"""The plan: its durations, its two scenarios, and a command that trains nothing."""

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_search import assert_one_line, flags_of, start

from nanoevolve_jax.configs import screen
from nanoevolve_jax.evidence.work import MAIN, Call, Group, call, total_runs, total_steps
from nanoevolve_jax.evolution import promotion
from nanoevolve_jax.evolution.plan import (
    HOUR,
    SCENARIOS,
    Pace,
    Phase,
    costs_of,
    given_pace,
    load_of,
    machine_counts,
    phases,
    plan,
    scenario_hours,
    total,
    wall_hours,
)
from nanoevolve_jax.execution.cost import step_flops
from nanoevolve_jax.execution.settings import make_baseline, make_task
from nanoevolve_jax.planning import print_plan
from nanoevolve_jax.terminal.console import Console

CONFIG = screen.get_config()


def hours_of(runs, machines, width=1):
    return wall_hours(load_of(call("x", runs, 1), width, lambda group: 1.0), machines)


def test_the_conservative_scenario_takes_300_machine_hours_and_75_hours_on_4_machines():
    spent, on_four = scenario_hours(SCENARIOS["conservative"], [1, 4])
    assert spent == 5 * 8 * 1 + 5 * 3 * 3 * 5 + 35 == 300
    assert on_four == pytest.approx(75)


def test_the_aggressive_scenario_takes_about_800_machine_hours():
    (spent,) = scenario_hours(SCENARIOS["aggressive"], [1])
    assert spent == 10 * 16 * 1 + 10 * 4 * 3 * 5 + 35
    assert spent == pytest.approx(800, rel=0.01)


def test_a_generation_of_8_takes_as_long_on_16_machines_as_on_8():
    assert [hours_of(8, machines) for machines in (1, 3, 8, 16)] == [8, 3, 1, 1]


def test_lanes_make_fewer_batches_and_one_that_is_not_full_takes_as_long():
    assert [hours_of(9, machines, width=4) for machines in (1, 2, 3, 4)] == [3, 2, 1, 1]


@given(
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=20), st.integers(1, 20), st.integers(1, 4)
)
def test_wall_hours_lie_between_the_longest_batch_and_all_of_them(lengths, machines, width):
    groups = tuple(Group(1, i) for i in range(len(lengths)))
    load = load_of(Call("x", groups), width, lambda group: lengths[group.steps])
    hours = wall_hours(load, machines)
    assert hours >= max(max(lengths), sum(lengths) / machines) * (1 - 1e-12)
    # Graham's bound for list scheduling.
    assert hours <= sum(lengths) / machines + max(lengths)
    assert wall_hours(load, 1) == pytest.approx(sum(lengths))


def test_machine_counts_double_up_to_the_number_asked_for():
    assert machine_counts(1) == [1]
    assert machine_counts(6) == [1, 2, 4, 6]
    assert machine_counts(8) == [1, 2, 4, 8]


def test_a_row_follows_from_its_runs():
    """By hand, screening of the default config has 27 runs of 100 steps, two at a time."""
    costs, pace = costs_of(CONFIG), Pace(step=0.02, evaluation=0.15, width=2)
    search = next(phase for phase in phases(CONFIG, 2) if phase.name == "search")
    screening, promoting = plan(search, costs, pace, segment_steps=25, machines=[1, 2])
    flops = step_flops(make_task(CONFIG), make_baseline(CONFIG))
    forward = make_task(CONFIG).model.flops_per_token / 3 * 256 * 128
    assert screening.runs == 3 + 3 * 8
    assert screening.tokens == 27 * 100 * 8 * 128
    assert screening.flops == pytest.approx(27 * (100 * flops + 3 * forward))
    batch = 2 * (100 * 0.02 + 3 * 0.15) / HOUR
    assert screening.hours == pytest.approx([14 * batch, (1 + 3 * 2) * batch])
    assert promoting.runs == (2 + 12) * 3 + (2 + 4) * 6 + 1 + 4
    assert total("both", [screening, promoting]).runs == promotion.planned_runs(CONFIG)


def test_other_programs_take_longer_by_their_flops():
    costs = costs_of(CONFIG)
    pace = given_pace(0.02, costs[MAIN], 1)
    names = list(costs)
    groups = [Phase(name, [call("x", 1, 100, name)], 1) for name in names]
    rows = [plan(phase, costs, pace, segment_steps=25, machines=[1])[0] for phase in groups]
    by_name = dict(zip(names, rows, strict=True))
    per_hour = by_name[MAIN].flops / by_name[MAIN].hours[0]
    for row in rows:
        assert row.flops / row.hours[0] == pytest.approx(per_hour)
    assert by_name["wide"].tokens == 2 * by_name[MAIN].tokens
    assert by_name["wider"].flops > 8 * by_name[MAIN].flops


def test_tuning_asks_for_one_machines_candidates_at_a_time():
    calibration = phases(CONFIG, 8)[0].calls
    tuning = [one for one in calibration if one.stage == "calibrate: tune"]
    assert total_runs(tuning) == promotion.planned_runs(CONFIG)
    assert len(tuning) == math.ceil(promotion.planned_runs(CONFIG) / 8)
    assert total_steps(tuning) == 100 * total_runs(tuning)


def test_fewer_candidates_than_promotion_has_room_for_are_counted_as_they_are():
    config = screen.get_config()
    config.search.generations, config.search.population, config.search.survivors = 1, 4, 2
    config.search.control_every = 0
    first, final, doubled = (total_runs([one]) for one in promotion.planned_calls(config))
    # Two presets and four children, without a control lineage.
    assert (first, final, doubled) == ((1 + 6) * 3, (1 + 4) * 6, 1 + 4)


def test_the_tables_hold_every_stage_every_sum_and_both_scenarios():
    config, output = screen.get_config(), io.StringIO()
    config.step_seconds, config.machines = 0.02, 8
    print_plan(config, Console(file=output, width=150))
    lines = [re.split(r"\s*│\s*", line.strip("│ ")) for line in output.getvalue().splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    stages = {one.stage: 0 for phase in phases(config, 1) for one in phase.calls}
    for phase in phases(config, 1):
        assert rows[phase.name][0] == f"{total_runs(phase.calls)}"
        for one in phase.calls:
            stages[one.stage] += total_runs([one])
    assert {name: rows[name][0] for name in stages} == {k: str(v) for k, v in stages.items()}
    everything = [one for phase in phases(config, 1) for one in phase.calls]
    assert rows["all, with a win"][0] == str(total_runs(everything))
    assert rows["conservative"][-4:] == ["300", "150", "75", "40"]
    assert rows["aggressive"][-4:] == ["795", "400", "200", "100"]


@pytest.mark.parametrize("command", ["search", "calibrate"])
def test_the_command_measures_this_device_and_leaves_no_run_folder(repository, tmp_path, command):
    tiny = {
        "plan": True,
        "data.corpus": "parquet:/nowhere",  # no text is needed
        "data.cache_dir": tmp_path / "cache",
        "data.vocab_size": 300,
        "model.n_layer": 1,
        "model.n_embd": 24,
        "model.sequence_len": 16,
        "train.steps": 6,
    }
    process = start(repository, *flags_of(tiny, tmp_path / "run"), command=command)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "measured on this cpu" in output and "nothing was trained" in output
    assert not (tmp_path / "run").exists()


def test_a_plan_for_another_machine_takes_the_step_as_it_is_given(repository, tmp_path):
    """The `:d12` config requires cuDNN, which is missing on CPUs."""
    flags = ["--config=configs/screen.py:d12", "--config.plan=true", "--config.step_seconds=0.3"]
    process = start(repository, *flags, f"--config.workdir={tmp_path / 'run'}")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "0.3 s a candidate-step" in output and "as given" in output


def test_a_switch_that_is_neither_false_nor_true_is_named(repository):
    process = start(repository, "--config.plan=maybe")
    assert_one_line(process, ["config.plan must be False or True, got 'maybe'"])
