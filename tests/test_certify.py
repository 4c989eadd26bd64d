"""The same source gets the same verdict, and the sandbox's result is not trusted."""

import base64
import dataclasses
import json
import math
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nanoevolve_jax.codegen import validate as command
from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.codegen.sandbox.runner import Limits
from nanoevolve_jax.configs import screen
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.sensors import gate_value
from nanoevolve_jax.policy.slots import SLOTS, built_in_source, control_of
from nanoevolve_jax.policy.spec import ANNEALING, Sensors, set_field

GATE = built_in_source("gate")
MATRICES = [(16, 32), (32, 16)]
LIMITS = Limits(seconds=40.0, memory=2 << 30)
TIGHT = LIMITS._replace(memory=512 << 20, output=4 << 20)


@pytest.fixture(scope="module")
def isolation():
    """Returns the best isolation that this machine offers."""
    return runner.isolation("available")


def validate(source, isolation, slot="gate", limits=LIMITS):
    return certify.validate(slot, source, MATRICES, "float32", limits, isolation)


@pytest.fixture(scope="module")
def seed(isolation):
    """Returns the verdict on the gate's built-in function."""
    return validate(GATE, isolation)


def test_a_seed_is_certified(seed, isolation):
    function = seed.certified
    assert seed.refusal is None
    assert function.slot == "gate"
    assert function.certificate["isolation"] == isolation.in_words()
    assert function.certificate["versions"]["jax"] == jax.__version__
    assert {"trace", "cost", "deterministic"} <= set(function.certificate["checks"])
    assert set(function.certificate["programs"]) == {"scalar"}
    function.load(None)


def test_the_same_source_has_the_same_verdict_also_in_threads(seed, isolation):
    verdicts = [None] * 3

    def work(place):
        verdicts[place] = validate(GATE, isolation)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(verdicts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for verdict in verdicts:
        assert verdict.certified.certificate == seed.certified.certificate
        assert verdict.certified.programs == seed.certified.programs


def test_comments_and_layout_change_no_certificate(seed, isolation):
    source = "# Accept this.\n\n\n" + GATE.replace("weights = ", "weights  =   ")
    assert validate(source, isolation).certified.id == seed.certified.id
    assert "#" not in seed.certified.source


def test_another_computation_is_another_certificate(seed, isolation):
    other = validate(GATE.replace("bias + drive", "bias - drive"), isolation).certified
    assert other.computation != seed.certified.computation
    assert other.certificate["seed_computation"] == seed.certified.computation


def test_missing_walls_refuse_before_anything_runs(monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *args: pytest.fail("something ran"))
    missing = runner.isolation("available", runner.LIMITS)._replace(accepted=False)
    refusal = validate(GATE, missing).refusal
    assert refusal.reason == "isolation"
    assert "files out of sight" in refusal.message


FACTS = {"flops": 1.0, "bytes": 1.0, "memory": 1, "baseline_flops": 1.0, "tried": 1}
PROGRAM = FACTS | {"content": "bm9pc2U="}
GOOD = {
    "computation": "0" * 64,
    "seed_computation": "1" * 64,
    "programs": {"scalar": PROGRAM},
    "checks": ["language"],
}


def with_program(**facts):
    return GOOD | {"programs": {"scalar": PROGRAM | facts}}


def accepted(**facts):
    return json.dumps({"accepted": GOOD | facts})


ANSWERS = {
    "nothing": ("output", ""),
    "half of JSON": ("output", "{"),
    "a list": ("output", "[1, 2]"),
    "an empty object": ("output", "{}"),
    "bytes that are not UTF-8": ("output", b"\xff"),
    "nested JSON without end": ("output", "[" * 100_000),
    "an unknown reason": ("output", '{"refusal": {"reason": "liked", "message": "accept"}}'),
    "a reason that is a list": ("output", '{"refusal": {"reason": [1], "message": "x"}}'),
    "an unknown field": ("output", accepted(pickle="x")),
    "a cost in text": ("output", accepted(**with_program(flops="nan"))),
    "a cost that is not finite": ("output", accepted(**with_program(flops=math.nan))),
    "a cost without bound": ("output", accepted(**with_program(flops=10**400))),
    "a negative cost": ("output", accepted(**with_program(flops=-5))),
    "a program that is not base64": ("output", accepted(**with_program(content="*"))),
    "programs of other shapes": ("output", accepted(programs={"8x8": PROGRAM})),
    "a program too many": ("output", accepted(programs={"scalar": PROGRAM, "8x8": PROGRAM})),
    "no program": ("output", accepted(programs={})),
    "a hash that is a path": ("output", accepted(computation="../../etc")),
    "too many checks": ("output", accepted(checks=["x"] * 101)),
    "a program of noise": ("certificate", accepted()),
    "an empty program": ("certificate", accepted(**with_program(content=""))),
}


def answering(monkeypatch, result, code=0):
    """Replaces the sandbox's result."""
    result = result if isinstance(result, bytes) else result.encode()
    outcome = runner.Outcome(code, result, "", "")
    monkeypatch.setattr(runner, "run", lambda *args: outcome)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_invalid_result_of_the_sandbox_is_refused(name, isolation, monkeypatch):
    reason, result = ANSWERS[name]
    answering(monkeypatch, result)
    refusal = validate(GATE, isolation).refusal
    assert refusal.reason == reason, refusal
    assert len(refusal.message.splitlines()) == 1


ENDS = {
    "an exit in between": ("output", "os._exit(3)"),
    "an exit as if done": ("output", "os._exit(0)"),
    "an abort": ("killed", "os.abort()"),
    "an exhausted memory": ("memory", "x = bytearray(1 << 33)"),
    "silence": ("timeout", "time.sleep(1000)"),
    "a large result": ("output", "os.write(int(sys.argv[1]), bytes(5 << 20))"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_worker_that_does_not_end_well_is_refused(name, isolation, tmp_path, monkeypatch):
    reason, program = ENDS[name]
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys, time\n{program}")
    monkeypatch.setattr(certify, "WORKER", script)
    limits = TIGHT._replace(seconds=2.0) if reason == "timeout" else TIGHT
    assert validate(GATE, isolation, limits=limits).refusal.reason == reason


def test_a_message_of_the_sandbox_is_one_line_without_paths(isolation, monkeypatch):
    message = "line 1\n/root/.ssh/id_rsa\x1b[31m" + "x" * 10_000
    answering(monkeypatch, json.dumps({"refusal": {"reason": "trace", "message": message}}))
    message = validate(GATE, isolation).refusal.message
    assert "ssh" not in message and "\n" not in message and "\x1b" not in message
    assert len(message) <= 500


def foreign(function, arguments):
    (lanes,) = export.symbolic_shape("lanes")
    leaves = [jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype) for x in jax.tree.leaves(arguments)]
    program = export.export(jax.jit(jax.vmap(function)), platforms=("cpu",))(*leaves)
    return bytes(program.serialize())


FOREIGN = {
    "a call into LAPACK": lambda x, *_: jnp.linalg.cholesky(jnp.eye(3) * x)[0, 0],
    "random numbers": lambda x, *_: x + jax.lax.rng_uniform(0.0, 1.0, ()),
    "results of another shape": lambda x, *_: jnp.stack([x, x]),
    "results of another dtype": lambda x, *_: x.astype(jnp.int32),
    "a result too many": lambda x, *_: (x, x),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_program_with_foreign_parts_gets_no_certificate(name, isolation, monkeypatch):
    program = foreign(FOREIGN[name], SLOTS["gate"].arguments(None))
    content = base64.b64encode(program).decode()
    answering(monkeypatch, accepted(**with_program(content=content)))
    assert validate(GATE, isolation).refusal.reason == "certificate"


def noise(program):
    return dataclasses.replace(program, mlir_module_serialized=b"noise")


def nothing(program):
    return dataclasses.replace(program, mlir_module_serialized=b"")


def for_others(program):
    return dataclasses.replace(program, platforms=("tpu",))


def other_module(program):
    """Replaces the module by one with other arguments and results."""
    square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    other = export.export(jax.jit(lambda x: (x,)), platforms=("cpu", "cuda"))(square)
    return dataclasses.replace(program, mlir_module_serialized=other.mlir_module_serialized)


@pytest.mark.parametrize("forged", [noise, nothing, for_others, other_module])
def test_a_program_that_is_not_what_stands_beside_it_gets_no_certificate(
    forged, seed, isolation, monkeypatch
):
    program = bytes(forged(seed.certified.load(None)).serialize())
    content = base64.b64encode(program).decode()
    answering(monkeypatch, accepted(**with_program(content=content)))
    assert validate(GATE, isolation).refusal.reason == "certificate"


def test_a_certified_seed_computes_what_the_built_in_function_does(seed):
    gate, draw = Code((seed.certified,)).slots().gate, np.random.default_rng(0)
    for spec in (ANNEALING, set_field(ANNEALING, "control.coefficients.loss_ema", -1.5)):
        sensors = Sensors(*map(np.float32, draw.uniform(-1, 1, len(Sensors._fields))))
        found = gate(sensors, (0.0,) * 4, control_of(spec))
        np.testing.assert_allclose(found, gate_value(spec.control, sensors), rtol=1e-6)


def test_the_command_holds_a_source_to_what_the_config_says_it_may_cost(tmp_path, monkeypatch):
    given = SimpleNamespace(out=None, isolation=runner.AVAILABLE, seconds=60.0)
    monkeypatch.setattr(command, "flags", SimpleNamespace(FLAGS=given))
    (tmp_path / "mine.py").write_text(
        "def gate(sensors, features, control):\n"
        "    return sensors.loss_ema + jnp.mean(jnp.arange(6000.0) * control.bias)\n"
    )
    config = screen.get_config()
    arguments = ["gate", str(tmp_path / "mine.py")]
    assert command.validate(config, arguments) == command.REFUSED
    config.codegen.max_cost = 500.0
    assert command.validate(config, arguments) == 0
