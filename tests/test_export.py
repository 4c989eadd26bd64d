"""The export command, and exported files on a machine without this project."""

import ast
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from records import make_record
from specs import EVERYTHING, wandered_spec

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.exports.agreement import check_optax
from nanoevolve_jax.exports.forms import FORMS, export
from nanoevolve_jax.exports.origin import Compared, Origin, in_sentences, to_document
from nanoevolve_jax.exports.source import FRAMEWORKS, module_name, source_of
from nanoevolve_jax.exports.stepping import load_module
from nanoevolve_jax.model.parity_optimizer import FLIPS, STEP_GATE
from nanoevolve_jax.model.reference import Reference
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, TRUST_RATIO, set_field
from nanoevolve_jax.policy.spec_json import load_spec
from nanoevolve_jax.reporting.policies import find_policy

POLICIES = {"nanochat": NANOCHAT, "annealing": ANNEALING, "everything": EVERYTHING}
POLICIES |= {f"random_{seed}": wandered_spec(seed) for seed in range(20)}
ORIGIN = Origin(
    id="g002c06",
    lineage='nanochat, then """annealing""", then a \\ b',
    val_bpb=2.159,
    seeds=1,
    reference=Compared("nanochat", tuned=False, val_bpb=2.168),
)
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a folder with every policy as a file for each framework, with a long origin."""
    folder = tmp_path_factory.mktemp("exported")
    for framework in FRAMEWORKS:
        (folder / framework).mkdir()
        for name, spec in POLICIES.items():
            text = source_of(spec, framework, name, in_sentences(ORIGIN._replace(id=name)))
            (folder / framework / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize("command", ["check --select E,F,I,UP,B,SIM,RUF", "format --diff"])
def test_every_file_is_formatted_and_passes_the_linter(files, command):
    done = run(sys.executable, "-m", "ruff", *command.split(), "--isolated", str(files))
    assert done.returncode == 0, done.stdout


@every_framework
def test_a_name_cannot_end_the_docstring_around_it(framework):
    """Names come from received JSON files, and the exported file is executed."""
    names = ['x"""\nopen("owned", "w")\n"""', '"""', '\\"""', "a \\", '""', "x\0\ud800\r\nopen(1)"]
    plain = ast.parse(source_of(NANOCHAT, framework, "x")).body[1:]
    for name in names:
        docstring, *rest = ast.parse(source_of(NANOCHAT, framework, name, [name])).body
        assert isinstance(docstring.value, ast.Constant)
        assert list(map(ast.dump, rest)) == list(map(ast.dump, plain))


ALONE = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
for path in {paths!r}:
    spec = importlib.util.spec_from_file_location("policy", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module
    spec.loader.exec_module(module)
    {use}
"""
USE = {
    "optax": "import jax; module.optimizer(0.1, 10).init([jax.numpy.ones((4, 3))])",
    "torch": "import torch; group = dict(kind='muon', lr=0.1, params=[torch.zeros(4, 3)]); "
    "module.MuonAdamW([group], total_steps=10)",
}
OTHERS = {"optax": ["torch"], "torch": ["jax", "optax"]}


@every_framework
def test_files_import_only_their_framework(files, framework):
    pytest.importorskip(framework)
    blocked = ["nanoevolve_jax", "flax", "ml_collections", *OTHERS[framework]]
    paths = sorted(map(str, (files / framework).glob("*.py")))
    code = ALONE.format(blocked=blocked, paths=paths, use=USE[framework])
    done = run(sys.executable, "-I", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_file_contains_only_what_the_policy_uses():
    nanochat = source_of(NANOCHAT, "optax", "nanochat")
    for word in ("WEIGHTS", "gate", "TRUST_RATIO", "CLIP", "UPDATE_MULTIPLIER", "first_log_loss"):
        assert word not in nanochat
    annealing = source_of(ANNEALING, "optax", "annealing")
    assert '"step_fraction": 1.0' in annealing and "UPDATE_MULTIPLIER = (1.2, 0.8)" in annealing
    for word in ("alignment", "EMA_BETA", "TRUST_RATIO", "CLIP"):
        assert word not in annealing
    four = source_of(NANOCHAT._replace(ns_steps=4), "torch", "four")
    assert "2.3465413258596377" in nanochat and "2.3465413258596377" not in four
    still = set_field(ANNEALING, "control.conservative.update_multiplier", 1.2)
    still = set_field(still, "control.conservative.second_moment_beta", 0.9)
    text = source_of(still, "torch", "still")  # its gate has no effect
    assert "gate" not in text.split('"""')[2] and "UPDATE_MULTIPLIER = 1.2" in text


def test_the_docstring_states_the_origin():
    module = load_module(source_of(NANOCHAT, "optax", "g002c06", in_sentences(ORIGIN)))
    assert "2.1590 bpb on 1 seed; 2.1680 for nanochat, not tuned" in module.__doc__
    assert "nothing is confirmed" in module.__doc__ and "'''annealing'''" in module.__doc__


@pytest.mark.parametrize(
    ("name", "module"), [("g002c06", "g002c06"), ("my-policy 2", "my_policy_2"), ("7", "policy_7")]
)
def test_the_name_of_a_file_can_be_imported(name, module):
    assert module_name(name) == module


def test_the_optax_file_needs_the_loss_only_if_its_gate_reads_it():
    params = {"a": jnp.ones((4, 6)), "b": {"c": jnp.ones((6, 4))}, "none": None}

    def step(spec):
        module = load_module(source_of(spec, "optax", "policy"))
        tx = module.optimizer(lambda count: 0.1, 10, weight_decay=lambda count: 0.1)
        return jax.jit(tx.update)(params, tx.init(params), params)

    _, state = step(ANNEALING)
    assert 0.0 < float(optax.tree.get(state, "gate")) < 0.5
    with pytest.raises(ValueError, match="value must be the loss"):
        step(set_field(ANNEALING, "control.coefficients.loss_ema", 1.0))


# The file for PyTorch.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_model(torch, spec, **changes):
    """Returns parameters of three shapes in NanoChat's kinds of groups, and their optimizer."""
    module = load_module(source_of(spec, "torch", "policy"))
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6), (4, 6), (6, 4), (5,)]
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    muon = {"kind": "muon", "lr": 0.02, "momentum": 0.95, "ns_steps": 5, "weight_decay": 0.1}
    adamw = {"kind": "adamw", "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    groups = [
        muon | {"params": params[:2]} | changes,
        muon | {"params": params[2:3]} | changes,
        adamw | {"params": params[3:]},
    ]
    return params, module.MuonAdamW(groups, total_steps=20)


def torch_step(torch, params, optimizer, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)  # as a training script does
    optimizer.step(loss=torch.tensor(3.0 / (step + 1)))


def test_the_policy_overrides_its_settings_in_groups(torch):
    runs = []
    for changes in ({}, {"ns_steps": 1, "beta2": 0.5}, {"momentum": 0.5}):
        params, optimizer = torch_model(torch, NANOCHAT._replace(ns_steps=3), **changes)
        for step in range(2):
            torch_step(torch, params, optimizer, step)
        runs.append(params[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_adamw_groups_are_updated_as_by_torch(torch):
    params, optimizer = torch_model(torch, NANOCHAT)
    reference = torch.nn.Parameter(params[3].detach().clone())
    own = torch.optim.AdamW([reference], lr=0.1, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    for step in range(4):
        torch_step(torch, params, optimizer, step)
        reference.grad = params[3].grad
        own.step()
    torch.testing.assert_close(params[3], reference, rtol=1e-6, atol=1e-6)


def test_the_torch_file_survives_huge_gradients(torch):
    params, optimizer = torch_model(torch, EVERYTHING)
    for p in params:
        p.grad = torch.full_like(p, 1e30)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(p).all() for p in params[:3])


@pytest.mark.parametrize("shape", ["64x64", "64x256", "256x64"])
def test_the_torch_file_of_the_baseline_steps_as_nanochat_does(torch, repository, shape):
    """The steps match figures of NanoChat's own MuonAdamW."""
    reference = Reference(repository / "tests/reference/muon.npz")
    hyper = reference.json("muon/hyper")
    spec = NANOCHAT._replace(second_moment_beta=hyper["beta2"])
    module = load_module(source_of(spec, "torch", "nanochat"))
    params = [torch.nn.Parameter(torch.tensor(x)) for x in reference[f"muon/{shape}/params0"]]
    optimizer = module.MuonAdamW([{"kind": "muon", "params": params, "lr": 0.0}])
    factor = max(1.0, params[0].shape[0] / params[0].shape[1]) ** 0.5  # not in the figures
    steps = []
    for step, grads in enumerate(reference[f"muon/{shape}/grads"]):
        settings = {"momentum": hyper["momentum"][step], "weight_decay": hyper["wd"][step]}
        optimizer.param_groups[0].update(lr=hyper["lr"][step] / factor, **settings)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        steps.append(np.stack([p.detach().numpy() for p in params]))
    own, theirs = reference.matching(f"muon/{shape}/ns5/params", np.stack(steps))
    assert np.mean(np.abs(own - theirs) > STEP_GATE) <= FLIPS


def test_the_torch_file_has_nanochats_adamw(torch, repository):
    reference = Reference(repository / "tests/reference/muon.npz")
    hyper = reference.json("adamw/hyper")
    module = load_module(source_of(NANOCHAT, "torch", "nanochat"))
    p = torch.nn.Parameter(torch.tensor(reference["adamw/params0"]))
    group = {"kind": "adamw", "params": [p], "lr": 0.0, "eps": hyper["eps"]}
    betas = (hyper["beta1"], hyper["beta2"])
    optimizer = module.MuonAdamW([group | {"betas": betas, "weight_decay": hyper["wd"]}])
    for step, grad in enumerate(reference["adamw/grads"]):
        optimizer.param_groups[0]["lr"] = hyper["lr"][step]
        p.grad = torch.tensor(grad)
        optimizer.step()
        difference = np.abs(p.detach().numpy() - reference["adamw/params"][step])
        assert np.mean(difference > STEP_GATE) <= FLIPS


# The command.


@pytest.fixture
def folder(tmp_path):
    """Returns a run folder of three candidates."""
    folder = tmp_path / "run"
    folder.mkdir()
    records = [
        make_record("nanochat", status="baseline"),
        make_record("annealing", spec=ANNEALING, operator="preset", parent_id="nanochat"),
        make_record("g001c00", spec=TRUST_RATIO, operator="toggle_trust_ratio",
                    parent_id="nanochat", change="trust_ratio off -> on", generation=1),
    ]  # fmt: skip
    archive.append(folder / "archive.jsonl", records)
    document = {"config": {}, "versions": {}, "device": {}, "fingerprints": {}}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def exported(name, to, folder, out, **options):
    return export(find_policy(name, folder), to, check_optax, out, **options)


def test_an_optax_file_is_written_and_compared(folder, tmp_path):
    out = tmp_path / "g001c00.py"
    done = exported("g001c00", "optax", folder, out)
    assert done.agrees and "agrees" in done.summary and "over 50 steps" in done.summary
    assert "Lineage: nanochat, then trust_ratio off -> on." in out.read_text()
    spec = importlib.util.spec_from_file_location("g001c00", out)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.optimizer(0.1, 10).init([np.ones((2, 3), np.float32)])


def test_a_file_that_does_not_agree_fails_the_export(folder, tmp_path, monkeypatch):
    text = source_of(NANOCHAT, "optax", "x").replace("* 1.01 +", "* 1.02 +")
    monkeypatch.setitem(FORMS, "optax", FORMS["optax"]._replace(write=lambda policy: text))
    done = exported("nanochat", "optax", folder, tmp_path / "x.py")
    assert not done.agrees and "DISAGREES" in done.summary


def test_json_contains_the_recipe_and_can_be_exported_again(folder, tmp_path):
    out, again = tmp_path / "g001c00.json", tmp_path / "again.json"
    assert exported("g001c00", "json", folder, out).agrees
    document = json.loads(out.read_text())
    assert load_spec(out) == TRUST_RATIO
    assert document["id"] == "g001c00" and document["compared_with"]["id"] == "nanochat"
    assert document["trained_with"]["momentum"] == TRUST_RATIO.momentum
    assert document["trained_with"]["matrix_lr"] > 0 and document["trained_with"]["steps"] == 100
    assert exported(str(out), "json", folder, again).agrees
    assert json.loads(again.read_text())["lineage"] == document["lineage"]


def test_a_figure_that_is_missing_is_null_in_json():
    document = to_document(NANOCHAT, Origin("x", "y"))
    assert document["val_bpb"] is None and json.dumps(document, allow_nan=False)


def test_a_preset_needs_no_run_folder(tmp_path):
    done = exported("annealing", "json", tmp_path / "none", tmp_path / "a.json")
    assert done.agrees and load_spec(done.path) == ANNEALING


def test_a_file_is_overwritten_only_by_force(folder, tmp_path):
    out = tmp_path / "mine.json"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"--out must be a new file, got .*; --force"):
        exported("nanochat", "json", folder, out)
    assert out.read_text() == "mine"
    exported("nanochat", "json", folder, out, force=True)
    assert load_spec(out) == NANOCHAT


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("g009c09", "x.json", "ID must be .* such as g001c00.*, got 'g009c09'"),
        ("missing.json", "x.json", "missing.json"),
        ("wrong.json", "x.json", "spec.momentum"),
        ("nanochat", "no/x.json", "--out .*No such file"),
        ("nanochat", ".", "--out "),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, name, out, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = to_document(NANOCHAT, ORIGIN)["spec"] | {"momentum": 2}
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message) as caught:
        exported(name, "json", folder, tmp_path / out)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nanochat", "--to=keras"], "--to must be"),
        (["nanochat"], "--to must be"),
        (["--to=json"], "0 arguments"),
        (["--too=json"], "Unknown command line flag 'too'"),
        (["g7", "--to=json", "--workdir=nowhere"], "nowhere"),
    ],
)
def test_a_mistaken_command_line_exits_with_code_2(shell, arguments, message, tmp_path):
    done = shell("export", *arguments, folder=tmp_path)
    assert done.code == 2 and done.errors.count("\n") == 1 and message in done.errors
