"""Measurements on eight virtual devices, which `test_devices.py` checks.

  JAX_NUM_CPU_DEVICES=8 python tests/eight_devices.py FOLDER

The number of virtual devices is fixed when a process starts, and the other tests use two. FOLDER
receives the checkpoints. The script prints its figures as a JSON object.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from training import LENGTH, MODEL, candidate, make_engine, make_rows, train_population

from nanoevolve_jax.execution import measurements, population, train
from nanoevolve_jax.execution.checkpoint import Checkpoints, Interrupted
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.policy.muon import MuonState
from nanoevolve_jax.policy.spec import ANNEALING, PRESETS

TASK = train.Task(MODEL, batch_size=8)
FOLDER = Path(sys.argv[1])
STEPS = 20
LOSS = train.TELEMETRY.index("loss")


def programs(devices, data=1):
    return population.make_programs(TASK._replace(data_parallel=data), devices=devices, lanes=1)


def same(a, b):
    """Returns whether two runs gave bitwise equal results."""
    return a.val_bpb == b.val_bpb and np.array_equal(a.telemetry, b.telemetry)


def random_weights():
    """Returns parameters without NanoChat's zeros, which would amplify rounding errors."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: train.init_state(TASK, candidate(), np.uint32(0), np.int32(STEPS)).params
    )
    return jax.tree.map(lambda x: (0.05 * rng.normal(size=x.shape)).astype(x.dtype), shapes)


def losses(local):
    """Returns each candidate's losses from the same random weights; float32[width, STEPS]."""
    rows = np.concatenate([make_rows(STEPS, seed) for seed in (0, 1)], axis=1)
    first = jax.tree.map(lambda x: np.broadcast_to(x, (local.width, *x.shape)), random_weights())
    _, telemetry = train_population(
        local,
        [candidate(ANNEALING)] * local.width,
        [7] * local.width,
        rows,
        total=STEPS,
        segment=4,
        first_params=first,
    )
    return telemetry[..., LOSS]


def engine_of(local, checkpoints=None, log=lambda line: None):
    """Returns an engine whose validation batches of 4 rows do not divide by eight devices."""
    engine = make_engine(local, batch_size=TASK.batch_size)
    return engine._replace(task=TASK, checkpoints=checkpoints, log=log)


def uneven_population():
    """Compares eleven candidates on eight devices, in two orders, with runs on one device."""
    jobs = [Job(candidate(spec), seed, 8) for seed in range(4) for spec in PRESETS.values()][:11]
    whole, crowd = engine_of(programs(1)), engine_of(programs(8))
    results = list(crowd.run(jobs))
    reversed_results = list(crowd.run(jobs[::-1]))[::-1]
    alone = list(whole.run(jobs))
    gaps = [
        np.max(np.abs(a.telemetry[:, LOSS] / b.telemetry[:, LOSS] - 1))
        for a, b in zip(results, alone, strict=True)
    ]
    return {
        "jobs": len(jobs),
        "distinct": len({result.val_bpb for result in results}),
        "order_changes_nothing": all(map(same, results, reversed_results)),
        "loss_gap": float(max(gaps)),
    }


def begin(local):
    """Returns a population's initial state and the other arguments of a training segment."""
    candidates = local.place(population.stack_candidates([candidate()] * local.width))
    seeds = local.place(np.arange(local.width, dtype=np.uint32))
    state = local.init_population(candidates, seeds, np.int32(STEPS))
    tokens = np.zeros((local.width, 4, TASK.batch_size, LENGTH + 1), np.int32)
    fed = local.place(train.segment_of(tokens))
    return state, (candidates, fed, np.int32(0), np.int32(STEPS))


def share(state):
    """Returns the bytes of Muon's state on the first device relative to one candidate's state."""
    is_muon = lambda x: isinstance(x, MuonState)  # noqa: E731
    (muon,) = filter(is_muon, jax.tree.leaves(state, is_leaf=is_muon))
    leaves = jax.tree.leaves(muon)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return here / sum(leaf.nbytes / leaf.shape[0] for leaf in leaves)


def shares(local):
    """Returns a device's share of Muon's state after initialisation, restoring and training."""
    state, others = begin(local)
    found = {"initial": share(state), "restored": share(local.place(jax.device_get(state)))}
    state, _ = local.train_segment(state, *others)
    return found | {"trained": share(state)}


def stacked_products(local):
    """Counts a device's products of stacks of 32 x 32 matrices by the length of the stack."""
    state, others = begin(local)
    program = local.train_segment.lower(state, *others).compile().as_text()
    return Counter(re.findall(r"= f32\[(\d+),32,32\]\S* dot\(", program))


def resumed(local):
    """Runs jobs that are interrupted at ever later segments until they end."""
    jobs = [Job(candidate(spec), 1, 8) for spec in PRESETS.values()]
    expected = list(engine_of(local).run(jobs))
    before, said, results = measurements.compilations(), [], []
    for boundaries in range(1, 10):
        asked = iter([False] * (boundaries - 1) + [True])
        checkpoints = Checkpoints(FOLDER, seconds=0, stopping=lambda a=asked: next(a, False))
        try:
            results = list(engine_of(local, checkpoints, said.append).run(jobs))
            break
        except Interrupted:
            continue
        finally:
            checkpoints.close()
    return {
        "said": said,
        "same": len(results) == len(jobs) and all(map(same, expected, results)),
        "compiled": measurements.compilations() != before,
    }


def main():
    measurements.start_counting()
    reference = losses(programs(1))[0]
    curves = {f"{8 // data}x{data}": losses(programs(8, data)) for data in (1, 2, 4, 8)}
    figures = {
        "curves": {
            name: float(np.max(np.abs(found / reference - 1))) for name, found in curves.items()
        },
        "first_and_last_loss": [float(reference[0]), float(reference[-1])],
        "uneven": uneven_population(),
        "shares": {data: shares(programs(8, data)) for data in (2, 4, 8)},
        "products": {data: stacked_products(programs(8, data)) for data in (1, 2)},
        "resumed": resumed(programs(8, 4)),
        "compiled": measurements.compilations(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
