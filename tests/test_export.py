"""The command export, and what its files are worth where nothing of this project is installed."""

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
from nanoevolve_jax.model.optimizer_parity import FLIPS, STEP_GATE
from nanoevolve_jax.model.reference import Reference
from records import make_record
from specs import EVERYTHING, wandered_spec

from nanoevolve_jax import export as command
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.exports.origin import Compared, Origin, in_sentences, to_document
from nanoevolve_jax.exports.source import FRAMEWORKS, module_name, source_of
from nanoevolve_jax.exports.stepping import load_module
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, TRUST_RATIO, set_field
from nanoevolve_jax.policy.spec_json import SpecError, load_spec

POLICIES = {"nanochat": NANOCHAT, "annealing": ANNEALING, "everything": EVERYTHING}
POLICIES |= {f"random_{seed}": wandered_spec(seed) for seed in range(20)}
LOSS_GATE = set_field(ANNEALING, "control.coefficients.loss_ema", 1.0)
ORIGIN = Origin(
    id="g002c06",
    lineage='nanochat, then """annealing""", then a \\ b',
    val_bpb=2.159,
    seeds=1,
    reference=Compared("nanochat", tuned=False, val_bpb=2.168),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every policy as a file of each framework, with a long origin."""
    folder = tmp_path_factory.mktemp("exported")
    for framework in FRAMEWORKS:
        (folder / framework).mkdir()
        for name, spec in POLICIES.items():
            about = in_sentences(ORIGIN._replace(id=name))
            text = source_of(spec, framework, name, about)
            (folder / framework / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize("rules", [["--select", "E,F"], ["--select", "E,F,I,UP,B,SIM,RUF"]])
def test_every_file_passes_ruff(files, rules):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", *rules, str(files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_file_is_formatted(files):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_name_cannot_end_the_docstring_it_stands_in(framework):
    """Names come from JSON files of anybody's, and the file is run where it is written."""
    names = ['x"""\nopen("owned", "w")\n"""', '"""', '\\"""', "a \\", '""', "x\0\ud800\r\nopen(1)"]
    plain = ast.parse(source_of(NANOCHAT, framework, "x")).body[1:]
    for name in names:
        docstring, *rest = ast.parse(source_of(NANOCHAT, framework, name, [name])).body
        assert isinstance(docstring.value, ast.Constant)
        assert list(map(ast.dump, rest)) == list(map(ast.dump, plain))


ALONE = """
import importlib.util, sys

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Only())
for path in {paths!r}:
    spec = importlib.util.spec_from_file_location("policy", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module
    spec.loader.exec_module(module)
    {use}
print("alone")
"""
USE = {
    "optax": "import jax; module.optimizer(0.1, 10).init([jax.numpy.ones((4, 3))])",
    "torch": "import torch; group = dict(kind='muon', lr=0.1, params=[torch.zeros(4, 3)]); "
    "module.MuonAdamW([group], total_steps=10)",
}
PROJECT = ("nanoevolve_jax", "configs", "data", "model", "flax", "ml_collections")


@pytest.mark.parametrize(
    ("framework", "blocked"),
    [("optax", (*PROJECT, "torch")), ("torch", (*PROJECT, "jax", "optax"))],
    ids=FRAMEWORKS,
)
def test_files_import_where_nothing_else_can_be_imported(files, tmp_path, framework, blocked):
    pytest.importorskip(framework)
    paths = sorted(map(str, (files / framework).glob("*.py")))
    code = ALONE.format(blocked=blocked, paths=paths, use=USE[framework])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "alone", done.stderr


def test_a_file_holds_only_what_the_policy_uses():
    nanochat = source_of(NANOCHAT, "optax", "nanochat")
    for word in ("WEIGHTS", "gate", "TRUST_RATIO", "CLIP", "UPDATE_MULTIPLIER", "first_log_loss"):
        assert word not in nanochat
    annealing = source_of(ANNEALING, "optax", "annealing")
    assert '"step_fraction": 1.0' in annealing and "UPDATE_MULTIPLIER = (1.2, 0.8)" in annealing
    for word in ("alignment", "EMA_BETA", "TRUST_RATIO", "CLIP"):
        assert word not in annealing
    four = source_of(NANOCHAT._replace(ns_steps=4), "torch", "four")
    assert "2.3465413258596377" in nanochat and "2.3465413258596377" not in four


def test_a_gate_that_moves_nothing_is_gone():
    still = set_field(ANNEALING, "control.conservative.update_multiplier", 1.2)
    still = set_field(still, "control.conservative.second_moment_beta", 0.9)
    source = source_of(still, "torch", "still")
    assert "gate" not in source.split('"""')[2] and "UPDATE_MULTIPLIER = 1.2" in source


def test_a_docstring_tells_the_origin_and_cannot_be_broken_by_it():
    module = load_module(source_of(NANOCHAT, "optax", "g002c06", in_sentences(ORIGIN)))
    assert "2.1590 bpb on 1 seed; 2.1680 for nanochat, not tuned" in module.__doc__
    assert "nothing is confirmed" in module.__doc__ and "Apache-2.0" in module.__doc__
    assert "'''annealing'''" in module.__doc__


@pytest.mark.parametrize(
    ("name", "module"), [("g002c06", "g002c06"), ("my-policy 2", "my_policy_2"), ("7", "policy_7")]
)
def test_the_name_of_a_file_can_be_imported(name, module):
    assert module_name(name) == module


# The file for optax, as its user has it.


def step_with(module, spec_reads_loss):
    params = {"a": jnp.ones((4, 6)), "b": {"c": jnp.ones((6, 4))}, "none": None}
    tx = module.optimizer(lambda count: 0.1, 10, weight_decay=lambda count: 0.1)
    state = tx.init(params)
    value = {"value": 2.0} if spec_reads_loss else {}
    updates, state = jax.jit(tx.update)(params, state, params, **value)
    return params, updates, state, tx


def test_the_optax_file_asks_for_the_loss_only_if_the_gate_reads_it():
    step_with(load_module(source_of(ANNEALING, "optax", "annealing")), False)
    with pytest.raises(ValueError, match="value is None; allowed: the loss"):
        step_with(load_module(source_of(LOSS_GATE, "optax", "loss")), False)


def test_the_optax_file_has_its_gate_in_its_state():
    module = load_module(source_of(ANNEALING, "optax", "annealing"))
    _, _, state, _ = step_with(module, False)
    assert 0.0 < float(optax.tree.get(state, "gate")) < 0.5


# The file for torch, as its user has it.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_model(torch, module, **changes):
    """Two matrices of a shape, one of another and a vector, in NanoChat's kinds of groups."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6), (4, 6), (6, 4), (5,)]
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    muon = {"kind": "muon", "lr": 0.02, "momentum": 0.95, "ns_steps": 5, "beta2": 0.9}
    adamw = {"kind": "adamw", "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    groups = [
        muon | {"params": params[:2], "weight_decay": 0.1} | changes,
        muon | {"params": params[2:3], "weight_decay": 0.1} | changes,
        adamw | {"params": params[3:]},
    ]
    return params, module.MuonAdamW(groups, total_steps=20)


def torch_steps(torch, params, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)  # as a training script does
        optimizer.step(loss=torch.tensor(3.0 / (step + 1)))
    return [p.detach().clone() for p in params]


def test_the_policy_decides_what_groups_also_name(torch):
    module = load_module(source_of(NANOCHAT._replace(ns_steps=3), "torch", "policy"))
    runs = []
    for changes in ({}, {"ns_steps": 1, "beta2": 0.5}, {"momentum": 0.5}):
        params, optimizer = torch_model(torch, module, **changes)
        runs.append(torch_steps(torch, params, optimizer, range(2)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_adamw_groups_decay_first_and_then_update(torch):
    """Against torch's own AdamW, which does the same."""
    module = load_module(source_of(NANOCHAT, "torch", "policy"))
    params, optimizer = torch_model(torch, module)
    reference = torch.nn.Parameter(params[3].detach().clone())
    own = torch.optim.AdamW([reference], lr=0.1, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    for step in range(4):
        torch_steps(torch, params, optimizer, [step])
        reference.grad = params[3].grad
        own.step()
    torch.testing.assert_close(params[3], reference, rtol=1e-6, atol=1e-6)


def test_a_torch_file_survives_huge_gradients(torch):
    module = load_module(source_of(EVERYTHING, "torch", "policy"))
    params, optimizer = torch_model(torch, module)
    for p in params:
        p.grad = torch.full_like(p, 1e30)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(p).all() for p in params[:3])


# The command.


@pytest.fixture
def folder(tmp_path):
    """A run folder of three candidates."""
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


def test_the_command_writes_checks_and_says_what_it_measured(folder, tmp_path, capsys):
    out = tmp_path / "g001c00.py"
    assert command.export("g001c00", "optax", folder, out, force=False)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "agrees with our optimizer over 50 steps" in line
    assert "Lineage: nanochat, then trust_ratio off -> on." in out.read_text()
    spec = importlib.util.spec_from_file_location("g001c00", out)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.optimizer(0.1, 10).init([np.ones((2, 3), np.float32)])


def test_a_file_that_does_not_agree_fails_the_command(folder, tmp_path, capsys, monkeypatch):
    wrong = command.FORMS["optax"]._replace(
        write=lambda policy: source_of(policy.spec, "optax", "x").replace("* 1.01 +", "* 1.02 +")
    )
    monkeypatch.setitem(command.FORMS, "optax", wrong)
    assert not command.export("nanochat", "optax", folder, tmp_path / "x.py", force=False)
    assert "DISAGREES" in capsys.readouterr().out


def test_json_says_what_the_policy_was_trained_with_and_reads_back(folder, tmp_path, capsys):
    out = tmp_path / "g001c00.json"
    assert command.export("g001c00", "json", folder, out, force=False)
    assert "reads back as the same spec" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert load_spec(out) == TRUST_RATIO
    assert document["id"] == "g001c00" and document["compared_with"]["id"] == "nanochat"
    assert document["trained_with"]["momentum"] == TRUST_RATIO.momentum
    assert document["trained_with"]["matrix_lr"] > 0 and document["trained_with"]["steps"] == 100
    # And it can be exported again, with its lineage.
    assert command.export(str(out), "json", folder, tmp_path / "again.json", force=False)
    assert json.loads((tmp_path / "again.json").read_text())["lineage"] == document["lineage"]


def test_numbers_that_are_none_are_null(tmp_path):
    document = to_document(NANOCHAT, Origin("x", "y"))
    assert document["val_bpb"] is None and json.dumps(document, allow_nan=False)


def test_a_preset_needs_no_run_folder(tmp_path, capsys):
    assert command.export("annealing", "json", tmp_path / "none", tmp_path / "a.json", False)
    assert "annealing (a preset)" in capsys.readouterr().out


def test_a_file_is_written_over_only_by_force(folder, tmp_path):
    out = tmp_path / "mine.json"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="which exists; allowed: a new file, or --force"):
        command.export("nanochat", "json", folder, out, force=False)
    assert out.read_text() == "mine"
    command.export("nanochat", "json", folder, out, force=True)
    assert load_spec(out) == NANOCHAT


@pytest.mark.parametrize(
    ("name", "out", "error", "message"),
    [
        ("g009c09", "x.json", ArchiveError, "ID is 'g009c09'; allowed: .* such as g001c00"),
        ("missing.json", "x.json", SpecError, "spec file is .*missing.json"),
        ("wrong.json", "x.json", SpecError, "spec.momentum is 2; allowed: a number from 0 to"),
        ("nanochat", "no/x.json", ConfigError, "--out is .*No such file"),
        ("nanochat", ".", ConfigError, "--out is "),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, name, out, error, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = to_document(NANOCHAT, ORIGIN)["spec"] | {"momentum": 2}
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    with pytest.raises(error, match=message) as caught:
        command.export(name, "json", folder, tmp_path / out, force=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nanochat", "--to=keras"], "--to is 'keras'; allowed: optax, torch, json"),
        (["nanochat"], "--to is None; allowed: optax, torch, json"),
        (["--to=json"], "0 arguments; allowed: one ID, preset or JSON file"),
        (["--too=json"], "flag '--too=json' is unknown; allowed: --to"),
        (["g7", "--to=json", "--workdir=nowhere"], "workdir is 'nowhere'; allowed: the folder"),
    ],
)
def test_a_mistaken_command_line_ends_with_code_2(repository, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "nanoevolve_jax.export", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("shape", ["64x64", "64x256", "256x64"])
def test_the_torch_file_of_the_baseline_steps_as_nanochat_does(torch, repository, shape):
    """Against figures that NanoChat's own MuonAdamW gave."""
    reference = Reference(repository / "tests/reference/muon.npz")
    hyper = reference.json("muon/hyper")
    spec = NANOCHAT._replace(second_moment_beta=hyper["beta2"])
    module = load_module(source_of(spec, "torch", "nanochat"))
    params = [torch.nn.Parameter(torch.tensor(x)) for x in reference[f"muon/{shape}/params0"]]
    optimizer = module.MuonAdamW([{"kind": "muon", "params": params, "lr": 0.0}])
    factor = max(1.0, params[0].shape[0] / params[0].shape[1]) ** 0.5  # not in those figures
    found = []
    for step, grads in enumerate(reference[f"muon/{shape}/grads"]):
        settings = {"momentum": hyper["momentum"][step], "weight_decay": hyper["wd"][step]}
        optimizer.param_groups[0].update(lr=hyper["lr"][step] / factor, **settings)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        found.append(np.stack([p.detach().numpy() for p in params]))
    own, theirs = reference.matching(f"muon/{shape}/ns5/params", np.stack(found))
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
        off = np.abs(p.detach().numpy() - reference["adamw/params"][step]) > STEP_GATE
        assert np.mean(off) <= FLIPS
