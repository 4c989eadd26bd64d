"""Compares this model and optimizer with figures computed by PyTorch NanoChat.

    python -m model.parity --reference FILE.npz [--reference ANOTHER.npz]

The exit code is 0 if every figure is within its tolerance, 1 if one is not, and 2 if a file cannot
be used.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import app, flags, logging
from rich.table import Table

from nanoevolve_jax.model import gpt, loss, nanochat, parity_optimizer
from nanoevolve_jax.model.reference import BadReference, Check, Reference, within, worst
from nanoevolve_jax.terminal.console import Console, plain

_REFERENCE = flags.DEFINE_multi_string("reference", [], "npz file of reference figures; repeatable")

LOGIT_GATE = 5e-6  # largest absolute error of logits, losses and bits per byte
NATS_GATE = 1e-6  # relative error of a sum of losses; a few float32 roundings
GRADIENT_GATE = 3e-5  # relative L2 error of each parameter's gradient
GRADIENT_NOISE = 1e-8  # absolute error below rounding; makes gradients of 0 equal


def check_derived(reference: Reference) -> list[Check]:
    """Compares sizes, layers and counts derived from the config."""
    config, want = reference.config, reference.json("derived")
    got = {
        "padded_vocab_size": config.padded_vocab_size,
        "head_dim": config.head_dim,
        "window_sizes": [[window, 0] for window in config.windows],
        "value_embed_layers": list(config.value_embed_layers),
        "backout_layer": config.backout_layer,
        "num_params": config.num_params,
        "flops_per_token": config.flops_per_token,
        "scaling_params": config.param_counts,
    }
    for key in got:
        if not isinstance(want, dict) or key not in want:
            raise BadReference(f"{reference.path}: 'derived' misses {key!r}")
    wrong = [key for key in got if got[key] != want[key]]
    if not wrong:
        return [Check("derived sizes and counts", 0.0, 0.0, "exact", True)]
    return [
        Check(f"derived {key}: {got[key]}, not {want[key]}", np.nan, np.nan, "exact", False)
        for key in wrong
    ]


def check_logits(reference: Reference) -> list[Check]:
    """Compares all logits, after the softcap."""
    logits = _logits(reference)
    return [within("logits", logits, reference.array("logits", *logits.shape), LOGIT_GATE)]


def check_losses(reference: Reference) -> list[Check]:
    """Compares cross-entropy per token and its mean, with and without ignored targets."""
    checks = []
    for prefix in ("", "masked/"):
        got = _scores(reference, prefix)
        for name in ("loss_none", "loss_mean"):
            want = reference.array(f"{prefix}{name}", *got[name].shape)
            checks.append(within(f"{prefix}{name}", got[name], want, LOGIT_GATE))
    return checks


def check_bits_per_byte(reference: Reference) -> list[Check]:
    """Compares sums of nats and bytes and their ratio, with and without ignored targets."""
    checks = []
    for prefix in ("", "masked/"):
        got = _scores(reference, prefix)
        for name, gate in (
            ("total_nats", {"relative": NATS_GATE}),
            ("total_bytes", {"max_abs": 0.0}),
            ("bpb", {"max_abs": LOGIT_GATE}),
        ):
            want = reference.array(f"{prefix}bpb/{name}")
            checks.append(within(f"{prefix}bpb/{name}", got[name], want, **gate))
    return checks


def check_gradients(reference: Reference) -> list[Check]:
    """Compares the gradient of the mean loss for each parameter."""
    idx, targets = reference.tokens("idx"), _targets(reference)
    got = nanochat.to_nanochat(
        _gradients(reference.config, reference.params, idx, targets), reference.config
    )
    gate = functools.partial(within, relative=GRADIENT_GATE, noise=GRADIENT_NOISE)
    pairs = {name: reference.matching(f"grads/{name}", array) for name, array in got.items()}
    return worst("gradients", [gate(f"grads/{name}", *pair) for name, pair in pairs.items()])


MODEL_CHECKS: tuple[Callable[[Reference], list[Check]], ...] = (
    check_derived,
    check_logits,
    check_losses,
    check_bits_per_byte,
    check_gradients,
    parity_optimizer.check_optimizer_groups,
    parity_optimizer.check_optimizer_steps,
)
KERNEL_CHECKS: tuple[Callable[[Reference], list[Check]], ...] = (
    parity_optimizer.check_schedules,
    parity_optimizer.check_muon_kernels,
    parity_optimizer.check_adamw_kernel,
)


def run_checks(reference: Reference) -> list[Check]:
    """Runs every check for which the file has arrays."""
    suites = (*MODEL_CHECKS,) if reference.has_model else ()
    suites += KERNEL_CHECKS if reference.has_kernels else ()
    # By default a GPU multiplies float32 matrices in TF32, with errors far above the tolerances.
    with jax.default_matmul_precision("highest"):
        checks = [check for suite in suites for check in suite(reference)]
    if not checks:
        raise BadReference(f"{reference.path} must hold arrays that can be checked, got none")
    return checks


def run(paths: Sequence[str], console: Console | None = None) -> int:
    """Checks each file, prints a table for each, and returns the exit code."""
    console = console or Console()
    if not paths:
        console.print_line("parity: name at least one file: --reference FILE.npz")
        return 2
    code = 0
    for path in paths:
        try:
            checks = run_checks(Reference(path))
        except BadReference as error:
            console.print_line(f"parity: {error}")
            code = 2
            continue
        console.print(_table(path, checks))
        code = max(code, int(not all(check.passed for check in checks)))
    return code


def _table(path: str, checks: Sequence[Check]) -> Table:
    table = Table(title=plain(path), title_justify="left")
    for heading, justify in (
        ("quantity", "left"),
        ("largest error", "right"),
        ("relative L2", "right"),
        ("gate", "left"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")
    for name, max_abs, relative, gate, passed in checks:
        verdict = plain("pass", "green") if passed else plain("FAIL", "bold red")
        table.add_row(plain(name), f"{max_abs:.1e}", f"{relative:.1e}", gate, verdict)
    return table


def _targets(reference: Reference, prefix: str = "") -> np.ndarray:
    idx = reference.tokens("idx")
    return reference.tokens(f"{prefix}targets", *idx.shape, lowest=loss.IGNORED)


def _logits(reference: Reference) -> jax.Array:
    idx = reference.tokens("idx")
    if idx.ndim != 2:
        raise BadReference(f"{reference.path}: 'idx' has shape {idx.shape}, not (B, T)")
    return _forward(reference.config, reference.params, idx)


def _scores(reference: Reference, prefix: str) -> dict[str, jax.Array]:
    token_bytes = reference.array("token_bytes", reference.vocab_size)
    return _score(_logits(reference), _targets(reference, prefix), token_bytes)


_forward = jax.jit(gpt.apply, static_argnums=0)


@jax.jit
def _score(logits, targets, token_bytes):
    losses = loss.token_losses(logits, targets)
    nats, size = loss.nats_and_bytes(losses, targets, token_bytes)
    return {
        "loss_none": losses,
        "loss_mean": loss.mean_loss(logits, targets),
        "total_nats": nats,
        "total_bytes": size,
        "bpb": loss.bits_per_byte(nats, size),
    }


@functools.partial(jax.jit, static_argnums=0)
def _gradients(config, params, idx, targets):
    return jax.grad(lambda p: loss.mean_loss(gpt.apply(config, p, idx), targets))(params)


def main(argv: Sequence[str]) -> int:
    """Compares all reference files, prints a table and returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; files go behind --reference")
    logging.set_verbosity(logging.WARNING)  # JAX would report every missing backend.
    return run(_REFERENCE.value)


if __name__ == "__main__":
    app.run(main)
