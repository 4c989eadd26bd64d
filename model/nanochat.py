"""Weights in and out: NanoChat's PyTorch names and layouts on one side, `params` on the other."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from nanoevolve_jax.model.config import GPTConfig
from nanoevolve_jax.model.gpt import init_params


class Place(NamedTuple):
    """Where a PyTorch parameter lives in `params`."""

    path: tuple[str | int, ...]  # such as ("blocks", 0, "attn", "c_q", "kernel")
    transposed: bool  # PyTorch stores linear weights (out, in), Flax (in, out)


def places(config: GPTConfig) -> dict[str, Place]:
    """Maps every PyTorch parameter name of this model to its place in `params`."""
    found = {
        "transformer.wte.weight": Place(("wte", "embedding"), False),
        "lm_head.weight": Place(("lm_head", "kernel"), True),
        "smear_gate.weight": Place(("smear_gate", "kernel"), True),
    }
    for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"):
        found[name] = Place((name,), False)
    for i in range(config.n_layer):
        linears = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        if i in config.value_embed_layers:
            linears.append("attn.ve_gate")
            table = ("blocks", i, "attn", "value_embed", "embedding")
            found[f"value_embeds.{i}.weight"] = Place(table, False)
        for linear in linears:
            path = ("blocks", i, *linear.split("."), "kernel")
            found[f"transformer.h.{i}.{linear}.weight"] = Place(path, True)
    return found


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The PyTorch shape of every parameter, by PyTorch name."""
    params = _abstract(config)
    return {
        name: get(params, path).shape[:: -1 if transposed else 1]
        for name, (path, transposed) in places(config).items()
    }


def from_nanochat(state: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Builds `params` from a NanoChat state dictionary.

    Args:
      state: arrays by PyTorch name, in PyTorch layout.
      config: the shape of the model.

    Returns:
      Parameters as `init_params` gives them, same dtypes.

    Raises:
      ValueError: a name is missing or unknown, or an array has the wrong shape.
    """
    expected = places(config)
    for problem, names in (
        ("misses", expected.keys() - state.keys()),
        ("has unknown", state.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"NanoChat state {problem} {min(names)}{more}")
    for name, shape in shapes(config).items():
        if np.shape(state[name]) != shape:
            found = np.shape(state[name])
            raise ValueError(f"NanoChat parameter {name} has shape {found}, not {shape}")
    params = jax.tree.map(lambda leaf: leaf, _abstract(config))  # dicts of its own, to be filled
    for name, (path, transposed) in expected.items():
        *parents, last = path
        node = get(params, parents)
        array = np.asarray(state[name])
        node[last] = jnp.asarray(array.T if transposed else array, node[last].dtype)
    return params


def to_nanochat(params: dict, config: GPTConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_nanochat`: arrays by PyTorch name, in PyTorch layout."""
    state = {}
    for name, (path, transposed) in places(config).items():
        array = np.asarray(get(params, path))
        state[name] = np.ascontiguousarray(array.T if transposed else array)
    return state


@functools.lru_cache(maxsize=64)
def _abstract(config: GPTConfig) -> dict:
    """Shapes and dtypes of all parameters, without the numbers."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def get(params: dict, path) -> dict | jax.Array:
    """The subtree or leaf of `params` at `path`."""
    for key in path:
        params = params[key]
    return params
