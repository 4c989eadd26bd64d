"""Every field of a configuration: default, hard bounds, unit, meaning and scope, in one table.

The table is what `get_config` builds, what validation checks and what the README prints. The scope
says which fields a received document (an evidence card, a run folder, a job's folder) may set. It
has no default, so a new field cannot be added without a decision.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

Scope = Literal["result", "machine"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field; numbers have bounds (both included), words choices, text and switches neither.

    Attributes:
      default: Value of the field unless something else is given; its type is the field's type.
      meaning: Description for people.
      low: Smallest value of a number.
      high: Largest value of a number.
      choices: Allowed words.
      scope: `result` if the field decides what is computed, so that a received document may set
        it. `machine` if it names a place, a program, a connection or a device of this machine:
        it comes from this machine's configuration and flags only.
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
    "seed": Result(0, "campaign seed: initial weights, batches and mutations", 0, 2**16 - 1),
    "workdir": Machine("runs/screen", "run folder; running again with the same one resumes"),
    "engine": Machine("local", "where candidates are trained", choices=("local", "ray")),
    "devices": Machine(0, "devices that train candidates; 0: all (a CPU: one a core)", 0, 4096),
    "data_parallel": Result(
        1, "devices that share one candidate, each with a part of its batch", 1, 4096
    ),
    "lanes": Result(
        1, "candidates a device trains at once (vmap); 0: what memory holds; a CPU: 1", 0, 4096
    ),
    "threads": Machine(
        0, "threads a process computes with on a CPU; 0: one a core it may use", 0, 4096
    ),
    "distributed": Machine(
        "none",
        "several processes as one; auto: those of a cluster job, or of JAX_* variables",
        choices=("none", "auto"),
    ),
    "checkpoint_seconds": Machine(
        30, "between checkpoints at least; 0: one after every segment", 0, 86_400
    ),
    "calibration": Machine(
        "none", "calibration.json made by `calibrate`; none: the baseline counts as untuned"
    ),
    # Who else hears of a run, beside the terminal
    "track.tensorboard": Machine(True, "event files for TensorBoard in the run folder"),
    "track.wandb": Machine(False, "runs of Weights & Biases; needs nanoevolve-jax[wandb]"),
    "track.mlflow": Machine(False, "runs of MLflow; needs nanoevolve-jax[mlflow]"),
    "track.project": Machine("nanoevolve", "W&B project and MLflow experiment of these runs"),
    # A plan instead of a run
    "plan": Machine(False, "print runs, FLOPs and hours by stage, and train nothing"),
    "step_seconds": Machine(
        0.0, "seconds a candidate-step that the plan reckons with; 0: measured here", 0.0, 1e6
    ),
    "machines": Machine(4, "the plan gives hours on 1 to so many machines", 1, 4096),
    # A Ray cluster, where `engine` is ray
    "ray.address": Machine("local", "of the cluster, as ray.init takes it; local: start one here"),
    "ray.gpus": Machine(
        -1, "of every worker; -1: as many as a candidate needs, if there are any", -1, 64
    ),
    "ray.workers": Machine(0, "at most; 0: as many as there is room and work for", 0, 10_000),
    "ray.attempts": Machine(3, "times a batch is tried before its candidates are dead", 1, 100),
    "ray.silence_seconds": Machine(
        1800, "without a finished segment before a worker counts as hung", 1, 10**6
    ),
    "ray.wait_seconds": Machine(600, "without any worker before the command ends", 1, 10**6),
    # Text
    "data.corpus": Result("stdlib", "stdlib, docstrings, parquet:DIR, climbmix or fineweb_edu"),
    "data.cache_dir": Machine("cache", "folder of tokenizers, packed rows and ledgers"),
    "data.shards": Result(
        0, "training shards used at most; 0: all of a folder, one of the hub", 0, 10_000
    ),
    "data.max_train_tokens": Result(0, "tokens packed at most; 0: all", 0, 10**12),
    "data.vocab_size": Result(1024, "tokens, the nine special ones included", 265, 65_536),
    "data.max_epochs": Result(1.0, "passes over the rows a run may make", 0.001, 1000.0),
    "data.validation_rows": Result(256, "rows of a validation fold that are used", 1, 10**7),
    "data.folds": Result(
        8, "disjoint parts of the validation text: screening, promotion, confirmations", 3, 34
    ),
    # NanoChat's GPT
    "model.n_layer": Result(4, "blocks", 1, 128),
    "model.n_head": Result(2, "query heads", 1, 256),
    "model.n_kv_head": Result(2, "key and value heads", 1, 256),
    "model.n_embd": Result(64, "width", 24, 16_384),
    "model.sequence_len": Result(128, "tokens a row", 2, 65_536),
    "model.window_pattern": Result("SSSL", "S: short window, L: long, tiled over layers"),
    "model.dtype": Result("float32", "of activations", choices=("float32", "bfloat16")),
    "model.attention": Result("xla", "kernel of attention", choices=("xla", "cudnn")),
    # One training run
    "train.steps": Result(100, "horizon in optimizer steps", 1, 10**7),
    "train.batch_size": Result(8, "rows a step", 1, 65_536),
    "train.segment_steps": Result(25, "steps between returns to the host", 1, 100_000),
    "train.evaluations": Result(2, "validations over the run, the last one at its end", 1, 1000),
    # NanoChat's recipe at its reference batch (2^19 tokens), horizon and width (768)
    "recipe.matrix_lr": Result(0.02, "Muon learning rate", 1e-6, 100.0),
    "recipe.embedding_lr": Result(0.3, "AdamW, token embedding", 1e-6, 100.0),
    "recipe.unembedding_lr": Result(0.008, "AdamW, output head", 1e-6, 100.0),
    "recipe.scalar_lr": Result(0.5, "AdamW, residual and x0 lambdas", 1e-6, 100.0),
    "recipe.smear_lr": Result(0.2, "AdamW, smear and backout", 1e-6, 100.0),
    "recipe.weight_decay": Result(0.28, "of matrices, at step 0", 0.0, 10.0),
    "recipe.warmup_fraction": Result(0.016, "of the horizon: 40 of 2,520 steps", 0.0, 1.0),
    "recipe.warmdown_fraction": Result(0.65, "of the horizon", 0.0, 1.0),
    "recipe.final_lr_fraction": Result(0.05, "of the peak learning rate", 0.0, 1.0),
    "recipe.momentum_warmup_fraction": Result(
        0.1587, "of the horizon: 400 of 2,520 steps", 0.0, 1.0
    ),
    "recipe.momentum": Result(0.97, "of the baseline's Muon, on its plateau", 0.0, 0.99),
    "recipe.second_moment_beta": Result(0.9, "of the baseline's Muon", 0.5, 0.999),
    # Evolution
    "search.generations": Result(3, "generations of children", 1, 100_000),
    "search.population": Result(8, "children a generation", 1, 100_000),
    "search.survivors": Result(4, "candidates that may have children", 1, 10_000),
    "search.tournament": Result(2, "survivors drawn for each parent; the best is taken", 1, 1000),
    "search.control_every": Result(
        8, "one child in so many mutates only the recipe; 0: none", 0, 100_000
    ),
    "search.cost_weight": Result(
        0.05, "bpb that a unit of ln(cost) must buy, where no calibration says", 0.0, 100.0
    ),
    # Promotion picks one candidate (only with a calibration)
    "promote.first": Result(12, "candidates of the first round", 1, 1000),
    "promote.first_seeds": Result(3, "fresh seeds each", 1, 200),
    "promote.final": Result(4, "candidates of the second round", 1, 1000),
    "promote.final_seeds": Result(6, "further fresh seeds each", 1, 200),
    # Confirmation tests it, at the full horizon
    "confirm.steps": Result(200, "full horizon in optimizer steps", 1, 10**7),
    "confirm.max": Result(1, "confirmations of a campaign that count; divides p", 1, 32),
    "confirm.evaluations": Result(5, "validations over a full run, for steps to target", 1, 1000),
    "confirm.lr_seeds": Result(3, "promotion seeds a learning rate is tried on", 1, 100),
    "confirm.first_seeds": Result(8, "pairs at the first look", 2, 64),
    "confirm.first_p": Result(0.01, "wins at the first look", 0.0, 1.0),
    "confirm.seeds": Result(20, "pairs at the second look", 3, 64),
    "confirm.p": Result(0.04, "wins at the second look", 0.0, 1.0),
    "confirm.min_gain": Result(0.5, "sigmas a win must gain at least", 0.0, 100.0),
    "confirm.worst": Result(2.0, "sigmas the worst run may be below the baseline's", 0.0, 100.0),
    # Attribution and transfer, only after a win
    "attribute.donors": Result(8, "runs whose gate trajectories are replayed", 2, 64),
    "attribute.panel_seeds": Result(12, "pairs of the perturbation panel", 2, 64),
    "attribute.switch_corpus": Result("docstrings", "the corpus that the panel switches to"),
    "transfer.seeds": Result(8, "pairs of each cell", 2, 64),
    "transfer.width": Result(4, "times the width, for level 5", 1, 64),
    # Comparison of given specs
    "compare.seeds": Result(4, "seeds that the specs of a comparison share", 2, 64),
    # Calibration
    "calibrate.seeds": Result(8, "seeds of the noise and of the final choice", 8, 64),
    "calibrate.tuning_runs": Result(
        0, "runs that tune the recipe; 0: as many as search and promotion make", 0, 10**6
    ),
    "calibrate.panel_seeds": Result(3, "seeds of every spec of the panel", 2, 64),
    # Code mutation, only by `python -m nanoevolve_jax.codegen.autonomous`
    "codegen.ensemble": Machine("none", "profiles that are asked for code, comma-separated"),
    "codegen.providers": Machine("configs/providers.toml", "file of the profiles"),
    "codegen.scope": Machine(
        "all", "what may be rewritten", choices=("all", "matrix", "gating", "routing")
    ),
    "codegen.proposals": Machine(30, "asked for at most", 1, 10**6),
    "codegen.window": Machine(4, "proposals under way at once", 1, 1000),
    "codegen.islands": Machine(3, "lines of descent that mix only by migration", 1, 100),
    "codegen.migrate": Machine(
        4, "one proposal of an island in so many has a parent from the next; 0: none", 0, 10**6
    ),
    "codegen.fill": Machine(
        8, "spec mutants trained while no code is ready, a proposal at most", 0, 10_000
    ),
    "codegen.plateau": Machine(
        0, "proposals without a better candidate before it ends; 0: never", 0, 10**6
    ),
    "codegen.calls": Machine(200, "requests to providers at most", 1, 10**7),
    "codegen.tokens": Machine(2_000_000, "of prompts and answers at most", 1, 10**12),
    "codegen.dollars": Machine(10.0, "paid to providers at most", 0.0, 1e7),
    "codegen.seconds": Machine(86_400, "of waiting for providers at most, added up", 1, 10**9),
    "codegen.isolation": Machine(
        "required",
        "walls of the jail; available: those that this machine has, at your risk",
        choices=("required", "available"),
    ),
    "codegen.jail_seconds": Machine(
        120,
        "that the validation of a source may take; compiling its training program, five times that",
        1,
        86_400,
    ),
    "codegen.max_cost": Machine(
        4.0, "FLOPs of a function at most, in those of the built-in one", 1.0, 1000.0
    ),
    "codegen.address": Machine(
        "none", "Ray cluster whose jobs screen code; local: of this machine; none: trained here"
    ),
}

# What a first look at a command should see of them.
OFTEN = (
    *("workdir", "seed", "data.corpus", "train.steps", "search.generations", "calibration"),
    "plan",
)

SAME = "same"


def _of_this_machine(*paths: str) -> dict[str, Setting]:
    return {path: SETTINGS[path] for path in paths}


_TEXT = {
    "data.corpus": Machine(
        SAME, "parquet:DIR if the text is a folder that was never used here; same: found by name"
    )
}

# Fields of `confirm`. What decides the result comes from the run folder, the rest from here.
CONFIRM_SETTINGS: dict[str, Setting] = {
    "workdir": Machine("runs/screen", "run folder of the search"),
    "candidate": Machine("promoted", "id of the candidate; promoted: the one promotion picked"),
    "until": Machine(
        "transfer", "last stage to run after a win", choices=("confirm", "attribute", "transfer")
    ),
    "calibration": Machine(SAME, "calibration.json; same: the copy in the run folder"),
    **_TEXT,
    "attribute.switch_corpus": Machine(
        SAME, "parquet:DIR if the search names a folder; same: found by name"
    ),
    **_of_this_machine(
        *("data.cache_dir", "devices", "threads", "distributed", "checkpoint_seconds", "engine"),
        *(path for path in SETTINGS if path.startswith(("ray.", "track."))),
        "codegen.isolation",
    ),
}

# Fields of `replay`: the same for an evidence card.
REPLAY_SETTINGS: dict[str, Setting] = {
    **_TEXT,
    **_of_this_machine("data.cache_dir", "devices", "threads", "codegen.isolation"),
    "lanes": Machine(-1, "candidates a device trains at once; -1: as on the card", -1, 4096),
    "data_parallel": Machine(-1, "devices that share one candidate; -1: as on the card", -1, 4096),
}


def get_config(settings: Mapping[str, Setting] = SETTINGS) -> ConfigDict:
    """The defaults of a table of settings as a config."""
    config = ConfigDict()
    for path, setting in settings.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = setting.default
    return config
