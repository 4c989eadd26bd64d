"""Measures the cost of a policy per optimizer step and per training step, compared with optax.

  python -m benchmarks.optimizer --variants=cpu --out=results/optimizer_cpu.json

The subjects are optax's AdamW and Muon, and this project's form of NanoChat's optimizer. The latter
is measured traced, where the numbers of the spec are inputs as in a search, and specialised, where
they are constants as in deployment, each without and with a gate. A traced program runs any spec,
so the traced gate uses the baseline's program with other numbers. Each subject is timed alone, as
updates with fixed gradients, and inside the training step. Subjects take turns, and ratios are
taken within a round.

The goals apply to the training step, because that is the time a user waits. On a CPU, moreover, the
times of the small kernels of an update alone vary by more than the few percent in question. Both
ratios are printed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, logging
from optax import contrib
from rich.table import Table

from benchmarks import options
from benchmarks.timing import Run, big_matmul, environment, interleaved, ratio, seconds
from nanoevolve_jax.evidence.eligibility import state_ratio
from nanoevolve_jax.execution.checkpoint import tree_bytes
from nanoevolve_jax.execution.cost import lowered_flops
from nanoevolve_jax.execution.population import stack_candidates
from nanoevolve_jax.execution.schedules import nanochat_labels
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate, Task
from nanoevolve_jax.model import gpt
from nanoevolve_jax.model.loss import mean_loss
from nanoevolve_jax.policy.spec import set_field
from nanoevolve_jax.policy.transform import MATRIX
from nanoevolve_jax.terminal.console import Console

BASELINE, SPECIALISED = "baseline, traced", "baseline, specialised"
GATED, GATED_SPECIALISED = "gated, traced", "gated, specialised"
ADAMW, MUON = "optax.adamw", "optax.contrib.muon"
_HORIZON = 10**6
# Tuples of name, subject, reference subject and largest allowed ratio of their times.
GOALS = (
    ("gated traced to baseline traced", GATED, BASELINE, 1.03),
    ("gated specialised to baseline specialised", GATED_SPECIALISED, SPECIALISED, 1.01),
)
STATE_GOAL = 1.05


class Subject(NamedTuple):
    """Optimizer whose numbers are either constants or inputs of the program."""

    make: Callable[[Any], optax.GradientTransformation]  # function from `inputs` to the optimizer
    inputs: Any = ()  # traced argument of `make`


def optax_muon(learning_rate: float = 0.02, ns_steps: int = 5) -> optax.GradientTransformation:
    """Returns optax's Muon for the matrices that a policy updates, with AdamW for the rest.

    Args:
      learning_rate: Learning rate.
      ns_steps: Number of Newton-Schulz iterations.
    """

    def matrices(params):
        numbers = contrib.MuonDimensionNumbers()
        return jax.tree.map(
            lambda label: numbers if label == MATRIX else None, nanochat_labels(params)
        )

    return contrib.muon(
        learning_rate,
        ns_steps=ns_steps,
        weight_decay=0.1,
        muon_weight_dimension_numbers=matrices,
    )


def subjects(task: Task, baseline: Candidate) -> dict[str, Subject]:
    """Returns all optimizers to compare, by name.

    Args:
      task: Static description of the training.
      baseline: Baseline candidate.
    """
    gated = baseline._replace(spec=set_field(baseline.spec, "control.enabled", 1))

    def traced(candidate):
        numbers = jax.tree.map(lambda x: jnp.asarray(x[0]), stack_candidates([candidate]))
        return Subject(lambda inputs: task.optimizer(*inputs), (numbers, jnp.int32(_HORIZON)))

    def specialised(candidate):
        return Subject(lambda inputs: task.optimizer(candidate, _HORIZON))

    return {
        ADAMW: Subject(lambda inputs: optax.adamw(1e-3, weight_decay=0.1)),
        MUON: Subject(lambda inputs: optax_muon()),
        BASELINE: traced(baseline),
        SPECIALISED: specialised(baseline),
        GATED: traced(gated),
        GATED_SPECIALISED: specialised(gated),
    }


def _update(subject: Subject, inputs, grads, state, params, loss):
    optimizer = optax.with_extra_args_support(subject.make(inputs))
    updates, state = optimizer.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def step_alone(task: Task, subject: Subject, steps: int, program: dict) -> Run:
    """Returns a run of updates with fixed gradients.

    Args:
      task: Task that defines the parameters.
      subject: Optimizer to run.
      steps: Number of updates per run.
      program: Cache of compiled programs by key, which this function fills. Traced subjects share
        one program.
    """
    params = gpt.init_params(task.model, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    grads = jax.tree.map(lambda p, k: 0.01 * jax.random.normal(k, p.shape, p.dtype), params, keys)

    def run(inputs, grads, params, state):
        def body(i, carry):
            del i
            params, state = carry
            return _update(subject, inputs, grads, state, params, jnp.float32(3.0))

        return jax.lax.fori_loop(0, steps, body, (params, state))

    return _looped(run, subject, params, program, (grads,))


def step_in_training(task: Task, subject: Subject, steps: int, program: dict) -> Run:
    """Returns a run of full training steps.

    Args:
      task: Static description of the training.
      subject: Optimizer to run.
      steps: Number of training steps per run.
      program: Cache of compiled programs by key, which this function fills. Traced subjects share
        one program.
    """
    params = gpt.init_params(task.model, jax.random.key(0))
    shape = (steps, task.batch_size, task.model.sequence_len + 1)
    rows = np.random.default_rng(1).integers(0, task.model.vocab_size, shape, np.int32)

    def loss_fn(params, batch):
        return mean_loss(gpt.apply(task.model, params, batch[:, :-1]), batch[:, 1:])

    def run(inputs, rows, params, state):
        def body(i, carry):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, rows[i])
            return _update(subject, inputs, grads, state, params, loss)

        return jax.lax.fori_loop(0, steps, body, (params, state))

    return _looped(run, subject, params, program, (jnp.asarray(rows),))


def _looped(run: Callable, subject: Subject, params: Any, program: dict, fed: tuple) -> Run:
    # All traced subjects share one program.
    key = "traced" if subject.inputs else id(subject)
    compiled = program.setdefault(key, jax.jit(run, donate_argnums=(2, 3)))
    state = jax.jit(lambda inputs, p: subject.make(inputs).init(p))(subject.inputs, params)
    carry = (params, state)

    def once():
        nonlocal carry
        carry = jax.block_until_ready(compiled(subject.inputs, *fed, *carry))

    return once


def update_flops(task: Task, subject: Subject) -> float:
    """Returns the FLOPs of one update in the lowered program, where the body of a loop counts once.

    Args:
      task: Task that defines the parameters.
      subject: Optimizer to analyse.
    """
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    state = jax.eval_shape(subject.make(subject.inputs).init, params)
    update = functools.partial(_update, subject)
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    return lowered_flops(update, (subject.inputs, params, state, params, loss))


def iteration_flops(task: Task) -> float:
    """Returns the FLOPs of one Newton-Schulz iteration over all matrices.

    An iteration computes x x^T, its square and the product of their combination with x.

    Args:
      task: Task that defines the parameters.
    """
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    labels = jax.tree.leaves(nanochat_labels(params))
    shapes = [
        p.shape for p, label in zip(jax.tree.leaves(params), labels, strict=True) if label == MATRIX
    ]
    pairs = [(min(shape), max(shape)) for shape in shapes]
    return float(sum(4 * s * s * n + 2 * s**3 + 3 * s * s + 2 * s * n for s, n in pairs))


def flops_of(task: Task, name: str, subject: Subject) -> float:
    """Returns the FLOPs of one update of a subject.

    Args:
      task: Task that defines the parameters.
      name: Name of the subject.
      subject: Optimizer to analyse.
    """
    if name == MUON:  # the analysis counts only one iteration of its loop
        once = Subject(lambda inputs: optax_muon(ns_steps=1))
        return update_flops(task, once) + 4 * iteration_flops(task)
    return update_flops(task, subject)


def measure(task: Task, baseline: Candidate, steps: int, rounds: int) -> dict[str, Any]:
    """Measures times, state size and FLOPs of all subjects and compares them with the goals.

    Args:
      task: Static description of the training.
      baseline: Baseline candidate.
      steps: Steps per timed run.
      rounds: Number of repeats.
    """
    compared = subjects(task, baseline)
    alone_programs: dict = {}
    training_programs: dict = {}
    alone = {n: step_alone(task, s, steps, alone_programs) for n, s in compared.items()}
    training = {n: step_in_training(task, s, steps, training_programs) for n, s in compared.items()}
    for warm in (*alone.values(), *training.values()):
        warm()
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    times = {"alone": interleaved(alone, rounds), "training": interleaved(training, rounds)}
    model_flops = task.model.flops_per_token * task.batch_tokens
    rows = {}
    for name, subject in compared.items():
        state = jax.eval_shape(subject.make(subject.inputs).init, params)
        flops = flops_of(task, name, subject)
        rows[name] = {
            "alone_ms": 1e3 * float(np.median(times["alone"][name])) / steps,
            "training_ms": 1e3 * float(np.median(times["training"][name])) / steps,
            "alone_to_baseline": ratio(times["alone"][name], times["alone"][SPECIALISED]),
            "training_to_baseline": ratio(times["training"][name], times["training"][SPECIALISED]),
            "state_bytes": tree_bytes(state),
            "update_flops": flops,
            "training_flops": model_flops + flops,
        }
    return {
        "steps": steps,
        "rounds": rounds,
        "subjects": rows,
        "goals": goals(rows, times, state_ratio(task, baseline)),
    }


def goals(
    rows: dict[str, dict], times: dict[str, dict[str, np.ndarray]], state: float
) -> list[dict]:
    """Returns each goal with its measured ratio, which is taken in the training step.

    Args:
      rows: Results by subject.
      times: Times in seconds by place (`alone` or `training`) and subject, float64[rounds].
      state: Size of the optimizer state relative to the same optimizer without sensors.
    """
    extra = rows[SPECIALISED]["training_flops"] / rows[MUON]["training_flops"]
    pairs = (*GOALS, (f"baseline to {MUON}, by its extra FLOPs", SPECIALISED, MUON, extra))
    results = []
    for name, above, below, most in pairs:
        training = times["training"][above] / times["training"][below]
        results.append(
            {
                "goal": name,
                "most": most,
                "found": float(np.median(training)),
                "quartiles": np.percentile(training, [25, 75]).tolist(),
                "alone": ratio(times["alone"][above], times["alone"][below]),
            }
        )
    return [*results, {"goal": "state to that without senses", "most": STATE_GOAL, "found": state}]


def show(console: Console, variant: str, results: dict[str, Any]) -> None:
    """Prints one line per subject, followed by the goals."""
    table = Table(title=f":{variant}, medians; ratios to the specialised baseline, in turn")
    columns = ("", "alone, ms", "ratio", "training, ms", "ratio", "state, MB", "MFLOP, update")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for name, row in results["subjects"].items():
        table.add_row(
            name,
            f"{row['alone_ms']:.2f}",
            f"{row['alone_to_baseline']:.3f}",
            f"{row['training_ms']:.2f}",
            f"{row['training_to_baseline']:.3f}",
            f"{row['state_bytes'] / 1e6:.2f}",
            f"{row['update_flops'] / 1e6:.1f}",
        )
    console.print(table)
    for goal in results["goals"]:
        line = f"{goal['goal']}: {goal['found']:.3f}, goal at most {goal['most']:.3f}"
        if "alone" in goal:
            low, high = goal["quartiles"]
            line += f"; quartiles {low:.3f} to {high:.3f}; alone {goal['alone']:.3f}"
        console.print(line, highlight=False)


def main(argv: Sequence[str]) -> None:
    """Measures every size that the device can run in time, and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    console, rounds = Console(width=110), options.rounds(15)
    on_cpu = jax.devices()[0].platform == "cpu"
    results: dict[str, Any] = {}
    for variant, config in options.configs(on_cpu).items():
        task, steps = make_task(config), options.steps(variant, on_cpu)
        run, flops = big_matmul(config.model.dtype)
        step = task.model.flops_per_token * task.batch_tokens
        reason = options.too_long(6 * (rounds + 1) * steps * step, flops / seconds(run))
        if reason:
            console.print(f":{variant} {reason}", highlight=False)
            continue
        baseline = Candidate(make_baseline(config), make_recipe(config))
        results[variant] = measure(task, baseline, steps, rounds)
        show(console, variant, results[variant])
    options.write(environment("benchmarks.optimizer") | {"results": results})


if __name__ == "__main__":
    app.run(main)
