"""What every command starts with: devices, packed rows, an engine, a calibration."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from data.batches import check_horizon
from data.rows import Rows, build_rows
from nanoevolve_jax.display import DataDisplay
from nanoevolve_jax.evidence import attribution, transfer
from nanoevolve_jax.evidence.calibration_file import (
    UNCALIBRATED,
    Calibration,
    evaluation_facts,
    load_calibration,
)
from nanoevolve_jax.execution.engine import LocalEngine, validation_sets
from nanoevolve_jax.execution.population import make_programs, visible_cores
from nanoevolve_jax.execution.settings import ConfigError, make_task, with_recipe
from nanoevolve_jax.execution.stream import Stream


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


def make_engine(
    config: ConfigDict, rows: Rows, devices: int, *, other_rows=None, capacity: int = 1
) -> LocalEngine:
    """The engine of a config over packed rows.

    Args:
      config: whole.
      rows: packed rows of the corpus.
      devices: of the population axis.
      other_rows: training rows of a corpus to switch to.
      capacity: how many batches a step of the program has room for.
    """
    task = make_task(config)
    task = task._replace(batch_size=capacity * task.batch_size)
    return LocalEngine(
        task=task,
        programs=make_programs(task, devices=devices, lanes=config.lanes),
        stream=Stream(rows.train, config.train.batch_size, config.data.vocab_size, other_rows),
        evaluation=validation_sets(
            rows.folds,
            config.data.validation_rows,
            config.train.batch_size,
            rows.token_bytes,
        ),
        segment_steps=min(config.train.segment_steps, config.train.steps),
        evaluations=config.train.evaluations,
    )


def make_engines(
    config: ConfigDict, rows: Rows, devices: int
) -> dict[str, Callable[[], LocalEngine]]:
    """The engine of the confirmation, and those that attribution and transfer may ask for."""
    main = functools.cache(lambda: make_engine(config, rows, devices))

    def switching() -> LocalEngine:
        other = build_rows(
            config.attribute.switch_corpus,
            vocab_size=config.data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=config.data.cache_dir,
            tokenizer=rows.tokenizer,
        )
        return main()._replace(stream=main().stream._replace(other_rows=other.train))

    return {
        "main": main,
        attribution.SWITCH: switching,
        attribution.WIDE: lambda: make_engine(config, rows, devices, capacity=2),
        transfer.WIDER: lambda: make_engine(transfer.wider(config), rows, devices),
    }


def load_rows(config: ConfigDict, console: Console, steps: int = 0) -> Rows:
    """Packed rows of the config's corpus, from the cache or built now.

    Args:
      config: whole.
      console: for progress.
      steps: longest horizon that must fit; 0: `train.steps`.
    """
    data = config.data
    with DataDisplay(console) as display:
        rows = build_rows(
            data.corpus,
            vocab_size=data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=data.cache_dir,
            shards=data.shards,
            max_train_tokens=data.max_train_tokens,
            folds=data.folds,
            progress=display.on_progress,
        )
    check_horizon(
        rows.train,
        steps=steps or config.train.steps,
        batch_size=config.train.batch_size,
        max_epochs=data.max_epochs,
    )
    sizes = [len(fold) for fold in rows.folds]
    console.print(
        f"{data.corpus}: {len(rows.train):,} training rows of {rows.sequence_len} tokens; "
        f"{sum(sizes):,} validation rows in {len(sizes)} folds",
        highlight=False,
        soft_wrap=True,
    )
    return rows


def calibrated(
    config: ConfigDict, fingerprints: dict[str, str]
) -> tuple[ConfigDict, Calibration | None]:
    """The config under its calibration's recipe, and the calibration, if it names one."""
    if config.calibration == UNCALIBRATED:
        return config, None
    facts = evaluation_facts(config, fingerprints)
    calibration = load_calibration(Path(config.calibration), facts)
    return with_recipe(config, calibration.recipe), calibration
