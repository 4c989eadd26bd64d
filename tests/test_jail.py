"""Verdicts: the same for the same source, and never taken on the word of the child."""

import dataclasses
import json
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from nanoevolve_jax.configs import screen

from nanoevolve_jax.codegen import validate as command
from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.codegen.sandbox.runner import Limits
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.sensors import gate_value
from nanoevolve_jax.policy.slots import SLOTS, built_in_source, control_of
from nanoevolve_jax.policy.spec import ANNEALING, Sensors, set_field

GATE = built_in_source("gate")
MATRICES = [(16, 32), (32, 16)]
LIMITS = Limits(seconds=40.0, memory=2 << 30)
TIGHT = LIMITS._replace(memory=512 << 20, output=4 << 20)


@pytest.fixture(scope="module")
def walls():
    """The best walls of this machine, whichever those are."""
    return runner.isolation("available")


def validate(source, walls, slot="gate", limits=LIMITS):
    return certify.validate(slot, source, MATRICES, "float32", limits, walls)


@pytest.fixture(scope="module")
def seed(walls):
    """The verdict on the gate's seed."""
    return validate(GATE, walls)


def test_a_seed_is_certified(seed, walls):
    function = seed.certified
    assert seed.refusal is None
    assert function.slot == "gate"
    assert function.certificate["isolation"] == walls.in_words()
    assert function.certificate["versions"]["jax"] == jax.__version__
    assert {"trace", "cost", "deterministic"} <= set(function.certificate["checks"])
    assert set(function.certificate["programs"]) == {"scalar"}
    function.load(None)


def test_the_same_source_has_the_same_verdict_also_in_threads(seed, walls):
    verdicts = [None] * 3

    def work(place):
        verdicts[place] = validate(GATE, walls)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(verdicts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for verdict in verdicts:
        assert verdict.certified.certificate == seed.certified.certificate
        assert verdict.certified.programs == seed.certified.programs


def test_comments_and_layout_change_no_certificate(seed, walls):
    source = "# Accept this.\n\n\n" + GATE.replace("weights = ", "weights  =   ")
    assert validate(source, walls).certified.id == seed.certified.id
    assert "#" not in seed.certified.source


def test_another_computation_is_another_certificate(seed, walls):
    other = validate(GATE.replace("bias + drive", "bias - drive"), walls).certified
    assert other.computation != seed.certified.computation
    assert other.certificate["seed_computation"] == seed.certified.computation


def test_missing_walls_refuse_before_anything_runs(monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *args: pytest.fail("something ran"))
    missing = runner.isolation("available", runner.LIMITS)._replace(accepted=False)
    refusal = validate(GATE, missing).refusal
    assert refusal.reason == "isolation"
    assert "files out of sight" in refusal.message


def test_nothing_stays_on_disk(walls, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    validate("import os\n", walls)
    assert list(tmp_path.iterdir()) == []


GOOD = {
    "refusal": None,
    "computation": "0" * 64,
    "seed_computation": "1" * 64,
    "programs": {"scalar": {"flops": 1, "bytes": 1, "memory": 1, "baseline_flops": 1, "tried": 1}},
    "checks": ["language"],
}
FACTS = GOOD["programs"]["scalar"]
REPLY = """
import json, os, sys, time
from pathlib import Path
OUT = Path(sys.argv[1])
def reply(result, **files):
    text = result if isinstance(result, str) else json.dumps(result)
    (OUT / "result.json").write_text(text)
    for name, content in files.items():
        (OUT / f"{name}.stablehlo").write_bytes(content)
"""
LIES = {
    "no result": ("output", ""),
    "no JSON": ("output", "reply('{')"),
    "JSON that is no object": ("output", "reply([1, 2])"),
    "JSON without end": ("output", "reply('[' * 100000)"),
    "a result of megabytes": ("output", "reply('1' * 2000000)"),
    "a reason of its own": (
        "output",
        "reply({'refusal': {'reason': 'liked', 'message': 'accept'}})",
    ),
    "a reason that is no text": ("output", "reply({'refusal': {'reason': [1], 'message': 'x'}})"),
    "a number that is none": (
        "output",
        f"reply({GOOD | {'programs': {'scalar': FACTS | {'flops': 'nan'}}}!r}, scalar=b'x')",
    ),
    "a number that is not finite": (
        "output",
        f"reply({json.dumps(GOOD).replace('1,', 'NaN,', 1)!r}, scalar=b'x')",
    ),
    "a number without end": (
        "output",
        f"reply({GOOD | {'programs': {'scalar': FACTS | {'flops': 10**400}}}!r}, scalar=b'x')",
    ),
    "a negative cost": (
        "output",
        f"reply({GOOD | {'programs': {'scalar': FACTS | {'flops': -5}}}!r}, scalar=b'x')",
    ),
    "facts of other programs": (
        "output",
        f"reply({GOOD | {'programs': {'scalar': FACTS, '8x8': FACTS}}!r}, scalar=b'x')",
    ),
    "a hash that is a path": (
        "output",
        f"reply({GOOD | {'computation': '../../etc'}!r}, scalar=b'x')",
    ),
    "no program": ("output", f"reply({GOOD!r})"),
    "a program too many": ("output", f"reply({GOOD!r}, scalar=b'x', other=b'x')"),
    "a pickle beside": (
        "output",
        f"reply({GOOD!r}, scalar=b'x'); (OUT / 'x.pkl').write_bytes(b'.')",
    ),
    "a link": ("link", f"reply({GOOD!r}); os.symlink('/etc/passwd', OUT / 'scalar.stablehlo')"),
    "a link as the result": ("link", "os.symlink('/etc/passwd', OUT / 'result.json')"),
    "a folder": ("link", f"reply({GOOD!r}); os.mkdir(OUT / 'scalar.stablehlo')"),
    "a program of noise": ("certificate", f"reply({GOOD!r}, scalar=b'noise' * 100)"),
    "an empty program": ("certificate", f"reply({GOOD!r}, scalar=b'')"),
    "a pickle as its program": (
        "certificate",
        f"import pickle\nreply({GOOD!r}, scalar=pickle.dumps(print))",
    ),
    "an exit in between": ("output", "os._exit(3)"),
    "an exit as if done": ("output", "os._exit(0)"),
    "an abort": ("killed", "os.abort()"),
    "a crash": ("killed", "import ctypes\nctypes.string_at(0)"),
    "an exhausted memory": ("memory", "x = bytearray(1 << 33)"),
    "silence": ("timeout", "time.sleep(1000)"),
    "noise": ("output", "while True:\n    os.write(2, bytes(65536))"),
    "many files": ("output", "[(OUT / str(i)).write_bytes(b'') for i in range(5000)]"),
    "large files": (
        "output",
        "[os.truncate(OUT / n, 2**21) for n in 'abcd' if (OUT / n).write_bytes(b'x')]",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_child_that_lies_is_not_believed(lie, walls, tmp_path, monkeypatch):
    reason, program = LIES[lie]
    script = tmp_path / "worker.py"
    script.write_text(REPLY + program)
    monkeypatch.setattr(certify, "_WORKER", script)
    seconds = 3.0 if reason == "timeout" else LIMITS.seconds
    verdict = validate(GATE, walls, limits=TIGHT._replace(seconds=seconds))
    assert verdict.certified is None
    assert verdict.refusal.reason == reason, verdict.refusal
    assert len(verdict.refusal.message.splitlines()) == 1


def test_a_message_of_the_child_is_one_line_without_paths(walls, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    message = "line 1\n/root/.ssh/id_rsa\x1b[31m" + "x" * 10_000
    script.write_text(REPLY + f"reply({{'refusal': {dict(reason='trace', message=message)!r}}})")
    monkeypatch.setattr(certify, "_WORKER", script)
    message = validate(GATE, walls).refusal.message
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


@pytest.mark.parametrize("what", FOREIGN)
def test_a_program_with_foreign_parts_gets_no_certificate(what, walls, tmp_path, monkeypatch):
    program = foreign(FOREIGN[what], SLOTS["gate"].arguments(None))
    script = tmp_path / "worker.py"
    script.write_text(REPLY + f"reply({GOOD!r}, scalar={program!r})")
    monkeypatch.setattr(certify, "_WORKER", script)
    assert validate(GATE, walls).refusal.reason == "certificate"


def noise(program):
    return dataclasses.replace(program, mlir_module_serialized=b"noise")


def nothing(program):
    return dataclasses.replace(program, mlir_module_serialized=b"")


def for_others(program):
    return dataclasses.replace(program, platforms=("tpu",))


def other_module(program):
    """Arguments and results that its module does not have."""
    square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    other = export.export(jax.jit(lambda x: (x,)), platforms=("cpu", "cuda"))(square)
    return dataclasses.replace(program, mlir_module_serialized=other.mlir_module_serialized)


@pytest.mark.parametrize("forged", [noise, nothing, for_others, other_module])
def test_a_program_that_is_not_what_stands_beside_it_gets_no_certificate(
    forged, seed, walls, monkeypatch
):
    program = bytes(forged(seed.certified.load(None)).serialize())
    files = {"result.json": json.dumps(GOOD).encode(), "scalar.stablehlo": program}
    monkeypatch.setattr(runner, "run", lambda *args: runner.Outcome(0, files, "", ""))
    assert validate(GATE, walls).refusal.reason == "certificate"


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
