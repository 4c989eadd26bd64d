"""Calibration: what is noise, what is the best baseline, can the evaluator rank at all?"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.panel import good_and_bad, judge_panel, shortest_horizon
from nanoevolve_jax.evidence.runs import Runs, bpb
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, SEEDS_OF_A_STAGE, Stage, stage_seed
from nanoevolve_jax.evidence.statistics import seed_noise
from nanoevolve_jax.evidence.tuning import Dimension, Point, at_edge, shortlist, tune, widened
from nanoevolve_jax.evidence.work import Call, Group, call
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
_ADAMW = ("embedding_lr", "unembedding_lr", "scalar_lr")  # what the AdamW scale multiplies
_SHORTLIST, _PANEL = 5, 14  # how many recipes and specs are run on several seeds
_NOISE, _PANEL_RUNS = "calibrate: noise", "calibrate: panel"  # stages of `runs.jsonl`
_WIDENINGS = 2  # times the tuning goes on where the best recipe lies at an edge
_TWIN = "multiplier x1.1"  # the panel's spec whose runs are paired with the baseline's


def _stage(stage: Stage) -> str:
    return f"calibrate: {stage.name.lower()}"


def candidate_at(config: ConfigDict, recipe: dict[str, float], steps: int) -> Candidate:
    """The baseline under a recipe, scaled to a horizon."""
    config = with_recipe(config, recipe)
    return Candidate(make_baseline(config), make_recipe(config, steps))


def dimensions(start: dict[str, float]) -> tuple[list[Dimension], Point]:
    """What tuning varies, and the point that means `start` itself.

    Learning rates are factors on the start, memories are `1 - beta`, the rest is absolute.
    """
    decay = start["weight_decay"] or 0.01
    bounds = FIELDS["momentum"], FIELDS["second_moment_beta"]
    found = [
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
    default |= {d.name: start[d.name] for d in found if d.name not in default}
    # A start outside the usual range is where its range must reach.
    found = [
        d._replace(low=min(d.low, default[d.name]), high=max(d.high, default[d.name]))
        for d in found
    ]
    return found, default


def recipe_of(point: Point, start: dict[str, float]) -> dict[str, float]:
    """The recipe that a point stands for, to four significant digits."""
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
    runs: Runs,
    budget: int,
    log: Log,
    expect_more: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Finds the baseline's recipe at the screening horizon.

    Where the best of the shortlist lies at an edge of a range, that range is widened, a quarter of
    the budget is spent on top, and a new shortlist is drawn up; twice at most.

    Args:
      config: of the evaluation.
      runs: where training runs are kept.
      budget: training runs of the first search.
      log: Callback that takes one line for the user.
      expect_more: told of candidate-steps that `planned_calls` does not count.

    Returns:
      The part `tuning` of the document; its `recipe` is the one to use.
    """
    start = config.recipe.to_dict()
    steps = config.train.steps

    def evaluate(points: Sequence[Point], stage: Stage, seeds: Sequence[int]) -> np.ndarray:
        """Bits per byte of every point with the seed of that number; float64[points]."""
        jobs = [
            Job(
                candidate_at(config, recipe_of(point, start), steps),
                stage_seed(stage, config.seed, seed),
                steps,
                SCREEN_FOLD,
            )
            for point, seed in zip(points, seeds, strict=True)
        ]
        return bpb(runs.run(jobs, _stage(stage)))

    def finalists(points: Sequence[Point]) -> np.ndarray:
        """Bits per byte on every fresh seed; float64[points, seeds]."""
        fresh = range(config.calibrate.seeds)
        each = [point for point in points for _ in fresh]
        found = evaluate(each, Stage.TUNE_FINAL, [*fresh] * len(points))
        return found.reshape(len(points), len(fresh))

    # A seed for every run: on a single one the search would fit that seed's luck.
    numbers = itertools.cycle(range(SEEDS_OF_A_STAGE))

    ranges, default = dimensions(start)
    search = functools.partial(
        tune,
        lambda points: evaluate(points, Stage.TUNE, [next(numbers) for _ in points]),
        default=default,
        batch=runs.engine().width,
        seed=config.seed,
    )
    tuning, kept, widenings = search(dimensions=ranges, runs=budget), {}, []
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
        ranges = widened(tuning.dimensions, listed[chosen])
        tuning = search(dimensions=ranges, runs=more, earlier=tuning)
    if edges:
        log(f"tuning: '{chosen}' still lies at an edge of {', '.join(edges)}")
    return {
        "runs": len(tuning.points),
        "failed": sum(not math.isfinite(x) for x in tuning.bpb),
        "widenings": widenings,
        "at_edge": edges,
        "ranges": {d.name: [d.low, d.high] for d in tuning.dimensions},
        "shortlist": {
            name: {
                "recipe": recipe_of(point, start),
                "bpb": finite_or_null(row),
            }
            for (name, point), row in zip(listed.items(), values.tolist(), strict=True)
        },
        "chosen": chosen,
        "recipe": recipe_of(listed[chosen], start),
    }


def _best_mean(listed: dict[str, Point], values: np.ndarray, log: Log) -> str:
    """The name of the point with the lowest mean; one with a failed run is out.

    Args:
      listed: by name.
      values: float[points, seeds], bpb.
      log: Callback that takes one line for the user.

    Raises:
      ConfigError: if all are out.
    """
    means = dict(zip(listed, values.mean(1), strict=True))
    for name, mean in means.items():
        log(f"  {name}: {mean:.4f} bpb, mean of {values.shape[1]} fresh seeds")
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        raise ConfigError(
            "config.recipe leads to no recipe whose runs are all finite; "
            "allowed: one at which the baseline trains"
        )
    return min(finite, key=finite.get)


def planned_calls(config: ConfigDict, budget: int, batch: int) -> list[Call]:
    """What a whole calibration asks of the engine; a shortlist with doubles asks for less.

    A tuning that goes on beyond an edge asks for more, which nobody knows before.

    Args:
      config: whole.
      budget: runs of the tuning.
      batch: how many of them are asked for at once.
    """
    screen = config.train.steps
    seeds = config.calibrate.seeds
    few = min(config.calibrate.panel_seeds, seeds)
    tuning = [
        call(_stage(Stage.TUNE), min(batch, budget - done), screen)
        for done in range(0, budget, batch)
    ]
    final = call(_stage(Stage.TUNE_FINAL), _SHORTLIST * seeds, screen)
    baseline, twin = _noise_horizons(config)
    noise = [Group(seeds, steps) for steps in (*baseline, *twin)] + [Group(1, screen)]
    # The noise has every run of the baseline and some of its twin's.
    panel = [
        Group(few * (_PANEL - 1 - (steps in twin)), steps) for steps in _panel_horizons(config)
    ]
    return [*tuning, final, Call(_NOISE, tuple(noise)), Call(_PANEL_RUNS, tuple(panel))]


def _half(config: ConfigDict) -> int:
    return max(1, config.train.steps // 2)


def _noise_horizons(config: ConfigDict) -> tuple[list[int], list[int]]:
    """At which the baseline, and its twin, is run on every seed."""
    screen, full = config.train.steps, config.confirm.steps
    return sorted({_half(config), screen, 2 * screen, full}), sorted({screen, full})


def _panel_horizons(config: ConfigDict) -> list[int]:
    return sorted({_half(config), config.train.steps, config.confirm.steps})


def horizon_slope(means: Mapping[int, float]) -> float:
    """What a run gains for one unit of ln(horizon), in bpb; 0 if longer runs gain nothing.

    Args:
      means: bpb by horizon in steps.
    """
    slope, _ = np.polyfit(np.log(list(means)), list(means.values()), 1)
    return max(0.0, -float(slope))


def measure(
    config: ConfigDict, runs: Runs, recipe: dict[str, float], log: Log
) -> dict[str, dict[str, Any]]:
    """Noise, horizon slope and panel of the tuned baseline, at half, screening and full horizon.

    Returns:
      The parts `noise`, `scale` and `panel` of the document.

    Raises:
      EvidenceError: if a run of the baseline failed.
    """
    screen, full = config.train.steps, config.confirm.steps
    horizons, twin_horizons = _noise_horizons(config)
    seeds = [stage_seed(Stage.NOISE, config.seed, i) for i in range(config.calibrate.seeds)]
    few = seeds[: config.calibrate.panel_seeds]
    good, bad = map(list, good_and_bad(candidate_at(config, recipe, screen)))

    def jobs(name: str, steps: int, seeds: Sequence[int], attempt: int = 0) -> list[Job]:
        at_horizon = good_and_bad(candidate_at(config, recipe, steps))
        candidate = (at_horizon[0] | at_horizon[1])[name]
        return [Job(candidate, s, steps, SCREEN_FOLD, attempt=attempt) for s in seeds]

    def train(asked: dict[Any, list[Job]], stage: str) -> dict[Any, np.ndarray]:
        """Bits per byte of every list of jobs, in one call, so that machines can share them."""
        made = bpb(runs.run([job for some in asked.values() for job in some], stage))
        ends = np.cumsum([len(some) for some in asked.values()])
        return dict(zip(asked, np.split(made, ends[:-1]), strict=True))

    found_noise = train(
        {("baseline", steps): jobs("baseline", steps, seeds) for steps in horizons}
        | {(_TWIN, steps): jobs(_TWIN, steps, seeds) for steps in twin_horizons}
        | {"again": jobs("baseline", screen, seeds[:1], attempt=1)},
        _NOISE,
    )
    baseline = {steps: found_noise["baseline", steps] for steps in horizons}
    for steps, values in baseline.items():
        if not np.all(np.isfinite(values)):
            raise EvidenceError(
                f"{np.sum(~np.isfinite(values))} of {len(values)} runs of the tuned baseline "
                f"failed at {steps} steps; allowed: a config.recipe at which it trains"
            )
    noise: dict[str, Any] = {}
    for name, steps in (("screen", screen), ("full", full)):
        found = seed_noise(baseline[steps], found_noise[_TWIN, steps])
        noise[name] = {"steps": steps, "n": len(seeds), **found._asdict()}
        log(
            f"noise at {steps} steps: sigma {found.sigma:.4f} bpb, "
            f"{found.paired_sigma:.4f} for runs that share a seed"
        )
    noise["repeat_difference"] = float(abs(found_noise["again"][0] - baseline[screen][0]))
    near = [steps for steps in horizons if steps in (_half(config), screen, 2 * screen)]
    sigma = noise["screen"]["sigma"]
    scale = {
        "sigma": sigma,
        "shrinkage": (noise["screen"]["paired_sigma"] / sigma) ** 2,
        "horizon_slope": horizon_slope({steps: baseline[steps].mean() for steps in near}),
    }
    panel_horizons, names = _panel_horizons(config), (*good, *bad)
    values = train(
        {(name, steps): jobs(name, steps, few) for steps in panel_horizons for name in names},
        _PANEL_RUNS,
    )
    ranked = {steps: {name: values[name, steps] for name in names} for steps in panel_horizons}
    panels = judge_panel(ranked, set(good))
    log(f"panel: AUC {panels[screen].auc:.3f} of one run at {screen} steps")
    return {
        "noise": noise,
        "scale": scale,
        "panel": {
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
    }
