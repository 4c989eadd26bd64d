"""The plan of a campaign: estimates of runs, tokens, FLOPs and hours before it is started.

Each stage counts its own runs. Hours are estimated from batches. A machine trains a batch with as
many candidates as it has lanes, and a batch that is not full takes as long as a full one. A call
with fewer batches than machines leaves machines idle.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.evidence import attribution, calibration, transfer, trial
from nanoevolve_jax.evidence.work import MAIN, Call, Group, call, total_runs
from nanoevolve_jax.evolution import campaign, promotion
from nanoevolve_jax.execution.cost import step_flops
from nanoevolve_jax.execution.engine import evaluation_steps
from nanoevolve_jax.execution.settings import make_baseline, make_task

HOUR = 3600.0  # seconds


# Calls on machines -------------------------------------------------------------------------


class Load(NamedTuple):
    """The work of a call."""

    stage: str
    runs: int  # number of runs
    batches: tuple[float, ...]  # hours that a machine needs for each batch


def load_of(call: Call, width: int, hours: Callable[[Group], float]) -> Load:
    """Returns the batches of a call.

    Args:
      call: Runs that are requested together.
      width: Number of candidates that a machine trains at once.
      hours: Function that returns the hours that a batch of a group takes.
    """
    batches = [hours(group) for group in call.groups for _ in range(-(-group.runs // width))]
    return Load(call.stage, total_runs([call]), tuple(batches))


def wall_hours(load: Load, machines: int) -> float:
    """Returns the hours that a call takes if each idle machine is assigned the next batch.

    Args:
      load: Work of the call.
      machines: Number of machines.
    """
    free = [0.0] * machines
    for hours in load.batches:
        heapq.heapreplace(free, free[0] + hours)
    return max(free)


class Row(NamedTuple):
    """A row of a plan."""

    stage: str
    runs: int
    tokens: float
    flops: float
    hours: tuple[float, ...]  # hours for each number of machines; the first is machine-hours


def total(stage: str, rows: Iterable[Row]) -> Row:
    """Returns the sum of rows that run one after another.

    Args:
      stage: Name of the resulting row.
      rows: Rows to add up.
    """
    parts = list(rows)
    hours = tuple(map(sum, zip(*(row.hours for row in parts), strict=True)))
    runs = sum(row.runs for row in parts)
    return Row(stage, runs, sum(r.tokens for r in parts), sum(r.flops for r in parts), hours)


def machine_counts(most: int) -> list[int]:
    """Returns the powers of two below `most`, followed by `most`."""
    return [1 << i for i in range((most - 1).bit_length())] + [most]


# The campaign of a config ------------------------------------------------------------------


class Phase(NamedTuple):
    """Stages of the same command or with the same condition."""

    name: str
    calls: list[Call]
    evaluations: int  # number of validations per run in the config


def phases(config: ConfigDict, width: int) -> list[Phase]:
    """Returns the phases of a calibrated campaign, in order.

    Args:
      config: Full configuration.
      width: Number of candidates that a machine trains at once. It is also the number of runs that
        tuning requests together.
    """
    budget = config.calibrate.tuning_runs or promotion.planned_runs(config)
    search = campaign.planned_calls(config) + promotion.planned_calls(config)
    confirmation, after_win = trial.dry_run(config)
    few, many = config.train.evaluations, config.confirm.evaluations
    return [
        Phase("calibration", calibration.planned_calls(config, budget, width), few),
        Phase("search", search, few),
        Phase("confirmation", confirmation, many),
        Phase("after a win", after_win, many),
    ]


class Cost(NamedTuple):
    """The cost of the baseline in a compiled program."""

    tokens: float  # tokens per step
    step_flops: float  # FLOPs per training step
    evaluation_flops: float  # FLOPs per validation


def costs_of(config: ConfigDict) -> dict[str, Cost]:
    """Returns the cost of the baseline by program.

    Args:
      config: Full configuration.

    Returns:
      Costs of all programs that a campaign may use, by name of the program.
    """

    def cost(config: ConfigDict, capacity: int = 1) -> Cost:
        task = make_task(config)
        task = task._replace(batch_size=capacity * task.batch_size)
        tokens = config.data.validation_rows * task.model.sequence_len
        # A forward pass costs a third of a forward and a backward pass.
        forward = task.model.flops_per_token * tokens / 3
        return Cost(task.batch_tokens, step_flops(task, make_baseline(config)), forward)

    main = cost(config)
    return {
        MAIN: main,
        attribution.SWITCH: main,
        attribution.WIDE: cost(config, capacity=2),
        transfer.WIDER: cost(transfer.wider(config)),
    }


class Pace(NamedTuple):
    """The speed of a machine in the main program."""

    step: float  # seconds per training step and candidate
    evaluation: float  # seconds per validation and candidate
    width: int  # number of candidates that are trained at once


def given_pace(step: float, cost: Cost, width: int) -> Pace:
    """Returns the speed of a machine, with the time of a validation derived from its FLOPs.

    Args:
      step: Seconds per training step and candidate.
      cost: Cost in the main program.
      width: Number of candidates that are trained at once.
    """
    return Pace(step, step * cost.evaluation_flops / cost.step_flops, width)


def plan(
    phase: Phase,
    costs: Mapping[str, Cost],
    pace: Pace,
    *,
    segment_steps: int,
    machines: Sequence[int],
) -> list[Row]:
    """Returns a row for each stage, in the order in which the stages begin.

    Rows include training and validation, but not compilation, data preparation and checkpoints.

    Args:
      phase: Phase to plan.
      costs: Costs by program. Times in other programs are derived from those in the main program by
        their FLOPs.
      pace: Speed of a machine.
      segment_steps: Number of steps of a segment, between which validations can take place.
      machines: Numbers of machines for which to compute hours. The first must be 1.
    """
    main = costs[MAIN]

    def evaluations(group: Group) -> int:
        return 1 + len(evaluation_steps(group.steps, phase.evaluations, segment_steps))

    def batch_hours(group: Group) -> float:
        cost = costs[group.program]
        steps = group.steps * pace.step * cost.step_flops / main.step_flops
        validation = pace.evaluation * cost.evaluation_flops / main.evaluation_flops
        return pace.width * (steps + evaluations(group) * validation) / HOUR

    def flops(group: Group) -> float:
        cost = costs[group.program]
        once = group.steps * cost.step_flops + evaluations(group) * cost.evaluation_flops
        return group.runs * once

    def row(call: Call) -> Row:
        load = load_of(call, pace.width, batch_hours)
        return Row(
            call.stage,
            load.runs,
            sum(costs[g.program].tokens * g.runs * g.steps for g in call.groups),
            sum(map(flops, call.groups)),
            tuple(wall_hours(load, count) for count in machines),
        )

    rows: dict[str, list[Row]] = {}
    for own in phase.calls:
        rows.setdefault(own.stage, []).append(row(own))
    return [total(stage, parts) for stage, parts in rows.items()]


# Campaigns in round figures ----------------------------------------------------------------


class Scenario(NamedTuple):
    """A campaign in round figures, in which a machine trains a single candidate at a time."""

    generations: int
    population: int
    promoted: int  # number of promoted candidates per generation
    screening: float = 1.0  # hours per candidate
    seeds: int = 3  # number of seeds per promoted candidate
    confirmation: float = 5.0  # hours per seed
    baselines: int = 7  # number of baseline runs, each as long as a confirmation run


SCENARIOS = {"conservative": Scenario(5, 8, 3), "aggressive": Scenario(10, 16, 4)}


def scenario_loads(scenario: Scenario) -> list[Load]:
    """Returns the work of the calls of a scenario.

    A generation starts after the previous one. Confirmations start after the last generation and
    share the machines with the baseline runs, because no other run depends on either.
    """
    own = scenario
    confirmed = own.generations * own.promoted * own.seeds
    generation = call("screening", own.population, 1)
    rest = call("confirmation, baselines", confirmed + own.baselines, 1)
    return [
        *[load_of(generation, 1, lambda group: own.screening)] * own.generations,
        load_of(rest, 1, lambda group: own.confirmation),
    ]


def scenario_hours(scenario: Scenario, machines: Sequence[int]) -> list[float]:
    """Returns the hours that a scenario takes on each number of machines.

    Args:
      scenario: Campaign in round figures.
      machines: Numbers of machines.
    """
    loads = scenario_loads(scenario)
    return [sum(wall_hours(load, count) for load in loads) for count in machines]
