"""Cross-entropy in nats, and bits per byte, which compares models across tokenizers."""

import jax
import jax.numpy as jnp

IGNORED = -1  # a target that counts for nothing


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of every token.

    Args:
      logits: float32[B, T, V].
      targets: int32[B, T], the next tokens, or -1 to ignore.

    Returns:
      float32[B, T] nats, 0 where the target is ignored.
    """
    counted = targets != IGNORED
    right = jnp.take_along_axis(logits, jnp.where(counted, targets, 0)[..., None], axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - right[..., 0]
    return jnp.where(counted, losses, 0.0)


def mean_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy over the counted targets; 0 where none is counted.

    Args:
      logits: float32[B, T, V].
      targets: int32[B, T], the next tokens, or -1 to ignore.

    Returns:
      float32[] nats per token.
    """
    count = jnp.sum(targets != IGNORED)
    return jnp.sum(token_losses(logits, targets)) / jnp.maximum(count, 1)


def nats_and_bytes(
    losses: jax.Array, targets: jax.Array, token_bytes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums for bits per byte; add them over batches, then divide once.

    Special tokens stand for 0 bytes of text: their losses drop out too.

    Args:
      losses: float32[B, T] nats, from `token_losses`.
      targets: int32[B, T], or -1 to ignore.
      token_bytes: int32[V], UTF-8 bytes of every token, 0 for specials.

    Returns:
      Sum of nats, float32[], and sum of bytes, int32[].
    """
    sizes = jnp.where(targets != IGNORED, token_bytes[jnp.maximum(targets, 0)], 0)
    return jnp.sum(jnp.where(sizes > 0, losses, 0.0)), jnp.sum(sizes)


def bits_per_byte(nats, num_bytes):
    """Bits needed per byte of text: nats / (ln 2 * bytes); infinite where there are no bytes."""
    return jnp.where(num_bytes > 0, nats / (jnp.log(2.0) * jnp.maximum(num_bytes, 1)), jnp.inf)
