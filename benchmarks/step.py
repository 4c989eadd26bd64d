"""Measures a full training step on this CPU relative to NumPy's matrix product.

  python -m benchmarks.step --out=results/step_cpu.json

The model has width 128, 4 layers, 4 heads, 128 tokens per row and a vocabulary of 1024 tokens. The
batch has 8 rows. Each round times NumPy and segments of training in turn. NumPy computes products
of size 1024 x 128 x 512 with the same total FLOPs as a step. The segments run the traced program of
a search on one and two virtual devices, programs specialised to one spec, and the model without a
policy. Results are medians over rounds, and ratios are taken within a round. The first call, which
compiles, is reported separately.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from rich.table import Table

from benchmarks import options
from benchmarks.timing import environment, interleaved, ratio
from nanoevolve_jax.execution import population, train
from nanoevolve_jax.execution.cost import step_flops
from nanoevolve_jax.execution.machine import visible_cores
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.model import gpt
from nanoevolve_jax.model.loss import mean_loss
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, OptimizerSpec
from nanoevolve_jax.terminal.console import Console

STEPS = 10  # steps per segment
TASK = train.Task(
    gpt.GPTConfig(sequence_len=128, vocab_size=1024, n_layer=4, n_head=4, n_kv_head=4, n_embd=128),
    batch_size=8,
)
RECIPE = Recipe(0.01, 0.1, 0.004, 0.1, 0.1, 0.1, 0.02, 0.65, 0.05, 0.16)
HORIZON = np.int32(10**6)  # distant horizon, so that every segment does the same work


def numpy_matmuls(total_flops: float) -> Callable[[], None]:
    """Returns a run of NumPy matrix products with a given total number of FLOPs."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1024, 128)).astype(np.float32)
    b = rng.normal(size=(128, 512)).astype(np.float32)
    repeats = round(total_flops / (2 * 1024 * 128 * 512))

    def run():
        for _ in range(repeats):
            a @ b

    return run


def make_rows(width: int) -> np.ndarray:
    """Returns random tokens, int32[width, STEPS, batch, T + 1]."""
    shape = (width, STEPS, TASK.batch_size, TASK.model.sequence_len + 1)
    return np.random.default_rng(1).integers(0, TASK.model.vocab_size, shape, np.int32)


def population_segment(devices: int) -> Callable[[], None]:
    """Returns a run of one segment of the search program, with one candidate per device."""
    programs = population.make_programs(TASK, devices=devices, lanes=1)
    stacked = population.stack_candidates([train.Candidate(NANOCHAT, RECIPE)] * devices)
    candidates = programs.place(stacked)
    segment = programs.place(train.segment_of(make_rows(devices)))
    seeds = programs.place(np.arange(devices, dtype=np.uint32))
    state = programs.init_population(candidates, seeds, HORIZON)

    def run():
        nonlocal state
        state, telemetry = programs.train_segment(state, candidates, segment, np.int32(0), HORIZON)
        jax.block_until_ready(telemetry)

    return run


def specialised_segment(spec: OptimizerSpec) -> Callable[[], None]:
    """Returns a run of one segment of a program that is specialised to a spec."""
    candidate = train.Candidate(spec, RECIPE)
    fed = jax.tree.map(jnp.asarray, train.segment_of(make_rows(1)[0]))
    state = jax.jit(functools.partial(train.init_state, TASK, candidate))(np.uint32(0), HORIZON)
    segment = jax.jit(
        lambda state: train.train_segment(TASK, state, candidate, fed, 0, HORIZON),
        donate_argnums=0,
    )

    def run():
        nonlocal state
        state, telemetry = segment(state)
        jax.block_until_ready(telemetry)

    return run


def model_segment() -> Callable[[], None]:
    """Returns a run of forward and backward passes.

    Each pass applies a step of gradient descent, so that the compiler cannot remove it.
    """
    rows = jnp.asarray(make_rows(1)[0])
    params = gpt.init_params(TASK.model, jax.random.key(0))

    def loss(params, batch):
        return mean_loss(gpt.apply(TASK.model, params, batch[:, :-1]), batch[:, 1:])

    def step(params, batch):
        grads = jax.grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

    segment = jax.jit(lambda params: jax.lax.scan(step, params, rows)[0], donate_argnums=0)

    def run():
        nonlocal params
        params = jax.block_until_ready(segment(params))

    return run


def main(argv: Sequence[str]) -> None:
    """Times all subjects in turn, prints a table and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    cores = visible_cores()
    jax.config.update("jax_num_cpu_devices", 2)
    total_flops = step_flops(TASK, NANOCHAT)
    # Pairs of a function that prepares a run, and the number of steps times candidates per run.
    subjects = {
        "numpy, the same FLOPs": (lambda: numpy_matmuls(total_flops), 1),
        "search program, one device": (lambda: population_segment(1), STEPS),
        "search program, two devices, a candidate": (lambda: population_segment(2), 2 * STEPS),
        "specialised baseline": (lambda: specialised_segment(NANOCHAT), STEPS),
        "specialised annealing gate": (lambda: specialised_segment(ANNEALING), STEPS),
        "forward and backward alone": (model_segment, STEPS),
    }
    runs, first_call = {}, {}
    for name, (make, _) in subjects.items():
        started = time.perf_counter()
        runs[name] = make()
        runs[name]()
        first_call[name] = time.perf_counter() - started
    rounds = options.rounds(25)
    times = {
        name: 1e3 * values / subjects[name][1] for name, values in interleaved(runs, rounds).items()
    }
    report = {
        name: {
            "median_ms": float(np.median(values)),
            "min_ms": float(np.min(values)),
            "ratio_to_numpy": ratio(values, times["numpy, the same FLOPs"]),
            "ratio_to_specialised_baseline": ratio(values, times["specialised baseline"]),
            "first_call_s": first_call[name],
        }
        for name, values in times.items()
    }
    table = Table(
        title=f"{total_flops / 1e9:.2f} GFLOP per step, {cores} cores, JAX {jax.__version__}"
    )
    for column in ("", "ms, median", "ms, least", "to numpy", "to baseline", "first call, s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in report.items():
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    Console(width=110).print(table)
    options.write(environment("benchmarks.step") | {"flops": total_flops, "results": report})


if __name__ == "__main__":
    app.run(main)
