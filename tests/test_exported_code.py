"""Exported optax files with rewritten functions behave as their certified programs do."""

import ast
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from certified_code import BLEND, SOURCES, certify, code_of, edited, write_campaign
from specs import EVERYTHING, wandered_spec

import nanoevolve_jax as ne
from nanoevolve_jax import export as command
from nanoevolve_jax.codegen.sandbox import agreement, runner
from nanoevolve_jax.exports.agreement import check_optax, export_result, shapes_for
from nanoevolve_jax.exports.features import features_of
from nanoevolve_jax.exports.forms import export
from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.plugins import export_check, require_exportable
from nanoevolve_jax.policy.certified import CertificateError, Certified, digest
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, set_field
from nanoevolve_jax.policy.spec_json import SpecError, load_spec
from nanoevolve_jax.reporting.policies import find_policy, named_arm

STEPS = 25  # the spike among the gradients comes at step 20
GATING = ("gate", "actuate", "features")
# The gate of this spec reads no sensor, and its multiplier differs from those of `actuate`.
STILL = set_field(ANNEALING, "control.coefficients.step_fraction", 0.0)
STILL = set_field(STILL, "update_multiplier", 1.3)


@pytest.fixture(scope="module")
def functions():
    """Returns one function per slot whose names clash with those of the file and of each other."""
    return {slot: certify(source, slot) for slot, source in SOURCES.items()}


def code_with(functions, slots):
    return code_of(*(functions[slot] for slot in slots))


def assert_agrees(spec, code, steps=STEPS):
    source = source_of(spec, "optax", "policy", code=code)
    found = check_optax(spec, source, code, steps=steps)
    assert found.passes, found
    return source


@pytest.mark.parametrize(
    ("spec", "slots"),
    [
        (NANOCHAT, ("direction",)),
        (EVERYTHING, (*GATING, "direction")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (EVERYTHING, ("direction",)),
                (EVERYTHING, ("gate",)),
                (EVERYTHING, ("features",)),
                (STILL, ("actuate",)),
            )
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x[0], str) else "",
)
def test_a_file_with_sources_agrees_with_the_programs(functions, spec, slots):
    assert_agrees(spec, code_with(functions, slots))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "slots", [("direction",), ("gate",), ("actuate", "features"), (*GATING, "direction")]
)
def test_files_of_random_policies_agree(functions, seed, slots):
    assert_agrees(wandered_spec(seed), code_with(functions, slots), steps=50)


def test_an_iteration_in_bfloat16_is_that_of_the_certificate():
    code = code_of(certify(BLEND, "direction", [(8, 8)], dtype="bfloat16"))
    assert "dtype = jnp.bfloat16 if dtype is None" in assert_agrees(NANOCHAT, code)


@pytest.mark.parametrize(
    ("slots", "mistake"),
    [
        (("direction",), ("    State = 0.9\n", "    State = 0.9001\n")),
        (("direction",), ("clip_threshold=jnp.float32(", "clip_threshold=2.0 * jnp.float32(")),
        (GATING, ("jnp.clip(jnp.float32(gate), 0.0, 1.0)", "jnp.float32(gate)")),
        (GATING, ("jnp.clip(jnp.float32(x), *limits)", "jnp.float32(x)")),
        (GATING, ("jnp.clip(jnp.float32(x), -1.0, 1.0)", "jnp.float32(x)")),
    ],
    ids=["the source", "what it is told", "the gate's bounds", "actuators' bounds", "features'"],
)
def test_a_mistake_in_a_file_with_sources_is_caught(functions, slots, mistake):
    """The file must apply the same bounds to a function as `certified.py`."""
    code = code_with(functions, slots)
    source = source_of(EVERYTHING, "optax", "policy", code=code)
    assert source.count(mistake[0]) == 1
    assert not check_optax(EVERYTHING, source.replace(*mistake), code, steps=STEPS).passes


def test_the_smallest_matrix_of_each_form_is_compared():
    code = code_of(certify(BLEND, "direction", [(8, 8), (16, 16), (12, 2), (4, 12), (8, 24)]))
    assert shapes_for(code) == [(4, 12)] * 2 + [(8, 8)] * 2 + [(12, 2)] * 2
    assert (8, 24) in shapes_for(None) and shapes_for(code_of()) == shapes_for(None)


# Content of the file.


def test_a_function_that_nothing_calls_is_not_in_the_file(functions):
    code = code_with(functions, SOURCES)
    without_gate = source_of(NANOCHAT, "optax", "policy", code=code)
    assert "_rewritten_direction" in without_gate
    assert not any(f"_rewritten_{slot}" in without_gate for slot in GATING)
    same = source_of(NANOCHAT, "optax", "policy", code=code_with(functions, GATING))
    assert same == source_of(NANOCHAT, "optax", "policy")
    nothing_moves = set_field(ANNEALING, "control.conservative.update_multiplier", 1.2)
    nothing_moves = set_field(nothing_moves, "control.conservative.second_moment_beta", 0.9)
    assert features_of(nothing_moves, ["gate", "features"]).rewritten == ()
    assert features_of(nothing_moves, ["gate", "actuate"]).rewritten == ("gate", "actuate")


def test_built_in_functions_that_are_replaced_are_not_in_the_file(functions):
    source = source_of(EVERYTHING, "optax", "policy", code=code_with(functions, ("direction",)))
    for word in ("POLAR_EXPRESS", "_orthogonal(", "_prescale", "_normalise_variance"):
        assert word not in source
    source = source_of(EVERYTHING, "optax", "policy", code=code_with(functions, GATING))
    for word in ("WEIGHTS", "_blend", "BIAS ="):
        assert word not in source


def test_a_file_needs_only_jax_and_optax_and_lints(functions, tmp_path):
    policies = {"nanochat": NANOCHAT, "still": STILL, "everything": EVERYTHING}
    for name, spec in policies.items():
        for slots in (("direction",), GATING, (*GATING, "direction"), ("features",), ("actuate",)):
            source = source_of(spec, "optax", name, code=code_with(functions, slots))
            imported = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([x.name for x in node.names] if isinstance(node, ast.Import)
                             else [node.module])
            }  # fmt: skip
            assert imported <= {"jax", "optax", "typing", "math"}
            unhidden = source.replace("# ruff: noqa\n", "")
            (tmp_path / f"{name}_{'_'.join(slots)}.py").write_text(unhidden)
    ruff = [sys.executable, "-m", "ruff"]
    # The file guarantees the names, imports and format around the sources, but not their style.
    for rules in (["check", "--select", "F,I"], ["format", "--diff"]):
        done = subprocess.run(
            [*ruff, rules[0], "--isolated", *rules[1:], str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_torch_is_refused_in_one_line(functions):
    with pytest.raises(SpecError, match="got 'torch': p7 has direction rewritten") as error:
        source_of(NANOCHAT, "torch", "p7", code=code_with(functions, ("direction",)))
    assert "--to must be optax or json" in str(error.value) and "\n" not in str(error.value)
    # A rewritten gate is ignored if the gate is off.
    assert source_of(NANOCHAT, "torch", "p7", code=code_with(functions, ("gate",)))


def test_level_5_of_an_arm_with_code():
    code = code_of(certify(BLEND, "direction", [(8, 8)]))
    found = export_result("p0000", NANOCHAT, code, check_optax, print)
    assert found["passes"] and 0 <= found["max_relative_l2"] < 1e-6


def test_a_file_that_cannot_be_compared_has_not_passed_level_5():
    def check(*args):
        raise CertificateError("code 7 could not be compared with its file in the sandbox (time)")

    heard = []
    found = export_result("p0000", NANOCHAT, None, check, heard.append)
    assert found == {"max_relative_l2": None, "flips": 0, "held": 0, "passes": False}
    assert heard == ["export: code 7 could not be compared with its file in the sandbox (time)"]


def test_a_comparison_in_the_sandbox_gives_the_same_result(walls):
    code = code_of(certify(BLEND, "direction", [(8, 8)]))
    file = source_of(NANOCHAT, "optax", "p0000", code=code)
    found = agreement.check(NANOCHAT, file, code, walls)
    assert found == check_optax(NANOCHAT, file, code)
    wrong = file.replace("0.8 * (", "0.81 * (")
    assert wrong != file and not agreement.check(NANOCHAT, wrong, code, walls).passes


def test_a_file_with_sources_runs_only_in_the_sandbox(walls, tmp_path):
    code = code_of(certify(BLEND, "direction", [(8, 8)]))
    mark = tmp_path / "it ran here"
    file = source_of(NANOCHAT, "optax", "p0000", code=code)
    with pytest.raises(CertificateError, match=r"could not be compared .*in the sandbox"):
        agreement.check(NANOCHAT, f"open({str(mark)!r}, 'w')\n{file}", code, walls)
    assert not mark.exists()
    assert export_check(None, runner.REQUIRED) is check_optax


ANSWER = dict(max_relative_l2=0.0, state=0.0, flips=0, held=0, entries=1, steps=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b"null",
        json.dumps(ANSWER | {"flips": 10**400}).encode(),
        json.dumps(ANSWER | {"state": "0"}).encode(),
        json.dumps(ANSWER | {"held": None}).encode(),
    ],
)
def test_an_invalid_result_of_the_sandbox_is_refused(answer, monkeypatch):
    outcome = runner.Outcome(0, answer, "", "")
    monkeypatch.setattr(runner, "run", lambda *args: outcome)
    with pytest.raises(CertificateError, match="could not be compared"):
        agreement.check(NANOCHAT, "", code_of(), runner.isolation("available"))


# The command.


@pytest.fixture
def folder(tmp_path):
    """Returns the run folder of a campaign."""
    function = certify(BLEND, "direction", [(8, 8), (8, 12), (12, 8)])
    return write_campaign(tmp_path / "run", function)


def exported(name, to, folder, out):
    policy = find_policy(name, folder)
    return export(policy, to, export_check(policy.code, runner.REQUIRED), out)


def test_the_folder_of_a_policy_does_not_choose_the_walls_around_its_file(
    folder, tmp_path, monkeypatch
):
    written = json.loads((folder / "config.json").read_text())
    written["config"]["codegen"]["isolation"] = "available"
    (folder / "config.json").write_text(json.dumps(written))
    isolations = []

    def checker(code, isolation):
        isolations.append(isolation)
        return lambda *policy: agreement.Agreement(**ANSWER)

    monkeypatch.setattr(command.plugins, "export_check", checker)
    given = dict(to="optax", workdir=str(folder), out=str(tmp_path / "p.py"), force=True)
    for isolation in ("required", "available"):
        flags = SimpleNamespace(**given, isolation=isolation)
        monkeypatch.setattr(command, "flags", SimpleNamespace(FLAGS=flags))
        assert command.main(["p0000"]) == 0
    assert isolations == ["required", "available"]


@pytest.mark.usefixtures("walls")
def test_the_command_exports_a_candidate_with_code(folder, tmp_path):
    for name in ("p0000", "p0000m1"):  # the mutant has its parent's code
        out = tmp_path / f"{name}.py"
        done = exported(name, "optax", folder, out)
        assert done.agrees and "over 50 steps" in done.summary
        assert "x + 0.8 * (buffer - x)" in out.read_text()
    spec = importlib.util.spec_from_file_location("p0000", out)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module.optimizer(0.1, 10).init({"w": np.ones((3, 5, 7), np.float32)})
    assert state.nu["w"].shape == (3, 1, 7)


@pytest.mark.usefixtures("walls")
def test_json_has_the_sources_and_cannot_be_taken_for_a_spec(folder, tmp_path):
    out = tmp_path / "p0000.json"
    done = exported("p0000", "json", folder, out)
    assert done.agrees and "same spec and source of direction" in done.summary
    document = json.loads(out.read_text())
    assert "x + 0.8 * (buffer - x)" in document["code"]["direction"]["source"]
    for use in (load_spec, lambda path: ne.optimizer(path, total_steps=1, learning_rate=1.0)):
        with pytest.raises(SpecError, match=r"functions are rewritten.*export p0000 --to optax"):
            use(out)
    with pytest.raises(SpecError, match="functions are rewritten"):
        named_arm(str(out), NANOCHAT)


def test_a_candidate_of_a_run_folder_is_no_policy_of_the_library(folder):
    with pytest.raises(SpecError, match="export p0000 --to optax --workdir") as error:
        ne.optimizer(f"{folder}:p0000", total_steps=1, learning_rate=1.0)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("walls")
def test_the_command_line_refuses_torch_with_code_2(folder, shell, tmp_path):
    done = shell("export", "p0000", "--to=torch", f"--workdir={folder}", folder=tmp_path)
    assert done.code == 2 and done.errors.count("\n") == 1 and not done.output
    assert "--to must be optax or json, got 'torch': p0000 has direction rewritten" in done.errors


def test_code_that_was_exchanged_is_not_exported(folder, tmp_path):
    (path,) = (folder / "code").glob("*/source.py")
    path.write_text("def direction(): pass\n")
    with pytest.raises(CertificateError, match="has another hash"):
        exported("p0000", "optax", folder, tmp_path / "x.py")
    assert not (tmp_path / "x.py").exists()


def test_a_forged_certificate_does_not_get_its_source_run():
    """Matching hashes do not prove that the source was validated."""
    good = certify(BLEND, "direction", [(8, 8)])
    source = good.source + "open('owned', 'w')\n"
    forged = dict(good.certificate) | {"source_sha256": digest(source.encode())}
    function = Certified(source, forged, good.programs)
    function.require_intact()
    with pytest.raises(
        CertificateError, match=f"{function.id} must be in the language of rewritten"
    ):
        require_exportable(code_of(function))
    require_exportable(code_of(good))
    require_exportable(None)


def test_a_forged_certificate_writes_nothing_of_its_own_into_a_file():
    good = certify(BLEND, "direction", [(8, 8)])
    for dtype in ("float32), open('owned', 'w'", None, ["float32"]):
        forged = Certified(good.source, dict(good.certificate) | {"dtype": dtype}, good.programs)
        with pytest.raises(CertificateError, match=r"must have dtype float32 or bfloat16"):
            forged.require_intact()


def test_a_source_that_clashes_with_everything_is_in_a_scope_of_its_own():
    names = ["MOMENTUM", "State", "Any", "optax", "init", "update", "Knobs", "trees", "beta"]
    extra = "".join(f"def {name}(x):\n    return 1.5 * x\n" for name in names)
    body = ("ahead = x + knobs.momentum * (buffer - x)", "ahead = x + beta(0.4) * (buffer - x)")
    code = code_of(certify(extra + edited("direction", body), "direction", [(8, 8)]))
    assert_agrees(NANOCHAT, code)
