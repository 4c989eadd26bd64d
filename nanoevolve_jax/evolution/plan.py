"""The plan of a campaign: runs, tokens, FLOPs, machine-hours and hours before it is started.

The stages count their own runs. Time is counted in batches: a machine trains as many candidates at
once as it has lanes, a batch that is not full takes as long as a full one, and a batch stays on one
machine. So more machines than a call has batches do not make it faster.
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
    """The work of a call on machines."""

    stage: str
    runs: int
    batches: tuple[float, ...]  # hours per batch, on one machine


def load_of(call: Call, width: int, hours: Callable[[Group], float]) -> Load:
    """Returns the batches of a call.

    Args:
      call: Runs that are asked for at once.
      width: Candidates that a machine trains at once.
      hours: Returns the hours that a batch of a group takes.
    """
    batches = [hours(group) for group in call.groups for _ in range(-(-group.runs // width))]
    return Load(call.stage, total_runs([call]), tuple(batches))


def wall_hours(load: Load, machines: int) -> float:
    """Returns how long a call takes if every machine, once free, gets the next batch."""
    free = [0.0] * machines
    for hours in load.batches:
        heapq.heapreplace(free, free[0] + hours)
    return max(free)


class Row(NamedTuple):
    """One line of a plan."""

    stage: str
    runs: int
    tokens: float
    flops: float
    hours: tuple[float, ...]  # per number of machines; on one machine, machine-hours


def total(stage: str, rows: Iterable[Row]) -> Row:
    """Returns the sum of rows that run one after the other."""
    parts = list(rows)
    hours = tuple(map(sum, zip(*(row.hours for row in parts), strict=True)))
    runs = sum(row.runs for row in parts)
    return Row(stage, runs, sum(r.tokens for r in parts), sum(r.flops for r in parts), hours)


def machine_counts(most: int) -> list[int]:
    """Returns 1, 2, 4, ... below `most`, and `most`."""
    return [1 << i for i in range((most - 1).bit_length())] + [most]


# The campaign of a config ------------------------------------------------------------------


class Phase(NamedTuple):
    """Stages that the same command runs, or that depend on the same condition."""

    name: str
    calls: list[Call]
    evaluations: int  # validations per run that the config asks for


def phases(config: ConfigDict, width: int) -> list[Phase]:
    """Returns everything a calibrated campaign asks of the engine, in order.

    Args:
      config: Full configuration.
      width: Candidates that a machine trains at once, which is how many tuning asks for at once.
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
    """Cost of the baseline in one of the compiled programs."""

    tokens: float  # per step
    step_flops: float
    evaluation_flops: float


def costs_of(config: ConfigDict) -> dict[str, Cost]:
    """Returns the cost in every program that a campaign may use."""

    def cost(config: ConfigDict, capacity: int = 1) -> Cost:
        task = make_task(config)
        task = task._replace(batch_size=capacity * task.batch_size)
        tokens = config.data.validation_rows * task.model.sequence_len
        # Forward only: a third of what the rule counts for forward and backward.
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
    """Speed of one machine in the main program, in seconds per candidate."""

    step: float
    evaluation: float
    width: int  # candidates trained at once


def given_pace(step: float, cost: Cost, width: int) -> Pace:
    """Returns the pace of a machine from its seconds per step; validations follow by FLOPs."""
    return Pace(step, step * cost.evaluation_flops / cost.step_flops, width)


def plan(
    phase: Phase,
    costs: Mapping[str, Cost],
    pace: Pace,
    *,
    segment_steps: int,
    machines: Sequence[int],
) -> list[Row]:
    """Returns one row per stage, in the order in which stages begin.

    Rows count training and validation. Compilation, data and checkpoints take additional time.

    Args:
      phase: Calls to plan.
      costs: Cost by program; other programs than the main one take longer by their FLOPs.
      pace: Speed of one machine.
      segment_steps: Steps between returns to the host, where validations can happen.
      machines: Numbers of machines to compute hours for; the first must be 1.
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
    """A campaign with one candidate per machine, in hours."""

    generations: int
    population: int
    promoted: int  # candidates per generation
    screening: float = 1.0  # hours per candidate
    seeds: int = 3  # per promoted candidate
    confirmation: float = 5.0  # hours per seed
    baselines: int = 7  # runs as long as a confirmation: 35 hours


SCENARIOS = {"conservative": Scenario(5, 8, 3), "aggressive": Scenario(10, 16, 4)}


def scenario_loads(scenario: Scenario) -> list[Load]:
    """Returns the calls of a scenario.

    A generation waits for the previous one, and confirmations wait for the last generation. Nothing
    waits for a confirmation or a baseline, so these share the machines.
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
    """Returns hours per number of machines; on one machine these are machine-hours."""
    loads = scenario_loads(scenario)
    return [sum(wall_hours(load, count) for load in loads) for count in machines]
