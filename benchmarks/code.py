"""Compares certified code with the built-in functions: training time and results.

  python -m benchmarks.code --rounds=40 --out=results/code_cpu.json

The built-in functions of all four slots are certified like any other source. In each round, the
same training step runs once with the built-in functions and once with the certified functions, and
ratios are taken within a round. The reported difference is the relative L2 norm between the
parameter changes that both make in 50 steps on the same gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, logging

from benchmarks import options
from benchmarks.optimizer import BASELINE as BUILT_IN
from benchmarks.optimizer import GATED, Subject, step_alone, step_in_training, subjects
from benchmarks.timing import environment, interleaved
from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate, Task
from nanoevolve_jax.model import gpt
from nanoevolve_jax.model.loss import mean_loss
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import SLOTS, built_in_source
from nanoevolve_jax.terminal.console import Console

STEPS = 50
DIFFERENCE_GOAL, TIME_GOAL = 1e-6, 1.05
_PAIRS = {"baseline": BUILT_IN, "gated": GATED}


def seed_code(task: Task, dtype: str) -> Code:
    """Returns the built-in functions of all slots as code that was certified on this machine.

    Args:
      task: Static description of the training.
      dtype: Dtype of the model, such as `float32`.
    """
    walls = runner.isolation(runner.AVAILABLE)
    limits = runner.Limits(seconds=600.0, cpu_seconds=1200)
    functions = []
    for slot in sorted(SLOTS):
        source = built_in_source(slot)
        verdict = certify.validate(slot, source, matrix_shapes(task.model), dtype, limits, walls)
        if verdict.certified is None:
            raise ValueError(f"{slot} is refused: {verdict.refusal}")
        functions.append(verdict.certified)
    return Code(tuple(functions))


def difference(task: Task, ours: Subject, theirs: Subject) -> float:
    """Returns the relative L2 difference between the parameter changes of two optimizers.

    Both optimizers run for 50 steps on the gradients at the parameters of the first one. With their
    own gradients, training would amplify a difference in the last bit, which is not a property of
    the optimizer.

    Args:
      task: Static description of the training.
      ours: First optimizer.
      theirs: Second optimizer.
    """
    shape = (STEPS, task.batch_size, task.model.sequence_len + 1)
    rows = np.random.default_rng(1).integers(0, task.model.vocab_size, shape, np.int32)
    start = gpt.init_params(task.model, jax.random.key(0))

    def loss_fn(params, batch):
        return mean_loss(gpt.apply(task.model, params, batch[:, :-1]), batch[:, 1:])

    @jax.jit
    def run(inputs, rows, params):
        optimizers = [subject.make(inputs) for subject in (ours, theirs)]

        def body(i, pairs):
            loss, grads = jax.value_and_grad(loss_fn)(pairs[0][0], rows[i])
            after = []
            for optimizer, (params, state) in zip(optimizers, pairs, strict=True):
                updates, state = optimizer.update(grads, state, params, value=loss)
                after.append((optax.apply_updates(params, updates), state))
            return after

        pairs = [(params, optimizer.init(params)) for optimizer in optimizers]
        return [params for params, _ in jax.lax.fori_loop(0, STEPS, body, pairs)]

    one, other = (
        jax.tree.map(jnp.subtract, params, start) for params in run(ours.inputs, rows, start)
    )
    norm = optax.tree.norm
    return float(norm(jax.tree.map(jnp.subtract, one, other)) / norm(one))


def measure(task: Task, baseline: Candidate, code: Code, steps: int, rounds: int) -> dict[str, Any]:
    """Measures step time, optimizer time and difference of results for both specs.

    Args:
      task: Static description of the training.
      baseline: Baseline candidate.
      code: Certified functions.
      steps: Steps per timed run.
      rounds: Number of repeats.
    """
    ours, theirs = subjects(task, baseline), subjects(task._replace(code=code), baseline)
    measured = {}
    for name, key in _PAIRS.items():
        pair = {"built in": ours[key], "certified": theirs[key]}
        times = {}
        for place, timed in (("training", step_in_training), ("alone", step_alone)):
            runs = {n: timed(task, s, steps, {}) for n, s in pair.items()}
            for warm in runs.values():
                warm()
            taken = interleaved(runs, rounds)
            times[place] = taken["certified"] / taken["built in"]
        measured[name] = {
            "training_times": float(np.median(times["training"])),
            "quartiles": np.percentile(times["training"], [25, 75]).tolist(),
            "alone_times": float(np.median(times["alone"])),
            "difference": difference(task, *pair.values()),
        }
    return {"steps": steps, "rounds": rounds, "specs": measured}


def main(argv: Sequence[str]) -> None:
    """Measures every size that the device can run, and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    console, rounds = Console(width=110), options.rounds(15)
    log = functools.partial(console.print, highlight=False, soft_wrap=True)
    on_cpu = jax.devices()[0].platform == "cpu"
    results: dict[str, Any] = {}
    for variant, config in options.configs(on_cpu).items():
        if on_cpu and variant != "cpu":
            log(f":{variant} is left out on a CPU")
            continue
        task = make_task(config)
        baseline = Candidate(make_baseline(config), make_recipe(config))
        code = seed_code(task, config.model.dtype)
        steps = options.steps(variant, on_cpu)
        results[variant] = measure(task, baseline, code, steps, rounds)
        for name, row in results[variant]["specs"].items():
            low, high = row["quartiles"]
            log(
                f":{variant}, {name}: step {row['training_times']:.3f} times, goal {TIME_GOAL:g}, "
                f"quartiles {low:.3f} to {high:.3f}; optimizer alone {row['alone_times']:.3f}; "
                f"difference {row['difference']:.1e}, goal {DIFFERENCE_GOAL:g}"
            )
    options.write(environment("benchmarks.code") | {"results": results})


if __name__ == "__main__":
    app.run(main)
