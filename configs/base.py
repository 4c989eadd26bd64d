"""Every field of a configuration: default, bounds, meaning and scope, in one table.

`get_config` builds a config from the table, validation checks a config against it, and
docs/CONFIGURATION.md is generated from it. The scope says whether a received document (an evidence
card, a run folder, a deployed job) may set the field.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

Scope = Literal["result", "machine"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration.

    Attributes:
      default: Default value; its type is the type of the field.
      meaning: Description of the field for users, with its unit.
      low: Smallest allowed value of a number.
      high: Largest allowed value of a number.
      choices: Allowed words.
      scope: `result` if the field decides what is computed, so that a received document may set
        it. `machine` if it names a path, a program, a connection or a device of this machine, so
        that only this machine's configuration and flags may set it.
    """

    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    scope: Scope = dataclasses.field(kw_only=True)

    @property
    def limits(self) -> str:
        """What the field may hold, such as `an integer from 1 to 128` or `local or ray`."""
        if self.choices:
            return " or ".join(self.choices)
        if isinstance(self.default, str):
            return "non-empty Unicode text"
        if isinstance(self.default, bool):
            return "False or True"
        if isinstance(self.default, int):
            return f"an integer from {self.low:,} to {self.high:,}"
        return f"a number from {self.low:g} to {self.high:g}"


Result = functools.partial(Setting, scope="result")
Machine = functools.partial(Setting, scope="machine")


SETTINGS: dict[str, Setting] = {
    "seed": Result(0, "seed of weights, batches and mutations", 0, 2**16 - 1),
    "workdir": Machine("runs/screen", "run folder; the same command resumes it"),
    "engine": Machine("local", "where candidates are trained", choices=("local", "ray")),
    "devices": Machine(
        0, "devices that train candidates (0: all; on a CPU, one per core)", 0, 4096
    ),
    "data_parallel": Result(
        1, "devices that share one candidate, each training on a part of the batch", 1, 4096
    ),
    "lanes": Result(
        1,
        "candidates that a device trains at once (0: as many as fit in memory; 1 on a CPU)",
        0,
        4096,
    ),
    "threads": Machine(0, "CPU threads per process (0: one per available core)", 0, 4096),
    "distributed": Machine(
        "none",
        "auto: join the processes of a cluster job or of the JAX_* variables into one run",
        choices=("none", "auto"),
    ),
    "checkpoint_seconds": Machine(
        30, "minimum seconds between checkpoints (0: after every segment)", 0, 86_400
    ),
    "calibration": Machine(
        "none", "calibration.json written by `calibrate` (none: the baseline is not tuned)"
    ),
    "track.tensorboard": Machine(True, "write TensorBoard event files into the run folder"),
    "track.wandb": Machine(False, "log to Weights & Biases; needs nanoevolve-jax[wandb]"),
    "track.mlflow": Machine(False, "log to MLflow; needs nanoevolve-jax[mlflow]"),
    "track.project": Machine("nanoevolve", "W&B project and MLflow experiment"),
    "plan": Machine(False, "print a plan of the campaign and train nothing"),
    "step_seconds": Machine(
        0.0, "seconds per candidate and step that the plan assumes (0: measured here)", 0.0, 1e6
    ),
    "machines": Machine(4, "largest number of machines that the plan shows", 1, 4096),
    "ray.address": Machine("local", "address of the Ray cluster (local: start one here)"),
    "ray.gpus": Machine(-1, "GPUs per worker (-1: as many as one candidate needs)", -1, 64),
    "ray.workers": Machine(0, "maximum number of workers (0: as many as are useful)", 0, 10_000),
    "ray.attempts": Machine(3, "attempts at a batch before its candidates count as dead", 1, 100),
    "ray.silence_seconds": Machine(
        1800, "seconds without a finished segment after which a worker counts as hung", 1, 10**6
    ),
    "ray.wait_seconds": Machine(
        600, "seconds without any worker after which the command ends", 1, 10**6
    ),
    "data.corpus": Result("stdlib", "stdlib, docstrings, parquet:DIR, climbmix or fineweb_edu"),
    "data.cache_dir": Machine("cache", "folder of tokenizers, packed rows and ledgers"),
    "data.shards": Result(
        0, "maximum number of training shards (0: all of a folder, one of the hub)", 0, 10_000
    ),
    "data.max_train_tokens": Result(0, "maximum number of training tokens (0: all)", 0, 10**12),
    "data.vocab_size": Result(1024, "vocabulary size, including 9 special tokens", 265, 65_536),
    "data.max_epochs": Result(1.0, "maximum passes of a run over the rows", 0.001, 1000.0),
    "data.validation_rows": Result(256, "rows per validation", 1, 10**7),
    "data.folds": Result(
        8, "disjoint folds of the validation text for screening, promotion, confirmation", 3, 34
    ),
    "model.n_layer": Result(4, "layers", 1, 128),
    "model.n_head": Result(2, "query heads", 1, 256),
    "model.n_kv_head": Result(2, "key and value heads", 1, 256),
    "model.n_embd": Result(64, "width", 24, 16_384),
    "model.sequence_len": Result(128, "tokens per row", 2, 65_536),
    "model.window_pattern": Result("SSSL", "attention windows, S short or L long, by layer"),
    "model.dtype": Result("float32", "dtype of activations", choices=("float32", "bfloat16")),
    "model.attention": Result("xla", "attention kernel", choices=("xla", "cudnn")),
    "train.steps": Result(100, "horizon in optimizer steps", 1, 10**7),
    "train.batch_size": Result(8, "rows per step", 1, 65_536),
    "train.segment_steps": Result(25, "steps between returns to the host", 1, 100_000),
    "train.evaluations": Result(2, "validations per run; the last one is at its end", 1, 1000),
    "recipe.matrix_lr": Result(0.02, "learning rate of Muon", 1e-6, 100.0),
    "recipe.embedding_lr": Result(0.3, "AdamW learning rate of token embeddings", 1e-6, 100.0),
    "recipe.unembedding_lr": Result(0.008, "AdamW learning rate of the output head", 1e-6, 100.0),
    "recipe.scalar_lr": Result(0.5, "AdamW learning rate of residual and x0 lambdas", 1e-6, 100.0),
    "recipe.smear_lr": Result(0.2, "AdamW learning rate of smear and backout", 1e-6, 100.0),
    "recipe.weight_decay": Result(0.28, "weight decay of matrices at step 0", 0.0, 10.0),
    "recipe.warmup_fraction": Result(
        0.016, "warm-up as a fraction of the horizon (40 of 2,520 steps)", 0.0, 1.0
    ),
    "recipe.warmdown_fraction": Result(0.65, "warm-down as a fraction of the horizon", 0.0, 1.0),
    "recipe.final_lr_fraction": Result(
        0.05, "final learning rate as a fraction of the peak", 0.0, 1.0
    ),
    "recipe.momentum_warmup_fraction": Result(
        0.1587, "momentum warm-up as a fraction of the horizon (400 of 2,520 steps)", 0.0, 1.0
    ),
    "recipe.momentum": Result(0.97, "momentum of the baseline's Muon on its plateau", 0.0, 0.99),
    "recipe.second_moment_beta": Result(
        0.9, "second-moment decay of the baseline's Muon", 0.5, 0.999
    ),
    "search.generations": Result(3, "generations of children", 1, 100_000),
    "search.population": Result(8, "children per generation", 1, 100_000),
    "search.survivors": Result(4, "candidates that may become parents", 1, 10_000),
    "search.tournament": Result(
        2, "survivors drawn for each child; the best of them is its parent", 1, 1000
    ),
    "search.control_every": Result(
        8, "every n-th child mutates only the recipe (0 disables)", 0, 100_000
    ),
    "search.cost_weight": Result(
        0.05, "bpb charged per unit of ln(cost) when there is no calibration", 0.0, 100.0
    ),
    "promote.first": Result(12, "candidates in the first round", 1, 1000),
    "promote.first_seeds": Result(3, "fresh seeds per candidate in the first round", 1, 200),
    "promote.final": Result(4, "candidates in the second round", 1, 1000),
    "promote.final_seeds": Result(6, "further seeds per candidate in the second round", 1, 200),
    "confirm.steps": Result(200, "full horizon in optimizer steps", 1, 10**7),
    "confirm.max": Result(
        1, "confirmations per campaign that count; p-values are divided by it", 1, 32
    ),
    "confirm.evaluations": Result(5, "validations per full run, for steps to target", 1, 1000),
    "confirm.lr_seeds": Result(3, "promotion seeds per learning rate", 1, 100),
    "confirm.first_seeds": Result(8, "pairs of runs at the first look", 2, 64),
    "confirm.first_p": Result(0.01, "largest p-value that wins at the first look", 0.0, 1.0),
    "confirm.seeds": Result(20, "pairs of runs at the second look", 3, 64),
    "confirm.p": Result(0.04, "largest p-value that wins at the second look", 0.0, 1.0),
    "confirm.min_gain": Result(0.5, "smallest gain that wins, in sigmas", 0.0, 100.0),
    "confirm.worst": Result(
        2.0, "sigmas by which the worst run may be below the baseline's worst", 0.0, 100.0
    ),
    "attribute.donors": Result(8, "runs whose gate trajectories are replayed", 2, 64),
    "attribute.panel_seeds": Result(12, "pairs of runs per perturbation", 2, 64),
    "attribute.switch_corpus": Result("docstrings", "corpus that a perturbation switches to"),
    "transfer.seeds": Result(8, "pairs of runs per cell", 2, 64),
    "transfer.width": Result(4, "factor by which level 5 widens the model", 1, 64),
    "compare.seeds": Result(4, "seeds that the compared specs share", 2, 64),
    "calibrate.seeds": Result(8, "seeds that measure the noise and choose the recipe", 8, 64),
    "calibrate.tuning_runs": Result(
        0, "runs that tune the recipe (0: as many as search and promotion)", 0, 10**6
    ),
    "calibrate.panel_seeds": Result(3, "seeds per spec of the panel", 2, 64),
    "codegen.ensemble": Machine("none", "provider profiles that write code, separated by commas"),
    "codegen.providers": Machine("configs/providers.toml", "file of provider profiles"),
    "codegen.scope": Machine(
        "all", "functions that may be rewritten", choices=("all", "matrix", "gating", "routing")
    ),
    "codegen.proposals": Machine(30, "maximum number of proposals", 1, 10**6),
    "codegen.window": Machine(4, "proposals processed at once", 1, 1000),
    "codegen.islands": Machine(3, "separate populations that exchange parents", 1, 100),
    "codegen.migrate": Machine(
        4,
        "every n-th proposal of an island takes a parent of the next island (0 disables)",
        0,
        10**6,
    ),
    "codegen.fill": Machine(
        8, "maximum number of spec mutants trained per proposal while no code is ready", 0, 10_000
    ),
    "codegen.plateau": Machine(
        0, "proposals without improvement after which the campaign ends (0 disables)", 0, 10**6
    ),
    "codegen.calls": Machine(200, "maximum number of requests to providers", 1, 10**7),
    "codegen.tokens": Machine(2_000_000, "maximum tokens of prompts and answers", 1, 10**12),
    "codegen.dollars": Machine(10.0, "maximum cost of all requests in dollars", 0.0, 1e7),
    "codegen.seconds": Machine(86_400, "maximum total seconds of waiting for providers", 1, 10**9),
    "codegen.isolation": Machine(
        "required",
        "required: refuse to run code without full isolation; available: accept less",
        choices=("required", "available"),
    ),
    "codegen.jail_seconds": Machine(
        120, "seconds to validate a source; compiling it may take five times as long", 1, 86_400
    ),
    "codegen.max_cost": Machine(
        4.0, "maximum FLOPs of a rewritten function relative to the built-in one", 1.0, 1000.0
    ),
    "codegen.address": Machine(
        "none", "Ray cluster that screens code (local: started here; none: no cluster)"
    ),
}

# Fields that `--help` shows; `--helpfull` shows all.
OFTEN = (
    *("workdir", "seed", "data.corpus", "train.steps", "search.generations", "calibration"),
    "plan",
)

SAME = "same"


def _of_this_machine(*paths: str) -> dict[str, Setting]:
    return {path: SETTINGS[path] for path in paths}


_TEXT = {
    "data.corpus": Machine(
        SAME, "parquet:DIR if the text is a folder that is new to this machine (same: look it up)"
    )
}

# Fields of `confirm`. All that decides the result comes from the run folder.
CONFIRM_SETTINGS: dict[str, Setting] = {
    "workdir": Machine("runs/screen", "run folder of the search"),
    "candidate": Machine(
        "promoted", "id of the candidate (promoted: the one that promotion picked)"
    ),
    "until": Machine(
        "transfer", "last stage to run after a win", choices=("confirm", "attribute", "transfer")
    ),
    "calibration": Machine(SAME, "calibration.json (same: the copy in the run folder)"),
    **_TEXT,
    "attribute.switch_corpus": Machine(
        SAME, "parquet:DIR if the search names a folder (same: look it up)"
    ),
    **_of_this_machine(
        *("data.cache_dir", "devices", "threads", "distributed", "checkpoint_seconds", "engine"),
        *(path for path in SETTINGS if path.startswith(("ray.", "track."))),
        "codegen.isolation",
    ),
}

# Fields of `replay`. All that decides the result comes from the evidence card.
REPLAY_SETTINGS: dict[str, Setting] = {
    **_TEXT,
    **_of_this_machine("data.cache_dir", "devices", "threads", "codegen.isolation"),
    "lanes": Machine(-1, "candidates that a device trains at once (-1: as on the card)", -1, 4096),
    "data_parallel": Machine(-1, "devices that share one candidate (-1: as on the card)", -1, 4096),
}


def get_config(settings: Mapping[str, Setting] = SETTINGS) -> ConfigDict:
    """Returns a config with the defaults of a table of settings."""
    config = ConfigDict()
    for path, setting in settings.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = setting.default
    return config
