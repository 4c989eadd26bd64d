"""Calibration: tunes the baseline's recipe, then measures seed noise and a panel of specs."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.calibration_file import fingerprint
from nanoevolve_jax.evidence.documents import Measurements, NoiseResult, TuningResult
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.panel import good_and_bad, judge_panel, shortest_horizon
from nanoevolve_jax.evidence.runs import Runs, RunSource, bpb
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, SEEDS_OF_A_STAGE, Stage, stage_seed
from nanoevolve_jax.evidence.statistics import seed_noise
from nanoevolve_jax.evidence.tuning import Dimension, Point, at_edge, shortlist, tune, widened
from nanoevolve_jax.evidence.work import Call, DryRuns, call
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.settings import (
    ConfigError,
    make_baseline,
    make_recipe,
    with_recipe,
)
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.spec import FIELDS

Log = Callable[[str], None]
_ADAMW = ("embedding_lr", "unembedding_lr", "scalar_lr")  # fields that `adamw_lr` multiplies
_SHORTLIST = 5  # number of recipes that are run on several seeds
_TUNE, _TUNE_FINAL, _NOISE, _PANEL = (  # stages of `runs.jsonl`
    f"calibrate: {name}" for name in ("tune", "tune_final", "noise", "panel")
)
_WIDENINGS = 2  # how many times tuning continues because the best recipe lies at an edge
_VARIANT = "multiplier x1.1"  # spec of the panel whose runs are paired with the baseline's


def candidate_at(config: ConfigDict, recipe: dict[str, float], steps: int) -> Candidate:
    """Returns the baseline with a recipe that is scaled to a horizon.

    Args:
      config: Full configuration.
      recipe: Fields of the recipe.
      steps: Horizon in steps.
    """
    config = with_recipe(config, recipe)
    return Candidate(make_baseline(config), make_recipe(config, steps))


# Tuning --------------------------------------------------------------------------------------


def dimensions(start: dict[str, float]) -> tuple[list[Dimension], Point]:
    """Returns the dimensions that tuning varies, and the point that represents the start.

    Learning rates are factors relative to the start, decay rates of averages are `1 - beta`, and
    all other values are absolute.

    Args:
      start: Recipe from which tuning starts.
    """
    decay = start["weight_decay"] or 0.01
    bounds = FIELDS["momentum"], FIELDS["second_moment_beta"]
    usual = [
        Dimension("matrix_lr", 0.25, 4.0, 1e-3, 1e3, log=True),
        Dimension("adamw_lr", 0.25, 4.0, 1e-3, 1e3, log=True),
        Dimension("weight_decay", decay / 8, decay * 8, 1e-6, 10.0, log=True),
        Dimension("warmup_fraction", 0.0, 0.15, 0.0, 0.5, log=False),
        Dimension("warmdown_fraction", 0.3, 0.9, 0.0, 1.0, log=False),
        Dimension("final_lr_fraction", 0.0, 0.2, 0.0, 1.0, log=False),
        Dimension("momentum_gap", 0.015, 0.2, 1 - bounds[0].high, 1 - bounds[0].low, log=True),
        Dimension("beta2_gap", 0.02, 0.4, 1 - bounds[1].high, 1 - bounds[1].low, log=True),
    ]
    default = {
        "matrix_lr": 1.0,
        "adamw_lr": 1.0,
        "weight_decay": decay,
        "momentum_gap": 1.0 - start["momentum"],
        "beta2_gap": 1.0 - start["second_moment_beta"],
    }
    default |= {d.name: start[d.name] for d in usual if d.name not in default}
    # If the start is outside the usual range, the range is extended.
    return [
        d._replace(low=min(d.low, default[d.name]), high=max(d.high, default[d.name]))
        for d in usual
    ], default


def recipe_of(point: Point, start: dict[str, float]) -> dict[str, float]:
    """Returns the recipe that a point represents, with four significant digits.

    Args:
      point: Value of each dimension, see `dimensions`.
      start: Recipe from which tuning starts.
    """
    changed = {name: start[name] * point["adamw_lr"] for name in _ADAMW} | {
        "matrix_lr": start["matrix_lr"] * point["matrix_lr"],
        "momentum": 1.0 - point["momentum_gap"],
        "second_moment_beta": 1.0 - point["beta2_gap"],
    }
    names = ("weight_decay", "warmup_fraction", "warmdown_fraction", "final_lr_fraction")
    changed |= {name: point[name] for name in names}
    return start | {name: float(f"{value:.4g}") for name, value in changed.items()}


def tune_recipe(
    config: ConfigDict,
    runs: RunSource,
    budget: int,
    log: Log,
    expect_more: Callable[[int], None] = lambda steps: None,
) -> TuningResult:
    """Tunes the baseline's recipe at the screening horizon.

    If the best recipe of the shortlist lies at an edge of a range, the range is widened, a quarter
    of the budget is spent in addition, and a new shortlist is made. This happens at most twice.

    Args:
      config: Full configuration.
      runs: Source of training runs.
      budget: Number of training runs of the first search.
      log: Callback that takes one line for the user.
      expect_more: Callback that takes the number of candidate-steps beyond those that
        `planned_calls` counts.

    Returns:
      The tuned recipe and a description of its search.

    Raises:
      EvidenceError: If all runs of the tuning fail.
      ConfigError: If every recipe of the shortlist has a failed run.
    """
    start = config.recipe.to_dict()
    steps = config.train.steps

    def evaluate(points: Sequence[Point], stage: Stage, seeds: Sequence[int]) -> np.ndarray:
        """Returns the bpb of every point, each on its own seed; float64[points]."""
        jobs = [
            Job(
                candidate_at(config, recipe_of(point, start), steps),
                stage_seed(stage, config.seed, seed),
                steps,
                SCREEN_FOLD,
            )
            for point, seed in zip(points, seeds, strict=True)
        ]
        return bpb(runs.run(jobs, _TUNE if stage == Stage.TUNE else _TUNE_FINAL))

    def finalists(points: Sequence[Point]) -> np.ndarray:
        """Returns the bpb of every point on every fresh seed; float64[points, seeds]."""
        fresh = range(config.calibrate.seeds)
        each = [point for point in points for _ in fresh]
        values = evaluate(each, Stage.TUNE_FINAL, [*fresh] * len(points))
        return values.reshape(len(points), len(fresh))

    # Every run has a different seed, because a search on a single seed would overfit to it.
    numbers = itertools.cycle(range(SEEDS_OF_A_STAGE))

    ranges, default = dimensions(start)
    search = functools.partial(
        tune,
        lambda points: evaluate(points, Stage.TUNE, [next(numbers) for _ in points]),
        default=default,
        batch=runs.engine().width,
        seed=config.seed,
    )
    tuning = search(dimensions=ranges, runs=budget)
    kept: dict[str, Point] = {}
    widenings: list[list[str]] = []
    while True:
        listed = shortlist(tuning, default, config.seed) | kept
        log(f"tuning: {len(tuning.points)} runs, best single run {np.nanmin(tuning.bpb):.4f} bpb")
        values = finalists(list(listed.values()))
        chosen = _best_mean(listed, values, log)
        edges = at_edge(tuning.dimensions, listed[chosen])
        if not edges or len(widenings) == _WIDENINGS:
            break
        log(f"tuning: '{chosen}' lies at an edge of {', '.join(edges)}, so it goes on beyond")
        kept, widenings = {"before": listed[chosen]}, [*widenings, edges]
        more = max(1, budget // 4)
        expect_more((more + _SHORTLIST * config.calibrate.seeds) * steps)
        wider = widened(tuning.dimensions, listed[chosen])
        tuning = search(dimensions=wider, runs=more, earlier=tuning)
    if edges:
        log(f"tuning: '{chosen}' still lies at an edge of {', '.join(edges)}")
    return TuningResult(
        runs=len(tuning.points),
        failed=sum(not math.isfinite(x) for x in tuning.bpb),
        widenings=widenings,
        at_edge=edges,
        ranges={d.name: [d.low, d.high] for d in tuning.dimensions},
        shortlist={
            name: {"recipe": recipe_of(point, start), "bpb": finite_or_null(row)}
            for (name, point), row in zip(listed.items(), values.tolist(), strict=True)
        },
        chosen=chosen,
        recipe=recipe_of(listed[chosen], start),
    )


def _best_mean(listed: dict[str, Point], values: np.ndarray, log: Log) -> str:
    """Returns the name of the point with the lowest mean. Points with a failed run are left out.

    Args:
      listed: Points by name.
      values: Bits per byte of each point; float[points, seeds].
      log: Callback that takes one line for the user.

    Raises:
      ConfigError: If every point has a failed run.
    """
    means = dict(zip(listed, values.mean(1), strict=True))
    for name, mean in means.items():
        log(f"  {name}: {mean:.4f} bpb, mean of {values.shape[1]} fresh seeds")
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        raise ConfigError(
            "config.recipe must lead to a recipe at which the baseline trains on every seed; all "
            f"{len(listed)} recipes of the shortlist have failed runs"
        )
    return min(finite, key=lambda name: finite[name])


# Noise, slope and panel ----------------------------------------------------------------------


class _Horizons(NamedTuple):
    """Horizons of a calibration in steps, in ascending order."""

    baseline: list[int]  # horizons of the baseline, which is run on every seed
    variant: list[int]  # horizons of its variant, which is run on every seed
    panel: list[int]  # horizons of the panel, which is run on few seeds
    slope: list[int]  # horizons from which the slope is computed


def _horizons(config: ConfigDict) -> _Horizons:
    screen, full = config.train.steps, config.confirm.steps
    half = max(1, screen // 2)
    return _Horizons(
        baseline=sorted({half, screen, 2 * screen, full}),
        variant=sorted({screen, full}),
        panel=sorted({half, screen, full}),
        slope=sorted({half, screen, 2 * screen}),
    )


def horizon_slope(means: Mapping[int, float]) -> float:
    """Returns the decrease of the final bpb per unit of ln(horizon).

    Args:
      means: Mean bpb by horizon in steps.

    Returns:
      Slope of a linear fit, in bpb; 0 if longer runs are not better.
    """
    slope, _ = np.polyfit(np.log(list(means)), list(means.values()), 1)
    return max(0.0, -float(slope))


def measure(
    config: ConfigDict, runs: RunSource, recipe: dict[str, float], log: Log
) -> Measurements:
    """Measures noise, horizon slope and panel on the tuned baseline.

    Args:
      config: Full configuration.
      runs: Source of training runs.
      recipe: Tuned recipe.
      log: Callback that takes one line for the user.

    Returns:
      The measurements.

    Raises:
      EvidenceError: If a run of the baseline or of its variant fails.
    """
    screen, full, horizons = config.train.steps, config.confirm.steps, _horizons(config)
    seeds = [stage_seed(Stage.NOISE, config.seed, i) for i in range(config.calibrate.seeds)]
    few = seeds[: config.calibrate.panel_seeds]
    good, bad = map(list, good_and_bad(candidate_at(config, recipe, screen)))

    def jobs(name: str, steps: int, seeds: Sequence[int], attempt: int = 0) -> list[Job]:
        at_horizon = good_and_bad(candidate_at(config, recipe, steps))
        candidate = (at_horizon[0] | at_horizon[1])[name]
        return [Job(candidate, s, steps, SCREEN_FOLD, attempt=attempt) for s in seeds]

    def train(wanted: dict[Any, list[Job]], stage: str) -> dict[Any, np.ndarray]:
        """Returns the bpb of every list of jobs, trained in one call that machines can share."""
        values = bpb(runs.run([job for some in wanted.values() for job in some], stage))
        ends = np.cumsum([len(some) for some in wanted.values()])
        return dict(zip(wanted, np.split(values, ends[:-1]), strict=True))

    repeated = train(
        {("baseline", steps): jobs("baseline", steps, seeds) for steps in horizons.baseline}
        | {(_VARIANT, steps): jobs(_VARIANT, steps, seeds) for steps in horizons.variant}
        | {"again": jobs("baseline", screen, seeds[:1], attempt=1)},
        _NOISE,
    )
    baseline = {steps: repeated["baseline", steps] for steps in horizons.baseline}
    for steps, values in baseline.items():
        if not np.all(np.isfinite(values)):
            raise EvidenceError(
                f"{np.sum(~np.isfinite(values))} of {len(values)} runs of the tuned baseline "
                f"failed at {steps} steps; choose a config.recipe at which it trains"
            )
    noise: dict[str, NoiseResult] = {}
    for name, steps in (("screen", screen), ("full", full)):
        measured = seed_noise(baseline[steps], repeated[_VARIANT, steps])
        noise[name] = cast(NoiseResult, {"steps": steps, "n": len(seeds), **measured._asdict()})
        log(
            f"noise at {steps} steps: sigma {measured.sigma:.4f} bpb, "
            f"{measured.paired_sigma:.4f} for runs that share a seed"
        )
    sigma, paired = noise["screen"]["sigma"], noise["screen"]["paired_sigma"]
    names = (*good, *bad)
    ranking = train(
        {(name, steps): jobs(name, steps, few) for steps in horizons.panel for name in names},
        _PANEL,
    )
    ranked = {steps: {name: ranking[name, steps] for name in names} for steps in horizons.panel}
    panels = judge_panel(ranked, set(good))
    log(f"panel: AUC {panels[screen].auc:.3f} of one run at {screen} steps")
    return Measurements(
        noise={
            "screen": noise["screen"],
            "full": noise["full"],
            "repeat_difference": float(abs(repeated["again"][0] - baseline[screen][0])),
        },
        scale={
            "sigma": sigma,
            "shrinkage": (paired / sigma) ** 2,
            "horizon_slope": horizon_slope(
                {steps: float(baseline[steps].mean()) for steps in horizons.slope}
            ),
        },
        panel={
            "auc": panels[screen].auc,
            "good": good,
            "bad": bad,
            "seeds": len(few),
            "horizons": {
                str(steps): panel._asdict() | {"bpb": finite_or_null(ranked[steps])}
                for steps, panel in panels.items()
            },
            "shortest_horizon": shortest_horizon(panels),
        },
    )


# Calibration ---------------------------------------------------------------------------------


def calibrate_evaluation(
    config: ConfigDict,
    runs: Runs,
    budget: int,
    facts: dict[str, Any],
    log: Log,
    expect_more: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Tunes and measures the baseline.

    Args:
      config: Full configuration.
      runs: Runs of the calibration's folder.
      budget: Number of training runs of the tuning.
      facts: Facts of the evaluation, see `calibration_file.evaluation_facts`.
      log: Callback that takes one line for the user.
      expect_more: Callback that takes the number of candidate-steps beyond those that
        `planned_calls` counts.

    Returns:
      Contents of `calibration.json`.
    """
    tuning = tune_recipe(config, runs, budget, log, expect_more)
    recipe = tuning.pop("recipe")
    log(f"the recipe is now '{tuning['chosen']}': {recipe}")
    measurements = measure(config, runs, recipe, log)
    return {
        "evaluation": facts,
        "fingerprint": fingerprint(facts),
        "recipe": recipe,
        "tuning": tuning,
        **measurements,
        "spent": runs.spent(),
    }


# The plan ------------------------------------------------------------------------------------


def planned_calls(config: ConfigDict, budget: int, batch: int) -> list[Call]:
    """Returns the calls of a calibration to the engine, in order.

    A dry run counts the measurements. The number of tuning runs depends on their results. It is
    larger if tuning continues beyond an edge, and smaller if the shortlist has duplicates.

    Args:
      config: Full configuration.
      budget: Number of training runs of the tuning.
      batch: Number of runs that tuning requests together.
    """
    steps, runs = config.train.steps, DryRuns(config)
    measure(config, runs, config.recipe.to_dict(), lambda line: None)
    sizes = [min(batch, budget - done) for done in range(0, budget, batch)]
    tuning = [call(_TUNE, size, steps) for size in sizes]
    return [*tuning, call(_TUNE_FINAL, _SHORTLIST * config.calibrate.seeds, steps), *runs.calls]
