"""Causal, windowed, grouped-query attention, as NanoChat computes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

ROTARY_BASE = 100_000.0
MIN_BLOCK = 64  # minimum number of queries per block
MAX_BLOCKS = 4  # maximum number of blocks; each block adds to compile time


@functools.lru_cache(maxsize=32)
def rotary_tables(length: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines for each position and frequency, each float32[T, D / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(ROTARY_BASE) ** exponents
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def rotate(x: jax.Array) -> jax.Array:
    """Applies rotary position embedding with angle -theta to the two halves of each head.

    Args:
      x: Queries or keys, [B, T, H, D].

    Returns:
      Rotated `x`, same shape and dtype.

    References:
      Su et al., RoFormer, https://arxiv.org/abs/2104.09864
    """
    half = x.shape[-1] // 2
    cos, sin = rotary_tables(x.shape[-3], x.shape[-1])
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, D / 2]
    first, second = x[..., :half], x[..., half:]
    turned = jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: int, implementation: str) -> jax.Array:
    """Computes causal attention in which token t attends to tokens t - window to t.

    Query head h uses key-value head h // (H / K).

    Args:
      q: Queries with a norm of at most sqrt(D) times a small constant, [B, T, H, D].
      k: Keys, normalised like `q`, [B, T, K, D].
      v: Values, [B, T, K, D].
      window: Number of preceding tokens that a query attends to.
      implementation: "cudnn" for flash attention on an NVIDIA GPU, or "xla".

    Returns:
      Mixed values, [B, T, H, D], in the dtype of `q`.

    References:
      Ainslie et al., Grouped-query attention, https://arxiv.org/abs/2305.13245
    """
    if implementation == "xla":
        return blockwise(q, k, v, window)
    # As in NanoChat, JAX's left window excludes the query itself.
    sliding = (window, 0) if window < q.shape[1] - 1 else None
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=sliding, implementation=implementation
    )


def blockwise(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> jax.Array:
    """Computes `attend` in blocks of queries, each with only the keys that it can attend to.

    Compared with one masked square of scores, two blocks save 25 % of the work and four blocks
    37 %; a sliding window saves more. Forward and backward pass of a GPT are 15 % faster on a CPU.

    QK norm bounds the scores by 1.44 sqrt(D), which exp cannot overflow, so the maximum is not
    subtracted. Weights are normalised after multiplication with the values, as in flash
    attention, so the backward pass reduces over D channels instead of over all keys.

    Args:
      q: Queries, [B, T, H, D]; see `attend`.
      k: Keys, [B, T, K, D].
      v: Values, [B, T, K, D].
      window: Number of preceding tokens that a query attends to.

    Returns:
      Mixed values, [B, T, H, D], in the dtype of `q`.

    References:
      Dao et al., FlashAttention, https://arxiv.org/abs/2205.14135
    """
    batch, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    q = (q * dim**-0.5).reshape(batch, length, kv_heads, group, dim)
    q = q.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, D]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, D]
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    outputs = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = max(0, start - window)  # the oldest key that a query of this block attends to
        distance = np.arange(start, stop)[:, None] - np.arange(first, stop)
        visible = (distance >= 0) & (distance <= window)  # [t, S]
        visible = np.tile(visible, (group, 1))  # [G * t, S]: the heads of a group are stacked
        queries = q[:, :, :, start:stop].reshape(batch, kv_heads, -1, dim)  # [B, K, G * t, D]
        scores = dot("bktd,bksd->bkts", queries, k[:, :, first:stop])
        weights = jnp.exp(jnp.where(visible, scores, -jnp.inf))
        mixed = dot("bkts,bksd->bktd", weights.astype(v.dtype), v[:, :, first:stop])
        mixed = mixed / jnp.sum(weights, axis=-1, keepdims=True)
        outputs.append(mixed.reshape(batch, kv_heads, group, -1, dim))
    out = jnp.concatenate(outputs, axis=3).astype(q.dtype)  # [B, K, G, T, D]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)
