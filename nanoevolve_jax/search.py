"""Searches optimizer policies.

  python -m nanoevolve_jax.search --config=configs/screen.py --config.workdir=runs/mine

Running it again with the same workdir goes on after the last complete generation.
"""

import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from data.batches import check_horizon
from data.rows import build_rows
from nanoevolve_jax import command
from nanoevolve_jax.display import (
    DataDisplay,
    Display,
    baseline_curve,
    results_table,
    where_things_lie,
)
from nanoevolve_jax.evolution.campaign import Campaign, summarise
from nanoevolve_jax.evolution.run_folder import describe_run, open_folder, write_json
from nanoevolve_jax.execution.compilations import compilations, start_counting
from nanoevolve_jax.execution.engine import LocalEngine, validation_set
from nanoevolve_jax.execution.population import make_programs, visible_cores
from nanoevolve_jax.execution.settings import ConfigError, make_recipe, make_task


def use_devices(config: ConfigDict) -> int:
    """Settles the number of devices; must run before JAX starts its backends."""
    jax.config.update("jax_num_cpu_devices", config.devices or visible_cores())
    found = len(jax.devices())
    if config.devices > found:
        raise ConfigError(f"config.devices is {config.devices}; allowed: 0 to {found} on this host")
    platform = jax.devices()[0].platform
    if config.model.attention == "cudnn" and platform != "gpu":
        raise ConfigError(f"config.model.attention is 'cudnn'; allowed: xla on this {platform}")
    return config.devices or found


def make_engine(config: ConfigDict, rows, devices: int) -> LocalEngine:
    """The engine of a config over packed rows."""
    task = make_task(config)
    return LocalEngine(
        task=task,
        programs=make_programs(task, devices=devices, lanes=config.lanes),
        train_rows=rows.train,
        evaluation=validation_set(
            rows.validation,
            config.data.validation_rows,
            config.train.batch_size,
            rows.token_bytes,
        ),
        total_steps=config.train.steps,
        segment_steps=min(config.train.segment_steps, config.train.steps),
        evaluations=config.train.evaluations,
    )


def load_rows(config: ConfigDict, console: Console):
    """Packed rows of the config's corpus, from the cache or built now."""
    data = config.data
    with DataDisplay(console) as display:
        rows = build_rows(
            data.corpus,
            vocab_size=data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=data.cache_dir,
            shards=data.shards,
            max_train_tokens=data.max_train_tokens,
            progress=display.on_progress,
        )
    check_horizon(
        rows.train,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        max_epochs=data.max_epochs,
    )
    console.print(
        f"{data.corpus}: {len(rows.train):,} training and {len(rows.validation):,} validation rows "
        f"of {rows.sequence_len} tokens",
        highlight=False,
    )
    return rows


def search(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    console = Console()
    start_counting()
    compiled_before = compilations()
    devices = use_devices(config)
    rows = load_rows(config, console)
    folder = Path(config.workdir)
    open_folder(folder, describe_run(config, rows.fingerprints, devices))
    campaign = Campaign(make_engine(config, rows, devices), make_recipe(config), config, folder)
    task = campaign.engine.task
    records = campaign.load()
    total_runs = sum(campaign.sizes()[min(g, 1)] for g in range(config.search.generations + 1))
    with Display(
        console,
        total_runs=max(total_runs, len(records)),
        steps=config.train.steps,
        batch_tokens=task.batch_tokens,
    ) as display:
        display.resume(records)
        for generation, so_far in campaign.generations(display.on_progress):
            records = so_far
            display.on_generation(generation, records)
    summary = summarise(records, task.batch_tokens)
    summary["xla_compilations"] = {
        name: count - compiled_before[name] for name, count in compilations().items()
    }
    summary["wall_seconds"] = round(time.monotonic() - started, 1)
    write_json(folder / "summary.json", summary)
    console.print(results_table(records, count=5))
    console.print(f"baseline validation bpb: {baseline_curve(folder)}", highlight=False)
    for line in where_things_lie(folder):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    command.run(search)
