"""Screening: many candidates, short runs, one seed.

  python -m nanoevolve_jax.search --config=configs/screen.py

`:cpu`, the default, is for a machine with 2 cores and no download: 27 candidates in under 3
minutes. `:d4` (width 256) and `:d12` (NanoChat's own d12) want a GPU and a web corpus.
"""

from nanoevolve_jax.configs import base
from nanoevolve_jax.errors import UserError, must


def _cpu(config):
    """About 0.2 M matrix parameters; 102,400 tokens a candidate.

    The recipe is what `calibrate` found on `stdlib` (results/stdlib_cpu/calibration.json): 2.1633
    bpb on 8 fresh seeds, against 2.1725 for the recipe it began with, an earlier calibration's,
    and 2.2132 for a coarse one. NanoChat's own rules are made for batches of 2^19 tokens and leave
    so short a run far behind.
    """
    config.recipe.matrix_lr = 1.858
    config.recipe.embedding_lr = 5.548
    config.recipe.unembedding_lr = 0.1479
    config.recipe.scalar_lr = 9.247
    config.recipe.weight_decay = 0.0006018
    config.recipe.warmup_fraction = 0.03411
    config.recipe.warmdown_fraction = 0.6908
    config.recipe.final_lr_fraction = 0.2551
    config.recipe.momentum = 0.8335
    config.recipe.second_moment_beta = 0.6618


def _d4(config):
    """Four layers of 256: about 3 M matrix parameters; 16 M tokens a candidate."""
    config.workdir = "runs/screen_d4"
    config.lanes = 0
    config.data.corpus = "climbmix"
    config.data.shards = 8
    config.data.vocab_size = 8192
    config.data.validation_rows = 1024
    config.model.n_layer = 4
    config.model.n_head = 2
    config.model.n_kv_head = 2
    config.model.n_embd = 256
    config.model.sequence_len = 512
    config.model.dtype = "bfloat16"
    config.model.attention = "cudnn"
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.segment_steps = 100
    config.confirm.steps = 2000


def _d12(config):
    """NanoChat's d12 (width 768): 85 M matrix parameters; 262 M tokens a candidate."""
    _d4(config)
    config.workdir = "runs/screen_d12"
    config.data.shards = 40
    config.data.vocab_size = 32_768
    config.data.validation_rows = 512
    config.model.n_layer = 12
    config.model.n_head = 6
    config.model.n_kv_head = 6
    config.model.n_embd = 768
    config.model.sequence_len = 2048
    config.train.steps = 2000
    config.train.batch_size = 64
    config.train.segment_steps = 20
    config.confirm.steps = 4000


VARIANTS = {"cpu": _cpu, "d4": _d4, "d12": _d12}


def get_config(variant: str = "cpu"):
    """The screening config of a variant: cpu, d4 or d12."""
    if variant not in VARIANTS:
        raise UserError(must("config variant", f"be {' or '.join(VARIANTS)}", variant))
    config = base.get_config()
    VARIANTS[variant](config)
    return config
