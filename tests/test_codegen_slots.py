"""Built-in functions as certified code equal the optimizer, also in lanes; other code differs."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training
from certified_code import checked, code_of_seeds
from specs import EVERYTHING

from nanoevolve_jax.execution import population
from nanoevolve_jax.execution.cost import matrix_shapes, step_flops
from nanoevolve_jax.execution.engine import batches
from nanoevolve_jax.execution.job import Job, job_from_json, job_to_json
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.slots import BUILT_IN, built_in_source, control_of, knobs_of, poles_of
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT
from nanoevolve_jax.policy.transform import evolved_muon

MATRICES = ((8, 8), (8, 16), (16, 8))
STEPS = 50


def tree(seed, scale=1.0):
    """Returns two matrices of one shape and two of other shapes; float32."""
    shapes = {"a": (8, 8), "b": (8, 8), "c": (8, 16), "d": (16, 8)}
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def traced(spec):
    """Returns the spec as inputs of a program."""
    candidate = training.candidate(spec)
    return jax.tree.map(lambda x: x[0], population.stack_candidates([candidate]).spec)


@functools.cache
def trained(slots):
    """Returns a program that trains any spec with these functions for STEPS steps."""

    @jax.jit
    def run(spec, params):
        optimizer = evolved_muon(spec, 0.02, total_steps=STEPS, weight_decay=0.1, slots=slots)
        gradients = [tree(1 + i, scale=1.0 + i % 3) for i in range(STEPS)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *gradients)

        def body(carry, fed):
            (params, state), (grads, loss) = carry, fed
            updates, state = optimizer.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), optax.tree.get(state, "gate")

        losses = 3.0 - jnp.arange(STEPS) / STEPS
        (params, _), gates = jax.lax.scan(body, (params, optimizer.init(params)), (stacked, losses))
        return params, gates

    return run


@pytest.mark.parametrize("spec", [NANOCHAT, ANNEALING, EVERYTHING], ids=["plain", "gated", "all"])
def test_the_seeds_are_the_built_in_optimizer_over_fifty_steps(spec):
    start = tree(0)
    ours, gates = trained(BUILT_IN)(traced(spec), start)
    theirs, their_gates = trained(seed_slots())(traced(spec), start)
    change = jax.tree.map(jnp.subtract, ours, start)
    off = jax.tree.map(jnp.subtract, theirs, ours)
    assert optax.tree.norm(off) <= 1e-6 * optax.tree.norm(change)
    np.testing.assert_allclose(their_gates, gates, rtol=1e-6)
    if spec.control.enabled:
        assert np.ptp(gates) > 0.1  # the compared gates move


@functools.cache
def seed_slots():
    return code_of_seeds(MATRICES).slots()


def test_every_slot_is_really_called():
    changed = {
        "direction": ("knobs.second_moment_beta", "0.5 * knobs.second_moment_beta"),
        "gate": ("control.bias + drive", "control.bias - drive"),
        "actuate": ("high - low", "low - high"),
        "features": ("(0.0, 0.0, 0.0, 0.0)", "(0.5 * sensors.step_fraction, 0.0, 0.0, 0.0)"),
    }
    start = tree(0)
    ours, _ = trained(BUILT_IN)(traced(EVERYTHING), start)
    for slot, (before, after) in changed.items():
        source = built_in_source(slot)
        assert before in source
        code = Code((checked(source.replace(before, after), slot, MATRICES),))
        theirs, _ = trained(code.slots())(traced(EVERYTHING), start)
        assert not np.allclose(theirs["c"], ours["c"], rtol=1e-4), slot


def test_results_are_held_to_their_bounds():
    wild = {
        "gate": "def gate(sensors, features, control):\n    return 7.0 + control.bias\n",
        "actuate": "def actuate(gate, poles):\n    return (99.0, -9.0, gate - 50.0, 2.0, 5.0)\n",
        "features": "def features(sensors):\n    return (9.0, -9.0, 0.5, sensors.loss_ema)\n",
    }
    slots = Code(tuple(checked(x, s, MATRICES) for s, x in sorted(wild.items()))).slots()
    spec = jax.tree.map(jnp.float32, EVERYTHING)
    assert slots.gate(spec.control.coefficients, (0.0,) * 4, control_of(spec)) == 1.0
    moved = slots.actuate(jnp.float32(0.5), poles_of(spec))
    np.testing.assert_allclose(moved, (4.0, 0.0, 0.1, 0.999, 1.0), rtol=1e-6)
    extra = slots.features(spec.control.coefficients)
    np.testing.assert_allclose(extra, (1.0, -1.0, 0.5, 1.0))


def test_maps_over_anything_are_folded_into_the_lanes():
    function = checked(built_in_source("direction"), "direction", MATRICES)
    direction = Code((function,)).slots().direction
    rng = np.random.default_rng(0)
    g, m, p = (jnp.asarray(rng.normal(size=(3, 2, 8, 16)), jnp.float32) for _ in range(3))
    v = jnp.abs(g[..., :1, :])
    betas = jnp.asarray([0.5, 0.9, 0.99], jnp.float32)

    def call(g, m, v, p, beta):
        return direction(g, m, v, p, knobs(beta))

    both = jax.vmap(call)(g, m, v, p, betas)
    nested = jax.vmap(jax.vmap(call, (0, 0, 0, 0, None)))(g, m, v, p, betas)
    for i in range(3):
        for k in range(2):
            alone = direction(g[i, k], m[i, k], v[i, k], p[i, k], knobs(betas[i]))
            for one, lane, deep in zip(alone, both, nested, strict=True):
                np.testing.assert_allclose(lane[i, k], one, rtol=2e-6, atol=1e-6)
                np.testing.assert_allclose(deep[i, k], one, rtol=2e-6, atol=1e-6)


def knobs(beta):
    """Returns the baseline's knobs with another second-moment decay."""
    return knobs_of(NANOCHAT, static_actuators(NANOCHAT)._replace(second_moment_beta=beta), 0.9)


# Training in an engine


@pytest.fixture(scope="module")
def programs():
    return population.make_programs(training.TASK, devices=1, lanes=2)


@pytest.fixture(scope="module")
def shapes():
    return tuple(sorted(set(matrix_shapes(training.TASK.model))))


@pytest.mark.slow  # compiles three training programs
def test_an_engine_trains_code_in_lanes_beside_built_in_functions(programs, shapes):
    engine = training.make_engine(programs)
    seeds = Code((checked(built_in_source("direction"), "direction", shapes),))
    slower = built_in_source("direction").replace("beta) * (square", "0.5 * beta) * (square")
    other = Code((checked(slower, "direction", shapes),))
    jobs = [
        Job(training.candidate()._replace(code=code), seed, 8)
        for code in (None, seeds, other)
        for seed in (1, 2, 3)
    ]
    assert [len(batch) for batch in batches(jobs, 2)] == [2, 1] * 3
    found = np.array([result.val_bpb for result in engine.run(jobs)]).reshape(3, 3)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert not np.any(np.isclose(found[2], found[0], rtol=1e-6))
    again = [r.val_bpb for r in engine.run([jobs[8], jobs[7]])]
    assert again == [found[2, 2], found[2, 1]]


def test_jobs_with_code_have_keys_of_their_own_and_come_back_from_json(shapes):
    code = Code((checked(built_in_source("direction"), "direction", shapes),))
    plain = Job(training.candidate(), 1, 8)
    coded = Job(training.candidate()._replace(code=code), 1, 8)
    assert "code" not in job_to_json(plain)["candidate"]
    assert plain.key != coded.key
    known = {function.id: function for function in code.functions}
    assert job_from_json(job_to_json(coded), known.__getitem__).candidate.code == code
    with pytest.raises(CertificateError, match="is missing"):
        job_from_json(job_to_json(coded))
    carried = pickle.loads(pickle.dumps(coded))
    assert carried.candidate.code.functions[0].programs == code.functions[0].programs


def test_code_costs_what_its_certificate_says_beyond_the_built_in_functions(shapes):
    seeds = Code((checked(built_in_source("direction"), "direction", shapes),))
    assert step_flops(training.TASK, NANOCHAT, seeds) == step_flops(training.TASK, NANOCHAT)
    before = "    update = orthogonal_or_raw("
    more = built_in_source("direction").replace(before, before.replace("= ", "= 0.5 * ", 1))
    twice = "    update = update + orthogonal_or_raw(0.5 * gradient, knobs)\n    smoothed"
    more = more.replace("    smoothed", twice, 1)
    dearer = Code((checked(more, "direction", shapes),))
    assert step_flops(training.TASK, NANOCHAT, dearer) > step_flops(training.TASK, NANOCHAT)


def test_code_for_other_matrices_is_refused_by_name(programs):
    code = Code((checked(built_in_source("direction"), "direction", MATRICES),))
    engine = training.make_engine(programs)
    with pytest.raises(CertificateError, match="got programs for 8x8, 8x16, 16x8"):
        list(engine.run([Job(training.candidate()._replace(code=code), 1, 8)]))


def test_an_exchanged_program_is_not_called():
    function = checked(built_in_source("gate"), "gate", ())
    other = checked(built_in_source("features"), "features", ())
    swapped = Certified(function.source, function.certificate, other.programs)
    assert swapped.id == function.id
    with pytest.raises(CertificateError, match="has another hash"):
        swapped.load(None)
    forged = dict(function.certificate) | {"programs": dict(other.certificate["programs"])}
    with pytest.raises(CertificateError, match="of a program of slot"):
        Certified(function.source, forged, other.programs).load(None)
