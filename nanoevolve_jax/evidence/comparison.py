"""Comparisons of arms on the same seeds, with a search for the learning rate of each arm."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.documents import RateSearch
from nanoevolve_jax.evidence.runs import Run, RunSource, bpb
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, SCREEN_FOLD, Stage, stage_seed
from nanoevolve_jax.evidence.statistics import LrFit, fit_lr, paired_test
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.settings import make_recipe, with_recipe
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.gate import blended_actuators, static_actuators
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_to_json

LR_FACTORS = (0.5, 0.5**0.5, 1.0, 2.0**0.5, 2.0)
LR_STAGE = "confirm: learning rate"  # stages of `runs.jsonl`
COMPARE_STAGE = "compare"
_RATIO = 2.0**0.5  # ratio of neighbouring factors
_CLOSE = 1.0 + 1e-6  # largest ratio of two factors that are treated as equal
_EXTENSIONS = 3  # maximum number of factors by which a range is extended


class Arm(NamedTuple):
    """A policy with its recipe, as one side of a comparison."""

    id: str
    spec: OptimizerSpec
    recipe: dict[str, float]  # recipe fields that differ from the calibrated ones
    lr_factor: float = 1.0  # factor on the matrix learning rate
    code: Code | None = None  # rewritten functions that replace built-in ones
    cost: float = 1.0  # FLOPs of a training step; only ratios between arms matter


class StepSizes(NamedTuple):
    """The ends of a range of step sizes: peak matrix learning rate times update multiplier."""

    least: float
    most: float


class Bench(NamedTuple):
    """The config and the runs of a comparison."""

    config: ConfigDict  # full configuration with the calibrated recipe
    runs: RunSource  # source of training runs

    def candidate(self, arm: Arm, steps: int) -> Candidate:
        """Returns the candidate that an arm trains.

        Args:
          arm: Arm to train.
          steps: Horizon in steps.
        """
        recipe = make_recipe(with_recipe(self.config, arm.recipe), steps)
        recipe = recipe._replace(matrix_lr=recipe.matrix_lr * arm.lr_factor)
        return Candidate(arm.spec, recipe, arm.code)

    def job(self, arm: Arm, seed: int, fold: int, steps: int = 0, **changes: Any) -> Job:
        """Returns the job of a run of an arm.

        Args:
          arm: Arm to train.
          seed: Seed of weights and batches.
          fold: Fold of the validation text.
          steps: Horizon in steps; 0 for the full horizon, `config.confirm.steps`.
          **changes: Field `gate` or `disturbance` of the job, see `Job`.
        """
        steps = steps or self.config.confirm.steps
        return Job(self.candidate(arm, steps), seed, steps, fold, **changes)

    def lr_seeds(self) -> list[int]:
        """Returns the promotion seeds on which learning rates are chosen."""
        count = self.config.confirm.lr_seeds
        return [stage_seed(Stage.PROMOTE, self.config.seed, i) for i in range(count)]

    def pick_lr(self, arm: Arm, reach: StepSizes | None = None) -> tuple[Arm, RateSearch]:
        """Searches for the best learning rate of an arm, see `search_lr`.

        Args:
          arm: Arm whose learning rate is chosen.
          reach: Step sizes that the range must include, such as those of another arm. By default,
            these are the step sizes of the arm.

        Returns:
          The arm at its best learning rate and the results of the search. If the arm fails at every
          factor, it is unchanged, and the field `chosen` of the search is None.
        """

        def losses_of(factors: Sequence[float]) -> np.ndarray:
            tried = [arm._replace(lr_factor=arm.lr_factor * factor) for factor in factors]
            jobs = [self.job(a, seed, PROMOTE_FOLD) for a in tried for seed in self.lr_seeds()]
            return bpb(self.runs.run(jobs, LR_STAGE)).reshape(len(factors), -1)

        own = self.step_sizes(arm)
        reach = reach or own
        fit, factors, losses = search_lr(losses_of, reach.least / own.least, reach.most / own.most)
        search = RateSearch(
            factors=factors,
            bpb=finite_or_null(losses),
            chosen=fit.factor if fit else None,
            edge=fit.edge if fit else None,
        )
        return arm._replace(lr_factor=arm.lr_factor * (fit.factor if fit else 1.0)), search

    def step_sizes(self, arm: Arm) -> StepSizes:
        """Returns the step sizes that the spec and the recipe of an arm permit.

        The effect of rewritten functions is not included.
        """
        rate = self.candidate(arm, self.config.confirm.steps).recipe.matrix_lr
        reached = [static_actuators(arm.spec)]
        if arm.spec.control.enabled:
            reached = [blended_actuators(arm.spec, gate) for gate in (0.0, 1.0)]
        sizes = [rate * actuators.update_multiplier for actuators in reached]
        return StepSizes(min(sizes), max(sizes))


def search_lr(
    losses_of: Callable[[Sequence[float]], np.ndarray], low: float = 1.0, high: float = 1.0
) -> tuple[LrFit | None, list[float], np.ndarray]:
    """Searches for the best factor on a learning rate.

    A parabola is fitted to the mean losses over log2(factor). If its minimum or the best point is
    at an end of the range, the range is extended at that end.

    Args:
      losses_of: Function that maps ascending factors to losses, float[factors, seeds]. It may be
        called several times with the same factor.
      low: Smallest factor that the range must include.
      high: Largest factor that the range must include.

    Returns:
      (fit or None if every factor fails, factors, losses of the factors).
    """
    factors = list(LR_FACTORS)
    while factors[0] > low * _CLOSE:
        factors.insert(0, factors[0] / _RATIO)
    while factors[-1] * _CLOSE < high:
        factors.append(factors[-1] * _RATIO)
    most = len(factors) + _EXTENSIONS
    while True:
        losses = losses_of(factors)
        fit = fit_lr(factors, losses)
        if fit is None or fit.edge is None or len(factors) == most:
            return fit, factors, losses
        if fit.edge == "low":
            factors = [factors[0] / _RATIO, *factors]
        else:
            factors = [*factors, factors[-1] * _RATIO]


def mean_curve(runs: Sequence[Run]) -> np.ndarray:
    """Returns the mean validation curve of runs.

    Args:
      runs: Runs of the same horizon.

    Returns:
      Steps and mean bpb; float64[points, 2].
    """
    return np.mean([run.curve for run in runs], axis=0)


def steps_to(curve: np.ndarray, target: float) -> float | None:
    """Returns the step at which a validation curve first reaches a target.

    Args:
      curve: Steps and bpb; float[points, 2].
      target: Bits per byte to reach.

    Returns:
      Interpolated step, or None if the curve does not reach the target.
    """
    below = np.flatnonzero(curve[:, 1] <= target)
    if not len(below):
        return None
    i = below[0]
    if i == 0:
        return float(curve[0, 0])
    (s0, v0), (s1, v1) = curve[i - 1], curve[i]
    return float(s0 + (v0 - target) / (v0 - v1) * (s1 - s0))


# Exploration ---------------------------------------------------------------------------------


def shared_seeds(config: ConfigDict) -> list[int]:
    """Returns the seeds of an exploratory comparison.

    They belong to a separate stage, so an exploratory comparison cannot influence promotion or
    confirmation. A longer list begins with every shorter one.

    Args:
      config: Full configuration.
    """
    return [stage_seed(Stage.COMPARE, config.seed, i) for i in range(config.compare.seeds)]


def explore(bench: Bench, arms: Sequence[Arm]) -> dict[str, Any]:
    """Trains every arm on the shared seeds and the screening fold, at the screening horizon.

    The result is exploratory and does not count as evidence.

    Args:
      bench: Config and runs of the comparison.
      arms: Arms to compare. The others are compared with the first one.

    Returns:
      A dict with the fields `specs`, `seeds`, `fold`, `steps` and `bpb`, which is
      float64[arms, seeds]. `specs` contains the mean bpb of each arm (NaN if a run failed), the
      failures of its runs by seed and, except for the first arm, its `gain` over the first arm as
      the fields of a `PairedTest`.
    """
    seeds, steps = shared_seeds(bench.config), bench.config.train.steps
    jobs = [bench.job(arm, seed, SCREEN_FOLD, steps) for arm in arms for seed in seeds]
    everything = bench.runs.run(jobs, COMPARE_STAGE)
    runs = [everything[i : i + len(seeds)] for i in range(0, len(everything), len(seeds))]
    values = np.stack([bpb(of_arm) for of_arm in runs])
    specs = [
        _explored(arm, of_arm)
        | ({} if i == 0 else {"gain": paired_test(values[0] - values[i])._asdict()})
        for i, (arm, of_arm) in enumerate(zip(arms, runs, strict=True))
    ]
    return {"specs": specs, "seeds": seeds, "fold": SCREEN_FOLD, "steps": steps, "bpb": values}


def _explored(arm: Arm, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "id": arm.id,
        "spec": spec_to_json(arm.spec),
        "recipe": arm.recipe,
        "mean_bpb": float(bpb(runs).mean()),
        "failures": {str(run.job["seed"]): run.failure for run in runs if run.failure},
    }
