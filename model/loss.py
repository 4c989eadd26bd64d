"""Cross-entropy in nats, and bits per byte, which compares models across tokenizers."""

import jax
import jax.numpy as jnp

IGNORED = -1  # target of tokens that do not count


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each token.

    Args:
      logits: Logits, float32[B, T, V].
      targets: Next tokens, or -1 to ignore, int32[B, T].

    Returns:
      Losses in nats, 0 where the target is ignored, float32[B, T].
    """
    counted = targets != IGNORED
    right = jnp.take_along_axis(logits, jnp.where(counted, targets, 0)[..., None], axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - right[..., 0]
    return jnp.where(counted, losses, 0.0)


def mean_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of the targets that are not ignored, or 0 if all are.

    Args:
      logits: Logits, float32[B, T, V].
      targets: Next tokens, or -1 to ignore, int32[B, T].

    Returns:
      Nats per token, float32[].
    """
    count = jnp.sum(targets != IGNORED)
    return jnp.sum(token_losses(logits, targets)) / jnp.maximum(count, 1)


def nats_and_bytes(
    losses: jax.Array, targets: jax.Array, token_bytes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the sums whose ratio gives bits per byte; add them over batches before dividing.

    Special tokens stand for 0 bytes of text, so their losses do not count.

    Args:
      losses: Losses in nats from `token_losses`, float32[B, T].
      targets: Next tokens, or -1 to ignore, int32[B, T].
      token_bytes: UTF-8 bytes of each token, 0 for special tokens, int32[V].

    Returns:
      Sum of nats, float32[], and sum of bytes, int32[].
    """
    sizes = jnp.where(targets != IGNORED, token_bytes[jnp.maximum(targets, 0)], 0)
    return jnp.sum(jnp.where(sizes > 0, losses, 0.0)), jnp.sum(sizes)


def bits_per_byte(nats, num_bytes):
    """Returns bits per byte, nats / (ln 2 * bytes); infinite if there are no bytes."""
    return jnp.where(num_bytes > 0, nats / (jnp.log(2.0) * jnp.maximum(num_bytes, 1)), jnp.inf)
