"""Rewritten code cannot reach validation, the evaluator or the state of others."""

import inspect

import jax
import numpy as np
import pytest
import training
from certified_code import checked
from jax import export

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution import train
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code, digest
from nanoevolve_jax.policy.slots import SLOTS, built_in_source

READER = """
import os, sys
found = []
for root, folders, files in os.walk("/"):
    if root == "/proc":
        folders[:] = []
    found += [os.path.join(root, name) for name in files if name in NAMES]
for path in PATHS:
    try:
        found.append(open(path, "rb").read(1) and path)
    except OSError:
        pass
os.write(int(sys.argv[1]), str(found).encode())
"""


def test_no_argument_of_a_slot_has_to_do_with_text_loss_or_other_candidates():
    parameters = {name for slot in SLOTS.values() for name in slot.parameters}
    assert parameters == {
        *("gradient", "momentum", "second_moment", "parameter", "knobs"),
        *("sensors", "features", "control", "gate", "poles"),
    }
    for slot in SLOTS.values():
        leaves = jax.tree.leaves(slot.arguments((6, 10)))
        assert all(x.shape in ((), (6, 10), (1, 10)) for x in leaves), "one matrix, and scalars"


def test_a_child_in_the_sandbox_sees_no_text_and_no_run_folder(walls, tmp_path):
    names = ("validation.npy", "archive.jsonl", "runs.jsonl", "ledger.json")
    for name in names:
        (tmp_path / name).write_text("secret")
    script = tmp_path / "reader.py"
    paths = [str(tmp_path / name) for name in names]
    script.write_text(f"NAMES, PATHS = {names!r}, {paths!r}\n{READER}")
    outcome = runner.run(script, b"", runner.Limits(seconds=60.0), walls)
    assert outcome.result == b"[]", outcome
    assert all((tmp_path / name).read_text() == "secret" for name in names)


def test_no_source_is_run_by_whoever_loads_or_calls_its_program(tmp_path):
    function = checked(built_in_source("features"), "features", ())
    mark = tmp_path / "it ran"
    source = f"open({str(mark)!r}, 'w')\n" + function.source
    facts = dict(function.certificate) | {"source_sha256": digest(source.encode())}
    armed = Certified(source, facts, function.programs)
    Library(tmp_path / "code").put(armed)
    code = Library(tmp_path / "code").code({"features": armed.id})
    extra = code.slots().features(training.candidate().spec.control.coefficients)
    np.testing.assert_array_equal(extra, np.zeros(4))
    assert not mark.exists()


def test_a_program_that_evaluates_or_calls_out_is_not_loaded():
    """A compromised child process could return StableHLO of its own."""

    one = jax.ShapeDtypeStruct((1,), np.float32)

    def spying(*leaves):
        return jax.ffi.ffi_call("steal", [one] * 4)(leaves[0])

    leaves = jax.tree.leaves(SLOTS["features"].arguments(None))
    checks = [export.DisabledSafetyCheck.custom_call("steal")]
    program = export.export(jax.jit(spying), disabled_checks=checks)(*[one for _ in leaves])
    content = bytes(program.serialize())
    function = checked(built_in_source("features"), "features", ())
    forged = dict(function.certificate)
    forged["programs"] = {"scalar": forged["programs"]["scalar"] | {"sha256": digest(content)}}
    with pytest.raises(CertificateError, match="custom_call steal"):
        Certified(function.source, forged, {"scalar": content}).load(None)


@pytest.mark.slow  # compiles a training program
def test_a_lane_of_code_is_blind_to_its_neighbours_state():
    programs = make_programs(training.TASK, devices=1, lanes=2)
    engine = training.make_engine(programs)
    shapes = tuple(sorted(set(matrix_shapes(training.TASK.model))))
    slower = built_in_source("direction").replace("beta) * (square", "0.5 * beta) * (square")
    code = Code((checked(slower, "direction", shapes),))
    me = training.candidate()._replace(code=code)
    poisoned = training.candidate(matrix_lr=1e30)._replace(code=code)
    alone = next(iter(engine.run([Job(me, 1, 8)])))
    beside, dead = engine.run([Job(me, 1, 8), Job(poisoned, 2, 8)])
    assert dead.failure is not None
    assert beside.val_bpb == alone.val_bpb
    np.testing.assert_array_equal(beside.telemetry, alone.telemetry)


def test_the_evaluator_knows_nothing_of_code():
    """Code changes only the compiled training step; all candidates share the evaluation program."""
    assert "code" not in inspect.getsource(train.evaluate)
    plain = make_programs(training.TASK, devices=1, lanes=1)
    from nanoevolve_jax.execution.population import with_code

    function = checked(built_in_source("features"), "features", ())
    coded = with_code(plain, training.TASK, Code((function,)))
    assert coded.evaluate_population is plain.evaluate_population
    assert coded.init_population is plain.init_population
    assert coded.train_segment is not plain.train_segment
