"""Configuration of a NanoChat GPT, and the sizes derived from it."""

import dataclasses
import math
from typing import Any

from nanoevolve_jax.errors import must

VOCAB_MULTIPLE = 64  # the stored vocabulary is padded to a multiple of this
WINDOW_MULTIPLE = 128  # short windows are rounded up to a multiple of this
SMEAR_CHANNELS = 24  # channels of a token that gate the share of its predecessor
VE_GATE_CHANNELS = 12  # channels of the attention input that gate the value embedding

_DTYPES = ("float32", "bfloat16")
_ATTENTION = ("xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """NanoChat's seven fields, and two that select how to compute.

    With `dtype="bfloat16"` the token and value embeddings are stored in bfloat16 too, as in
    NanoChat on a GPU. Other weights are float32 and cast where they are used. `attention="cudnn"`
    selects cuDNN flash attention, which needs an NVIDIA GPU and bfloat16; JAX never selects it by
    itself.

    Raises:
      ValueError: If a field is invalid.
    """

    sequence_len: int = 2048  # number of tokens; determines the windows
    vocab_size: int = 32768  # number of tokens; stored padded to a multiple of 64
    n_layer: int = 12  # blocks
    n_head: int = 6  # query heads
    n_kv_head: int = 6  # key and value heads, each shared by n_head / n_kv_head query heads
    n_embd: int = 768  # channels of the residual stream
    window_pattern: str = "SSSL"  # S short, L long; repeats; the last is always long
    dtype: str = "float32"  # activations: float32 | bfloat16
    attention: str = "xla"  # implementation: xla | cudnn

    def __post_init__(self):
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                _reject(name, value, "an integer")
            if value < 1:
                _reject(name, value, "at least 1")
        if self.n_embd < SMEAR_CHANNELS:
            _reject("n_embd", self.n_embd, f"at least {SMEAR_CHANNELS}, which smear reads")
        if self.n_embd % self.n_head:
            _reject("n_embd", self.n_embd, f"a multiple of n_head = {self.n_head}")
        if self.head_dim % 2:
            rule = "an even multiple of n_head (rotary positions)"
            _reject("n_embd", self.n_embd, rule)
        if self.n_head % self.n_kv_head:
            _reject("n_kv_head", self.n_kv_head, f"a divisor of n_head = {self.n_head}")
        pattern = self.window_pattern
        if not isinstance(pattern, str) or not pattern or set(pattern.upper()) - set("SL"):
            _reject("window_pattern", pattern, "one or more of the letters S (short) and L (long)")
        if self.dtype not in _DTYPES:
            _reject("dtype", self.dtype, " or ".join(_DTYPES))
        if self.attention not in _ATTENTION:
            _reject("attention", self.attention, " or ".join(_ATTENTION))
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            _reject("attention", self.attention, "xla unless dtype is bfloat16")

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary size, rounded up to a multiple of VOCAB_MULTIPLE."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Width of keys, of values, and of the value embeddings."""
        return self.n_kv_head * self.head_dim

    @property
    def windows(self) -> tuple[int, ...]:
        """Number of preceding tokens that a query attends to, per layer."""
        quarter = math.ceil(self.sequence_len / 4)
        sizes = {
            "S": math.ceil(quarter / WINDOW_MULTIPLE) * WINDOW_MULTIPLE,
            "L": self.sequence_len,
        }
        pattern = self.window_pattern.upper()
        tiled = [sizes[pattern[i % len(pattern)]] for i in range(self.n_layer - 1)]
        return (*tiled, self.sequence_len)

    @property
    def value_embed_layers(self) -> tuple[int, ...]:
        """Layers with value embeddings: every second layer, ending with the last."""
        return tuple(i for i in range(self.n_layer) if i % 2 == (self.n_layer - 1) % 2)

    @property
    def backout_layer(self) -> int:
        """The block whose output is partly subtracted before the head."""
        return self.n_layer // 2

    @property
    def param_counts(self) -> dict[str, int]:
        """Parameters by kind, in NanoChat's grouping; `total` is their sum."""
        width, kv = self.n_embd, self.kv_dim
        attention = 2 * width * width + 2 * width * kv
        mlp = 8 * width * width
        n_value = len(self.value_embed_layers)
        counts = {
            "wte": self.padded_vocab_size * width,
            "value_embeds": n_value * self.padded_vocab_size * kv,
            "lm_head": self.padded_vocab_size * width,
            "transformer_matrices": self.n_layer * (attention + mlp)
            + n_value * self.n_kv_head * VE_GATE_CHANNELS,
            "scalars": 2 * self.n_layer + SMEAR_CHANNELS + 2,
        }
        return counts | {"total": sum(counts.values())}

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return self.param_counts["total"]

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token: 6 per weight in a matmul, 12 per channel and visible key.

        This is the rule of PaLM, appendix B (https://arxiv.org/abs/2204.02311). Embeddings are
        look-ups and cost nothing. The smear gate is a matmul, so its weights count, although
        `param_counts` groups them with the scalars.
        """
        counts = self.param_counts
        in_matmuls = counts["transformer_matrices"] + counts["lm_head"] + SMEAR_CHANNELS
        keys_seen = sum(min(window, self.sequence_len) for window in self.windows)
        return 6 * in_matmuls + 12 * self.n_embd * keys_seen


def _reject(field: str, value: Any, rule: str) -> None:
    raise ValueError(must(f"GPTConfig.{field}", f"be {rule}", value))
