"""Certified code that is made in this process from sources that the tests trust."""

import functools

from histories import write_folder
from records import make_record

from nanoevolve_jax.codegen.sandbox.certify import compose
from nanoevolve_jax.codegen.validation import checks, language
from nanoevolve_jax.codegen.validation.computation import computation_hash
from nanoevolve_jax.codegen.validation.costs import exported
from nanoevolve_jax.codegen.validation.tracing import traced
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import CODE
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.proposals import unified_diff
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import SLOTS, built_in_source, shape_key, shapes_of

WALLS = "none: a test's own source"
SMALL = ((8, 8), (8, 12), (12, 8))  # (inputs, outputs)


@functools.cache
def checked(source, slot, matrices=SMALL, dtype="float32"):
    """Returns certified code from a source that passes every check."""
    language.check(source, slot)
    found = checks.check(source, slot, list(shapes_of(slot, matrices)), dtype, 4.0)
    facts = {key: program._asdict() for key, program in found.programs.items()}
    for values in facts.values():
        del values["content"]
    programs = {key: program.content for key, program in found.programs.items()}
    result = {"computation": found.computation, "seed_computation": found.seed_computation}
    result |= {"checks": checks.PASSED, "programs": facts}
    return compose(slot, source, dtype, result, programs, WALLS, {})


def code_of_seeds(matrices=SMALL):
    """Returns code in which every slot holds its built-in function."""
    return code_of(*(checked(built_in_source(slot), slot, matrices) for slot in SLOTS))


def certify(source, slot, matrices=SMALL, dtype="float32"):
    """Returns certified code from a source without running it or counting its cost."""
    language.check(source, slot)
    shapes = shapes_of(slot, matrices)
    closed = {shape_key(shape): traced(source, slot, shape, dtype) for shape in shapes}
    seeds = {shape_key(s): traced(built_in_source(slot), slot, s, dtype) for s in shapes}
    programs = {key: bytes(exported(x).serialize()) for key, x in closed.items()}
    facts = {"flops": 20.0, "bytes": 30.0, "memory": 40, "baseline_flops": 10.0, "tried": 0}
    result = {"computation": computation_hash(closed), "seed_computation": computation_hash(seeds)}
    result |= {"checks": ["language", "trace", "export"], "programs": dict.fromkeys(closed, facts)}
    return compose(slot, source, dtype, result, programs, WALLS, {})


def code_of(*functions):
    """Returns the functions as the code of one policy."""
    return Code(tuple(sorted(functions, key=lambda f: f.slot)))


def edited(slot, *changes):
    """Returns the built-in function's source after replacements; each old text must occur once."""
    source = built_in_source(slot)
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


BLEND = edited("direction", ("ahead = x + knobs.momentum", "ahead = x + 0.8"))
"""A Nesterov blend of its own."""

# These sources define names that the exported file and the other sources define too, and they use
# their arguments in unusual ways.
DIRECTION = """
State = 0.9
LONG, SHORT = 0.98, 1e-6
def optimizer(x):
    return LONG * x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), SHORT)
def Knobs(x, y):
    return lax.select(x.shape[0] > 8, x, y) if False else x + 0.1 * y
def direction(gradient, momentum, second_moment, parameter, knobs):
    beta, mix = knobs.momentum * State, knobs.trust_ratio_mix
    buffer = Knobs(beta * momentum, gradient)
    axis = 0 if gradient.shape[1] >= gradient.shape[0] else 1
    square = jnp.mean(jnp.square(buffer), axis=axis, keepdims=True)
    keep = knobs.second_moment_beta * math.sqrt(0.9)
    moment = keep * second_moment + (1.0 - keep) * square
    u = buffer / jnp.sqrt(moment + 1e-12) + mix * parameter + 0.1 * optimizer(buffer)
    u = u * (knobs.update_multiplier + knobs.clip_threshold + knobs.orthogonal_mix)
    for i in range(3):
        u = jnp.where(i < knobs.ns_steps, u * 1.01, u)
    u = jnp.where(knobs.nesterov & knobs.orthogonalize, u, jnp.tanh(u))
    return jnp.where(knobs.momentum_placement == 1, 0.5 * u, u), buffer, moment
"""
GATE = """
def optimizer(x):
    return jnp.tanh(x)
def gate(sensors, features, control):
    drive = control.bias + sum(w * x for w, x in zip(control.coefficients, sensors))
    swing = optimizer(0.5 * drive + 0.6 * features[1])
    return 0.5 + 0.2 * control.sharpness * swing + sensors.loss_ema
"""
ACTUATE = """
POLES = 0.7
def actuate(gate, poles):
    low, high = poles
    pairs = zip(low, high)
    a, b, c, d, e = [x + (y - x) * gate ** POLES for x, y in pairs]
    return 5.0 * a, b - 0.2, c, d, e
"""
FEATURES = """
def features(sensors):
    swing = 3.0 * sensors.grad_norm_ema * sensors.update_ratio_ema
    return swing, 0.8 + sensors.grad_alignment_ema, 0.0, 2.0 * sensors.loss_improvement_ema
"""
SOURCES = {"direction": DIRECTION, "gate": GATE, "actuate": ACTUATE, "features": FEATURES}
"""One source a slot that is far from the built-in function."""


# Run folders of simulated campaigns ---------------------------------------------------------


def code_record(function, *, diff, proposal, provider="scripted", dollars=0.25):
    """Returns the `code` field of a record in which one slot was rewritten."""
    spent = {"calls": 2, "input_tokens": 1200, "output_tokens": 34, "seconds": 1.0}
    return {
        "certificates": {function.slot: function.id},
        "slot": function.slot,
        "source": function.source,
        "diff": diff,
        "certificate": dict(function.certificate),
        "computation": {function.slot: function.computation},
        "proposal": proposal,
        "cost": {"provider": provider, "dollars": dollars} | spent,
    }


def entry(number, **fields):
    """Returns a journal entry, by default of a proposal that was trained."""
    values = {"number": number, "island": 0, "slot": "direction", "parent": "nanochat"}
    values |= {"outcome": proposals.CANDIDATE, "candidate": f"p{number:04d}", "gain": 0.0}
    values |= {"provider": "scripted", "reason": None, "message": None, "dollars": 0.25}
    spent = {"calls": 2, "input_tokens": 1200, "output_tokens": 34, "seconds": 1.0}
    return proposals.Entry(**values | spent | fields)


def write_campaign(folder, function, *, message="line 1: imports are not allowed", **fields):
    """Writes a campaign with a baseline, a candidate with this function, a mutant and a refusal."""
    diff = unified_diff(built_in_source(function.slot), function.source)
    code = code_record(function, diff=diff, proposal=0)
    kept = {"certificates": code["certificates"], "computation": code["computation"]}
    inherited = dict.fromkeys(CODE) | kept
    change = f"code of {function.slot} rewritten by scripted"
    child = {"operator": f"code:{function.slot}", "change": change, "code": code}
    records = [
        make_record(status="baseline"),
        make_record("p0000", bpb=1.99, score=0.01, generation=1, **child | fields),
        make_record("p0000m1", parent_id="p0000", generation=1, code=inherited, **fields),
    ]
    write_folder(folder, records)
    Library(folder / "code").put(function)
    refused = {"outcome": proposals.REFUSED, "candidate": None, "reason": "import"}
    for one in (entry(0), entry(1, provider="other", message=message, dollars=0.5, **refused)):
        proposals.append(folder / proposals.FILE, one)
    return folder
