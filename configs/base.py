"""Every field of a configuration: default, hard bounds, unit and meaning, in one table.

The table is what `get_config` builds, what validation checks and what the README prints.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Setting(NamedTuple):
    """One field; numbers have bounds (both included), words have choices, text has neither."""

    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "seed": Setting(0, "campaign seed: initial weights, batches and mutations", 0, 2**31 - 1),
    "workdir": Setting("runs/screen", "run folder; running again with the same one resumes"),
    "engine": Setting("local", "where candidates are trained", choices=("local",)),
    "devices": Setting(0, "devices on the population axis; 0: all (a CPU: one a core)", 0, 4096),
    "lanes": Setting(1, "candidates a device trains at once (vmap); 1 is best on a CPU", 1, 4096),
    # Text
    "data.corpus": Setting("stdlib", "stdlib, parquet:DIR, climbmix or fineweb_edu"),
    "data.cache_dir": Setting("cache", "folder of tokenizers and packed rows"),
    "data.shards": Setting(
        0, "training shards used at most; 0: all of a folder, one of the hub", 0, 10_000
    ),
    "data.max_train_tokens": Setting(0, "tokens packed at most; 0: all", 0, 10**12),
    "data.vocab_size": Setting(1024, "tokens, the nine special ones included", 265, 65_536),
    "data.max_epochs": Setting(1.0, "passes over the rows a run may make", 0.001, 1000.0),
    "data.validation_rows": Setting(256, "rows of the fixed validation set", 1, 10**7),
    # NanoChat's GPT
    "model.n_layer": Setting(4, "blocks", 1, 128),
    "model.n_head": Setting(2, "query heads", 1, 256),
    "model.n_kv_head": Setting(2, "key and value heads", 1, 256),
    "model.n_embd": Setting(64, "width", 24, 16_384),
    "model.sequence_len": Setting(128, "tokens a row", 2, 65_536),
    "model.window_pattern": Setting("SSSL", "S: short window, L: long, tiled over layers"),
    "model.dtype": Setting("float32", "of activations", choices=("float32", "bfloat16")),
    "model.attention": Setting("xla", "kernel of attention", choices=("xla", "cudnn")),
    # One training run
    "train.steps": Setting(100, "horizon in optimizer steps", 1, 10**7),
    "train.batch_size": Setting(8, "rows a step", 1, 65_536),
    "train.segment_steps": Setting(25, "steps between returns to the host", 1, 100_000),
    "train.evaluations": Setting(2, "validations over the run, the last one at its end", 1, 1000),
    # NanoChat's recipe at its reference batch (2^19 tokens), horizon and width (768)
    "recipe.matrix_lr": Setting(0.02, "Muon learning rate", 1e-6, 100.0),
    "recipe.embedding_lr": Setting(0.3, "AdamW, token embedding", 1e-6, 100.0),
    "recipe.unembedding_lr": Setting(0.008, "AdamW, output head", 1e-6, 100.0),
    "recipe.scalar_lr": Setting(0.5, "AdamW, residual and x0 lambdas", 1e-6, 100.0),
    "recipe.smear_lr": Setting(0.2, "AdamW, smear and backout", 1e-6, 100.0),
    "recipe.weight_decay": Setting(0.28, "of matrices, at step 0", 0.0, 10.0),
    "recipe.warmup_fraction": Setting(0.016, "of the horizon: 40 of 2,520 steps", 0.0, 1.0),
    "recipe.warmdown_fraction": Setting(0.65, "of the horizon", 0.0, 1.0),
    "recipe.final_lr_fraction": Setting(0.05, "of the peak learning rate", 0.0, 1.0),
    "recipe.momentum_warmup_fraction": Setting(
        0.1587, "of the horizon: 400 of 2,520 steps", 0.0, 1.0
    ),
    # Evolution
    "search.generations": Setting(3, "generations of children", 1, 100_000),
    "search.population": Setting(8, "children a generation", 1, 100_000),
    "search.survivors": Setting(4, "candidates that may have children", 1, 10_000),
    "search.tournament": Setting(2, "survivors drawn for each parent; the best is taken", 1, 1000),
    "search.cost_weight": Setting(0.05, "bpb a doubling of cost must buy, over ln 2", 0.0, 100.0),
    "search.stability_weight": Setting(
        0.05, "bpb for one nat of rise of the training loss", 0.0, 100.0
    ),
}


def get_config() -> ConfigDict:
    """The defaults of `SETTINGS` as a config."""
    config = ConfigDict()
    for path, setting in SETTINGS.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = setting.default
    return config
