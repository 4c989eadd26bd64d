"""A tiny training task for tests of execution: NanoChat's GPT with one layer of width 32."""

import jax
import numpy as np

from nanoevolve_jax.execution import population, train
from nanoevolve_jax.execution.engine import LocalEngine, validation_sets
from nanoevolve_jax.execution.job import Stream
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.model.gpt import GPTConfig
from nanoevolve_jax.policy.spec import NANOCHAT

VOCAB, LENGTH, BATCH = 64, 16, 4
MODEL = GPTConfig(
    sequence_len=LENGTH, vocab_size=VOCAB, n_layer=1, n_head=2, n_kv_head=2, n_embd=32
)
TASK = train.Task(MODEL, BATCH)
RECIPE = Recipe(0.02, 0.05, 0.004, 0.05, 0.05, 0.05, 0.05, 0.5, 0.1, 0.2)


def candidate(spec=NANOCHAT, **recipe):
    return train.Candidate(spec, RECIPE._replace(**recipe))


def make_rows(steps, seed=0):
    """Returns learnable rows of noisy counting; int32[steps, B, T + 1]."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, VOCAB, (steps, BATCH, 1))
    rows = start + np.arange(LENGTH + 1) + rng.integers(0, 2, (steps, BATCH, LENGTH + 1))
    return (rows % VOCAB).astype(np.int32)


def train_population(programs, candidates, seeds, rows, *, total, segment, first_params=None):
    """Trains a padded population and returns (final state, telemetry [width, total, 14])."""
    stacked = programs.place(population.stack_candidates(candidates))
    state = programs.init_population(stacked, programs.place(np.uint32(seeds)), np.int32(total))
    if first_params is not None:
        state = programs.place(jax.device_get(state)._replace(params=first_params))
    telemetry = []
    for start in range(0, total, segment):
        part = rows[start : start + segment]
        part = np.pad(part, ((0, segment - len(part)), (0, 0), (0, 0)))
        lanes = np.broadcast_to(part, (programs.width, *part.shape))
        fed = programs.place(train.segment_of(lanes))
        state, columns = programs.train_segment(
            state, stacked, fed, np.int32(start), np.int32(total)
        )
        telemetry.append(np.asarray(columns)[:, : total - start])
    return jax.device_get(state), np.concatenate(telemetry, axis=1)


def lane(tree, index):
    """Returns one candidate's slice of a population's tree."""
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def make_engine(programs, *, other_rows=None, batch_size=BATCH, evaluations=1):
    """Returns a local engine with generated rows and two validation folds."""
    rng = np.random.default_rng(0)

    def rows(count):
        start = rng.integers(0, VOCAB, (count, 1))
        steps = np.arange(LENGTH + 1) + rng.integers(0, 2, (count, LENGTH + 1))
        return ((start + steps) % VOCAB).astype(np.uint16)

    train_rows, folds = rows(400), (rows(8), rows(9))
    return LocalEngine(
        task=TASK,
        programs=programs,
        stream=Stream(train_rows, batch_size, VOCAB, other_rows),
        evaluation=validation_sets(folds, 8, BATCH, np.ones(VOCAB, np.int32)),
        segment_steps=4,
        evaluations=evaluations,
    )
