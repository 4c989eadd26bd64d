"""Exported PyTorch files keep the contract of torch.optim.AdamW, which runs beside them."""

import contextlib
import copy
import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from specs import EVERYTHING

from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

torch = pytest.importorskip("torch")

SPECS = {"nanochat": NANOCHAT, "annealing": ANNEALING, "everything": EVERYTHING}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TOTAL_STEPS = 20
STATISTICS = ("step", "log_loss", "gate")  # state of `everything` that all matrices share


class Net(torch.nn.Module):
    """A network of three matrices in two shapes and three vectors."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.middle, self.last = (
            torch.nn.Linear(*shape, dtype=dtype) for shape in ((6, 4), (4, 6), (6, 4))
        )
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 2)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Subject(NamedTuple):
    """An optimizer under test, given by the functions that create it and take a step."""

    make: Callable[..., Any]  # builds an optimizer from groups of equal shape
    step: Callable[[Any, Any], Any]  # takes one step of an optimizer with a loss

    def of(self, model, **changes):
        """Returns an optimizer of a model with one group per shape."""
        shapes = dict.fromkeys(p.shape for p in model.parameters())
        groups = [[p for p in model.parameters() if p.shape == shape] for shape in shapes]
        return self.make(groups, **changes)


def exported(module) -> Subject:
    def make(groups, **changes):
        return module.MuonAdamW([group(x, **changes) for x in groups], total_steps=TOTAL_STEPS)

    return Subject(make, lambda optimizer, loss: optimizer.step(loss=loss))


def group(params, **changes):
    kind = "muon" if params[0].ndim == 2 else "adamw"
    return {"kind": kind, "params": params, "lr": 0.02, "weight_decay": 0.1} | changes


def reference() -> Subject:
    def make(groups, **changes):
        return torch.optim.AdamW([group(x, **changes) for x in groups], lr=0.02)

    return Subject(make, lambda optimizer, loss: optimizer.step())


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Returns exported files as importable modules, so that their optimizers can be pickled."""
    folder = tmp_path_factory.mktemp("files")
    for name, spec in SPECS.items():
        (folder / f"{name}_torch.py").write_text(source_of(spec, "torch", name))
    sys.path.insert(0, str(folder))
    found = {name: importlib.import_module(f"{name}_torch") for name in SPECS}
    sys.path.remove(str(folder))
    return found


@pytest.fixture(scope="module")
def subjects(modules):
    made = {name: exported(module) for name, module in modules.items()}
    return made | {"adamw": reference()}


every = pytest.mark.parametrize("name", ["adamw", *SPECS])
every_file = pytest.mark.parametrize("name", SPECS)


def loss_of(model, step):
    """Returns the loss of one batch, which depends only on the step."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(5, 6, generator=generator).to(next(model.parameters()).dtype)
    return (model(x) - x[:, :4]).square().mean()


def backward(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


def train(subject, model, optimizer, steps, before=lambda model, step: None):
    """Trains for some steps; `before` may change the gradients before each one."""
    for step in steps:
        loss = backward(model, optimizer, step)
        before(model, step)
        subject.step(optimizer, loss)
    return weights(model)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def tensors(tree):
    """Returns all tensors of a state in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [x for key in sorted(tree, key=str) for x in tensors(tree[key])]
    return [x for value in tree for x in tensors(value)] if isinstance(tree, list | tuple) else []


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def trained(subject, steps=3, dtype=torch.float32, **changes):
    model = Net(dtype)
    optimizer = subject.of(model, **changes)
    train(subject, model, optimizer, range(steps))
    return model, optimizer


def flat_state(optimizer):
    return tensors(copy.deepcopy(optimizer.state_dict()["state"]))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# Default dtypes and autocast.


@every
@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["default dtype bfloat16", "default dtype float64", "autocast"],
)
def test_a_step_does_not_depend_on_the_dtypes_of_its_surroundings(subjects, name, surroundings):
    subject, model = subjects[name], Net()
    with surroundings():
        optimizer = subject.of(model)
    for step in range(3):
        loss = backward(model, optimizer, step)
        with surroundings():
            subject.step(optimizer, loss)
    expected, reference = trained(subject)
    assert same(weights(model), weights(expected))
    if name != "adamw":  # AdamW counts its steps in float64 if that is the default
        assert same(flat_state(optimizer), flat_state(reference))


# Saving and resuming.


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_resumed_run_is_bitwise_the_run_without_a_break(subjects, tmp_path, name, dtype):
    subject = subjects[name]
    model, optimizer = trained(subject, dtype=dtype, eps=1e-4)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    weights_saved, saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other = Net(dtype)
    other.load_state_dict(weights_saved)
    resumed = subject.of(other, eps=1e-4)
    resumed.load_state_dict(saved)
    assert same(flat_state(resumed), flat_state(optimizer))
    found = train(subject, other, resumed, range(3, 6))
    assert same(found, train(subject, model, optimizer, range(3, 6)))
    assert all(x.isfinite().all() for x in found)
    assert same(flat_state(resumed), flat_state(optimizer))


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_copy_goes_on_as_the_original_does(subjects, name, copied, dtype):
    subject = subjects[name]
    model, optimizer = trained(subject, dtype=dtype)
    model_copy, optimizer_copy = copied((model, optimizer))
    found = train(subject, model_copy, optimizer_copy, range(3, 5))
    assert same(found, train(subject, model, optimizer, range(3, 5)))


@every_file
def test_a_loaded_state_shares_no_tensor_with_its_source(subjects, name):
    subject = subjects[name]
    _, optimizer = trained(subject)
    other = Net()
    twin = subject.of(other)
    twin.load_state_dict(optimizer.state_dict())
    before = flat_state(optimizer)
    train(subject, other, twin, range(3, 5))
    assert same(flat_state(optimizer), before)


@every_file
def test_no_two_tensors_of_a_state_overlap(subjects, name):
    """Checkpoints are loaded into the tensors of a state one after the other."""
    _, optimizer = trained(subjects[name])
    found = tensors(optimizer.state_dict()["state"])
    for number, x in enumerate(found):
        x.fill_(number)
    assert all((x == number).all() for number, x in enumerate(found))


@every
def test_state_belongs_to_parameters_alone(subjects, name):
    model, optimizer = trained(subjects[name])
    assert set(optimizer.state) == set(model.parameters())
    assert set(optimizer.state_dict()["state"]) == set(range(6))


def test_the_gate_is_in_the_state_of_every_matrix_and_is_restored(subjects):
    subject = subjects["everything"]
    model, optimizer = trained(subject)
    state = optimizer.state[model.middle.weight]
    assert state["step"] == 3 and 0.0 < float(state["gate"]) < 1.0
    assert float(state["log_loss"][1, 0]) > 0.0  # the weight of the average
    for name in STATISTICS:
        assert torch.equal(state[name], optimizer.state[model.first.weight][name])
    forgetful = copy.deepcopy((model, optimizer))
    for p in (model.first.weight, model.middle.weight, model.last.weight):
        optimizer.state[p]["log_grad_norm"].zero_()
    assert not same(
        train(subject, model, optimizer, range(3, 4)), train(subject, *forgetful, range(3, 4))
    )


@every
def test_load_hooks_see_and_change_what_is_loaded(subjects, name):
    subject = subjects[name]
    model, optimizer = trained(subject)
    state = copy.deepcopy(optimizer.state_dict())
    renamed = {"state": {}, "param_groups": state["param_groups"], "kept": state["state"]}
    other = Net()
    other.load_state_dict(model.state_dict())
    resumed = subject.of(other)
    resumed.register_load_state_dict_pre_hook(lambda _, x: x | {"state": x["kept"]})
    resumed.load_state_dict(renamed)
    assert same(
        train(subject, other, resumed, range(3, 5)), train(subject, model, optimizer, range(3, 5))
    )


@every
def test_a_state_is_loaded_onto_the_device_of_its_parameters(subjects, name):
    subject = subjects[name]
    _, optimizer = trained(subject)
    model = Net().to("meta")
    elsewhere = subject.of(model)
    elsewhere.load_state_dict(optimizer.state_dict())
    devices = {key: x.device.type for s in elsewhere.state.values() for key, x in s.items()}
    assert set(devices.values()) - {devices.pop("step", "cpu")} == {"meta"}


def test_a_state_of_another_optimizer_is_refused(subjects):
    _, adamw = trained(subjects["adamw"])
    _, nanochat = trained(subjects["nanochat"])
    state = nanochat.state_dict() | {"state": adamw.state_dict()["state"]}
    with pytest.raises(ValueError, match=r"state of a matrix must be .*momentum_.*got.*exp_"):
        subjects["nanochat"].of(Net()).load_state_dict(state)


# torch.distributed.checkpoint.


@pytest.fixture(scope="module")
def dsd():
    return importlib.import_module("torch.distributed.checkpoint.state_dict")


@every
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True},
                                     {"full_state_dict": True, "cpu_offload": True}])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_distributed_checkpoint_resumes_bitwise(subjects, dsd, tmp_path, name, options, dtype):
    dcp = importlib.import_module("torch.distributed.checkpoint")
    subject, options = subjects[name], dsd.StateDictOptions(**options)
    model, optimizer = trained(subject, dtype=dtype)

    def states(model, optimizer):
        parts = dsd.get_state_dict(model, optimizer, options=options)
        return dict(zip(("model", "optimizer"), parts, strict=True))

    dcp.save(states(model, optimizer), checkpoint_id=tmp_path / "saved", no_dist=True)
    other = Net(dtype)
    resumed = subject.of(other)
    loaded = states(other, resumed)
    dcp.load(loaded, checkpoint_id=tmp_path / "saved", no_dist=True)
    dsd.set_state_dict(
        other,
        resumed,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
        options=options,
    )
    assert same(flat_state(resumed), flat_state(optimizer))
    assert same(
        train(subject, other, resumed, range(3, 5)), train(subject, model, optimizer, range(3, 5))
    )


@every_file
def test_reading_a_distributed_state_before_training_moves_nothing(subjects, dsd, name):
    subject = subjects[name]
    model = Net()
    optimizer = subject.of(model)
    before = weights(model)
    state = dsd.get_optimizer_state_dict(model, optimizer)["state"]
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert same(weights(model), before)
    assert not any(x.any() for x in tensors(state))
    found = train(subject, model, optimizer, range(3))
    assert same(found, weights(trained(subject)[0]))


def whole(model):
    return [x.full_tensor() if hasattr(x, "full_tensor") else x for x in weights(model)]


def train_sharded(subject, dsd):
    """Trains a sharded model and another that resumes from its state; returns both weights."""
    from torch.distributed.fsdp import fully_shard

    def sharded():
        model = Net()
        return fully_shard(model) or model

    model = sharded()
    optimizer = subject.of(model)
    train(subject, model, optimizer, range(2))
    states = copy.deepcopy(dsd.get_state_dict(model, optimizer))
    train(subject, model, optimizer, range(2, 4))
    other = sharded()
    resumed = subject.of(other)
    dsd.set_state_dict(other, resumed, model_state_dict=states[0], optim_state_dict=states[1])
    train(subject, other, resumed, range(2, 4))
    return whole(model), whole(other)


@every
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_model_trains_and_resumes_as_a_plain_one(subjects, dsd, name):
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found, resumed = train_sharded(subjects[name], dsd)
    finally:
        dist.destroy_process_group()
    assert same(found, resumed)
    for a, b in zip(found, weights(trained(subjects[name], 4)[0]), strict=True):
        torch.testing.assert_close(a, b)


TWO_PROCESSES = """
import sys
sys.path[:0] = [{tests!r}, {folder!r}]
import torch
import test_torch_contract as contract
import everything_torch
from torch.distributed.checkpoint import state_dict
store = torch.distributed.FileStore({store!r}, 2)
torch.distributed.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size=2)
subject = contract.exported(everything_torch)
found, resumed = contract.train_sharded(subject, state_dict)
assert contract.same(found, resumed)
plain = contract.weights(contract.trained(subject, 4)[0])
for a, b in zip(found, plain, strict=True):
    torch.testing.assert_close(a, b)
torch.distributed.destroy_process_group()
print("same")
"""


@pytest.mark.slow
def test_a_model_sharded_over_two_processes_trains_as_a_plain_one(modules, repository, tmp_path):
    code = TWO_PROCESSES.format(
        tests=str(repository / "tests"),
        folder=str(Path(modules["everything"].__file__).parent),
        store=str(tmp_path / "store"),
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(rank)],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [run.communicate(timeout=120) for run in runs]
    assert [output for output, _ in ends] == ["same\n"] * 2, ends


# Groups and gradients.


@every
def test_a_group_may_be_added_after_the_first_step(subjects, name):
    subject = subjects[name]
    model, added = Net(), Net().first.weight
    optimizer = subject.of(model)
    known = len(list(model.parameters()))
    train(subject, model, optimizer, range(2))
    optimizer.add_param_group(group([added]))
    model.register_parameter("added", added)

    def with_gradient(model, step):
        model.added.grad = torch.full_like(model.added, 0.1 * step)

    start = weights(model)
    train(subject, model, optimizer, range(2, 4), with_gradient)
    assert all(not torch.equal(a, b) for a, b in zip(start, weights(model), strict=True))
    assert len(optimizer.state) == known + 1
    if name in ("adamw", "nanochat"):  # these optimizers treat each parameter separately
        alone = torch.nn.Module()
        alone.register_parameter("added", Net().first.weight)
        separate = subject.make([[alone.added]])
        for step in range(2, 4):
            with_gradient(alone, step)
            subject.step(separate, None)
        assert torch.equal(alone.added, model.added)
    if name == "everything":
        old, new = (optimizer.state[p] for p in (model.first.weight, model.added))
        assert all(torch.equal(old[key], new[key]) for key in STATISTICS) and old["step"] == 4


@every
def test_a_frozen_matrix_is_skipped_as_if_it_were_not_there(subjects, name):
    subject = subjects[name]

    def freeze(model, step):
        model.middle.weight.grad = None

    model = Net()
    optimizer = subject.of(model)
    found = train(subject, model, optimizer, range(3), freeze)
    other = Net()
    without = subject.make(
        [
            [other.first.weight, other.last.weight],
            [other.first.bias, other.last.bias],
            [other.middle.bias],
        ]
    )
    assert same(found, train(subject, other, without, range(3), freeze))
    assert torch.equal(model.middle.weight, Net().middle.weight)
    assert model.middle.weight not in optimizer.state


@every
def test_a_matrix_without_a_gradient_keeps_its_state_and_goes_on_later(subjects, name):
    subject = subjects[name]
    model, optimizer = trained(subject, 2)
    state = copy.deepcopy(optimizer.state[model.middle.weight])
    matrix = model.middle.weight.detach().clone()

    def freeze(model, step):
        model.middle.weight.grad = None

    train(subject, model, optimizer, range(2, 4), freeze)
    assert torch.equal(model.middle.weight, matrix)
    assert same(tensors(optimizer.state[model.middle.weight]), tensors(state))
    train(subject, model, optimizer, range(4, 5))
    assert not torch.equal(model.middle.weight, matrix)
    assert all(x.isfinite().all() for x in flat_state(optimizer))


def test_a_matrix_may_be_unfrozen_later(subjects):
    """The matrix starts a new momentum and shares the statistics of the other matrices."""
    subject = subjects["everything"]
    model = Net()
    model.middle.weight.requires_grad_(False)
    optimizer = subject.of(model)
    train(subject, model, optimizer, range(2))
    model.middle.weight.requires_grad_(True)
    train(subject, model, optimizer, range(2, 3))
    old, new = (optimizer.state[p] for p in (model.first.weight, model.middle.weight))
    assert all(torch.equal(old[key], new[key]) for key in STATISTICS) and new["step"] == 3


@every
def test_a_step_without_any_gradient_does_nothing(subjects, name):
    subject = subjects[name]
    model, optimizer = trained(subject)
    before, state = weights(model), flat_state(optimizer)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert same(weights(model), before) and same(flat_state(optimizer), state)
    fresh = subject.of(Net())
    fresh.step()
    assert not fresh.state


@every
def test_a_step_begins_the_state_of_a_parameter_whose_state_was_read_before(subjects, name):
    subject = subjects[name]
    model = Net()
    optimizer = subject.of(model)
    assert not any(optimizer.state[p] for p in model.parameters())
    frozen = lambda model, step: step or setattr(model.middle.weight, "grad", None)  # noqa: E731
    train(subject, model, optimizer, range(3), frozen)
    other = Net()
    expected = train(subject, other, subject.of(other), range(3), frozen)
    assert same(weights(model), expected)


def test_alignment_compares_matrices_with_a_gradient_in_both_steps(subjects):
    """Constant gradients have a cosine of 1, no matter which matrices are skipped."""
    subject = subjects["everything"]
    model = Net()
    optimizer = subject.of(model)
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    for skipped in (None, "first", "first", None, "last"):
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g.clone()
        if skipped:
            getattr(model, skipped).weight.grad = None
        subject.step(optimizer, 2.0)
    total, weight = optimizer.state[model.middle.weight]["alignment"]
    torch.testing.assert_close(total / weight, torch.ones(2))


@every
def test_empty_matrices_and_empty_groups_change_nothing(subjects, name):
    subject = subjects[name]
    shapes = [(0, 4), (4, 0), (0, 0)]
    model, optimizer = trained(subject, 0)
    empty = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in empty:
        optimizer.add_param_group(group([p]))
    optimizer.add_param_group(group([torch.nn.Parameter(torch.ones(2, 2))]) | {"params": []})

    def with_gradient(model, step):
        for p in empty:
            p.grad = torch.zeros_like(p)

    found = train(subject, model, optimizer, range(3), with_gradient)
    assert same(found, weights(trained(subject)[0]))
    assert set(optimizer.state) == {*model.parameters(), *empty}
    with pytest.raises(ValueError, match="empty parameter list"):
        subject.make([])


@every
def test_the_layout_of_gradients_and_parameters_does_not_matter(subjects, name):
    subject = subjects[name]

    def transposed(model, step):
        for p in model.parameters():
            if p.ndim == 2:
                p.grad = p.grad.T.contiguous().T
                assert not p.grad.is_contiguous()

    model = Net()
    with torch.no_grad():
        model.middle.weight.set_(model.middle.weight.T.contiguous().T)
    found = train(subject, model, subject.of(model), range(3), transposed)
    for a, b in zip(found, weights(trained(subject)[0]), strict=True):
        torch.testing.assert_close(a, b)


@every_file
@pytest.mark.parametrize("shape", [(4, 4), (4,)])
@pytest.mark.parametrize(
    ("grad", "words"),
    [(lambda p: torch.ones_like(p).to_sparse(), "sparse"), (torch.ones_like, "complex64")],
    ids=["sparse", "complex"],
)
def test_sparse_and_complex_gradients_are_refused_before_anything_moves(
    subjects, name, shape, grad, words
):
    dtype = torch.complex64 if words == "complex64" else torch.float32
    plain = torch.nn.Parameter(torch.ones(4, 4))
    plain.grad = torch.ones(4, 4)
    other = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    other.grad = grad(other.detach())
    optimizer = subjects[name].make([[plain], [other]])
    with pytest.raises(ValueError, match=f"gradients must be dense and real, got .*{words}"):
        optimizer.step(loss=1.0)
    assert torch.equal(plain, torch.ones(4, 4)) and not optimizer.state


@every
def test_groups_have_their_own_learning_rate_and_decay(subjects, name):
    subject = subjects[name]
    model, other = Net(), Net()
    optimizer, changed = subject.of(model), subject.of(other)
    changed.param_groups[1]["lr"] = 0.0
    changed.param_groups[2]["weight_decay"] = 0.9
    train(subject, model, optimizer, range(1))
    train(subject, other, changed, range(1))
    for number, (a, b) in enumerate(zip(optimizer.param_groups, changed.param_groups, strict=True)):
        equal = all(torch.equal(x, y) for x, y in zip(a["params"], b["params"], strict=True))
        assert equal == (number not in (1, 2))
    start = [p for p in Net().parameters() if p.shape == changed.param_groups[1]["params"][0].shape]
    assert same(start, changed.param_groups[1]["params"])


# Losses, closures, schedules and scalers.


@every_file
@pytest.mark.parametrize(
    "form",
    [
        float,
        np.float32,
        lambda x: np.array([x], np.float64),
        lambda x: torch.tensor([x]),
        lambda x: torch.tensor([[x]], dtype=torch.float64),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
    ids=["float", "numpy scalar", "numpy array", "(1,)", "(1, 1)", "with a gradient"],
)
def test_a_loss_of_one_element_is_a_loss(subjects, name, form):
    model, optimizer = trained(subjects[name], 0)
    for step in range(3):
        optimizer.step(loss=form(backward(model, optimizer, step).item()))
    assert same(weights(model), weights(trained(subjects[name])[0]))
    assert not any(x.requires_grad for x in flat_state(optimizer))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, r"loss must be given, as in step\(loss=loss\), got None"),
        (torch.ones(3), r"loss must have one element, got shape \(3,\)"),
        (torch.ones(0), r"loss must have one element, got shape \(0,\)"),
    ],
)
def test_another_loss_is_refused_before_anything_moves(subjects, loss, message):
    model, optimizer = trained(subjects["everything"])
    backward(model, optimizer, 3)
    before, state = weights(model), flat_state(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.step(loss=loss)
    assert same(weights(model), before) and same(flat_state(optimizer), state)


def after_a_loss(subject, loss, steps=range(1)):
    """Returns a model and its optimizer after one step with this loss and further steps."""
    model = Net()
    optimizer = subject.of(model)
    backward(model, optimizer, 0)
    optimizer.step(loss=loss)
    train(subject, model, optimizer, steps)
    return model, optimizer


@every_file
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_leaves_no_trace_in_the_averages(subjects, name, loss):
    subject = subjects[name]
    model, optimizer = after_a_loss(subject, loss)
    assert all(x.isfinite().all() for x in weights(model) + flat_state(optimizer))
    if name != "everything":  # this policy's gate does not read the loss
        assert same(weights(model), weights(after_a_loss(subject, 1.0)[0]))
        return
    state = optimizer.state[model.middle.weight]
    weight_of = {key: float(state[key][1, 1]) for key in ("log_loss", "log_grad_norm")}
    assert 0 < weight_of["log_loss"] < weight_of["log_grad_norm"]  # one value against two
    torch.testing.assert_close(state["log_loss"][0, 1] / weight_of["log_loss"],
                               state["first_log_loss"])  # fmt: skip
    assert state["step"] == 2


@every
def test_a_closure_gives_the_gradients_and_the_loss(subjects, name):
    subject = subjects[name]
    model, optimizer = trained(subject, 0)
    for step in range(3):
        expected = loss_of(model, step)
        found = optimizer.step(lambda step=step: backward(model, optimizer, step))
        assert torch.equal(found, expected)
    assert same(weights(model), weights(trained(subject)[0]))


@every
def test_a_schedule_sets_the_learning_rate_of_every_step(subjects, name):
    subject = subjects[name]
    model, other = Net(), Net()
    optimizer, by_hand = subject.of(model), subject.of(other, lr=torch.tensor(0.02))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        train(subject, model, optimizer, [step])
        schedule.step()
        for each in by_hand.param_groups:
            each["lr"].fill_(0.02 * 0.5**step)
        train(subject, other, by_hand, [step])
    for a, b in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(a, b)


@every
def test_a_gradient_scaler_skips_steps_that_overflow(subjects, name):
    subject = subjects[name]
    model = Net()
    optimizer = subject.of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    extra = {} if name == "adamw" else {"loss": 1.0}
    for step in (0, None, 1, 2):  # None stands for a step that overflows
        before, state = weights(model), flat_state(optimizer)
        optimizer.zero_grad()
        loss = loss_of(model, step or 0)
        scaler.scale(loss).backward()
        if step is None:
            model.first.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer, **(extra and {"loss": loss}))
        scaler.update()
        if step is None:
            assert same(weights(model), before) and same(flat_state(optimizer), state)
    for a, b in zip(weights(model), weights(trained(subject)[0]), strict=True):
        torch.testing.assert_close(a, b)


@every
def test_compiled_and_tied_models_train_as_plain_ones(subjects, name):
    subject = subjects[name]
    model = Net()
    compiled = torch.compile(model, backend="eager")
    found = train(subject, compiled, subject.of(compiled), range(3))
    assert same(found, weights(trained(subject)[0]))
    tied = Net()
    tied.last.weight = tied.first.weight
    optimizer = subject.of(tied)
    train(subject, tied, optimizer, range(2))
    assert len(optimizer.state) == 5 and tied.last.weight is tied.first.weight


# Invalid use.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sgd"}, "kind of a group must be muon or adamw, got 'sgd'"),
        ({"lr": None}, "a group of kind muon must have an lr, got .*'kind'"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got -1"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, got 1.0"),
        ({"kind": "adamw", "eps": -1}, "eps must be at least 0, got -1"),
        ({"kind": "adamw", "betas": (0.9, 1.5)}, r"betas must be .* got \(0.9, 1.5\)"),
        ({"params": [(3,)]}, r"a muon group must have one shape, \(m, n\), got \[\(3,\)\]"),
        ({"params": [(3, 2), (2, 3)]}, r"got \[\(2, 3\), \(3, 2\)\]"),
        ({"params": [(1, 2, 3)]}, r"got \[\(1, 2, 3\)\]"),
    ],
)
def test_a_mistaken_group_is_refused_and_not_added(modules, change, message):
    known = group([torch.nn.Parameter(torch.ones(2, 2))])
    optimizer = modules["nanochat"].MuonAdamW([known])
    mistaken = known | {"params": [torch.nn.Parameter(torch.ones(2, 2))]} | change
    if "params" in change:
        mistaken["params"] = [torch.nn.Parameter(torch.ones(shape)) for shape in change["params"]]
    mistaken = {key: value for key, value in mistaken.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(mistaken)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("total_steps", [0, -5, float("nan"), None, "ten"])
def test_a_horizon_must_be_positive(modules, total_steps):
    with pytest.raises(ValueError, match=f"total_steps must be at least 1, got {total_steps!r}"):
        modules["annealing"].MuonAdamW([], total_steps=total_steps)
