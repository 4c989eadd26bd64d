"""NanoChat's training recipe: learning rates, parameter groups and schedules as traced numbers.

The recipe is data, like the spec, so one compiled program trains any recipe at any horizon. The
numbers are those of NanoChat's `scripts/base_train.py`. Durations that NanoChat gives in steps are
fractions of the horizon here, so that a short proxy run covers the full schedule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.transform import MATRIX, AdamWGroup, candidate_optimizer

REFERENCE_BATCH_TOKENS = 2.0**19
# NanoChat's d12 at 12 tokens per parameter: 110,100,480 matrix and head parameters.
REFERENCE_TOKENS = 12.0 * 110_100_480
REFERENCE_WIDTH = 768
# NanoChat's initial and final 1 - momentum (0.85, 0.90) relative to its plateau (0.97).
_WARMUP_GAP = (1 - 0.85) / (1 - 0.97)
_WARMDOWN_GAP = (1 - 0.90) / (1 - 0.97)


class Recipe(NamedTuple):
    """All training parameters outside the policy, as numbers that may be traced.

    Learning rates are those at the peak of the schedule, after scaling to batch and width by
    `scale_recipe`.
    """

    matrix_lr: Any
    embedding_lr: Any
    unembedding_lr: Any
    scalar_lr: Any
    smear_lr: Any
    weight_decay: Any  # weight decay of matrices at step 0
    warmup_fraction: Any  # length of the linear warm-up as a fraction of the horizon
    warmdown_fraction: Any  # length of the linear warm-down as a fraction of the horizon
    final_lr_fraction: Any  # final learning rate as a fraction of the peak
    momentum_warmup_fraction: Any  # length of the momentum warm-up as a fraction of the horizon


def scale_recipe(recipe: Recipe, *, batch_tokens: float, total_steps: int, width: int) -> Recipe:
    """Returns a recipe scaled from NanoChat's reference batch, horizon and width.

    Learning rates are proportional to the square root of the batch size. AdamW's learning rates for
    the embeddings and the head are also inversely proportional to the square root of the width.
    Weight decay is scaled by `sqrt(B / B_ref) * D_ref / D`, where B is the batch size and D the
    number of training tokens, which preserves the total shrinkage of a run. The learning rate of
    the smear group is not scaled.

    Args:
      recipe: Recipe at the reference batch size, horizon and width.
      batch_tokens: Number of tokens per step.
      total_steps: Horizon in steps.
      width: Embedding dimension of the model.

    References:
      Wang and Aitchison, How to set AdamW's weight decay as you scale model and dataset size,
      arXiv:2405.13698.
    """
    batch = (batch_tokens / REFERENCE_BATCH_TOKENS) ** 0.5
    adam = batch * (width / REFERENCE_WIDTH) ** -0.5
    tokens = batch_tokens * total_steps
    return recipe._replace(
        matrix_lr=recipe.matrix_lr * batch,
        embedding_lr=recipe.embedding_lr * adam,
        unembedding_lr=recipe.unembedding_lr * adam,
        scalar_lr=recipe.scalar_lr * batch,
        weight_decay=recipe.weight_decay * batch * REFERENCE_TOKENS / tokens,
    )


def _round_steps(fraction: Any, total_steps: Any) -> jax.Array:
    """Returns a fraction of the horizon in steps, rounded half to even as Python does.

    The first rounding removes float32 errors, such as 0.65 * 190 being less than 123.5.
    """
    steps = jnp.asarray(fraction * total_steps, jnp.float32)
    return jnp.round(jnp.round(steps * 1024.0) / 1024.0)


def lr_multiplier(recipe: Recipe, step: Any, total_steps: Any) -> jax.Array:
    """Returns the factor on the learning rate, with a linear warm-up, a plateau and a warm-down.

    Args:
      recipe: Recipe with the lengths of the phases.
      step: Index of the step.
      total_steps: Horizon in steps.
    """
    warmup = _round_steps(recipe.warmup_fraction, total_steps)
    warmdown = _round_steps(recipe.warmdown_fraction, total_steps)
    rising = (step + 1.0) / jnp.maximum(warmup, 1.0)
    progress = (total_steps - step) / jnp.maximum(warmdown, 1.0)
    falling = progress + (1.0 - progress) * recipe.final_lr_fraction
    late = jnp.where(step <= total_steps - warmdown, 1.0, falling)
    return jnp.where(step < warmup, rising, late)


def muon_momentum(plateau: Any, recipe: Recipe, step: Any, total_steps: Any) -> jax.Array:
    """Returns Muon's momentum, which rises to a plateau and falls in the warm-down.

    Args:
      plateau: Momentum between warm-up and warm-down.
      recipe: Recipe with the lengths of the phases.
      step: Index of the step.
      total_steps: Horizon in steps.
    """
    start = jnp.maximum(1.0 - _WARMUP_GAP * (1.0 - plateau), 0.0)
    end = jnp.maximum(1.0 - _WARMDOWN_GAP * (1.0 - plateau), 0.0)
    warmup = _round_steps(recipe.momentum_warmup_fraction, total_steps)
    warmdown = _round_steps(recipe.warmdown_fraction, total_steps)
    rise = step / jnp.maximum(warmup, 1.0)
    fall = (step - (total_steps - warmdown)) / jnp.maximum(warmdown, 1.0)
    rising = (1.0 - rise) * start + rise * plateau
    falling = (1.0 - fall) * plateau + fall * end
    late = jnp.where(step >= total_steps - warmdown, falling, plateau)
    return jnp.where(step < warmup, rising, late)


def muon_weight_decay(recipe: Recipe, step: Any, total_steps: Any) -> jax.Array:
    """Returns Muon's weight decay, which follows a cosine from the recipe's value to 0.

    Args:
      recipe: Recipe with the initial weight decay.
      step: Index of the step.
      total_steps: Horizon in steps.
    """
    return recipe.weight_decay * 0.5 * (1.0 + jnp.cos(jnp.pi * step / total_steps))


def nanochat_groups(
    recipe: Recipe, schedule: Callable[[Any], Callable[[Any], Any]]
) -> dict[str, AdamWGroup]:
    """Returns NanoChat's AdamW groups by label.

    Args:
      recipe: Recipe with the peak learning rates.
      schedule: Function that maps a peak learning rate to a schedule.
    """
    return {
        "unembedding": AdamWGroup(schedule(recipe.unembedding_lr), 0.8, 0.96, 0.01),
        "embedding": AdamWGroup(schedule(recipe.embedding_lr), 0.8, 0.995, 0.001),
        "value_embedding": AdamWGroup(schedule(recipe.embedding_lr * 0.5), 0.8, 0.995, 0.01),
        "residual": AdamWGroup(schedule(recipe.scalar_lr * 0.01), 0.8, 0.95, 0.05),
        "x0": AdamWGroup(schedule(recipe.scalar_lr), 0.96, 0.95, 0.0),
        "smear": AdamWGroup(schedule(recipe.smear_lr), 0.8, 0.95, 0.0),
    }


# The first match determines the label. Parameters without a match are matrices.
_LABELS = (
    ("lm_head", "unembedding"),
    ("value_embed", "value_embedding"),
    ("wte", "embedding"),
    ("resid_lambdas", "residual"),
    ("x0_lambdas", "x0"),
    ("smear", "smear"),
    ("backout", "smear"),
)


def nanochat_labels(params: Any) -> Any:
    """Returns the label of every parameter of NanoChat's model.

    Args:
      params: Parameters of the model.

    Returns:
      Tree of labels with the structure of `params`.
    """

    def label(path, leaf):
        del leaf
        name = jax.tree_util.keystr(path)
        return next((group for word, group in _LABELS if word in name), MATRIX)

    return jax.tree_util.tree_map_with_path(label, params)


def nanochat_optimizer(
    spec: OptimizerSpec,
    recipe: Recipe,
    *,
    total_steps: Any,
    **policy_args: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a candidate for NanoChat's GPT.

    Args:
      spec: Policy for the matrices.
      recipe: Recipe with the learning rates and schedules.
      total_steps: Horizon in steps.
      **policy_args: Further arguments of `candidate_optimizer`.
    """

    def scheduled(peak):
        return lambda step: peak * lr_multiplier(recipe, step, total_steps)

    return candidate_optimizer(
        spec,
        scheduled(recipe.matrix_lr),
        total_steps=total_steps,
        others=nanochat_groups(recipe, scheduled),
        labels=nanochat_labels,
        momentum=lambda step: muon_momentum(spec.momentum, recipe, step, total_steps),
        weight_decay=lambda step: muon_weight_decay(recipe, step, total_steps),
        **policy_args,
    )
