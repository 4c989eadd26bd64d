"""What a campaign will take before it is begun: runs, tokens, FLOPs, machine-hours, hours.

Counts are those the stages themselves give. Time is counted in batches: a machine trains as many
candidates at once as it has lanes, a batch that is not full takes as long as a full one, and a
batch stays on one machine. So more machines than a call has batches make nothing faster.
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
    """What a call means for machines."""

    stage: str
    runs: int
    batches: tuple[float, ...]  # hours of each, on one machine


def load_of(call: Call, width: int, hours: Callable[[Group], float]) -> Load:
    """The batches of a call.

    Args:
      call: its groups.
      width: candidates that a machine trains at once.
      hours: that a batch of a group takes.
    """
    batches = [hours(group) for group in call.groups for _ in range(-(-group.runs // width))]
    return Load(call.stage, total_runs([call]), tuple(batches))


def wall_hours(load: Load, machines: int) -> float:
    """How long a call takes when every machine, once free, gets the next batch."""
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
    hours: tuple[float, ...]  # for each number of machines; on one they are machine-hours


def total(stage: str, rows: Iterable[Row]) -> Row:
    """All of them, one after the other."""
    columns = list(zip(*rows, strict=True))
    hours = tuple(map(sum, zip(*columns[-1], strict=True)))
    return Row(stage, *map(sum, columns[1:-1]), hours)


def machine_counts(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [1 << i for i in range((most - 1).bit_length())] + [most]


# The campaign of a config ------------------------------------------------------------------


class Phase(NamedTuple):
    """Stages that the same command runs, or that hang on the same condition."""

    name: str
    calls: list[Call]
    evaluations: int  # of a run, as the config asks for


def phases(config: ConfigDict, width: int) -> list[Phase]:
    """Everything a calibrated campaign asks of the engine, in order.

    How many pairs the test at 95 % of the compute needs is not known before the gain is:
    `transfer.seeds` stand for them.
    """
    budget = config.calibrate.tuning_runs or promotion.planned_runs(config)
    search = campaign.planned_calls(config) + promotion.planned_calls(config)
    after_win = trial.planned_after_win(config, config.transfer.seeds)
    few, many = config.train.evaluations, config.confirm.evaluations
    return [
        Phase("calibration", calibration.planned_calls(config, budget, width), few),
        Phase("search", search, few),
        Phase("confirmation", trial.planned_calls(config), many),
        Phase("after a win", after_win, many),
    ]


class Cost(NamedTuple):
    """What the baseline costs in one of the compiled programs."""

    tokens: float  # a step
    step_flops: float
    evaluation_flops: float


def costs_of(config: ConfigDict) -> dict[str, Cost]:
    """The cost in every program that a campaign may use."""

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
    """How fast one machine is in the main program; seconds a candidate, whatever the lanes."""

    step: float
    evaluation: float
    width: int  # candidates at once


def given_pace(step: float, cost: Cost, width: int) -> Pace:
    """The pace of a machine of which only the step is known: a validation's by its FLOPs."""
    return Pace(step, step * cost.evaluation_flops / cost.step_flops, width)


def plan(
    phase: Phase,
    costs: Mapping[str, Cost],
    pace: Pace,
    *,
    segment_steps: int,
    machines: Sequence[int],
) -> list[Row]:
    """A row a stage, in the order in which stages begin.

    Training and validation alone: compilation, data and checkpoints come on top.

    Args:
      phase: what is run.
      costs: by program; one that is not the main one takes longer by its FLOPs.
      pace: of one machine.
      segment_steps: steps between returns to the host, where validations can be.
      machines: numbers of them to give hours for; [1, ...].
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
    for one in phase.calls:
        rows.setdefault(one.stage, []).append(row(one))
    return [total(stage, some) for stage, some in rows.items()]


# Campaigns in round figures ----------------------------------------------------------------


class Scenario(NamedTuple):
    """A campaign of one candidate a machine, in hours."""

    generations: int
    population: int
    promoted: int  # of each generation
    screening: float = 1.0  # a candidate
    seeds: int = 3  # of each promoted candidate
    confirmation: float = 5.0  # a seed
    baselines: int = 7  # as long as a confirmation: 35 hours


SCENARIOS = {"conservative": Scenario(5, 8, 3), "aggressive": Scenario(10, 16, 4)}


def scenario_loads(scenario: Scenario) -> list[Load]:
    """Its calls: a generation waits for the one before, confirmations for the last one.

    No run waits for a confirmation or a baseline, so these fill the machines together.
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
    """Hours for each number of machines; on one they are machine-hours."""
    loads = scenario_loads(scenario)
    return [sum(wall_hours(load, count) for load in loads) for count in machines]
