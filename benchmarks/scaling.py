"""Measures the Ray engine with one and two workers, and the effect of eight devices on losses.

  python -m benchmarks.scaling --out=results/scaling_cpu.json

Each worker has one thread. A round trains the same candidates of `configs/screen.py` with the local
engine on one thread, then on one worker, then on two workers. All programs are compiled beforehand,
and ratios are taken within a round. Finally, a population that does not divide evenly runs on eight
virtual devices and on one, and the largest difference in losses is reported.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, logging
from ml_collections import ConfigDict
from rich.table import Table

from benchmarks import options
from benchmarks.timing import environment, interleaved, ratio
from nanoevolve_jax import site
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.execution.engine import Engine
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.ray_connection import ray
from nanoevolve_jax.execution.ray_pool import Pool
from nanoevolve_jax.execution.settings import make_baseline, make_recipe
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.spec import PRESETS
from nanoevolve_jax.site import make_engine
from nanoevolve_jax.terminal.console import Console

ROUNDS = 5
DEVICES = 8  # number of virtual devices in the check
UNEVEN = 11  # number of candidates in the check, for which the last batch is not full
JOBS = 4  # number of candidates per round


def make_config() -> ConfigDict:
    """Returns the config of `--variants` with one thread and one device per process."""
    (config,) = options.configs(on_cpu=True).values()
    config.engine, config.threads, config.devices = site.RAY, 1, 1
    config.data.cache_dir = options.CACHE.value
    config.train.evaluations = 1
    return config


def make_jobs(config, count: int) -> list[Job]:
    """Returns jobs that cycle through the baseline and the presets, each with its own seed.

    Args:
      config: Full configuration.
      count: Number of jobs.
    """
    specs = [make_baseline(config), *PRESETS.values()]
    recipe = make_recipe(config)
    return [
        Job(Candidate(specs[i % len(specs)], recipe), seed=i, steps=config.train.steps)
        for i in range(count)
    ]


def ray_engine(config, workers: int, log: Callable[[str], None]) -> Engine:
    """Returns an engine that trains on workers of the running Ray cluster.

    Args:
      config: Full configuration.
      workers: Largest number of workers.
      log: Callback that takes one line for the user.
    """
    settings = config.copy_and_resolve_references()
    settings.ray.workers = workers
    shared = site.for_every_node(settings, threads=1)
    make = functools.partial(site.worker_site, shared.to_json(), steps=config.train.steps, most=1)
    pool = Pool(make, settings.ray, cpus=1, gpus=0, log=log)
    return site.RaySite(settings, pool.facts(), pool).engine(settings, MAIN)


def train(engine: Engine, jobs: Sequence[Job]) -> None:
    """Trains all jobs and checks that every run succeeds."""
    assert all(result.failure is None for result in engine.run(jobs))


def eight_devices(config, rows) -> dict[str, float]:
    """Returns the largest differences in losses between eight devices and one device.

    Args:
      config: Full configuration.
      rows: Packed rows of the corpus.
    """
    jobs = make_jobs(config, UNEVEN)
    one, eight = (list(make_engine(config, rows, n).run(jobs)) for n in (1, DEVICES))
    loss = np.array([[r.train_loss for r in results] for results in (one, eight)])
    bpb = np.array([[r.val_bpb for r in results] for results in (one, eight)])
    return {
        "candidates": UNEVEN,
        "devices": DEVICES,
        "largest_difference_of_train_loss": float(np.abs(loss[0] - loss[1]).max()),
        "largest_difference_of_val_bpb": float(np.abs(bpb[0] - bpb[1]).max()),
    }


def main(argv: Sequence[str]) -> None:
    """Times the three engines, checks eight devices and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    console, config = Console(width=110, soft_wrap=True), make_config()
    # The pools keep their idle workers, so Ray needs room for three workers at the same time.
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    local_config = config.copy_and_resolve_references()
    local_config.devices = DEVICES  # for the check of eight devices; the timed engine uses one
    local = site.local_site(local_config, console, steps=config.train.steps, most=1)
    subjects = {
        "local engine": make_engine(config, local.rows, 1),
        "one worker": ray_engine(config, 1, console.print),
        "two workers": ray_engine(config, 2, console.print),
    }
    jobs = make_jobs(config, JOBS)
    for engine in subjects.values():
        train(engine, jobs)  # compiles the programs before timing
    runs = {name: functools.partial(train, engine, jobs) for name, engine in subjects.items()}
    times = interleaved(runs, options.rounds(ROUNDS))
    ray.shutdown()
    tokens = JOBS * config.train.steps * subjects["local engine"].task.batch_tokens
    report = {
        name: {
            "tokens_per_second": tokens / float(np.median(values)),
            "candidates_per_hour": 3600 * JOBS / float(np.median(values)),
            "speed_over_one_worker": ratio(times["one worker"], values),
        }
        for name, values in times.items()
    }
    table = Table(title=f"{JOBS} candidates of {config.train.steps} steps, one thread per process")
    for column in ("", "tokens/s", "candidates/h", "to one worker"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in report.items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['candidates_per_hour']:,.0f}",
            f"{row['speed_over_one_worker']:.2f}",
        )
    console.print(table)
    check = eight_devices(config, local.rows)
    console.print(f"{UNEVEN} candidates on {DEVICES} devices and on one: {check}", highlight=False)
    document = environment("benchmarks.scaling") | {"results": report, "eight_devices": check}
    document["versions"]["ray"] = ray.__version__
    options.write(document)


if __name__ == "__main__":
    app.run(main)
