"""Conversion between NanoChat's PyTorch state dictionary and `params`."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanoevolve_jax.errors import must
from nanoevolve_jax.model.config import GPTConfig
from nanoevolve_jax.model.gpt import init_params


class Place(NamedTuple):
    """Place of a PyTorch parameter in `params`."""

    path: tuple[str | int, ...]  # such as ("blocks", 0, "attn", "c_q", "kernel")
    transposed: bool  # PyTorch stores linear weights (out, in), Flax (in, out)


def places(config: GPTConfig) -> dict[str, Place]:
    """Returns the place in `params` of each PyTorch parameter name."""
    table = {
        "transformer.wte.weight": Place(("wte", "embedding"), False),
        "lm_head.weight": Place(("lm_head", "kernel"), True),
        "smear_gate.weight": Place(("smear_gate", "kernel"), True),
    }
    for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"):
        table[name] = Place((name,), False)
    for i in range(config.n_layer):
        linears = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        if i in config.value_embed_layers:
            linears.append("attn.ve_gate")
            path = ("blocks", i, "attn", "value_embed", "embedding")
            table[f"value_embeds.{i}.weight"] = Place(path, False)
        for linear in linears:
            path = ("blocks", i, *linear.split("."), "kernel")
            table[f"transformer.h.{i}.{linear}.weight"] = Place(path, True)
    return table


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the PyTorch shape of each parameter, by PyTorch name."""
    params = _abstract(config)
    return {
        name: get(params, path).shape[:: -1 if transposed else 1]
        for name, (path, transposed) in places(config).items()
    }


def from_nanochat(state: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Builds `params` from a NanoChat state dictionary.

    Args:
      state: Arrays in PyTorch layout, by PyTorch name.
      config: Configuration of the model.

    Returns:
      Parameters in the structure and dtypes of `init_params`.

    Raises:
      ValueError: If a name is missing or unknown, or an array has the wrong shape.
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
            raise ValueError(
                must(f"NanoChat parameter {name}", f"have shape {shape}", np.shape(state[name]))
            )
    params = jax.tree.map(lambda leaf: leaf, _abstract(config))  # new dicts, filled below
    for name, (path, transposed) in expected.items():
        *parents, last = path
        node = get(params, parents)
        array = np.asarray(state[name])
        node[last] = jnp.asarray(array.T if transposed else array, node[last].dtype)
    return params


def to_nanochat(params: dict, config: GPTConfig) -> dict[str, np.ndarray]:
    """Returns the PyTorch state dictionary; the inverse of `from_nanochat`."""
    state = {}
    for name, (path, transposed) in places(config).items():
        array = np.asarray(get(params, path))
        state[name] = np.ascontiguousarray(array.T if transposed else array)
    return state


@functools.lru_cache(maxsize=64)
def _abstract(config: GPTConfig) -> dict:
    """Returns the shapes and dtypes of all parameters."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def get(params: dict, path) -> dict | jax.Array:
    """Returns the subtree or leaf of `params` at `path`."""
    for key in path:
        params = params[key]
    return params
