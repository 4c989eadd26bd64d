"""Trains a Flax MLP that classifies digits with a policy in an optax loop.

The policy updates the two hidden matrices, and AdamW updates the output head and the biases. The
policy is a preset or a JSON file that holds a spec or a candidate's line of an `archive.jsonl`.

  python examples/optax_loop.py
  python examples/optax_loop.py --spec=winner.json

The example takes 20 s on 2 busy cores. Its output ends with

  step  240: loss 0.0001, gate 0.769
  step  299: loss 0.0002, gate 0.879
  97.1% of 450 test digits are right

One run on one seed shows how to use a policy. It does not show which optimizer is better.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nanoevolve_jax as ne

_SPEC = flags.DEFINE_string("spec", "annealing", "nanochat, trust_ratio, annealing, or a JSON file")
_STEPS = flags.DEFINE_integer("steps", 300, "optimizer steps", lower_bound=1)
_BATCH = 64


class Classifier(nnx.Module):
    """Network that classifies 64 pixels as one of 10 digits."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)  # updated by AdamW because of its name

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Returns the logits, float32[B, 10].

        Args:
          pixels: Pixels of each image, float32[B, 64].
        """
        return self.head(jax.nn.relu(self.second(jax.nn.relu(self.first(pixels)))))


def load_policy(name: str) -> ne.OptimizerSpec:
    """Returns a preset or the spec in a file.

    Args:
      name: Name of a preset or path of a JSON file.
    """
    return ne.PRESETS[name] if name in ne.PRESETS else ne.load_spec(name)


def main(arguments: list[str]) -> None:
    """Trains the network and prints the loss, the gate and the test accuracy."""
    del arguments
    logging.set_verbosity(logging.WARNING)  # hides JAX's messages about missing accelerators
    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(pixels, digits.target, random_state=0)

    graph, params = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
    optimizer = ne.candidate_optimizer(
        load_policy(_SPEC.value),
        learning_rate=optax.linear_schedule(0.05, 0.005, _STEPS.value),
        total_steps=_STEPS.value,
        others=ne.AdamWGroup(learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.0),
    )
    state = optimizer.init(params)

    def loss_of(params, x, y):
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(0)
    for number in range(_STEPS.value):
        rows = rng.integers(len(train_x), size=_BATCH)
        params, state, loss = step(params, state, train_x[rows], train_y[rows])
        if number % max(1, _STEPS.value // 5) == 0 or number == _STEPS.value - 1:
            gate = optax.tree.get(state, "gate")
            print(f"step {number:4d}: loss {loss:.4f}, gate {gate:.3f}")
    logits = nnx.merge(graph, params)(jnp.asarray(test_x))
    accuracy = float(jnp.mean(jnp.argmax(logits, axis=1) == test_y))
    print(f"{accuracy:.1%} of {len(test_y)} test digits are right")


if __name__ == "__main__":
    app.run(main)
